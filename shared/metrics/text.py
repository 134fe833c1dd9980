"""Text metrics of generated reports: BLEU, ROUGE, CIDEr-D, METEOR, BERTScore; corpus-level, versioned, one reference.

Serves the report tasks of all papers. Every metric is a `Scores`: per-item statistics whose SUM gives the corpus value,
so that a bootstrap is one matrix product. BLEU sums n-gram counts; all others are means over items.

One tokenizer for everything but BERTScore (which has its encoder's own): lower-case, "." becomes " .", split at white
space, as MEIT's public scoring does. A decimal "0.5" therefore becomes "0", ".5"; it does so on both sides.

Names state the variant, since variants differ by several points:
  bleu_1 .. bleu_4      corpus BLEU, brevity penalty, no smoothing                          (= sacreBLEU, tokenize none)
  rouge_1_f1, rouge_2_f1, rouge_l_f1   F1 on clipped n-gram counts and on the LCS           (= rouge-score, no stemming)
  rouge_l_coco          LCS F with beta = 1.2                                               (= COCO caption evaluation)
  cider_d               CIDEr-D, sigma 6, times 10, document frequencies GIVEN              (= COCO caption evaluation)
  meteor_1.5            METEOR 1.5 (Java): exact, stem, synonym, paraphrase; English        (mean of segment scores)
  meteor_exact_stem     METEOR of NLTK with exact and stem matches only, synonyms off       (mean of segment scores)
  bertscore_{p,r,f1}_<encoder>_layer<k>_<raw|rescaled>
An empty prediction scores 0 everywhere.
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from shared.metrics.interval import Scores, mean_scores

VERSION = 1  # raise it whenever any number below can change
MAX_ORDER = 4  # longest n-gram of BLEU and CIDEr-D
CIDER_SIGMA = 6.0  # words; Vedantam 2015, section 4 (CIDEr-D)
ROUGE_COCO_BETA = 1.2  # weight of recall in the COCO caption evaluation
DEFAULT_METRICS = ("bleu", "rouge", "cider_d", "meteor")
METEOR_TIMEOUT_S = 3600
METEOR_PAIRS = 2000  # of one process at least: each reads its tables anew, which takes seconds


def tokenize(text: str) -> list[str]:
    """The one tokenizer: lower-case, "." set apart from what precedes it, split at white space."""
    return text.lower().replace(".", " .").split()


def count_ngrams(tokens: Sequence[str]) -> Counter:
    """How often each n-gram of 1 to MAX_ORDER tokens occurs; keys are tuples."""
    each = (zip(*(tokens[i:] for i in range(n)), strict=False) for n in range(1, MAX_ORDER + 1))
    return Counter(chain.from_iterable(each))


# --- document frequencies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of `n_documents` references each n-gram occurs."""

    n_documents: int
    counts: dict[tuple[str, ...], int]


def document_frequencies(references: Sequence[str]) -> DocumentFrequencies:
    """Document frequencies over TRAINING references, each reference being one document ("image" in CIDEr's words)."""
    if not len(references):
        raise ValueError("document frequencies need at least one training reference")
    counts = Counter()
    for reference in references:
        counts.update(count_ngrams(tokenize(reference)).keys())
    return DocumentFrequencies(len(references), dict(counts))


# --- n-gram metrics ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Tokenised pairs and what BLEU and ROUGE-n share. matches, totals: [n_items, MAX_ORDER] counts of n-grams."""

    references: list[list[str]]
    hypotheses: list[list[str]]
    reference_ngrams: list[Counter]
    hypothesis_ngrams: list[Counter]
    matches: np.ndarray  # n-grams of the hypothesis found in the reference, each at most as often as there
    hypothesis_totals: np.ndarray
    reference_totals: np.ndarray


def _prepare(references: Sequence[str], hypotheses: Sequence[str]) -> _Pairs:
    tokens = {text: tokenize(text) for text in {*references, *hypotheses}}  # each distinct text once
    ngrams = {text: count_ngrams(found) for text, found in tokens.items()}
    reference_tokens, hypothesis_tokens = ([tokens[text] for text in texts] for texts in (references, hypotheses))
    reference_ngrams, hypothesis_ngrams = ([ngrams[text] for text in texts] for texts in (references, hypotheses))
    matches = np.zeros((len(references), MAX_ORDER))
    for row, hypothesis, reference in zip(matches, hypothesis_ngrams, reference_ngrams, strict=True):
        for ngram in hypothesis.keys() & reference.keys():
            row[len(ngram) - 1] += min(hypothesis[ngram], reference[ngram])
    return _Pairs(
        reference_tokens,
        hypothesis_tokens,
        reference_ngrams,
        hypothesis_ngrams,
        matches,
        _ngram_totals(hypothesis_tokens),
        _ngram_totals(reference_tokens),
    )


def _ngram_totals(token_lists: list[list[str]]) -> np.ndarray:
    """Number of n-grams of each order, [n_items, MAX_ORDER]."""
    lengths = np.array([len(tokens) for tokens in token_lists], dtype=np.float64)
    return np.maximum(lengths[:, None] - np.arange(MAX_ORDER), 0)


def _bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """Sums [..., 2 * MAX_ORDER + 2] of matches, totals, hypothesis length, reference length -> BLEU [...]."""
    matches, totals = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    hypothesis_len, reference_len = sums[..., -2], sums[..., -1]
    found = (matches > 0).all(axis=-1)  # an order without a match makes the geometric mean 0 (no smoothing)
    precision = np.where(found[..., None], matches / np.maximum(totals, 1), 1.0)
    brevity = np.minimum(0.0, 1.0 - reference_len / np.maximum(hypothesis_len, 1))
    return np.where(found, np.exp(np.log(precision).mean(axis=-1) + brevity), 0.0)


def _bleu_scores(pairs: _Pairs) -> list[Scores]:
    lengths = [pairs.hypothesis_totals[:, :1], pairs.reference_totals[:, :1]]
    stats = np.concatenate([pairs.matches, pairs.hypothesis_totals, *lengths], axis=1)
    return [Scores(f"bleu_{n}", VERSION, stats, partial(_bleu, order=n)) for n in range(1, MAX_ORDER + 1)]


def _f_measure(overlap: np.ndarray, n_hypothesis: np.ndarray, n_reference: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """F_beta per item; 0 where nothing overlaps. beta > 1 gives recall the greater weight."""
    precision, recall = overlap / np.maximum(n_hypothesis, 1), overlap / np.maximum(n_reference, 1)
    denominator = recall + beta**2 * precision
    return (1 + beta**2) * precision * recall / np.where(denominator > 0, denominator, 1.0)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one integer operation per token of b."""
    positions = defaultdict(int)
    for i, token in enumerate(a):
        positions[token] |= 1 << i
    full = (1 << len(a)) - 1
    row = full  # bit i is 0 where the LCS grows at a[i]
    for token in b:
        hits = row & positions.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def _rouge_scores(pairs: _Pairs) -> list[Scores]:
    matches, n_hypothesis, n_reference = pairs.matches, pairs.hypothesis_totals, pairs.reference_totals
    lcs = np.array(
        [lcs_length(r, h) for r, h in zip(pairs.references, pairs.hypotheses, strict=True)], dtype=np.float64
    )
    return [
        mean_scores("rouge_1_f1", VERSION, _f_measure(matches[:, 0], n_hypothesis[:, 0], n_reference[:, 0])),
        mean_scores("rouge_2_f1", VERSION, _f_measure(matches[:, 1], n_hypothesis[:, 1], n_reference[:, 1])),
        mean_scores("rouge_l_f1", VERSION, _f_measure(lcs, n_hypothesis[:, 0], n_reference[:, 0])),
        mean_scores("rouge_l_coco", VERSION, _f_measure(lcs, n_hypothesis[:, 0], n_reference[:, 0], ROUGE_COCO_BETA)),
    ]


def _tf_idf(ngrams: Counter, idf: dict, idf_unseen: float) -> tuple[list[float], int]:
    """(Squared length of the TF-IDF vector of each order, number of bigrams) of one text."""
    squared, bigrams = [0.0] * MAX_ORDER, 0
    for ngram, n in ngrams.items():
        squared[len(ngram) - 1] += (n * idf.get(ngram, idf_unseen)) ** 2
        bigrams += n if len(ngram) == 2 else 0
    return squared, bigrams


def _cider_scores(pairs: _Pairs, df: DocumentFrequencies) -> list[Scores]:
    """CIDEr-D of each pair (Vedantam 2015): clipped TF-IDF cosine, length penalty, mean over orders, times 10."""
    idf_unseen = math.log(df.n_documents)  # an unseen n-gram counts as one that was seen once
    idf = {ngram: idf_unseen - math.log(n) for ngram, n in df.counts.items()}
    texts = {id(ngrams): ngrams for ngrams in (*pairs.hypothesis_ngrams, *pairs.reference_ngrams)}
    known = {key: _tf_idf(ngrams, idf, idf_unseen) for key, ngrams in texts.items()}
    values = []
    for hypothesis, reference in zip(pairs.hypothesis_ngrams, pairs.reference_ngrams, strict=True):
        dot = [0.0] * MAX_ORDER
        for ngram, n in hypothesis.items():
            if n_reference := reference.get(ngram):
                dot[len(ngram) - 1] += min(n, n_reference) * n_reference * idf.get(ngram, idf_unseen) ** 2
        (squared_h, bigrams_h), (squared_r, bigrams_r) = known[id(hypothesis)], known[id(reference)]
        # Length is counted in bigrams, as the COCO code does: the same difference as in words, but for one-word texts.
        penalty = math.exp(-((bigrams_h - bigrams_r) ** 2) / (2 * CIDER_SIGMA**2))
        cosines = [d / math.sqrt(h * r) if h and r else 0.0 for d, h, r in zip(dot, squared_h, squared_r, strict=True)]
        values.append(10.0 * penalty * sum(cosines) / MAX_ORDER)
    return [mean_scores("cider_d", VERSION, values)]


# --- METEOR -----------------------------------------------------------------------------------------------------------


class _NoSynonyms:
    """Stands in for WordNet, whose data are a separate download: no word has a synonym."""

    def synsets(self, word: str) -> list:
        return []


def meteor_exact_stem(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """METEOR of NLTK (alpha 0.9, beta 3, gamma 0.5) of one tokenised pair, with exact and Porter-stem matches only."""
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, hypothesis, wordnet=_NoSynonyms()))


def meteor_jar() -> Path | None:
    """The METEOR 1.5 jar of pycocoevalcap, or None where it or `java` is missing."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        return None
    jars = (Path(folder) / "meteor" / "meteor-1.5.jar" for folder in package.submodule_search_locations)
    return next((jar for jar in jars if jar.exists()), None)


def _meteor_15(references: list[list[str]], hypotheses: list[list[str]], jar: Path) -> list[float]:
    """Segment scores of the jar, one process per core over its share of the pairs; a pair with an empty side scores 0
    and is not sent."""
    scores = np.zeros(len(references))
    sent = [i for i, (r, h) in enumerate(zip(references, hypotheses, strict=True)) if r and h]
    n_processes = max(1, min(os.cpu_count() or 1, len(sent) // METEOR_PAIRS))
    shares = [sent[k::n_processes] for k in range(n_processes)] if sent else []
    pairs = [([references[i] for i in share], [hypotheses[i] for i in share]) for share in shares]
    with ThreadPoolExecutor(n_processes) as pool:
        for share, values in zip(shares, pool.map(lambda pair: _run_meteor(jar, *pair), pairs), strict=True):
            scores[share] = values
    return scores.tolist()


def _run_meteor(jar: Path, references: list[list[str]], hypotheses: list[list[str]]) -> list[float]:
    """One run of the jar over pairs without an empty side."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "hypotheses"), Path(folder, "references")]
        for path, texts in zip(paths, (hypotheses, references), strict=True):
            path.write_text("".join(" ".join(tokens) + "\n" for tokens in texts), encoding="utf-8")
        java = ["java", "-Xmx2G", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8"]
        command = [*java, "-jar", str(jar), *map(str, paths), "-l", "en", "-norm"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=METEOR_TIMEOUT_S)
    found = re.findall(r"^Segment (\d+) score:\s+(\S+)$", done.stdout, flags=re.MULTILINE)
    if done.returncode != 0 or [int(n) for n, _ in found] != list(range(1, len(references) + 1)):
        raise RuntimeError(
            f"{jar}: {len(found)} scores for {len(references)} pairs, exit code {done.returncode}: "
            f"{done.stderr[-500:]}; ask for 'meteor_exact_stem' to do without Java"
        )
    return [float(value) for _, value in found]


def _meteor_scores(pairs: _Pairs, variant: str) -> list[Scores]:
    """variant: "meteor_1.5", "meteor_exact_stem", or "meteor" = the first of the two that can run here."""
    jar = None if variant == "meteor_exact_stem" else meteor_jar()
    if jar is not None:
        return [mean_scores("meteor_1.5", VERSION, _meteor_15(pairs.references, pairs.hypotheses, jar))]
    if variant == "meteor_1.5":
        raise RuntimeError("meteor_1.5 needs `java` on the PATH and the package pycocoevalcap; or ask for 'meteor'")
    values = [meteor_exact_stem(r, h) for r, h in zip(pairs.references, pairs.hypotheses, strict=True)]
    return [mean_scores("meteor_exact_stem", VERSION, values)]


# --- BERTScore --------------------------------------------------------------------------------------------------------


def bert_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    encoder: str,
    layer: int,
    rescale: bool = False,
    baseline: Path | None = None,
) -> dict[str, Scores]:
    """BERTScore precision, recall, F1 (Zhang 2020, no IDF), means over items; a pair with an empty side scores 0.

    encoder: hub name or local folder of a transformers encoder and its tokenizer. layer: hidden layer, from 1.
    rescale: (x - b) / (1 - b) with the English baseline b that the bert-score package ships for a hub name, or with
    `baseline`, a TSV of the same form (LAYER, P, R, F with a header), for a local folder.
    Errors: ValueError where rescaling is asked for and no baseline is found.
    """
    _check(references, hypotheses)
    from bert_score import BERTScorer

    scorer = BERTScorer(
        model_type=str(encoder),
        num_layers=layer,
        lang="en" if rescale else None,
        rescale_with_baseline=rescale,
        baseline_path=str(baseline) if baseline else None,
    )
    values = np.zeros((3, len(references)))
    sent = [i for i, (r, h) in enumerate(zip(references, hypotheses, strict=True)) if r.strip() and h.strip()]
    if sent:
        scored = scorer.score([hypotheses[i] for i in sent], [references[i] for i in sent])
        values[:, sent] = np.stack([part.numpy() for part in scored])
    suffix = f"{Path(str(encoder)).name}_layer{layer}_{'rescaled' if rescale else 'raw'}"
    scores = [
        mean_scores(f"bertscore_{part}_{suffix}", VERSION, row)
        for part, row in zip(("p", "r", "f1"), values, strict=True)
    ]
    return {s.name: s for s in scores}


# --- all n-gram metrics at once ---------------------------------------------------------------------------------------


def _check(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses: they must be paired")
    if not len(references):
        raise ValueError("no reference and no hypothesis: nothing to score")


def score_texts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    df: DocumentFrequencies | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, Scores]:
    """Score hypotheses against one reference each; keys of the result are the names listed in the module docstring.

    df: document frequencies of the TRAINING references, needed by "cider_d".
    metrics: of "bleu", "rouge", "cider_d", "meteor" (Java where there is one), "meteor_1.5", "meteor_exact_stem".
    Errors: ValueError for unpaired or no texts, an unknown metric, or "cider_d" without df.
    """
    _check(references, hypotheses)
    if "cider_d" in metrics and df is None:
        raise ValueError("cider_d needs df=document_frequencies(training references)")
    pairs = _prepare(references, hypotheses)
    compute = {
        "bleu": lambda: _bleu_scores(pairs),
        "rouge": lambda: _rouge_scores(pairs),
        "cider_d": lambda: _cider_scores(pairs, df),
        **{name: partial(_meteor_scores, pairs, name) for name in ("meteor", "meteor_1.5", "meteor_exact_stem")},
    }
    unknown = set(metrics) - set(compute)
    if unknown:
        raise ValueError(f"unknown text metrics {sorted(unknown)}; known: {sorted(compute)}")
    with ThreadPoolExecutor() as pool:  # METEOR waits for Java, so the others are counted meanwhile
        found = pool.map(lambda metric: compute[metric](), metrics)
        return {scores.name: scores for several in found for scores in several}
