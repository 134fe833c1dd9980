"""The loaders of the chest X-ray sets on small trees in the official layouts."""

import numpy as np
import pandas as pd
import pytest
from cxr_trees import (
    film,
    padchest_row,
    rsna_row,
    save,
    write_chexpert,
    write_covidx,
    write_csv,
    write_mimic,
    write_nih,
    write_padchest,
    write_rsna,
    write_rural,
    write_siim,
)

from synth_medvlp.datasets import (
    INDEX_COLUMNS,
    LOADERS,
    chestxray14,
    chexpert,
    covid_rural,
    covidx,
    listed,
    mimic_cxr_jpg,
    padchest,
    present,
    read_image,
    read_record,
    rsna,
    siim,
    targets,
)
from synth_medvlp.datasets.masks import encode_rle
from synth_medvlp.record import CxrRecord

VIEWS = ("PA", "AP", "lateral", "other")
WRITERS = {
    mimic_cxr_jpg: write_mimic,
    chexpert: write_chexpert,
    chestxray14: write_nih,
    padchest: write_padchest,
    rsna: write_rsna,
    siim: write_siim,
    covidx: write_covidx,
    covid_rural: write_rural,
}


def test_the_registry_holds_every_set_by_the_name_of_its_folder():
    assert set(WRITERS) < set(LOADERS.values())
    for name, loader in LOADERS.items():
        assert loader.NAME == name and isinstance(loader.CLASSES, tuple) and loader.read_index.__doc__
        assert "as_published" in loader.split.__doc__ or name in ("hannover-cxr",)


@pytest.mark.parametrize("loader", WRITERS, ids=lambda loader: loader.NAME)
def test_every_index_has_the_same_columns_and_readable_rows(tmp_path, loader):
    index = loader.read_index(WRITERS[loader](tmp_path))
    assert tuple(index.columns) == INDEX_COLUMNS
    assert index.image_id.is_unique and set(index.view) <= {*VIEWS, ""}
    assert index.labels.map(lambda labels: set(labels.values()) <= {1, 0, -1, None}).all()
    assert all(type(v) in (int, type(None)) for labels in index.labels for v in labels.values())
    here = present(index, tmp_path)
    if loader is not chexpert:  # its tree has no image files
        record = read_record(tmp_path, here.iloc[0], loader.NAME)
        assert isinstance(record, CxrRecord) and record.view in VIEWS and record.image.ndim == 2
        assert read_image(record).shape == (224, 224)
    missing = here.attrs["warnings"].get("missing file", 0)
    assert len(here) + missing == len(index)
    assert (listed(here).reason == "missing file").sum() == missing


def test_mimic_joins_metadata_split_labels_and_reports(tmp_path):
    index = mimic_cxr_jpg.read_index(write_mimic(tmp_path))
    assert index.image_id.tolist() == ["d1", "d2", "d3", "d4", "d5"]
    assert index.view.tolist() == ["PA", "lateral", "AP", "AP", "PA"]
    assert index.split.tolist() == ["train", "train", "train", "val", "test"]
    assert index.path[0] == "files/p10/p10000032/s50000001/d1.jpg"
    assert index.impression.tolist() == ["No acute process."] * 3 + ["", ""]
    assert index.labels[0]["Edema"] == -1 and index.labels[0]["Pneumonia"] is None
    assert index.labels[0] == index.labels[1] and index.labels[3]["Pneumonia"] == 0 and index.labels[4] == {}
    assert index.attrs["warnings"] == {"missing report": 1, "empty report": 1, "no labels": 1}
    assert listed(index).to_numpy().tolist() == [
        ["missing report", "50000003"],
        ["empty report", "50000004"],
        ["no labels", "50000004"],
    ]
    record = read_record(tmp_path, index.iloc[0], "mimic-cxr-jpg")
    assert record.image.shape == (40, 30) and record.findings.startswith("The lungs are clear")


def test_mimic_reports_of_the_separate_release_and_a_tree_without_labels(tmp_path):
    root = tmp_path / "mimic-cxr-jpg"
    root.mkdir()
    write_mimic(root, labels=False)
    for report in root.rglob("s5*.txt"):
        target = tmp_path / "mimic-cxr" / report.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        report.rename(target)
    index = mimic_cxr_jpg.read_index(root)
    assert index.impression[0] == "No acute process." and index.labels[0] == {}
    assert np.isnan(targets(index, ["Edema"], "corrected").to_numpy()).all()


def test_chexpert_prefixes_views_and_splits(tmp_path):
    index = chexpert.read_index(write_chexpert(tmp_path, 2))
    assert index.split.tolist() == ["train"] * 6 + ["val"] * 3 + ["test"] * 4
    assert index.image_id[0] == "train/patient00001/study1/view1_frontal"
    assert index.path[0] == "train/patient00001/study1/view1_frontal.jpg"  # no folder of the archive's name: stripped
    assert index.view.tolist()[:3] == ["AP", "AP", "lateral"] and index.view.iloc[-1] == "other"
    assert index.study_id[1] == "patient00001/study2" and index.patient_id.nunique() == 9
    save(tmp_path / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", film())
    index = chexpert.read_index(tmp_path)
    assert index.path[0] == "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    assert len(present(index, tmp_path)) == 1


def test_nih_labels_patients_and_boxes_on_a_scaled_image(tmp_path):
    index = chestxray14.read_index(write_nih(tmp_path, 3))
    assert index.labels[0] == dict.fromkeys(chestxray14.CLASSES, 0)
    assert [name for name, value in index.labels[2].items() if value] == ["Cardiomegaly", "Edema"]
    assert index.path[0] == "images_001/images/00000001_000.png" and index.patient_id[0] == "1"
    assert index.boxes[0] == (("Infiltration", 256.0, 512.0, 128.0, 64.0),)
    record = read_record(tmp_path, index.iloc[0], "nih-cxr")
    assert record.boxes == (("Infiltration", 8.0, 16.0, 4.0, 2.0),)  # 32 pixels stand for 1024
    notes = "00000002_000.png,Mass,-10,1000,100,100,,,\n" * 2 + "00000099_000.png,Mass,1,1,9,9,,,\n"
    with (tmp_path / "BBox_List_2017.csv").open("a") as file:
        file.write(notes)
    index = chestxray14.read_index(tmp_path)
    assert index.boxes[4] == (("Mass", 0.0, 1000.0, 90.0, 24.0),)
    expected = {"box cut at the border": 2, "repeated box": 1, "box without image": 1}
    assert index.attrs["warnings"] == expected


def test_padchest_labels_methods_and_sixteen_bits(tmp_path):
    index = padchest.read_index(write_padchest(tmp_path))
    assert index.image_id.tolist()[-3:] == ["b1", "b2", "b3"]  # b4 has no labels
    assert index.attrs["warnings"] == {"no labels": 1, "MONOCHROME1 film, PNG as stored": 1}
    by_id = index.set_index("image_id")
    assert by_id.labels.b1 == {"pleural effusion": 1, "cardiomegaly": 1}
    assert (by_id.view.b1, by_id.view.b2, by_id.view.b3) == ("lateral", "AP", "other")
    assert (by_id.source.b1, by_id.source.b3) == ("physician", "model")
    table = targets(index, ["cardiomegaly", "nodule"], "corrected")
    assert table.loc["b1"].tolist() == [1, 0] and table.loc["b3"].tolist() == [0, 1]
    record = read_record(tmp_path, index.iloc[0], "padchest")
    assert record.image.dtype == np.uint16 and record.image.shape == (40, 20)
    assert (len(padchest.SEEN), len(padchest.RARE), len(padchest.UNSEEN)) == (14, 39, 60)


def test_rsna_groups_boxes_by_image_and_reads_the_view_from_the_file(tmp_path):
    rows = [
        rsna_row("r0", 1, ("256", "512", "128", "64")),
        rsna_row("r0", 1, ("256.0", "512.0", "128.0", "64.0")),
        rsna_row("r0", 1, ("0", "0", "10", "10")),
        rsna_row("r1", 0),
    ]
    mapping = '[{"subset_img_id": "r0", "img_id": "00000007_004.png"}]'
    write_csv(
        tmp_path / "stage_2_detailed_class_info.csv",
        [{"patientId": "r0", "class": "Lung Opacity"}, {"patientId": "r1", "class": "No Lung Opacity / Not Normal"}],
    )
    index = rsna.read_index(write_rsna(tmp_path, rows, mapping))
    assert index.boxes[0] == (("Pneumonia", 256.0, 512.0, 128.0, 64.0), ("Pneumonia", 0.0, 0.0, 10.0, 10.0))
    assert index.patient_id.tolist() == ["nih:7", "r1"] and index.source.tolist() == ["opacity", "not normal"]
    assert index.attrs["warnings"] == {"repeated box": 1, "patient unknown": 1}
    record = read_record(tmp_path, index.iloc[0], "rsna-pneumonia")
    assert record.view == "AP" and record.boxes[0] == ("Pneumonia", 8.0, 16.0, 4.0, 2.0)
    assert record.labels == {"Pneumonia": 1}


PUBLISHED_VAL = """ID_x,img_path,boxes_x,classes_x,ID_y,boxes_y,classes_y
7729,mdai/1.2/1.3/1.4.dcm,132.0;459.0;268.0;202.0|132.0;459.0;268.0;202.0,1,,,
26035,mdai/1.2/1.3/1.5.dcm,nan,0,,,
"""
PUBLISHED_TEST = "ID,img_path,boxes,classes\n1,mdai/1.2/1.3/1.6.dcm,1.0;2.0;3.0;4.0,1\n2,mdai/1.2/1.3/1.7.dcm,,0\n"


def test_rsna_published_tables_and_their_merge_artefact(tmp_path):
    (tmp_path / "mavl").mkdir()
    (tmp_path / "mavl/val.csv").write_text(PUBLISHED_VAL)
    (tmp_path / "mavl/test.csv").write_text(PUBLISHED_TEST)
    corrected, published = rsna.read_published(tmp_path), rsna.read_published(tmp_path, "as_published")
    assert corrected.image_id.tolist() == ["1.4", "1.5", "1.6", "1.7"]
    assert corrected.split.tolist() == ["val", "val", "test", "test"]
    assert [len(boxes) for boxes in corrected.boxes] == [1, 0, 1, 0]
    assert [len(boxes) for boxes in published.boxes] == [2, 0, 1, 0]
    assert corrected.attrs["warnings"] == published.attrs["warnings"] == {"repeated box": 1}
    assert rsna.split(corrected, tmp_path).split.value_counts().to_dict() == {"val": 2, "test": 2}


def test_siim_codes_of_one_image_are_one_mask_at_its_own_size(tmp_path):
    mask = np.zeros((1024, 1024), bool)
    mask[512:, :256] = True
    half = mask.copy()
    half[:, :128] = False
    rows = [("i0", f" {encode_rle(mask & ~half)}"), ("i0", f" {encode_rle(half)}"), ("i1", " -1"), ("i1", " -1")]
    index = siim.read_index(write_siim(tmp_path, rows))
    assert index.labels.tolist() == [{"Pneumothorax": 1}, {"Pneumothorax": 0}]
    assert index.attrs["warnings"] == {"repeated row": 1}
    assert index.path[0] == "dicom-images-train/1.2/1.3/i0.dcm"
    record = read_record(tmp_path, index.iloc[0], "siim-acr")
    np.testing.assert_array_equal(record.mask, mask[::16, ::16])
    save(tmp_path / "processed_images/i1.png", film())
    save(tmp_path / "processed_images/i0.png", film())
    index = siim.read_index(tmp_path)
    assert index.path.tolist() == ["dicom-images-train/1.2/1.3/i0.dcm", "processed_images/i1.png"]
    empty = read_record(tmp_path, index.iloc[1], "siim-acr").mask
    assert empty.shape == (32, 32) and not empty.any()


def test_covidx_lists_and_their_published_names(tmp_path):
    index = covidx.read_index(write_covidx(tmp_path, train=["p1 a.png positive stonybrook"] * 2))
    assert index.image_id.tolist() == ["a.png", "d.png", "e.png", "f.png", "g.png"]
    assert index.attrs["warnings"] == {"repeated row": 1}
    assert index.patient_id[0] == "p1" and index.source[0] == "stonybrook" and index.path[0] == "train/a.png"
    assert read_record(tmp_path, index.iloc[0], "covidx-cxr2").image.shape == (32, 32)  # RGB on disk
    (tmp_path / "mavl").mkdir()
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.txt").rename(tmp_path / f"mavl/{part}_split.csv")
    pd.testing.assert_frame_equal(covidx.read_index(tmp_path), index)


def test_covid_rural_labels_come_from_the_masks(tmp_path):
    write_rural(tmp_path, 2)
    stem = "COVID-19-AR-16400001_01-02-2012-XR"
    (tmp_path / f"pngs_masks/{stem}.png").unlink()
    (tmp_path / "pngs_masks/COVID-19-AR-16400001_01-03-2012-XR.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    index = covid_rural.read_index(tmp_path)
    assert [labels["Lung Opacity"] for labels in index.labels] == [1, 1, 0, 1]
    assert index.patient_id.unique().tolist() == ["COVID-19-AR-16400000", "COVID-19-AR-16400001"]
    assert index.attrs["warnings"] == {"missing mask": 1, "bad mask": 1}
    record = read_record(tmp_path, index.iloc[0], "covid-rural")
    assert record.mask.shape == record.image.shape == (20, 24) and record.mask.sum() == 24


def test_uncertain_and_blank_labels_under_both_protocols(tmp_path):
    index = chexpert.read_index(write_chexpert(tmp_path, 5))
    published, corrected = (targets(index, ["Edema", "Cardiomegaly"], p) for p in ("as_published", "corrected"))
    uncertain = [labels["Edema"] == -1 for labels in index.labels]
    assert sum(uncertain) == 2
    assert (published.Edema[uncertain] == 1).all() and corrected.Edema[uncertain].isna().all()
    assert (published.Cardiomegaly == 0).all() and corrected.isna().sum().sum() == 2  # blanks are 0 in both
    index.labels[0]["Fracture"] = -1
    with pytest.raises(ValueError, match=r"Fracture: \d+ uncertain labels and no published rule"):
        targets(index, ["Fracture"], "as_published")
    with pytest.raises(ValueError, match="unknown protocol"):
        targets(index, ["Edema"], "mine")


def test_the_first_of_files_with_one_name_counts(tmp_path):
    write_nih(tmp_path, 1)
    save(tmp_path / "zz_copies/00000001_000.png", film())
    assert chestxray14.read_index(tmp_path).path[0] == "images_001/images/00000001_000.png"
    save(tmp_path / "00000001_000.png", film())
    assert chestxray14.read_index(tmp_path).path[0] == "00000001_000.png"


def test_padchest_images_in_numbered_folders(tmp_path):
    write_padchest(tmp_path, [padchest_row("a0", "['normal']"), padchest_row("z9", "['normal']")])
    index = padchest.read_index(tmp_path)
    assert index.path.tolist() == ["0/a0.png", "0/z9.png"]
