"""Classes of the test sets against the training reports: how often these state the finding behind a class.

`frequency.json` of a results folder holds what `stated` counts, class -> share of real training reports; `drawn.json`
how often synthetic reports say it, and how well a model of real pairs sees it in their images and in the simulator's
images of the same texts, which are what could be seen.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from synth_medvlp.diffusion import generator
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
def drawn(cfg: Config, checkpoint: Path, classes: list[str]) -> dict[str, dict[str, float]]:
    """Class -> said: share of the prompts of the synthetic images that affirm its plain name; shown, possible: AUROC
    of these images, and of the simulator's for the same prompts, under the class's prompt by the model of `checkpoint`
    against that. Classes with fewer than 10 of either are left out; `possible` is of simulated data only."""
    pairs, model = synthetic(cfg), load(checkpoint)
    prompts = pairs.table.impression.tolist()
    sides = {"shown": pairs.images}
    if cfg.data.simulate:
        seeds = list(range(len(prompts)))
        sides["possible"] = generator(replace(cfg.image, checkpoint="oracle"), cfg.data.size_px)(prompts, seeds)[0]
    says, texts = affirms(cfg, prompts, classes), class_texts(classes, cfg.eval.prompts)
    usual = {c: asked for c, asked in says.items() if 10 <= asked.sum() <= len(asked) - 10}
    found = {c: {"said": float(asked.mean())} for c, asked in usual.items()}
    for side, images in sides.items():
        batches = (torch.from_numpy(np.array(images[i : i + 256])) for i in range(0, len(images), 256))
        scores = torch.cat([model.scores(model.pixels(batch), texts) for batch in batches]).float().numpy()
        for c, asked in usual.items():
            column = scores[:, classes.index(c), None]
            found[c][side] = float(auroc_per_class(asked[:, None].astype(int), column)[0])
    return found


def kept(cfg: Config, name: str) -> dict:
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
    """task, class, positives of the test part, share of real reports that state its finding, said: share that hold the
    words of its prompt, said_synthetic, shown, possible: of `drawn`, and the AUROC of each of the experiments `names`
    (mean over seeds)."""
    shares, made, found = kept(cfg, "frequency"), kept(cfg, "drawn"), {}
    behind, positives = share_of_finding(shares), {}
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
                    positives |= {(task, c): int((y[:, k] == 1).sum()) for k, c in enumerate(run["classes"][task])}
        for key, seeds in values.items():
            found.setdefault(key, {})[name] = float(np.mean(seeds))
    rows = []
    for (task, c), scores in found.items():
        of = made.get(c, {})
        known = {"share": behind.get(c), "said": shares.get(c), "said_synthetic": of.get("said")}
        known |= {"shown": of.get("shown"), "possible": of.get("possible")}
        rows.append({"task": task, "class": c, "positives": positives[task, c]} | known | scores)
    return pd.DataFrame(rows)


def correlations(table: pd.DataFrame) -> dict[str, tuple[float, float, int]]:
    """share, said, shown -> Spearman's correlation with AUROC after synthetic minus after real pairs, its p value, and
    the number of findings that have both: classes of one finding, which are not independent, are averaged."""
    behind, found = finding_behind(), {}
    table = table[table.share.notna() & table[["synthetic", "real"]].notna().all(axis=1)]  # not "normal"
    for column in ("share", "said", "shown"):
        values: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in table[table[column].notna()].to_dict("records"):
            label = row["class"]
            finding = behind.get(label) or behind.get(label.lower(), label)
            values[finding].append((float(row[column]), row["synthetic"] - row["real"]))
        related = spearmanr(np.array([np.mean(of, axis=0) for of in values.values()]).reshape(-1, 2))
        found[column] = float(related.statistic), float(related.pvalue), len(values)
    return found
