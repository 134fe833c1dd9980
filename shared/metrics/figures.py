"""Pictures that every paper draws: curves with error bands, the claims at a glance.

Colours are those of Okabe and Ito, told apart by every kind of colour vision; a marker or a word always says the same.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.metrics.interval import FAILS, HOLDS, INCONCLUSIVE, boundaries

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK = "#000000"
GREY = "#666666"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"
VERDICT_STYLE = {HOLDS: (BLUE, "o"), FAILS: (VERMILLION, "X"), INCONCLUSIVE: (GREY, "d")}
DPI = 130
LINE_IN, HEADING_IN = 0.19, 0.27  # of a column of reports; 46 characters of 10-point text are about 3.6 inches


def report_column(reference: str, predictions: Mapping[str, str], chars: int) -> tuple[float, list[tuple]]:
    """(height in inches, what `draw_column` draws): a reference ("" where there is none) and what each model wrote."""
    texts = ([("Reference report", reference)] if reference else []) + list(predictions.items())
    colors = ([BLACK] if reference else []) + [CYCLE[k % (len(CYCLE) - 1)] for k in range(len(predictions))]
    blocks = [
        (name, textwrap.wrap(text, chars) or ["(empty)"], c) for (name, text), c in zip(texts, colors, strict=True)
    ]
    return sum(HEADING_IN + LINE_IN * len(lines) + 0.2 for _, lines, _ in blocks), blocks


def draw_column(fig: Figure, left: float, blocks: Sequence[tuple]) -> None:
    """Headings and texts from the top down. left: share of the width."""
    height_in, top_in = fig.get_size_inches()[1], 0.35
    for name, lines, color in blocks:
        y = 1 - top_in / height_in
        fig.text(left, y, name, color=color, weight="bold", fontsize=11, va="top", parse_math=False)
        y -= HEADING_IN / height_in
        fig.text(left, y, "\n".join(lines), fontsize=10, va="top", linespacing=1.3, parse_math=False)
        top_in += HEADING_IN + LINE_IN * len(lines) + 0.2


def draw_curve(
    path: Path,
    x: Sequence[float],
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    band: str = "95 % CI",
) -> None:
    """Curves with error bands. series: name -> (value, lower end, upper end), each as long as x. band: its name."""
    few = len(x) <= 12  # a sweep shows its points and their levels, a training curve does not
    fig = Figure(figsize=(7.2, 4.4), dpi=DPI, layout="constrained")
    ax = fig.add_subplot()
    for k, (name, (mean, lo, hi)) in enumerate(series.items()):
        color, marker = CYCLE[k % len(CYCLE)], MARKERS[k % len(MARKERS)]
        ax.fill_between(x, lo, hi, color=color, alpha=0.18, linewidth=0)
        ax.plot(x, mean, color=color, marker=marker if few else None, markersize=5, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if few:
        ax.set_xticks(list(x))
    ax.grid(color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside right upper", frameon=False, title=f"band: {band}")
    save(fig, path)


def draw_losses(path: Path, runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], title: str = "") -> None:
    """Training loss: mean over seeds, and their range. runs: name -> one list of (step, loss) per seed.

    Runs whose logs end earlier or lie on other steps are drawn on all steps between their own ends.
    """
    steps = np.unique([step for seeds in runs.values() for log in seeds for step, _ in log])
    lines = {}
    for name, seeds in runs.items():
        curves = [np.interp(steps, *np.array(log, dtype=float).T, left=np.nan, right=np.nan) for log in seeds]
        mean = np.mean(curves, axis=0)
        lines[name] = (mean, np.min(curves, axis=0), np.max(curves, axis=0))
    draw_curve(path, steps, lines, "optimiser step", "training loss", title, band="range over seeds")


def draw_claims(path: Path, scorecard: Mapping) -> None:
    """Forest plot of a scorecard: per claim the difference, its intervals, where the claim would hold, and the verdict.

    One panel per metric, because differences of different metrics share no unit; an ordering has one row per step.
    """
    rows = [row for claim in scorecard["claims"] if "ours" in claim for row in _claim_rows(claim)]
    skipped = [claim["id"] for claim in scorecard["claims"] if "ours" not in claim]
    panels = {axis: [row for row in rows if row["axis"] == axis] for axis in dict.fromkeys(r["axis"] for r in rows)}
    note = textwrap.wrap("Not tested at this tier: " + ", ".join(skipped), 130) if skipped else []
    top_in, panel_in, row_in, note_in = 0.9, 0.95, 0.42, 0.25 + 0.19 * len(note)
    height_in = top_in + panel_in * len(panels) + row_in * len(rows) + note_in
    fig = Figure(figsize=(11.5, height_in), dpi=DPI)
    title = f"{scorecard['paper'].upper()}, tier {scorecard['tier']}: claims measured"
    fig.text(0.02, 1 - 0.15 / height_in, title, weight="bold", fontsize=13, va="top")
    legend = (
        "thick line: 95 % interval · thin line: Holm-corrected interval, which decides · green: where the claim holds"
    )
    fig.text(0.02, 1 - 0.5 / height_in, legend, fontsize=9, color=GREY, va="top")
    y_in = top_in
    for axis, members in panels.items():
        panel_height_in = row_in * len(members)
        box = (0.36, 1 - (y_in + panel_height_in) / height_in, 0.42, panel_height_in / height_in)
        _forest(fig.add_axes(box), members, axis)
        y_in += panel_height_in + panel_in
    fig.text(0.02, 0.1 / height_in, "\n".join(note), fontsize=9, color=GREY, va="bottom")
    save(fig, path)


def _claim_rows(claim: Mapping) -> list[dict]:
    """Rows of the forest plot, turned so that larger is better whatever the metric's direction."""
    sign = -1 if claim["direction"] == "lower" else 1

    def turn(values):
        return sorted(sign * np.nan if v is None else sign * v for v in values)

    rows = []
    for step in claim["ours"].get("steps", [claim["ours"]]):
        against = f": {step['comparator']}" if "comparator" in step else f", against {claim['comparator']}"
        rows.append(
            {
                "label": f"{claim['id']}\n{textwrap.shorten(claim['kind'] + against, 58, placeholder=' …')}",
                "kind": claim["kind"],
                "axis": f"{'reduction of' if sign < 0 else 'difference in'} {claim['metric']}; right is better",
                "edges": boundaries(claim["kind"], claim["margin"]),
                "difference": turn([step["difference"]])[0],
                "ci": turn(step["ci"]),
                "ci_holm": turn(step["ci_holm"]),
                "verdict": step.get("verdict", claim["verdict"]),
                "simulated": claim["ours"]["data"].startswith("simulated"),
            }
        )
    return rows


def _forest(ax, rows: Sequence[Mapping], xlabel: str) -> None:
    values = [v for row in rows for v in (row["difference"], *row["ci"], *row["ci_holm"], *row["edges"], 0.0)]
    lo, hi = np.nanmin(values), np.nanmax(values)
    pad = 0.06 * (hi - lo) or 1.0
    lo, hi = lo - pad, hi + pad
    ax.axvline(0, color="0.75", linewidth=1, zorder=1)
    for k, row in enumerate(rows):
        color, marker = VERDICT_STYLE[row["verdict"]]
        for start, end in _holds_where(row["kind"], row["edges"], lo, hi):
            ax.fill_between([start, end], k - 0.42, k + 0.42, color=GREEN, alpha=0.13, linewidth=0)
        for edge in row["edges"]:
            ax.plot([edge, edge], [k - 0.42, k + 0.42], color=GREEN, linewidth=1.2, zorder=2)
        ax.plot(row["ci_holm"], [k, k], color=color, linewidth=1.2, zorder=3)
        ax.plot(row["ci"], [k, k], color=color, linewidth=3.5, zorder=3, solid_capstyle="butt")
        ax.plot(row["difference"], k, marker, color=color, markersize=8, markeredgecolor="white", zorder=4)
        verdict = row["verdict"] + (" (in simulation)" if row["simulated"] else "")
        for x, text, weight in ((-0.03, row["label"], "normal"), (1.03, verdict, "bold")):
            side = {"ha": "right" if x < 0 else "left", "color": color if x > 0 else BLACK, "weight": weight}
            ax.text(x, k, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, **side)
    ax.set(xlim=(lo, hi), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    ax.set_xlabel(xlabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "left", "right"]].set_visible(False)


def _holds_where(kind: str, edges: Sequence[float], lo: float, hi: float) -> list[tuple[float, float]]:
    """The ranges within [lo, hi] in which an interval must lie for the claim to hold."""
    if len(edges) == 1:
        return [(edges[0], hi)]
    return [(edges[0], edges[1])] if kind == "equivalence" else [(lo, edges[0]), (edges[1], hi)]


def save(fig: Figure, path: Path, record: str = "") -> None:
    """PNG whose bytes depend on the picture alone. record: "group/id" of the test record that it shows, kept in the
    file, so that the pages put it beside what was predicted of that record."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = {"Software": None} | ({"Record": record} if record else {})  # no version: equal input gives equal bytes
    fig.savefig(path, metadata=about)
