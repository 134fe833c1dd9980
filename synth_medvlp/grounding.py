"""Zero-shot grounding: where does the map of a prompt point? (reference: Zero-shot grounding.)

Maps are up-sampled to the mask (bilinear, corners aligned). The threshold of a task is chosen on the masks of its
validation part over 200 pooled quantiles; as published it is one value chosen on the TEST part, kept as *_oracle. One
row per test image holds its pixel counts at both, so that all can be computed again (shared.metrics.segmentation).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from shared.metrics.segmentation import (
    Counts,
    best_threshold,
    counts,
    per_map,
    pixel_auprc,
    pointing_hit,
    pointing_hit_ties,
)
from synth_medvlp.downstream import MASKED, Release, Task

Maps = Callable[[np.ndarray], np.ndarray]  # numbers of images [n] of a release -> maps [n, h, w]


@dataclass
class GroundingConfig:
    """Section `eval.grounding:`."""

    tasks: list[str] = field(default_factory=lambda: list(MASKED))


def ground(release: Release, task: Task, maps_of: Maps, name: str) -> pd.DataFrame:
    """One row per test image: dataset, task, id, patient, split, input (= name), positive, n_pixels, threshold and
    counts tp, fp, fn at it, the same with _oracle, hit, hit_ties, auprc (NaN on images without a mask).

    Raises ValueError where validation, which chooses the threshold, or test has no mask.
    """
    val, test = task.part_rows("val"), task.part_rows("test")
    row_of = release.row_of(task)
    truth_val, truth = masks_of(release, row_of[val]), masks_of(release, row_of[test])
    marked = truth_val.any((1, 2))
    if not marked.any() or not truth.any():
        raise ValueError(
            f"{task.name}: {marked.sum()} of {len(val)} validation and {truth.any((1, 2)).sum()} of {len(test)} test "
            f"images have a mask; use more patients, or take {name} out of eval.inputs"
        )
    size = truth.shape[1]
    maps = upsampled(maps_of(row_of[test]), size)
    on_val = upsampled(maps_of(row_of[val][marked]), size)
    thresholds = {"": best_threshold(on_val, truth_val[marked]), "_oracle": best_threshold(maps, truth)}
    table = rows_of(release, task, test, name).assign(positive=truth.any((1, 2)), n_pixels=size * size)
    for suffix, threshold in thresholds.items():
        table[f"threshold{suffix}"] = threshold
        table = with_counts(table, counts(truth, maps >= np.float64(threshold)), suffix)
    for column, of in (("hit", pointing_hit), ("hit_ties", pointing_hit_ties), ("auprc", pixel_auprc)):
        table[column] = per_map(maps, truth, of)
    return table


def centre_prior(release: Release, task: Task) -> Maps:
    """Control: the mean mask of the training images that have one, for every image."""
    masks = masks_of(release, release.row_of(task)[task.part_rows("train")])
    masks = masks[masks.any((1, 2))]
    if not len(masks):
        raise ValueError(f"{task.name}: no mask in the training part, so no centre prior")
    mean = masks.mean(0, dtype=np.float32)
    return lambda rows: np.broadcast_to(mean, (len(rows), *mean.shape))


def masks_of(release: Release, rows: np.ndarray) -> np.ndarray:
    """bool [n, size, size] of images by number. ValueError for a release without masks."""
    if release.masks is None:
        raise ValueError(f"{release.dataset} has no masks: tasks with masks are {', '.join(MASKED)}")
    return np.asarray(release.masks[rows]) > 0


def upsampled(maps: np.ndarray, size: int) -> np.ndarray:
    """[n, h, w] -> float32 [n, size, size], bilinear with aligned corners, as published."""
    tensor = torch.from_numpy(np.array(maps, np.float32))[:, None]
    return interpolate(tensor, (size, size), mode="bilinear", align_corners=True)[:, 0].numpy()


def rows_of(release: Release, task: Task, chosen: np.ndarray, name: str) -> pd.DataFrame:
    """What identifies the rows of a table of masks."""
    ids, patients = np.array(task.record_ids, dtype=object)[chosen], np.array(task.patients, dtype=object)[chosen]
    table = pd.DataFrame({"dataset": release.dataset, "task": task.name, "id": ids, "patient": patients})
    return table.assign(split="test", input=name)


def with_counts(table: pd.DataFrame, found: Counts, suffix: str = "") -> pd.DataFrame:
    return table.assign(**{f"{key}{suffix}": values for key, values in found._asdict().items()})
