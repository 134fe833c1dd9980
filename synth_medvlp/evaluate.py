"""Checkpoint + test hospitals -> predictions.parquet, masks.parquet, metrics.json: `python -m synth_medvlp.evaluate`.

Zero-shot: a class's prompt is scored against the image (reference: Zero-shot classification); maps of prompts; linear
layers, fine-tuning and U-Nets on the encoder. Every input of `eval.inputs` (synth_medvlp/inputs.py) is scored with the
same weights and written as it ends, so that a killed evaluation goes on where it stopped; under torchrun each process
takes its share.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from shared.metrics.segmentation import metrics_of_rows
from shared.metrics.six_tasks import metrics_of
from shared.runs.config import hash_of
from shared.runs.evaluation import checkpoint_of, entries, evaluated, keep
from shared.runs.facts import commit
from shared.runs.processes import device, worker
from shared.runs.tasks import TaskEvaluation, cycle, eval_identity, labels_table, predict_all, prevalence
from synth_medvlp import finetune, segment
from synth_medvlp.config import Config, parse
from synth_medvlp.downstream import Release, Task, downstream_hash, load_tasks
from synth_medvlp.grounding import centre_prior, ground
from synth_medvlp.inputs import CLASSIFIED, COSINE, Input, expand
from synth_medvlp.model import SCORERS, load
from synth_medvlp.prep import prepare
from synth_medvlp.prompts import SETS, class_texts, other_names

MASK_COLUMNS = ("dataset", "task", "id", "patient", "split", "input", "positive", "n_pixels", "tp", "fp", "fn")


@dataclass
class Evaluation(TaskEvaluation):
    """A model with all it is scored on. `downstream`: releases of `eval.tasks`."""

    masked: dict[str, Release]  # releases of the tasks of grounding and segmentation
    prior: dict[str, np.ndarray]  # data set -> share of positives [n_slots] among the training labels of the tasks
    other: dict[str, str]  # control: class -> the class in whose name it is asked
    parts: Path
    known: tuple[str, np.ndarray] = ("", np.zeros(0))  # task, features of its images: every share and draw takes them

    def run(self, dataset: str, rows: np.ndarray, spec: Input, what: str) -> np.ndarray:
        """`scores` [n, n_slots] or `features` [n, d] of images by number."""
        if spec.control == "prior":
            return np.tile(self.prior[dataset].astype(np.float32), (len(rows), 1))
        release = self.downstream[dataset]
        if what == "features":
            return self.batches(release, rows, lambda pixels: self.model.image_features(pixels)[2])
        names = release.class_names()
        texts = self.texts(names, spec)
        scorer = spec.variation if spec.variation in SCORERS else self.cfg.eval.scorer
        values = self.batches(release, rows, partial(self.model.scores, prompts=texts, scorer=scorer), spec)
        return values[cycle(len(rows), self.cfg.seed)] if spec.control == "shuffled" else values

    def texts(self, names: list[str], spec: Input) -> tuple[list[str], list[str]]:
        """(positive, negative prompts) of classes."""
        if spec.control == "prompts":
            names = [self.other[name] for name in names]
        return class_texts(names, spec.variation if spec.variation in SETS else self.cfg.eval.prompts)

    @torch.inference_mode()
    def batches(self, release: Release, rows: np.ndarray, of: Callable, spec: Input | None = None) -> np.ndarray:
        """`of`(pixels) of images by number, float32 [n, ..]."""
        device, size, found = next(self.model.parameters()).device, self.cfg.eval.batch, []
        for start in range(0, len(rows), size):
            images = torch.from_numpy(np.asarray(release.images[rows[start : start + size]])).to(device)
            if spec is not None and spec.control == "zeroed":
                images = torch.zeros_like(images)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.cfg.train.bf16):
                found.append(of(self.model.pixels(images)).float().cpu().numpy())
        return np.concatenate(found)

    def tables(self, spec: Input) -> list[pd.DataFrame]:
        """Predictions of one input, one table per data set; of masks where its kind is grounding or segment."""
        if not spec.kind:
            return super().tables(spec)
        if spec.kind == "grounding":
            tasks = [(r, t) for r in self.masked.values() for t in r.tasks.values()]
            tasks = [(r, t) for r, t in tasks if t.name in self.cfg.eval.grounding.tasks]
            return [ground(r, t, self.maps(r, t, spec), spec.name) for r, t in tasks]
        if spec.kind == "segment":
            cfg, folder = self.cfg.eval.segment, self.parts
            return [
                table
                for release in self.masked.values()
                for table in segment.tables(release, spec.name, cfg, partial(self.fit_masks, release), folder)
            ]
        fit = self.fit_linear if spec.kind == "linear" else self.fit_classes
        found = []
        for release in self.downstream.values():
            found += finetune.tables(release, spec.name, self.cfg.eval.finetune, partial(fit, release), self.parts)
        return found

    def maps(self, release: Release, task: Task, spec: Input) -> Callable[[np.ndarray], np.ndarray]:
        """Function from numbers of images to the maps of the task's prompt, as `ground` asks for."""
        if spec.control == "prior":
            return centre_prior(release, task)
        prompt, kind = self.texts(list(task.classes), spec)[0][0], COSINE if spec.variation == COSINE else None

        def of(rows: np.ndarray) -> np.ndarray:
            maps = self.batches(release, rows, partial(self.model.maps, prompt=prompt, kind=kind), spec)
            return maps[cycle(len(rows), self.cfg.seed)] if spec.control == "shuffled" else maps

        return of

    def fit_linear(self, release: Release, task: Task, train: np.ndarray, draw: int) -> dict[str, np.ndarray]:
        if self.known[0] != task.name:
            self.known = task.name, self.run(release.dataset, release.row_of(task), Input("image"), "features")
        return finetune.linear(self.known[1], task, train)

    def fit_classes(self, release: Release, task: Task, train: np.ndarray, draw: int) -> dict[str, np.ndarray]:
        cfg = self.cfg
        return finetune.fine_tuned(
            self.model, release, task, train, cfg.eval.finetune, 1000 * cfg.seed + draw, cfg.train.bf16
        )

    def fit_masks(self, release: Release, task: Task, train: np.ndarray, draw: int) -> dict[str, np.ndarray]:
        cfg = self.cfg
        return segment.segmented(
            self.model, release, task, train, cfg.eval.segment, 1000 * cfg.seed + draw, cfg.train.bf16
        )


# --- summary ----------------------------------------------------------------------------------------------------------


def class_kinds(downstream: dict[str, Release]) -> dict[str, list[str]]:
    """Task -> kind of each class: headline, extra or within_source, the same for all classes of a task."""
    tasks = [task for release in downstream.values() for task in release.tasks.values()]
    return {task.name: [task.kind] * len(task.classes) for task in tasks}


def summary_of(table: pd.DataFrame, labels: pd.DataFrame, kinds: dict, n_boot: int) -> dict[str, dict]:
    """Input -> metric -> value, interval, rows and version: auroc_headline (mean over the headline tasks of the macro
    AUROC) and likewise of the other kinds; auroc:<task> without interval. What was not learnt counts as chance."""
    found: dict[str, dict] = {}
    for name, rows in table.groupby("input", sort=False):
        metrics, patients = metrics_of(rows, labels, kinds, chance=True)
        means = {key: metric for key, metric in metrics.items() if ":" not in key}
        found[name] = entries(metrics, patients, len(rows), 0) | entries(means, patients, len(rows), n_boot)
    return found


def summary_of_masks(table: pd.DataFrame, n_boot: int) -> dict[str, dict]:
    """Input -> `metric:task` -> value, interval, rows and version, of all metrics of shared.metrics.segmentation."""
    found: dict[str, dict] = {}
    for (name, task), rows in table.groupby(["input", "task"], sort=False):
        metrics = metrics_of_rows(rows)
        if "tp_oracle" in rows and rows.tp_oracle.notna().all():
            metrics |= metrics_of_rows(rows, "_oracle")
        patients = rows.dataset + ":" + rows.patient
        of_task = {f"{key}:{task}": metric for key, metric in metrics.items()}
        found.setdefault(name, {}).update(entries(of_task, patients, len(rows), n_boot))
    return found


# --- run --------------------------------------------------------------------------------------------------------------


def prepare_tasks(cfg: Config) -> tuple[dict[str, Release], dict[str, Release], dict[str, str]]:
    """(releases of `eval.tasks`, releases of the tasks with masks that the inputs need, absent data set -> why)."""
    e, kinds = cfg.eval, {spec.kind for spec in expand(cfg.eval.inputs, SCORERS)}
    common = cfg.data.size_px, cfg.data.geometry, e.simulate, e.variant, e.all_records
    downstream, absent = load_tasks(e.tasks, *common)
    names = [n for kind in ("grounding", "segment") if kind in kinds for n in getattr(e, kind).tasks]
    masked, more = load_tasks(list(dict.fromkeys(names)), *common) if names else ({}, {})
    return downstream, masked, absent | more


def setup(cfg: Config, checkpoint: Path) -> tuple[Evaluation, dict[str, str]]:
    """Model and tasks; data sets that are absent, with the reason."""
    downstream, masked, absent = prepare_tasks(cfg)
    model = load(checkpoint).to(device()).eval()
    prior = {dataset: prevalence(release) for dataset, release in downstream.items()}
    other = other_names([n for r in (*downstream.values(), *masked.values()) for n in r.class_names()])
    return Evaluation(cfg, model, downstream, masked, prior, other, cfg.run_dir), absent


def evaluation_hash(cfg: Config, evaluation: Evaluation, train_hash: str, data_hash: str, checkpoint: Path) -> str:
    """Identifies weights, data, prompts and inputs. Raises ValueError where the run's weights are another config's or
    stand on other data."""
    content = eval_identity(cfg, checkpoint, train_hash)
    return hash_of([content, data_hash, downstream_hash(evaluation.masked), prompts_used(evaluation), cfg.seed])


def prompts_used(evaluation: Evaluation) -> dict[str, dict[str, list[str]]]:
    """Class -> its texts in every set, its negative, and the class in whose name the control asks for it."""
    return {
        name: {kind: class_texts([name], kind)[0] for kind in SETS} | {"no": class_texts([name])[1], "control": [other]}
        for name, other in sorted(evaluation.other.items())
    }


def main(args: list[str] | None = None) -> Path:
    """Score all inputs; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    checkpoint = checkpoint_of(cfg)
    start = time.perf_counter()
    evaluation, absent = setup(cfg, checkpoint)
    data_hash = downstream_hash(evaluation.downstream)
    identity = {
        "evaluation_hash": evaluation_hash(cfg, evaluation, prepare(cfg).data_hash, data_hash, checkpoint),
        "scored_by": [cfg.eval.n_boot],
    }
    if evaluated(cfg, identity):
        return cfg.run_dir

    evaluation.parts = cfg.run_dir / f"parts-{identity['evaluation_hash']}"
    specs = expand(cfg.eval.inputs, SCORERS)
    groups = [[s for s in specs if (s.kind in CLASSIFIED) == classified] for classified in (True, False)]
    columns = ("dataset", "id", "patient", "split", "input", "prediction"), MASK_COLUMNS
    table, masks = (
        predict_all(evaluation, group, evaluation.parts) if group else pd.DataFrame(columns=c)
        for group, c in zip(groups, columns, strict=True)
    )
    if worker()[0]:
        return cfg.run_dir
    labels = labels_table(evaluation.downstream)
    kinds = class_kinds(evaluation.downstream)
    releases = [*evaluation.downstream.values(), *evaluation.masked.values()]
    source = " + ".join(dict.fromkeys(release.source for release in releases))
    summary = identity | {"source": source, "data_hash": data_hash, "commit": commit(), "kinds": kinds}
    tasks = [task for release in evaluation.downstream.values() for task in release.tasks.values()]
    summary["classes"] = {task.name: list(task.classes) for task in tasks}
    summary |= {"masks_hash": downstream_hash(evaluation.masked), "absent": absent, "left_out": left_out(releases)}
    (cfg.run_dir / "prompts.json").write_text(json.dumps(prompts_used(evaluation), indent=1))
    summary["metrics"] = summary_of(table, labels, kinds, cfg.eval.n_boot)
    summary["metrics"] |= summary_of_masks(masks, cfg.eval.n_boot)
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    keep(cfg, summary, predictions=table, masks=masks, labels=labels)
    name, metrics = next(iter(summary["metrics"].items()))
    key = "auroc_headline" if "auroc_headline" in metrics else next(iter(metrics))
    print(f"evaluated: {cfg.run_dir}, {name}: {key} {metrics[key]['value']:.3f}")
    return cfg.run_dir


def left_out(releases: list[Release]) -> dict[str, dict]:
    """Data set -> what is not scored: classes of each task, tasks as a whole, images by reason."""
    return {
        r.dataset: {t.name: list(t.left_out) for t in r.tasks.values() if t.left_out}
        | r.empty
        | {"images": r.meta["left_out"] | {"unreadable": len(r.meta["skipped"])}}
        for r in releases
    }


if __name__ == "__main__":
    main()
