"""One measured line of the audit, and what its demonstrations share: committed predictions, levels, differences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from shared.metrics.interval import Difference, Metric, Scores, Statistic, bootstrap_values

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
Value = tuple[float, float | None, float | None]  # value, lower and upper bound at 95 %; None: there is no sampling
LAPTOP = "simulated, laptop tier"
N_BOOT = 1000


@dataclass(frozen=True)
class Row:
    """`what` under the public rule and under the corrected one, and the difference, published minus corrected."""

    what: str
    published: Value
    corrected: Value
    difference: Value
    data: str


def need(path: Path, source: str) -> Path:
    """`path`; FileNotFoundError that names it and where it comes from where it is not there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it comes from {source}")
    return path


def predictions(paper: str, name: str, seed: int | None = None) -> pd.DataFrame:
    """A committed table of the laptop tier: predictions of one seed, or the table `name` itself."""
    stem = name if seed is None else f"{name}-seed{seed}"
    return pd.read_parquet(ROOT / "results" / paper / "laptop" / "predictions" / f"{stem}.parquet")


def labels_of(paper: str, name: str) -> pd.DataFrame:
    """The committed labels that a run of the laptop tier was scored on."""
    folder = ROOT / "results" / paper / "laptop"
    data_hash = json.loads((folder / "runs.json").read_text())["runs"][f"{name}/seed{SEEDS[0]}"]["data_hash"]
    return predictions(paper, f"labels-{data_hash}")


# --- from metrics to rows ---------------------------------------------------------------------------------------------


def compare(what: str, published: Sequence[Metric], corrected: Sequence[Metric], patients: Sequence, data: str) -> Row:
    """Both rules on the same items and the same bootstrap draws, with one metric per seed each.

    Several seeds: t interval over patients and seeds, as the scorecards have it; one: percentiles over patients.
    """
    k = len(published)
    if len(corrected) != k:
        raise ValueError(f"{what}: {k} seeds against {len(corrected)}")
    values = np.array([m.value for m in (*published, *corrected)]).reshape(2, k)
    draws = bootstrap_values([*published, *corrected], patients, N_BOOT).reshape(N_BOOT, 2, k)
    n = len(set(patients))
    sides = (values[0], draws[:, 0]), (values[1], draws[:, 1]), (values[0] - values[1], draws[:, 0] - draws[:, 1])
    return Row(what, *(_with_interval(per_seed, drawn, len(patients), n) for per_seed, drawn in sides), data)


def _with_interval(per_seed: np.ndarray, draws: np.ndarray, n_items: int, n_patients: int) -> Value:
    """per_seed: values [k]; draws: bootstrap values [n_boot, k]."""
    mean = float(per_seed.mean())
    if len(per_seed) == 1:
        return mean, *map(float, np.nanquantile(draws, (0.025, 0.975)))
    v_items, s2_seeds = float(np.nanvar(draws.mean(1))), float(per_seed.var(ddof=1))
    found = Difference(mean, v_items, s2_seeds, tuple(per_seed), mean, 0.0, n_items, n_patients)
    return mean, *map(float, found.interval())


def minus(a: Scores, b: Scores) -> Scores:
    """a - b as a metric over the same items."""
    k = a.stats.shape[1]
    stats = np.concatenate([a.stats, b.stats], axis=1)
    return Scores("difference", 1, stats, lambda s: a.reduce(s[..., :k]) - b.reduce(s[..., k:]))


def exact(value: float) -> Value:
    """A count, or a number that no sample stands behind."""
    return float(value), None, None


def over_draws(values: Sequence[float]) -> Value:
    """Mean and central 95 % of repeated draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(np.mean(values)), float(low), float(high)


def task_mean(parts: Sequence[tuple[np.ndarray, Scores]], n_items: int) -> Statistic:
    """Mean over tasks of a `Scores`, each over some (rows) of n_items, as one metric over all of them."""
    return Statistic("task_mean", 1, n_items, partial(_task_mean, parts=tuple(parts)))


def _task_mean(weights: np.ndarray, parts) -> np.ndarray:
    return np.mean([m.reduce(weights[:, rows] @ m.stats) for rows, m in parts], axis=0)
