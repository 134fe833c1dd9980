"""Which entities a synthetic report must name (reference: S1): balanced over types, capped per string.

Strings come from the pool that `entities.mine` made of real reports. A use is reserved at the draw and counted at
acceptance; a rejected request gives its reservations back. Nothing keeps a request free of contradictions (normal heart
and cardiomegaly), as in the paper; they are counted, and `compatible` is the control that forbids them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from synth_medvlp.entities import ANATOMY, CLINICAL, Entity, Mention, Pool, entities, gini
from synth_medvlp.lexicon import lexicon

_TRIES = 20  # random draws before what is left is listed


@dataclass
class SamplerConfig:
    """Section `sampler:` (reference: S1)."""

    k: int = 9  # clinical entities in a request
    m: int = 3  # places
    joint: bool = True  # False: k of each of the four clinical types
    tau_max: int | None = 15  # accepted requests that may use a string; null = any number
    balanced: bool = True  # False: strings by their frequency in real reports, without cap (ablation)
    compatible: bool = False  # control: no request contradicts itself
    seed: int = 0


class Request(NamedTuple):
    """What a report must name, as norm strings. seed: of everything that is drawn for it later."""

    id: int
    seed: int
    clinical: tuple[Entity, ...]
    anatomy: tuple[str, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        return (*self.clinical, *((name, ANATOMY) for name in self.anatomy))


class _Strings:
    """The strings of one type that may still be drawn: uniformly, or by frequency."""

    def __init__(self, counts: Counter, by_frequency: bool):
        self.names = list(counts)
        self.at = {name: i for i, name in enumerate(self.names)}
        self.edges = np.cumsum(list(counts.values())) if by_frequency and counts else None

    def draw(self, rng: np.random.Generator) -> str:
        if self.edges is None:
            return self.names[int(rng.integers(len(self.names)))]
        return self.names[int(np.searchsorted(self.edges, rng.integers(self.edges[-1]), side="right"))]

    def remove(self, name: str) -> None:
        i, last = self.at.pop(name), self.names.pop()
        if last != name:
            self.names[i], self.at[last] = last, i

    def add(self, name: str) -> None:
        self.at[name] = len(self.names)
        self.names.append(name)


class Sampler:
    """Draws requests one after the other; the same calls of draw, accept and reject give the same requests."""

    def __init__(self, pool: Pool, cfg: SamplerConfig):
        if cfg.k < 1 or cfg.m < 0 or (cfg.tau_max is not None and cfg.tau_max < 1):
            raise ValueError(f"sampler: k >= 1, m >= 0, tau_max >= 1 or null, not {cfg.k}, {cfg.m}, {cfg.tau_max}")
        self.cfg, self.cap = cfg, cfg.tau_max if cfg.balanced else None
        self.real = {kind: pool.get(kind, Counter()) for kind in (*CLINICAL, ANATOMY)}
        self.left = {kind: _Strings(counts, not cfg.balanced) for kind, counts in self.real.items()}
        self.rng = np.random.default_rng([cfg.seed, 1])
        self.use, self.accepted = Counter(), Counter()  # per entity: reserved or accepted; accepted
        self.open: dict[int, Request] = {}
        self.n_drawn, self.counts, self.fallback = 0, Counter(), Counter()
        self.pairs: Counter = Counter()
        self.exhausted = ""

    def draw(self, n: int) -> list[Request]:
        """Up to n requests; fewer, and `exhausted` says why, where no string may be used any more."""
        requests, failed = [], 0
        while len(requests) < n and not self.exhausted:
            picked, missing = self._entities()
            if not missing:
                requests.append(self._reserve(picked, self.n_drawn))
                failed = 0
                continue
            failed += 1  # of a compatible request only: the others it might have been are still open
            if failed == (_TRIES if self.cfg.compatible else 1):
                self.exhausted = f"no {missing} string is left after {self.n_drawn} requests; raise sampler.tau_max"
        return requests

    def _entities(self) -> tuple[list[Entity], str]:
        """The entities of one request, or the type of which there is none any more."""
        picked: list[Entity] = []
        clinical = [None] * self.cfg.k if self.cfg.joint else [t for t in CLINICAL for _ in range(self.cfg.k)]
        for kind in [*clinical, *[ANATOMY] * self.cfg.m]:
            entity = self._pick(kind, picked)
            if entity is None:
                return picked, kind or "clinical"
            picked.append(entity)
        return picked, ""

    def _pick(self, kind: str | None, picked: list[Entity]) -> Entity | None:
        """One more entity of this type; of any clinical type where None, uniformly over types (reference: S1)."""
        kinds = list(CLINICAL) if kind is None else [kind]
        if kind is None and not self.cfg.balanced:  # by frequency over all four types
            weights = np.array([sum(self.real[k].values()) for k in kinds], dtype=float)
            kinds = list(self.rng.choice(kinds, size=len(kinds), replace=False, p=weights / weights.sum()))
        else:
            kinds = list(self.rng.permutation(kinds))
        for i, one in enumerate(str(k) for k in kinds):
            if entity := self._string(one, picked):
                return entity
            if i + 1 < len(kinds):
                self.fallback[one] += 1
        return None

    def _string(self, kind: str, picked: list[Entity]) -> Entity | None:
        strings, taken = self.left[kind], {name for name, _ in picked}
        if not strings.names:
            return None
        for _ in range(_TRIES):
            name = strings.draw(self.rng)
            if self._fits((name, kind), picked, taken):
                return name, kind
        fitting = [s for s in strings.names if self._fits((s, kind), picked, taken)]
        return (fitting[int(self.rng.integers(len(fitting)))], kind) if fitting else None

    def _fits(self, entity: Entity, picked: list[Entity], taken: set[str]) -> bool:
        if entity[0] in taken:
            self.counts["duplicates"] += 1
            return False
        if self.cfg.compatible and any(contradict(entity, other) for other in picked):
            self.counts["incompatible"] += 1
            return False
        return True

    def _reserve(self, picked: Sequence[Entity], number: int) -> Request:
        for entity in picked:
            self._count(entity, 1)
        clinical = tuple(e for e in picked if e[1] != ANATOMY)
        seed = int(np.random.default_rng([self.cfg.seed, 2, number]).integers(2**31))
        request = Request(number, seed, clinical, tuple(s for s, kind in picked if kind == ANATOMY))
        self.open[request.id] = request
        self.n_drawn += 1
        n_pairs = sum(contradict(a, b) for a, b in combinations(clinical, 2))
        self.pairs += Counter(pairs=n_pairs, requests=int(n_pairs > 0))
        return request

    def _count(self, entity: Entity, change: int) -> None:
        before = self.use[entity]
        self.use[entity] = before + change
        if self.use[entity] == self.cap:
            self.left[entity[1]].remove(entity[0])
        elif before == self.cap:
            self.left[entity[1]].add(entity[0])
            self.exhausted = ""

    def accept(self, request: Request) -> None:
        """The request became a report: its uses count. Raises KeyError for one that is not open."""
        self.open.pop(request.id)
        self.accepted.update(request.entities)
        self.counts["accepted"] += 1

    def reject(self, request: Request) -> None:
        """The request came to nothing: others may use its strings. Raises KeyError for one that is not open."""
        self.open.pop(request.id)
        for entity in request.entities:
            self._count(entity, -1)
        self.counts["rejected"] += 1

    def stats(self) -> dict:
        """The reference's statistics of S1; usage and type mix are of accepted requests."""
        usage = {kind: [self.accepted[s, kind] for s in counts] for kind, counts in self.real.items()}
        total = sum(self.accepted.values())
        used_up = {kind: sum(self.use[s, kind] >= self.cap for s in counts) if self.cap else 0
                   for kind, counts in self.real.items()}  # fmt: skip
        return {
            "drawn": self.n_drawn, "accepted": self.counts["accepted"], "rejected": self.counts["rejected"],
            "usage_histogram": {kind: _histogram(values) for kind, values in usage.items()},
            "gini": {kind: gini(values) for kind, values in usage.items()},
            "gini_real": {kind: gini(counts.values()) for kind, counts in self.real.items()},
            "type_mix": {kind: sum(values) / total if total else 0.0 for kind, values in usage.items()},
            "exhausted_strings": used_up,
            "exhausted_types": [k for k, n in used_up.items() if n and n == len(self.real[k])],
            "exhausted": self.exhausted,
            "fallback_draws": dict(self.fallback), "duplicate_rejections": self.counts["duplicates"],
            "incompatible_rejections": self.counts["incompatible"],
            "contradictory_pairs": self.pairs["pairs"], "contradictory_requests": self.pairs["requests"],
        }  # fmt: skip


class OwnEntities(Sampler):
    """One request for each report: what it names itself (control: synthetic texts for real images). A request's id is
    the number of its report; a report that names nothing has none. k, m and tau_max do not matter."""

    def __init__(self, pool: Pool, cfg: SamplerConfig, mentions: Sequence[Sequence[Mention]]):
        super().__init__(pool, replace(cfg, tau_max=None))
        self.waiting = [(i, sorted(entities(found))) for i, found in enumerate(mentions) if found]

    def draw(self, n: int) -> list[Request]:
        now, self.waiting = self.waiting[:n], self.waiting[n:]
        if not now:
            self.exhausted = "every report has been asked for"
        return [self._reserve(picked, number) for number, picked in now]


def _histogram(values: Iterable[int]) -> dict[int, int]:
    """Uses -> number of strings with that many."""
    return dict(sorted(Counter(values).items()))


# --- contradictions (reference: controls the paper lacks) ---


def contradict(a: Entity, b: Entity) -> bool:
    """Can two entities not be true of one radiograph, as far as the lexicon knows?

    One denies what the other states, on a common side; one calls a place normal where the other sees something; or they
    give one finding two sizes on a common side.
    """
    if ANATOMY in (a[1], b[1]) or (a[1].startswith("NON-") and b[1].startswith("NON-")):
        return False
    if not (a[1].startswith("NON-") or b[1].startswith("NON-")):
        sizes = [_words(s) & lexicon().sizes for s, _ in (a, b)]
        differ = bool(sizes[0] and sizes[1]) and sizes[0] != sizes[1]
        return differ and head_of(a[0]) == head_of(b[0]) and _sides_meet(a[0], b[0])
    denied, stated = (a[0], b[0]) if a[1].startswith("NON-") else (b[0], a[0])
    head = head_of(stated)
    if denied_head := head_of(denied):
        general = _words(denied) - lexicon().sides <= _words(stated)  # "no displaced fracture" leaves other fractures
        return denied_head == head and general and _sides_meet(denied, stated)
    return any(_holds_words(denied, place) and (head in heads or "any" in heads)
               for place, heads in lexicon().denies.items())  # fmt: skip


def _words(name: str) -> set[str]:
    return set(name.split())


def _holds_words(name: str, words: str) -> bool:
    return f" {words} " in f" {name} "


@lru_cache(maxsize=100_000)
def head_of(name: str) -> str:
    """The longest head of the lexicon that a norm string ends in, without what only says where: cardiomegaly of "mild
    cardiomegaly"; "" where there is none."""
    words = name.split()
    return next((term for i in range(len(words)) if (term := " ".join(words[i:])) in lexicon().heads), "")


def _sides_meet(a: str, b: str) -> bool:
    sides = [_words(s) & {"left", "right"} for s in (a, b)]
    return not sides[0] or not sides[1] or bool(sides[0] & sides[1])
