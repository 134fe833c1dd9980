"""Maps against masks: where thresholds come from, what is counted, controls, and the maps of both methods."""

import numpy as np
import pytest
import vlp_models
from hospitals import SIZE, release

from shared.metrics.segmentation import counts, dice_per_image, metrics_of_rows, quantile_grid
from synth_medvlp.config import Config
from synth_medvlp.downstream import Release
from synth_medvlp.evaluate import Evaluation, summary_of_masks
from synth_medvlp.grounding import centre_prior, ground, masks_of, upsampled
from synth_medvlp.inputs import Input


def bright(hospital: Release):
    """Maps that are the image itself at half the size."""
    return lambda rows: hospital.images[rows].reshape(len(rows), SIZE // 2, 2, SIZE // 2, 2).mean((2, 4))


def test_the_threshold_is_validations_and_the_test_one_is_kept_apart():
    hospital = release(80)
    task = hospital.tasks["rsna"]
    test, val = task.part_rows("test"), task.part_rows("val")

    def shifted(rows):  # test maps are 100 brighter: what validation chooses is too low there
        return bright(hospital)(rows) + 100 * np.isin(rows, test)[:, None, None]

    rows = ground(hospital, task, shifted, "grounding:image")
    truth, on_val = masks_of(hospital, test), masks_of(hospital, val)
    maps = upsampled(shifted(test), SIZE)
    assert rows.threshold.nunique() == rows.threshold_oracle.nunique() == 1
    assert rows.threshold[0] < rows.threshold_oracle[0] - 60
    marked = on_val.any((1, 2))
    maps_val = upsampled(shifted(val), SIZE)[marked].astype(float)
    dice = [dice_per_image(counts(on_val[marked], maps_val >= t)).mean() for t in quantile_grid(maps_val)]
    chosen = dice_per_image(counts(on_val[marked], maps_val >= rows.threshold[0])).mean()
    assert chosen == pytest.approx(max(dice)) and chosen > 0.8
    for suffix in ("", "_oracle"):
        again = counts(truth, maps >= np.float64(rows[f"threshold{suffix}"][0]))
        assert all(rows[f"{k}{suffix}"].tolist() == v.tolist() for k, v in again._asdict().items())
    found = metrics_of_rows(rows) | metrics_of_rows(rows, "_oracle")
    assert found["dice_oracle"].value > 0.8 > 0.5 > found["dice"].value
    assert found["pointing"].value == 1 and found["pixel_auprc"].value > 0.9
    assert found["false_positive_area"].value > 0.5


def test_rows_name_every_test_image_once_and_negatives_have_no_pointing():
    hospital = release()
    task = hospital.tasks["rsna"]
    rows = ground(hospital, task, bright(hospital), "grounding:image")
    assert rows.id.tolist() == [task.record_ids[i] for i in task.part_rows("test")]
    assert set(rows.split) == {"test"} and (rows.n_pixels == SIZE * SIZE).all()
    assert rows.positive.tolist() == masks_of(hospital, task.part_rows("test")).any((1, 2)).tolist()
    for column in ("hit", "hit_ties", "auprc"):
        assert rows[column].notna().tolist() == rows.positive.tolist()
    assert (rows.tp[~rows.positive] == 0).all() and (rows.fn[~rows.positive] == 0).all()


def test_maps_are_upsampled_bilinearly_with_aligned_corners():
    corners = np.array([[[0.0, 3.0], [6.0, 9.0]]])
    large = upsampled(corners, 4)[0]
    np.testing.assert_allclose(large, np.add.outer([0, 2, 4, 6], [0, 1, 2, 3]))


def test_the_centre_prior_is_the_mean_training_mask_and_no_test_mask_changes_it():
    hospital = release()
    task = hospital.tasks["rsna"]
    train = hospital.masks[task.part_rows("train")]
    before = centre_prior(hospital, task)(np.arange(3))
    np.testing.assert_allclose(before, np.broadcast_to(train[train.any((1, 2))].mean(0), before.shape), rtol=1e-6)
    hospital.masks[task.part_rows("test")] = 1
    assert np.array_equal(centre_prior(hospital, task)(np.arange(3)), before)


def test_without_masks_it_says_what_is_missing():
    hospital = release()
    task = hospital.tasks["rsna"]
    hospital.masks[task.part_rows("val")] = 0
    with pytest.raises(ValueError, match=r"rsna: 0 of 15 validation .*eval.inputs"):
        ground(hospital, task, bright(hospital), "grounding:image")
    hospital.masks = None
    with pytest.raises(ValueError, match="has no masks"):
        masks_of(hospital, np.arange(2))


@pytest.mark.parametrize("profile", ["convirt", "gloria"])
def test_inputs_and_controls_of_a_model(profile, tmp_path):
    hospital, cfg = release(), Config()
    cfg.train.bf16, cfg.eval.batch = False, 7  # batches that do not divide the images
    cfg.eval.grounding.tasks = ["rsna"]
    model = vlp_models.small(profile).eval()
    masked = {hospital.dataset: hospital}
    evaluation = Evaluation(cfg, model, {}, masked, {}, {"Pneumonia": "normal"}, tmp_path)
    task, rows = hospital.tasks["rsna"], np.arange(20)
    plain = evaluation.maps(hospital, task, Input("grounding:image"))(rows)
    assert len(plain) == 20 and plain.ndim == 3
    shuffled = evaluation.maps(hospital, task, Input("", "shuffled"))(rows)
    assert (shuffled != plain).any((1, 2)).all()
    assert sorted(m.tobytes() for m in shuffled) == sorted(m.tobytes() for m in plain)
    zeroed = evaluation.maps(hospital, task, Input("", "zeroed"))(rows)
    assert np.ptp(zeroed, axis=0).max() < 1e-5
    assert not np.allclose(evaluation.maps(hospital, task, Input("", "prompts"))(rows), plain)
    assert not np.allclose(evaluation.maps(hospital, task, Input("", variation="description"))(rows), plain)
    cosines = evaluation.maps(hospital, task, Input("grounding:image+cosine", "", "grounding", "cosine"))(rows)
    assert np.array_equal(cosines, plain) == (profile == "convirt"), "which has no other map"
    (table,) = evaluation.tables(Input("grounding:image~prior", "prior", "grounding"))
    assert table.input.unique().tolist() == ["grounding:image~prior"]
    found = summary_of_masks(table, 20)["grounding:image~prior"]
    assert {"dice:rsna", "dice_oracle:rsna", "pointing:rsna", "dice_all_empty:rsna"} <= set(found)
    low, high = found["dice:rsna"]["ci"]
    assert low <= found["dice:rsna"]["value"] <= high
