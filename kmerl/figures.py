"""Pictures of K-MERL: AUROC against the number of leads, and at the clinical lead sets.

Every number comes from the caller; nothing is computed here but positions on the page.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.metrics.figures import CYCLE, DPI, MARKERS, draw_curve, save

Estimate = tuple[float, float, float]  # value, lower and upper end of its interval


def draw_lead_counts(path: Path, methods: Mapping[str, Mapping[int, Estimate]], ylabel: str = "macro AUROC") -> None:
    """Score against the number of available leads, 1..12, with error bands. methods: name -> {count: estimate}.

    A count that a method lacks leaves a gap in its line.
    """
    counts = sorted({count for estimates in methods.values() for count in estimates})
    lines = {}
    for name, estimates in methods.items():
        rows = np.array([estimates.get(count, (np.nan,) * 3) for count in counts], dtype=float)
        lines[name] = tuple(rows.T)
    draw_curve(path, counts, lines, "number of available leads", ylabel)


def draw_lead_sets(path: Path, methods: Mapping[str, Mapping[str, Estimate]], ylabel: str = "macro AUROC") -> None:
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
    ax.set(xlim=(-0.5, len(sets) - 0.5), ylabel=ylabel, xlabel="available leads")
    ax.set_xticks(range(len(sets)), sets)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    save(fig, path)
