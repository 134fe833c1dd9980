"""Simulated trees in the official layouts: files exist, parse, go through the loaders, and agree with the truth."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from synth_medvlp.datasets import LOADERS, decode_rle, read_record
from synth_medvlp.datasets.labels import CHEXPERT_CLASSES
from synth_medvlp.simulate import HOSPITALS, main, simulate
from synth_medvlp.simulate_layouts import chexpert_labels, write
from synth_medvlp.simulate_sheet import contact_sheet, outline

N, SIZE = 14, 32


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    base = tmp_path_factory.mktemp("trees")
    return {name: write(name, base / name, N, 5, SIZE, "middle") for name in HOSPITALS}


def truth_of(root) -> pd.DataFrame:
    return pd.read_parquet(root / "truth.parquet").set_index("image_id")


def digest(root) -> dict:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".gz")  # gzip stores the time
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("name", HOSPITALS)
def test_every_image_goes_through_the_loader(trees, name):
    root, truth = trees[name], truth_of(trees[name])
    index = LOADERS[name].read_index(root)
    assert set(index.image_id) == set(truth.index) and len(index) >= N
    simulated = simulate(name, N, 5, SIZE, "middle")
    for (identifier, row), cxr in zip(truth.iterrows(), simulated, strict=True):
        record = read_record(root, index[index.image_id == identifier].iloc[0], name)
        assert record.image.shape == (SIZE, SIZE) and record.image.dtype == cxr.image.dtype
        lossless = row.path.endswith((".png", ".dcm"))
        error = np.abs(record.image.astype(float) - cxr.image)
        assert error.max() == 0 if lossless else error.mean() < 4
        assert row.findings.tolist() == cxr.names


def test_every_data_set_has_a_hospital():
    assert set(HOSPITALS) == set(LOADERS) - {"hannover-cxr"}


def test_mimic_reports_views_and_labels(trees):
    root, truth = trees["mimic-cxr-jpg"], truth_of(trees["mimic-cxr-jpg"])
    index = LOADERS["mimic-cxr-jpg"].read_index(root).set_index("image_id")
    for identifier, row in truth.iterrows():
        found = index.loc[identifier]
        assert (found.findings, found.impression) == (row.report_findings, row.report_impression)
        assert found["view"].upper() == row["view"]
        expected = chexpert_labels(json.loads(row.mentions))
        assert all(found.labels[c] == (None if v == "" else v) for c, v in expected.items())
    patients = index.groupby("patient_id").split.nunique()
    assert (patients == 1).all()


def test_chexpert_parts(trees):
    root, truth = trees["chexpert"], truth_of(trees["chexpert"])
    index = LOADERS["chexpert"].read_index(root).set_index("image_id")
    assert set(index.split) == {"train", "val", "test"}
    for identifier, row in truth[index.loc[truth.index].split != "train"].iterrows():
        labels = index.loc[identifier].labels
        assert labels["Cardiomegaly"] == int("cardiomegaly" in row.findings)
        assert labels["Pleural Effusion"] == int("pleural_effusion" in row.findings)
    assert list(pd.read_csv(root / "train.csv").columns[5:]) == list(CHEXPERT_CLASSES)


def test_boxes_and_masks_are_those_drawn(trees):
    for name, finding in (("rsna-pneumonia", "consolidation"), ("siim-acr", "pneumothorax"),
                          ("covid-rural", "consolidation")):  # fmt: skip
        root, truth, positives = trees[name], truth_of(trees[name]), 0
        index = LOADERS[name].read_index(root).set_index("image_id", drop=False)
        for identifier, row in truth.iterrows():
            record = read_record(root, index.loc[identifier], name)
            code = json.loads(row.masks).get(finding, "-1")
            drawn = decode_rle(code, (SIZE, SIZE))
            assert list(record.labels.values()) == [int(drawn.any())]
            positives += drawn.any()
            if name == "rsna-pneumonia":
                covered = np.zeros_like(drawn)
                for _, x, y, w, h in record.boxes:
                    covered[round(y) : round(y + h), round(x) : round(x + w)] = True
                assert (drawn & covered).sum() >= 0.8 * drawn.sum()
            elif drawn.any():
                assert (record.mask == drawn).all()
        assert positives


def test_nih_boxes(trees):
    root, truth = trees["nih-cxr"], truth_of(trees["nih-cxr"])
    index = LOADERS["nih-cxr"].read_index(root).set_index("image_id", drop=False)
    names = {"Cardiomegaly": "cardiomegaly", "Effusion": "pleural_effusion", "Pneumothorax": "pneumothorax",
             "Mass": "mass", "Nodule": "nodule", "Atelectasis": "atelectasis"}  # fmt: skip
    seen = 0
    for identifier, row in truth.iterrows():
        record = read_record(root, index.loc[identifier], "nih-cxr")
        for label, *at in record.boxes:
            seen += 1
            if label in names:
                assert np.allclose(at, json.loads(row.boxes)[names[label]], atol=0.01)
        for label, finding in names.items():
            assert record.labels[label] == int(finding in row.findings)
    assert seen and set(index.split) == {"train", "test"}


def test_padchest_is_16_bit_with_its_own_words(trees):
    root, truth = trees["padchest"], truth_of(trees["padchest"])
    index = LOADERS["padchest"].read_index(root).set_index("image_id", drop=False)
    for identifier, row in truth.iterrows():
        labels = index.loc[identifier].labels
        assert ("cardiomegaly" in labels) == ("cardiomegaly" in row.findings)
        assert ("aortic elongation" in labels) == ("tortuous_aorta" in row.findings)
        assert ("normal" in labels) == (len(row.findings) == 0)
    assert np.asarray(Image.open(root / truth.path.iloc[0])).max() > 255


def test_covidx_sources_betray_the_label(tmp_path):
    root = write("covidx-cxr2", tmp_path / "covidx", 60, 0, 16)
    index = LOADERS["covidx-cxr2"].read_index(root)
    positive = np.array([labels["COVID-19"] for labels in index.labels]) == 1
    assert np.mean(positive == (index.source == "hospital")) > 0.75
    assert 0.3 < positive.mean() < 0.7 and set(index.split) == {"train", "val", "test"}


def test_same_seed_same_files_whoever_writes_them(tmp_path):
    one = write("siim-acr", tmp_path / "one", 18, 3, 16)
    two = write("siim-acr", tmp_path / "two", 18, 3, 16, workers=2)
    assert digest(one) == digest(two)
    assert digest(write("siim-acr", tmp_path / "three", 18, 4, 16)) != digest(one)


def test_no_half_trees(tmp_path):
    left = tmp_path / "tree.tmp"
    left.mkdir()
    (left / "old.txt").write_text("of a killed run")
    root = write("covid-rural", tmp_path / "tree", 2, 0, 16)
    assert not left.exists() and not (root / "old.txt").exists()
    with pytest.raises(FileExistsError, match="not empty"):
        write("covid-rural", root, 2, 0, 16)
    with pytest.raises(KeyError, match="covid-urban"):
        write("covid-urban", tmp_path / "x", 2, 0, 16)
    with pytest.raises(ValueError, match="n_patients"):
        write("covid-rural", tmp_path / "x", 0, 0, 16)


def test_command_line(tmp_path, capsys):
    main(["rsna-pneumonia", str(tmp_path / "rsna"), "--n", "2", "--size-px", "16"])
    assert (tmp_path / "rsna" / "truth.parquet").is_file() and "rsna" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([])


def test_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr("synth_medvlp.simulate_sheet.SIZE_PX", 32)
    monkeypatch.setattr("synth_medvlp.simulate_sheet.CELL_PX", 48)
    sheet = np.asarray(Image.open(contact_sheet(tmp_path / "a" / "sheet.png")))
    assert sheet.shape[2] == 3 and sheet.shape[1] == 8 * 48 and sheet.std() > 20


def test_outline_is_the_rim():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    assert outline(mask).sum() == 16 and not outline(mask)[4, 4]
