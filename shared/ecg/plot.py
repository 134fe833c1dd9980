"""A 12-lead ECG on standard paper, 25 mm/s and 10 mm/mV: four columns of 2.5 s and a rhythm strip, or whole strips.

Serves `predict.py` of every ECG paper and the page of simulated conditions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.ecg.record import LEADS
from shared.metrics.figures import DPI, GREY, save

PAPER_LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_COLUMN_S = 2.5
_ROW_MV = 3.0  # paper height of a row: 30 mm
_STRIP_MV = (0.8, 1.45), (3.0, 3.0)  # least and greatest paper of a strip below and above its baseline
_MINOR, _MAJOR, _INK = "#f6d5d5", "#eba9a9", "#1a1a1a"
_TINT = (0.0, 0.447, 0.698)


def draw_ecg(ax_or_fig, signal_mv: np.ndarray, fs_hz: float, title: str = ""):
    """Draw one ECG and return its Axes.

    ax_or_fig: a matplotlib Axes, or a Figure that gets one. signal_mv: [12, n] in mV, rows in the order of LEADS, at
    least 10 s at `fs_hz` for a full page; shorter recordings leave paper empty. ValueError where the shape is
    wrong.
    """
    signal_mv = np.asarray(signal_mv)
    if signal_mv.ndim != 2 or len(signal_mv) != len(LEADS):
        raise ValueError(f"signal_mv must be [12, n] in the order of LEADS, not {signal_mv.shape}")
    ax = ax_or_fig.add_axes((0.01, 0.02, 0.98, 0.93)) if hasattr(ax_or_fig, "add_axes") else ax_or_fig
    rows, width_s = len(PAPER_LAYOUT) + 1, 4 * _COLUMN_S
    bottom, top = -rows * _ROW_MV + 1.2, 2.0
    _paper(ax, width_s, bottom, top)
    for r, row in enumerate(PAPER_LAYOUT):
        for c, lead in enumerate(row):
            _trace(ax, signal_mv, fs_hz, lead, c * _COLUMN_S, (c + 1) * _COLUMN_S, -r * _ROW_MV)
    _trace(ax, signal_mv, fs_hz, "II", 0.0, width_s, -(rows - 1) * _ROW_MV)
    for r in range(rows):
        _calibration(ax, -r * _ROW_MV)
    if title:
        ax.set_title(title, fontsize=8, loc="left", pad=3)
    return ax


def strip_rows(signal_mv: np.ndarray, leads) -> list[tuple[float, float, float]]:
    """Per lead (bottom, baseline, top) on the paper of `draw_strips` in mV, from 0 downwards: as high as its waves."""
    rows, top = [], 0.0
    for lead in leads:
        values = signal_mv[LEADS.index(lead)]
        centre = np.nanmedian(values) if np.isfinite(values).any() else 0.0
        reach = [centre - np.nanmin(values), np.nanmax(values) - centre] if np.isfinite(values).any() else [0.0, 0.0]
        below, above = np.clip(reach, *_STRIP_MV) + 0.15
        rows.append((top - above - below, top - above, top))
        top -= above + below
    return rows


def draw_strips(
    ax, signal_mv: np.ndarray, fs_hz: float, leads, weights=None, segment_s: float = 0.0, title: str = "", full=None
):
    """Whole recordings of some leads, one row a lead, each segment tinted by its weight; returns the Axes.

    signal_mv: [12, n] in mV, rows in the order of LEADS. leads: the names to show. weights: [12, m] >= 0 of m segments
    of segment_s, 0 = no tint and `full`, or the greatest of the leads shown, = full tint; None = no tint. ValueError
    for a wrong shape or name.
    """
    signal_mv = np.asarray(signal_mv)
    if signal_mv.ndim != 2 or len(signal_mv) != len(LEADS):
        raise ValueError(f"signal_mv must be [12, n] in the order of LEADS, not {signal_mv.shape}")
    unknown = [lead for lead in leads if lead not in LEADS]
    if unknown or not leads:
        raise ValueError(f"leads: {', '.join(unknown) or 'none'} given; LEADS are {', '.join(LEADS)}")
    if weights is not None and (np.ndim(weights) != 2 or len(weights) != len(LEADS) or segment_s <= 0):
        raise ValueError(f"weights must be [12, m] of segments of segment_s > 0, not {np.shape(weights)}, {segment_s}")
    rows, width_s = strip_rows(signal_mv, leads), signal_mv.shape[1] / fs_hz
    _paper(ax, width_s, rows[-1][0], rows[0][2])
    if weights is not None:
        shown = np.asarray(weights, dtype=float)[[LEADS.index(lead) for lead in leads]]
        _tint_strips(ax, rows, shown, segment_s, full or max(float(shown.max()), 1e-12))
    for lead, (_, baseline, _) in zip(leads, rows, strict=True):
        _trace(ax, signal_mv, fs_hz, lead, 0.0, width_s, baseline, label=9)
        _calibration(ax, baseline)
    if title:
        ax.set_title(title, fontsize=11, loc="left", pad=4)
    return ax


def _tint_strips(ax, rows, weights: np.ndarray, segment_s: float, full: float) -> None:
    """weights: [number of rows, m]."""
    from matplotlib.colors import LinearSegmentedColormap

    tint = LinearSegmentedColormap.from_list("tint", [(*_TINT, 0.0), (*_TINT, 0.75)])
    edges = np.arange(weights.shape[1] + 1) * segment_s
    for (bottom, _, top), cells in zip(rows, weights, strict=True):
        ax.pcolormesh(edges, [bottom, top], cells[None], cmap=tint, vmin=0, vmax=full, lw=0, zorder=1)


def _paper(ax, width_s: float, bottom: float, top: float) -> None:
    """1 mm and 5 mm lines; one second is 25 mm, one millivolt 10 mm."""
    from matplotlib.collections import LineCollection

    left, right = -0.4, width_s + 0.04
    for step_s, step_mv, colour, line in ((0.04, 0.1, _MINOR, 0.3), (0.2, 0.5, _MAJOR, 0.5)):
        xs = np.arange(np.ceil(left / step_s), right / step_s) * step_s
        ys = np.arange(np.ceil(bottom / step_mv), top / step_mv) * step_mv
        lines = [[(x, bottom), (x, top)] for x in xs] + [[(left, y), (right, y)] for y in ys]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=line, zorder=0))
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect(0.4)  # 10 mm/mV over 25 mm/s
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _trace(ax, signal_mv, fs_hz, lead, start_s, end_s, baseline_mv, label: float = 6) -> None:
    first, last = round(start_s * fs_hz), min(round(end_s * fs_hz), signal_mv.shape[1])
    values = signal_mv[LEADS.index(lead), first:last]
    t = np.arange(first, first + len(values)) / fs_hz
    offset = np.nanmedian(values) if len(values) and np.isfinite(values).any() else 0.0
    ax.plot(t, values - offset + baseline_mv, color=_INK, lw=0.6, zorder=2)
    ax.text(start_s + 0.04, baseline_mv + 1.05, lead, fontsize=label, zorder=3)


def _calibration(ax, baseline_mv: float) -> None:
    """1 mV for 0.2 s in front of a row."""
    x = np.array([-0.36, -0.30, -0.30, -0.10, -0.10, -0.04])
    ax.plot(x, np.array([0, 0, 1, 1, 0, 0]) + baseline_mv, color=_INK, lw=0.6)


def draw_page(path: Path, signals_mv, fs_hz: float, titles: list[str], columns: int = 3, dpi: int = 110) -> Path:
    """Many ECGs on one page, written to `path` (PNG, PDF ...). signals_mv: sequence of [12, n] in mV."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(columns * 7.6, rows * 4.2))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, signal_mv, title in zip(axes, signals_mv, titles, strict=False):
        draw_ecg(ax, signal_mv, fs_hz, title)
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.99, 0.02, 0.08)
    figure.savefig(path, dpi=dpi)
    return Path(path)


def draw_attention(
    path: Path,
    signal_mv: np.ndarray,
    fs_hz: float,
    queries: Mapping[str, tuple[float, np.ndarray]],
    segment_s: float,
    leads: Sequence[str] = LEADS,
    title: str = "",
    record: str = "",
) -> None:
    """Which leads and segments each query attended to: the ECG on paper, one panel per query, tinted by attention.

    signal_mv: [12, n] in mV. queries: name -> (score, attention [12, m] >= 0 of segments of segment_s, 0 elsewhere);
    leads: names of those the model was given, the only ones drawn. Even attention or less is untinted; the full tint is
    the strongest segment of a panel, at least twice even attention. Each lead's share of it stands at its right.
    record: its "group/id", kept in the file.
    ValueError where a query has no attention on these leads.
    """
    rows, strips = [LEADS.index(lead) for lead in leads], strip_rows(np.asarray(signal_mv), leads)
    columns = 1 if len(queries) == 1 else 2
    lines = -(-len(queries) // columns)
    width_in = 8.6
    paper_s, paper_mv = np.shape(signal_mv)[1] / fs_hz + 0.44, -strips[-1][0]
    height_in = paper_mv * 0.4 / paper_s * 0.93 * width_in  # 10 mm/mV over 25 mm/s
    top_in, gap_in = 0.45 if title else 0.1, 0.35
    size = (columns * width_in, top_in + lines * (height_in + gap_in) + 0.1)
    fig = Figure(figsize=size, dpi=DPI)
    for k, (name, (score, weights)) in enumerate(queries.items()):
        shown = np.asarray(weights, dtype=float)[rows]
        if not shown.sum() > 0:
            raise ValueError(f"{name}: no attention on {', '.join(leads)}; give the leads that the model was given")
        line, column = divmod(k, columns)
        bottom = 1 - (top_in + (line + 1) * (height_in + gap_in)) / size[1]
        ax = fig.add_axes(((column + 0.01) / columns, bottom, 0.93 / columns, height_in / size[1]))
        beyond = np.maximum(np.asarray(weights, dtype=float) / shown.mean() - 1, 0)  # multiples of even attention
        full = max(beyond[rows].max(), 1.0)
        label = f"{name}: {score:.3f}   (full tint = {full + 1:.1f} x even attention)"
        draw_strips(ax, signal_mv, fs_hz, leads, beyond, segment_s, label, full)
        for (_, baseline, _), share in zip(strips, shown.sum(axis=1) / shown.sum(), strict=True):
            place = {"transform": ax.get_yaxis_transform(), "va": "center"}
            ax.text(1.006, baseline, f"{share:.0%}", fontsize=9, color=GREY, **place)
    if title:
        fig.text(0.01, 1 - 0.1 / size[1], title, va="top", fontsize=11, weight="bold", parse_math=False)
    save(fig, path, record)
