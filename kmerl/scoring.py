"""Predictions -> AUROC statistics per input (shared.runs.tasks); here: the means over lead sets."""

from kmerl.config import Config
from kmerl.inputs import PARTIAL
from shared.runs import tasks
from shared.runs.evidence import Scored
from shared.runs.tasks import mean_of, means_over_draws


def score_all(cfg: Config, facts: dict) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder; with the means over lead sets of `means`."""
    scored = tasks.score_all(cfg, facts, lambda run: seen_or_not(run["seen"]))
    return scored | means(scored)


def seen_or_not(seen: dict[str, list[int]]) -> dict[str, list[str]]:
    """Task -> "seen" where a class's name is that of a training entity, else "unseen"."""
    return {task: ["seen" if flag else "unseen" for flag in flags] for task, flags in seen.items()}


def means(scored: dict[str, Scored]) -> dict[str, Scored]:
    """`name@partial[/fill]`: mean over the clinical sets below 12 leads; `name@<k> random[/fill]`: over the random sets
    of k leads; `name@random[/fill]`: over k = 1 .. 11; and those of `means_over_draws`."""
    groups: dict[str, list[Scored]] = {}
    for key, entry in scored.items():
        name, kind = key.split("@")
        group, slash, fill = kind.partition("/")
        if group in PARTIAL:
            groups.setdefault(f"{name}@partial{slash}{fill}", []).append(entry)
        elif "-random-" in group:
            groups.setdefault(f"{name}@{group.split('-')[0]} random{slash}{fill}", []).append(entry)
    found = {k: mean_of(e) for k, e in groups.items() if "@partial" not in k or len(e) == len(PARTIAL)}
    counts: dict[str, list[Scored]] = {}
    for key, entry in found.items():
        name, kind = key.split("@")
        if kind.split("/")[0].endswith(" random"):
            counts.setdefault(f"{name}@random{kind[kind.index(' random') + 7 :]}", []).append(entry)
    found |= means_over_draws(scored)
    return found | {key: mean_of(entries) for key, entries in counts.items() if len(entries) == 11}
