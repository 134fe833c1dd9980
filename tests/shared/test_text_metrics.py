"""Every text metric against a second implementation on random report-like pairs; empty, equal and bad input."""

import time

import numpy as np
import pytest

from shared.metrics import text as metrics
from shared.metrics.text import bert_scores, document_frequencies, score_texts, tokenize

WORDS = (
    "sinus rhythm rhythms normal abnormal ecg atrial fibrillation with rapid ventricular response left right bundle "
    "branch block blocks axis deviation possible possibly probable old inferior infarct infarction st t wave waves "
    "changes prolonged qt 0.5 mv , - überleitungsstörung linkstyp sinusrhythmus nicht ausgeschlossen"
).split()


def random_reports(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"{' '.join(rng.choice(WORDS, rng.integers(1, 9)))}." for _ in range(rng.integers(1, 5)))
        for _ in range(n)
    ]


def random_pairs(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """References and hypotheses that share most words: each word is dropped, swapped or kept, some repeated."""
    rng = np.random.default_rng(seed)
    references = random_reports(n, seed)
    hypotheses = []
    for reference in references:
        words = [w if u > 0.25 else str(rng.choice(WORDS)) for w in reference.split() if (u := rng.random()) > 0.1]
        hypotheses.append(" ".join(words + words[: rng.integers(0, 4)]) or "normal ecg.")
    return references, hypotheses


@pytest.fixture(scope="module")
def pairs():
    return random_pairs(60)


@pytest.fixture(scope="module")
def coco(pairs):
    """The pairs in the form of pycocoevalcap, tokenised."""
    references, hypotheses = pairs
    gts = {i: [" ".join(tokenize(r))] for i, r in enumerate(references)}
    return gts, {i: [" ".join(tokenize(h))] for i, h in enumerate(hypotheses)}


@pytest.fixture(scope="module")
def scores(pairs):
    references, hypotheses = pairs
    return score_texts(references, hypotheses, document_frequencies(references), ("bleu", "rouge", "cider_d"))


def per_item(score):
    return score.stats[:, 0] / score.stats[:, 1]


def test_tokenizer():
    assert tokenize("Sinus rhythm.  Normal\nECG 0.5 mV") == ["sinus", "rhythm", ".", "normal", "ecg", "0", ".5", "mv"]
    assert tokenize(" ") == []


def test_bleu_equals_sacrebleu_and_coco(pairs, coco, scores):
    import sacrebleu
    from pycocoevalcap.bleu.bleu import Bleu

    tokenised = [[" ".join(tokenize(t)) for t in texts] for texts in pairs]
    coco_bleu, _ = Bleu(4).compute_score(*coco, verbose=0)
    for order in range(1, 5):
        other = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        expected = other.corpus_score(tokenised[1], [tokenised[0]]).score / 100
        assert scores[f"bleu_{order}"].value == pytest.approx(expected, abs=1e-9)
        assert scores[f"bleu_{order}"].value == pytest.approx(coco_bleu[order - 1], abs=1e-6)
    assert 0.2 < scores["bleu_4"].value < 0.9  # the pairs are neither trivial nor unrelated


def test_bleu_brevity_penalty_and_missing_order():
    short = score_texts(["a b c d e f g h"], ["a b c d"], metrics=("bleu",))
    assert short["bleu_4"].value == pytest.approx(np.exp(1 - 8 / 4))
    unrelated = score_texts(["a b c d e"], ["a x c y e"], metrics=("bleu",))
    assert unrelated["bleu_1"].value == pytest.approx(0.6)
    assert unrelated["bleu_2"].value == 0


def test_bleu_is_a_function_of_sums(pairs, scores):
    """Reducing the sums of a resample equals scoring the resampled texts: what the bootstrap relies on."""
    references, hypotheses = pairs
    draw = np.random.default_rng(1).integers(len(references), size=(3, len(references)))
    resampled = scores["bleu_4"].reduce(scores["bleu_4"].stats[draw].sum(axis=1))
    for row, value in zip(draw, resampled, strict=True):
        again = score_texts([references[i] for i in row], [hypotheses[i] for i in row], metrics=("bleu",))
        assert again["bleu_4"].value == pytest.approx(value, abs=1e-12)


def test_rouge_equals_rouge_score(pairs, scores):
    from rouge_score.rouge_scorer import RougeScorer

    class Tokenizer:
        def tokenize(self, text):
            return tokenize(text)

    other = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Tokenizer())
    expected = [other.score(r, h) for r, h in zip(*pairs, strict=True)]
    for ours, theirs in (("rouge_1_f1", "rouge1"), ("rouge_2_f1", "rouge2"), ("rouge_l_f1", "rougeL")):
        np.testing.assert_allclose(per_item(scores[ours]), [e[theirs].fmeasure for e in expected], atol=1e-9)


def test_rouge_l_and_cider_equal_coco(coco, scores):
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    np.testing.assert_allclose(per_item(scores["rouge_l_coco"]), Rouge().compute_score(*coco)[1], atol=1e-9)
    np.testing.assert_allclose(per_item(scores["cider_d"]), Cider().compute_score(*coco)[1], atol=1e-9)
    assert scores["cider_d"].value > 1


def test_cider_uses_the_given_document_frequencies(pairs, scores):
    references, hypotheses = pairs
    df = document_frequencies(random_reports(200, seed=5))
    assert df.n_documents == 200
    assert df.counts[("sinus",)] == sum("sinus" in tokenize(r) for r in random_reports(200, seed=5))
    other = score_texts(references, hypotheses, df, ("cider_d",))["cider_d"].value
    assert abs(other - scores["cider_d"].value) > 1e-3


def test_meteor_exact_stem_equals_a_plain_one(pairs):
    """Second implementation: matches as in NLTK (latest first, exact before stem), score by Lavie & Agarwal 2007."""
    from nltk.stem.porter import PorterStemmer

    def plain(reference, hypothesis):
        links, stem = {}, PorterStemmer().stem
        for key in (str, stem):
            for i in reversed(range(len(hypothesis))):
                free = [j for j in range(len(reference)) if j not in links.values() and i not in links]
                equal = [j for j in free if key(reference[j]) == key(hypothesis[i])]
                if equal:
                    links[i] = equal[-1]
        if not links:
            return 0.0
        p, r = len(links) / len(hypothesis), len(links) / len(reference)
        chunks = sum(links.get(i - 1, -9) != links[i] - 1 for i in links)
        return p * r / (0.9 * p + 0.1 * r) * (1 - 0.5 * (chunks / len(links)) ** 3)

    score = score_texts(*pairs, metrics=("meteor_exact_stem",))["meteor_exact_stem"]
    expected = [plain(tokenize(r), tokenize(h)) for r, h in zip(*pairs, strict=True)]
    np.testing.assert_allclose(per_item(score), expected, atol=1e-12)
    stemmed = score_texts(["sinus rhythm"], ["sinus rhythms"], metrics=("meteor_exact_stem",))
    assert stemmed["meteor_exact_stem"].value == pytest.approx(1 - 0.5 / 8)


@pytest.fixture(scope="module")
def coco_meteor(coco):
    """METEOR of each pair by pycocoevalcap."""
    if metrics.meteor_jar() is None:
        pytest.skip("no java or no METEOR 1.5 jar here")
    from pycocoevalcap.meteor.meteor import Meteor

    java = Meteor()
    try:
        return java.compute_score(*coco)[1]
    finally:  # its own __del__ leaves the pipes open
        java.meteor_p.kill()
        java.meteor_p.wait()
        java.meteor_p.stdout.close()
        java.meteor_p.stderr.close()


@pytest.mark.parametrize("pairs_of_a_process", [metrics.METEOR_PAIRS, 1])
def test_meteor_15_equals_pycocoevalcap(pairs, coco_meteor, monkeypatch, pairs_of_a_process):
    monkeypatch.setattr(metrics, "METEOR_PAIRS", pairs_of_a_process)
    monkeypatch.setattr(metrics.os, "cpu_count", lambda: 3)
    references, hypotheses = ([*texts, empty] for texts, empty in zip(pairs, ("normal ecg.", "  "), strict=True))
    score = score_texts(references, hypotheses, metrics=("meteor",))["meteor_1.5"]
    np.testing.assert_allclose(per_item(score)[:-1], coco_meteor, atol=1e-6)
    assert per_item(score)[-1] == 0


def test_meteor_without_java(pairs, monkeypatch):
    monkeypatch.setattr(metrics.shutil, "which", lambda name: None)
    assert list(score_texts(*pairs, metrics=("meteor",))) == ["meteor_exact_stem"]
    with pytest.raises(RuntimeError, match="java"):
        score_texts(*pairs, metrics=("meteor_1.5",))


def test_a_failing_meteor_process_is_an_error(pairs, monkeypatch, tmp_path):
    if metrics.meteor_jar() is None:
        pytest.skip("no java or no METEOR 1.5 jar here")
    monkeypatch.setattr(metrics, "meteor_jar", lambda: tmp_path / "absent.jar")
    with pytest.raises(RuntimeError, match=r"absent\.jar"):
        score_texts(*pairs, metrics=("meteor_1.5",))


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A random 3-layer BERT with a word-level vocabulary, saved as a local folder."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    folder.mkdir()
    words = sorted({w.lower() for w in WORDS} | {".", "0", "5"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    return folder


def test_bertscore_equals_own_computation(pairs, tiny_bert, tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    references, hypotheses = [p[:20] for p in pairs]
    ours = bert_scores(references, [*hypotheses[:-1], ""], str(tiny_bert), layer=2)
    model, tokenizer = AutoModel.from_pretrained(tiny_bert).eval(), AutoTokenizer.from_pretrained(tiny_bert)

    def embed(text):  # [n_tokens, hidden] without [CLS] and [SEP], unit rows
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2]
        rows = hidden[0].double().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    for i, (reference, hypothesis) in enumerate(zip(references[:-1], hypotheses, strict=False)):
        r, h = embed(reference), embed(hypothesis)
        similarity = h @ r.T
        inner = (slice(1, -1), slice(1, -1))
        # bert-score matches against every token but gives [CLS] and [SEP] no weight; as best matches they do count
        precision, recall = similarity.max(axis=1)[1:-1].mean(), similarity.max(axis=0)[1:-1].mean()
        assert precision >= similarity[inner].max(axis=1).mean() - 1e-12
        got = [per_item(ours[f"bertscore_{part}_tiny-bert_layer2_raw"])[i] for part in ("p", "r", "f1")]
        np.testing.assert_allclose(got, [precision, recall, 2 * precision * recall / (precision + recall)], atol=1e-5)
    assert all(per_item(s)[-1] == 0 for s in ours.values())

    baseline = tmp_path / "baseline.tsv"
    baseline.write_text("LAYER,P,R,F\n0,0,0,0\n1,0,0,0\n2,0.2,0.4,0.3\n3,0,0,0\n")
    scaled = bert_scores(references, hypotheses, str(tiny_bert), layer=2, rescale=True, baseline=baseline)
    raw = per_item(ours["bertscore_f1_tiny-bert_layer2_raw"])[:-1]
    np.testing.assert_allclose(
        per_item(scaled["bertscore_f1_tiny-bert_layer2_rescaled"])[:-1], (raw - 0.3) / 0.7, atol=1e-5
    )
    with pytest.raises(ValueError, match="Baseline not Found"):
        bert_scores(references, hypotheses, str(tiny_bert), layer=2, rescale=True)


def test_empty_and_equal_texts():
    references = ["sinus rhythm. normal ecg.", "atrial fibrillation with rapid response.", ""]
    df = document_frequencies(references[:2])
    wanted = ("bleu", "rouge", "cider_d", "meteor_exact_stem")
    for hypotheses in (["", "", ""], [" ", "\n", "."]):
        empty = score_texts(references, hypotheses, df, wanted)
        assert all(np.isfinite(s.value) for s in empty.values())
        assert all(empty[name].value == 0 for name in ("bleu_2", "rouge_2_f1"))
    assert all(s.value == 0 for s in score_texts(references, ["", "", ""], df, wanted).values())
    equal = score_texts(references[:2], references[:2], df, wanted)
    for name in ("bleu_1", "bleu_4", "rouge_1_f1", "rouge_2_f1", "rouge_l_f1", "rouge_l_coco"):
        assert equal[name].value == pytest.approx(1)
    assert equal["cider_d"].value == pytest.approx(10)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        score_texts(["a", "b"], ["a"], metrics=("bleu",))
    with pytest.raises(ValueError, match="nothing to score"):
        score_texts([], [], metrics=("bleu",))
    with pytest.raises(ValueError, match="cider_d needs df"):
        score_texts(["a"], ["a"])
    with pytest.raises(ValueError, match="spice"):
        score_texts(["a"], ["a"], metrics=("spice",))
    with pytest.raises(ValueError, match="at least one training reference"):
        document_frequencies([])


def test_a_thousand_pairs_take_less_than_two_seconds():
    references, hypotheses = random_pairs(1000, seed=3)
    df = document_frequencies(references)
    start = time.process_time()
    score_texts(references, hypotheses, df, ("bleu", "rouge", "cider_d"))
    assert time.process_time() - start < 2
