"""`kmerl.text`: each unique text once, kept on disk; the small encoder and models of the hub. `shared.ecg.prompts`."""

import numpy as np
import pytest

from kmerl import text
from kmerl.dictionary import dictionary
from kmerl.text import TextConfig, embed
from shared.ecg.prompts import class_texts, prompts
from shared.ecg.tasks import TASKS
from shared.vectors import cached

REPORTS = ["Sinus rhythm. Possible LVH. Abnormal ECG", "Atrial fibrillation. Normal ECG", "Sinus rhythm. Normal ECG"]
LSA = TextConfig("lsa", dim=48)


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


def test_lsa_is_the_same_again_and_from_disk(tmp_path, monkeypatch):
    first = embed(REPORTS, LSA, tmp_path / "a", fit_on=REPORTS)
    np.testing.assert_allclose(embed(REPORTS, LSA, tmp_path / "b", fit_on=REPORTS[::-1]), first, atol=1e-6)
    monkeypatch.setattr(text.Lsa, "__call__", lambda self, texts: pytest.fail("encoded twice"))
    np.testing.assert_array_equal(embed(REPORTS[::-1], LSA, tmp_path / "a", fit_on=REPORTS), first[::-1])
    assert not list(tmp_path.rglob("*.pkl")) and list(tmp_path.rglob("components.npy"))


def test_another_fit_is_another_encoder(tmp_path):
    first = embed(["Sinus rhythm"], LSA, tmp_path, fit_on=REPORTS)
    other = embed(["Sinus rhythm"], LSA, tmp_path, fit_on=[*REPORTS, "Baseline wander in lead V3"])
    assert not np.allclose(first, other, atol=1e-4)


def test_each_unique_text_is_encoded_once_and_a_kill_loses_one_shard(tmp_path):
    seen = []

    def encode(texts):
        if len(seen) + len(texts) > limit:
            raise KeyboardInterrupt
        seen.extend(texts)
        return np.array([[len(t), hash(t) % 97] for t in texts], dtype=np.float32)

    texts, limit = [f"text {i}" for i in range(300)], 150
    with pytest.raises(KeyboardInterrupt):
        cached(texts, encode, tmp_path, batch=2)  # shards of 128
    (tmp_path / "000001.npy").write_bytes(b"rubbish of the kill")
    done, limit = len(seen), 1000
    assert done > 128
    vectors = cached(texts[::-1], encode, tmp_path, batch=2)
    assert len(seen) == done + (300 - 128)
    np.testing.assert_array_equal(vectors[:, 0], [len(t) for t in texts[::-1]])
    limit = 0
    np.testing.assert_array_equal(cached(texts, encode, tmp_path, batch=2), vectors[::-1])


@pytest.mark.parametrize(
    ("cfg", "fit_on", "message"),
    [
        (TextConfig("lsa"), None, "must be fitted"),
        (TextConfig("lsa", dim=5000), REPORTS, "text.dim=5000 needs more than"),
        (TextConfig("lsa", pooling="max"), REPORTS, "text.pooling='max': one of pooler, mean, cls"),
    ],
)
def test_bad_configs_are_named(tmp_path, cfg, fit_on, message):
    with pytest.raises(ValueError, match=message):
        embed(["LVH"], cfg, tmp_path, fit_on=fit_on)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folder of a random two-layer BERT with a WordPiece tokenizer, as Med-CPT is one."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"sinus rhythm normal ecg atrial possible lvh . ##s".split()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_a_model_of_the_hub_pools_as_told_whatever_the_batch(bert, tmp_path, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["Sinus rhythm", "normal ECG . possible LVH . sinus rhythm", "atrial"]
    vectors = embed(texts, TextConfig(str(bert), pooling=pooling, batch=3), tmp_path / "three")
    alone = embed(texts, TextConfig(str(bert), pooling=pooling, batch=1), tmp_path / "one")
    assert vectors.shape == (3, 24) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    tokens = AutoTokenizer.from_pretrained(bert)(texts[1].lower(), return_tensors="pt")
    with torch.no_grad():
        out = AutoModel.from_pretrained(bert)(**tokens)
    wanted = {"pooler": out.pooler_output[0], "mean": out.last_hidden_state[0].mean(0),
              "cls": out.last_hidden_state[0, 0]}[pooling]  # fmt: skip
    np.testing.assert_allclose(vectors[1], wanted.numpy(), atol=1e-5)


def test_a_model_is_loaded_only_for_new_texts(bert, tmp_path, monkeypatch):
    cfg = TextConfig(str(bert))
    first = embed(["sinus rhythm", "atrial"], cfg, tmp_path)
    monkeypatch.setattr(text._Model, "_load", lambda self: pytest.fail("loaded for nothing"))
    np.testing.assert_array_equal(embed(["Atrial", "sinus rhythm"], cfg, tmp_path), first[::-1])


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
    """Trap 20: rotation the wrong way round, ST elevation in ST depression, fibrillation in flutter, other rhythms in
    the normal one, one text for a code that means different things."""
    text_of = prompts()
    assert "counter" not in text_of["csn", "CR"].lower() and "elevat" not in text_of["csn", "STDD"].lower()
    assert "fibrillation" not in text_of["csn", "AF"].lower() and "escape" in text_of["csn", "VEB"].lower()
    for key in (("csn", "SR"), ("ptb-xl-rhythm", "SR"), ("ptb-xl-superclass", "NORM")):
        assert not {"tachycardia", "bradycardia"} & set(text_of[key].lower().split())
    assert text_of["csn", "STTC"] != text_of["ptb-xl-superclass", "STTC"] != text_of["ptb-xl-subclass", "STTC"]
