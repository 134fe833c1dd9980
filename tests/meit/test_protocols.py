"""The two scoring protocols: each published rule against its definition, and what the rules give a useless model."""

from collections import Counter

import numpy as np
import pytest

from meit.protocols import ASSISTANT_TAG, as_published, corrected, meteor_nltk, rouge_set_f1, side_by_side
from shared.metrics.text import document_frequencies, score_texts

# Clinically unrelated pairs: what a model that never looks at the ECG may write.
REFERENCES = [
    "sinus bradycardia with left axis deviation and old inferior infarct.",
    "atrial fibrillation with rapid ventricular response.",
    "ventricular paced rhythm, no further analysis attempted.",
]
UNRELATED = [
    "complete right bundle branch block.",
    "sinus tachycardia, low voltage in the limb leads.",
    "borderline ecg because of early repolarization.",
]
# Prompts of our own writing, as long as the public ones: 19 and 9 words at white space, tags included.
LONG_PROMPT = (
    "<|user|>\nKindly produce a precise report on what this electrocardiogram shows, given its embedded signal "
    "features here please\n<|assistant|>\n"
)
SHORT_PROMPT = "<|user|>\nWrite the report for these ECG embeddings\n<|assistant|>\n"

VOCABULARY = (
    "sinus rhythm normal ecg atrial fibrillation left right axis deviation old infarct st t changes . .".split()
)


def random_texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["ecg " + " ".join(rng.choice(VOCABULARY, rng.integers(6, 16))) for _ in range(n)]


@pytest.fixture(scope="module")
def texts():
    """37 pairs that share about half of their words; batches of 9 leave one of a single sample."""
    references, others = random_texts(37, 0), random_texts(37, 1)
    predictions = [" ".join(r.split()[:6] + o.split()[3:]) for r, o in zip(references, others, strict=True)]
    return references, predictions


def tagged(text: str) -> str:
    return " ".join((ASSISTANT_TAG + text).lower().replace(".", " .").split())


def test_bleu_and_rouge_l_are_means_over_batches(texts):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    scores = as_published(*texts, batch_size=9)
    bleu, rouge = [], []
    for start in range(0, 37, 9):
        gts, res = ({i: [tagged(t)] for i, t in enumerate(side[start : start + 9])} for side in texts)
        bleu.append(Bleu(4).compute_score(gts, res, verbose=0)[0])
        gts, res = ({i: [t[0].replace("|> ", "|>\n")] for i, t in side.items()} for side in (gts, res))
        rouge.append(Rouge().compute_score(gts, res)[0])
    for n in range(4):
        got = scores[f"bleu_{n + 1}@batch9"]
        np.testing.assert_allclose(got.stats[:, 0], np.array(bleu)[:, n], atol=1e-6)
        assert got.value == pytest.approx(np.mean(bleu, axis=0)[n], abs=1e-6)
    np.testing.assert_allclose(scores["rouge_l_coco_spaces@batch9"].stats[:, 0], rouge, atol=1e-9)
    whole = score_texts([tagged(t) for t in texts[0]], [tagged(t) for t in texts[1]], metrics=("bleu",))
    assert (
        abs(whole["bleu_4"].value - scores["bleu_4@batch9"].value) > 1e-3
    )  # a mean of batches is not the corpus value


def test_cider_d_without_idf_is_the_formula_on_raw_counts(texts):
    """10 * mean_n [ sum_g min(h_g, r_g) r_g / (|h| |r|) ] * exp(-(len_h - len_r)^2 / (2 * 6^2)); one sample: 0."""

    def formula(reference, prediction):
        r, h = tagged(reference).split(), tagged(prediction).split()
        cosines = []
        for n in range(1, 5):
            a, b = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (r, h))
            norms = np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
            cosines.append(sum(min(b[g], a[g]) * a[g] for g in a) / norms)
        return 10 * np.mean(cosines) * np.exp(-((len(h) - len(r)) ** 2) / (2 * 6**2))

    values = [formula(r, p) for r, p in zip(*texts, strict=True)]
    expected = [np.mean(values[i : i + 9]) for i in range(0, 36, 9)]
    batches = as_published(*texts, batch_size=9)["cider_d_constant_df@batch9"].stats[:, 0]
    np.testing.assert_allclose(batches, [*expected, 0.0], atol=1e-9)
    assert values[-1] > 0
    assert as_published(*texts, batch_size=37)["cider_d_constant_df@batch37"].value == pytest.approx(np.mean(values))


def test_rouge_of_sets():
    # words a b c d (4) against a b x (3): 2 common; a period and a repeated word count for nothing
    assert rouge_set_f1("a b. c d.", "a a. b x", 1) == pytest.approx(2 * 2 / 7, abs=1e-6)
    # bigrams ab bc cd against aa ab bx: 1 common, across the sentence border too
    assert rouge_set_f1("a b. c d.", "a a. b x", 2) == pytest.approx(1 / 3, abs=1e-6)
    assert rouge_set_f1("", "a", 1) == rouge_set_f1("a", "", 2) == 0


def test_meteor_splits_the_tag_into_three_words():
    # three of four words match in one chunk: P = R = 3/4, penalty 0.5 * (1/3)^3
    assert meteor_nltk("<|assistant|>\nflutter", "<|assistant|>\npaced") == pytest.approx(0.75 * (1 - 0.5 / 27))


def test_rouge_l_counts_a_line_break_as_part_of_a_word():
    assert as_published(["flutter"], ["paced"])["rouge_l_coco_spaces@batch16"].value == 0
    assert as_published(["flutter"], ["paced"], left_in="<|user|>\nwrite\n")["bleu_1@batch16"].value > 0.6
    both = as_published(["flutter now"], ["flutter then"])["rouge_l_coco_spaces@batch16"]
    assert both.value == pytest.approx(0.5)  # "<|assistant|>\nflutter" is one word of two


def test_corrected_is_the_corpus_score_of_the_report_text(texts):
    df = document_frequencies(random_texts(50, 7))
    scores = corrected(*texts, df, metrics=("bleu", "cider_d"))
    expected = score_texts(*texts, df, metrics=("bleu", "cider_d"))
    assert {n: s.value for n, s in scores.items()} == {n: s.value for n, s in expected.items()}
    assert len(scores["bleu_4"].stats) == 37
    with pytest.raises(ValueError, match="1 references hold"):
        corrected([ASSISTANT_TAG + "normal ecg."], ["normal ecg."], df)
    assert corrected(["normal ecg."], [ASSISTANT_TAG + "normal ecg."], df, ("bleu",))["bleu_1"].value == 0.75


@pytest.mark.parametrize(
    ("left_in", "relayed"),  # BLEU-1, BLEU-4, ROUGE-L, ROUGE-1 of the paper reference, "Size of the contamination"
    [
        ("", (0.11, 0.00, 0.12, 0.00)),
        (ASSISTANT_TAG, (0.20, 0.00, 0.12, 0.12)),
        (LONG_PROMPT, (0.71, 0.67, 0.69, 0.70)),
        (SHORT_PROMPT, (0.56, 0.46, 0.48, 0.56)),
    ],
)
def test_text_left_in_inflates_a_useless_model(left_in, relayed):
    table = side_by_side(REFERENCES, UNRELATED, document_frequencies(REFERENCES), left_in).set_index("metric")
    published = table.loc[["BLEU-1", "BLEU-4", "ROUGE-L", "ROUGE-1"], "as_published"]
    np.testing.assert_allclose(published, relayed, atol=0.05)
    clean = table["corrected"]
    assert clean["BLEU-1"] < 0.2 and clean["BLEU-2"] < 0.05 and clean["CIDEr-D"] < 0.3
    if left_in:
        assert (table["as_published"].drop("ROUGE-1") >= clean.drop("ROUGE-1") - 1e-12).all()  # it drops the periods
        assert published["BLEU-1"] > clean["BLEU-1"] + 0.05 and published["ROUGE-1"] > 0.1
    if left_in in (LONG_PROMPT, SHORT_PROMPT):
        assert published["BLEU-4"] > 0.4 > 0.05 > clean["BLEU-4"]
        assert table.loc["CIDEr-D", "as_published"] > 3


def test_the_tag_is_the_one_that_prompts_are_built_with():
    from meit.data import ASSISTANT, prompt_text

    assert ASSISTANT_TAG == ASSISTANT
    assert prompt_text("describe").endswith(ASSISTANT_TAG)
    assert (len(LONG_PROMPT.split()), len(SHORT_PROMPT.split())) == (19, 9)
