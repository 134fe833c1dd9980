"""Stage 4: each group of names becomes one term (reference: M2, map).

In this order: by its words alone (an exact synonym, whatever the embedding); by its words without place and age (ST
depression of "lateral ST depression"); by cosine against all names of the terminology, at least `tau_map` and
`map_margin` ahead of the second term, under the guards of stage 3; a local term where it is frequent enough; else it
stays unmapped and is listed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from supreme.merge import Merged, guards, signature, unit, verdict, without
from supreme.terminology import Term, find, key, terminology

HOW = ("exact", "place", "embedding", "local", "unmapped")


@dataclass(frozen=True)
class Decision:
    """What a cluster became. candidates: up to 3 terms that the guards allow, nearest first, as (id, cosine); blocked:
    the nearest name that a guard kept away, as (name, cosine, guard), where it was nearer than those."""

    name: str
    term: Term | None
    how: str
    candidates: tuple[tuple[str, float], ...] = ()
    blocked: tuple[str, float, str] | None = None


def local_term(name: str, synonyms: Sequence[str] = (), parent: str | None = None) -> Term:
    return Term(f"local:{name}", name, tuple(synonyms), "local", parent)


def known(name: str, subtypes: bool) -> tuple[Term | None, Term | None]:
    """(term, wider term) by words alone. subtypes: place and age make a term of their own, narrower than what they
    stand with: then the first is None where only the second is known."""
    found = find(name)
    if found is not None:
        return found, None
    rest = without(name)
    wider = find(rest) if key(rest) != key(name) else None
    return (None, wider) if subtypes else (wider, wider)


class Names:
    """All names of the terminology as vectors, to be asked for what is nearest under the guards of a protocol."""

    def __init__(self, encode: Callable, protocol: str):
        self.protocol, self.terms = protocol, terminology()
        pairs = [(name, i) for i, t in enumerate(self.terms) for name in dict.fromkeys(t.names)]
        self.names, self.of = [name for name, _ in pairs], np.array([i for _, i in pairs])
        self.vectors = unit(encode(self.names))
        used = guards(protocol)
        self.used = [i for i, guard in enumerate(guards("corrected")) if guard in used]
        self.signatures = [self._seen(name) for name in self.names]

    def _seen(self, name: str) -> tuple:
        seen = signature(name)
        return tuple(seen[i] for i in self.used)

    def nearest(
        self, name: str, vector: np.ndarray
    ) -> tuple[tuple[tuple[str, float], ...], tuple[str, float, str] | None]:
        """(candidates, blocked) of a name whose vector [d] has unit length; see `Decision`."""
        cosine = self.vectors @ vector
        seen = self._seen(name)
        allowed = np.array([s == seen for s in self.signatures])
        best = np.full(len(self.terms), -np.inf)
        np.maximum.at(best, self.of[allowed], cosine[allowed])
        order = [i for i in np.lexsort((np.arange(len(best)), -best))[:3] if np.isfinite(best[i])]
        candidates = tuple((self.terms[i].id, float(best[i])) for i in order)
        blocked = None
        if not allowed.all():
            i = int(np.argmax(np.where(allowed, -np.inf, cosine)))
            if not candidates or cosine[i] > candidates[0][1]:
                blocked = (self.names[i], float(cosine[i]), verdict(name, self.names[i], self.protocol))
        return candidates, blocked


def accepted(candidates: Sequence[tuple[str, float]], tau: float, margin: float) -> str | None:
    """Id of the first candidate where it is near enough, and far enough ahead of the second term."""
    if not candidates or candidates[0][1] < tau:
        return None
    ahead = len(candidates) == 1 or candidates[0][1] - candidates[1][1] >= margin
    return candidates[0][0] if ahead else None


def map_terms(merged: Merged, n_definite: Sequence[int], encode: Callable, cfg, subtypes: bool) -> list[Decision]:
    """A decision per cluster. n_definite: records that state the cluster for certain; cfg: tau_map, map_margin,
    min_records, protocol (ExtractConfig); subtypes: keep place and age apart."""
    table, decisions = Names(encode, cfg.protocol), []
    by_id = {t.id: t for t in table.terms}
    heads = [merged.names[i] for i in merged.representative]
    vectors = unit(encode(heads)) if heads else []
    for number, (name, vector) in enumerate(zip(heads, vectors, strict=True)):
        candidates, blocked = table.nearest(name, vector)
        term, wider = known(name, subtypes)
        how = "place" if wider else "exact"
        if term is None and wider is None:
            term, how = by_id.get(accepted(candidates, cfg.tau_map, cfg.map_margin)), "embedding"
        if term is None and n_definite[number] >= cfg.min_records:
            members = [n for i, n in enumerate(merged.names) if merged.cluster[i] == number and n != name]
            term, how = local_term(name, members, wider.id if wider else None), "place" if wider else "local"
        if term is None:
            term, how = wider, "place" if wider else "unmapped"
        decisions.append(Decision(name, term, how, candidates, blocked))
    return decisions
