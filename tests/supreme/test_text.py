"""`supreme.text`: what the small encoder is fitted on."""

import numpy as np

from shared.vectors import TextConfig
from supreme import text
from supreme.terminology import terminology
from supreme.text import embed

REPORTS = ["Sinus rhythm. Possible LVH. Abnormal ECG", "Atrial fibrillation. Normal ECG", "Sinus rhythm. Normal ECG"]


def test_lsa_gives_unit_vectors_in_order_and_finds_related_terms(tmp_path):
    texts = ["T wave inversion", "Sinus rhythm", "sinus  RHYTHM", "QT interval is prolonged", "xyzzy"]
    cfg, names = TextConfig("lsa", dim=256), [term.preferred for term in terminology()]
    vectors = embed(texts, cfg, tmp_path, fit_on=REPORTS)
    assert vectors.shape == (5, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert not vectors[4].any()
    near = embed(names, cfg, tmp_path, fit_on=REPORTS) @ vectors.T  # [names, texts]
    found = [names[i] for i in near.argmax(0)[[0, 1, 3]]]
    assert found == ["inverted T waves", "sinus rhythm", "prolonged QT interval"]


def test_every_term_can_be_told_from_every_other(tmp_path):
    names = [term.preferred for term in terminology()]
    vectors = embed(names, TextConfig("lsa", dim=256), tmp_path, fit_on=REPORTS)
    cosines = vectors @ vectors.T - np.eye(len(names))
    assert np.linalg.norm(vectors, axis=1).min() > 0.99 and cosines.max() < 0.999


def test_statements_of_the_reports_are_part_of_the_fit(tmp_path):
    corpus = text._corpus([*REPORTS, "Sinus rhythm with  rate 72 bpm. ** ABNORMAL EKG **"])
    assert {"possible lvh", "sinus rhythm with rate <num>", "abnormal ecg"} <= set(corpus)
    assert all(term.preferred.lower() in corpus for term in terminology())
    assert corpus == sorted(set(corpus))
