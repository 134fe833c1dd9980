"""claims.yaml in, scorecard.json out: what a paper claims, what was measured, and the computed verdict.

Both files are checked against scorecard.schema.json. Verdicts come from `shared.metrics.interval`, never from a caller.
JSON is canonical (sorted keys, floats rounded to 6 significant digits, NaN as null), so that scoring the same
predictions again gives the same bytes, except for the keys in VOLATILE.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import yaml

from shared.locks import write_whole
from shared.metrics.interval import Decision, Difference, Hypothesis, holm, p_value, weakest_step

SCHEMA = Path(__file__).with_name("scorecard.schema.json")
TIERS = ("smoke", "laptop", "gpu", "paper")
NOT_TESTED = "not tested at this tier"
VOLATILE = ("commit", "wall_s", "headline_s", "peak_rss_mb", "environment")  # belong to the run, not to its predictions
COPIED = ("id", "statement", "kind", "metric", "comparator", "margin", "direction", "protocol", "experiment", "paper")
UNVERIFIED = re.compile(r"\[recalled|\(weak\)", re.IGNORECASE)


@dataclass(frozen=True)
class Measured:
    """What was measured for one claim: one difference, or one per step of an ordering.

    data: "simulated", or the data set in words ("PTB-XL, 350 records"); a text that starts with "simulated" marks every
    verdict on it as one in simulation.
    """

    differences: tuple[Difference, ...]
    data: str


# --- claims.yaml ---


def load_claims(path: Path) -> list[dict]:
    """Entries of a claims.yaml, validated, with margin 0 and direction "higher" filled in.

    Raises ValueError naming file, claim and fix: unknown or missing keys, a doubled id, a value whose provenance is
    unverified, a margin that the kind needs, steps for anything but an ordering, no reason for the tiers left out.
    """
    claims = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    _validate(claims, "claims_file", str(path))
    seen = set()
    for claim in claims:
        claim.setdefault("margin", 0.0)
        claim.setdefault("direction", "higher")
        problem = f"id {claim['id']!r} occurs twice" if claim["id"] in seen else _problem(claim)
        if problem:
            raise ValueError(f"{path}: claim {claim['id']}: {problem}")
        seen.add(claim["id"])
    return claims


def _problem(claim: Mapping) -> str | None:
    """What is wrong with an entry beyond its form, or None."""
    paper = claim["paper"]
    if paper["value"] is not None and UNVERIFIED.search(paper["provenance"]):
        return f"paper.value {paper['value']!r} is unverified ({paper['provenance']}); such a value must be null"
    if isinstance(claim["comparator"], list) != (claim["kind"] == "ordering"):
        return "comparator must be a list of steps for kind ordering, and one name for every other kind"
    if claim["kind"] in ("non-inferiority", "equivalence") and not claim["margin"] > 0:
        return f"kind {claim['kind']} needs a margin above 0, in units of {claim['metric']}"
    if set(claim["tiers"]) != set(TIERS) and "not_tested" not in claim:
        return "not_tested is missing: say why the tiers that are left out cannot test it"
    return None


def _n_steps(claim: Mapping) -> int:
    return len(claim["comparator"]) if claim["kind"] == "ordering" else 1


# --- scorecard ---


def build(
    paper: str,
    tier: str,
    claims: Sequence[Mapping],
    results: Mapping[str, Measured | str],
    *,
    run: Mapping[str, Any],
    controls: Sequence[Mapping] = (),
    tables: Sequence[Mapping] = (),
    figures: Sequence[Mapping] = (),
) -> dict:
    """The scorecard, validated and canonical.

    results: for every claim that names this tier, what was measured, or the reason why it was not (a text).
    run: commit, wall_s, peak_rss_mb, environment (versions), seeds; headline_s where it was timed. The Holm family is
    every claim that names this tier, measured in this run or not, so that running fewer claims makes no verdict
    easier.
    """
    due = {c["id"]: c for c in claims if tier in c["tiers"]}
    if set(results) != set(due):
        odd = sorted(set(results) ^ set(due))
        raise ValueError(
            f"{paper}/{tier}: claims {odd}: results and the claims that name this tier must be the same ids"
        )
    measured = {i: r for i, r in results.items() if isinstance(r, Measured)}
    hypotheses = {}
    for claim_id, result in measured.items():
        claim = due[claim_id]
        if len(result.differences) != _n_steps(claim):
            raise ValueError(f"{claim_id}: {len(result.differences)} differences measured, {_n_steps(claim)} claimed")
        hypotheses[claim_id] = Hypothesis(claim["kind"], result.differences, claim["margin"], claim["direction"])
    decisions = dict(zip(measured, holm(list(hypotheses.values()), family_size=len(due)), strict=True))
    rows = []
    for claim in claims:
        row = {key: claim[key] for key in COPIED}
        if claim["id"] in measured:
            row["ours"] = _ours(claim, measured[claim["id"]], hypotheses[claim["id"]], decisions[claim["id"]])
            row["verdict"] = decisions[claim["id"]].verdict
        else:
            row["verdict"], row["reason"] = NOT_TESTED, results.get(claim["id"], claim.get("not_tested"))
        rows.append(row)
    card = canonical(
        {
            "paper": paper,
            "tier": tier,
            "family_size": len(due),
            "claims": rows,
            "controls": list(controls),
            "tables": list(tables),
            "figures": list(figures),
            **run,
        }
    )
    validate(card)
    return card


def _step(d: Difference, decision: Decision, i: int) -> dict:
    return {
        "difference": d.mean,
        "ci": d.interval(0.95),
        "ci_holm": decision.intervals[i],
        "confidence_holm": decision.confidences[i],
        "level": d.level,
        "comparator_level": d.comparator_level,
        "seeds": d.per_seed,
    }


def _ours(claim: Mapping, result: Measured, hypothesis: Hypothesis, decision: Decision) -> dict:
    """The `ours` block. An ordering shows the step that its p comes from, its weakest, and lists all steps."""
    weakest, _ = weakest_step(hypothesis)
    d = result.differences[weakest]
    ours = _step(d, decision, weakest) | {
        "p": decision.p_value,
        "margin": claim["margin"],
        "n_items": d.n_items,
        "n_patients": d.n_patients,
        "data": result.data,
    }
    if len(result.differences) > 1:
        ours["steps"] = [
            _step(step, decision, i)
            | {
                "comparator": claim["comparator"][i],
                "p": p_value("ordering", step, claim["margin"], claim["direction"]),
                "verdict": decision.step_verdicts[i],
            }
            for i, step in enumerate(result.differences)
        ]
    return ours


def control(
    control_id: str,
    metric: str,
    level: tuple[float, float, float],
    ours_minus_control: Difference | None = None,
    data: str | None = None,
    note: str | None = None,
) -> dict:
    """A row of `controls`. level: (value, lo, hi) of the control, 95 %; ours_minus_control: how far we are above it."""
    row: dict[str, Any] = {"id": control_id, "metric": metric, "value": level[0], "ci": level[1:]}
    if ours_minus_control is not None:
        row |= {"difference": ours_minus_control.mean, "difference_ci": ours_minus_control.interval(0.95)}
    return row | {k: v for k, v in (("data", data), ("note", note)) if v is not None}


# --- canonical JSON ---


def canonical(value: Any) -> Any:
    """Plain JSON types: floats rounded to 6 significant digits, NaN and infinities as None, keys as text."""
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [canonical(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return (float(f"{value:.6g}") + 0.0) if math.isfinite(value) else None  # + 0.0 turns -0.0 into 0.0
    return value


def dumps(card: Mapping) -> str:
    return json.dumps(canonical(card), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@cache
def _schema() -> dict:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def _validate(value: Any, definition: str | None, where: str) -> None:
    schema = _schema() if definition is None else {"$defs": _schema()["$defs"], "$ref": f"#/$defs/{definition}"}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        path = list(error.absolute_path)
        if len(path) > 1 and isinstance(path[0], int):  # an entry of claims.yaml: its id says more than its number
            path[0] = value[path[0]].get("id", path[0]) if isinstance(value[path[0]], Mapping) else path[0]
        raise ValueError(f"{where}: {'.'.join(map(str, path)) or 'top level'}: {error.message}")


def validate(card: Mapping, where: str = "scorecard") -> None:
    """Raises ValueError naming the key that does not match the schema, or a table row of the wrong length."""
    _validate(card, None, where)
    for table in card["tables"]:
        for row in table["rows"]:
            if len(row) != len(table["columns"]):
                raise ValueError(f"{where}: table {table['id']}: row {row} does not have {len(table['columns'])} cells")


def write(card: Mapping, path: Path) -> None:
    """Write scorecard.json so that a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    text = dumps(card)
    validate(json.loads(text), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def read(path: Path) -> dict:
    """A validated scorecard. Raises ValueError naming the file where it is not one."""
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON ({error}); delete it and score again") from error
    validate(card, str(path))
    return card
