"""From scores to metrics on the six downstream tasks: thresholds, F1, accuracy, and the mean over tasks.

Serves the zero-shot and probing tables of K-MERL, MERL and SuPreME (reference of K-MERL: Evaluation
protocols). Headline is the macro AUROC; F1 and accuracy come in two named protocols:

as_published   "Oracle" F1: per class the maximum over thresholds chosen on the TEST part, where the F1 counts scores at
               the threshold as positive (>=), while the accuracy at that same threshold does not (>).
corrected      The threshold of each class maximises its F1 on VALIDATION; F1 and accuracy both use >=.

A class without positives or without negatives in the part that chooses has no threshold, and one without them in the
test part has no AUROC or F1: such classes are left out and listed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from shared.metrics.classification import VERSION, macro_auroc, macro_f1, task_mean, usable_classes
from shared.metrics.interval import Metric, Statistic, mean_scores

PROTOCOLS = ("corrected", "as_published")
FREQUENT = 10  # positives from which a class counts in the second macro mean


def best_f1_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Per class the score [C] at which `scores >= threshold` has the greatest F1; the lowest of equals.

    labels: 0/1 [n, C]; scores: [n, C]. NaN for a class without positives or without negatives.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    thresholds = np.full(labels.shape[1], np.nan)
    for c in usable_classes(labels)[0]:
        order = np.argsort(scores[:, c], kind="stable")
        ordered, hits = scores[order, c], np.cumsum(labels[order, c][::-1])[::-1]  # positives from item i up
        called = np.arange(len(ordered), 0, -1)
        f1 = 2 * hits / (called + hits[0])
        first = np.concatenate([[True], ordered[1:] > ordered[:-1]])  # a threshold takes all items of a tie
        thresholds[c] = ordered[np.argmax(np.where(first, f1, -1.0))]
    return thresholds


def accuracy(labels: np.ndarray, scores: np.ndarray, thresholds: Sequence[float], strict: bool = False) -> Metric:
    """Mean over items and classes of (score >= threshold) == label; with `strict`, > as published. [n, C] each."""
    called = np.asarray(scores) > thresholds if strict else np.asarray(scores) >= thresholds
    name = "accuracy_strict" if strict else "accuracy"
    return mean_scores(name, VERSION, (called == np.asarray(labels).astype(bool)).mean(axis=1))


def task_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    protocol: str = "corrected",
    val: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics of one task over its test items, ready for bootstrap intervals, and what they rest on.

    labels: 0/1 [n, C]; scores: [n, C], NaN columns for classes that a probe left out. val: (labels, scores) of the
    validation part, which `corrected` needs for thresholds; without it there is AUROC only.
    Metrics: macro_auroc, macro_auroc_min10 (where a class has 10 positives), macro_f1 and accuracy (corrected), or
    oracle_macro_f1 and accuracy_strict (as_published). Info: classes (columns in the macro AUROC) and thresholded
    (columns behind F1 and accuracy).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    labels, scores = np.asarray(labels), np.asarray(scores)
    kept, frequent = _columns(labels, scores, 1), _columns(labels, scores, FREQUENT)
    metrics: dict[str, Metric] = {"macro_auroc": macro_auroc(labels[:, kept], scores[:, kept])}
    if len(frequent):
        metrics["macro_auroc_min10"] = macro_auroc(labels[:, frequent], scores[:, frequent], FREQUENT)
    info = {"classes": kept.tolist()}
    choosing = (labels, scores) if protocol == "as_published" else val
    if choosing is not None:
        thresholds = best_f1_thresholds(choosing[0], choosing[1])
        cut = kept[np.isfinite(thresholds[kept])]
        info["thresholded"] = cut.tolist()
        if len(cut):
            arrays = labels[:, cut], scores[:, cut], thresholds[cut]
            oracle = protocol == "as_published"
            metrics["oracle_macro_f1" if oracle else "macro_f1"] = macro_f1(*arrays)
            metrics["accuracy_strict" if oracle else "accuracy"] = accuracy(*arrays, strict=oracle)
    return metrics, info


def scored_classes(scores: np.ndarray) -> np.ndarray:
    """Columns without NaN: a probe writes NaN for the classes it left out."""
    return np.flatnonzero(~np.isnan(scores).any(axis=0))


# --- mean over tasks --------------------------------------------------------------------------------------------------


def six_task_auroc(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], min_positives: int = 1) -> Statistic:
    """The headline: mean over tasks of the macro AUROC, every task weighing the same (`task_mean`).

    parts: task -> (labels, scores), each [n_task, C_task]; columns that are NaN do not count. The items are those of
    ALL tasks joined in the order of `parts`, and so are the patients (`items_of`). A task without a class of
    `min_positives` adds nothing to the mean, see `usable_tasks`; ValueError where none has one.
    """
    if not usable_tasks(parts, min_positives):
        raise ValueError(f"none of {', '.join(parts) or 'no tasks'} has a class with >= {min_positives} positives")
    tasks = {task: _task_auroc(*part, min_positives) for task, part in parts.items()}
    first = next(metric for metric in tasks.values() if metric)
    empty = {t: Statistic(first.name, first.version, len(parts[t][0]), _undefined) for t in parts if not tasks[t]}
    return task_mean(tasks | empty)


def usable_tasks(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], min_positives: int = 1) -> list[str]:
    """Tasks with a scored class that has at least `min_positives` positives and a negative: those in the mean."""
    return [task for task, (labels, scores) in parts.items() if len(_columns(labels, scores, min_positives))]


def _columns(labels: np.ndarray, scores: np.ndarray, min_positives: int) -> np.ndarray:
    return np.intersect1d(scored_classes(scores), usable_classes(labels, min_positives)[0])


def _task_auroc(labels: np.ndarray, scores: np.ndarray, min_positives: int) -> Statistic | None:
    columns = _columns(labels, scores, min_positives)
    return macro_auroc(labels[:, columns], scores[:, columns], min_positives) if len(columns) else None


def _undefined(item_weights: np.ndarray) -> np.ndarray:
    return np.full(len(item_weights), np.nan)


# --- predictions of a run -> items and metrics ------------------------------------------------------------------------


def items_of(rows: pd.DataFrame, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, dict]:
    """Predictions of one input + labels -> ids and patients [n_items] (data set before the name), and per task
    (item indices, labels [n, C], scores [n, C])."""
    ids, patients, parts, n = [], [], {}, 0
    for dataset, table in rows.groupby("dataset", sort=False):
        start = 0
        mine = labels[labels.dataset == dataset]
        predictions = table.set_index("id")
        for task, truth in mine.groupby("task", sort=False):
            n_classes = len(truth.reference.iloc[0])
            scored = truth[truth.id.isin(predictions.index)]
            y = np.stack(scored.reference.to_list()) if len(scored) else np.zeros((0, n_classes), np.uint8)
            chosen = predictions.loc[scored.id]
            s = [np.asarray(p, np.float32)[start : start + n_classes] for p in chosen.prediction]
            start += n_classes
            if not len(scored):
                continue
            parts[task] = (np.arange(n, n + len(scored)), y, np.stack(s))
            ids += [f"{task}:{i}" for i in scored.id]
            patients += [f"{dataset}:{p}" for p in chosen.patient]
            n += len(scored)
        if start != len(table.prediction.iloc[0]):
            raise ValueError(
                f"{dataset}: {len(table.prediction.iloc[0])} scores a record, {start} classes in the labels"
            )
    return np.array(ids), np.array(patients), parts


def metrics_of(
    rows: pd.DataFrame, labels: pd.DataFrame, kinds: Mapping[str, Sequence[str]], chance: bool = False
) -> tuple[dict[str, Metric], np.ndarray]:
    """(metric name -> Statistic, patients) of one input.

    An item is a record in a task: a PTB-XL record that serves four tasks is four items of one patient, so that a
    bootstrap draw takes or leaves all of them. Every metric counts the same items, whatever tasks it rests on.
    kinds: task -> kind of each class, such as "seen" or "unseen". auroc: mean over tasks of the macro AUROC;
    auroc_min10: the same over classes with at least 10 positives; auroc_<kind>: over classes of a kind; auroc:<task>.
    chance: a class that a probe could not learn (NaN) counts as chance, 0.5, instead of being left out, so that what is
    compared with it is scored on the same classes.
    """
    _, patients, parts = items_of(rows, labels)
    if chance:
        parts = {t: (i, y, np.nan_to_num(s)) for t, (i, y, s) in parts.items()}
    n, found = len(patients), {}
    groups = {"auroc": (parts, 1), "auroc_min10": (parts, FREQUENT)}
    for kind in sorted({k for classes in kinds.values() for k in classes}):
        keep = {t: np.array(kinds[t]) == kind for t in parts}
        groups[f"auroc_{kind}"] = ({t: (i, y[:, keep[t]], s[:, keep[t]]) for t, (i, y, s) in parts.items()}, 1)
    groups |= {f"auroc:{t}": ({t: part}, 1) for t, part in parts.items()}
    for name, (tasks, min_positives) in groups.items():
        usable = {t: part for t, part in tasks.items() if _usable(*part[1:], min_positives)}
        if usable:
            metric = six_task_auroc({t: (y, s) for t, (_, y, s) in usable.items()}, min_positives)
            found[name] = restrict(metric, np.concatenate([i for i, _, _ in usable.values()]), n)
    return found, patients


def _usable(y: np.ndarray, s: np.ndarray, min_positives: int) -> bool:
    positives = y.sum(0)
    return bool(((positives >= min_positives) & (positives < len(y)) & ~np.isnan(s).any(0)).any())


def restrict(metric: Statistic, rows: np.ndarray, n_items: int) -> Statistic:
    """A metric over some of n_items as one over all of them."""
    return Statistic(metric.name, metric.version, n_items, partial(_restricted, metric=metric, rows=rows))


def _restricted(item_weights: np.ndarray, metric: Statistic, rows: np.ndarray) -> np.ndarray:
    return metric.fn(item_weights[:, rows])


def average(metrics: Sequence[Statistic]) -> Statistic:
    """Mean of one metric over several sets of scores of the same items."""
    if len({(m.name, m.version, m.n_items) for m in metrics}) != 1:
        raise ValueError(f"only one metric over the same items can be averaged: {sorted({m.name for m in metrics})}")
    first = metrics[0]
    return Statistic(first.name, first.version, first.n_items, partial(_averaged, metrics=tuple(metrics)))


def _averaged(item_weights: np.ndarray, metrics: Sequence[Statistic]) -> np.ndarray:
    return np.mean([m.fn(item_weights) for m in metrics], axis=0)
