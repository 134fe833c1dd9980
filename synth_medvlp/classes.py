"""Classes of the test sets against the training reports: how often these state the finding behind a class.

`frequency.json` of a results folder holds what `stated` counts: class -> share of real training reports.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from shared.metrics.classification import auroc_per_class
from shared.metrics.interval import Statistic
from shared.metrics.six_tasks import FREQUENT, items_of, restrict, six_task_auroc, usable_tasks
from shared.runs.evidence import folder, read_predictions, seeds_of
from shared.runs.tasks import read_labels
from synth_medvlp.config import Config
from synth_medvlp.downstream import HEADLINE
from synth_medvlp.entities import ner, norm
from synth_medvlp.findings import KINDS, Finding
from synth_medvlp.generate import real
from synth_medvlp.prompts import prompts_of
from synth_medvlp.simulate_vocabulary import nih_labels, padchest_labels

MIN10 = "auroc_headline_min10"  # the headline over classes with 10 positives


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


def frequent_headline(rows: pd.DataFrame, labels: pd.DataFrame, run: Mapping) -> Statistic | None:
    """The headline of one input over the classes with at least 10 test positives, on the same items; a set that keeps
    no class is not in the mean; None where none does.

    rows: predictions; run: facts of the run, with its kinds.
    """
    _, patients, parts = items_of(rows, labels)
    parts = {t: part for t, part in parts.items() if run["kinds"][t][0] == HEADLINE}
    scores = {t: (y, np.nan_to_num(s)) for t, (_, y, s) in parts.items()}
    used = usable_tasks(scores, FREQUENT)
    if not used:
        return None
    metric = six_task_auroc({t: scores[t] for t in used}, FREQUENT)
    return restrict(metric, np.concatenate([parts[t][0] for t in used]), len(patients))


def per_class(cfg: Config, facts: dict, names: Sequence[str]) -> pd.DataFrame:
    """task, class, share of real reports that state its finding, said: share that hold the words of its prompt, and the
    AUROC of each of the experiments `names` (mean over seeds)."""
    shares, found = frequency(cfg), {}
    behind = share_of_finding(shares)
    for name in names:
        values: dict[tuple, list[float]] = {}
        for seed in seeds_of(facts, name):
            run = facts["runs"][f"{name}/seed{seed}"]
            rows = read_predictions(cfg, name, seed)
            _, _, parts = items_of(rows[rows.input == "image"], read_labels(cfg, run["data_hash"]))
            for task, (_, y, s) in parts.items():
                if run["kinds"][task][0] == HEADLINE:
                    for label, auroc in zip(run["classes"][task], auroc_per_class(y, s), strict=True):
                        values.setdefault((task, label), []).append(float(auroc))
        for key, seeds in values.items():
            found.setdefault(key, {})[name] = float(np.mean(seeds))
    rows = [{"task": t, "class": c, "share": behind.get(c), "said": shares.get(c)} | v for (t, c), v in found.items()]
    return pd.DataFrame(rows)


def correlations(table: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """share, said -> Spearman's correlation with AUROC after synthetic minus after real pairs, and classes it is of."""
    found = {}
    table = table[table.share.notna() & table[["synthetic", "real"]].notna().all(axis=1)]  # not "normal"
    for column in ("share", "said"):
        known = table[table[column].notna()]
        rho = spearmanr(known[column].astype(float), known.synthetic - known.real).statistic
        found[column] = float(rho), len(known)
    return found
