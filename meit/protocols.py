"""MEIT's two scoring protocols (reference: Evaluation protocols): `as_published` and `corrected`.

as_published, what the public code computes:
  - both texts keep what decoding leaves in front of the report: the assistant tag (main scripts) or the whole prompt
    (zero-shot script). Identical words on both sides are matched, so even a useless model scores.
  - BLEU-1..4 within a batch of 16 (MIMIC; 32 for PTB-XL), then the unweighted mean over batches, a short last one too.
    (A batch without any common n-gram of some order scores 0 here, about 1e-4 in the public code.)
  - ROUGE-L of the COCO evaluation, which splits at spaces only: a line break glues the tag to the first word of the
    report, so the tag alone does not count. (Derived: this reading gives the reference's contamination table, splitting
    at all white space does not.)
  - ROUGE-1/2 of the package `rouge`, which compares SETS of n-grams, without periods.
  - METEOR of NLTK on NLTK's word tokens, here without WordNet synonyms (its data are a separate download).
  - CIDEr-D with a document frequency of 1 for every n-gram: the IDF is log(batch size) everywhere and cancels, except
    that it is 0 in a last batch of one sample, which therefore scores 0.
  - references as they were trained on: truncated to the token window. The caller passes them truncated.
  BERTScore is a mean over items under both protocols: call `shared.metrics.text.bert_scores` on the texts in question.
corrected: the report text only, full references, corpus level, document frequencies from the training references.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from shared.metrics.interval import Scores, mean_scores
from shared.metrics.text import (
    DEFAULT_METRICS,
    ROUGE_COCO_BETA,
    DocumentFrequencies,
    lcs_length,
    meteor_exact_stem,
    score_texts,
    tokenize,
)

VERSION = 1
ASSISTANT_TAG = "<|assistant|>\n"
BATCH_SIZE = {"mimic-iv-ecg": 16, "ptb-xl": 32}  # evaluation batches of the public scripts

# Rows of a comparison: label, name under as_published, name under corrected. One METEOR, so that only protocols differ.
COMPARED = (
    *((f"BLEU-{n}", f"bleu_{n}", f"bleu_{n}") for n in range(1, 5)),
    ("METEOR", "meteor_nltk_exact_stem", "meteor_exact_stem"),
    ("ROUGE-1", "rouge_1_set_f1", "rouge_1_f1"),
    ("ROUGE-2", "rouge_2_set_f1", "rouge_2_f1"),
    ("ROUGE-L", "rouge_l_coco_spaces", "rouge_l_coco"),
    ("CIDEr-D", "cider_d_constant_df", "cider_d"),
)


def corrected(
    references: Sequence[str],
    predictions: Sequence[str],
    df: DocumentFrequencies,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, Scores]:
    """Corpus-level scores of report texts. df: `document_frequencies` of the training references.

    Errors: ValueError where a reference still holds the assistant tag (a prediction may: then the model wrote it).
    """
    tagged = sum(ASSISTANT_TAG.strip() in text for text in references)
    if tagged:
        raise ValueError(f"{tagged} references hold {ASSISTANT_TAG.strip()!r}: pass the report text only")
    return score_texts(references, predictions, df, metrics)


def as_published(
    references: Sequence[str],
    predictions: Sequence[str],
    left_in: str = ASSISTANT_TAG,
    batch_size: int = BATCH_SIZE["mimic-iv-ecg"],
) -> dict[str, Scores]:
    """Scores by the public code's rules; the items of each `Scores` are BATCHES, in order: value = mean over batches.

    references, predictions: report texts, in the order of scoring; references cut to the training window.
    left_in: text that both sides keep in front: ASSISTANT_TAG, or the whole prompt ending in it (zero-shot script).
    Keys are "<metric>@batch<size>"; `stats[:, 0]` are the values per batch.
    """
    references, predictions = [left_in + text for text in references], [left_in + text for text in predictions]
    # With df 1 for all n-grams any n_documents > 1 gives the same cosines.
    scored = score_texts(references, predictions, DocumentFrequencies(2, {}), ("bleu", "cider_d"))
    scored["cider_d_constant_df"] = scored["cider_d"]
    pairs = list(zip(references, predictions, strict=True))
    for name, values in (
        ("rouge_l_coco_spaces", [rouge_l_spaces(r, p) for r, p in pairs]),
        ("meteor_nltk_exact_stem", [meteor_nltk(r, p) for r, p in pairs]),
        ("rouge_1_set_f1", [rouge_set_f1(r, p, 1) for r, p in pairs]),
        ("rouge_2_set_f1", [rouge_set_f1(r, p, 2) for r, p in pairs]),
    ):
        scored[name] = mean_scores(name, VERSION, values)
    starts = np.arange(0, len(pairs), batch_size)
    batched = {}
    for _, name, _ in COMPARED:
        values = scored[name].reduce(np.add.reduceat(scored[name].stats, starts, axis=0))  # [n_batches]
        if name == "cider_d_constant_df" and starts[-1] == len(pairs) - 1:
            values[-1] = 0.0  # log(1) = 0: no n-gram of a one-sample batch has any weight
        label = f"{name}@batch{batch_size}"
        batched[label] = mean_scores(label, VERSION, values)
    return batched


def meteor_nltk(reference: str, prediction: str) -> float:
    """METEOR of NLTK on NLTK's word tokens, which split the tag into three; exact and stem matches."""
    from nltk.tokenize import NLTKWordTokenizer

    # Periods are set apart first: NLTK's word_tokenize does it with a sentence splitter that needs a download.
    split = NLTKWordTokenizer().tokenize
    return meteor_exact_stem(split(" ".join(tokenize(reference))), split(" ".join(tokenize(prediction))))


def rouge_l_spaces(reference: str, prediction: str) -> float:
    """ROUGE-L of the COCO evaluation (beta 1.2) on words split at spaces only; line breaks stay within words."""
    r, p = (re.sub(" +", " ", text.lower().replace(".", " .")).split(" ") for text in (reference, prediction))
    precision, recall = (lcs_length(r, p) / len(side) for side in (p, r))
    return (1 + ROUGE_COCO_BETA**2) * precision * recall / max(recall + ROUGE_COCO_BETA**2 * precision, 1e-12)


def rouge_set_f1(reference: str, prediction: str, order: int) -> float:
    """ROUGE-n as the package `rouge` has it: F1 on sets of n-grams; periods end sentences and are no words."""
    sides = []
    for text in (reference, prediction):
        words = text.lower().replace(".", " ").split()
        sides.append({tuple(words[i : i + order]) for i in range(len(words) - order + 1)})
    precision, recall = (len(sides[0] & sides[1]) / max(len(side), 1) for side in (sides[1], sides[0]))
    return 2 * precision * recall / (precision + recall + 1e-8)


def side_by_side(
    references: Sequence[str],
    predictions: Sequence[str],
    df: DocumentFrequencies,
    left_in: str = ASSISTANT_TAG,
    batch_size: int = BATCH_SIZE["mimic-iv-ecg"],
) -> pd.DataFrame:
    """Both protocols on the same texts: one row per metric of the paper, the exact name and the value under each."""
    published = as_published(references, predictions, left_in, batch_size)
    clean = corrected(references, predictions, df, ("bleu", "rouge", "cider_d", "meteor_exact_stem"))
    rows = []
    for metric, published_name, clean_name in COMPARED:
        theirs, ours = published[f"{published_name}@batch{batch_size}"], clean[clean_name]
        rows.append((metric, theirs.name, theirs.value, ours.name, ours.value))
    return pd.DataFrame(rows, columns=["metric", "as_published_name", "as_published", "corrected_name", "corrected"])
