"""A 12-lead ECG on standard paper: 25 mm/s, 10 mm/mV, four columns of 2.5 s and a rhythm strip.

Serves `predict.py` of every ECG paper and the page of simulated conditions.
"""

from pathlib import Path

import numpy as np

from shared.ecg.record import LEADS

PAPER_LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_COLUMN_S = 2.5
_ROW_MV = 3.0  # paper height of a row: 30 mm
_MINOR, _MAJOR, _INK, _MARK = "#f6d5d5", "#eba9a9", "#1a1a1a", "#ffd54a"


def draw_ecg(ax_or_fig, signal_mv: np.ndarray, fs_hz: float, title: str = "", highlight=None):
    """Draw one ECG and return its Axes.

    ax_or_fig: a matplotlib Axes, or a Figure that gets one. signal_mv: [12, n] in mV, rows in the order of LEADS, at
    least 10 s at `fs_hz` for a full page; shorter recordings leave paper empty. highlight: spans to mark, as
    (lead, start_s, end_s) with lead a name of LEADS or None for all; parts outside what a lead shows are left out.
    ValueError where the shape or a lead name is wrong.
    """
    signal_mv = np.asarray(signal_mv)
    if signal_mv.ndim != 2 or len(signal_mv) != len(LEADS):
        raise ValueError(f"signal_mv must be [12, n] in the order of LEADS, not {signal_mv.shape}")
    ax = ax_or_fig.add_axes((0.01, 0.02, 0.98, 0.93)) if hasattr(ax_or_fig, "add_axes") else ax_or_fig
    rows, width_s = len(PAPER_LAYOUT) + 1, 4 * _COLUMN_S
    bottom, top = -rows * _ROW_MV + 1.2, 2.0
    _paper(ax, width_s, bottom, top)
    spans = [(lead, float(start), float(end)) for lead, start, end in highlight or ()]
    unknown = {lead for lead, _, _ in spans if lead is not None} - set(LEADS)
    if unknown:
        raise ValueError(f"highlight: no such lead {sorted(unknown)}; LEADS are {', '.join(LEADS)}")
    for r, row in enumerate(PAPER_LAYOUT):
        for c, lead in enumerate(row):
            _trace(ax, signal_mv, fs_hz, lead, c * _COLUMN_S, (c + 1) * _COLUMN_S, -r * _ROW_MV, spans)
    _trace(ax, signal_mv, fs_hz, "II", 0.0, width_s, -(rows - 1) * _ROW_MV, spans)
    _calibration(ax, rows)
    if title:
        ax.set_title(title, fontsize=8, loc="left", pad=3)
    return ax


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


def _trace(ax, signal_mv, fs_hz, lead, start_s, end_s, baseline_mv, spans) -> None:
    first, last = round(start_s * fs_hz), min(round(end_s * fs_hz), signal_mv.shape[1])
    values = signal_mv[LEADS.index(lead), first:last]
    t = np.arange(first, first + len(values)) / fs_hz
    for marked, mark_start, mark_end in spans:
        a, b = max(start_s, mark_start), min(end_s, mark_end)
        if marked in (None, lead) and b > a:
            ax.fill_between([a, b], baseline_mv - 1.2, baseline_mv + 1.4, color=_MARK, alpha=0.45, lw=0, zorder=1)
    offset = np.nanmedian(values) if len(values) and np.isfinite(values).any() else 0.0
    ax.plot(t, values - offset + baseline_mv, color=_INK, lw=0.6, zorder=2)
    ax.text(start_s + 0.04, baseline_mv + 1.05, lead, fontsize=6, zorder=3)


def _calibration(ax, rows: int) -> None:
    """1 mV for 0.2 s in front of every row."""
    for r in range(rows):
        x = np.array([-0.36, -0.30, -0.30, -0.10, -0.10, -0.04])
        ax.plot(x, np.array([0, 0, 1, 1, 0, 0]) - r * _ROW_MV, color=_INK, lw=0.6)


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
