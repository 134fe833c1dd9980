"""Stage 6: what was done to the reports, for a reader who does not believe it (reference: M2, audit outputs and gates).

In `audit/`: manifest.json, label_stats.csv, unmapped.csv, ungrounded.csv, merges.csv, mapping.csv, conflicts.csv,
coverage.json, review_sample.csv and, against a reviewed file or another reader, agreement.json. A gate that is missed
says so in the manifest and on the screen.

To review: fill the column `reviewed` of review_sample.csv with `term:certainty` joined by "; ", with "=" where what was
extracted is right, with "none" where nothing should have been; then give the file as extract.reviewed.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from supreme import rules
from supreme.backends import write_jsonl
from supreme.labels import SAID, Labels, Planes
from supreme.merge import collapsed
from supreme.terminology import ancestors, find, terminology

if TYPE_CHECKING:
    from supreme.extract import ExtractConfig, Extraction

N_REVIEW = 150  # commonest statements, and as many others
ANY_RHYTHM = frozenset(  # terms of that group that go with another rhythm
    "irregular_rhythm bradycardia tachycardia sinus_arrhythmia supraventricular_arrhythmia rapid_ventricular_response "
    "slow_ventricular_response aberrant_conduction fusion_beat escape_beat atrial_escape_beat junctional_escape_beat "
    "ventricular_escape_beat".split()
)
GATES = (  # name, where its value stands, bound, which side passes
    ("valid JSON after retries", "valid_share", 0.995, "at least"),
    ("grounded spans", "grounded_share", 0.99, "at least"),
    ("unmapped record mass", "mass_unmapped", 0.02, "at most"),
    ("record-weighted F1 on the reviewed sample", "reviewed_f1", 0.95, "at least"),
)


def gates(counts: dict) -> list[dict]:
    """Each gate with its value and verdict: pass, miss, or not measured."""
    out = []
    for name, key, bound, side in GATES:
        value = counts.get(key)
        passed = None if value is None else (value >= bound if side == "at least" else value <= bound)
        verdict = "not measured" if passed is None else "pass" if passed else "miss"
        out.append({"gate": name, "value": value, "bound": f"{side} {bound}", "verdict": verdict})
    return out


def write(out: Path, cfg: "ExtractConfig", found: "Extraction", said: Planes, labels: Labels, identity: dict) -> None:
    """All files; the manifest last. Adds the reviewed F1, where there is one, and the gates to labels.counts."""
    folder = out / "audit"
    found.statements.table.to_parquet(out / "statements.parquet", index=False)
    ids = [[found.statements.ids[u] for u in row] for row in found.statements.of_report]
    pd.DataFrame({"record": range(len(ids)), "statement_ids": ids}).to_parquet(
        out / "record_statements.parquet", index=False
    )
    write_jsonl(out / "extraction.jsonl", found.readings, found.read_counts)
    tables = {
        "label_stats": label_stats(found, said, labels),
        "unmapped": unmapped(found),
        "ungrounded": _ungrounded(found),
        "merges": merges(found),
        "mapping": mapping(found, cfg),
        "conflicts": conflicts(said),
        "review_sample": review_sample(found),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")
    _json(folder / "coverage.json", coverage(found, labels))
    agreement = _agreement(cfg, found)
    if agreement:
        _json(folder / "agreement.json", agreement)
        labels.counts["reviewed_f1"] = agreement.get("by_record", {}).get("f1")
    labels.counts["gates"] = gates(labels.counts)
    _json(folder / "manifest.json", {"identity": identity, "reading": found.read_counts, "counts": labels.counts})


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def label_stats(found: "Extraction", said: Planes, labels: Labels) -> pd.DataFrame:
    """Per term: is it kept, records that state, deny and hedge it, prevalence, its ten commonest statements."""
    counts = {p: np.asarray(said.said[p].sum(axis=0)).ravel() for p in SAID}
    table = pd.DataFrame(
        {"id": [t.id for t in said.terms], "preferred": [t.preferred for t in said.terms]}
        | {"group": [t.group for t in said.terms], "parent": [t.parent or "" for t in said.terms]} | counts
    )  # fmt: skip
    kept = {t.id for t in labels.terms}
    table.insert(2, "kept", table.id.isin(kept))
    table["prevalence"] = table.definite / max(len(said.failed), 1)
    n, sources = found.statements.table.n_records.to_numpy(), defaultdict(list)
    for u, pairs in enumerate(said.stated):
        for id_, plane in pairs:
            if plane == "definite":
                sources[id_].append(u)
    common = {id_: sorted(rows, key=lambda u: (-n[u], u))[:10] for id_, rows in sources.items()}
    table["statements"] = [
        " | ".join(f"{found.statements.norm[u]} ({n[u]})" for u in common.get(i, ())) for i in table.id
    ]
    return table.sort_values(["definite", "id"], ascending=[False, True], ignore_index=True)


def unmapped(found: "Extraction") -> pd.DataFrame:
    """What no label can come from: names without a term, statements in which nothing was read, statements not read."""
    mass, rows = found.mass(), []
    rows += [("name", d.name, int(mass[i])) for i, d in enumerate(found.decisions) if d.term is None]
    n = found.statements.table.n_records.to_numpy()
    rows += [
        ("not read" if r.error else "nothing read", r.statement, int(n[u]))
        for u, r in enumerate(found.readings)
        if r.error or not r.entities
    ]
    table = pd.DataFrame(rows, columns=["kind", "text", "n_records"])
    return table.sort_values(["n_records", "text"], ascending=[False, True], ignore_index=True)


def _ungrounded(found: "Extraction") -> pd.DataFrame:
    rows = [
        (r.statement, i.get("surface"), i.get("entity"), i.get("reason")) for r in found.readings for i in r.ungrounded
    ]
    return pd.DataFrame(rows, columns=["statement", "surface", "entity", "reason"])


def merges(found: "Extraction") -> pd.DataFrame:
    """Pairs of names that are one now, or near enough to be and kept apart; `kept_apart` names the guard."""
    names, n = found.merged.names, found.n_records
    rows = [(names[i], names[j], n[i], n[j], cosine, not why, why) for i, j, cosine, why in found.merged.pairs]
    table = pd.DataFrame(rows, columns=["a", "b", "n_a", "n_b", "cosine", "merged", "kept_apart"])
    return table.sort_values(["merged", "cosine", "a", "b"], ascending=[False, False, True, True], ignore_index=True)


def mapping(found: "Extraction", cfg: "ExtractConfig") -> pd.DataFrame:
    """Per cluster: how it was decided, its term and label, the three nearest terms, what a guard kept away."""
    from supreme.labels import Policy

    policy, mass = Policy.of(cfg), found.mass()
    size = np.bincount(found.merged.cluster, minlength=len(found.decisions))
    rows = []
    for i, d in enumerate(found.decisions):
        label = (
            "" if d.term is None else collapsed().get(d.term.id, d.term.id) if policy.collapse_subtypes else d.term.id
        )
        near = [x for id_, cosine in (*d.candidates, *[("", np.nan)] * 3)[:3] for x in (id_, cosine)]
        blocked = "" if d.blocked is None else "{} ({:.2f}, {})".format(*d.blocked)
        rows.append((d.name, size[i], mass[i], d.how, d.term.id if d.term else "", label, *near, blocked))
    near = [f"{what}{k}" for k in (1, 2, 3) for what in ("term_", "cosine_")]
    table = pd.DataFrame(rows, columns=["name", "n_names", "n_records", "how", "term", "label", *near, "blocked"])
    return table.sort_values(["n_records", "name"], ascending=[False, True], ignore_index=True)


def conflicts(said: Planes) -> pd.DataFrame:
    """Pairs of terms that one record states, and one heart hardly has: normal ECG with what is abnormal, two rhythms; a
    term both stated and denied. Of each pair the number of records and the first of them."""
    ids, definite = [t.id for t in said.terms], said.said["definite"].tocsc()
    rhythms = [i for i, t in enumerate(said.terms) if t.group == "rhythm" and t.id not in ANY_RHYTHM]
    pairs = [
        ("two rhythms", i, j) for a, i in enumerate(rhythms) for j in rhythms[a + 1 :] if not _related(ids[i], ids[j])
    ]
    if "normal" in ids:
        healthy = {"summary", "quality"}
        sinus = {"sinus_rhythm", "normal_rhythm", "normal_axis"}
        others = [j for j, t in enumerate(said.terms) if t.group not in healthy and t.id not in sinus]
        pairs += [("normal ECG with", ids.index("normal"), j) for j in others]
    rows = []
    for kind, i, j in pairs:
        both = np.intersect1d(definite[:, i].indices, definite[:, j].indices)
        if len(both):
            rows.append((kind, ids[i], ids[j], len(both), int(both[0])))
    denied = said.said["negated"].tocsc()
    for i, id_ in enumerate(ids):
        both = np.intersect1d(definite[:, i].indices, denied[:, i].indices)
        if len(both):
            rows.append(("stated and denied", id_, id_, len(both), int(both[0])))
    table = pd.DataFrame(rows, columns=["kind", "a", "b", "n_records", "first_record"])
    return table.sort_values(["n_records", "a", "b"], ascending=[False, True, True], ignore_index=True)


def _related(a: str, b: str) -> bool:
    return a in ancestors(b) or b in ancestors(a)


def coverage(found: "Extraction", labels: Labels) -> dict:
    """Records by their number of positive labels; records with a summary statement, flagged, left out."""
    n_labels = (labels.y == 1).sum(axis=1)
    summary = [any(e.category == "summary" for e in r.entities) for r in found.readings]
    return {
        "records": len(n_labels),
        "by_number_of_labels": {int(k): int(v) for k, v in zip(*np.unique(n_labels, return_counts=True), strict=True)},
        "mean_labels": float(n_labels.mean()) if len(n_labels) else 0.0,
        "with_summary_statement": int(((found.of_report @ np.array(summary, dtype=np.int32)) > 0).sum()),
        "flagged": int(labels.flagged.sum()),
        "without_any_loss": int((~labels.mask).all(axis=1).sum()),
    }


# --- review ---


def _as_said(entities, terms) -> frozenset[str]:
    """`term:certainty` of each entity of a statement; a name without a term is `?name:certainty`."""
    return frozenset(f"{t.id if t else '?' + e.entity}:{e.certainty}" for e, t in zip(entities, terms, strict=True))


def review_sample(found: "Extraction", seed: int = 0) -> pd.DataFrame:
    """The commonest statements and as many others drawn at random, with what was extracted and room for a reviewer."""
    n = found.statements.table.n_records.to_numpy()
    order = np.lexsort((np.arange(len(n)), -n))
    rest = order[N_REVIEW:]
    drawn = np.sort(np.random.default_rng(seed).choice(rest, min(N_REVIEW, len(rest)), replace=False))
    said = ["; ".join(sorted(_as_said(r.entities, t))) for r, t in zip(found.readings, found.found, strict=True)]
    chosen = [(u, "common") for u in order[:N_REVIEW]] + [(u, "random") for u in drawn]
    rows = [(found.statements.ids[u], found.statements.norm[u], n[u], kind, said[u]) for u, kind in chosen]
    table = pd.DataFrame(rows, columns=["id", "statement", "n_records", "sample", "extracted"])
    return table.assign(reviewed="", comment="")


def _agreement(cfg: "ExtractConfig", found: "Extraction") -> dict:
    out = reviewed_agreement(Path(cfg.reviewed), found) if cfg.reviewed else {}
    if found.read_counts["source"] != "rules":
        out["kappa_with_rules"] = kappa_with_rules(found)
    return out


def reviewed_agreement(path: Path, found: "Extraction") -> dict:
    """Precision, recall and F1 of (term, certainty) against a reviewed file, by statement and weighted by records.

    Raises ValueError naming the file where it has no filled row, an unknown term, or no statement of this run.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    if missing := {"id", "extracted", "reviewed"} - set(table.columns):
        raise ValueError(f"{path}: no column {sorted(missing)}; fill in a review_sample.csv")
    row_of, totals = (
        {id_: u for u, id_ in enumerate(found.statements.ids)},
        {"by_statement": [0] * 3, "by_record": [0] * 3},
    )
    known, n, n_reviewed = {t.id for t in terminology()}, found.statements.table.n_records.to_numpy(), 0
    for row in table[(table.reviewed.str.strip() != "") & table.id.isin(row_of)].itertuples():
        right = row.extracted if row.reviewed.strip() == "=" else row.reviewed
        right = frozenset(x.strip() for x in right.split(";") if x.strip() not in ("", "none"))
        for x in right:
            id_ = x.rpartition(":")[0]
            if id_ not in known and not id_.startswith(("?", "local:")):
                raise ValueError(
                    f"{path}, {row.id}: {x!r} is not term:certainty; see supreme/terminology.yaml for the ids"
                )
        u = row_of[row.id]
        ours, n_reviewed = _as_said(found.readings[u].entities, found.found[u]), n_reviewed + 1
        counts = np.array([len(ours & right), len(ours - right), len(right - ours)])
        totals["by_statement"] += counts
        totals["by_record"] += counts * n[u]
    if not n_reviewed:
        raise ValueError(f"{path}: no reviewed statement of this run; fill the column `reviewed`")
    return {"statements": n_reviewed} | {name: _prf(*map(int, counts)) for name, counts in totals.items()}


def _prf(tp: int, fp: int, fn: int) -> dict:
    ratio = lambda top, below: top / below if below else None  # noqa: E731
    scores = {"precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn), "f1": ratio(2 * tp, 2 * tp + fp + fn)}
    return {"tp": tp, "fp": fp, "fn": fn} | scores


def kappa_with_rules(found: "Extraction") -> dict[str, float]:
    """Cohen's kappa per term over the unique statements, this reader against the rules: stated, for certain or not."""
    from sklearn.metrics import cohen_kappa_score

    def stated(entities, terms) -> set[str]:
        pairs = zip(entities, terms, strict=True)
        return {t.id for e, t in pairs if t is not None and e.certainty in ("definite", "hedged")}

    ours = [stated(r.entities, row) for r, row in zip(found.readings, found.found, strict=True)]
    theirs = [stated(es := rules.read(s), [find(e.entity) for e in es]) for s in found.statements.norm]
    ids = sorted(set().union(*ours, *theirs))
    return {
        id_: float(cohen_kappa_score([id_ in a for a in ours], [id_ in b for b in theirs], labels=[False, True]))
        for id_ in ids
    }


# --- for the screen ---


def summary(labels: Labels, n_sample: int = 6) -> str:
    """Every stage in a line, the gates, the commonest terms and a sample of the audit, of labels that `run` made."""
    c, folder = labels.counts, labels.folder / "audit"
    read = lambda name: pd.read_csv(folder / f"{name}.csv", keep_default_na=False)  # noqa: E731
    n_guarded = int((read("merges").kept_apart != "").sum())
    shares = ", ".join(
        f"{c[f'clusters_{h}']} {h} ({c[f'mass_{h}']:.1%})" for h in ("exact", "place", "embedding", "local")
    )
    lines = [
        f"0 collect   {c['reports']:,} reports, {c['statements']:,} statements, {c['unique']:,} unique",
        f"1 extract   {c['failed']} not read, {c['nothing']} name nothing ({c['nothing_share']:.1%} of all statements)",
        f"2 ground    {c['grounded_share']:.2%} of the entities stand in their statement",
        f"3 merge     {c['names']} names -> {c['clusters']} groups; {n_guarded} near pairs kept apart by guards",
        f"4 map       {shares} (share of record mass)",
        f"  left over {c['clusters_unmapped']} unmapped ({c['mass_unmapped']:.2%})",
        f"5 label     {c['terms']} terms kept ({c['local_terms']} local), {c['terms_below_min_records']} too rare; "
        f"{c['positives']:,} positives, {c['out_of_loss']:,} out of the loss; {c['flagged_records']:,} records flagged",
    ]
    for gate in c["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:.4f}"
        lines.append(f"gate        {gate['gate']}: {value} ({gate['bound']}) {gate['verdict']}")
    lines.append(f"\ncommonest terms: {', '.join(t.preferred for t in labels.terms[:20])}")
    shown = {"mapping": ["name", "n_records", "how", "term", "term_1", "cosine_1"], "merges": None, "unmapped": None,
             "conflicts": None}  # fmt: skip
    for name, columns in shown.items():
        table = read(name)
        table = table[table.how != "exact"] if name == "mapping" else table
        lines.append(f"\n{folder / name}.csv ({len(table)} rows{', but for exact ones' if name == 'mapping' else ''}):")
        lines.append(
            table[columns or list(table.columns)].head(n_sample).to_string(index=False) if len(table) else "  none"
        )
    return "\n".join(lines)
