"""Entities of reports (reference: A4): what is named, of which of RaTE-NER's five types, and when two are the same.

`DictionaryNer` reads with `lexicon.yaml`, offline and in fractions of a millisecond; `ner_model.ModelNer` is a token
classifier, as the paper used. Both give `Mention`s in the text's own words; `norm` makes them comparable, `mine` counts
them, `match` compares what was asked for with what was found.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from synth_medvlp.dictionary_ner import DictionaryNer
from synth_medvlp.lexicon import ANATOMY, CLINICAL, TYPES, Mention, elements, lexicon, tokens

__all__ = ["ANATOMY", "CLINICAL", "RULES", "TYPES", "DictionaryNer", "Mention", "NerConfig", "gini", "match", "mine",
           "ner", "norm"]  # fmt: skip
RULES = ("strict", "normalised", "recall")
_UNSAID = frozenset(("a", "an", "the", "there", "not", "no", "no longer"))
_GLUE = frozenset(("and", "or", "on", "in", "with", "of", "at", "side", "sided"))

Ner = Callable[[Sequence[str]], list[list[Mention]]]
Entity = tuple[str, str]  # (norm, type)
Pool = dict[str, Counter]  # type -> norm -> mentions


@dataclass
class NerConfig:
    """Who reads entities (reference: A4)."""

    backend: str = "dictionary"  # dictionary | model
    model: str = "Angelakeke/RaTE-NER-Deberta"  # hub name or folder of a token classifier with IOB labels
    revision: str | None = None
    device: str | None = None  # null = this process's GPU where there is one, else cpu
    batch: int = 64  # sentences at a time
    min_count: int = 1  # mentions that a string needs to enter the pool


def ner(cfg: NerConfig) -> Ner:
    """The reader that a config names."""
    if cfg.backend == "dictionary":
        return DictionaryNer()
    if cfg.backend == "model":
        from synth_medvlp.ner_model import ModelNer

        return ModelNer(cfg.model, cfg.device, cfg.batch, cfg.revision)
    raise ValueError(f"ner.backend={cfg.backend!r}: one of dictionary, model")


# --- when two names are the same ---


@lru_cache(maxsize=200_000)
def norm(text: str) -> str:
    """Lower case, no punctuation, articles or verbs, singular, synonyms; size, state and side in front, in this order.

    "The heart is mildly enlarged" -> "mild cardiomegaly"; "Effusions on the left" -> "left pleural effusion". Sizes and
    sides stay. norm(norm(x)) == norm(x).
    """
    words = [t.word for t in tokens(text) if t.word[0].isalnum()]
    out = _in_order(_synonyms(" ".join(words)))
    return _synonyms(out)


def _synonyms(text: str) -> str:
    for pattern, new in lexicon().synonyms:
        text = pattern.sub(new, text)
    return " ".join(text.split())


def _in_order(text: str) -> str:
    front, rest = {"size": [], "state": [], "side": []}, []
    leading: list[str] = []  # what else may stand before a side: "old healed left rib fracture"
    for part in elements(text):
        if part.cls in ("copula", "adverb") or part.words in _UNSAID:
            continue
        kind = part.value if part.cls == "mod" else part.cls
        others = leading if kind == "other" and not rest else rest
        front.get(kind, others).append(part.words)
    while rest and rest[-1] in _GLUE:
        rest.pop()
    return " ".join([*front["size"], *front["state"], *leading, *front["side"], *rest])


def entities(mentions: Iterable[Mention]) -> set[Entity]:
    return {(norm(m.text), m.type) for m in mentions}


def match(asked: Collection[Entity], found: Collection[Entity], rule: str) -> tuple[bool, list[Entity], list[Entity]]:
    """(ok, missing, extra) by a rule of the reference (S3); both sides as (norm, type).

    strict: the same sets. normalised: what differs is paired one to one where one string holds the other, word by word,
    with the same type. recall: nothing missing, whatever else there is.
    """
    if rule not in RULES:
        raise ValueError(f"match rule {rule!r}: one of {', '.join(RULES)}")
    missing, extra = sorted(set(asked) - set(found)), sorted(set(found) - set(asked))
    if rule == "normalised" and missing and extra:
        alike = np.array([[_holds(a, b) or _holds(b, a) for b in extra] for a in missing])
        rows, columns = linear_sum_assignment(alike, maximize=True)
        paired = [(r, c) for r, c in zip(rows, columns, strict=True) if alike[r, c]]
        missing = [e for r, e in enumerate(missing) if r not in {r for r, _ in paired}]
        extra = [e for c, e in enumerate(extra) if c not in {c for _, c in paired}]
    return not missing and (rule == "recall" or not extra), missing, extra


def _holds(long: Entity, short: Entity) -> bool:
    return long[1] == short[1] and f" {short[0]} " in f" {long[0]} "


# --- the pool ---


def mine(texts: Sequence[str], ner: Ner, min_count: int = 1) -> tuple[Pool, dict]:
    """Entities of all texts as norm strings with their number of mentions, most frequent first; and A4's statistics.

    Strings with fewer than min_count mentions are in the statistics but not in the pool. Raises ValueError where no
    clinical entity or no place is left.
    """
    found: Pool = {kind: Counter() for kind in TYPES}
    surfaces = {kind: set() for kind in TYPES}
    for mentions in ner(texts):
        for m in mentions:
            if name := norm(m.text):
                found[m.type][name] += 1
                surfaces[m.type].add(m.text.lower())
    pool = {}
    for kind, counts in found.items():
        kept = sorted(((-n, s) for s, n in counts.items() if n >= min_count))
        pool[kind] = Counter({s: -n for n, s in kept})
    if not pool[ANATOMY] or not any(pool[kind] for kind in CLINICAL):
        raise ValueError(f"no entities with {min_count} mentions in {len(texts)} texts; lower ner.min_count")
    types = Counter(s for counts in found.values() for s in counts)
    several = sorted(s for s, n in types.items() if n > 1)
    stats = {"texts": len(texts), "of_several_types": len(several), "of_several_types_examples": several[:50]}
    stats["types"] = {kind: _tail(found[kind]) | {"surfaces": len(surfaces[kind]), "kept": len(pool[kind])}
                      for kind in TYPES}  # fmt: skip
    return pool, stats


def _tail(counts: Counter) -> dict:
    """Mentions, unique strings, share of the mentions that the most frequent strings make up, inequality."""
    values = np.sort(np.array(list(counts.values()), dtype=float))[::-1]
    total = values.sum()
    coverage = {n: float(values[:n].sum() / total) if total else 0.0 for n in (10, 100, 1000)}
    return {"mentions": int(total), "unique": len(values), "singletons": int((values == 1).sum()),
            "coverage": coverage, "gini": gini(values)}  # fmt: skip


def gini(counts: Iterable[float]) -> float:
    """Inequality of use: 0 where all strings are used equally often, towards 1 where one has all. 0 of nothing."""
    values = np.sort(np.asarray(list(counts), dtype=float))
    n, total = len(values), values.sum()
    if not total:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * values).sum() / (n * total) - (n + 1) / n)
