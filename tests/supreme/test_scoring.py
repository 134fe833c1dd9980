"""The best of several baselines is chosen on validation, never on test."""

import numpy as np

from shared.metrics.interval import Statistic
from shared.runs.evidence import Scored
from supreme.scoring import best_essl, chosen_essl


def entry(values):
    def constant(value):
        return Statistic("auroc", 1, 4, lambda w, v=value: np.full(len(w), v))

    ids = np.array(["a", "b", "c", "d"])
    return Scored({"auroc": [constant(v) for v in values]}, ids, ids, "simulated", "h")


def test_validation_decides():
    scored = {
        "simclr@probe:ecg~val 0.1": entry([0.7, 0.7]),
        "simclr@probe:ecg 0.1": entry([0.9, 0.9]),
        "byol@probe:ecg~val 0.1": entry([0.8, 0.7]),
        "byol@probe:ecg 0.1": entry([0.6, 0.6]),
        "random-init@probe:ecg~val 0.1": entry([0.99, 0.99]),  # no self-supervised method
        "random-init@probe:ecg 0.1": entry([0.99, 0.99]),
    }
    assert chosen_essl(scored, "0.1") == "byol"
    assert best_essl(scored)["best-essl@probe:ecg 0.1"] is scored["byol@probe:ecg 0.1"]
    assert chosen_essl(scored, "0.01") is None


def test_without_validation_scores_nothing_is_chosen():
    assert best_essl({"simclr@probe:ecg 0.1": entry([0.9])}) == {}
