"""Claims, intervals, controls and tables of a scorecard as HTML, for the results page; report.py writes Markdown.

Numbers stand as in REPRODUCTION.md, each in a `<data>` element with the scorecard's digits. Classes are those of
docs/style.css.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shared.metrics import scorecard
from shared.metrics.report import HOW_TO_READ, ci_text, number, verdict_text

VERDICTS = {"holds": "holds", "does not hold": "fails", "inconclusive": "open", scorecard.NOT_TESTED: "none"}  # -> CSS


# --- text ---


def inline(text: str) -> str:
    """Escaped text with the two marks of Markdown that notes and READMEs use: `code` and *emphasis*."""
    parts = html.escape(" ".join(str(text).split()), quote=False).split("`")
    parts[::2] = [re.sub(r"\*+([^*]+)\*+", r"<em>\1</em>", p).replace("-&gt;", "→") for p in parts[::2]]
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def copyable(command: str) -> str:
    """A command as a button that copies it."""
    text = html.escape(command)
    return f'<button type="button" class="copy" data-copy="{text}"><code>{text}</code></button>'


def command(paper: str, tier: str = "laptop", claim: str = "") -> str:
    parts = [f"make reproduce-{paper}", "" if tier == "laptop" else f"TIER={tier}", f"CLAIM={claim}" if claim else ""]
    return " ".join(p for p in parts if p)


def minus(text: str) -> str:
    """Numbers with the sign that is as wide as a plus."""
    return text.replace("-", "−")


def data(value: float | int | None, sign: bool = False) -> str:
    """A number as shown, with the scorecard's digits beside it."""
    return "–" if value is None else f'<data value="{value!r}">{minus(number(value, sign))}</data>'


def estimate(value: float | None, ci: Sequence[float | None], sign: bool = False) -> str:
    low, high = (data(v, sign) for v in ci)
    return f'{data(value, sign)} <span class="ci">[{low}, {high}]</span>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """A table in a box that scrolls by itself; cells are HTML."""
    head = "".join(f'<th scope="col">{inline(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
    return f'{box}<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def verdict(claim: Mapping) -> str:
    text = verdict_text(claim).replace(" (in simulation)", "<small>in simulation</small>")
    return f'<span class="verdict {VERDICTS[claim["verdict"]]}">{text}</span>'


def counts(card: Mapping) -> str:
    """Verdicts counted, as a bar and in words."""
    found = [c["verdict"] for c in card["claims"]]
    shown = {v: found.count(v) for v in VERDICTS if v in found}
    bar = "".join(f'<i class="{VERDICTS[v]}" style="flex:{n}"></i>' for v, n in shown.items())
    words = "".join(f'<span class="{VERDICTS[v]}">{n}\u00a0{v}</span>' for v, n in shown.items())
    return f'<div class="stack" aria-hidden="true">{bar}</div><div class="counts">{words}</div>'


# --- intervals ---


def nice(limit: float) -> float:
    """The next number of 1, 2, 3, 5 x a power of ten."""
    power = 10.0 ** np.floor(np.log10(limit))
    return next(float(f"{f * power:.3g}") for f in (1, 2, 3, 5, 10) if f * power >= limit * 0.9999)


def scales(cards: Mapping[str, Mapping]) -> dict[str, float]:
    """Metric -> the half-width of the axis on which all its 95 % intervals fit."""
    ends: dict[str, list[float]] = {}
    for claim in (c for card in cards.values() for c in card["claims"] if "ours" in c):
        values = [v for v in (*claim["ours"]["ci"], claim["margin"]) if v]
        ends.setdefault(claim["metric"], []).extend(map(abs, values))
    return {metric: nice(max(values)) for metric, values in ends.items() if values}


def claimed(claim: Mapping) -> tuple[list[tuple[float, float]], list[float]]:
    """(Ranges of the difference in which the claim holds, their ends): the boundaries of shared.metrics.interval."""
    inf, m = float("inf"), claim["margin"]
    spans = {"non-inferiority": [(-m, inf)], "equivalence": [(-m, m)], "difference": [(-inf, -m), (m, inf)]}
    found = spans.get(claim["kind"], [(m, inf)])
    if claim["direction"] == "lower":
        found = [(-high, -low) for low, high in found]
    return found, [end for span in found for end in span if abs(end) < inf]


def forest(claim: Mapping, step: Mapping, scale: float, middle: float = 118.0) -> str:
    """The interval of a difference: thick 95 %, thin Holm-adjusted (a tip where it leaves the axis), shaded the side
    that is claimed."""
    if None in (step["difference"], *step["ci"], *step["ci_holm"]):
        return ""

    def x(value: float) -> float:
        return round(middle + max(-1.0, min(1.0, value / scale)) * (middle - 8), 1)

    spans, edges = claimed(claim)
    parts = [f'<rect class="claimed" x="{x(a)}" y="2" width="{x(b) - x(a):.1f}" height="24"/>' for a, b in spans]
    parts.append(f'<path class="zero" d="M{x(0)} 2V26"/>')
    parts += [f'<path class="edge" d="M{x(end)} 2V26"/>' for end in edges if end]
    low, high = step["ci_holm"]
    parts.append(f'<path class="wide" d="M{x(low)} 14H{x(high)}"/>')
    parts += [f'<path class="tip" d="M{x(v)} 10l{6 * s} 4l{-6 * s} 4z"/>' for v, s in ((low, -1), (high, 1))
              if abs(v) > scale]  # fmt: skip
    parts.append(f'<path class="ci95" d="M{x(step["ci"][0])} 14H{x(step["ci"][1])}"/>')
    parts.append(f'<circle cx="{x(step["difference"])}" cy="14" r="4"/>')
    for value, anchor in ((-scale, "start"), (0.0, "middle"), (scale, "end")):
        at = {"start": 2, "middle": middle, "end": 2 * middle - 2}[anchor]
        parts.append(f'<text x="{at}" y="37" text-anchor="{anchor}">{minus(f"{value:+g}") if value else 0}</text>')
    label = f"difference {number(step['difference'], True)}, 95 % interval {ci_text(step['ci'], True)}"
    label += f", Holm-adjusted {ci_text(step['ci_holm'], True)}"
    return f'<svg class="forest" viewBox="0 0 {2 * middle:g} 40" role="img" aria-label="{label}">{"".join(parts)}</svg>'


# --- claims and controls ---


def asked(claim: Mapping) -> str:
    comparator = claim["comparator"]
    steps = "; ".join(comparator) if isinstance(comparator, list) else f"{claim['experiment']} against {comparator}"
    margin = f", margin {number(float(claim['margin']))}" if claim["margin"] else ""
    lower = ", lower is better" if claim["direction"] == "lower" else ""
    return inline(f"{claim['kind']}{margin}, {claim['metric']}{lower}: {steps}")


def evidence(claim: Mapping, scale: float) -> str:
    ours = claim["ours"]
    rows = []
    for step in ours.get("steps", [ours]):
        name = step.get("comparator", f"{claim['experiment']} > {claim['comparator']}")
        seeds = minus(", ".join(number(v, True) for v in step["seeds"]))
        holm = f"{minus(ci_text(step['ci_holm'], True))} at {100 * step['confidence_holm']:.4g} %"
        levels = f"{data(step['level'])} vs {data(step['comparator_level'])}"
        p = "–" if step["p"] is None else f"{step['p']:.2g}"
        rows.append([inline(name), levels, estimate(step["difference"], step["ci"], True), forest(claim, step, scale),
                     holm, p, seeds, inline(step.get("verdict", claim["verdict"]))])  # fmt: skip
    columns = ["compared", "levels", "difference [95 % CI]", "", "Holm-adjusted interval", "p", "per seed", "verdict"]
    about = f"{inline(ours['data'])}; {ours['n_items']:,} items; protocol {inline(claim['protocol'])}"
    body = table(columns, rows, f"Evidence of {claim['id']}") + f"<small>{about}</small>"
    return f'<tr class="evidence"><td colspan="5"><details><summary>Evidence</summary>{body}</details></td></tr>'


def asked_cell(paper: str, claim: Mapping, tier: str, first: bool) -> str:
    """What is claimed, how it is asked, and the command that measures it at a tier that can."""
    text = f'<span class="statement">{inline(claim["statement"])}</span><small>{asked(claim)}</small>'
    text = text if first else f"<small>the same, {tier}</small>"
    runs = tier in claim["tiers"]
    return text + (
        copyable(command(paper, tier, claim["id"])) if runs else f"<small><code>{claim['id']}</code></small>"
    )


def claim_row(claim: Mapping, tier: str, about: str, result: Mapping | None, scale: float) -> str:
    """A claim at one tier. about: HTML of the first cell; result: of the scorecard, None where nothing has run."""
    value = claim["paper"]["value"]
    theirs = "no number" if value is None else f"{inline(value)} <small>{inline(claim['paper']['unit'])}</small>"
    theirs += f" <small>{inline(claim['paper']['provenance'])}</small>"
    ours, plot, judged = (result or {}).get("ours"), "", f"{verdict(result)}<small>{tier}</small>" if result else "–"
    if ours:
        weakest = "<small>weakest step</small>" if "steps" in ours else ""
        levels = f"<small>{data(ours['level'])} vs {data(ours['comparator_level'])}</small>"
        measured, plot = (
            f"{weakest}{estimate(ours['difference'], ours['ci'], True)}{levels}",
            forest(claim, ours, scale),
        )
    else:
        measured = f"<small>{inline(result['reason'] if result else 'no results yet')}</small>"
    cells = f'<td data-label="Paper">{theirs}</td><td data-label="Ours">{measured}</td><td>{plot}</td><td>{judged}</td>'
    kind = "measured" if ours else ""
    row = f'<tr id="claim-{claim["id"]}-{tier}" class="{kind}"><th scope="row">{about}</th>{cells}</tr>\n'
    return row + (evidence(result, scale) if ours else "")


def claims_table(paper: str, claims: Sequence[Mapping], cards: Mapping[str, Mapping]) -> str:
    size, rows = scales(cards), []
    for i, claim in enumerate(claims):
        results = {tier: card["claims"][i] for tier, card in cards.items()} or {"laptop": None}
        for tier, result in results.items():
            about = asked_cell(paper, claim, tier, first=tier == next(iter(results)))
            rows.append(claim_row(claim, tier, about, result, size.get(claim["metric"], 1.0)))
    heads = ["Claim", "The paper's number", "Ours: difference [95 % CI], levels", "Interval", "Verdict"]
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = f'<table class="claims stacked"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return (how_to_read() if cards else "") + body


def how_to_read() -> str:
    drawn = """Intervals: the dot is the difference, the thick line its 95 % interval, the thin line the Holm-adjusted
    one (an arrow where it leaves the axis); where the thin line lies wholly on the shaded side, the claim holds.
    Brackets beside the paper's number name where it was read."""
    text = f'<p class="prose">{inline(HOW_TO_READ)}</p><p class="prose">{inline(drawn)}</p>'
    return f'<details class="block"><summary>How to read this table</summary>{text}</details>'


def controls_table(card: Mapping) -> str:
    rows = []
    for c in card["controls"]:
        above = estimate(c["difference"], c["difference_ci"], True) if "difference" in c else "–"
        about = "; ".join(inline(c[key]) for key in ("note", "data") if key in c)
        cells = {"Control": estimate(c["value"], c["ci"]), "Ours minus control": above, "About": about}
        row = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
        rows.append(f'<tr><th scope="row"><code>{c["id"]}</code><small>{c["metric"]}</small></th>{row}</tr>')
    heads = ("Control", "Its value [95 % CI]", "Ours minus control [95 % CI]", "What it is; data")
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return f'<table class="stacked"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def cell(value) -> str:
    """A cell of a secondary table: text, a number, or [value, lo, hi]."""
    if isinstance(value, list):
        return estimate(value[0], value[1:])
    return inline(value) if isinstance(value, str) else data(value)


def secondary(t: Mapping, is_open: bool = False) -> str:
    text = "text" if all(isinstance(v, str) for row in t["rows"] for v in row) else ""
    body = table(t["columns"], ([cell(v) for v in row] for row in t["rows"]), t["title"], text)
    note = f"<p><small>{inline(t['note'])}</small></p>" if t.get("note") else ""
    return f'<details class="block"{" open" * is_open}><summary>{inline(t["title"])}</summary>{body}{note}</details>'


def as_published(t: Mapping) -> bool:
    return "as published" in " ".join([t["title"], *t["columns"]]).replace("_", " ").lower()
