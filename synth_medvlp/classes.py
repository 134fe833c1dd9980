"""Classes of the test sets against the training reports: how often these state the finding behind a class.

`frequency.json` of a results folder holds what `stated` counts, class -> share of real training reports; `drawn.json`
how well the synthetic images show what they were asked for, in the eyes of a model of real pairs.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
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
from synth_medvlp.generate import real, synthetic
from synth_medvlp.model import load
from synth_medvlp.prompts import class_texts, prompts_of
from synth_medvlp.simulate_vocabulary import nih_labels, padchest_labels

MIN10 = "auroc_headline_min10"  # the headline over classes with 10 positives


def stated(cfg: Config, classes: list[str]) -> dict[str, float]:
    """Class -> share of the real training reports with an affirmed entity that holds the class's plain name."""
    table = real(cfg).table
    says = affirms(cfg, (table.findings + " " + table.impression).tolist(), classes)
    return {c: float(says[c].mean()) for c in classes}


def affirms(cfg: Config, texts: list[str], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Class -> bool [n]: which texts affirm an entity that holds the class's plain name."""
    read = ner(cfg.ner)(texts)
    affirmed = [[f" {norm(m.text)} " for m in mentions if m.type in ("ABNORMALITY", "DISEASE")] for mentions in read]
    names = {c: f" {norm(prompts_of(c).positive['name'])} " for c in classes}
    return {c: np.array([any(name in e for e in entities) for entities in affirmed]) for c, name in names.items()}


@torch.inference_mode()
def drawn(cfg: Config, checkpoint: Path, classes: list[str], least: int = 10) -> dict[str, float]:
    """Class -> AUROC of the synthetic images under its prompt, by the model of `checkpoint`, against whether the text
    that an image was drawn from affirms the finding, by whichever of its names. Classes with fewer than `least` of
    either are left out."""
    pairs, model, behind = synthetic(cfg), load(checkpoint), finding_behind()
    says = affirms(cfg, pairs.table.impression.tolist(), classes)
    texts = class_texts(classes, cfg.eval.prompts)
    batches = (torch.from_numpy(np.array(pairs.images[i : i + 256])) for i in range(0, len(pairs), 256))
    scores = torch.cat([model.scores(model.pixels(images), texts) for images in batches])
    found = {}
    for c, column in zip(classes, scores.float().T.numpy(), strict=True):
        same = [says[other] for other in classes if behind.get(other, other) == behind.get(c, c)]
        asked = np.any(same, axis=0)
        if least <= asked.sum() <= len(asked) - least:
            found[c] = float(auroc_per_class(asked[:, None].astype(int), column[:, None])[0])
    return found


def kept(cfg: Config, name: str) -> dict[str, float]:
    """`frequency` or `drawn` of this tier, as it was kept with the results; {} where nothing was generated."""
    file = folder(cfg) / f"{name}.json"
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
    """task, class, share of real reports that state its finding, said: share that hold the words of its prompt, drawn:
    of `drawn`, and the AUROC of each of the experiments `names` (mean over seeds)."""
    shares, shown, found = kept(cfg, "frequency"), kept(cfg, "drawn"), {}
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
    of_class = {c: {"share": behind.get(c), "said": shares.get(c), "drawn": shown.get(c)} for _, c in found}
    return pd.DataFrame([{"task": t, "class": c} | of_class[c] | v for (t, c), v in found.items()])


def correlations(table: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """share, said, drawn -> Spearman's correlation with AUROC after synthetic minus after real pairs, and the number of
    classes that have both."""
    found = {}
    table = table[table.share.notna() & table[["synthetic", "real"]].notna().all(axis=1)]  # not "normal"
    for column in ("share", "said", "drawn"):
        known = table[table[column].notna()]
        rho = spearmanr(known[column].astype(float), known.synthetic - known.real).statistic
        found[column] = float(rho), len(known)
    return found
