"""Simulated chest CTs: the same patient at any resolution, tissue in HU, findings where they are said to be and as
large, reports that say what was drawn."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from shared.ct import simulate_anatomy as anatomy
from shared.ct.simulate import SOURCES, Scan, draw_studies, render, simulate_patient, spaced_grid, study_grid
from shared.ct.simulate_findings import KINDS, LABELS, draw_finding, draw_findings, labels
from shared.ct.simulate_organs import vessel
from shared.ct.simulate_shapes import Grid, Tubes, blob, tube_cover
from shared.ct.simulate_sheet import examples, visibility
from shared.metrics.ct_findings import CT_RATE_LABELS, FINDINGS, asserted, ct_rate_labels, extract

SMALL = (32, 48, 48)
STATUS = {"positive": "present", "uncertain": "uncertain", "negative": "absent"}


@pytest.fixture(scope="module")
def person():
    patient = anatomy.draw_patient(np.random.default_rng(3))
    scan = Scan("none", "soft", 12.0, 2 * patient.half_width_mm + 20, 305 * patient.scale[0], (-7.0, 6.0, 0.0), 5)
    return patient, scan


def every_study(n: int, seed: int = 11):
    return [(name, study) for name in SOURCES for k in range(n) for study in draw_studies(name, seed, k)]


# --- shapes ---


def brute_share(grid: Grid, inside, fine: int = 8) -> np.ndarray:
    """Share of each voxel inside a shape, by counting points."""
    axes = []
    for first, n, step in zip(grid.first_mm, grid.shape, grid.spacing_mm, strict=True):
        axes.append(first + (np.arange(n * fine) + 0.5) * step / fine - step / 2)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    d, h, w = grid.shape
    return inside(z, y, x).reshape(d, fine, h, fine, w, fine).mean((1, 3, 5))


@pytest.mark.parametrize("radius", [0.8, 2.0, 6.0])
def test_a_tube_fills_what_it_should_wherever_it_lies(radius):
    grid = Grid((14, 14, 14), (4.0, 3.0, 3.0))
    for shift in ((0.0, 0.0, 0.0), (1.3, 0.7, -1.1)):
        a, b = np.array([-12.0, -6.0, -9.0]) + shift, np.array([11.0, 8.0, 7.0]) + shift
        box, share = tube_cover(grid, Tubes(a[None], b[None], np.array([radius]), np.array([radius])))

        def inside(z, y, x, a=a, b=b):
            p = np.stack([z, y, x], -1) - a
            t = np.clip(p @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            return np.linalg.norm(p - t[..., None] * (b - a), axis=-1) < radius

        truth = brute_share(grid, inside)
        drawn = np.zeros(grid.shape)
        drawn[box] = share
        ball = 4 / 3 * np.pi * radius**3  # thin tubes end flat, thick ones round
        assert drawn.sum() * 36 == pytest.approx(truth.sum() * 36, abs=0.06 * truth.sum() * 36 + ball)
        assert np.corrcoef(drawn.ravel(), truth.ravel())[0, 1] > (0.9 if radius > 1 else 0.8)


def test_a_small_ball_keeps_its_volume_between_voxels():
    for spacing in ((6.0, 5.0, 5.0), (2.0, 1.5, 1.5), (0.7, 0.6, 0.6)):
        grid = Grid((12, 12, 12), spacing)
        for centre in ((0.0, 0.0, 0.0), (1.0, -0.7, 0.4)):
            _, share = blob(grid, centre, 2.6, lambda z, y, x: np.sqrt(z * z + y * y + x * x) - 2.0)
            assert share.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * 8, rel=0.08), (spacing, centre)


# --- the patient ---


def test_a_patient_follows_from_its_number_only():
    again = draw_studies("bimcv-r", 4, 7), draw_studies("bimcv-r", 4, 7)
    assert again[0] == again[1]
    one, two = (simulate_patient("inspect", 2, 3, SMALL)[0].volume.hu for _ in range(2))
    assert one.dtype == np.int16 and one.shape == SMALL
    np.testing.assert_array_equal(one, two)
    other = [
        simulate_patient(*args, SMALL)[0].volume.hu
        for args in (("inspect", 2, 4), ("inspect", 3, 3), ("ct-rate", 2, 3))
    ]
    assert all((one != hu).mean() > 0.5 for hu in other)


def test_finer_voxels_show_the_same_patient(person):
    patient, scan = person
    rng = np.random.default_rng(0)
    findings = [draw_finding(name, rng) for name in ("mass", "pleural_effusion", "aortic_calcification")]
    coarse = render(patient, findings, scan, study_grid(scan, (32, 48, 48)), noise=False)
    fine = render(patient, findings, scan, study_grid(scan, (96, 144, 144)), noise=False)
    averaged = fine.hu.astype(float).reshape(32, 3, 48, 3, 48, 3).mean((1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.hu.ravel())[0, 1] > 0.985
    assert np.abs(averaged - coarse.hu).mean() < 30
    assert coarse.volume_mm3[2] == pytest.approx(fine.volume_mm3[2], rel=0.25)  # plaques thinner than a coarse voxel
    detail = [np.abs(np.diff(v.hu.astype(float), axis=2)).max() for v in (coarse, fine)]
    assert detail[1] > detail[0]


def test_tissues_have_their_hounsfield_units(person):
    patient, scan = person
    grid = spaced_grid(scan, (3.0, 2.5, 2.5))
    hu = {
        phase: render(patient, [], replace(scan, phase=phase), grid, noise=False).hu for phase in ("none", "pulmonary")
    }

    def at(points, phase="none"):
        index = np.rint((np.atleast_2d(points) - grid.first_mm) / grid.spacing_mm).astype(int)
        return np.median(hu[phase][tuple(index.T)])

    lung = anatomy.points_in_lungs(patient, np.random.default_rng(1), 300, 6.0)
    assert -930 < at(lung) < -760
    assert 35 < at(patient.mm([(-120, 0, -70), (-110, 10, -60)])) < 75  # liver
    assert at(patient.mm([(60, 20, 0)])) < -900  # trachea
    aorta, arteries = (vessel(patient, name, 8).start[2:6] for name in ("descending aorta", "right pulmonary artery"))
    assert 30 < at(aorta) < 55 and 200 < at(aorta, "pulmonary") < 300 < at(arteries, "pulmonary")
    marrow = patient.mm(
        [(z, float(anatomy.spine_y(patient, z)), 0) for z in (-163 + 23 * (k + 0.5) for k in range(2, 9))]
    )
    assert 60 < at(marrow) < 300
    assert (hu["none"][:, :3] == -1000).mean() > 0.9 and hu["none"].max() > 400
    assert 0.05 < (hu["none"] < -900).mean() < 0.95


def test_lungs_lie_on_both_sides_and_the_heart_to_the_left(person):
    patient, _ = person
    p = anatomy.points_in_lungs(patient, np.random.default_rng(2), 2000)
    share = (p[:, 2] < 0).mean()
    assert 0.5 < share < 0.65  # the right lung is the larger
    assert {int(k) for k in anatomy.lobe_of(patient, *p.T)} == set(range(5))
    litres = len(p) and (anatomy.lung_distance(patient, *_cube()) < 0).mean() * 300**3 / 1e6
    assert 2.5 < litres < 8


def _cube():
    g = np.linspace(-150, 150, 61, dtype=np.float32)
    return g[:, None, None], g[None, :, None], g[None, None, :]


# --- findings ---


def test_all_labels_of_ct_rate_are_covered_and_mean_the_same_as_in_the_metric():
    assert LABELS == CT_RATE_LABELS
    assert {kind.label for kind in KINDS.values()} - {""} == set(LABELS)
    assert {name: kind.label or None for name, kind in KINDS.items()} == {n: FINDINGS[n].label for n in KINDS}
    for name, kind in KINDS.items():
        places = {place for (_, place), _ in kind.where} - {""}
        assert places <= set(FINDINGS[name].regions) or name == "fibrosis", name


@pytest.fixture(scope="module")
def rendered():
    """Per example: finding, patient, change that it makes, box, grid."""
    out = []
    for f in examples(1):
        rng = np.random.default_rng([1, len(f.name)])
        patient = anatomy.draw_patient(rng)
        phase = "pulmonary" if f.name == "pulmonary_embolism" else "none"
        scan = Scan(phase, "soft", 10.0, 2 * patient.half_width_mm + 20, 310 * patient.scale[0], (-7.0, 6.0, 0.0), 5)
        grid = study_grid(scan, (48, 64, 64))
        made = render(patient, [f], scan, grid, noise=False)
        change = made.hu.astype(float) - render(patient, [], scan, grid, noise=False).hu
        out.append((f, patient, change, made.boxes[0], grid))
    return out


def test_every_finding_changes_the_volume_in_its_box(rendered):
    for f, _, change, box, _ in rendered:
        assert box, f
        z0, y0, x0, z1, y1, x1 = (max(v - 2, 0) if k < 3 else v + 2 for k, v in enumerate(box))
        inside = np.abs(change[z0:z1, y0:y1, x0:x1]).sum()
        assert np.abs(change).max() > 25, f
        limit = 0.35 if f.name in ("aortic_aneurysm", "cardiomegaly") else 0.6
        assert inside > limit * np.abs(change).sum(), (f, inside / np.abs(change).sum())


def test_findings_lie_where_they_are_said_to_be(rendered):
    height = {}
    for f, _, change, _, grid in rendered:
        weight = np.abs(change)
        z, y, x = (float((weight * c).sum() / weight.sum()) for c in grid.coordinates(tuple(map(slice, grid.shape))))
        if f.side in ("left", "right"):
            assert (x > 0) == (f.side == "left"), (f, x)
        height.setdefault(f.place, []).append(z)
        if f.name in ("pleural_effusion", "pneumothorax"):
            assert (y > 10) == (f.name == "pleural_effusion"), (f, y)
    assert min(height["upper_lobe"]) > max(height["lower_lobe"]) - 25
    assert np.mean(height["upper_lobe"]) > np.mean(height["lower_lobe"]) + 50


@pytest.mark.parametrize("diameter", [5.0, 12.0, 24.0])
def test_a_nodule_has_the_size_and_density_that_it_is_said_to_have(person, diameter):
    patient, scan = person
    f = draw_finding("nodule", np.random.default_rng(4), form="solid", size_mm=diameter, density_hu=40)
    for spacing in ((5.0, 4.0, 4.0), (1.5, 1.2, 1.2)):
        made = render(patient, [f], scan, spaced_grid(scan, spacing), noise=False, shares=True)
        assert made.volume_mm3[0] == pytest.approx(np.pi / 6 * diameter**3, rel=0.3)
    box, share = made.shares[0]
    assert np.median(made.hu[box][share > 0.95]) == pytest.approx(40, abs=3)
    z0, _, x0, z1, _, x1 = made.boxes[0]
    assert (x1 - x0) * 1.2 == pytest.approx(diameter, abs=0.25 * diameter + 2.5)
    assert (z1 - z0) * 1.5 == pytest.approx(diameter, abs=0.25 * diameter + 3)


def test_large_findings_stand_out_at_the_laptop_grid_and_small_ones_need_a_finer_one():
    rng = np.random.default_rng(0)
    for name, size in (("consolidation", 60), ("mass", 50), ("hiatal_hernia", 60), ("nodule", 24)):
        f = draw_finding(name, rng, size_mm=size)
        assert visibility(f, 0, SMALL)["cnr"] > 0.5, name
    small = draw_finding("nodule", rng, form="solid", side="right", place="upper_lobe", size_mm=4.0)
    coarse, fine = (visibility(small, 0, shape) for shape in (SMALL, (120, 160, 160)))
    assert coarse["contrast_hu"] < 0.5 * fine["contrast_hu"]


def test_findings_are_compatible_and_follow_their_rates():
    studies = every_study(250)
    counts = {name: Counter() for name in SOURCES}
    for source, study in studies:
        names = Counter(f.name for f in study.findings)
        counts[source].update(set(names))
        assert study.scan.phase == "pulmonary" or "pulmonary_embolism" not in names
        for name in names:
            assert not set(KINDS[name].excludes) & set(names)
        taken = [lobe for f in study.findings if KINDS[f.name].slot for lobe in f.lobes]
        assert len(taken) == len(set(taken))
        assert list(labels(study.findings)) == list(LABELS)
    n = sum(source == "ct-rate" for source, _ in studies)
    for name, kind in KINDS.items():
        rate = SOURCES["ct-rate"].rates.get(name, 0)
        if not (kind.slot or kind.aged or kind.excludes):
            assert counts["ct-rate"][name] / n == pytest.approx(rate * 0.92, abs=3.5 * np.sqrt(rate / n) + 0.02), name
    assert not counts["ct-rate"]["pulmonary_embolism"] and counts["inspect"]["pulmonary_embolism"] > 25


def test_chronic_findings_stay():
    pairs = [s for k in range(120) if len(s := draw_studies("ct-rate", 0, k)) == 2]
    assert len(pairs) > 5
    for first, second in pairs:
        assert first.patient == second.patient
        kept = {f for f in first.findings if KINDS[f.name].chronic}
        lost = kept - set(second.findings)
        assert all(KINDS[f.name].slot or any(f.name in KINDS[g.name].excludes for g in second.findings) for f in lost)


# --- reports ---


def test_reports_say_what_was_drawn_and_deny_what_was_not():
    total = wrong = 0
    for source, study in every_study(120):
        report = study.report
        impression = "" if report.impression == "Not given." else report.impression
        text = f"{report.findings}\n{impression}"
        assert not re.search(r"[{}+]|\bnone\b|  ", text + report.original, re.IGNORECASE), text
        drawn = {f.name for f in study.findings}
        said = {name for name, status in report.mentions.items() if status != "negative"}
        assert said == drawn
        found = extract(text)
        total += len(report.mentions)
        wrong += sum(name not in found or found[name].status != STATUS[s] for name, s in report.mentions.items())
        assert {name for (name,) in asserted(text)} <= drawn
        assert bool(report.findings) == (source != "inspect") and bool(report.original) == (source == "bimcv-r")
        assert ct_rate_labels(text) == {(label,) for label, there in labels(study.findings).items() if there}
        for f in study.findings:
            places = {p for p in found[f.name].places if p.region or p.side} if f.name in found else set()
            if places and f.side in ("left", "right") and f.name not in ("nodule",):
                assert {p.side for p in places} <= {f.side}, (f, text)
    assert total > 2500 and wrong <= 0.01 * total


def test_reports_vary_and_give_sizes():
    texts = [study.report for source, study in every_study(60) if source == "ct-rate"]
    assert len({t.findings for t in texts}) > 0.9 * len(texts)
    assert sum(bool(re.search(r"\d (mm|cm)", t.findings)) for t in texts) > 0.4 * len(texts)
    spanish = " ".join(s.report.original for source, s in every_study(60) if source == "bimcv-r")
    assert "nódulo" in spanish and not re.search(r"\b(the|lobe|observed)\b", spanish)


def test_wrong_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(KeyError, match="mri"):
        draw_studies("mri", 0, 0)
    with pytest.raises(KeyError, match="gout"):
        draw_finding("gout", rng)
    with pytest.raises(KeyError, match="gout"):
        draw_findings({"gout": 0.5}, 50, False, rng)
    with pytest.raises(ValueError, match="shape"):
        simulate_patient("ct-rate", 0, 0, (4, 4, 4))
