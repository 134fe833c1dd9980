"""Broken tables, folders and paths: every one a named error, or a skip that is counted and listed."""

import copy

import pandas as pd
import pytest
from cxr_trees import (
    film,
    padchest_row,
    rsna_row,
    save,
    save_dicom,
    write_chexpert,
    write_covidx,
    write_mimic,
    write_nih,
    write_padchest,
    write_rsna,
    write_rural,
    write_siim,
)

from synth_medvlp.datasets import (
    LOADERS,
    chestxray14,
    chexpert,
    covid_rural,
    covidx,
    hannover,
    listed,
    mimic_cxr_jpg,
    padchest,
    read_record,
    rsna,
    siim,
)
from synth_medvlp.record import CxrReadError


def edited(path, old: str, new: str, count: int = 1):
    """A table with the first `count` places of old replaced."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def csv_edit(write, name, old, new):
    return lambda root: edited(write(root) / name, old, new)


NIH, PAD = "Data_Entry_2017_v2020.csv", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
BROKEN = {
    # name: (loader, what writes the broken tree, reason, words of the message)
    "mimic: column renamed": (
        mimic_cxr_jpg,
        csv_edit(write_mimic, "mimic-cxr-2.0.0-split.csv", "dicom_id", "image"),
        "bad csv",
        "no column dicom_id; it has image",
    ),
    "mimic: split value": (
        mimic_cxr_jpg,
        csv_edit(write_mimic, "mimic-cxr-2.0.0-split.csv", "validate", "holdout"),
        "bad label",
        "dicom_id d4: split 'holdout'",
    ),
    "mimic: label value": (
        mimic_cxr_jpg,
        csv_edit(write_mimic, "mimic-cxr-2.0.0-chexpert.csv", "-1.0", "2.0"),
        "bad label",
        "study_id 50000001: Edema is '2.0'",
    ),
    "mimic: gzip cut": (
        mimic_cxr_jpg,
        lambda root: _cut(write_mimic(root) / "mimic-cxr-2.0.0-metadata.csv.gz"),
        "bad csv",
        "damaged gzip",
    ),
    "mimic: no gzip": (
        mimic_cxr_jpg,
        lambda root: (write_mimic(root) / "mimic-cxr-2.0.0-metadata.csv.gz").write_text("dicom_id\n"),
        "bad csv",
        "damaged gzip",
    ),
    "mimic: subject leaves the root": (
        mimic_cxr_jpg,
        lambda root: _metadata(write_mimic(root), subject_id="../../etc"),
        "path outside the root",
        "",
    ),
    "mimic: id with two rows": (
        mimic_cxr_jpg,
        lambda r: _metadata(write_mimic(r), dicom_id="d2"),
        "duplicate id",
        "d2",
    ),
    "chexpert: label value": (
        chexpert,
        csv_edit(write_chexpert, "train.csv", "-1.0", "maybe"),
        "bad label",
        "Edema is 'maybe'; 1, 0, -1 or blank expected",
    ),
    "chexpert: class missing": (
        chexpert,
        csv_edit(write_chexpert, "valid.csv", "Edema", "Oedema"),
        "bad csv",
        "no column Edema",
    ),
    "chexpert: malformed path": (
        chexpert,
        csv_edit(write_chexpert, "train.csv", "train/patient00001", "../patient00001"),
        "malformed path",
        "",
    ),
    "chexpert: rows that differ": (
        chexpert,
        lambda root: _repeat_line(write_chexpert(root) / "train.csv", ",1.0,", ",0.0,"),
        "duplicate id",
        "1 values of Path with differing rows",
    ),
    "nih: unknown finding": (
        chestxray14,
        csv_edit(write_nih, NIH, "Cardiomegaly|Edema", "Cardiomegaly|Oedema"),
        "bad label",
        "'Cardiomegaly|Oedema'",
    ),
    "nih: finding and none": (
        chestxray14,
        csv_edit(write_nih, NIH, "Cardiomegaly|Edema", "No Finding|Edema"),
        "bad label",
        "'No Finding|Edema'",
    ),
    "nih: box of an unknown class": (
        chestxray14,
        csv_edit(write_nih, "BBox_List_2017.csv", "Infiltrate", "Opacity"),
        "bad label",
        "'Opacity' is none",
    ),
    "nih: box without numbers": (
        chestxray14,
        csv_edit(write_nih, "BBox_List_2017.csv", "512", "left"),
        "bad box",
        "00000001_000.png: ['256', 'left'",
    ),
    "nih: box outside": (
        chestxray14,
        csv_edit(write_nih, "BBox_List_2017.csv", "256", "1024"),
        "bad box",
        "on 1024 x 1024 pixels",
    ),
    "nih: empty table": (chestxray14, lambda root: (root / NIH).write_text(""), "bad csv", ""),
    "nih: table without rows": (
        chestxray14,
        lambda root: (root / NIH).write_text("Image Index,Finding Labels,Patient ID,View Position\n"),
        "no records",
        "",
    ),
    "nih: table cut": (
        chestxray14,
        lambda root: _cut_text(write_nih(root) / NIH),
        "bad csv",
        "the last row has 2 cells: ['00000015_003.png', 'Pleural_']; is the file complete?",
    ),
    "padchest: labels are no list": (
        padchest,
        lambda root: write_padchest(root, [padchest_row("a0", "normal")]),
        "bad label",
        "a0.png: 'normal'",
    ),
    "padchest: labels are code": (
        padchest,
        lambda root: write_padchest(root, [padchest_row("a0", "__import__('os').getcwd()")]),
        "bad label",
        "a list of quoted words expected",
    ),
    "padchest: unknown method": (
        padchest,
        lambda root: write_padchest(root, [padchest_row("a0", "['normal']", method="Student")]),
        "bad label",
        "MethodLabel 'Student'",
    ),
    "rsna: target value": (
        rsna,
        lambda root: write_rsna(root, [rsna_row("r0", 2, (1, 2, 3, 4))]),
        "bad label",
        "r0: Target '2'",
    ),
    "rsna: targets differ": (
        rsna,
        lambda root: write_rsna(root, [rsna_row("r0", 1, (1, 2, 3, 4)), rsna_row("r0", 0)]),
        "bad label",
        "equal in all rows",
    ),
    "rsna: positive without box": (rsna, lambda root: write_rsna(root, [rsna_row("r0", 1)]), "bad box", "r0"),
    "rsna: negative with box": (
        rsna,
        lambda root: write_rsna(root, [rsna_row("r0", 0, (1, 2, 3, 4))]),
        "bad label",
        "Target 0 with a box",
    ),
    "rsna: box of no width": (
        rsna,
        lambda root: write_rsna(root, [rsna_row("r0", 1, (1, 2, 0, 4))]),
        "bad box",
        "w 0",
    ),
    "rsna: mapping": (rsna, lambda root: write_rsna(root, mapping='[{"img_id": 3}]'), "bad mapping", "KeyError"),
    "siim: beyond the last pixel": (
        siim,
        lambda root: write_siim(root, [("i0", " 1048570 7")]),
        "bad mask",
        "i0: bad mask (a run of length 0, or an end at 1048577 of 1048576 pixels)",
    ),
    "siim: odd count": (siim, lambda root: write_siim(root, [("i0", " 1 2 3")]), "bad mask", "i0"),
    "siim: blank code": (siim, lambda root: write_siim(root, [("i0", "")]), "bad mask", "pairs of offset and length"),
    "siim: none and a mask": (
        siim,
        lambda root: write_siim(root, [("i0", " -1"), ("i0", " 1 2")]),
        "bad mask",
        "-1 (none) and a mask",
    ),
    "covidx: five words": (
        covidx,
        lambda root: write_covidx(root, val=["p1 my file.png positive ricord"]),
        "bad csv",
        "line 1: 'p1 my file.png positive ricord'",
    ),
    "covidx: class": (
        covidx,
        lambda root: write_covidx(root, test=["p1 a.png unclear ricord"]),
        "bad label",
        "line 1: 'unclear'",
    ),
    "covidx: one file in two lists": (
        covidx,
        lambda root: write_covidx(root, val=["p1 a.png positive ricord"]),
        "duplicate id",
        "first a.png: train/a.png, val/a.png",
    ),
    "covid-rural: file name": (
        covid_rural,
        lambda root: save(write_rural(root) / "jpgs/scan1.jpg", film()),
        "malformed name",
        "scan1.jpg",
    ),
    "covid-rural: no image": (covid_rural, lambda root: (root / "jpgs").mkdir(), "no records", ""),
    "hannover: column renamed": (
        hannover,
        lambda root: (root / "data.csv").write_text("patient_id,image,projection\n1,a,pa\n"),
        "bad csv",
        "no column image_id",
    ),
    "hannover: rows that differ": (
        hannover,
        lambda root: (root / "data.csv").write_text("patient_id,image_id,projection\n1,a,pa\n2,a,pa\n"),
        "duplicate id",
        "1 values of image_id with differing rows",
    ),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:60])


def _cut_text(path):
    lines = path.read_text().splitlines()[:61]
    path.write_text("\n".join([*lines[:-1], lines[-1][:25]]))


def _metadata(root, **cells):
    path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    table = pd.read_csv(path, dtype=str)
    for name, value in cells.items():
        table.loc[0, name] = value
    table.to_csv(path, index=False)


def _repeat_line(path, old, new):
    """The first training row once more, with a cell changed."""
    line = path.read_text().splitlines()[1]
    assert old in line
    with path.open("a") as file:
        file.write(line.replace(old, new) + "\n")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tree_is_a_named_error(tmp_path, name):
    loader, write, reason, message = BROKEN[name]
    write(tmp_path)
    with pytest.raises(CxrReadError) as error:
        loader.read_index(tmp_path)
    assert error.value.reason == reason, str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", LOADERS)
def test_a_folder_without_the_set_names_the_first_missing_file_and_the_fix(tmp_path, name):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CxrReadError, match=r"missing file \(download the data set, or set DATA_ROOT"):
            LOADERS[name].read_index(root)


OUTSIDE = ["../a.png", "/etc/a.png", "x/../../a.png", "..\\a.png", "C:/a.png", "s3://a/b.png", ""]


@pytest.mark.parametrize("path", OUTSIDE)
def test_path_outside_the_root(tmp_path, path):
    index = chestxray14.read_index(write_nih(tmp_path / "root"))
    save(tmp_path / "a.png", film())
    row = index.iloc[0].to_dict() | {"path": path}
    with pytest.raises(CxrReadError) as error:
        read_record(tmp_path / "root", row, "nih-cxr")
    assert error.value.reason == "path outside the root"
    row = index.iloc[0].to_dict() | {"mask_path": path or ".."}
    with pytest.raises(CxrReadError, match="path outside the root"):
        read_record(tmp_path / "root", row, "nih-cxr")


def test_repeated_rows_are_counted_listed_and_left_out(tmp_path):
    path = write_nih(tmp_path, 2) / NIH
    path.write_text(path.read_text() + path.read_text().splitlines()[3] + "\n")
    index = chestxray14.read_index(tmp_path)
    assert len(index) == 8 and index.attrs["warnings"] == {"repeated row": 1}
    assert listed(index).to_numpy().tolist() == [["repeated row", "00000001_002.png"]]
    assert listed(index[index.view == "PA"].copy()).shape == (1, 2)  # the notes outlive a selection


def test_notes_name_images_outside_the_official_lists(tmp_path):
    write_nih(tmp_path, 2)
    (tmp_path / "test_list.txt").write_text("")
    edited(tmp_path / "train_val_list.txt", "00000002_003.png\n", "")
    index = chestxray14.read_index(tmp_path)
    assert listed(index).to_numpy().tolist() == [["no split", "00000002_003.png"]]


def test_a_damaged_image_is_an_error_of_its_record_only(tmp_path):
    index = siim.read_index(write_siim(tmp_path))
    path = tmp_path / index.path[0]
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(CxrReadError) as error:
        read_record(tmp_path, index.iloc[0], "siim-acr")
    assert error.value.reason == "truncated"
    with pytest.raises(CxrReadError, match=r"i1\.dcm: missing file"):
        read_record(tmp_path, index.iloc[1], "siim-acr")


def test_a_mask_of_another_aspect_is_no_mask_of_this_image(tmp_path):
    index = covid_rural.read_index(write_rural(tmp_path, 1))
    save(tmp_path / index.mask_path[0], film(0, (24, 60)))
    with pytest.raises(CxrReadError, match=r"bad mask .*another aspect"):
        read_record(tmp_path, index.iloc[0], "covid-rural")


def test_errors_survive_the_way_back_from_a_worker():
    again = copy.copy(CxrReadError("a.png", "truncated", "half"))  # by __reduce__, as multiprocessing does
    assert (str(again), again.reason) == ("a.png: truncated (half)", "truncated")


def test_a_dicom_without_view_is_other(tmp_path):
    index = rsna.read_index(write_rsna(tmp_path))
    save_dicom(tmp_path / index.path[0], film())
    assert read_record(tmp_path, index.iloc[0], "rsna-pneumonia").view == "other"
