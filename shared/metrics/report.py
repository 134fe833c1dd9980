"""REPRODUCTION.md of a paper, rendered from claims.yaml and its scorecards, and the same as a table in the terminal.

Every number comes from a scorecard, except those in the paper's column, which come from claims.yaml alone. The text is
a function of its inputs: no clock, no path, no machine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.metrics.scorecard import COPIED, NOT_TESTED, TIERS, canonical

HOW_TO_READ = """\
Differences are *ours minus the comparator* on the same test items, mean over seeds, with a 95 % confidence interval
over patients and seeds, `mean ± t(0.975, K-1) · sqrt(v_items + s2_seeds / K)`. A claim *holds* where the interval lies
wholly on the claimed side of its margin, *does not hold* where wholly on the other side, else it is *inconclusive*;
with fewer than 3 seeds it is always inconclusive. Verdicts are read from the wider intervals that Holm's correction
over all claims of a tier asks for (listed per tier), so a claim can be inconclusive although its 95 % interval is not.
An ordering holds where all its steps hold, and does not hold where any step does not; its weakest step is shown. "In
simulation" marks verdicts on simulated records: they say nothing about the size of an effect on patients, and their
numbers are not to be compared with the paper's."""


# --- cells ---


def number(x: float | int | None, sign: bool = False) -> str:
    """Three decimals between 0.001 and 100, fewer above; dash for a number that could not be estimated."""
    if x is None:
        return "–"
    plus = "+" if sign and x > 0 else ""
    if isinstance(x, int):
        return f"{plus}{x:,}"
    if x != 0 and abs(x) < 0.001:
        return f"{plus}{x:.1e}"
    return f"{plus}{x:.3f}" if abs(x) < 100 else f"{plus}{x:,.1f}"


def ci_text(bounds: Sequence[float | None], sign: bool = False) -> str:
    return f"[{number(bounds[0], sign)}, {number(bounds[1], sign)}]"


def escaped(text: str) -> str:
    """Free text made safe inside a Markdown table; code in backticks keeps its characters."""
    parts = " ".join(str(text).split()).replace("|", "\\|").split("`")
    for i in range(0, len(parts), 2):
        for char, safe in (("*", "\\*"), ("_", "\\_"), ("<", "&lt;")):
            parts[i] = parts[i].replace(char, safe)
    return "`".join(parts)


def _cell(value: Any) -> str:
    """A cell of a secondary table: text, a number, or [value, lo, hi]."""
    if isinstance(value, list):
        return f"{number(value[0])} {ci_text(value[1:])}"
    return escaped(value) if isinstance(value, str) else number(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _steps(comparator: str | list[str]) -> str:
    return "; ".join(comparator) if isinstance(comparator, list) else comparator


def verdict_text(claim: Mapping) -> str:
    """The verdict as shown to readers: verdicts on simulated data say so."""
    simulated = claim.get("ours", {}).get("data", "").lower().startswith("simulated")
    return claim["verdict"] + (" (in simulation)" if simulated else "")


def _paper_number(claim: Mapping) -> str:
    """The paper's number with its provenance, from claims.yaml; never anything measured here."""
    paper = claim["paper"]
    if paper["value"] is None:
        return f"no number {escaped(paper['provenance'])}"
    return f"{escaped(str(paper['value']))} {escaped(paper['unit'])} {escaped(paper['provenance'])}".replace("  ", " ")


def _asked(claim: Mapping) -> str:
    margin = f", margin {number(float(claim['margin']))}" if claim["margin"] else ""
    better = ", lower is better" if claim["direction"] == "lower" else ""
    return f"{claim['kind']}{margin}: {escaped(claim['metric'])}{better} against {escaped(_steps(claim['comparator']))}"


def _result(claim: Mapping) -> str:
    """A tier's cell of the claims table."""
    if "ours" not in claim:
        return f"{claim['verdict']}: {escaped(claim['reason'])}"
    ours = claim["ours"]
    weakest = "weakest step " if "steps" in ours else ""
    measured = f"{number(ours['difference'], True)} {ci_text(ours['ci'], True)}"
    levels = f"{number(ours['level'])} vs {number(ours['comparator_level'])}"
    return f"**{verdict_text(claim)}**<br>{weakest}{measured}<br>{levels}"


# --- sections ---


def _claims_section(claims: Sequence[Mapping], cards: Mapping[str, Mapping]) -> str:
    by_tier = {tier: {c["id"]: c for c in card["claims"]} for tier, card in cards.items()}
    rows = [
        [f"{escaped(c['statement'])}<br>`{c['id']}`", _asked(c), _paper_number(c)]
        + [_result(by_tier[tier][c["id"]]) for tier in cards]
        for c in claims
    ]
    heads = [f"`{tier}`: verdict, difference [95 % CI], ours vs comparator" for tier in cards]
    return "## Claims\n\n" + markdown_table(["Claim", "Asked as", "The paper's number", *heads], rows)


def run_text(card: Mapping) -> str:
    seeds = ", ".join(map(str, card["seeds"])) or "none"
    versions = ", ".join(f"{k} {v}" for k, v in sorted(card["environment"].items()) if v is not None)
    headline_s = card.get("headline_s")
    clock = "" if headline_s is None else f"the headline from nothing {headline_s / 60:.1f} min by the clock; "
    return (
        f"Commit `{card['commit']}`; seeds {seeds}; {clock}training and evaluation of all runs, several at a time, "
        f"{card['wall_s'] / 60:.1f} min; at most {card['peak_rss_mb'] / 1024:.2f} GB of memory."
        + f"\nSize of the Holm family (claims that name this tier): {card['family_size']}."
        + (f"\nVersions: {escaped(versions)}" if versions else "")
    )


def _evidence_section(card: Mapping) -> str:
    rows = []
    for claim in (c for c in card["claims"] if "ours" in c):
        ours = claim["ours"]
        for step in ours.get("steps", [ours]):
            verdict = step.get("verdict", claim["verdict"])
            name = f"`{claim['id']}`" + (f": {escaped(step['comparator'])}" if "steps" in ours else "")
            confidence = f"{100 * step['confidence_holm']:.4g} %"
            rows.append(
                [
                    name,
                    f"{number(step['difference'], True)} {ci_text(step['ci'], True)}",
                    f"{ci_text(step['ci_holm'], True)} at {confidence}",
                    f"{step['p']:.2g}",
                    ", ".join(number(v, True) for v in step["seeds"]),
                    f"{number(ours['n_items'])} / {number(ours['n_patients'])}",
                    f"{escaped(claim['protocol'])}; {escaped(ours['data'])}",
                    verdict_text({**claim, "verdict": verdict}),
                ]
            )
    if not rows:
        return "No claim was tested at this tier."
    columns = ["Claim", "Difference [95 % CI]", "Holm-adjusted interval", "p", "Per seed", "Items / patients"]
    return "### Evidence per claim\n\n" + markdown_table([*columns, "Protocol; data", "Verdict"], rows)


def _controls_section(card: Mapping) -> str:
    rows = []
    for c in card["controls"]:
        above = f"{number(c['difference'], True)} {ci_text(c['difference_ci'], True)}" if "difference" in c else "–"
        about = "; ".join(escaped(c[key]) for key in ("data", "note") if key in c) or "–"
        rows.append([f"`{c['id']}`", escaped(c["metric"]), f"{number(c['value'])} {ci_text(c['ci'])}", above, about])
    columns = ["Control", "Metric", "Control's value [95 % CI]", "Ours minus control [95 % CI]", "Data; note"]
    return "### Controls\n\n" + markdown_table(columns, rows)


def _secondary_section(table: Mapping) -> str:
    text = f"### {escaped(table['title'])}\n\n"
    text += markdown_table([escaped(c) for c in table["columns"]], [[_cell(v) for v in row] for row in table["rows"]])
    return text + (f"\n\n{table['note']}" if table.get("note") else "")


def _figures_section(card: Mapping) -> str:
    folder = f"../results/{card['paper']}/{card['tier']}"
    captions = [(escaped(f["caption"]).replace("[", "\\[").replace("]", "\\]"), f["file"]) for f in card["figures"]]
    return "### Figures\n\n" + "\n\n".join(
        f"![{caption}]({folder}/{file})\n\n*{caption}*" for caption, file in captions
    )


def check_same_claims(claims: Sequence[Mapping], card: Mapping) -> None:
    """A scorecard scored with other claims than those shown would put verdicts beside the wrong questions."""
    wanted = [canonical({key: c[key] for key in COPIED}) for c in claims]
    found = [{key: c[key] for key in COPIED} for c in card["claims"]]
    if wanted != found:
        odd = sorted({c["id"] for c in wanted if c not in found} | {c["id"] for c in found if c not in wanted})
        raise ValueError(
            f"scorecard {card['paper']}/{card['tier']}: claims {odd or 'in another order'} differ from claims.yaml; "
            f"run `make rescore-{card['paper']}`"
        )


def render(paper: str, claims: Sequence[Mapping], scorecards: Mapping[str, Mapping]) -> str:
    """The text of <paper>/REPRODUCTION.md. claims: from load_claims; scorecards: tier -> scorecard.

    Raises ValueError where a scorecard is of another paper or tier, or was scored with other claims.
    """
    cards = {tier: scorecards[tier] for tier in TIERS if tier in scorecards}
    if len(cards) != len(scorecards) or any((c["paper"], c["tier"]) != (paper, t) for t, c in cards.items()):
        raise ValueError(
            f"{paper}: scorecards {sorted(scorecards)}: each must be of this paper and of the tier it is under"
        )
    parts = [
        f"<!-- GENERATED by `make rescore-{paper}`. Do not edit. -->",
        f"# Reproduction of `{paper}`",
        f"Generated by `make rescore-{paper}` from `results/{paper}/<tier>/scorecard.json` and `{paper}/claims.yaml`; "
        f"`make reproduce-{paper}` runs the experiments again.",
        HOW_TO_READ,
    ]
    for card in cards.values():
        check_same_claims(claims, card)
    parts.append(_claims_section(claims, cards))
    if not cards:
        parts.append("No tier has been run yet.")
    for tier, card in cards.items():
        parts += [f"## Tier `{tier}`", run_text(card), _evidence_section(card)]
        parts += [_controls_section(card)] if card["controls"] else []
        parts += [_secondary_section(table) for table in card["tables"]]
        parts += [_figures_section(card)] if card["figures"] else []
    return "\n\n".join(parts) + "\n"


def print_table(scorecard: Mapping, console=None) -> None:
    """Claims and controls of one scorecard in the terminal. console: a rich Console; by default standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    style = {"holds": "green", "does not hold": "red", "inconclusive": "yellow", NOT_TESTED: "dim"}
    claims = Table(title=f"{scorecard['paper']}, tier {scorecard['tier']}: claims")
    for column in ("claim", "difference [95 % CI]", "ours vs comparator", "verdict"):
        claims.add_column(column, overflow="fold")
    for c in scorecard["claims"]:
        ours = c.get("ours")
        shown = f"{number(ours['difference'], True)} {ci_text(ours['ci'], True)}" if ours else "–"
        levels = f"{number(ours['level'])} vs {number(ours['comparator_level'])}" if ours else c["reason"]
        verdict = f"[{style[c['verdict']]}]{verdict_text(c)}[/]"
        claims.add_row(c["id"], escape(shown), escape(levels), verdict)
    console.print(claims)
    if scorecard["controls"]:
        controls = Table("control", "metric", "value [95 % CI]", "ours minus control [95 % CI]", title="controls")
        for c in scorecard["controls"]:
            above = f"{number(c['difference'], True)} {ci_text(c['difference_ci'], True)}" if "difference" in c else "–"
            value = f"{number(c['value'])} {ci_text(c['ci'])}"
            controls.add_row(c["id"], escape(c["metric"]), escape(value), escape(above))
        console.print(controls)
