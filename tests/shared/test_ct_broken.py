"""Broken NIfTI files and tables: every one a named error (`CtReadError`) or a counted skip, never a silent zero."""

import gzip
import pickle
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_files import (
    SPACING,
    TEXT,
    affine_of,
    bimcv_r,
    ct_rate,
    cut,
    head,
    inspect,
    patch,
    thorax,
    write_nifti,
)

from shared.ct import LOADERS
from shared.ct.ct_io import TableHeader, check_chest, read_header, read_nifti, resolve
from shared.ct.volume import CtReadError, CtVolume

# ---------------------------------------------------------------------------------------------------------- NIfTI


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def _shear(path: Path, qform: int) -> None:
    affine = affine_of("LPS")
    affine[1, 2] = 0.3 * affine[2, 2]  # the table stayed upright, the slices shifted
    image = nib.Nifti1Image(thorax().transpose(2, 1, 0), affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, 1)
    nib.save(image, path)


def _two_forms(path: Path, qform: np.ndarray, sform: np.ndarray) -> None:
    image = nib.Nifti1Image(thorax().transpose(2, 1, 0), sform)
    image.set_sform(sform, 1)
    image.set_qform(qform, 1)
    nib.save(image, path)


def _with(value):
    hu = thorax().astype(np.float32)
    hu[3, 4, 5] = value
    return hu


def _half_zeros(path: Path) -> None:
    """The first half of the voxels under a gzip trailer that belongs to them: whole as gzip, short as NIfTI."""
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: len(content) // 2]))


BROKEN = {
    # name: (arguments of write_nifti, edit of the written file, expected reason, expected in the detail)
    "truncated gzip": ({}, lambda p: cut(p, 60_000), "truncated", "download it again"),
    "gzip without its last bytes": ({}, lambda p: cut(p, p.stat().st_size - 4), "truncated", ""),
    "gzip of half a volume": ({}, _half_zeros, "truncated", "of 169312 bytes"),
    "damaged gzip": ({}, lambda p: _flip(p, 60_000), "corrupted", ""),
    "wrong checksum": ({}, lambda p: _flip(p, p.stat().st_size - 6), "corrupted", "CRC check failed"),
    "not gzip": ({}, lambda p: p.write_bytes(b"<html>login</html>" * 50), "bad header", "not a gzip file"),
    "empty": ({}, lambda p: p.write_bytes(b""), "bad header", ""),
    "tiny": ({}, lambda p: p.write_bytes(gzip.compress(b"x" * 100)), "truncated", "a NIfTI header has 348"),
    "not NIfTI": ({}, lambda p: p.write_bytes(gzip.compress(b"x" * 900)), "bad header", "not a NIfTI-1 file"),
    "gone": ({}, Path.unlink, "missing file", "DATA_ROOT"),
    "gantry tilt": ({}, lambda p: _shear(p, 0), "gantry tilt", "16.7 degrees"),
    "gantry tilt under a sound qform": ({}, lambda p: _shear(p, 1), "gantry tilt", "16.7 degrees"),
    "mixed orientation": ({}, lambda p: _two_forms(p, affine_of("LPS"), affine_of("RAS")), "mixed orientation", "RAS"),
    "mixed spacing": (
        {},
        lambda p: _two_forms(p, affine_of("LPS"), affine_of("LPS", (1.0, 7.0, 8.0))),
        "mixed spacing",
        "disagree",
    ),
    "blank header": ({"spacing": (1.0, 1.0, 1.0), "qform": 0, "sform": 0}, None, "blank header", "table"),
    "spacing zero": ({"sform": 0}, lambda p: patch(p, 80, "<3f", 0.7, 0.7, 0.0), "bad spacing", "0.0"),
    "spacing NaN": ({"sform": 0}, lambda p: patch(p, 80, "<3f", 0.7, float("nan"), 1.0), "bad spacing", "nan"),
    "spacing in metres": ({"spacing": (0.004, 0.007, 0.008)}, None, "bad spacing", "mm expected"),
    "sform of zeros": ({}, lambda p: patch(p, 280, "<12f", *[0.0] * 12), "bad spacing", "sform"),
    "slope NaN": ({"scale": (float("nan"), 0.0)}, None, "wrong slope", "nan"),
    "slope negative": ({"scale": (-1.0, 0.0)}, None, "wrong slope", "-1"),
    "intercept infinite": ({"scale": (1.0, float("inf"))}, None, "wrong slope", "inf"),
    "NaN": ({"hu": _with(np.nan)}, None, "not finite", "1 voxels"),
    "infinite": ({"hu": _with(-np.inf)}, None, "not finite", "1 voxels"),
    "constant": ({"hu": np.full(thorax().shape, -1000, np.int16)}, None, "constant", "-1000"),
    "time series": ({}, lambda p: patch(p, 40, "<5h", 4, 44, 48, 20, 2), "not 3-D", "2"),
    "one slice": ({"hu": thorax()[:1]}, None, "not 3-D", ""),
    "colour": ({}, lambda p: patch(p, 70, "<h", 128), "bad header", "data type 128"),
    "voxels announced elsewhere": ({}, lambda p: patch(p, 108, "<f", -1e9), "bad header", "voxels announced"),
    "neither front nor back": (
        {"hu": np.concatenate([thorax()[:, 24:][:, ::-1], thorax()[:, 24:]], axis=1), "qform": 0, "sform": 0},
        None,
        "unknown orientation",
        "no spine",
    ),
    "no bone and no orientation": (
        {"hu": np.minimum(thorax(), 100), "qform": 0, "sform": 0},
        None,
        "unknown orientation",
        "",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nifti_is_a_named_error(tmp_path, name):
    arguments, edit, reason, message = BROKEN[name]
    path = write_nifti(tmp_path / "v.nii.gz", **{"hu": thorax()} | arguments)
    if edit:
        edit(path)
    with pytest.raises(CtReadError) as error:
        read_nifti(path)
    assert error.value.reason == reason, str(error.value)
    assert message in error.value.detail
    assert error.value.path == str(path)
    same = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert str(same) == str(error.value) and same.reason == reason


def test_simpleitk_alone_would_have_read_zeros(tmp_path):
    """Why the voxels are decompressed here; if this fails, SimpleITK has learnt to complain."""
    import SimpleITK as sitk

    path = write_nifti(tmp_path / "v.nii.gz", thorax())
    cut(path, 60_000)
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[-5:] == 0).all()


def test_uncompressed_file_that_iscut(tmp_path):
    path = write_nifti(tmp_path / "v.nii", thorax())
    cut(path, 100_000)
    with pytest.raises(CtReadError, match="truncated"):
        read_nifti(path)


def test_header_alone_names_its_faults(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", thorax())
    for edit, reason in ((lambda: cut(path, 100), "corrupted"), (lambda: path.write_bytes(b"no"), "corrupted")):
        edit()
        with pytest.raises(CtReadError) as error:
            read_header(path)
        assert error.value.reason == reason
    path.unlink()
    with pytest.raises(CtReadError, match="missing file"):
        read_header(path)


def test_rescaling_twice_is_refused(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", thorax(), scale=(1.0, -1024.0))
    with pytest.raises(CtReadError, match="already rescaled"):
        read_nifti(path, TableHeader(SPACING, intercept=-1024.0))
    for slope in (0.0, float("nan"), -1.0):
        with pytest.raises(CtReadError, match="wrong slope"):
            read_nifti(write_nifti(tmp_path / "w.nii.gz", thorax()), TableHeader(SPACING, slope=slope))


# ---------------------------------------------------------------------------------------------------- plausibility

VALUES = {
    "rescaled twice by -1024": (thorax().astype(np.float32) - 1024, "not HU"),
    "rescaled twice by -8192": (thorax().astype(np.float32) - 8192, "not HU"),
    "not rescaled": (thorax().astype(np.float32) + 1024, "not HU"),
    "slope 2": ((thorax().astype(np.float32) + 1024) * 2 - 1024, "not HU"),
    "slope 0.5": ((thorax().astype(np.float32) + 1024) * 0.5 - 1024, "not HU"),
    "eight bit window": (np.clip((thorax().astype(np.float32) + 1000) / 8, 0, 255), "not HU"),
    "unit interval": ((np.clip(thorax(), -1000, 1000).astype(np.float32) + 1000) / 2000, "not HU"),
    "only air": (np.where(thorax() > 600, 40, -1000), "not HU"),
    "head": (head(), "not a chest CT"),
}


@pytest.mark.parametrize("name", VALUES)
def test_implausible_values(name):
    hu, reason = VALUES[name]
    with pytest.raises(CtReadError) as error:
        check_chest(CtVolume(hu, SPACING), "v.nii.gz")
    assert error.value.reason == reason, str(error.value)
    assert "%" in error.value.detail


# --------------------------------------------------------------------------------------------------- whole data sets


OUTSIDE = ["../v.nii.gz", "/etc/v.nii.gz", "a/../../v", "..\\v", "s3://bucket/v", ""]
ROW = {"flag": "", "blank_header": False, "volume_id": "v", "patient_id": "p", "study_id": "s"}


@pytest.mark.parametrize("path", OUTSIDE)
def test_path_outside_the_root(tmp_path, path):
    for loader in LOADERS.values():
        with pytest.raises(CtReadError) as error:
            loader.read_volume(tmp_path, ROW | {"path": path})
        assert error.value.reason == "path outside the root"
    assert resolve(tmp_path, "a/v.nii.gz") == tmp_path / "a/v.nii.gz"


REPORTS = "dataset/radiology_text_reports/train_reports.csv"
NAMES = ["train_1_a_1", "train_2_a_1"]


TREES = {
    "ct-rate": lambda root: ct_rate(root, NAMES),
    "bimcv-r": lambda r: bimcv_r(r, 2),
    "inspect": lambda r: inspect(r, 2),
}
TEXTS = "Final_Impressions.csv"
TABLES = [
    # data set, table, text in it, its replacement (None: the whole content), expected reason, expected in the message
    ("ct-rate", REPORTS, None, "", "bad csv", REPORTS),
    ("ct-rate", REPORTS, "Findings_EN", "Findings", "bad csv", "no column Findings_EN"),
    ("ct-rate", REPORTS, "train_2_a_1", "../x", "malformed VolumeName", "'../x.nii.gz'"),
    ("ct-rate", REPORTS, "train_2_a_1", "valid_2_a_1", "malformed VolumeName", "train_<patient>"),
    ("ct-rate", REPORTS, f"train_2_a_1.nii.gz,{TEXT}", "train_1_a_1.nii.gz,Other", "duplicate id", "first train_1_a_1"),
    ("bimcv-r", "meta/curated_ct_report_path_En.csv", "Report_en", "Text", "bad csv", "no column Report_en"),
    ("inspect", TEXTS, "impressions", "Impressions_1", "bad csv", "none of the columns"),
    ("inspect", "Final_metadata.csv", "person_id", "x", "bad csv", "no column of patients"),
    ("inspect", "Final_splits.csv", "valid", "fold3", "unknown split", "'fold3'"),
    ("inspect", "Final_metadata.csv", "PE001", "PE000", "duplicate id", "first PE000"),
]


@pytest.mark.parametrize(("name", "table", "old", "new", "reason", "message"), TABLES)
def test_broken_table_is_a_named_error(tmp_path, name, table, old, new, reason, message):
    root = TREES[name](tmp_path / "root")
    text = (root / table).read_text()
    assert old is None or old in text
    (root / table).write_text(new if old is None else text.replace(old, new))
    with pytest.raises(CtReadError) as error:
        LOADERS[name].read_index(root)
    assert error.value.reason == reason, str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", TREES)
def test_folder_that_is_no_data_set(tmp_path, name):
    with pytest.raises(CtReadError, match=r"\.csv: missing file .*DATA_ROOT"):
        LOADERS[name].read_index(tmp_path)


@pytest.mark.parametrize("name", TREES)
def test_tables_without_volumes(tmp_path, name):
    root = TREES[name](tmp_path / "root")
    for path in root.rglob("*.nii.gz"):
        path.unlink()
    with pytest.raises(CtReadError, match=r"no volumes .*'missing file': 2"):
        LOADERS[name].read_index(root)


def test_one_file_name_in_two_folders(tmp_path):
    root = bimcv_r(tmp_path, 2)
    write_nifti(root / "CT9" / "ct" / next(root.rglob("*.nii.gz")).name, thorax())
    with pytest.raises(CtReadError, match=r"duplicate id .*have one name"):
        LOADERS["bimcv-r"].read_index(root)


def test_spreadsheet_in_place_of_a_table(tmp_path):
    root = inspect(tmp_path, 2)
    (root / TEXTS).rename(root / "Final_Impressions.xlsx")
    with pytest.raises(CtReadError, match=f"save it as {TEXTS}"):
        LOADERS["inspect"].read_index(root)


MALFORMED = [
    ("XYSpacing", "0.8"),
    ("XYSpacing", "[0.8]"),
    ("XYSpacing", ""),
    ("ZSpacing", ""),
    ("ZSpacing", "-1"),
    ("ImagePositionPatient", "nowhere"),
    ("ImageOrientationPatient", "[1, 0, 0, 0, 1]"),
    ("ImageOrientationPatient", "[1, 0, 0, 1, 1, 0]"),
    ("RescaleSlope", "0"),
    ("RescaleSlope", "one"),
    ("RescaleSlope", "nan"),
    ("RescaleIntercept", ""),
]


@pytest.mark.parametrize(("column", "cell"), MALFORMED)
def test_malformed_metadata_stops_the_volume_not_the_data_set(tmp_path, column, cell):
    """A cell that cannot be read: the v1 volume is flagged and refused by name; a fixed volume does not need it."""
    root = ct_rate(tmp_path / "v1", NAMES, fixed=False, **{column: {"train_2_a_1": cell}})
    index = LOADERS["ct-rate"].read_index(root).set_index("volume_id", drop=False)
    assert index.flag["train_1_a_1"] == ""
    assert index.flag["train_2_a_1"] == f"malformed {column}"
    np.testing.assert_array_equal(LOADERS["ct-rate"].read_volume(root, index.loc["train_1_a_1"]).hu, thorax(seed=0))
    with pytest.raises(CtReadError, match=r"malformed .*blank header"):
        LOADERS["ct-rate"].read_volume(root, index.loc["train_2_a_1"])
    fixed = ct_rate(tmp_path / "fixed", NAMES, fixed=True, **{column: {"train_2_a_1": cell}})
    index = LOADERS["ct-rate"].read_index(fixed)
    assert (index.flag == "").all()
    np.testing.assert_array_equal(LOADERS["ct-rate"].read_volume(fixed, index.iloc[1]).hu, thorax(seed=1))


def test_wrong_slope_in_the_table_is_seen_in_the_values(tmp_path):
    for slope in ("2", "0.25"):
        root = ct_rate(tmp_path / slope, NAMES, fixed=False, RescaleSlope={"train_1_a_1": slope})
        index = LOADERS["ct-rate"].read_index(root)
        with pytest.raises(CtReadError, match=r"not HU .*wrong slope"):
            LOADERS["ct-rate"].read_volume(root, index.iloc[0])


def test_raw_files_put_into_the_folder_of_fixed_ones(tmp_path):
    """Raw values where HU are promised."""
    root = ct_rate(tmp_path / "r", NAMES)
    index = LOADERS["ct-rate"].read_index(root)
    write_nifti(root / index.path[0], (thorax().astype(np.int32) + 8192).astype(np.int16))
    with pytest.raises(CtReadError, match="not HU"):
        LOADERS["ct-rate"].read_volume(root, index.iloc[0])


def test_tables_may_be_torn(tmp_path):
    root = ct_rate(tmp_path / "r", NAMES)
    whole = (root / REPORTS).read_text()
    for torn in (whole.encode() + struct.pack("<I", 0xFFFEFFFE), (whole + '"train_3_a_1.nii.gz,"x\n').encode()):
        (root / REPORTS).write_bytes(torn)
        with pytest.raises(CtReadError, match=r"bad csv|malformed VolumeName"):
            LOADERS["ct-rate"].read_index(root)
