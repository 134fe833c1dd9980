"""Stage 5: terms of statements become labels of records (reference: M2, certainty table; further rules).

    certainty          as_published      corrected
    definite           1                 1
    hedged, residual   1                 out of the loss
    negated            0                 0
    uninterpretable    0                 0, record flagged
    not mentioned      0                 0

`uncertain` puts another policy in the place of the second row. Within a record definite beats negated beats hedged. In
`corrected`, *normal ECG* comes from summary statements only, and is out of the loss where a definite abnormal term
contradicts it; subtypes are kept and their wider terms set as well. In `as_published`, subtypes become their wider
term. Where a statement could not be read, nothing is known to be absent: what the others do not settle is out of the
loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from supreme.merge import collapsed
from supreme.terminology import Term, ancestors, term, terminology

POLICIES = {
    "positive": (1.0, True),
    "negative": (0.0, True),
    "soft": (0.5, True),
    "mask": (0.0, False),
}  # y, in the loss
BY_PROTOCOL = {
    "as_published": {"uncertain": "positive", "collapse_subtypes": True, "emit_parents": False},
    "corrected": {"uncertain": "mask", "collapse_subtypes": False, "emit_parents": True},
}
SAID = ("definite", "negated", "hedged")  # earlier wins
PLANES = (*SAID, "held")  # held: would be set by a term that is held out


@dataclass
class Labels:
    """Stage 5 on n records: L kept terms, most frequent first. y float32 [n, L]: 1, 0, 0.5 (soft). mask bool [n, L]:
    False = not in the loss. flagged bool [n]: a statement says that the recording, or the rhythm, cannot be read."""

    terms: list[Term]
    y: np.ndarray
    mask: np.ndarray
    counts: dict = field(default_factory=dict)
    folder: Path | None = None
    flagged: np.ndarray | None = None


@dataclass(frozen=True)
class Policy:
    """The certainty table as it applies: protocol, and what the config sets itself."""

    protocol: str
    uncertain: str
    collapse_subtypes: bool
    emit_parents: bool
    held: frozenset[str]

    @classmethod
    def of(cls, cfg) -> "Policy":
        """Raises ValueError for an unknown protocol or policy. Hold-outs are checked where local terms are known."""
        if cfg.protocol not in BY_PROTOCOL:
            raise ValueError(f"extract.protocol={cfg.protocol!r}: one of {', '.join(BY_PROTOCOL)}")
        own = BY_PROTOCOL[cfg.protocol] | {
            k: v for k in BY_PROTOCOL[cfg.protocol] if (v := getattr(cfg, k)) is not None
        }
        if own["uncertain"] not in POLICIES:
            raise ValueError(f"extract.uncertain={own['uncertain']!r}: null or one of {', '.join(POLICIES)}")
        return cls(cfg.protocol, held=frozenset(cfg.hold_out), **own)

    def emitted(self, found: Term) -> tuple[str, ...]:
        """Ids of the labels that a stated term sets, itself first."""
        id_ = collapsed().get(found.id, found.id) if self.collapse_subtypes else found.id
        return (id_, *(_wider(found) if self.emit_parents else ()))

    def is_held(self, found: Term) -> bool:
        """Held out itself, or narrower than what is."""
        return bool(self.held.intersection((found.id, *_wider(found))))


def _wider(found: Term) -> tuple[str, ...]:
    return () if found.parent is None else (found.parent, *ancestors(found.parent))


def check_hold_out(held: Iterable[str], terms: Iterable[Term]) -> None:
    known = {t.id for t in (*terminology(), *terms)}
    for id_ in held:
        if id_ not in known:
            near = get_close_matches(id_, sorted(known), n=3)
            raise ValueError(f"extract.hold_out: no term has the id {id_!r}; did you mean one of {near}?")


def said(entity, found: Term | None, policy: Policy) -> Iterator[tuple[str, str]]:
    """(id of a term, plane) that an entity of a statement adds; nothing where it is unmapped or uninterpretable.

    That there is no inferior infarct does not say that there is no infarct: what is denied sets no wider term.
    """
    if found is None or entity.certainty not in SAID:
        return
    if found.id == "normal" and policy.protocol == "corrected" and entity.category != "summary":
        return
    ids = policy.emitted(found)[: 1 if entity.certainty == "negated" else None]
    for id_ in dict.fromkeys(ids):
        if not policy.is_held(found):
            yield id_, entity.certainty
        elif id_ not in policy.held and entity.certainty != "negated":
            yield id_, "held"


@dataclass
class Planes:
    """What n records say of T terms. stated: per unique statement its (id of a term, plane); said: plane -> bool CSR
    [n, T]. failed, flagged, abnormal bool [n]: a statement could not be read; cannot be judged; states for certain what
    is not normal."""

    terms: list[Term]
    stated: list[list[tuple[str, str]]]
    said: dict[str, csr_matrix]
    failed: np.ndarray
    flagged: np.ndarray
    abnormal: np.ndarray

    def definite(self) -> np.ndarray:
        """Records per term, int [T]."""
        return np.asarray(self.said["definite"].sum(axis=0)).ravel().astype(np.int64)


def counting(rows: Sequence[Sequence[int]], n_columns: int) -> csr_matrix:
    """int32 CSR [len(rows), n_columns] that counts the column indices of each row."""
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=indptr[-1])
    out = csr_matrix((np.ones(len(indices), dtype=np.int32), indices, indptr), shape=(len(rows), n_columns))
    out.sum_duplicates()
    return out


def planes(of_report: csr_matrix, readings: Sequence, found: Sequence[Sequence[Term | None]], policy: Policy) -> Planes:
    """of_report [n, U] counts statements per record; readings: U; found: per reading the term of each entity."""
    by_id = {t.id: t for row in found for t in row if t is not None}
    check_hold_out(policy.held, by_id.values())
    stated = [
        [pair for e, t in zip(reading.entities, row, strict=True) for pair in said(e, t, policy)]
        for reading, row in zip(readings, found, strict=True)
    ]  # per statement: (id, plane)
    ids = sorted({id_ for pairs in stated for id_, _ in pairs})
    column = {id_: i for i, id_ in enumerate(ids)}
    there = {
        plane: (of_report @ counting([[column[i] for i, p in pairs if p == plane] for pairs in stated], len(ids))) > 0
        for plane in PLANES
    }
    flags = {
        "failed": [bool(r.error) for r in readings],
        "flagged": [any(e.certainty == "uninterpretable" for e in r.entities) for r in readings],
        "abnormal": [
            any(
                t and (e.polarity, e.certainty) == ("abnormal", "definite")
                for e, t in zip(r.entities, row, strict=True)
            )
            for r, row in zip(readings, found, strict=True)
        ],
    }
    per_record = {name: (of_report @ np.array(flag, dtype=np.int32)) > 0 for name, flag in flags.items()}
    terms = [by_id.get(i) or term(i) for i in ids]
    return Planes(terms, stated, {p: csr_matrix(m) for p, m in there.items()}, **per_record)


def raw_statements(
    of_report: csr_matrix,
    readings: Sequence,
    found: Sequence[Sequence[Term | None]],
    ids: Sequence[str],
    policy: Policy,
) -> Planes:
    """The control without stages 3 and 4: every unique statement is a term of its own, but for those that name what is
    held out."""
    check_hold_out(policy.held, [t for row in found for t in row if t is not None])
    held = [any(t is not None and policy.is_held(t) for t in row) for row in found]
    kept = [u for u, is_held in enumerate(held) if not is_held]
    terms = [Term(ids[u], readings[u].statement, (), "statement") for u in kept]
    stated = [[] if is_held else [(id_, "definite")] for id_, is_held in zip(ids, held, strict=True)]
    there = csr_matrix(of_report[:, kept] > 0)
    none, nobody = csr_matrix(there.shape, dtype=bool), np.zeros(there.shape[0], dtype=bool)
    return Planes(terms, stated, dict.fromkeys(PLANES, none) | {"definite": there}, nobody, nobody, nobody)


def label(planes: Planes, cfg, policy: Policy) -> Labels:
    """Labels of the terms that at least cfg.min_records records state for certain. ValueError where there is none."""
    n = planes.definite()
    kept = sorted(np.flatnonzero(n >= max(cfg.min_records, 1)), key=lambda i: (-n[i], planes.terms[i].id))
    if not kept:
        raise ValueError(
            f"no term is stated for certain in {cfg.min_records} of {len(planes.failed)} records; lower "
            "extract.min_records, or look at the audit for what was read and mapped"
        )
    terms = [planes.terms[i] for i in kept]
    definite, negated, hedged, held = (planes.said[p][:, kept].toarray() for p in PLANES)
    y, mask = definite.astype(np.float32), np.ones(definite.shape, dtype=bool)
    only_hedged = hedged & ~definite & ~negated
    y[only_hedged], mask[only_hedged] = POLICIES[policy.uncertain]
    mask[held & ~definite] = False
    y[held & ~definite] = 0
    mask[planes.failed] &= (definite | negated)[planes.failed]
    if policy.protocol == "corrected" and "normal" in (ids := [t.id for t in terms]):
        column = ids.index("normal")
        doubtful = definite[:, column] & planes.abnormal
        y[doubtful, column], mask[doubtful, column] = 0, False
    if cfg.exclude_flagged:
        mask[planes.flagged] = False
    counts = {
        "terms": len(terms),
        "terms_below_min_records": len(planes.terms) - len(terms),
        "local_terms": sum(t.group == "local" for t in terms),
        "positives": int((y == 1).sum()),
        "out_of_loss": int((~mask).sum()),
        "definite_and_negated": int((definite & negated).sum()),
        "flagged_records": int(planes.flagged.sum()),
        "failed_records": int(planes.failed.sum()),
    }
    return Labels(terms, y, mask, counts, flagged=planes.flagged)


# --- on disk ---


def save(labels: Labels, folder: Path) -> None:
    """labels.npz: y, and where the loss must not look (out), as CSR planes (data, indices, indptr); terms.json."""
    import json
    from dataclasses import asdict

    arrays = {"shape": np.array(labels.y.shape), "flagged": labels.flagged}
    for name, plane in (("y", csr_matrix(labels.y)), ("out", csr_matrix(~labels.mask))):
        arrays |= {f"{name}_data": plane.data, f"{name}_indices": plane.indices, f"{name}_indptr": plane.indptr}
    np.savez_compressed(folder / "labels.npz", **arrays)
    (folder / "terms.json").write_text(
        json.dumps([asdict(t) for t in labels.terms], indent=1, ensure_ascii=False) + "\n"
    )


def load(folder: Path, counts: dict) -> Labels:
    import json

    with np.load(folder / "labels.npz", allow_pickle=False) as file:
        shape = tuple(file["shape"])
        y, out = (
            csr_matrix((file[f"{n}_data"], file[f"{n}_indices"], file[f"{n}_indptr"]), shape=shape).toarray()
            for n in ("y", "out")
        )
        flagged = file["flagged"]
    terms = [Term(**t | {"synonyms": tuple(t["synonyms"])}) for t in json.loads((folder / "terms.json").read_text())]
    return Labels(terms, y.astype(np.float32), ~out.astype(bool), counts, folder, flagged)
