"""Predictions -> per-item statistics of every metric, each distinct pair of texts scored once; paired differences."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from meit.config import Config
from meit.judge import CRITERIA, judge_scores
from shared.metrics.findings import finding_scores
from shared.metrics.findings_validation import validated_findings
from shared.metrics.interval import Scores
from shared.metrics.text import DEFAULT_METRICS, bert_scores, document_frequencies, score_texts
from shared.runs.evidence import Scored, folder, read_predictions, runs_of
from shared.runs.reports import add_runs, distinct, select


def score_table(
    table: pd.DataFrame,
    train_reports: Sequence[Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    bertscore: str | None = None,
    layer: int = 17,
) -> dict[str, Scores]:
    """Corrected protocol: report text only, statistics per item.

    table: columns reference, prediction, fold. train_reports: per fold, the reports whose document frequencies CIDEr-D
    takes. Returns metric name -> Scores over the rows of the table, in their order. `finding_f1` and its like count
    findings whose reading is validated on real reports; `all_finding_f1` counts all.
    """
    pairs, rows = distinct(table[["reference", "prediction", "fold"]])
    references, predictions = pairs.reference.tolist(), pairs.prediction.tolist()
    scores = finding_scores(references, predictions, validated_findings())
    everything = finding_scores(references, predictions)
    scores |= {f"all_{name}": replace(s, name=f"all_{name}") for name, s in everything.items()}
    scores |= score_texts(references, predictions, metrics=[m for m in metrics if m != "cider_d"])
    if "cider_d" in metrics:
        scores["cider_d"] = cider(pairs, train_reports)
    if bertscore:
        scores |= bert_scores(references, predictions, bertscore, layer, rescale=not Path(bertscore).is_dir())
    return {name: select(s, rows) for name, s in scores.items()}


def rated(table: pd.DataFrame) -> dict[str, Scores]:
    """Scores of the judge, where one rated any of these rows."""
    return judge_scores(table) if CRITERIA[0] in table and table[CRITERIA[0]].notna().any() else {}


def cider(pairs: pd.DataFrame, train_reports: Sequence[Sequence[str]]) -> Scores:
    """CIDEr-D of every pair with the document frequencies of its own fold's training reports."""
    parts = []
    for fold, part in pairs.groupby("fold"):
        df = document_frequencies(train_reports[fold])
        scored = score_texts(part.reference.tolist(), part.prediction.tolist(), df, ["cider_d"])["cider_d"]
        parts.append(pd.DataFrame(scored.stats, index=part.index))
    return replace(scored, stats=pd.concat(parts).sort_index().to_numpy())


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder. facts: `runs.json`."""
    groups: dict[tuple, list[tuple[str, int, pd.DataFrame]]] = {}  # what has the same training reports, scored together
    for name, seed, _ in runs_of(facts):
        reports = pd.read_parquet(folder(cfg) / "predictions" / f"{name}-train-reports.parquet")
        per_fold = tuple(reports.groupby("fold").report.agg(tuple))
        groups.setdefault(per_fold, []).append((name, seed, read_predictions(cfg, name, seed)))
    scored: dict[str, Scored] = {}
    for per_fold, tables in groups.items():
        everything = pd.concat([table for _, _, table in tables], ignore_index=True)
        scores = score_table(everything, per_fold, bertscore=cfg.eval.bertscore, layer=cfg.eval.bertscore_layer)
        add_runs(scored, tables, scores, facts, "data_hash", len(per_fold), more=rated)
    return scored
