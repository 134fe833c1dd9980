"""Thresholds, F1 and accuracy of both protocols against scikit-learn; the mean over tasks and its clustering."""

import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve, roc_auc_score

from shared.metrics.interval import bootstrap_values, difference
from shared.metrics.six_tasks import (
    accuracy,
    best_f1_thresholds,
    six_task_auroc,
    task_metrics,
    usable_tasks,
)


def _task(n=200, rates=(0.4, 0.2, 0.03, 0.0), seed=0, shift=1.0):
    """labels, scores [n, 4]: the scores of the second class are tied, the third is rare, the last has no positive."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(rates))) < rates).astype(np.uint8)
    labels[:2, [i for i, rate in enumerate(rates) if rate]] = 1
    scores = rng.normal(size=labels.shape) + shift * labels
    scores[:, 1] = np.round(scores[:, 1])
    return labels, scores


def test_thresholds_maximise_f1_among_all_scores():
    labels, scores = _task()
    found = best_f1_thresholds(labels, scores)
    assert np.isnan(found[3])
    for c in range(3):
        candidates = np.unique(scores[:, c])
        f1 = [f1_score(labels[:, c], scores[:, c] >= t) for t in candidates]
        assert found[c] == candidates[np.argmax(f1)]


def test_as_published_repeats_the_public_recipe():
    """Threshold of the greatest F1 on the test part itself; the accuracy then compares with a strict >."""
    labels, scores = _task()
    metrics, info = task_metrics(labels, scores, "as_published")
    best_f1, hits = [], []
    for c in range(3):
        precision, recall, thresholds = precision_recall_curve(labels[:, c], scores[:, c])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best_f1.append(f1.max())
        hits.append(accuracy_score(labels[:, c], scores[:, c] > thresholds[np.argmax(f1)]))
    assert metrics["oracle_macro_f1"].value == pytest.approx(np.mean(best_f1), abs=1e-9)
    assert metrics["accuracy_strict"].value == pytest.approx(np.mean(hits), abs=1e-9)
    assert info["thresholded"] == info["classes"] == [0, 1, 2]
    assert "macro_f1" not in metrics and "accuracy" not in metrics


def test_corrected_takes_thresholds_from_validation():
    labels, scores = _task()
    val = _task(seed=9, rates=(0.4, 0.2, 0.0, 0.1))  # the third class cannot be given a threshold
    metrics, info = task_metrics(labels, scores, "corrected", val)
    thresholds = best_f1_thresholds(*val)
    f1 = [f1_score(labels[:, c], scores[:, c] >= thresholds[c]) for c in (0, 1)]
    right = [accuracy_score(labels[:, c], scores[:, c] >= thresholds[c]) for c in (0, 1)]
    assert metrics["macro_f1"].value == pytest.approx(np.mean(f1), abs=1e-12)
    assert metrics["accuracy"].value == pytest.approx(np.mean(right), abs=1e-12)
    assert info["thresholded"] == [0, 1] and info["classes"] == [0, 1, 2]
    oracle = task_metrics(labels[:, :2], scores[:, :2], "as_published")[0]["oracle_macro_f1"].value
    assert metrics["macro_f1"].value <= oracle
    assert set(task_metrics(labels, scores)[0]) == {"macro_auroc", "macro_auroc_min10"}


def test_strict_and_inclusive_accuracy_differ_at_the_threshold_only():
    labels, scores = np.array([[1], [0], [1]]), np.array([[0.5], [0.5], [0.9]])
    assert accuracy(labels, scores, [0.5]).value == pytest.approx(2 / 3)
    assert accuracy(labels, scores, [0.5], strict=True).value == pytest.approx(2 / 3)
    assert accuracy(labels[[0, 2]], scores[[0, 2]], [0.5]).value == 1
    assert accuracy(labels[[0, 2]], scores[[0, 2]], [0.5], strict=True).value == 0.5


def test_rare_and_unscored_classes_are_counted():
    labels, scores = _task()
    metrics, info = task_metrics(labels, scores)
    assert labels[:, 2].sum() < 10 and info["classes"] == [0, 1, 2]
    auroc = [roc_auc_score(labels[:, c], scores[:, c]) for c in range(3)]
    assert metrics["macro_auroc"].value == pytest.approx(np.mean(auroc), abs=1e-9)
    assert metrics["macro_auroc_min10"].value == pytest.approx(np.mean(auroc[:2]), abs=1e-9)
    scores[:, 0] = np.nan  # a probe left it out
    metrics, info = task_metrics(labels, scores)
    assert info["classes"] == [1, 2] and metrics["macro_auroc"].value == pytest.approx(np.mean(auroc[1:]), abs=1e-9)
    with pytest.raises(ValueError, match="'published': use one of corrected"):
        task_metrics(labels, scores, "published")
    with pytest.raises(ValueError, match="no class"):
        task_metrics(labels[:, 3:], scores[:, 3:])


def test_the_mean_over_tasks_weighs_tasks_equally():
    parts = {"form": _task(300, seed=1), "rhythm": _task(80, seed=2, shift=3.0), "none": _task(50, (0, 0, 0, 0))}
    per_task = []
    for task in ("form", "rhythm"):
        labels, scores = parts[task]
        per_task.append(np.mean([roc_auc_score(labels[:, c], scores[:, c]) for c in range(3)]))
    metric = six_task_auroc(parts)
    assert metric.name == "task_mean_macro_auroc" and metric.n_items == 430
    assert metric.value == pytest.approx(np.mean(per_task), abs=1e-9)
    assert usable_tasks(parts) == ["form", "rhythm"]
    assert six_task_auroc(parts, 10).name == "task_mean_macro_auroc_min10"
    with pytest.raises(ValueError, match="none of none has a class"):
        six_task_auroc({"none": parts["none"]})


def task_patients(parts):
    """Patients of the joined items, from task -> (data set, patients of the task's items), as `items_of` names them."""
    return [f"{dataset}:{patient}" for dataset, patients in parts.values() for patient in patients]


def test_records_in_two_tasks_are_resampled_together():
    """Twice the same task is not twice the evidence: its variance is that of one, half of that of two data sets."""
    labels, scores = _task(150, (0.4, 0.3, 0.2, 0.1))
    parts = {"a": (labels, scores), "b": (labels, scores)}

    def variance(datasets):
        patients = task_patients({t: (d, range(150)) for t, d in zip(parts, datasets, strict=True)})
        return bootstrap_values([six_task_auroc(parts)], patients, n_boot=400).var()

    once = bootstrap_values([six_task_auroc({"a": parts["a"]})], [f"ptb-xl/{i}" for i in range(150)], n_boot=400).var()
    assert variance(("ptb-xl", "ptb-xl")) == pytest.approx(once, rel=1e-9)
    assert variance(("ptb-xl", "cpsc2018")) == pytest.approx(once / 2, rel=0.3)


def test_six_tasks_of_the_paper_s_size_and_three_seeds_take_seconds():
    """106 classes over 13,290 test items, 1,000 replicates of six metrics: 3 s on one core."""
    sizes = {"super": (2158, 5), "sub": (2158, 23), "form": (880, 19), "rhythm": (2098, 12), "cpsc": (1376, 9)}
    sizes["csn"] = (4620, 38)
    metrics = [
        six_task_auroc({t: _task(n, np.geomspace(0.4, 0.005, c), k) for k, (t, (n, c)) in enumerate(sizes.items(), s)})
        for s in range(6)
    ]
    patients = task_patients({t: (t if t in ("cpsc", "csn") else "ptb-xl", range(n)) for t, (n, _) in sizes.items()})
    start = time.process_time()
    found = difference(metrics[:3], metrics[3:], patients)
    assert np.isfinite(found.v_items) and time.process_time() - start < 20
