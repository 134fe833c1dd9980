"""Runs that are scored on the reports they write: each distinct pair of texts once, then by input, run and seed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from shared.metrics.interval import Scores
from shared.runs.evaluation import entries, in_parts
from shared.runs.evidence import Scored, add_seed

CHUNK = 256  # records per part file


def majority_report(reports: Sequence[str]) -> str:
    """The most frequent training report, a control without a language model; ties go to the one seen first."""
    return Counter(reports).most_common(1)[0][0]


def in_chunks(cfg: Any, n: int, make: Callable[[str, list[int]], pd.DataFrame], identity: str) -> pd.DataFrame:
    """`make` of every kind of `eval.inputs` on n records, CHUNK at a time: one table, resumable (`in_parts`)."""
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    jobs = {f"{kind}-{chunk.start:07d}": (kind, chunk) for kind in cfg.eval.inputs for chunk in chunks}
    parts = cfg.run_dir / f"parts-{identity}"
    return in_parts(jobs, lambda job: make(job[0], list(job[1])), parts, f"generating {cfg.experiment}")


def distinct(keys: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """(distinct rows, for each row of `keys` the number of its like among them)."""
    found = keys.drop_duplicates(ignore_index=True)
    place = {row: i for i, row in enumerate(found.itertuples(index=False, name=None))}
    return found, np.array([place[row] for row in keys.itertuples(index=False, name=None)], dtype=int)


def select(scores: Scores, rows: Sequence[int]) -> Scores:
    """The same metric over some of its items."""
    return replace(scores, stats=scores.stats[np.asarray(rows)])


def summary_of(table: pd.DataFrame, scores: dict[str, Scores], n_boot: int) -> dict[str, dict]:
    """Kind of input -> metric -> value, interval, number of records and version of the metric."""
    return {
        kind: entries(
            {n: select(metric, rows.index) for n, metric in scores.items()}, rows.patient.to_numpy(), len(rows), n_boot
        )
        for kind, rows in table.groupby("input", sort=False)
    }


def shown(metrics: dict[str, dict], kind: str) -> str:
    """Its first metrics in words."""
    found = metrics.get(kind, {})
    return ", ".join(f"{name} {found[name]['value']:.3f}" for name in ("finding_f1", "bleu_4") if name in found)


def add_runs(
    scored: dict[str, Scored],
    tables: Sequence[tuple[str, int, pd.DataFrame]],
    scores: dict[str, Scores],
    facts: dict,
    key: str,
    n_folds: int = 1,
    more: Callable[[pd.DataFrame], dict[str, Scores]] = lambda part: {},
) -> None:
    """`name@input` -> Scored, for runs (name, seed, predictions) whose tables, one below the other, gave `scores`.

    key: of the facts of a run, what says on which records it was scored; more: metrics of one input's rows.
    """
    start = 0
    for name, seed, table in tables:
        run = facts["runs"][f"{name}/seed{seed}"]
        for kind in table.input.unique():
            rows = np.flatnonzero((table.input == kind).to_numpy())
            part = table.iloc[rows].reset_index(drop=True)
            new = Scored({}, part.id.to_numpy(), part.patient.to_numpy(), run["source"], run[key], n_folds)
            found = {m: select(s, rows + start) for m, s in scores.items()} | more(part)
            add_seed(scored, f"{name}@{kind}", new, seed, found).tables.append(part)
        start += len(table)
