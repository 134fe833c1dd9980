"""Predictions -> per-item statistics of every metric: pooled, per source, and as the mean over sources (reference:
"Every score per source, pooled and macro over sources"); each distinct pair of texts is scored once.
"""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from argus.clinical import clinical_scores
from argus.config import Config
from shared.metrics.ct_findings import CT_RATE_LABELS, asserted, finding_scores
from shared.metrics.ct_findings_validation import validated_findings
from shared.metrics.findings import F1, ratio
from shared.metrics.interval import Scores, mean_scores
from shared.metrics.text import DEFAULT_METRICS, bert_scores, document_frequencies, score_texts
from shared.runs.evidence import Scored, folder, read_predictions, runs_of
from shared.runs.reports import add_runs, distinct, select

SIZES = ("small", "medium", "large")  # thirds of the sizes that a finding has in the test set
BY_SOURCE = ("finding_f1", "finding_macro_f1", "bleu_4", "rouge_l_f1", "meteor_1.5", "meteor_exact_stem", "cider_d")
# Named after the first laptop runs were seen, to show what is left without them: shown, never decisive.
LEFT_OUT = ("septal_thickening", "pleural_effusion", "coronary_calcification")
_EXAM = r"(?:exam\w*|stud(?:y|ies)|scans?|imaging|images?|cts?|tomograph\w*|reports?|radiographs?)"
PRIOR = re.compile(  # an earlier examination or a date: what no volume shows
    rf"\b(?:previous|prior|earlier|last|former|old)\s+(?:\w+\s+){{0,2}}{_EXAM}\b"
    r"|\b(?:compared|comparison)\s+(?:to|with)\s+(?:the\s+)?(?:previous|prior|earlier|last)\b"
    r"|\bunchanged\b|\binterval (?:change|increase|decrease|progression)\b|\bsince the (?:last|previous|prior)\b"
    r"|\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b\d{4}-\d{2}-\d{2}\b",
    re.IGNORECASE,
)
WITH_METEOR = ("volume", "shuffle", "constant")  # inputs; it is the slowest, and no table of other arms shows it
MEAN = "mean"  # `<metric>:mean` is the mean over sources, `<metric>:<source>` one of them


def score_table(
    table: pd.DataFrame,
    train_reports: Sequence[str],
    metrics: Sequence[str] = DEFAULT_METRICS,
    bertscore: str | None = None,
    layer: int = 17,
) -> dict[str, Scores]:
    """Statistics per item. table: columns id, source, reference, prediction, sizes (see `size_scores`).

    train_reports: CIDEr-D takes its document frequencies from them. Returns metric name -> Scores over the rows of the
    table, in their order. `finding_f1` and its like count findings whose reading is validated; `all_finding_f1` counts
    all, `rest_finding_f1` the validated without LEFT_OUT, `place_finding_f1` those at the right place, `label_f1` the
    18 labels of CT-RATE. Shares of predictions: `hallucinated_priors`, that cite what no volume shows (PRIOR);
    `unfinished`, that do not end with a sentence, as where generation was cut.
    """
    pairs, rows = distinct(table[["reference", "prediction"]])
    references, predictions = pairs.reference.tolist(), pairs.prediction.tolist()
    scores = finding_scores(references, predictions, validated_findings())
    others = {
        "all_finding": finding_scores(references, predictions),
        "rest_finding": finding_scores(references, predictions, [n for n in validated_findings() if n not in LEFT_OUT]),
        "place_finding": finding_scores(references, predictions, validated_findings(), location="place"),
        "label": finding_scores(references, predictions, CT_RATE_LABELS),
    }
    for name, found in others.items():
        suffix = "_place" if name == "place_finding" else ""
        kept = {f"{name}_{part}": found[f"finding_{part}{suffix}"] for part in ("f1", "macro_f1")}
        scores |= {key: replace(s, name=key) for key, s in kept.items()}
    df = document_frequencies(train_reports) if "cider_d" in metrics else None
    scores |= score_texts(references, predictions, df, metrics)
    if "bleu" in metrics:
        clean = {text: r2gen(text) for text in {*references, *predictions}}
        cleaned = score_texts(
            [clean[text] for text in references], [clean[text] for text in predictions], None, ["bleu"]
        )
        scores |= {f"{name}_r2gen": replace(s, name=f"{name}_r2gen") for name, s in cleaned.items()}
    cited = [float(PRIOR.search(text) is not None) for text in predictions]
    scores["hallucinated_priors"] = mean_scores("hallucinated_priors", 1, cited)
    unfinished = [float(not text.rstrip().endswith((".", "!", "?"))) for text in predictions]
    scores["unfinished"] = mean_scores("unfinished", 1, unfinished)
    if bertscore:
        scores |= bert_scores(references, predictions, bertscore, layer, rescale=not Path(bertscore).is_dir())
    scores = {name: select(s, rows) for name, s in scores.items()}
    return scores | size_scores(table) | source_scores(scores, table.source.to_numpy())


def r2gen(text: str) -> str:
    """A report cleaned as R2Gen and CT2Rep do before BLEU: lower case, no numbers of a list, sentences joined by " . "
    and no other punctuation."""
    text = re.sub(r"(?:^|\s)\d+\.\s", " ", text.lower())
    words = (re.sub(r"[^\w\s]|_", "", sentence).split() for sentence in re.split(r"\.(?:\s|$)", text))
    return "".join(f"{' '.join(sentence)} . " for sentence in words if sentence).strip()


# --- per source ---


def source_scores(scores: dict[str, Scores], sources: np.ndarray) -> dict[str, Scores]:
    """`<metric>:<source>` and `<metric>:mean` of the BY_SOURCE metrics, on the same items and so on the same draws of
    patients: an item of another source adds nothing to the sums. sources: [n_items]."""
    names, out = sorted(set(sources)), {}
    for name in (n for n in BY_SOURCE if n in scores):
        metric = scores[name]
        parts = [np.where((sources == source)[:, None], metric.stats, 0.0) for source in names]
        for source, stats in zip(names, parts, strict=True):
            out[f"{name}:{source}"] = replace(metric, name=f"{name}:{source}", stats=stats)
        mean = partial(mean_of_blocks, reduce=metric.reduce, n=len(names))
        out[f"{name}:{MEAN}"] = replace(metric, name=f"{name}:{MEAN}", stats=np.concatenate(parts, 1), reduce=mean)
    return out


def mean_of_blocks(sums: np.ndarray, reduce: Callable, n: int) -> np.ndarray:
    """Sums [..., n * k] of n sources side by side -> mean of their values [...]."""
    return np.mean([reduce(block) for block in np.split(sums, n, axis=-1)], axis=0)


# --- by size ---


def size_scores(table: pd.DataFrame) -> dict[str, Scores]:
    """finding_f1_{small, medium, large}: validated findings that the reference asserts, by the size they were drawn
    with, against all that the prediction asserts wrongly (which has no size and counts in each).

    table: columns id, reference, prediction and sizes, a JSON object finding -> size in mm (its largest one), "" where
    nobody knows (real data: no scores). A finding is small where it is in the lowest third of its kind in this table.
    """
    if not table.sizes.all():
        return {}
    names = validated_findings()
    drawn = {i: json.loads(text) for i, text in zip(table.id, table.sizes, strict=True)}
    edges = {}
    for name in names:
        sizes = [found[name] for found in drawn.values() if name in found]
        edges[name] = np.quantile(sizes, [1 / 3, 2 / 3]) if sizes else np.zeros(2)
    counts = np.zeros((len(table), len(SIZES), 3))  # tp, fp, fn
    for i, row in enumerate(table.itertuples(index=False)):
        there, said = ({name for (name,) in asserted(text)} & set(names) for text in (row.reference, row.prediction))
        counts[i, :, 1] = len(said - there)
        for name in there & set(drawn[row.id]):
            size = np.searchsorted(edges[name], drawn[row.id][name])
            counts[i, size, 0 if name in said else 2] += 1
    f1 = partial(ratio, numerator=F1[0], denominator=F1[1])
    return {f"finding_f1_{s}": Scores(f"finding_f1_{s}", 1, counts[:, k], f1) for k, s in enumerate(SIZES)}


# --- over the runs of a tier ---


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder that predicted something. facts: runs.json."""
    groups: dict[tuple, list[tuple[str, int, pd.DataFrame]]] = {}  # what is on the same test records, scored together
    for name, seed, run in runs_of(facts):
        for kind, table in read_predictions(cfg, name, seed).groupby("input", sort=False):
            meteor = name in cfg.reproduce.headline and kind in WITH_METEOR
            groups.setdefault((run["records_hash"], meteor), []).append((name, seed, table))
    if not groups:
        raise SystemExit(f"{folder(cfg)}: nothing to score; run `make reproduce-argus TIER={cfg.tier}` first")

    def scores_of(group: tuple[str, bool]) -> dict[str, Scores]:
        records_hash, meteor = group
        everything = pd.concat([table for _, _, table in groups[group]], ignore_index=True)
        train_reports = pd.read_parquet(folder(cfg) / "predictions" / f"train-reports-{records_hash}.parquet").report
        metrics = [m for m in DEFAULT_METRICS if m != "meteor" or meteor]
        return score_table(everything, train_reports.tolist(), metrics, cfg.eval.bertscore, cfg.eval.bertscore_layer)

    scored: dict[str, Scored] = {}
    with ThreadPoolExecutor() as pool:  # one waits for METEOR's Java while others count
        for tables, scores in zip(groups.values(), pool.map(scores_of, groups), strict=True):
            add_runs(scored, tables, scores, facts, "records_hash", more=clinical_scores)
    return scored
