"""Predictions -> AUROC statistics per input (shared.runs.tasks); here: the best baseline, chosen on validation."""

import numpy as np

from shared.runs import tasks
from shared.runs.evidence import Scored
from shared.runs.tasks import means_over_draws
from supreme.config import Config

ESSL = ("simclr", "byol", "barlow-twins", "moco-v3", "simsiam", "ts-tcc", "clocs", "astcl", "crt", "st-mem")
BEST = "best-essl"


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder; `best-essl@probe:ecg <ratio>`.

    A class that a probe could not learn from few labels counts as chance: zero-shot is scored on all classes.
    """
    scored = tasks.score_all(cfg, facts, lambda run: run["kinds"], chance=True)
    scored |= means_over_draws(scored)
    return scored | best_essl(scored)


def best_essl(scored: dict[str, Scored]) -> dict[str, Scored]:
    """Per share of the labels, the self-supervised method whose probe is best on VALIDATION, mean over seeds.

    Chosen among those that were run; `tables` says which it was.
    """
    found = {}
    for ratio in sorted({k.rsplit(" ", 1)[1] for k in scored if "@probe:ecg " in k and "#" not in k}):
        chosen = chosen_essl(scored, ratio)
        if chosen:
            found[f"{BEST}@probe:ecg {ratio}"] = scored[f"{chosen}@probe:ecg {ratio}"]
    return found


def chosen_essl(scored: dict[str, Scored], ratio: str) -> str | None:
    """Name of the method that `best-essl` stands for; None where none was run with validation scores."""
    levels = {}
    for name in ESSL:
        key = f"{name}@probe:ecg~val {ratio}"
        if key in scored and f"{name}@probe:ecg {ratio}" in scored:
            levels[name] = np.mean([m.value for m in scored[key].metric("auroc")])
    return max(levels, key=levels.get) if levels else None
