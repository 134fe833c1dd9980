"""Classification with few labels on the pre-trained image encoder (reference: Fine-tuned classification).

finetune   MAVL style: encoder and a linear layer are trained, BCE, AdamW at a constant rate, random crops and flips
           (its RandAugment is left out); the epoch with the best macro AUROC on validation is scored
linear     MGCA style: the encoder is frozen; features are taken once, and a logistic regression is solved for each
           class with the weight decay that is best on validation (shared.metrics.probe)

Uncertain labels are left out of the loss, class by class. A class that the subset shows always or never cannot be
learnt: its scores are NaN. Every fit is kept as it ends, so that a killed evaluation goes on after the last one.
"""

import copy
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from shared.metrics.classification import auroc_per_class
from shared.metrics.probe import ProbeConfig, probe
from shared.runs.processes import device
from synth_medvlp.downstream import Release, Task

VAL = "~val"


@dataclass
class FinetuneConfig:
    """Section `eval.finetune:`, for linear and finetune. Optimisation: MAVL's, of finetune only."""

    tasks: list[str] = field(default_factory=lambda: ["rsna", "siim", "covidx", "nih-14", "chexpert-5"])
    ratios: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])  # shares of the training patients
    draws: int = 3  # subsets of every share below 1
    epochs: int = 60
    batch: int = 256
    lr: float = 1e-5
    weight_decay: float = 0.02
    crop: float = 0.2  # smallest share of the area in a random crop


@dataclass
class Examples(Dataset):
    """Images uint8 [n, size, size] by number, and what is to be learnt from each."""

    images: np.ndarray
    rows: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {
            "images": torch.from_numpy(np.array(self.images[self.rows[i]])),
            "labels": torch.from_numpy(np.array(self.targets[i])),
        }


class Classifier(nn.Module):
    """A copy of the pre-trained model's image side with one logit per class."""

    def __init__(self, model: nn.Module, n_classes: int, crop: float):
        super().__init__()
        self.model, self.crop = copy.deepcopy(model).requires_grad_(True), crop
        self.head = nn.LazyLinear(n_classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """images uint8 [B, size, size]; labels int8 [B, C] with -1 = not in the loss -> loss, logits [B, C]."""
        if self.training:
            images, _ = random_crops(images, None, self.crop)
        pixels = self.model.pixels(images)
        logits = self.head(self.model.image_maps(pixels)[-1].mean((2, 3))).float()
        return {"loss": masked_bce(logits, labels), "logits": logits}


def masked_bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean BCE over labels that are not -1."""
    known = labels >= 0
    loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def random_crops(
    images: torch.Tensor, masks: torch.Tensor | None, smallest: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random crop of `smallest`..1 of the area (aspect 3/4..4/3) at the old size, half of them flipped; masks alike.

    images: uint8 [B, H, W]; masks: bool [B, H, W] or None. Bilinear, masks by the nearest pixel.
    """
    n = len(images)
    area, aspect = torch.empty(n).uniform_(smallest, 1), torch.empty(n).uniform_(-1, 1).mul(np.log(4 / 3) / 2).exp()
    width, height = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    at_x, at_y = ((1 - side) * torch.empty(n).uniform_(-1, 1) for side in (width, height))
    zero = torch.zeros(n)
    theta = torch.stack([torch.stack([width * flip, zero, at_x], 1), torch.stack([zero, height, at_y], 1)], 1)
    grid = F.affine_grid(theta.to(images.device), [n, 1, *images.shape[1:]], align_corners=False)
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    images = sample(images[:, None].float())[:, 0].round().to(images.dtype)
    return images, None if masks is None else sample(masks[:, None].float(), mode="nearest")[:, 0] > 0.5


class BestEpoch(TrainerCallback):
    """Keeps the weights of the epoch with the greatest `eval_<metric>`; of equals the last, so no early 0 stays."""

    def __init__(self, metric: str):
        self.metric, self.value, self.weights = f"eval_{metric}", -np.inf, None

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        if self.weights is None or metrics[self.metric] >= self.value:
            self.value, self.weights = metrics[self.metric], copy.deepcopy(model.state_dict())


@contextmanager
def one_process():
    """Under torchrun each process fits models of its own; the Trainer must not see the others."""
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    hidden = {key: os.environ.pop(key) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def fit(
    model: nn.Module, parts: dict[str, Dataset], metric: str, compute, cfg, seed: int, bf16: bool, reduce=None
) -> Trainer:
    """Train on parts["train"] with AdamW at a constant rate; the trainer holds the epoch that is best on parts["val"].

    cfg: epochs, batch, lr, weight_decay. compute: EvalPrediction -> {metric: value}; reduce: (logits, labels) -> what
    is kept of a batch.
    """
    best = BestEpoch(metric)
    with tempfile.TemporaryDirectory() as folder, one_process():
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=min(cfg.batch, len(parts["train"])),
            per_device_eval_batch_size=cfg.batch,
            num_train_epochs=cfg.epochs,
            learning_rate=cfg.lr,
            lr_scheduler_type="constant",
            weight_decay=cfg.weight_decay,
            max_grad_norm=0,  # none is clipped
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel where several are visible
        trainer = Trainer(
            model,
            arguments,
            train_dataset=parts["train"],
            eval_dataset=parts["val"],
            compute_metrics=compute,
            preprocess_logits_for_metrics=reduce,
            callbacks=[best],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.load_state_dict(best.weights)
    return trainer


def fine_tuned(
    model: nn.Module, release: Release, task: Task, train: np.ndarray, cfg: FinetuneConfig, seed: int, bf16: bool
) -> dict[str, np.ndarray]:
    """part -> logits float32 [n_part, C] of val and test, everything trained on the task's rows `train`."""
    set_seed(seed)
    row_of = release.row_of(task)
    chosen = {"train": train} | {part: task.part_rows(part) for part in ("val", "test")}
    parts = {part: Examples(release.images, row_of[rows], task.labels[rows]) for part, rows in chosen.items()}
    device = next(model.parameters()).device
    classifier = Classifier(model, len(task.classes), cfg.crop).to(device)
    with torch.no_grad():  # makes the head's weights
        classifier.eval()(**{k: v[None].to(device) for k, v in parts["val"][0].items()})
    trainer = fit(classifier, parts, "auroc", _auroc, cfg, seed, bf16)
    logits = {part: trainer.predict(parts[part]).predictions for part in ("val", "test")}
    seen = task.labels[train]
    unlearnt = ~((seen == 1).any(0) & (seen == 0).any(0))
    return {part: np.where(unlearnt, np.nan, values).astype(np.float32) for part, values in logits.items()}


def _auroc(prediction) -> dict[str, float]:
    """Macro AUROC over classes that validation has, each over its certain labels (-1 is none); 0 where it has none."""
    labels, logits, found = prediction.label_ids, prediction.predictions, []
    for c in range(labels.shape[1]):
        known = labels[:, c] >= 0
        found.append(auroc_per_class(labels[known][:, [c]], logits[known][:, [c]])[0] if known.any() else np.nan)
    return {"auroc": float(np.nanmean(found)) if np.isfinite(found).any() else 0.0}


def linear(features: np.ndarray, task: Task, train: np.ndarray) -> dict[str, np.ndarray]:
    """part -> scores float32 [n_part, C] of val and test, NaN for classes that cannot be learnt or tuned.

    features: [n, d] of the task's records. One probe per class, because each has uncertain labels of its own.
    """
    parts = {part: task.part_rows(part) for part in ("val", "test")}
    found = {p: np.full((len(rows), len(task.classes)), np.nan, np.float32) for p, rows in parts.items()}
    for c in range(len(task.classes)):
        labels = task.labels[:, [c]]
        known = train[labels[train, 0] >= 0]
        if any(len(np.unique(labels[rows])) < 2 for rows in (known, parts["val"])):
            continue
        fitted = probe(features, labels, parts | {"train": known}, ProbeConfig())
        found["test"][:, c], found["val"][:, c] = fitted.scores[:, 0], fitted.val_scores[:, 0]
    return found


def tables(
    release: Release,
    name: str,
    cfg: FinetuneConfig,
    fit_one: Callable[[Task, np.ndarray, int], dict[str, np.ndarray]],
    folder: Path,
) -> list[pd.DataFrame]:
    """Predictions of a release (shared.runs.tasks), one table per share and draw, `name ratio #draw`.

    A name that ends in ~val adds validation: `name` then stands for both, `x ratio #draw` and `x~val ratio #draw`.
    Slots of what was not learnt are NaN; images of one source are scored by the fit on all.
    fit_one: (task, rows to train on, draw) -> logits of val and test; each result is kept in `folder`.
    """
    found = []
    tasks = [task for task in release.tasks.values() if task.name in cfg.tasks]
    if not tasks:
        return []
    parts = {"test": name.removesuffix(VAL)} | ({"val": name} if name.endswith(VAL) else {})
    for ratio in cfg.ratios:
        for draw in range(cfg.draws if ratio < 1 else 1):
            of_task = {}
            for task in tasks:
                run = f"{name.removesuffix(VAL)} {task.name} {ratio:g} #{draw}"
                train = task.few_label_rows(ratio, draw or None)
                of_task[task.name] = kept(folder, run, partial(fit_one, task, train, draw))
            for part, label in parts.items():
                rows = release.rows((part,))
                values = _in_slots(release, rows.record_id, part, of_task)
                table = pd.DataFrame({"dataset": release.dataset, "id": rows.record_id, "patient": rows.patient_id})
                table = table.assign(split=part, input=f"{label} {ratio:g} #{draw}")
                found.append(table.assign(prediction=list(values.astype(np.float16))))
    return found


def _in_slots(release: Release, ids: pd.Series, part: str, of_task: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Logits of fits [n_part, C] -> float32 [len(ids), n_slots] of the release; NaN elsewhere."""
    values, start = np.full((len(ids), len(release.class_names())), np.nan, np.float32), 0
    for task in release.tasks.values():
        slots = slice(start, start + len(task.classes))
        start += len(task.classes)
        fitted = release.tasks.get(task.name.split("-within:")[0])
        if fitted is not None and fitted.name in of_task:
            columns = [fitted.classes.index(c) for c in task.classes]
            of_part = [fitted.record_ids[i] for i in fitted.part_rows(part)]
            logits = pd.DataFrame(of_task[fitted.name][part], index=of_part).reindex(ids)
            values[:, slots] = logits.to_numpy()[:, columns]
    return values


def kept(folder: Path, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` returns, made once: arrays in an npz file of `folder`, which appears when it is complete."""
    file = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(unfinished, **make())
        unfinished.rename(file)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
