"""The table of standard ECG terms (reference: M2, stage 4 and Terminology) and what a name means by itself.

`terminology.yaml` holds the terms; `find` knows a name by its words alone, whatever their order, spelling or number, so
that an exact synonym never depends on an embedding. `relation` says how a class text stands to the terms that a model
was trained on (reference: M6, seen and unseen).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import yaml

from shared.ecg.codes import FINDINGS, SCP_STATEMENTS
from shared.metrics.findings import from_codes

TABLE = Path(__file__).with_name("terminology.yaml")
GROUPS = (
    "summary", "rhythm", "ectopy", "pacing", "conduction", "hypertrophy", "axis_voltage", "ischemia_infarct", "st_t",
    "quality", "other", "local", "statement",
)  # fmt: skip
_FIELDS = {"preferred", "synonyms", "parent", "snomed_ct", "umls_cui"}


@dataclass(frozen=True)
class Term:
    """A label. parent: id of the wider term. group: of GROUPS; "local" is a frequent entity outside the table."""

    id: str
    preferred: str
    synonyms: tuple[str, ...] = ()
    group: str = "other"
    parent: str | None = None
    snomed_ct: str | None = None
    umls_cui: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.preferred, *self.synonyms)


@lru_cache(maxsize=1)
def _raw() -> dict:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def version() -> str:
    """Hash of the table and of this file."""
    return sha256(TABLE.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]


@lru_cache(maxsize=200_000)
def key(name: str) -> tuple[str, ...]:
    """The words that make a name, sorted: "premature atrial contractions", "atrial premature complex(es)" are one."""
    words, drop = _raw()["words"], set(_raw()["drop"])
    text = re.sub(r"\((?:s|es|n)\)", "", name.lower())
    text = re.sub(r"\b(?:a[- ]v|i[- ]v)\b", lambda m: {"a": "av", "i": "iv"}[m.group()[0]], text)
    text = re.sub(r"\b(non|pre|counter|anti)-(?=[a-z])(?!st\b|q\b)", r"\1", text)  # but non-ST elevation, non-Q-wave
    text = re.sub(r"\bnon (specific|diagnostic|conducted|sustained)", r"non\1", text)
    text = re.sub(r"(?<=\bqt)c\b", "", text)
    tokens = []
    for token in re.findall(r"[a-z0-9]+", text):
        token = words.get(token, token)
        tokens += words.get(one := _singular(token), one).split()
    return tuple(sorted(t for t in tokens if t not in drop)) or tuple(re.findall(r"[a-z0-9]+", name.lower()))


def _singular(token: str) -> str:
    if token.endswith("xes"):
        return token[:-2]
    if token.endswith("ies") and len(token) > 4:
        return token[:-3] + "y"
    return token[:-1] if len(token) > 3 and token.endswith("s") and not token.endswith(("ss", "us", "is")) else token


def terminology() -> tuple[Term, ...]:
    """All terms of the table, in its order."""
    return tuple(_table()[0].values())


@lru_cache(maxsize=1)
def _table() -> tuple[dict[str, Term], dict[tuple[str, ...], str]]:
    """(id -> term, key of a name -> id). Raises ValueError for an unknown key, parent or group, a circle of parents,
    and where two terms claim one name."""
    terms: dict[str, Term] = {}
    for group, entries in _raw()["terms"].items():
        for id_, entry in entries.items():
            if wrong := (set(entry) - _FIELDS) or (id_ in terms) or group not in GROUPS:
                raise ValueError(f"{TABLE.name}, {group}, {id_}: {wrong}; unknown key, id used twice or unknown group")
            synonyms = tuple(map(str, entry.get("synonyms", ())))
            rest = (entry.get(name) for name in ("parent", "snomed_ct", "umls_cui"))
            terms[id_] = Term(id_, entry["preferred"], synonyms, group, *rest)
    of_key: dict[tuple[str, ...], str] = {}
    for term in terms.values():
        if term.parent is not None and term.parent not in terms:
            raise ValueError(f"{TABLE.name}, {term.id}: there is no parent {term.parent!r}")
        for name in term.names:
            if of_key.setdefault(key(name), term.id) != term.id:
                raise ValueError(f"{TABLE.name}: {name!r} is claimed by {of_key[key(name)]} and by {term.id}")
    for term in terms.values():
        ancestors(term.id, terms)
    return terms, of_key


def term(id_: str) -> Term:
    return _table()[0][id_]


def find(name: str) -> Term | None:
    """The term that a name means by its words alone; None where the table does not know it."""
    id_ = _table()[1].get(key(name))
    return None if id_ is None else term(id_)


def ancestors(id_: str, terms: dict[str, Term] | None = None) -> tuple[str, ...]:
    """Ids of the wider terms, nearest first. ValueError for a circle."""
    terms = _table()[0] if terms is None else terms
    out: list[str] = []
    while (parent := terms[id_].parent if id_ in terms else None) is not None:
        if parent in out:
            raise ValueError(f"{TABLE.name}: {id_} is an ancestor of itself")
        out.append(parent)
        id_ = parent
    return tuple(out)


def relation(text: str, terms: Sequence[Term]) -> str:
    """How a class text stands to the terms of a model: "seen" (it is one, by its words), "related" (wider or narrower
    than one, or a sibling: both have the same parent), "unseen". A text that nobody knows is unseen."""
    if any(key(text) == key(name) for t in terms for name in t.names):
        return "seen"
    found, kept = find(text), {t.id for t in terms}
    if found is None:
        return "unseen"
    if found.id in kept:
        return "seen"
    parents = {t.parent for t in terms} - {None}
    wider = parents.union(*(ancestors(parent) for parent in parents))
    near = found.id in wider or kept.intersection(ancestors(found.id)) or found.parent in parents
    return "related" if near else "unseen"


@lru_cache(maxsize=1)
def _scp() -> dict[str, list[str]]:
    """Term id -> SCP statements with that description."""
    out: dict[str, list[str]] = {}
    for code, statement in SCP_STATEMENTS.items():
        if found := find(statement.description):
            out.setdefault(found.id, []).append(code)
    return out


def findings_of(id_: str) -> frozenset[str]:
    """Findings of shared.ecg.codes that a term asserts: by id, by its codes, else the nearest wider term that is
    one."""
    if id_ in FINDINGS or id_ not in _table()[0]:
        return frozenset({id_} & set(FINDINGS))
    by_code = from_codes(_scp().get(id_, ())) or from_codes([term(id_).snomed_ct], "snomed")
    return frozenset(by_code) or frozenset([a for a in ancestors(id_) if a in FINDINGS][:1])
