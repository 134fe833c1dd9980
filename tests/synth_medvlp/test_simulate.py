"""The simulated chest radiographs: numbers, findings and their masks, prevalence, defects, speed."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from synth_medvlp import defects
from synth_medvlp.anatomy import LEFT, RIGHT, Exposure, Shape, build, draw_exposure, draw_patient
from synth_medvlp.film import Film, develop
from synth_medvlp.findings import EXCLUDES, KINDS, NAMES, Finding, conditional_rates, draw_finding, draw_findings
from synth_medvlp.lesions import box
from synth_medvlp.simulate import (
    HOSPITALS,
    LEVELS,
    LONG_TAIL,
    picture,
    prevalence_of,
    simulate,
    simulate_patient,
    tail,
)
from synth_medvlp.skeleton import _shoulder

ORGANS = ("cardiomegaly", "emphysema")  # their mask is the organ, not the change


def person(seed: int, view: str = "PA"):
    rng = np.random.default_rng(seed)
    return draw_patient(rng), draw_exposure(rng, view), rng


def view_of(name: str) -> str:
    return "AP" if KINDS[name].bedside else "PA"


# --- the numbers themselves -------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_a_patient_does_not_depend_on_how_many():
    few, many = simulate("mimic-cxr-jpg", 3, 7, 32, "strong"), simulate("mimic-cxr-jpg", 6, 7, 32, "strong")
    for a, b in zip(few, many, strict=False):
        assert a.image.tobytes() == b.image.tobytes()
        assert (a.findings, a.report, a.view, a.boxes) == (b.findings, b.report, b.view, b.boxes)
    other = simulate("mimic-cxr-jpg", 3, 8, 32, "strong")
    assert other[0].image.tobytes() != few[0].image.tobytes()


def test_hospitals_share_no_patients():
    first = {name: simulate_patient(name, 0, 0, 32)[0] for name in HOSPITALS}
    assert len({round(cxr.age, 6) for cxr in first.values()}) == len(HOSPITALS)


def test_findings_and_texts_do_not_depend_on_the_size():
    small, large = simulate("nih-cxr", 3, 1, 32), simulate("nih-cxr", 3, 1, 80)
    assert [c.findings for c in small] == [c.findings for c in large]
    assert [c.report for c in small] == [c.report for c in large]
    assert {c.image.shape for c in small} == {(32, 32)} and {c.image.shape for c in large} == {(80, 80)}


def test_mean_picture_is_the_same_at_every_size():
    patient, exposure, _ = person(3)
    means = [build(n, patient, exposure).attenuation().mean() for n in (48, 64, 128)]
    assert max(means) - min(means) < 0.02 * means[0]


@pytest.mark.parametrize(("name", "depth"), [("mimic-cxr-jpg", np.uint8), ("padchest", np.uint16)])
def test_range_and_depth(name, depth):
    for cxr in simulate(name, 4, 0, 64):
        assert cxr.image.dtype == depth and cxr.image.max() <= HOSPITALS[name].levels
        assert cxr.image.std() > 0.1 * HOSPITALS[name].levels


def test_bright_is_dense_and_structures_add_up():
    patient, _, _ = person(0)
    body = build(128, patient, Exposure())
    total = body.attenuation()
    lung = (body.lung[RIGHT] > 8) & (body.bone < 0.02)
    ribs = (body.lung[RIGHT] > 8) & (body.bone > 0.25)
    belly = (body.grid.y > body.height + 5) & (np.abs(body.grid.x) < 6)
    assert total[belly].mean() > total[ribs].mean() + 0.5 > total[lung].mean() + 0.5
    outside = body.soft == 0
    assert total[outside].max() < 0.7  # bone drawn beyond the skin at most, never tissue
    grey = develop(total, Film(), body.grid.px, np.random.default_rng(0)).astype(float)
    assert grey[lung].mean() < 100 < 190 < grey[belly].mean()


def test_film_follows_beer_lambert():
    flat = np.full((64, 64), 2.0, np.float32)
    film = Film(scatter=0.0, dose=1e9)
    grey = develop(flat, film, 0.5, np.random.default_rng(0)).mean() / 255
    assert grey == pytest.approx(1 / (1 + np.exp((film.centre - 2.0) / film.width)), abs=0.01)
    noisy = [develop(flat, Film(dose=dose), 0.5, np.random.default_rng(0)).std() for dose in (1e3, 1e5)]
    assert noisy[0] > 3 * noisy[1]


def test_projections_differ_as_they_do_on_the_ward():
    patient, _, _ = person(1)
    pa, ap = build(128, patient, Exposure("PA")), build(128, patient, Exposure("AP", inspiration=0.88))
    assert (ap.heart > 1).sum() > 1.05 * (pa.heart > 1).sum()
    assert ap.height < pa.height
    over_lung = [(_shoulder(body, LEFT) * (body.lung[LEFT] > 1)).sum() for body in (pa, ap)]
    assert over_lung[1] > 2 * over_lung[0]  # shoulder blades


@pytest.mark.parametrize("seed", range(3))
def test_cardiothoracic_ratio(seed):
    patient, _, _ = person(seed)

    def ratio(shape):
        body = build(128, patient, Exposure(), shape)
        heart, chest = body.heart > 0.5, (body.lung[LEFT] + body.lung[RIGHT]) > 0.5
        return box(heart)[2] / box(chest)[2]

    assert ratio(Shape()) < 0.54
    assert ratio(Shape(heart=1.24)) > 0.5 and ratio(Shape(heart=1.5)) > 0.58


# --- masks and boxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_mask_is_where_the_picture_changes(name, seed):
    patient, exposure, rng = person(seed, view_of(name))
    finding = draw_finding(name, rng, extent=0.6)
    healthy, none = picture(patient, exposure, [], 96)
    image, masks = picture(patient, exposure, [finding], 96)
    assert none == {} and list(masks) == [name] and masks[name].shape == image.shape
    change = np.abs(image.astype(float) - healthy)
    mask, around = masks[name], binary_dilation(masks[name], iterations=2)
    assert change.max() > 10
    if name == "emphysema":  # the whole chest changes shape
        x, y, w, h = box(mask)
        around[max(y - 3, 0) : y + h + 20, max(x - 3, 0) : x + w + 3] = True  # below, the stomach moves along
    assert (change[~around] > 8).sum() <= 0.002 * change.size
    if name not in ORGANS:
        assert (change[mask] >= 1).mean() > 0.6
    x, y, w, h = box(mask)
    assert mask[y : y + h, x : x + w].sum() == mask.sum()
    assert mask[y].any() and mask[y + h - 1].any() and mask[:, x].any() and mask[:, x + w - 1].any()


@pytest.mark.parametrize("pair", [
    ("pleural_effusion", "consolidation"), ("pneumothorax", "edema"), ("mass", "fibrosis"),
    ("pacemaker", "pleural_effusion"), ("atelectasis", "cardiomegaly"),
])  # fmt: skip
def test_toggling_one_finding_leaves_the_rest(pair):
    patient, exposure, rng = person(5)
    first, second = (draw_finding(name, rng, extent=0.5) for name in pair)
    both, masks = picture(patient, exposure, [first, second], 96)
    alone, _ = picture(patient, exposure, [second], 96)
    change = np.abs(both.astype(float) - alone)
    assert change.max() > 8
    assert (change[~binary_dilation(masks[pair[0]], iterations=2)] > 8).sum() <= 0.002 * change.size


@pytest.mark.parametrize("name", [n for n in NAMES if set(KINDS[n].sides[0]) >= {"left", "right"} and n != "scoliosis"])
def test_sides_are_the_patients(name):
    patient, exposure, rng = person(2)
    exposure = dataclasses.replace(exposure, rotation=0.0, tilt=0.0, shift_x=0.0)
    for side, expected in (("right", -1), ("left", 1)):
        finding = draw_finding(name, rng, side=side, extent=0.5)
        _, masks = picture(patient, exposure, [finding], 96)
        columns = np.flatnonzero(masks[name].any(0))
        at = columns[-1] if expected > 0 else columns[0]  # lines and leads cross the midline, but start on their side
        assert (at - 47.5) * expected > 6, "the patient's right is on the left of the image"


def test_extent_is_size():
    patient, exposure, _ = person(4)
    for name in ("pleural_effusion", "pneumothorax", "consolidation", "nodule", "mass", "cardiomegaly"):
        side = {"cardiomegaly": ""}.get(name, "right")
        sizes = []
        for extent in (0.1, 0.5, 0.9):
            finding = Finding(name, side, KINDS[name].places[0][0], extent, 3)
            sizes.append(picture(patient, exposure, [finding], 96)[1][name].sum())
        assert sizes[0] < sizes[1] < sizes[2]


def test_unlabelled_clutter_is_not_in_the_masks():
    patient, exposure, _ = person(6, "AP")
    finding = Finding("nodule", "left", "upper", 0.5, 1)
    plain, masks = picture(patient, exposure, [finding], 64)
    busy, same = picture(patient, exposure, [finding], 64, marker=True, clutter=True)
    assert (masks["nodule"] == same["nodule"]).all() and (plain != busy).any()


# --- which findings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSPITALS)
def test_prevalence_within_sampling_error(name):
    wanted, share_ap, n = prevalence_of(name, "middle"), HOSPITALS[name].share_ap, 3000
    rates = conditional_rates(wanted, share_ap)
    rng = np.random.default_rng(11)
    counts = dict.fromkeys(NAMES, 0)
    for _ in range(n):
        for finding in draw_findings(rates, "AP" if rng.random() < share_ap else "PA", rng):
            counts[finding.name] += 1
    for finding, p in wanted.items():
        assert abs(counts[finding] - n * p) < 4.5 * np.sqrt(n * p * (1 - p)) + 2, finding


def test_prevalence_of_rendered_patients():
    found = [cxr for k in range(200) for cxr in simulate_patient("siim-acr", 0, k, 16)]
    share = np.mean(["pneumothorax" in cxr.names for cxr in found])
    assert abs(share - 0.24) < 4.5 * np.sqrt(0.24 * 0.76 / len(found))
    assert all(set(cxr.masks) == set(cxr.names) for cxr in found)


def test_no_impossible_combination():
    rates = conditional_rates(dict.fromkeys(NAMES, 0.2), 0.5)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        view = "AP" if rng.random() < 0.5 else "PA"
        drawn = {finding.name: finding for finding in draw_findings(rates, view, rng)}
        assert not any(b in EXCLUDES[a] for a, b in itertools.permutations(drawn, 2))
        assert view == "AP" or "endotracheal_tube" not in drawn
        if {"pneumothorax", "pleural_effusion"} <= set(drawn) and drawn["pleural_effusion"].side != "bilateral":
            assert drawn["pneumothorax"].side != drawn["pleural_effusion"].side


def test_tail_keeps_the_total_and_orders_the_levels():
    for exponent in (0.0, 1.0, 1.5):
        assert sum(tail(LONG_TAIL, exponent).values()) == pytest.approx(sum(LONG_TAIL.values()), rel=0.02)
    rarest = [min(prevalence_of("mimic-cxr-jpg", level).values()) for level in LEVELS]
    assert rarest[0] > 3 * rarest[1] > 3 * rarest[2]


def test_chronic_findings_stay_with_the_patient():
    stays = []
    for k in range(60):
        frontal = [cxr for cxr in simulate_patient("nih-cxr", 2, k, 16) if cxr.view != "LATERAL"]
        for a, b in itertools.pairwise(frontal):
            chronic = [
                {f for f in c.findings if f.name in ("scoliosis", "pacemaker", "tortuous_aorta")} for c in (a, b)
            ]
            stays += [chronic[0] == chronic[1]]
            assert a.age == b.age
    assert len(stays) > 30 and all(stays)


def test_what_cannot_be_is_named():
    with pytest.raises(KeyError, match="pneumonia"):
        conditional_rates({"pneumonia": 0.1}, 0.5)
    with pytest.raises(ValueError, match="endotracheal_tube"):
        conditional_rates({"endotracheal_tube": 0.5}, 0.3)
    with pytest.raises(KeyError, match="unknown hospital"):
        simulate("nowhere", 1, 0)
    with pytest.raises(KeyError, match="unknown defect level"):
        simulate("mimic-cxr-jpg", 1, 0, 32, "awful")
    with pytest.raises(KeyError, match="cold"):
        Finding("cold")
    with pytest.raises(ValueError, match="size_px"):
        simulate("siim-acr", 1, 0, 8)


# --- defects ----------------------------------------------------------------------------------------------------------


def test_defects_come_in_their_shares():
    assert not any(cxr.defect for cxr in simulate("mimic-cxr-jpg", 60, 0, 16, "none"))
    assert not any(cxr.defect for cxr in simulate("chexpert", 30, 0, 16, "strong"))  # test hospitals are clean
    frontal = [cxr for cxr in simulate("mimic-cxr-jpg", 300, 0, 16, "strong") if cxr.view != "LATERAL"]
    for name in defects.DEFECTS:
        share = np.mean([cxr.defect.startswith(name) for cxr in frontal])
        p = getattr(LEVELS["strong"], name)
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / len(frontal))
    for cxr in frontal:
        shows = not cxr.defect or cxr.defect == "mismatched_report"
        assert set(cxr.masks) == (set(cxr.names) if shows else set())
        told = {name for name, said in cxr.report.mentions.items() if said != "negative"}
        assert (told == set(cxr.names)) == (cxr.defect != "mismatched_report")


def test_spoiled_pictures_are_spoiled():
    patient, exposure, rng = person(0)
    good, _ = picture(patient, exposure, [], 64)
    level = {kind: picture(patient, exposure, [], 64, spoiled=kind)[0].astype(float) for kind in defects.UNREADABLE}
    assert level["too_dark"].mean() < 0.5 * good.mean() and level["too_bright"].mean() > 1.5 * good.mean()
    assert level["blank"].std() < 0.1 * good.std()
    detail = {k: np.abs(np.diff(v, axis=0)).mean() for k, v in level.items()}
    assert detail["blurred"] < 0.7 * np.abs(np.diff(good.astype(float), axis=0)).mean() < detail["noisy"]
    assert (level["cropped"] == 0).mean() > 0.6
    for part in ("", *defects.BODY_PARTS):
        total, _ = defects.body_part(64, part, exposure, rng) if part else defects.lateral(64, patient, exposure)
        assert np.isfinite(total).all() and total.min() >= 0 and total.std() > 0.3


# --- speed ------------------------------------------------------------------------------------------------------------


def test_at_least_50_images_a_second_at_64_px():
    simulate("mimic-cxr-jpg", 2, 0)
    best = 0.0
    for trial in range(3):  # processor time: other jobs on this machine do not count
        start = time.process_time()
        n = len(simulate("mimic-cxr-jpg", 25, trial, 64, "middle"))
        best = max(best, n / (time.process_time() - start))
    assert best > 50
