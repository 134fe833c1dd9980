"""Metrics of masks: Dice, IoU, pointing game, pixel AUPRC, thresholds of maps. Serves Synthetic Med-VLP and Argus.

What is kept of an image are its pixel counts, so every number can be computed again from a table with one row per
image (`metrics_of_rows`). Two named conventions for the mean over images:

corrected      Dice and IoU over images whose true mask is not empty; what happens on the others is told apart (share of
               them left empty, area of false positives).
as_published   Dice over all images where a correctly empty prediction scores 1, IoU with +1 in numerator and
               denominator. An all-empty predictor then scores the share of negatives, hence `all_empty`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from shared.metrics.interval import Metric, Scores, mean_scores

VERSION = 1  # raise it whenever any number below can change
CONVENTIONS = ("corrected", "as_published")
N_QUANTILES = 200  # of the pooled map values: candidates for a threshold


class Counts(NamedTuple):
    """Pixels per image, int64 [n] (or [n, n_thresholds])."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """Images whose true mask is not empty."""
        return self.tp + self.fn > 0

    @property
    def predicted(self) -> np.ndarray:
        return self.tp + self.fp


def counts(truth: np.ndarray, predicted: np.ndarray) -> Counts:
    """truth, predicted: bool [n, H, W]. ValueError for other shapes or values."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 3 or truth.dtype != bool or predicted.dtype != bool:
        raise ValueError(
            f"masks {truth.dtype} {truth.shape} and {predicted.dtype} {predicted.shape}: bool [n, H, W] each"
        )
    pixels = (1, 2)
    return Counts((truth & predicted).sum(pixels), (~truth & predicted).sum(pixels), (truth & ~predicted).sum(pixels))


def all_empty(found: Counts) -> Counts:
    """Counts of a predictor that never marks a pixel, on the same images."""
    zero = np.zeros_like(found.tp)
    return Counts(zero, zero, found.tp + found.fn)


# --- per image -> mean ------------------------------------------------------------------------------------------------


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """above / below, `empty` where that is 0 / 0."""
    below = np.asarray(below, np.float64)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), empty)


def dice_per_image(c: Counts) -> np.ndarray:
    """2 tp / (2 tp + fp + fn) [n]; 1 where both masks are empty."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1.0)


def iou_per_image(c: Counts, smoothing: float = 0.0) -> np.ndarray:
    """(tp + smoothing) / (tp + fp + fn + smoothing) [n]; 1 where both masks are empty."""
    return _ratio(c.tp + smoothing, c.tp + c.fp + c.fn + smoothing, 1.0)


def _mean_of(name: str, values: np.ndarray, chosen: np.ndarray) -> Scores:
    """Mean of `values` over the images `chosen`, as a metric over all images; NaN where none is."""
    chosen = np.asarray(chosen, bool)
    stats = np.stack([np.where(chosen, values, 0.0), chosen], axis=1).astype(np.float64)
    return Scores(name, VERSION, stats, _share)


def _share(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def mask_metrics(c: Counts, n_pixels: np.ndarray | int, convention: str = "corrected") -> dict[str, Metric]:
    """Metrics over the same n images, ready for bootstrap intervals. ValueError for an unknown convention.

    corrected: dice, iou, precision (0 where nothing is predicted), recall, pixel_accuracy over positives; over
    negatives empty_kept (share without a predicted pixel) and false_positive_area (share of pixels); empty_predictions,
    the share of positives where nothing is predicted. as_published: dice_published, iou_published over all images.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r}: use one of {', '.join(CONVENTIONS)}")
    if convention == "as_published":
        return {
            "dice_published": mean_scores("dice_published", VERSION, dice_per_image(c)),
            "iou_published": mean_scores("iou_published", VERSION, iou_per_image(c, 1.0)),
        }
    positive, nothing = c.positive, c.predicted == 0
    over_positives = {
        "dice": dice_per_image(c),
        "iou": iou_per_image(c),
        "precision": _ratio(c.tp, c.predicted),
        "recall": _ratio(c.tp, c.tp + c.fn),
        "pixel_accuracy": 1 - (c.fp + c.fn) / n_pixels,
        "empty_predictions": nothing,
    }
    over_negatives = {"empty_kept": nothing, "false_positive_area": c.fp / n_pixels}
    found = {name: _mean_of(name, values, positive) for name, values in over_positives.items() if positive.any()}
    return found | {n: _mean_of(n, values, ~positive) for n, values in over_negatives.items() if (~positive).any()}


def metrics_of_rows(rows: pd.DataFrame, suffix: str = "") -> dict[str, Metric]:
    """All metrics of a table with one row per image and the columns tp, fp, fn (each + suffix) and n_pixels.

    With suffix "_oracle", of a threshold chosen on the test part: only dice_oracle and iou_oracle. Without: both
    conventions, dice_all_empty (as published, of the all-empty predictor), and, where the table has the columns, over
    positives pointing (hit), pointing_ties (hit_ties) and pixel_auprc (auprc).
    """
    c = Counts(*(rows[f"{name}{suffix}"].to_numpy(np.int64) for name in Counts._fields))
    found = mask_metrics(c, rows.n_pixels.to_numpy())
    if suffix:
        return {f"{n}{suffix}": _mean_of(f"{n}{suffix}", v(c), c.positive) for n, v in
                (("dice", dice_per_image), ("iou", iou_per_image)) if c.positive.any()}  # fmt: skip
    found |= mask_metrics(c, rows.n_pixels.to_numpy(), "as_published")
    empty = dice_per_image(all_empty(c))
    found["dice_all_empty"] = mean_scores("dice_all_empty", VERSION, empty)
    for name, column in (("pointing", "hit"), ("pointing_ties", "hit_ties"), ("pixel_auprc", "auprc")):
        if column in rows and c.positive.any():
            values = np.nan_to_num(rows[column].to_numpy(np.float64))  # negatives have none
            found[name] = _mean_of(name, values, c.positive)
    return found


# --- maps -------------------------------------------------------------------------------------------------------------


def quantile_grid(maps: Sequence[np.ndarray], n: int = N_QUANTILES) -> np.ndarray:
    """Candidate thresholds, ascending: n quantiles of all values of all maps, without the extremes."""
    pooled = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    return np.unique(np.quantile(pooled, (np.arange(n) + 0.5) / n))


def counts_by_threshold(maps: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> Counts:
    """Counts [n, n_thresholds] of `map >= threshold` for ascending thresholds; maps [n, H, W], truth bool [n, H, W]."""
    thresholds = np.asarray(thresholds, np.float64)
    if (np.diff(thresholds) <= 0).any():
        raise ValueError("thresholds must ascend")
    hits, wrong = (np.zeros((len(maps), len(thresholds)), np.int64) for _ in range(2))
    for i, (values, mask) in enumerate(zip(maps, truth, strict=True)):
        at = np.searchsorted(thresholds, values, side="right")  # thresholds at or below each pixel
        for table, chosen in ((hits, mask), (wrong, ~mask)):
            per_step = np.bincount(at[chosen], minlength=len(thresholds) + 1)
            table[i] = np.cumsum(per_step[::-1])[::-1][1:]
    return Counts(hits, wrong, np.asarray(truth).sum((1, 2))[:, None] - hits)


def best_threshold(maps: np.ndarray, truth: np.ndarray, grid: np.ndarray | None = None) -> float:
    """The threshold with the greatest mean Dice over images with a mask, the highest of equals.

    grid: candidates, ascending; None = `quantile_grid` of the maps of those images. ValueError where no mask has a
    pixel.
    """
    positive = np.asarray(truth).any((1, 2))
    if not positive.any():
        raise ValueError("no image with a mask: a threshold cannot be chosen on these")
    maps, truth = np.asarray(maps)[positive], np.asarray(truth)[positive]
    grid = quantile_grid(maps) if grid is None else grid
    mean = dice_per_image(counts_by_threshold(maps, truth, grid)).mean(axis=0)
    return float(grid[len(mean) - 1 - np.argmax(mean[::-1])])


def per_map(maps: np.ndarray, truth: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """`of`(map, mask) of each image with a mask [n]; NaN for the others."""
    return np.array([of(m, t) if t.any() else np.nan for m, t in zip(maps, truth, strict=True)])


def pointing_hit(values: np.ndarray, mask: np.ndarray) -> float:
    """1 where the first greatest value, row by row, lies in the mask."""
    return float(mask.ravel()[int(np.argmax(values))])


def pointing_hit_ties(values: np.ndarray, mask: np.ndarray) -> float:
    """As published: 1 where any of the greatest values does."""
    return float(mask[values == values.max()].any())


def pixel_auprc(values: np.ndarray, mask: np.ndarray) -> float:
    """Average precision of the pixels of one image, tied values as one step."""
    values, mask = np.asarray(values, np.float64).ravel(), np.asarray(mask, bool).ravel()
    order = np.argsort(-values, kind="stable")
    ordered, hits = values[order], np.cumsum(mask[order])
    last = np.concatenate([ordered[1:] < ordered[:-1], [True]])
    hits, called = hits[last], np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * hits / called).sum() / mask.sum())
