"""Metrics of masks against brute force and scikit-learn; both conventions; rescoring from a table of counts."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from shared.metrics.interval import bootstrap_values, interval
from shared.metrics.segmentation import (
    Counts,
    all_empty,
    best_threshold,
    counts,
    counts_by_threshold,
    dice_per_image,
    iou_per_image,
    mask_metrics,
    metrics_of_rows,
    per_map,
    pixel_auprc,
    pointing_hit,
    pointing_hit_ties,
    quantile_grid,
)


def masks(n=12, size=9, empty=4, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, size, size)) < share
    truth[:empty] = False
    predicted = rng.random((n, size, size)) < share
    predicted[[0, 1, n - 1]] = False  # two correctly empty ones, one missed
    return truth, predicted


def test_per_image_values_agree_with_scikit_learn():
    truth, predicted = masks()
    c = counts(truth, predicted)
    for i in range(4, len(truth)):
        y, p = truth[i].ravel(), predicted[i].ravel()
        assert dice_per_image(c)[i] == pytest.approx(f1_score(y, p, zero_division=0))
        assert iou_per_image(c)[i] == pytest.approx(jaccard_score(y, p, zero_division=0))
    assert dice_per_image(c)[:2].tolist() == [1, 1] and dice_per_image(c)[2] == 0 and dice_per_image(c)[-1] == 0


def test_corrected_means_are_over_positives_and_negatives_apart():
    truth, predicted = masks()
    c, n_pixels = counts(truth, predicted), truth[0].size
    found = {k: m.value for k, m in mask_metrics(c, n_pixels).items()}
    positive = truth.any((1, 2))
    hits = (truth & predicted).sum((1, 2))[positive]
    said, there = predicted.sum((1, 2))[positive], truth.sum((1, 2))[positive]
    assert found["dice"] == pytest.approx((2 * hits / (said + there)).mean())
    assert found["precision"] == pytest.approx(np.where(said > 0, hits / np.maximum(said, 1), 0).mean())
    assert found["recall"] == pytest.approx((hits / there).mean())
    assert found["pixel_accuracy"] == pytest.approx((truth == predicted)[positive].mean())
    assert found["empty_predictions"] == pytest.approx(1 / positive.sum())
    assert found["empty_kept"] == 0.5
    assert found["false_positive_area"] == pytest.approx(predicted[~positive].mean())
    assert "dice" not in mask_metrics(Counts(*(x[:4] for x in c)), n_pixels)  # no positive, no Dice


def test_an_all_empty_predictor_scores_the_share_of_negatives_as_published_and_nothing_corrected():
    truth, _ = masks(empty=5)
    c = all_empty(counts(truth, truth))
    assert mask_metrics(c, 81)["dice"].value == 0 and mask_metrics(c, 81)["empty_kept"].value == 1
    published = mask_metrics(c, 81, "as_published")
    assert published["dice_published"].value == pytest.approx(5 / 12)
    there = truth.sum((1, 2))
    assert published["iou_published"].value == pytest.approx((1 / (there + 1)).mean())  # +1 above and below


def test_intervals_rest_on_images_and_match_a_loop():
    truth, predicted = masks(n=30, empty=10)
    metric = mask_metrics(counts(truth, predicted), 81)["dice"]
    patients = [f"{p:02d}" for p in range(15) for _ in range(2)]
    values = bootstrap_values([metric], patients, 50, seed=3)[:, 0]
    dice, positive = dice_per_image(counts(truth, predicted)), truth.any((1, 2))
    rng = np.random.default_rng(3)
    for value in values:
        drawn = [i for p in rng.integers(15, size=15) for i in (2 * p, 2 * p + 1) if positive[i]]
        assert value == pytest.approx(dice[drawn].mean())
    value, low, high = interval(metric, patients, 100)
    assert low < value < high


def test_counts_by_threshold_equals_thresholding_each_map():
    rng = np.random.default_rng(1)
    maps, (truth, _) = rng.normal(size=(6, 9, 9)).round(1), masks(n=6, empty=1)  # rounded: ties with the thresholds
    grid = np.array([-0.5, 0.0, 0.3, 1.1])
    found = counts_by_threshold(maps, truth, grid)
    for t, threshold in enumerate(grid):
        for ours, direct in zip(found, counts(truth, maps >= threshold), strict=True):
            assert ours[:, t].tolist() == direct.tolist()
    with pytest.raises(ValueError, match="ascend"):
        counts_by_threshold(maps, truth, grid[::-1])


def test_the_best_threshold_is_the_best_of_all_on_positives():
    rng = np.random.default_rng(2)
    truth, _ = masks(n=8, empty=3)
    maps = truth * 0.7 + rng.normal(0, 0.4, truth.shape)
    chosen, grid = best_threshold(maps, truth), quantile_grid(maps[3:])
    assert len(grid) == 200 and chosen in grid
    means = [dice_per_image(counts(truth[3:], maps[3:] >= t)).mean() for t in grid]
    assert means[list(grid).index(chosen)] == max(means)
    maps[:3] += 100  # images without a mask have no say
    assert best_threshold(maps, truth) == chosen
    with pytest.raises(ValueError, match="no image with a mask"):
        best_threshold(maps[:3], truth[:3])


def test_pointing_counts_the_first_maximum_and_as_published_any():
    mask = np.zeros((3, 3), bool)
    mask[2, 2] = True
    flat, sharp = np.ones((3, 3)), mask * 1.0
    assert (pointing_hit(flat, mask), pointing_hit_ties(flat, mask)) == (0, 1)
    assert (pointing_hit(sharp, mask), pointing_hit_ties(sharp, mask)) == (1, 1)
    assert pointing_hit_ties(1 - sharp, mask) == 0
    assert np.isnan(per_map(flat[None], np.zeros((1, 3, 3), bool), pointing_hit)).all()


@pytest.mark.parametrize("decimals", [1, 8])
def test_pixel_auprc_is_average_precision_with_ties(decimals):
    rng = np.random.default_rng(4)
    mask = rng.random((12, 12)) < 0.2
    values = (mask + rng.normal(0, 1, mask.shape)).round(decimals)
    assert pixel_auprc(values, mask) == pytest.approx(average_precision_score(mask.ravel(), values.ravel()))


def test_a_table_of_counts_gives_the_same_numbers_again(tmp_path):
    truth, predicted = masks()
    c = counts(truth, predicted)
    table = pd.DataFrame(c._asdict()).assign(n_pixels=81, hit=np.where(c.positive, 1.0, np.nan), auprc=0.5)
    table = table.assign(**{f"{k}_oracle": v for k, v in counts(truth, truth)._asdict().items()})
    table.to_parquet(tmp_path / "rows.parquet")
    table = pd.read_parquet(tmp_path / "rows.parquet")
    found = metrics_of_rows(table)
    for name, metric in mask_metrics(c, 81).items():
        assert found[name].value == metric.value and found[name].n_items == len(truth)
    assert found["pointing"].value == 1 and found["pixel_auprc"].value == 0.5
    assert found["dice_all_empty"].value == pytest.approx(4 / 12)
    oracle = metrics_of_rows(table, "_oracle")
    assert set(oracle) == {"dice_oracle", "iou_oracle"} and oracle["dice_oracle"].value == 1


def test_masks_of_other_shapes_and_unknown_conventions_are_refused():
    truth, predicted = masks()
    with pytest.raises(ValueError, match="bool"):
        counts(truth.astype(np.uint8), predicted)  # 0/255 masks would count 255 times
    with pytest.raises(ValueError, match="bool"):
        counts(truth[:3], predicted)
    with pytest.raises(ValueError, match="corrected, as_published"):
        mask_metrics(counts(truth, predicted), 81, "published")
