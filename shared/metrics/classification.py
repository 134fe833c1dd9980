"""Multi-label classification metrics: AUROC, average precision, F1 at given thresholds; macro over classes.

Serves the classification tasks of K-MERL, SuPreME and Synthetic Med-VLP. A class without positives (or without
negatives) has no AUROC: it is left out of a macro mean and counted, see `usable_classes`. Rare classes make a macro
mean noisy, hence the second mean over classes with at least 10 positives (`min_positives=10`).

AUROC and average precision are no sums over items: they are `Statistic`s, functions of item weights, computed for a
whole block of bootstrap weights per sort. A class that a bootstrap draw leaves undefined (no positive drawn, say) is
left out of that draw's mean.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

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


def _sorted_weights(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Items in ascending order of score: labels [n_items], weights [n_items, n], first and last index of each's tie."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right") - 1
    return label[order], weights[order], first, last


def _auroc(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted P(score of a positive > of a negative) + P(equal) / 2. weights: [n_items, n] -> [n]."""
    positive, w, first, last = _sorted_weights(label, score, weights)
    positive_w = w[positive]
    w[positive] = 0.0
    below = np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w, axis=0)])  # [i]: negatives before item i
    rank = 0.5 * (below[first[positive]] + below[last[positive] + 1])  # a tied negative counts one half
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive_w * rank).sum(axis=0) / (positive_w.sum(axis=0) * below[-1])


def _average_precision(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of (recall step) x precision, without interpolation; tied items form one step. -> [n]."""
    positive, w, first, _ = _sorted_weights(label, score, weights)
    above = np.cumsum(w[::-1], axis=0)[::-1]  # [i]: all items from i up
    positive_w = w[positive]
    hits = np.cumsum(np.where(positive[:, None], w, 0.0)[::-1], axis=0)[::-1]
    start = first[positive]  # a positive is retrieved together with its whole tie
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(positive_w > 0, hits[start] / above[start], 0.0)
        return (positive_w * precision).sum(axis=0) / positive_w.sum(axis=0)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN, without a warning, where nothing is left."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    return np.where(n > 0, np.where(defined, values, 0.0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def _macro(item_weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, metric: Callable) -> np.ndarray:
    """Mean of `metric` over classes for each row of item_weights [n, n_items] -> [n]."""
    weights = np.ascontiguousarray(np.asarray(item_weights, dtype=np.float64).T)  # item-major: sorting copies rows
    return _nanmean(np.stack([metric(y, s, weights) for y, s in zip(labels.T, scores.T, strict=True)], axis=-1))


def _macro_statistic(name: str, metric: Callable, labels, scores, min_positives: int) -> Statistic:
    labels, scores = _check(labels, scores)
    kept, _ = usable_classes(labels, min_positives)
    if not len(kept):
        raise ValueError(f"{name}: no class has >= {min_positives} positives and a negative among {len(labels)} items")
    name = name if min_positives <= 1 else f"{name}_min{min_positives}"
    fn = partial(_macro, labels=labels[:, kept], scores=scores[:, kept], metric=metric)
    return Statistic(name, VERSION, len(labels), fn)


# --- public metrics ---------------------------------------------------------------------------------------------------


def macro_auroc(labels: np.ndarray, scores: np.ndarray, min_positives: int = 1) -> Statistic:
    """Macro AUROC over the classes of `usable_classes(labels, min_positives)`; labels, scores [n_items, n_classes].

    Named "macro_auroc", or "macro_auroc_min<k>" for min_positives = k > 1. Errors: ValueError for bad input or where no
    class is usable.
    """
    return _macro_statistic("macro_auroc", _auroc, labels, scores, min_positives)


def macro_average_precision(labels: np.ndarray, scores: np.ndarray, min_positives: int = 1) -> Statistic:
    """As `macro_auroc`, of average precision: "macro_average_precision"."""
    return _macro_statistic("macro_average_precision", _average_precision, labels, scores, min_positives)


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


def per_class(
    labels: np.ndarray, scores: np.ndarray, names: Sequence[str], thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """One row per class: name, n_positive, n_negative, auroc, average_precision and, with thresholds [n_classes], f1.

    Values are scikit-learn's, NaN for a class without positives or without negatives.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    labels, scores = _check(labels, scores)
    if len(names) != labels.shape[1]:
        raise ValueError(f"{len(names)} names for {labels.shape[1]} classes")
    kept = set(usable_classes(labels)[0])
    cut = None if thresholds is None else _thresholds(thresholds, labels.shape[1])
    rows = []
    for i, name in enumerate(names):
        y, s = labels[:, i], scores[:, i]
        row = {"name": name, "n_positive": int(y.sum()), "n_negative": int((~y).sum())}
        row["auroc"] = roc_auc_score(y, s) if i in kept else np.nan
        row["average_precision"] = average_precision_score(y, s) if i in kept else np.nan
        if cut is not None:
            row["f1"] = f1_score(y, s >= cut[i], zero_division=0) if i in kept else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
