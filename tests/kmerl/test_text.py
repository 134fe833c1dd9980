"""`kmerl.text`: what the small encoder is fitted on. `shared.ecg.prompts`."""

import numpy as np
import pytest

from kmerl.dictionary import dictionary
from kmerl.text import embed
from shared.ecg.prompts import class_texts, prompts
from shared.ecg.tasks import TASKS
from shared.vectors import TextConfig

REPORTS = ["Sinus rhythm. Possible LVH. Abnormal ECG", "Atrial fibrillation. Normal ECG", "Sinus rhythm. Normal ECG"]


def test_lsa_gives_unit_vectors_in_order_and_finds_related_names(tmp_path):
    texts = ["inverted T-waves", "Sinus rhythm", "sinus  RHYTHM", "prolonged QT interval", "xyzzy"]
    vectors = embed(texts, TextConfig("lsa", dim=256), tmp_path, fit_on=REPORTS)
    assert vectors.shape == (5, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert not vectors[4].any()
    names = list(dictionary().names)
    near = embed(names, TextConfig("lsa", dim=256), tmp_path, fit_on=REPORTS) @ vectors.T  # [names, texts]
    assert [names[i] for i in near.argmax(0)[[0, 1, 3]]] == [
        "T wave inversion", "sinus rhythm", "prolonged QT interval"
    ]  # fmt: skip
    assert near[names.index("prolonged PR interval"), 3] < 0.9  # what 128 dimensions cannot tell apart


def test_every_class_has_an_engineered_text_that_is_more_than_its_name():
    wanted = {(name, c.code) for name, task in TASKS.items() for c in task.published_classes}
    assert set(prompts()) == wanted and len(wanted) == 106
    for name, task in TASKS.items():
        plain, engineered = (class_texts(name, task, kind) for kind in ("names", "engineered"))
        assert plain == [c.description for c in task.classes]
        assert all(len(b) > len(a) and len(b) < 300 for a, b in zip(plain, engineered, strict=True))
        assert len(set(engineered)) == len(engineered)
    with pytest.raises(ValueError, match=r"eval\.prompts='best'"):
        class_texts("csn", TASKS["csn"], "best")


def test_engineered_texts_are_free_of_the_published_faults():
    """Rotation the wrong way round, ST elevation in ST depression, fibrillation in flutter, other rhythms in
    the normal one, one text for a code that means different things."""
    text_of = prompts()
    assert "counter" not in text_of["csn", "CR"].lower() and "elevat" not in text_of["csn", "STDD"].lower()
    assert "fibrillation" not in text_of["csn", "AF"].lower() and "escape" in text_of["csn", "VEB"].lower()
    for key in (("csn", "SR"), ("ptb-xl-rhythm", "SR"), ("ptb-xl-superclass", "NORM")):
        assert not {"tachycardia", "bradycardia"} & set(text_of[key].lower().split())
    assert text_of["csn", "STTC"] != text_of["ptb-xl-superclass", "STTC"] != text_of["ptb-xl-subclass", "STTC"]
