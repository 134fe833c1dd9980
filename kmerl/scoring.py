"""Predictions -> AUROC statistics per input, over the joined items of the tasks; means over lead sets.

An item is a record in a task: a PTB-XL record that serves four tasks is four items of one patient, so that a bootstrap
draw takes or leaves all of them. Every metric of an input counts the same items, whatever tasks it rests on.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from kmerl.config import Config
from kmerl.inputs import PARTIAL
from kmerl.protocols import FREQUENT, six_task_auroc
from shared.metrics.interval import Metric, Statistic
from shared.runs.evidence import Scored, folder, read_predictions


def restrict(metric: Statistic, rows: np.ndarray, n_items: int) -> Statistic:
    """A metric over some of n_items as one over all of them."""
    return Statistic(metric.name, metric.version, n_items, partial(_restricted, metric=metric, rows=rows))


def _restricted(item_weights: np.ndarray, metric: Statistic, rows: np.ndarray) -> np.ndarray:
    return metric.fn(item_weights[:, rows])


def average(metrics: Sequence[Statistic]) -> Statistic:
    """Mean of one metric over several sets of scores of the same items."""
    if len({(m.name, m.version, m.n_items) for m in metrics}) != 1:
        raise ValueError(f"only one metric over the same items can be averaged: {sorted({m.name for m in metrics})}")
    first = metrics[0]
    return Statistic(first.name, first.version, first.n_items, partial(_averaged, metrics=tuple(metrics)))


def _averaged(item_weights: np.ndarray, metrics: Sequence[Statistic]) -> np.ndarray:
    return np.mean([m.fn(item_weights) for m in metrics], axis=0)


def items_of(rows: pd.DataFrame, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, dict]:
    """Predictions of one input + labels -> ids and patients [n_items] (data set before the name), and per task
    (item indices, labels [n, C], scores [n, C])."""
    ids, patients, parts, n = [], [], {}, 0
    for dataset, table in rows.groupby("dataset", sort=False):
        start = 0
        mine = labels[labels.dataset == dataset]
        predictions = table.set_index("id")
        for task, truth in mine.groupby("task", sort=False):
            n_classes = len(truth.reference.iloc[0])
            scored = truth[truth.id.isin(predictions.index)]
            y = np.stack(scored.reference.to_list()) if len(scored) else np.zeros((0, n_classes), np.uint8)
            chosen = predictions.loc[scored.id]
            s = [np.asarray(p, np.float32)[start : start + n_classes] for p in chosen.prediction]
            start += n_classes
            if not len(scored):
                continue
            parts[task] = (np.arange(n, n + len(scored)), y, np.stack(s))
            ids += [f"{task}:{i}" for i in scored.id]
            patients += [f"{dataset}:{p}" for p in chosen.patient]
            n += len(scored)
        if start != len(table.prediction.iloc[0]):
            raise ValueError(
                f"{dataset}: {len(table.prediction.iloc[0])} scores a record, {start} classes in the labels"
            )
    return np.array(ids), np.array(patients), parts


def metrics_of(
    rows: pd.DataFrame, labels: pd.DataFrame, seen: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Metric], np.ndarray]:
    """(metric name -> Statistic, patients) of one input.

    auroc: mean over tasks of the macro AUROC; auroc_min10: the same over classes with at least 10 positives;
    auroc_seen / auroc_unseen: over classes whose name is / is not that of a training entity; auroc:<task>: one task.
    """
    _, patients, parts = items_of(rows, labels)
    n, found = len(patients), {}
    groups = {"auroc": (parts, 1), "auroc_min10": (parts, FREQUENT)}
    for name, wanted in (("auroc_seen", 1), ("auroc_unseen", 0)):
        groups[name] = ({t: (i, *_columns(y, s, np.array(seen[t]) == wanted)) for t, (i, y, s) in parts.items()}, 1)
    groups |= {f"auroc:{t}": ({t: part}, 1) for t, part in parts.items()}
    for name, (tasks, min_positives) in groups.items():
        usable = {t: part for t, part in tasks.items() if _usable(*part[1:], min_positives)}
        if usable:
            metric = six_task_auroc({t: (y, s) for t, (_, y, s) in usable.items()}, min_positives)
            found[name] = restrict(metric, np.concatenate([i for i, _, _ in usable.values()]), n)
    return found, patients


def _columns(y: np.ndarray, s: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return y[:, keep], s[:, keep]


def _usable(y: np.ndarray, s: np.ndarray, min_positives: int) -> bool:
    positives = y.sum(0)
    return bool(((positives >= min_positives) & (positives < len(y)) & ~np.isnan(s).any(0)).any())


# --- over the runs of a tier ---


def read_labels(cfg: Config, data_hash: str) -> pd.DataFrame:
    return pd.read_parquet(folder(cfg) / "predictions" / f"labels-{data_hash}.parquet")


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder; with the means over lead sets of `means`."""
    scored: dict[str, Scored] = {}
    names = sorted({run.rsplit("/seed", 1)[0] for run in facts["runs"]})
    labels: dict[str, pd.DataFrame] = {}
    for name in names:
        for seed in cfg.reproduce.seeds:
            run = facts["runs"][f"{name}/seed{seed}"]
            data_hash = run["data_hash"]
            if data_hash not in labels:
                labels[data_hash] = read_labels(cfg, data_hash)
            for kind, rows in read_predictions(cfg, name, seed).groupby("input", sort=False):
                ids, _, _ = items_of(rows, labels[data_hash])
                found, patients = metrics_of(rows, labels[data_hash], run["seen"])
                folds = 10 if kind.startswith("oof:") else 1
                n_records = len(rows[["dataset", "id"]].drop_duplicates())
                new = Scored({}, ids, patients, run["source"], data_hash, folds, n_records=n_records)
                entry = scored.setdefault(f"{name}@{kind}", new)
                if not np.array_equal(entry.ids, ids) or entry.data_hash != data_hash:
                    raise ValueError(f"{name}@{kind}: seeds were scored on different records; run it again")
                for metric, statistic in found.items():
                    entry.scores.setdefault(metric, []).append(statistic)
    return scored | means(scored)


def means(scored: dict[str, Scored]) -> dict[str, Scored]:
    """`name@partial[/fill]`: mean over the clinical sets below 12 leads; `name@<k> random[/fill]`: over the random sets
    of k leads; `name@random[/fill]`: over k = 1 .. 11; `name@probe:<leads> <ratio>`: over the draws."""
    groups: dict[str, list[Scored]] = {}
    for key, entry in scored.items():
        name, kind = key.split("@")
        group, slash, fill = kind.partition("/")
        if group in PARTIAL:
            groups.setdefault(f"{name}@partial{slash}{fill}", []).append(entry)
        elif "-random-" in group:
            groups.setdefault(f"{name}@{group.split('-')[0]} random{slash}{fill}", []).append(entry)
        elif kind.startswith("probe:"):
            groups.setdefault(f"{name}@{kind.split(' #')[0]}", []).append(entry)
    found = {k: mean_of(e) for k, e in groups.items() if "@partial" not in k or len(e) == len(PARTIAL)}
    counts: dict[str, list[Scored]] = {}
    for key, entry in found.items():
        name, kind = key.split("@")
        if kind.split("/")[0].endswith(" random"):
            counts.setdefault(f"{name}@random{kind[kind.index(' random') + 7 :]}", []).append(entry)
    return found | {key: mean_of(entries) for key, entries in counts.items() if len(entries) == 11}


def mean_of(entries: list[Scored]) -> Scored:
    """One Scored whose metrics are means over several inputs of the same run; metrics that all of them have."""
    first = entries[0]
    if any(not np.array_equal(e.ids, first.ids) for e in entries):
        raise ValueError("a mean over inputs needs the same records in each; run the experiment again")
    names = [m for m in first.scores if all(m in e.scores for e in entries)]
    n_seeds = {len(e.scores[m]) for e in entries for m in names}
    if len(n_seeds) != 1:
        raise ValueError(f"a mean over inputs needs the same seeds in each, found {sorted(n_seeds)}")
    scores = {m: [average([e.scores[m][k] for e in entries]) for k in range(*n_seeds)] for m in names}
    base = first.ids, first.patients, first.source, first.data_hash, first.n_folds
    return Scored(scores, *base, n_records=first.n_records)
