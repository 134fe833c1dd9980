"""Pictures of K-MERL: AUROC against the number of leads, the clinical lead sets, where a query looked, loss curves.

Every number comes from the caller; nothing is computed here but positions on the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.ecg.plot import draw_strips, strip_rows
from shared.ecg.record import LEADS
from shared.metrics.figures import CYCLE, DPI, GREY, MARKERS, draw_curve, save

Estimate = tuple[float, float, float]  # value, lower and upper end of its interval


def draw_lead_counts(
    path: Path, methods: Mapping[str, Mapping[int, Estimate]], ylabel: str = "macro AUROC", title: str = ""
) -> None:
    """Score against the number of available leads, 1..12, with error bands. methods: name -> {count: estimate}.

    A count that a method lacks leaves a gap in its line.
    """
    counts = sorted({count for estimates in methods.values() for count in estimates})
    lines = {}
    for name, estimates in methods.items():
        rows = np.array([estimates.get(count, (np.nan,) * 3) for count in counts], dtype=float)
        lines[name] = tuple(rows.T)
    draw_curve(path, counts, lines, "number of available leads", ylabel, title)


def draw_lead_sets(
    path: Path, methods: Mapping[str, Mapping[str, Estimate]], ylabel: str = "macro AUROC", title: str = ""
) -> None:
    """Score at each fixed lead set with its 95 % interval, methods side by side. methods: name -> {set: estimate}.

    Sets stand in the order in which they first occur.
    """
    sets = list(dict.fromkeys(name for estimates in methods.values() for name in estimates))
    fig = Figure(figsize=(1.5 + 1.05 * len(sets), 4.6), dpi=DPI, layout="constrained")
    ax = fig.add_subplot()
    for position in range(1, len(sets), 2):  # every other set is shaded, so that neighbours are told apart
        ax.axvspan(position - 0.5, position + 0.5, color="0.955", zorder=0)
    step = 0.7 / len(methods)
    for k, (name, estimates) in enumerate(methods.items()):
        x = [sets.index(s) + (k - (len(methods) - 1) / 2) * step for s in estimates]
        value, lo, hi = np.array(list(estimates.values()), dtype=float).T
        style = {"color": CYCLE[k % len(CYCLE)], "marker": MARKERS[k % len(MARKERS)], "label": name}
        ax.errorbar(x, value, [value - lo, hi - value], ls="none", markersize=5, elinewidth=1.4, capsize=2, **style)
    ax.set(xlim=(-0.5, len(sets) - 0.5), ylabel=ylabel, title=title, xlabel="available leads")
    ax.set_xticks(range(len(sets)), sets)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    save(fig, path)


def draw_attention(
    path: Path,
    signal_mv: np.ndarray,
    fs_hz: float,
    queries: Mapping[str, tuple[float, np.ndarray]],
    segment_s: float,
    leads: Sequence[str] = LEADS,
    title: str = "",
) -> None:
    """Which leads and segments each query attended to: the ECG on paper, one panel per query, tinted by attention.

    signal_mv: [12, n] in mV. queries: name -> (score, attention [12, m] >= 0 of segments of segment_s, 0 elsewhere);
    leads: names of those the model was given, the only ones drawn. Within a panel the strongest segment has the full
    tint, which is named as a multiple of even attention; each lead's share of the attention stands at its right.
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
        peak = shown.max() / (shown.sum() / shown.size)
        label = f"{name}: {score:.3f}   (full tint = {peak:.1f} x even attention)"
        draw_strips(ax, signal_mv, fs_hz, leads, weights, segment_s, label)
        for (_, baseline, _), share in zip(strips, shown.sum(axis=1) / shown.sum(), strict=True):
            place = {"transform": ax.get_yaxis_transform(), "va": "center"}
            ax.text(1.006, baseline, f"{share:.0%}", fontsize=9, color=GREY, **place)
    if title:
        fig.text(0.01, 1 - 0.1 / size[1], title, va="top", fontsize=11, weight="bold", parse_math=False)
    save(fig, path)
