"""Confidence intervals, the verdict rule and the Holm correction, the same for every paper and every metric.

A metric is a function of SUMS of per-item statistics (`Scores`): resampling items is then one matrix product. What is
not a sum (AUROC) is a function of item weights (`Statistic`). Patients, not records, are resampled: records of one
patient are not independent.

With K seeds and a comparator scored on the same items, the interval of the difference is

    mean ± t(1 - alpha/2, K-1) * sqrt(v_items + s2_seeds / K)

v_items: patient-clustered bootstrap variance of the seed-mean difference; s2_seeds: variance (ddof 1) of the per-seed
differences. Fewer than 3 seeds are always inconclusive.

Verdict: a claim draws boundaries on the axis of the difference, +m for superiority, -m for non-inferiority, -m and +m
for equivalence and difference, with m the margin. An interval that contains no boundary is decisive: the side it lies
on says `holds` or `does not hold`. At whatever true difference, a decisive verdict is wrong in at most a share alpha of
repetitions, because a wrong one needs an interval that misses the truth.

Holm: see `holm`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

KINDS = ("superiority", "non-inferiority", "equivalence", "ordering", "difference")
HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
MIN_SEEDS = 3
MAX_UNDEFINED = 0.05  # share of replicates that may be undefined (no positive drawn, say) before the interval is NaN
CHUNK_CELLS = 4_000_000  # cells of a block of bootstrap weights: 32 MB in float64


@dataclass(frozen=True, eq=False)
class Scores:
    """A metric as sums. stats: [n_items, k]; reduce: maps sums [..., k] to values [...]; value = reduce(stats.sum(0)).

    A plain per-item mean is `mean_scores`. Raises ValueError where stats are not a finite matrix.
    """

    name: str
    version: int
    stats: np.ndarray
    reduce: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self):
        if np.ndim(self.stats) != 2 or not np.all(np.isfinite(self.stats)):
            raise ValueError(
                f"{self.name}: stats must be a finite [n_items, k] matrix, got shape {np.shape(self.stats)}"
            )

    @property
    def n_items(self) -> int:
        return len(self.stats)

    @property
    def value(self) -> float:
        return float(self.reduce(self.stats.sum(axis=0, dtype=np.float64)))


@dataclass(frozen=True, eq=False)
class Statistic:
    """A metric that is no sum, such as AUROC. fn: maps item weights [n, n_items] (>= 0) to values [n]."""

    name: str
    version: int
    n_items: int
    fn: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        return float(np.asarray(self.fn(np.ones((1, self.n_items)))).reshape(1)[0])


Metric = Scores | Statistic


def mean_scores(name: str, version: int, per_item: np.ndarray) -> Scores:
    """The mean of per-item values [n_items] as `Scores`."""
    per_item = np.asarray(per_item, dtype=np.float64)
    return Scores(name, version, np.stack([per_item, np.ones_like(per_item)], axis=1), lambda s: s[..., 0] / s[..., 1])


# --- patient-clustered bootstrap ---


def _patients(patient_ids: Sequence) -> tuple[np.ndarray, int]:
    """Index of each item's patient [n_items], number of patients."""
    _, index = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    return index, int(index.max()) + 1 if len(index) else 0


def _patient_draws(n_patients: int, n_items: int, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn, in blocks [<= n_boot, n_patients] whose item weights fit in memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK_CELLS // max(1, n_items))  # the numbers drawn do not depend on the size of the blocks
    for start in range(0, n_boot, rows):
        n = min(rows, n_boot - start)
        drawn = rng.integers(n_patients, size=(n, n_patients)) + np.arange(n)[:, None] * n_patients
        yield np.bincount(drawn.ravel(), minlength=n * n_patients).reshape(n, n_patients).astype(np.float64)


def _resampler(metric: Metric, index: np.ndarray, n_patients: int) -> Callable[..., np.ndarray]:
    """Function from patient draws [n, n_patients] and their item weights [n, n_items] to values [n]."""
    if isinstance(metric, Statistic):
        return lambda draws, weights: np.asarray(metric.fn(weights), dtype=np.float64)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(n_patients))
    per_patient = np.add.reduceat(metric.stats[order].astype(np.float64), starts, axis=0)  # [n_patients, k]
    return lambda draws, weights: np.asarray(metric.reduce(draws @ per_patient), dtype=np.float64)


def bootstrap_values(metrics: Sequence[Metric], patient_ids: Sequence, n_boot: int = 1000, seed: int = 0) -> np.ndarray:
    """Values [n_boot, n_metrics] of metrics over the same items, all on the same draws of patients."""
    for metric in metrics:
        if metric.n_items != len(patient_ids):
            raise ValueError(f"{metric.name}: {metric.n_items} items, but {len(patient_ids)} patient ids")
    index, n_patients = _patients(patient_ids)
    if n_patients == 0:
        raise ValueError("no items to resample: the predictions are empty")
    resamplers = [_resampler(metric, index, n_patients) for metric in metrics]
    draws = _patient_draws(n_patients, len(index), n_boot, seed)
    values = []
    with np.errstate(invalid="ignore", divide="ignore"):  # an undefined replicate is NaN; `_defined` counts them
        for block in draws:
            # for all metrics at once, and item-major in memory: a ranking reads all draws of one item together
            weights = block.T[index].T if any(isinstance(m, Statistic) for m in metrics) else None
            values.append(np.stack([f(block, weights) for f in resamplers], axis=1))
    return np.concatenate(values)


def _defined(replicates: np.ndarray, n_patients: int) -> np.ndarray:
    """The finite replicates [<= n_boot]; one NaN where too many are undefined or one patient is all there is."""
    finite = replicates[np.isfinite(replicates)]
    if n_patients < 2 or len(finite) < (1 - MAX_UNDEFINED) * len(replicates):
        return np.array([np.nan])
    return finite


def interval(
    metric: Metric, patient_ids: Sequence, n_boot: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """(value, lo, hi) of one run: patient-clustered percentile interval. NaN bounds where it cannot be estimated."""
    return intervals([metric], patient_ids, n_boot, seed, level)[0]


def intervals(
    metrics: Sequence[Metric], patient_ids: Sequence, n_boot: int = 1000, seed: int = 0, level: float = 0.95
) -> list[tuple[float, float, float]]:
    """`interval` of each of several metrics over the same items; their patients are drawn once for all of them."""
    n_patients, found = _patients(patient_ids)[1], []
    for metric, replicates in zip(metrics, bootstrap_values(metrics, patient_ids, n_boot, seed).T, strict=True):
        lo, hi = np.quantile(_defined(replicates, n_patients), [(1 - level) / 2, (1 + level) / 2])
        found.append((metric.value, float(lo), float(hi)))
    return found


# --- differences over seeds ---


@dataclass(frozen=True)
class Difference:
    """Ours minus the comparator, on the same items, over K seeds. Variances are in squared units of the metric."""

    mean: float
    v_items: float
    s2_seeds: float
    per_seed: tuple[float, ...]  # differences, one per seed
    level: float  # our metric, mean over seeds
    comparator_level: float
    n_items: int
    n_patients: int

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    @property
    def standard_error(self) -> float:
        """sqrt(v_items + s2_seeds / K); NaN with one seed, whose variance nobody can know."""
        return float(np.sqrt(self.v_items + self.s2_seeds / self.n_seeds))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(lo, hi); (NaN, NaN) with one seed or one patient."""
        if self.n_seeds < 2:
            return np.nan, np.nan
        half = float(distributions.t.ppf((1 + confidence) / 2, self.n_seeds - 1)) * self.standard_error
        return self.mean - half, self.mean + half


def difference(
    a: Sequence[Metric],
    b: Sequence[Metric] | Metric | None,
    patient_ids: Sequence,
    n_boot: int = 1000,
    seed: int = 0,
) -> Difference:
    """Paired difference a - b: a has one metric per seed; b as many (same seeds), or one without seeds, or None for 0.

    Every metric must be scored on the same items in the order of patient_ids. With b = None this is the level of a
    itself with its interval. Raises ValueError where numbers of seeds, metric names or versions differ.
    """
    a = list(a)
    b_list = [] if b is None else [b] * len(a) if isinstance(b, Scores | Statistic) else list(b)
    if not a or (b is not None and len(b_list) != len(a)):
        raise ValueError(f"{len(a)} seeds against {len(b_list)}: pair the seeds, or pass one metric without seeds")
    kinds = {(m.name, m.version) for m in a + b_list}
    if len(kinds) > 1:
        raise ValueError(f"different metrics or versions cannot be subtracted: {sorted(kinds)}; score again with one")
    unique = list({id(m): m for m in a + b_list}.values())
    replicates = bootstrap_values(unique, patient_ids, n_boot, seed)
    column = {id(m): replicates[:, i] for i, m in enumerate(unique)}
    delta = np.mean([column[id(m)] for m in a], axis=0)
    if b_list:
        delta = delta - np.mean([column[id(m)] for m in b_list], axis=0)
    values_a = np.array([m.value for m in a])
    values_b = np.array([m.value for m in b_list]) if b_list else np.zeros(len(a))
    per_seed = values_a - values_b
    n_patients = _patients(patient_ids)[1]
    return Difference(
        mean=float(per_seed.mean()),
        v_items=float(np.var(_defined(delta, n_patients), ddof=0)),
        s2_seeds=float(np.var(per_seed, ddof=1)) if len(a) > 1 else np.nan,
        per_seed=tuple(map(float, per_seed)),
        level=float(values_a.mean()),
        comparator_level=float(values_b.mean()),
        n_items=len(patient_ids),
        n_patients=n_patients,
    )


# --- verdicts ---


@dataclass(frozen=True)
class Hypothesis:
    """What a claim asks of its differences: one, or one per step of an ordering.

    margin: >= 0, in units of the metric; direction: "higher" where a larger metric is better, else "lower".
    """

    kind: str
    differences: tuple[Difference, ...]
    margin: float = 0.0
    direction: str = "higher"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: use one of {', '.join(KINDS)}")
        if self.direction not in ("higher", "lower"):
            raise ValueError(f"direction {self.direction!r}: use higher or lower")
        if self.margin < 0 or (self.margin == 0 and self.kind in ("non-inferiority", "equivalence")):
            raise ValueError(f"margin {self.margin}: {self.kind} needs a positive margin (0 is allowed elsewhere)")
        if not self.differences or (len(self.differences) > 1 and self.kind != "ordering"):
            raise ValueError(
                f"{self.kind} with {len(self.differences)} differences: only an ordering has several steps"
            )


def boundaries(kind: str, margin: float) -> tuple[float, ...]:
    """Where the verdict changes, on the axis of differences for which larger is better."""
    if kind == "non-inferiority":
        return (-margin,)
    return (margin,) if kind in ("superiority", "ordering") else (-margin, margin)


def verdict(kind: str, lo: float, hi: float, margin: float = 0.0, direction: str = "higher") -> str:
    """Verdict on one difference from its interval [lo, hi]; touching a boundary, or NaN, is inconclusive."""
    if direction == "lower":
        lo, hi = -hi, -lo
    edges = boundaries(kind, margin)
    if not lo <= hi or any(lo <= edge <= hi for edge in edges):
        return INCONCLUSIVE
    if len(edges) == 1:
        return HOLDS if lo > edges[0] else FAILS
    inside = lo > edges[0] and hi < edges[1]
    return HOLDS if inside == (kind == "equivalence") else FAILS


def p_value(kind: str, d: Difference, margin: float = 0.0, direction: str = "higher") -> float:
    """The smallest alpha at which the (1 - alpha) interval gives a decisive verdict.

    That is the two-sided p-value of the t statistic against the nearest boundary, t = |mean - boundary| / SE with
    K - 1 degrees of freedom; 1 where fewer than 3 seeds, or a missing variance, allow no verdict.
    """
    mean = -d.mean if direction == "lower" else d.mean
    distance = min(abs(mean - edge) for edge in boundaries(kind, margin))
    if d.n_seeds < MIN_SEEDS or not np.isfinite(d.standard_error) or not distance > 0:
        return 1.0
    if d.standard_error == 0:
        return 0.0
    return float(2 * distributions.t.sf(distance / d.standard_error, d.n_seeds - 1))


@dataclass(frozen=True)
class Decision:
    """Verdict and p-value of a hypothesis; per difference (step): confidence, interval at it, and verdict."""

    verdict: str
    p_value: float
    confidences: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    step_verdicts: tuple[str, ...]


def _fails_at_mean(h: Hypothesis) -> list[bool]:
    """Per step: does the point estimate lie on the side on which the step does not hold?"""
    return [verdict(h.kind, d.mean, d.mean, h.margin, h.direction) == FAILS for d in h.differences]


def weakest_step(h: Hypothesis) -> tuple[int, float]:
    """(number, p) of the step that decides a hypothesis: the one furthest from holding.

    That is the clearest (smallest p) of those on the failing side, else the least clear (largest p); where their p are
    equal, as with too few seeds for one, the smallest claimed difference.
    """
    p_values = [p_value(h.kind, d, h.margin, h.direction) for d in h.differences]
    claimed = [-d.mean if h.direction == "lower" else d.mean for d in h.differences]
    fails = _fails_at_mean(h)
    steps = [i for i, failing in enumerate(fails) if failing == any(fails)]
    weakest = min(steps, key=lambda i: (p_values[i] if any(fails) else -p_values[i], claimed[i]))
    return weakest, p_values[weakest]


def hypothesis_p_value(h: Hypothesis) -> float:
    """The smallest alpha at which `decide` is decisive; for one difference that is its `p_value`.

    An ordering holds only if all of its J steps do (the largest p counts) and fails if any does (J times the smallest).
    """
    return min(1.0, weakest_step(h)[1] * (len(h.differences) if any(_fails_at_mean(h)) else 1))


def decide(h: Hypothesis, alpha: float = 0.05) -> Decision:
    """Verdict at level alpha, without correction for other claims.

    Each step is judged by its (1 - alpha) interval; in an ordering of J steps those whose estimate lies on the failing
    side by their (1 - alpha / J) interval, for any one of them sinks the claim. An ordering holds where all its steps
    hold, does not hold where any step does not, else is inconclusive. A wrong verdict has probability <= alpha: a wrong
    `holds` needs a wrong step at alpha / 2, a wrong `does not hold` one of J steps at alpha / (2 J).
    """
    confidences = [1 - alpha / (len(h.differences) if fails else 1) for fails in _fails_at_mean(h)]
    intervals = [d.interval(c) for d, c in zip(h.differences, confidences, strict=True)]
    steps = [
        verdict(h.kind, *bounds, h.margin, h.direction) if d.n_seeds >= MIN_SEEDS else INCONCLUSIVE
        for d, bounds in zip(h.differences, intervals, strict=True)
    ]
    overall = FAILS if FAILS in steps else HOLDS if set(steps) == {HOLDS} else INCONCLUSIVE
    return Decision(overall, hypothesis_p_value(h), tuple(confidences), tuple(intervals), tuple(steps))


def holm(hypotheses: Sequence[Hypothesis], alpha: float = 0.05, family_size: int | None = None) -> list[Decision]:
    """Holm's step-down over a paper's claims at one tier; the verdict is read from the adjusted interval.

    M = family_size (claims declared for the tier but not run count, as p = 1), or the number of hypotheses given. They
    are sorted by `hypothesis_p_value`; the i-th smallest (i = 1..M) is decided at alpha / (M - i + 1), by its interval
    at that confidence. The first that is not decisive stops the descent: it and all that follow keep the level of that
    step, at which none of them is decisive. So "p <= alpha / (M - i + 1)" and "the adjusted interval contains no
    boundary" are the same statement, and the chance of any wrong decisive verdict in the family is at most alpha (for
    the side of a verdict: Shaffer 1980).
    """
    size = max(len(hypotheses), family_size or 0)
    p_values = [hypothesis_p_value(h) for h in hypotheses]
    decisions: dict[int, Decision] = {}
    n_decisive = 0
    for i in sorted(range(len(hypotheses)), key=lambda i: p_values[i]):
        decisions[i] = decide(hypotheses[i], alpha / (size - n_decisive))
        n_decisive += decisions[i].verdict != INCONCLUSIVE
    return [decisions[i] for i in range(len(hypotheses))]
