"""Simulated releases are read by the same loaders as official ones."""

import numpy as np
import pandas as pd
import pytest

from shared.ct import bimcv_r, ct_rate, inspect_ctpa
from shared.ct.simulate import draw_studies, render, study_grid
from shared.ct.simulate_findings import LABELS
from shared.ct.simulate_layouts import write

LOADERS = {"ct-rate": ct_rate, "bimcv-r": bimcv_r, "inspect": inspect_ctpa}
N, SHAPE, SEED = 12, (24, 40, 40), 3


@pytest.fixture(scope="module", params=LOADERS)
def tree(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("official") / request.param
    return request.param, LOADERS[request.param], write(request.param, root, N, SEED, SHAPE)


@pytest.fixture(scope="module")
def truth(tree):
    return pd.read_parquet(tree[2] / "truth.parquet").set_index("volume_id")


def test_every_volume_is_read_as_it_was_drawn(tree, truth):
    name, loader, root = tree
    index = loader.read_index(root)
    assert set(index.volume_id) == set(truth.index) and not index.flag.any() and not index.attrs["warnings"]
    orientations = set()
    for _, row in index.iterrows():
        volume, drawn = loader.read_volume(root, row), truth.loc[row.volume_id]
        study = draw_studies(name, SEED, int(drawn.number))[int(drawn.study)]
        grid = study_grid(study.scan, SHAPE)
        expected = render(study.patient, study.findings, study.scan, grid)
        np.testing.assert_array_equal(volume.hu, expected.hu)
        np.testing.assert_allclose(volume.spacing_mm, grid.spacing_mm, rtol=1e-5)
        np.testing.assert_allclose(volume.origin_mm, grid.first_mm[::-1], atol=1e-3)
        assert volume.orientation == "LPS"
        orientations.add(_header_code(root / row.path))
    assert orientations == {"ct-rate": {"LPS"}, "bimcv-r": {"LAS", "LPS"}, "inspect": {"LPS", "RAS"}}[name]


def _header_code(path) -> str:
    import nibabel

    return "".join(nibabel.aff2axcodes(nibabel.load(path).affine))


def test_texts_and_labels_are_those_of_the_study(tree, truth):
    name, loader, root = tree
    for _, row in loader.read_index(root).iterrows():
        drawn = truth.loc[row.volume_id]
        study = draw_studies(name, SEED, int(drawn.number))[int(drawn.study)]
        assert row.findings == study.report.findings
        assert row.impression == ("" if study.report.impression == "Not given." else study.report.impression)
        assert (row.study_id, row.patient_id, row.split) == (drawn.study_id, drawn.patient_id, drawn.split)
        if name == "ct-rate":
            assert tuple(row.labels) == LABELS
            assert row.labels["Lung nodule"] == bool({"nodule", "mass"} & set(drawn.names))
        if name == "inspect":
            assert list(row.labels.values()) == [int("pulmonary_embolism" in drawn.names)]
    if name == "bimcv-r":
        spanish = bimcv_r.read_index(root, "es")
        assert set(spanish.language) == {"es"} and spanish.findings.str.len().all()


def test_patients_stay_on_one_side_of_a_split(tree):
    _, loader, root = tree
    index = loader.read_index(root)
    parts = loader.split(index, seed=0)
    assert set(parts) <= {"train", "val", "test"} and "test" in set(parts)
    assert parts.groupby(index.patient_id).nunique().max() == 1


def test_truth_holds_boxes_that_lie_in_the_volume(tree, truth):
    findings = [f for row in truth.findings for f in row]
    assert len(findings) > N
    for f in findings:
        box = np.array(f["box"])
        if len(box):
            assert (box[:3] < box[3:]).all() and (box[:3] >= 0).all() and (box[3:] <= SHAPE).all(), f
    assert sum(len(f["box"]) > 0 for f in findings) > 0.95 * len(findings)


def test_v1_of_ct_rate_gives_the_same_volumes(tmp_path):
    old, new = (write("ct-rate", tmp_path / v, 6, SEED, SHAPE, version=v) for v in ("v1", "fixed"))
    tables = [ct_rate.read_index(root).set_index("volume_id", drop=False) for root in (old, new)]
    assert tables[0].blank_header.all() and not tables[1].blank_header.any()
    assert {-1024.0, -8192.0} >= set(tables[0].intercept)
    for volume_id in tables[0].index:
        before, after = (ct_rate.read_volume(r, t.loc[volume_id]) for r, t in zip((old, new), tables, strict=True))
        circle = before.hu > -8000  # outside the circle of reconstruction some scanners leave -8192
        assert circle.mean() > 0.7
        np.testing.assert_allclose(before.hu[circle], after.hu[circle], atol=1e-3)
        np.testing.assert_allclose(before.spacing_mm, after.spacing_mm, rtol=1e-5)
        np.testing.assert_allclose(before.origin_mm, after.origin_mm, atol=1e-3)


def test_two_reconstructions_share_patient_and_report(tmp_path):
    root = write("ct-rate", tmp_path / "ct-rate", 2, SEED, SHAPE, reconstructions=2)
    index = ct_rate.read_index(root)
    assert (index.groupby("study_id").size() == 2).all() and (index.groupby("study_id").findings.nunique() == 1).all()
    one, two = (ct_rate.read_volume(root, row).hu.astype(float) for _, row in index.head(2).iterrows())
    assert 1 < np.abs(one - two).mean() < 60
    kernels = pd.read_parquet(root / "truth.parquet").groupby("study_id").kernel.agg(set)
    assert all(kernel == {"soft", "sharp"} for kernel in kernels)


def test_more_processes_write_the_same(tmp_path):
    one, two = (write("inspect", tmp_path / str(w), 10, SEED, (16, 24, 24), workers=w) for w in (1, 2))
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file()) and len(files) > 10
    for name in files:
        if name.suffix in (".csv", ".gz"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(KeyError, match="mosmed"):
        write("mosmed", tmp_path / "x", 1, 0)
    for wrong in ({"n_patients": 0}, {"version": "v2"}, {"reconstructions": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write(**{"dataset": "ct-rate", "root": tmp_path / "x", "n_patients": 1, "seed": 0} | wrong)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        write("ct-rate", tmp_path / "full", 1, 0)
