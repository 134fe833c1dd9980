"""shared/ct/{ct_rate,bimcv_r,inspect_ctpa}.py on trees in the official layouts: voxels, texts, labels, splits."""

import json

import numpy as np
import pandas as pd
import pytest
from ct_files import SPACING, TEXT, bimcv_r, ct_rate, inspect, patch, thorax, write_csv, write_nifti

from shared.ct import LOADERS
from shared.ct.volume import INDEX_COLUMNS

NAMES = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_22_a_1", "valid_1_a_1", "valid_3_a_1"]
REPORTS = "dataset/radiology_text_reports/train_reports.csv"


def read_all(name, root):
    index = LOADERS[name].read_index(root)
    assert list(index.columns) == list(INDEX_COLUMNS)
    return index, [LOADERS[name].read_volume(root, row) for _, row in index.iterrows()]


# -------------------------------------------------------------------------------------------------------- CT-RATE


@pytest.mark.parametrize("intercept", [-1024, -8192])
@pytest.mark.parametrize("fixed", [False, True])
def test_ct_rate_v1_and_fixed_give_the_same_volumes(tmp_path, fixed, intercept):
    """The table's rescale belongs to v1 files alone: on fixed ones it would turn lung and water into air."""
    index, volumes = read_all("ct-rate", ct_rate(tmp_path, NAMES, fixed, intercept))
    assert index.volume_id.tolist() == NAMES
    assert index.study_id.tolist() == [name.rsplit("_", 1)[0] for name in NAMES]
    assert index.patient_id.tolist() == [name.rsplit("_", 2)[0] for name in NAMES]
    assert index.split.tolist() == ["train"] * 4 + ["valid"] * 2
    assert (index.blank_header == (not fixed)).all() and (index.n_slices == 40).all()
    assert index.labels[0] == {"Lung nodule": 1, "Cardiomegaly": 0}
    for seed, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.hu, thorax(seed=seed))
        np.testing.assert_allclose(volume.spacing_mm, SPACING)
        np.testing.assert_allclose(volume.origin_mm, (-11.0, 7.0, 301.0))
        assert volume.orientation == "LPS" and volume.orientation_from == ("header" if fixed else "table")
        assert (volume.volume_id, volume.study_id) == (NAMES[seed], NAMES[seed][:-2])


def test_ct_rate_prefers_the_fixed_file_and_reads_a_slope(tmp_path):
    root = ct_rate(tmp_path, NAMES[:2], fixed=False)
    fixed = root / "dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz"
    write_nifti(fixed, thorax(seed=77))
    index, volumes = read_all("ct-rate", root)
    assert index.blank_header.tolist() == [True, False]
    np.testing.assert_array_equal(volumes[1].hu, thorax(seed=77))
    # A slope other than 1: raw values halved in the file, doubled by the table.
    path = root / index.path[0]
    import nibabel as nib

    raw = np.asarray(nib.load(path).dataobj) // 2
    nib.save(nib.Nifti1Image(raw, None, nib.load(path).header), path)
    metadata = root / "dataset/metadata/train_metadata.csv"
    table = pd.read_csv(metadata, dtype=str)
    table.loc[0, "RescaleSlope"] = "2"
    table.to_csv(metadata, index=False)
    hu = LOADERS["ct-rate"].read_volume(root, LOADERS["ct-rate"].read_index(root).iloc[0]).hu
    assert hu.dtype == np.float32
    assert np.abs(hu - thorax(seed=0)).max() <= 1


def test_ct_rate_orientation_of_v1_comes_from_the_table(tmp_path):
    turned = "[-1, 0, 0, 0, -1, 0]"
    root = ct_rate(tmp_path, NAMES[:2], fixed=False, ImageOrientationPatient={"train_1_a_2": turned})
    _, volumes = read_all("ct-rate", root)
    np.testing.assert_array_equal(volumes[0].hu, thorax(seed=0))
    np.testing.assert_array_equal(volumes[1].hu, thorax(seed=1)[:, ::-1, ::-1])


def test_ct_rate_texts(tmp_path):
    findings = {
        "train_1_a_1": "Not given.",
        "train_1_a_2": " not given. ",
        "train_1_b_1": "Contrast was not given. Lungs are clear.",
        "train_22_a_1": "",
    }
    index = LOADERS["ct-rate"].read_index(ct_rate(tmp_path, NAMES, Findings_EN=findings))
    assert index.findings.tolist() == ["", "", "Contrast was not given. Lungs are clear.", "", TEXT, TEXT]
    assert (index.impression == "").all() and (index.language == "en").all()


def test_ct_rate_flags_and_counts(tmp_path):
    names = [
        "train_1_a_1",
        "train_2_a_1",
        "train_3_a_1",
        "train_3_b_1",
        "train_1022_a_4",
        "train_1022_b_1",
        "train_9_a_1",
    ]
    series = {"train_2_a_1": "BEYIN 5.0", "train_3_b_1": "Thorax Forehead rest"}
    root = ct_rate(tmp_path, names, SeriesDescription=series)
    (root / "dataset/metadata/no_chest_train.txt").write_text("train_3_a_1.nii.gz\n")
    (root / "dataset/train_fixed/train_9/train_9_a/train_9_a_1.nii.gz").unlink()
    index = LOADERS["ct-rate"].read_index(root)
    expected = {
        "train_2_a_1": "not a chest CT",
        "train_3_a_1": "not a chest CT",
        "train_1022_a_4": "excluded reconstruction",
    }
    assert {row.volume_id: row.flag for row in index.itertuples() if row.flag} == expected
    assert index.attrs["warnings"] == {"missing file": 1}
    assert len(index) == len(names) - 1


def test_ct_rate_v1_without_metadata_is_counted(tmp_path):
    root = ct_rate(tmp_path, NAMES, fixed=False)
    table = root / "dataset/metadata/train_metadata.csv"
    pd.read_csv(table, dtype=str).drop(index=[1]).to_csv(table, index=False)
    index = LOADERS["ct-rate"].read_index(root)
    assert index.attrs["warnings"] == {"no metadata": 1} and "train_1_a_2" not in set(index.volume_id)
    table.unlink()
    assert LOADERS["ct-rate"].read_index(root).attrs["warnings"] == {"no metadata": 4}


def test_ct_rate_split_is_official_by_patient_and_seeded(tmp_path):
    index = pd.DataFrame(
        [
            (f"{s}_{p}_a_{r}", f"{s}_{p}", s)
            for s, n in (("train", 100), ("valid", 10))
            for p in range(n)
            for r in (1, 2)
        ],
        columns=["volume_id", "patient_id", "split"],
    )
    split = LOADERS["ct-rate"].split
    parts = split(index, 3)
    assert (parts[index.split == "valid"] == "test").all() and (parts[index.split == "train"] != "test").all()
    assert index.patient_id[parts == "val"].nunique() == 5 and (parts == "val").sum() == 10
    shuffled = index.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(split(shuffled, 3).sort_index(), parts)
    assert set(index.patient_id[split(index, 4) == "val"]) != set(index.patient_id[parts == "val"])


# -------------------------------------------------------------------------------------------------------- BIMCV-R


@pytest.mark.parametrize("code", ["LAS", "LPS", "RAS"])
def test_bimcv_r_takes_the_orientation_of_each_header(tmp_path, code):
    root = bimcv_r(tmp_path, 4, code)
    index, volumes = read_all("bimcv-r", root)
    for k, (row, volume) in enumerate(zip(index.itertuples(), volumes, strict=True)):
        assert row.volume_id == f"sub-S{k // 2:03d}_ses-E{k:03d}_run-1_bp-chest_ct"
        assert (row.patient_id, row.study_id) == (f"sub-S{k // 2:03d}", f"sub-S{k // 2:03d}_ses-E{k:03d}")
        np.testing.assert_array_equal(volume.hu, thorax(seed=100 + k))
        np.testing.assert_allclose(volume.spacing_mm, SPACING)


def test_bimcv_r_one_header_unlike_the_others(tmp_path):
    root = bimcv_r(tmp_path, 3, "LAS")
    paths = LOADERS["bimcv-r"].read_index(root).path
    write_nifti(root / paths[1], thorax(seed=7), "RPS")
    write_nifti(root / paths[2], thorax(seed=8), "LAS", qform=0, sform=0)
    _, volumes = read_all("bimcv-r", root)
    np.testing.assert_array_equal(volumes[1].hu, thorax(seed=7))
    np.testing.assert_array_equal(volumes[2].hu, thorax(seed=8))
    assert [v.orientation_from for v in volumes] == ["header", "header", "anatomy"]


def test_bimcv_r_takes_the_rescale_of_the_header(tmp_path):
    root = bimcv_r(tmp_path, 2)
    path = root / LOADERS["bimcv-r"].read_index(root).path[0]
    write_nifti(path, (thorax().astype(np.int32) + 1024).astype(np.int16), "LAS")
    patch(path, 112, "<2f", 1.0, -1024.0)
    _, volumes = read_all("bimcv-r", root)
    np.testing.assert_array_equal(volumes[0].hu, thorax())


def test_bimcv_r_spanish_and_english(tmp_path):
    root = bimcv_r(tmp_path, 2)
    read_index = LOADERS["bimcv-r"].read_index
    english, spanish = read_index(root), read_index(root, language="es")
    assert english.findings[1] == "No nodules are seen in the lung parenchyma number 1."
    assert spanish.findings[1] == "no se observan nodulos en el parenquima pulmonar numero 1 ."
    assert (set(english.language), set(spanish.language)) == ({"en"}, {"es"})
    assert english.labels[0] == {"normal": 1, "nodule": 1}
    with pytest.raises(ValueError, match="choose one of en, es"):
        read_index(root, language="fr")


def test_bimcv_r_session_folders_body_parts_and_counts(tmp_path):
    root = bimcv_r(tmp_path, 4)
    table = root / "meta/curated_ct_report_path_En.csv"
    rows = pd.read_csv(table, dtype=str).to_dict("records")
    rows[0]["path"] = "/elsewhere/sub-S000/ses-E000/mod-rx"  # a folder: every volume of the session
    write_nifti(root / "CT0/ct/sub-S000_ses-E000_run-2_bp-head_ct.nii.gz", thorax())
    rows[1]["Labels"] = "not a list"
    rows[2]["path"] = "/elsewhere/sub-S9_ses-E9_ct.nii.gz"
    rows += [rows[3] | {"Report_en": "Another report of the same volume."}, rows[1]]
    table.unlink()
    write_csv(root / "curated_ct_report_path_En.csv", rows)  # in the root rather than in meta/
    index = LOADERS["bimcv-r"].read_index(root)
    assert index.volume_id.str[9:].tolist() == [
        "ses-E000_run-1_bp-chest_ct",
        "ses-E000_run-2_bp-head_ct",
        "ses-E001_run-1_bp-chest_ct",
    ]
    assert index.flag.tolist() == ["", "not a chest CT", ""]
    assert index.study_id[0] == index.study_id[1]
    expected = {"missing file": 1, "malformed Labels": 2, "two reports for one volume": 1}
    assert index.attrs["warnings"] == expected


def test_bimcv_r_split_is_80_10_10_of_the_patients():
    index = pd.DataFrame({"patient_id": [f"p{k // 3}" for k in range(300)]})
    parts = LOADERS["bimcv-r"].split(index, 0)
    assert {part: index.patient_id[parts == part].nunique() for part in ("train", "val", "test")} == {
        "train": 80,
        "val": 10,
        "test": 10,
    }
    assert (pd.Series(parts).groupby(index.patient_id).nunique() == 1).all()
    assert not parts.equals(LOADERS["bimcv-r"].split(index, 1))


# -------------------------------------------------------------------------------------------------------- INSPECT


def test_inspect_joins_by_the_metadata_table(tmp_path):
    root = inspect(tmp_path, 4)
    index, volumes = read_all("inspect", root)
    assert index.volume_id.tolist() == ["PE000", "PE001", "PE002", "PE003"]
    assert index.study_id.tolist() == ["9000", "9007", "9014", "9021"]
    assert index.impression[1] == "1. No acute pulmonary embolism, case 9007."
    assert (index.findings == "").all()
    assert index.labels.tolist() == [{"pe_positive": 1}] * 4  # the censored column is left out
    for k, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.hu, thorax(seed=200 + k))
    assert LOADERS["inspect"].split(index).tolist() == ["train", "val", "test", "train"]


def test_inspect_counts_what_it_leaves_out(tmp_path):
    root = inspect(tmp_path, 5)
    (root / "CTPA/PE000.nii.gz").unlink()
    for table, key in (("Final_Impressions.csv", "9007"), ("Final_splits.csv", "9014")):
        rows = pd.read_csv(root / table, dtype=str)
        rows[rows.impression_id != key].to_csv(root / table, index=False)
    index = LOADERS["inspect"].read_index(root)
    assert index.volume_id.tolist() == ["PE003", "PE004"]
    assert index.attrs["warnings"] == {"missing file": 1, "no impression": 1, "no split": 1}


def test_inspect_never_takes_the_rewritten_texts(tmp_path):
    root = inspect(tmp_path, 2)
    table = pd.read_csv(root / "Final_Impressions.csv", dtype=str).rename(columns={"impressions": "Impressions_EN"})
    table.insert(1, "Impressions_1", "rewritten")
    table["Findings_1"] = "rewritten"
    table.to_csv(root / "Final_Impressions.csv", index=False)
    assert not LOADERS["inspect"].read_index(root).impression.str.contains("rewritten").any()


def test_indexes_survive_json(tmp_path):
    """Rows go into manifests and journals: nothing in them may be an object of its own."""
    root = ct_rate(tmp_path, NAMES, fixed=False)
    row = LOADERS["ct-rate"].read_index(root).iloc[0].to_dict()
    again = json.loads(json.dumps(row, default=lambda v: v.item()))
    np.testing.assert_array_equal(LOADERS["ct-rate"].read_volume(root, again).hu, thorax(seed=0))
