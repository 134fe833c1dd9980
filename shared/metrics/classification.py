"""Multi-label classification metrics: AUROC, average precision, F1 at given thresholds; macro over classes.

Serves the classification tasks of K-MERL, SuPreME and Synthetic Med-VLP. A class without positives (or without
negatives) has no AUROC: it is left out of a macro mean and counted, see `usable_classes`. Rare classes make a macro
mean noisy, hence the second mean over classes with at least 10 positives (`min_positives=10`).

AUROC and average precision are no sums over items: they are `Statistic`s, functions of item weights. Each class is
sorted once, when the metric is made; a block of bootstrap weights then costs one product with a sparse matrix of one
number an item. A class that a bootstrap draw leaves undefined (no positive drawn, say) is left out of that draw's mean.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from shared.metrics.interval import Scores, Statistic

VERSION = 1  # raise it whenever any number below can change


def _check(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """labels [n_items, n_classes] as bool, scores of the same shape as float64. Errors: ValueError."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must both be [n_items, n_classes]")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1; drop or map uncertain ones before scoring")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are not finite; AUROC has no place for them")
    return labels.astype(bool), scores


def usable_classes(labels: np.ndarray, min_positives: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Column indices (kept, excluded): kept have at least `min_positives` positives and one negative."""
    n_positive = np.asarray(labels).astype(bool).sum(axis=0)
    keep = (n_positive >= max(min_positives, 1)) & (n_positive < len(labels))
    return np.flatnonzero(keep), np.flatnonzero(~keep)


# --- weighted ranking metrics of one class ----------------------------------------------------------------------------

BLOCK = 64  # bootstrap draws at a time: the sums of one class then stay in the processor's cache


class _Ranking:
    """Where the items of one class stand. Steps 0..K-1 are the different scores that positives have, ascending."""

    def __init__(self, label: np.ndarray, score: np.ndarray):
        steps = np.unique(score[label])
        positive, negative = np.flatnonzero(label), np.flatnonzero(~label)
        above = np.searchsorted(steps, score[negative], side="right")  # steps at or below each negative
        tie = (above > 0) & (steps[above - 1] == score[negative])
        k = self.n_steps = len(steps)
        rows = np.concatenate([np.searchsorted(steps, score[positive]), k + above, 2 * k + above[tie]])
        columns = np.concatenate([positive, negative, negative[tie]])
        self.any_tie = bool(tie.any())
        shape = (3 * k + 1 if self.any_tie else 2 * k + 1, len(label))
        self.sums = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """weights [n_items, n] -> sums per step: positives at it [K, n], negatives at it [K, n] or 0, negatives below
        it [K, n]; and all negatives [n]."""
        k, sums = self.n_steps, self.sums @ weights
        below = np.cumsum(sums[k : 2 * k + 1], axis=0)
        return sums[:k], sums[2 * k + 1 :] if self.any_tie else 0.0, below[:k], below[k]


def _auroc(positive, tied, below, n_negative) -> np.ndarray:
    """Weighted P(score of a positive > of a negative) + P(equal) / 2, from the sums of `_Ranking` -> [n]."""
    return (positive * (below + 0.5 * tied)).sum(axis=0) / (positive.sum(axis=0) * n_negative)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN, without a warning, where nothing is left."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    return np.where(n > 0, np.where(defined, values, 0.0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def _macro_auroc(item_weights: np.ndarray, rankings: Sequence[_Ranking]) -> np.ndarray:
    """Mean of the AUROC over classes for each row of item_weights [n, n_items] -> [n]."""
    values = np.empty((len(item_weights), len(rankings)))
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without positives is NaN and left out of the mean
        for start in range(0, len(item_weights), BLOCK):
            weights = np.ascontiguousarray(np.asarray(item_weights[start : start + BLOCK], dtype=np.float64).T)
            for c, ranking in enumerate(rankings):
                values[start : start + BLOCK, c] = _auroc(*ranking(weights))
    return _nanmean(values)


# --- public metrics ---------------------------------------------------------------------------------------------------


def macro_auroc(labels: np.ndarray, scores: np.ndarray, min_positives: int = 1) -> Statistic:
    """Macro AUROC over the classes of `usable_classes(labels, min_positives)`; labels, scores [n_items, n_classes].

    Named "macro_auroc", or "macro_auroc_min<k>" for min_positives = k > 1. Errors: ValueError for bad input or where no
    class is usable.
    """
    labels, scores = _check(labels, scores)
    kept, _ = usable_classes(labels, min_positives)
    if not len(kept):
        raise ValueError(f"no class has >= {min_positives} positives and a negative among {len(labels)} items")
    name = "macro_auroc" if min_positives <= 1 else f"macro_auroc_min{min_positives}"
    rankings = [_Ranking(labels[:, c], scores[:, c]) for c in kept]
    return Statistic(name, VERSION, len(labels), partial(_macro_auroc, rankings=rankings))


def task_mean(tasks: Mapping[str, Statistic]) -> Statistic:
    """Mean of one metric over tasks, each weighing the same whatever its numbers of items and classes.

    Every task keeps items of its own; the items of the mean are theirs joined in the order of `tasks`, and so must be
    the patient ids given to `interval` or `difference`. A record that serves two tasks is two items with one patient,
    so that a draw takes or leaves both; ids of different data sets must not collide. Named "task_mean_<metric>".
    Errors: ValueError where there is no task or the tasks' metrics differ.
    """
    kinds = {(metric.name, metric.version) for metric in tasks.values()}
    if len(kinds) != 1:
        raise ValueError(f"a mean over tasks needs one metric with one version, not {sorted(kinds)}")
    ((name, version),) = kinds
    ends = np.cumsum([metric.n_items for metric in tasks.values()])
    return Statistic(f"task_mean_{name}", version, int(ends[-1]), partial(_task_mean, tasks=tasks, ends=ends))


def _task_mean(item_weights: np.ndarray, tasks: Mapping[str, Statistic], ends: np.ndarray) -> np.ndarray:
    """item_weights [n, items of all tasks] -> [n]; a task that a draw leaves undefined is left out of its mean."""
    parts = np.split(item_weights, ends[:-1], axis=1)
    return _nanmean(np.stack([m.fn(w) for m, w in zip(tasks.values(), parts, strict=True)], axis=-1))


def auroc_per_class(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC [n_classes] without weights, NaN where a class has no positive or no negative: for choosing on validation.

    By mean ranks (Mann-Whitney), all classes at once; labels, scores: [n_items, n_classes].
    """
    labels, scores = _check(labels, scores)
    n_positive = labels.sum(axis=0)
    pairs = n_positive * (len(labels) - n_positive)
    ranks = np.where(labels, rankdata(scores, axis=0), 0.0).sum(axis=0)
    return np.where(pairs > 0, (ranks - n_positive * (n_positive + 1) / 2) / np.maximum(pairs, 1), np.nan)


def macro_f1(labels: np.ndarray, scores: np.ndarray, thresholds: Sequence[float], min_positives: int = 1) -> Scores:
    """Macro F1 of `scores >= thresholds` over usable classes. thresholds: [n_classes], chosen on validation data."""
    labels, scores = _check(labels, scores)
    predicted = scores >= _thresholds(thresholds, labels.shape[1])
    kept, _ = usable_classes(labels, min_positives)
    if not len(kept):
        raise ValueError(f"macro_f1: no class has >= {min_positives} positives and a negative")
    y, p = labels[:, kept], predicted[:, kept]
    name = "macro_f1" if min_positives <= 1 else f"macro_f1_min{min_positives}"
    return Scores(name, VERSION, np.concatenate([y & p, y ^ p], axis=1).astype(np.float64), _macro_f1)


def _thresholds(thresholds: Sequence[float], n_classes: int) -> np.ndarray:
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.shape != (n_classes,):
        raise ValueError(f"thresholds {thresholds.shape}: give one per class, ({n_classes},)")
    return thresholds


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Sums [..., 2 * n_classes] of true positives, then of errors (fp + fn) -> mean F1 [...]."""
    hits, errors = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore"):
        return _nanmean(2 * hits / (2 * hits + errors))
