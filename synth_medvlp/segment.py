"""Segmentation with a U-Net on the pre-trained image encoder (reference: Segmentation).

mavl   encoder and decoder are trained; BCE + 1 - soft Dice over the batch; random crops and flips
mgca   the encoder is frozen; 10 focal - log soft Dice; SIIM trains on all positives and as many negatives

The decoder is our own and smaller than the published ones: each step doubles the map, joins the encoder's map of that
size and halves the channels. The epoch with the best mean Dice over validation positives is scored at 0.5, one row of
pixel counts per test image (shared.metrics.segmentation).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from shared.metrics.segmentation import Counts, dice_per_image
from synth_medvlp.downstream import MASKED, Release, Task
from synth_medvlp.finetune import Examples, fit, kept, random_crops
from synth_medvlp.grounding import masks_of, rows_of, with_counts


@dataclass
class SegmentConfig:
    """Section `eval.segment:`. Optimisation: MAVL's."""

    tasks: list[str] = field(default_factory=lambda: list(MASKED))
    style: str = "mavl"  # mavl | mgca
    ratios: list[float] = field(default_factory=lambda: [1.0])  # shares of the training patients
    draws: int = 3  # subsets of every share below 1
    width: int = 64  # channels of the decoder's last and widest map
    dropout: float = 0.2
    epochs: int = 500
    batch: int = 64
    lr: float = 1e-5
    weight_decay: float = 0.02
    crop: float = 0.2  # smallest share of the area in a random crop

    def __post_init__(self):
        if self.style not in ("mavl", "mgca"):
            raise ValueError(f"eval.segment.style={self.style!r}: mavl or mgca")


class Up(nn.Module):
    """Twice the size, joined with the encoder's map of that size, two 3 x 3 convolutions."""

    def __init__(self, d_in: int, d_skip: int, d_out: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(d_in, d_out, 2, stride=2)
        self.join = nn.Sequential(*_conv(d_out + d_skip, d_out), *_conv(d_out, d_out))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        if x.shape[-2:] != skip.shape[-2:]:  # maps of odd size
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear")
        return self.join(torch.cat([x, skip], 1))


def _conv(d_in: int, d_out: int) -> list[nn.Module]:
    return [nn.Conv2d(d_in, d_out, 3, padding=1, bias=False), nn.BatchNorm2d(d_out), nn.ReLU(inplace=True)]


class UNet(nn.Module):
    """Encoder of a pre-trained model, decoder from its deepest map to the size of the image."""

    def __init__(self, model: nn.Module, cfg: SegmentConfig, size: int):
        super().__init__()
        self.cfg, self.encoder = cfg, copy.deepcopy(model).requires_grad_(cfg.style == "mavl")
        with torch.no_grad():
            black = torch.zeros(1, size, size, dtype=torch.uint8, device=next(model.parameters()).device)
            shapes = [m.shape[1:] for m in self.pyramid(black)]
        widths = [cfg.width * 2**i for i in range(len(shapes) - 1)]
        self.bridge = nn.Sequential(*_conv(shapes[-1][0], 2 * widths[-1]), nn.Dropout2d(cfg.dropout))
        steps = [(2 * w, shape[0], w) for w, shape in zip(widths, shapes[:-1], strict=True)]
        self.steps = nn.ModuleList(Up(*step) for step in reversed(steps))
        self.out = nn.Conv2d(cfg.width, 1, 1)

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """images [B, size, size] -> the pixels and the encoder's maps, the deepest last: of a ResNet all but the last
        stage (as published), of a ViT the patches."""
        pixels = self.encoder.pixels(images)
        maps = self.encoder.image_maps(pixels)
        return [pixels, *(maps[:-1] if self.encoder.image.arch == "resnet" else maps[-1:])]

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """images uint8 [B, size, size]; labels bool [B, size, size] -> loss, logits [B, size, size]."""
        if self.training:
            images, labels = random_crops(images, labels, self.cfg.crop)
        if self.cfg.style == "mgca":
            self.encoder.eval()
        *skips, x = self.pyramid(images)
        x = self.bridge(x)
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
        logits = self.out(x)[:, 0].float()
        return {"loss": mask_loss(logits, labels, self.cfg.style), "logits": logits}


def mask_loss(logits: torch.Tensor, masks: torch.Tensor, style: str) -> torch.Tensor:
    """mavl: BCE + 1 - soft Dice; mgca: 10 focal (gamma 2) - log soft Dice. Dice over the flattened batch, with + 1."""
    p, t = logits.sigmoid(), masks.to(logits.dtype)
    dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    bce = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    if style == "mavl":
        return bce.mean() + 1 - dice
    wrong = torch.where(masks > 0, 1 - p, p)
    return 10 * (wrong**2 * bce).mean() - dice.log()


def counted(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """tp, fp, fn of each image at 0.5, int64 [B, 3]; logits, masks [B, H, W]."""
    called, there = logits > 0, masks > 0
    return torch.stack([(a & b).sum((1, 2)) for a, b in ((called, there), (called, ~there), (~called, there))], 1)


def _dice(prediction) -> dict[str, float]:
    found = Counts(*prediction.predictions.T)
    values = dice_per_image(found)[found.positive]
    return {"dice": float(values.mean()) if len(values) else 0.0}


def balanced(release: Release, rows: np.ndarray, seed: int) -> np.ndarray:
    """Of images by number: all with a mask and as many without, ascending positions in `rows`."""
    positive = masks_of(release, rows).any((1, 2))
    without = np.random.default_rng(seed).permutation(np.flatnonzero(~positive))[: positive.sum()]
    return np.sort(np.concatenate([np.flatnonzero(positive), without]))


def segmented(
    model: nn.Module, release: Release, task: Task, train: np.ndarray, cfg: SegmentConfig, seed: int, bf16: bool
) -> dict[str, np.ndarray]:
    """tp, fp, fn [n_test] of a U-Net trained on the task's rows `train`. ValueError where these have no mask."""
    set_seed(seed)
    row_of = release.row_of(task)
    if cfg.style == "mgca" and task.name == "siim":
        train = train[balanced(release, row_of[train], seed)]
    chosen = {"train": train} | {part: task.part_rows(part) for part in ("val", "test")}
    parts = {p: Examples(release.images, row_of[r], masks_of(release, row_of[r])) for p, r in chosen.items()}
    if not parts["train"].targets.any():
        raise ValueError(f"{task.name}: no mask among {len(train)} training images; raise eval.segment.ratios")
    net = UNet(model, cfg, release.images.shape[1])
    trainer = fit(net, parts, "dice", _dice, cfg, seed, bf16, counted)
    return dict(zip(Counts._fields, trainer.predict(parts["test"]).predictions.T, strict=True))


def tables(
    release: Release,
    name: str,
    cfg: SegmentConfig,
    fit_one: Callable[[Task, np.ndarray, int], dict[str, np.ndarray]],
    folder: Path,
) -> list[pd.DataFrame]:
    """Rows of pixel counts (as grounding's), one table per task, share and draw, `name ratio #draw`.

    fit_one: (task, rows to train on, draw) -> tp, fp, fn of the test part; each result is kept in `folder`.
    """
    found = []
    for task in release.tasks.values():
        for ratio in cfg.ratios if task.name in cfg.tasks else ():
            for draw in range(cfg.draws if ratio < 1 else 1):
                label = f"{name} {ratio:g} #{draw}"
                train = task.few_label_rows(ratio, draw or None)
                counts = kept(folder, f"{label} {task.name}", partial(fit_one, task, train, draw))
                rows = rows_of(release, task, task.part_rows("test"), label)
                rows = with_counts(rows, Counts(*(counts[k] for k in Counts._fields)))
                size = release.images.shape[1]
                rows = rows.assign(positive=rows.tp + rows.fn > 0, n_pixels=size * size, threshold=0.5)
                found.append(rows)
    return found
