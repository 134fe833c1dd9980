"""Reports that name the labels of a supervised ViT."""

import numpy as np
import pytest

from argus.labels import SAID, best_threshold
from shared.metrics.ct_findings import CT_RATE_LABELS, asserted, ct_rate_labels


def test_every_label_is_said_in_words_that_are_read():
    assert tuple(SAID) == CT_RATE_LABELS
    for label, (words, finding) in SAID.items():
        assert asserted(f"There is {words}.") == {(finding,)} and ct_rate_labels(f"There is {words}.") == {(label,)}


def test_threshold_has_the_best_f1():
    rng = np.random.default_rng(0)
    stated = rng.random(60) < 0.3
    scores = rng.normal(size=60) + stated

    def f1(threshold: float) -> float:
        said = scores >= threshold
        return 2 * (said & stated).sum() / (said.sum() + stated.sum())

    assert f1(best_threshold(scores, stated)) == pytest.approx(max(map(f1, scores)))
    assert best_threshold(scores, np.zeros(60, bool)) == np.inf
