"""`shared.vectors`: each unique text once, kept on disk; the small encoder, which is fitted, and frozen models."""

import numpy as np
import pytest
import torch

from shared import vectors
from shared.vectors import TextConfig, cached

REPORTS = ["Sinus rhythm. Possible LVH. Abnormal ECG", "Atrial fibrillation. Normal ECG", "Sinus rhythm. Normal ECG"]
LSA = TextConfig("lsa", dim=2)


def load(name):
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)


def embed(texts, cfg, folder, fit_on=()):
    return vectors.embed(texts, cfg, folder, fit_on, load=load, corpus=sorted)


def test_lsa_is_the_same_again_and_from_disk(tmp_path, monkeypatch):
    first = embed(REPORTS, LSA, tmp_path / "a", fit_on=REPORTS)
    np.testing.assert_allclose(embed(REPORTS, LSA, tmp_path / "b", fit_on=REPORTS[::-1]), first, atol=1e-6)
    monkeypatch.setattr(vectors.Lsa, "__call__", lambda self, texts: pytest.fail("encoded twice"))
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
        (TextConfig("lsa", dim=50_000), REPORTS, "text.dim=50000 needs more than"),
        (TextConfig("lsa", pooling="max"), REPORTS, "text.pooling='max': one of pooler, mean, cls"),
    ],
)
def test_bad_configs_are_named(tmp_path, cfg, fit_on, message):
    with pytest.raises(ValueError, match=message):
        embed(["LVH"], cfg, tmp_path, fit_on=fit_on)


# --- a model of the hub


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folder of a random two-layer BERT with a WordPiece tokenizer, as MedCPT is one."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"sinus rhythm normal ecg atrial possible lvh . ##s".split()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_a_model_of_the_hub_pools_as_told_whatever_the_batch(bert, tmp_path, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["Sinus rhythm", "normal ECG . possible LVH . sinus rhythm", "atrial"]
    found = embed(texts, TextConfig(str(bert), pooling=pooling, batch=3), tmp_path / "three")
    alone = embed(texts, TextConfig(str(bert), pooling=pooling, batch=1), tmp_path / "one")
    assert found.shape == (3, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=1e-5)
    tokens = AutoTokenizer.from_pretrained(bert)(texts[1].lower(), return_tensors="pt")
    with torch.no_grad():
        out = AutoModel.from_pretrained(bert)(**tokens)
    last = out.last_hidden_state[0]
    wanted = {"pooler": out.pooler_output[0], "mean": last.mean(0), "cls": last[0]}[pooling]
    np.testing.assert_allclose(found[1], wanted.numpy(), atol=1e-5)


def test_long_texts_are_cut(bert, tmp_path):
    cfg = TextConfig(str(bert), pooling="mean", max_length=6)
    long, short = embed(["normal ecg " * 100, "normal ecg normal ecg"], cfg, tmp_path)
    np.testing.assert_allclose(long, short, atol=1e-6)


def test_a_model_is_loaded_only_for_new_texts(bert, tmp_path, monkeypatch):
    cfg = TextConfig(str(bert))
    first = embed(["sinus rhythm", "atrial"], cfg, tmp_path)
    monkeypatch.setitem(globals(), "load", lambda name: pytest.fail("loaded for nothing"))
    np.testing.assert_array_equal(embed(["Atrial", "sinus rhythm"], cfg, tmp_path), first[::-1])


def test_another_pooling_is_another_vector(bert, tmp_path):
    cls, mean = (embed(["sinus rhythm"], TextConfig(str(bert), pooling=p), tmp_path) for p in ("cls", "mean"))
    assert not np.allclose(cls, mean, atol=1e-3)


def test_a_model_goes_to_the_gpu_of_its_process(monkeypatch):
    class Model:
        def to(self, place, dtype):
            raise LookupError(place)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(LookupError, match="cuda:3"):
        vectors.Frozen(TextConfig("x"), lambda name: (None, Model()))(["LVH"])
