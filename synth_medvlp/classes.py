"""Classes of the test sets against the training reports: which are named there, and how often their finding is stated.

A class that no report names is asked for by a word that VLP never saw, such as PadChest's names of what reports word
otherwise. The headline is therefore shown over named classes too. `frequency.json` of a results folder holds what
`stated` counts: class -> share of real training reports.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from shared.metrics.classification import auroc_per_class
from shared.metrics.interval import Statistic
from shared.metrics.six_tasks import FREQUENT, items_of, restrict, six_task_auroc, usable_tasks
from shared.runs.evidence import folder, read_predictions
from shared.runs.tasks import read_labels
from synth_medvlp.config import Config
from synth_medvlp.downstream import HEADLINE
from synth_medvlp.entities import ner, norm
from synth_medvlp.findings import KINDS, Finding
from synth_medvlp.generate import real
from synth_medvlp.prompts import prompts_of
from synth_medvlp.simulate_vocabulary import nih_labels, padchest_labels

NAMED, MIN10 = "auroc_named", "auroc_headline_min10"  # the headline over classes that are named; with 10 positives


def stated(cfg: Config, classes: list[str]) -> dict[str, float]:
    """Class -> share of the real training reports with an affirmed entity that holds the class's plain name."""
    table = real(cfg).table
    read = ner(cfg.ner)((table.findings + " " + table.impression).tolist())
    affirmed = [[f" {norm(m.text)} " for m in mentions if m.type in ("ABNORMALITY", "DISEASE")] for mentions in read]
    names = {c: f" {norm(prompts_of(c).positive['name'])} " for c in classes}
    return {c: float(np.mean([any(name in text for text in texts) for texts in affirmed])) for c, name in names.items()}


def frequency(cfg: Config) -> dict[str, float]:
    """`stated` of this tier, as it was kept with the results; {} where nothing was generated."""
    file = folder(cfg) / "frequency.json"
    return json.loads(file.read_text()) if file.exists() else {}


def named(shares: Mapping[str, float]) -> set[str]:
    """Classes whose name stands in a training report: alone, within another class that does ("catheter" in "central
    venous catheter"), or as the report of a normal film, which `stated`, of abnormal findings, does not count."""
    there = [f" {c.replace('_', ' ').lower()} " for c, share in shares.items() if share > 0]
    return {c for c in shares if c == "normal" or any(f" {c.replace('_', ' ').lower()} " in name for name in there)}


@lru_cache(maxsize=1)
def finding_behind() -> dict[str, str]:
    """Class of ChestX-ray14 or PadChest -> the simulated finding that it is a label of."""
    found: dict[str, str] = {}
    for name, kind in KINDS.items():
        for extent in (0.1, 0.5, 0.9):
            for place in kind.places[0]:
                one = [Finding(name, place=place, extent=extent)]
                found |= dict.fromkeys([*nih_labels(one), *padchest_labels(one)], name)
    return found


def share_of_finding(shares: Mapping[str, float]) -> dict[str, float]:
    """Class -> share of reports that state the finding behind it, under whichever of its classes' names is stated most.

    shares: of `stated`. A class without a finding (normal) is left out.
    """
    behind, most = finding_behind(), {}
    for label, share in shares.items():
        if label in behind:
            most[behind[label]] = max(share, most.get(behind[label], 0.0))
        else:
            most[label] = share
    return {c: most[behind.get(c, c)] for c in shares if c != "normal"}


def headline_variants(
    rows: pd.DataFrame, labels: pd.DataFrame, run: Mapping, shares: Mapping[str, float]
) -> dict[str, Statistic]:
    """The headline of one input over some classes only, on the same items: NAMED, whose name stands in a training
    report, and MIN10, with at least 10 test positives. A set that keeps no class is not in the mean.

    rows: predictions; run: facts of the run, with its classes and kinds; shares: of `stated`, {} = no NAMED.
    """
    _, patients, parts = items_of(rows, labels)
    parts = {t: part for t, part in parts.items() if run["kinds"][t][0] == HEADLINE}
    everything = {t: np.ones(y.shape[1], bool) for t, (_, y, _) in parts.items()}
    kept = named(shares)
    of_name = {t: np.array([c in kept for c in run["classes"][t]]) for t in parts}
    found = {}
    for name, keep, positives in ((NAMED, of_name, 1), (MIN10, everything, FREQUENT)):
        some = {t: (y[:, keep[t]], np.nan_to_num(s[:, keep[t]])) for t, (_, y, s) in parts.items()}
        used = usable_tasks(some, positives)
        if used:
            metric = six_task_auroc({t: some[t] for t in used}, positives)
            found[name] = restrict(metric, np.concatenate([parts[t][0] for t in used]), len(patients))
    return found


def per_class(cfg: Config, facts: dict, names: Sequence[str]) -> pd.DataFrame:
    """task, class, share of real reports that state its finding, whether its own name is in any, AUROC of each of the
    experiments `names` (mean over seeds)."""
    shares, found = frequency(cfg), {}
    behind, kept = share_of_finding(shares), named(shares)
    for name in names:
        values: dict[tuple, list[float]] = {}
        for seed in cfg.reproduce.seeds:
            run = facts["runs"][f"{name}/seed{seed}"]
            rows = read_predictions(cfg, name, seed)
            _, _, parts = items_of(rows[rows.input == "image"], read_labels(cfg, run["data_hash"]))
            for task, (_, y, s) in parts.items():
                if run["kinds"][task][0] == HEADLINE:
                    for label, auroc in zip(run["classes"][task], auroc_per_class(y, s), strict=True):
                        values.setdefault((task, label), []).append(float(auroc))
        for key, seeds in values.items():
            found.setdefault(key, {})[name] = float(np.mean(seeds))
    rows = [{"task": t, "class": c, "share": behind.get(c), "named": c in kept} | v for (t, c), v in found.items()]
    return pd.DataFrame(rows)
