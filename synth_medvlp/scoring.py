"""Predictions -> AUROC statistics per input (shared.runs.tasks); here: pixel counts -> Dice, IoU, pointing game."""

from functools import partial

import numpy as np
import pandas as pd

from shared.metrics.interval import Scores, Statistic
from shared.metrics.segmentation import metrics_of_rows
from shared.metrics.six_tasks import average, restrict
from shared.runs import tasks
from shared.runs.evidence import Scored, add_seed, folder, read_predictions, runs_of, seeds_of
from shared.runs.tasks import means_over_draws
from synth_medvlp.classes import MIN10, frequent_headline
from synth_medvlp.config import Config

GROUNDED = "grounding:image"
WHOLE_IMAGE, RANDOM_PIXEL = "whole image", "a random pixel"


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder, and means over few-label draws.

    A class that could not be learnt from few labels counts as chance: what is compared is scored on the same classes.
    """
    scored = tasks.score_all(cfg, facts, lambda run: run["kinds"], chance=True)
    add_frequent_headline(cfg, facts, scored)
    scored |= score_masks(cfg, facts)
    return scored | means_over_draws(scored)


def add_frequent_headline(cfg: Config, facts: dict, scored: dict[str, Scored]) -> None:
    """The headline over classes with 10 positives (`classes`), beside each zero-shot headline."""
    for name in [key.removesuffix("@image") for key in scored if key.endswith("@image")]:
        for seed in seeds_of(facts, name):
            run, rows = facts["runs"][f"{name}/seed{seed}"], read_predictions(cfg, name, seed)
            found = frequent_headline(rows[rows.input == "image"], tasks.read_labels(cfg, run["data_hash"]), run)
            if found:
                scored[f"{name}@image"].scores.setdefault(MIN10, []).append(found)


def score_masks(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@grounding:..` and `name@segment:..` -> Scored: `dice` and its like as means over tasks, `dice:<task>`."""
    scored: dict[str, Scored] = {}
    for name, seed, run in runs_of(facts):
        file = folder(cfg) / "predictions" / f"{name}-masks-seed{seed}.parquet"
        if not file.exists():
            continue
        tables = {f"{name}@{kind}": rows for kind, rows in pd.read_parquet(file).groupby("input", sort=False)}
        if f"ground-real@{GROUNDED}" in tables:
            tables[f"{WHOLE_IMAGE}@{GROUNDED}"] = whole_image(tables[f"ground-real@{GROUNDED}"])
        for key, rows in tables.items():
            rows = rows.sort_values(["task", "id"], kind="stable")
            ids, patients = (rows.task + ":" + rows.id).to_numpy(), (rows.dataset + ":" + rows.patient).to_numpy()
            new = Scored({}, ids, patients, run["source"], run["masks_hash"], n_records=rows.id.nunique())
            add_seed(scored, key, new, seed, mask_statistics(rows))
    return scored


def whole_image(rows: pd.DataFrame) -> pd.DataFrame:
    """Control without a model, on the images of `rows`: the constant map. Its mask is the whole image; a random pixel,
    one of its greatest, hits with the share of the image that lies in the mask, and that share is its AUPRC."""
    marked = rows.tp + rows.fn
    share = marked / rows.n_pixels
    base = rows[["dataset", "task", "id", "patient", "n_pixels"]]
    return base.assign(tp=marked, fp=rows.n_pixels - marked, fn=0, hit=share, auprc=share)


def mask_statistics(rows: pd.DataFrame) -> dict[str, Statistic]:
    """Metrics of shared.metrics.segmentation over all rows: `<metric>:<task>`, and `<metric>`, the mean over tasks."""
    of_task: dict[str, dict[str, Statistic]] = {}
    for task in sorted(set(rows.task)):
        chosen = np.flatnonzero(rows.task.to_numpy() == task)
        some = rows.iloc[chosen]
        found = metrics_of_rows(some)
        if "tp_oracle" in some and some.tp_oracle.notna().all():
            found |= metrics_of_rows(some, "_oracle")
        for name, metric in found.items():
            of_task.setdefault(name, {})[task] = restrict(as_statistic(metric), chosen, len(rows))
    means = {name: average(list(by_task.values())) for name, by_task in of_task.items()}
    return means | {f"{name}:{task}": m for name, by_task in of_task.items() for task, m in by_task.items()}


def as_statistic(metric: Scores) -> Statistic:
    """A metric of sums as a function of item weights, so that it can be restricted to some of the items."""
    return Statistic(metric.name, metric.version, metric.n_items, partial(_weighted, metric=metric))


def _weighted(item_weights: np.ndarray, metric: Scores) -> np.ndarray:
    return metric.reduce(item_weights @ metric.stats)
