"""Few labels on the encoder: fine-tuning, linear layers, segmentation; what is learnt, kept, left out, repeated."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vlp_models
from hospitals import SIZE, release, task

from shared.metrics.classification import auroc_per_class
from shared.metrics.segmentation import Counts, metrics_of_rows
from shared.metrics.six_tasks import items_of, metrics_of
from shared.runs.tasks import labels_table
from synth_medvlp import finetune, segment
from synth_medvlp.downstream import WITHIN
from synth_medvlp.finetune import FinetuneConfig, masked_bce, random_crops
from synth_medvlp.segment import SegmentConfig, UNet, balanced, counted, mask_loss

FEW = FinetuneConfig(tasks=["rsna"], ratios=[0.2, 1.0], draws=2, epochs=8, batch=16, lr=3e-3, crop=0.8)
MASKS = SegmentConfig(tasks=["rsna"], epochs=10, batch=16, lr=1e-2, width=8, dropout=0.0, crop=0.8)


def state(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


# --- parts ---


def test_uncertain_labels_are_not_in_the_loss():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    labels = torch.tensor([[1, -1], [0, 1]], dtype=torch.int8)
    p = logits.sigmoid()
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log() + p[1, 1].log()) / 3
    assert masked_bce(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert masked_bce(logits, torch.full_like(labels, -1)).item() == 0


def test_uncertain_labels_are_not_in_the_validation_auroc():
    """The uncertain ones have the greatest and the least score: as negatives, or positives, they would count."""
    labels = np.array([[1, 1], [0, -1], [-1, 0], [-1, -1]], np.int8)
    logits = np.array([[0.5, 0.1], [0.2, 0.9], [0.9, 0.3], [0.0, 0.0]], np.float32)
    prediction = SimpleNamespace(label_ids=labels, predictions=logits)
    assert finetune._auroc(prediction) == {"auroc": 0.5}  # 1 of the first class, 0 of the second
    prediction.label_ids = np.full_like(labels, -1)
    assert finetune._auroc(prediction) == {"auroc": 0.0}


def test_crops_move_images_and_masks_alike_and_flip_half():
    torch.manual_seed(0)
    masks = torch.zeros(200, SIZE, SIZE, dtype=torch.bool)
    masks[:, 4:20, 3:13] = True  # left of the middle
    images, moved = random_crops(masks.to(torch.uint8) * 200, masks, 0.5)
    agree = ((images > 100) == moved).float().mean()
    assert images.dtype == torch.uint8 and moved.dtype == torch.bool and agree > 0.97
    columns = torch.arange(SIZE, dtype=torch.float)
    centre = (moved.float() * columns).sum((1, 2)) / moved.sum((1, 2))
    assert 0.35 < (centre > SIZE / 2).float().mean() < 0.65
    flipped, _ = random_crops(images, None, 1.0)  # the whole image, up to its aspect: mostly a flip or not
    assert flipped.shape == images.shape


def test_mask_losses_are_those_of_the_reference():
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 5, 5), torch.rand(3, 5, 5) < 0.3
    p, t = logits.sigmoid().double(), masks.double()
    dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    bce = -(t * p.log() + (1 - t) * (1 - p).log())
    assert mask_loss(logits, masks, "mavl").item() == pytest.approx((bce.mean() + 1 - dice).item(), rel=1e-5)
    focal = (torch.where(masks, 1 - p, p) ** 2 * bce).mean()
    assert mask_loss(logits, masks, "mgca").item() == pytest.approx((10 * focal - dice.log()).item(), rel=1e-5)
    c = counted(logits, masks)
    called = logits > 0
    assert c[:, 0].tolist() == (called & masks).sum((1, 2)).tolist()
    assert c[:, 1:].sum(1).tolist() == (called ^ masks).sum((1, 2)).tolist()


# --- full fine-tuning ---


def test_fine_tuning_learns_and_leaves_the_model_as_it_was():
    hospital, model = release(120), vlp_models.small().eval()
    rsna, before = hospital.tasks["rsna"], state(model)
    train = rsna.part_rows("train")
    found = finetune.fine_tuned(model, hospital, rsna, train, FEW, 0, False)
    assert same(before, state(model))
    for part in ("val", "test"):
        truth = rsna.labels[rsna.part_rows(part)]
        assert found[part].shape == truth.shape and auroc_per_class(truth, found[part])[0] > 0.85
    again = finetune.fine_tuned(model, hospital, rsna, train, FEW, 0, False)
    np.testing.assert_allclose(again["test"], found["test"], atol=1e-5)
    other = finetune.fine_tuned(model, hospital, rsna, train, FEW, 1, False)
    assert not np.allclose(other["test"], found["test"], atol=1e-3)


def test_a_class_that_the_subset_lacks_is_nan_and_uncertain_ones_do_no_harm():
    hospital = release(classes=("Pneumonia", "second", "third"))
    old = hospital.tasks["rsna"]
    labels = old.labels.copy()
    train = old.part_rows("train")
    labels[train, 1] = 0
    labels[train[::2], 2] = -1
    rsna = task(hospital, "rsna", old.classes, labels)
    cfg = FinetuneConfig(**(vars(FEW) | {"epochs": 1}))
    full = finetune.fine_tuned(vlp_models.small().eval(), hospital, rsna, train, cfg, 0, False)
    features = hospital.images.reshape(len(labels), -1)[:, ::17].astype(float)
    for found in (full, finetune.linear(features, rsna, train)):
        assert np.isnan(found["test"][:, 1]).all() and np.isfinite(found["test"][:, [0, 2]]).all()


def test_the_linear_layer_never_sees_uncertain_labels():
    hospital = release(100)
    old = hospital.tasks["rsna"]
    features = hospital.masks.mean((1, 2))[:, None] + np.random.default_rng(0).normal(0, 0.02, (100, 4))
    train = old.part_rows("train")
    clean = finetune.linear(features, old, train[10:])
    labels = old.labels.copy()
    labels[train[:10]] = -1
    masked = finetune.linear(features, task(hospital, "rsna", old.classes, labels), train)
    np.testing.assert_array_equal(masked["test"], clean["test"])
    truth = old.labels[old.part_rows("test")]
    assert auroc_per_class(truth, clean["test"])[0] > 0.9


def test_every_fit_is_kept_and_stands_in_the_slots_of_its_classes(tmp_path):
    hospital = release(dataset="covidx-cxr2", name="covidx", classes=("a", "b"))
    covidx = hospital.tasks["covidx"]
    some = np.arange(0, 60, 2)
    hospital.tasks["covidx-within:a"] = task(hospital, "covidx-within:a", ("b",), covidx.labels[:, [1]], WITHIN, some)
    hospital.tasks["other"] = task(hospital, "other", ("c",), covidx.labels[:, [0]])
    cfg = FinetuneConfig(tasks=["covidx"], ratios=[0.2, 1.0], draws=2)
    calls = []

    def fit_one(of, train, draw):
        calls.append((of.name, len(train), draw))
        parts = {p: of.part_rows(p) for p in ("val", "test")}
        return {p: np.stack([rows, rows + 100], 1).astype(np.float32) for p, rows in parts.items()}

    found = finetune.tables(hospital, "finetune:image~val", cfg, fit_one, tmp_path)
    assert [c[0] for c in calls] == ["covidx"] * 3 and calls[0][1] < calls[2][1] == 30
    names = [t.input.iloc[0] for t in found]
    wanted = [f"finetune:image{v} {r}" for r in ("0.2 #0", "0.2 #1", "1 #0") for v in ("", "~val")]
    assert names == wanted
    first = found[0].set_index("id").prediction
    assert first.index.tolist() == [covidx.record_ids[i] for i in covidx.part_rows("test")]
    for row, values in zip(covidx.part_rows("test"), first, strict=True):
        assert values[:3].tolist() == [row, row + 100, row + 100] and np.isnan(values[3])
    items_of(found[0], labels_table({"covidx-cxr2": hospital}))  # as many slots as classes
    kinds = {name: ["k"] * len(t.classes) for name, t in hospital.tasks.items()}
    levels, _ = metrics_of(found[0], labels_table({"covidx-cxr2": hospital}), kinds, chance=True)
    assert levels["auroc:other"].value == 0.5
    finetune.tables(hospital, "finetune:image", cfg, fit_one, tmp_path)  # ~val or not: the same fits
    assert len(calls) == 3
    for file in tmp_path.glob("*.npz"):
        file.unlink()
        break
    finetune.tables(hospital, "finetune:image", cfg, fit_one, tmp_path)
    assert len(calls) == 4  # a killed evaluation repeats the missing one only


# --- segmentation ---


def test_segmentation_learns_and_its_rows_score_again(tmp_path):
    hospital, model = release(80), vlp_models.small().eval()
    before = state(model)

    def fit_one(of, train, draw):
        return segment.segmented(model, hospital, of, train, MASKS, draw, False)

    (rows,) = segment.tables(hospital, "segment:image", MASKS, fit_one, tmp_path)
    assert same(before, state(model))
    found = metrics_of_rows(rows)
    assert found["dice"].value > 0.6 and found["dice_published"].value > found["dice_all_empty"].value
    rsna = hospital.tasks["rsna"]
    test = rsna.part_rows("test")
    assert rows.input.unique().tolist() == ["segment:image 1 #0"] and len(rows) == len(test)
    assert (rows.tp + rows.fn).tolist() == hospital.masks[test].sum((1, 2), dtype=int).tolist()
    (again,) = segment.tables(hospital, "segment:image", MASKS, lambda *_: pytest.fail("trained again"), tmp_path)
    assert again.equals(rows)


@pytest.mark.parametrize("arch", ["resnet", "vit"])
def test_the_decoder_gives_one_logit_per_pixel_and_mgca_freezes_the_encoder(arch):
    model = vlp_models.small(image={"arch": arch}).eval()
    images = vlp_models.images(3)
    masks = torch.rand(3, SIZE, SIZE) < 0.2
    net = UNet(model, SegmentConfig(style="mgca", width=4), SIZE).train()
    before = state(net.encoder)
    out = net(images, masks)
    assert out["logits"].shape == masks.shape
    out["loss"].backward()
    assert all(p.grad is None for p in net.encoder.parameters())
    assert all(p.grad is not None for name, p in net.named_parameters() if not name.startswith("encoder."))
    assert same(before, state(net.encoder))  # running statistics too
    trained = UNet(model, SegmentConfig(style="mavl", width=4), SIZE).train()
    trained(images, masks)["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.encoder.image.parameters())


def test_mgca_balances_siim_and_bad_settings_are_refused():
    hospital = release(60, share=0.25)
    rows = np.arange(40)
    chosen = balanced(hospital, rows, 0)
    positive = hospital.masks[rows].any((1, 2))
    assert set(np.flatnonzero(positive)) <= set(chosen) and len(chosen) == 2 * positive.sum()
    with pytest.raises(ValueError, match=r"segment\.style"):
        SegmentConfig(style="unet")
    none = np.flatnonzero(~positive)
    with pytest.raises(ValueError, match=r"rsna: no mask among .* eval.segment.ratios"):
        segment.segmented(vlp_models.small(), hospital, hospital.tasks["rsna"], none, MASKS, 0, False)


def test_counts_survive_the_npz(tmp_path):
    first = finetune.kept(tmp_path / "new", "a", lambda: {"tp": np.arange(3)})
    again = finetune.kept(tmp_path / "new", "a", lambda: pytest.fail("made twice"))
    assert first["tp"].tolist() == again["tp"].tolist() == [0, 1, 2]
    assert Counts(*(np.ones(2, int),) * 3).positive.all()
