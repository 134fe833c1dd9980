"""Inputs by name, and AUROC over the joined items of tasks, against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from kmerl.inputs import PARTIAL, expand
from kmerl.scoring import means, seen_or_not
from shared.metrics.interval import difference
from shared.metrics.six_tasks import items_of, metrics_of
from shared.runs.evidence import Scored
from shared.runs.tasks import mean_of


def test_inputs_unfold():
    names = [i.name for i in expand(["12 leads", "partial/zero", "12 leads~shuffled", "probe:I/zero"], 2)]
    assert names == ["12 leads", *(f"{s}/zero" for s in PARTIAL), "12 leads~shuffled", "probe:I/zero"]
    random = expand(["random"], 2)
    assert len(random) == 22 and [i.mask.sum() for i in random] == [k for k in range(1, 12) for _ in range(2)]
    assert expand(["limb/einthoven+zero"], 1)[0].fill == "einthoven+zero"


@pytest.mark.parametrize("name", ["13 leads", "I~upside-down", "guess:I", "partial~"])
def test_unknown_inputs_are_named(name):
    if name == "partial~":
        assert len(expand([name], 1)) == len(PARTIAL)  # no control at all
        return
    with pytest.raises(ValueError, match=name):
        expand([name], 1)


SEEN = seen_or_not({"a": [1, 0], "b": [0, 1, 1]})


def world(seed=0, n=60):
    """Predictions of one input for two tasks of one data set and their labels; task b knows only some records."""
    rng = np.random.default_rng(seed)
    ids = [f"r{i}" for i in range(n)]
    y = {"a": rng.integers(0, 2, (n, 2)), "b": rng.integers(0, 2, (40, 3))}
    rows = pd.DataFrame({"dataset": "d", "id": ids, "patient": [f"p{i // 2}" for i in range(n)], "input": "I"})
    rows["prediction"] = list(rng.random((n, 5)).astype(np.float16))
    labels = [
        pd.DataFrame({"dataset": "d", "task": t, "id": ids[: len(v)], "part": "test", "reference": list(v)})
        for t, v in y.items()
    ]
    return rows, pd.concat(labels, ignore_index=True), y


def test_items_and_values_agree_with_scikit_learn():
    rows, labels, y = world()
    ids, patients, parts = items_of(rows, labels)
    assert len(ids) == 100 and ids[60] == "b:r0" and patients[60] == "d:p0"
    found, _ = metrics_of(rows, labels, SEEN)
    s = np.stack(rows.prediction).astype(float)
    a = [roc_auc_score(y["a"][:, c], s[:, c]) for c in range(2)]
    b = [roc_auc_score(y["b"][:, c], s[:40, 2 + c]) for c in range(3)]
    expected = {"auroc": (np.mean(a) + np.mean(b)) / 2, "auroc:a": np.mean(a), "auroc:b": np.mean(b)}
    expected |= {"auroc_seen": (a[0] + np.mean(b[1:])) / 2, "auroc_unseen": (a[1] + b[0]) / 2}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-9), name
    np.testing.assert_array_equal(parts["b"][0], np.arange(60, 100))


def test_a_class_that_a_probe_left_out_is_left_out_of_the_mean():
    rows, labels, y = world()
    rows["prediction"] = [np.where(np.arange(5) == 2, np.nan, p).astype(np.float16) for p in rows.prediction]
    found, _ = metrics_of(rows, labels, SEEN)
    s = np.stack(rows.prediction).astype(float)
    assert found["auroc:b"].value == pytest.approx(
        np.mean([roc_auc_score(y["b"][:, c], s[:40, 2 + c]) for c in (1, 2)]), abs=1e-9
    )


def test_means_over_lead_sets_share_the_draws():
    """The mean over lead sets has the interval of the mean, not the mean of intervals."""
    scored = {}
    for k, lead_set in enumerate(PARTIAL):
        rows, labels, _ = world(seed=0)
        rows["prediction"] = list(np.random.default_rng(k).random((len(rows), 5)).astype(np.float16))
        found, patients = metrics_of(rows, labels, SEEN)
        ids, _, _ = items_of(rows, labels)
        scored[f"m@{lead_set}"] = Scored({n: [s, s] for n, s in found.items()}, ids, patients, "simulated", "h")
    mean = means(scored)["m@partial"]
    single = [scored[f"m@{s}"] for s in PARTIAL]
    assert mean.metric("auroc")[0].value == pytest.approx(np.mean([e.metric("auroc")[0].value for e in single]))
    spread = difference(mean.metric("auroc"), None, mean.patients).v_items
    assert spread < max(difference(e.metric("auroc"), None, e.patients).v_items for e in single)
    del scored["m@I"]
    assert "m@partial" not in means(scored), "a mean over some of the clinical sets is not called partial"
    with pytest.raises(ValueError, match="same records"):
        mean_of([single[0], Scored(single[1].scores, single[1].ids[:5], single[1].patients, "simulated", "h")])
