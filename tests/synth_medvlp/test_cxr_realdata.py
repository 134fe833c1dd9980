"""The loaders on real files: ChestX-ray14's full label and box tables, its and Hannover's radiographs."""

from collections import Counter

import numpy as np
import pytest
from cxr_trees import real

from synth_medvlp.datasets import boxes_mask, chestxray14, hannover, present, read_image, read_record, targets
from synth_medvlp.datasets.splits import by_group, by_row, shared, table

pytestmark = pytest.mark.realdata

# Images and patients as the release states them; the others are the totals of its label and box tables.
IMAGES, PATIENTS, BOXES, BOXED_IMAGES, NO_FINDING = 112_120, 30_805, 984, 880, 60_361
COUNTS = {
    "Atelectasis": 11_559, "Cardiomegaly": 2_776, "Effusion": 13_317, "Infiltration": 19_894, "Mass": 5_782,
    "Nodule": 6_331, "Pneumonia": 1_431, "Pneumothorax": 5_302, "Consolidation": 4_667, "Edema": 2_303,
    "Emphysema": 2_516, "Fibrosis": 1_686, "Pleural_Thickening": 3_385, "Hernia": 227}  # fmt: skip


@pytest.fixture(scope="module")
def nih():
    return chestxray14.read_index(real("nih-cxr"))


def test_nih_tables_are_complete_and_labels_agree_with_the_release(nih):
    assert len(nih) == IMAGES and nih.patient_id.nunique() == PATIENTS and nih.attrs["warnings"] == {}
    assert set(nih.view) == {"PA", "AP"}
    labels = targets(nih, chestxray14.CLASSES, "corrected")
    assert labels.sum().astype(int).to_dict() == COUNTS
    assert int((labels.sum(axis=1) == 0).sum()) == NO_FINDING


def test_nih_boxes_lie_in_the_frame_and_belong_to_findings_of_their_image(nih):
    boxed = nih[nih.boxes.map(len) > 0]
    boxes = [(row.labels, box) for row in boxed.itertuples() for box in row.boxes]
    assert (len(boxed), len(boxes)) == (BOXED_IMAGES, BOXES)
    assert Counter(box[0] for _, box in boxes)["Infiltration"] == 123  # "Infiltrate" in the box table
    assert all(x >= 0 and y >= 0 and x + w <= 1024 and y + h <= 1024 for _, (_, x, y, w, h) in boxes)
    agree = np.mean([labels[box[0]] for labels, box in boxes])
    assert agree > 0.95  # a few boxes mark what the text label of 2017 does not say


def test_nih_image_level_draw_shares_patients_as_the_reference_found(nih):
    """The published 10,816 validation images have 8,576 patients. Drawing as many images at random gives
    nearly that number and leaves most of these patients in train; drawing patients shares none."""
    published = by_row(nih.image_id.tolist(), {"val": 10_816 / IMAGES, "train": 1 - 10_816 / IMAGES}, seed=0)
    drawn = table(nih, published, "by image")
    people = drawn[drawn.split == "val"].patient_id.nunique()
    assert shared(drawn)["train-val patients"] > 0.6 * people
    corrected = by_group(nih, nih.patient_id, {"val": 0.125, "train": 0.875}, seed=0)
    assert not any(shared(table(nih, corrected, "by patient")).values())


def test_nih_images_and_the_missing_rest(nih):
    root = real("nih-cxr")
    here = present(nih, root)
    assert len(here) + here.attrs["warnings"]["missing file"] == IMAGES and len(here) >= 2
    for _, row in here.head(20).iterrows():
        record = read_record(root, row, "nih-cxr")
        assert record.image.dtype == np.uint8 and min(record.image.shape) >= 512 and record.image.std() > 20
        assert read_image(record).shape == (224, 224)
        centre, corner = record.image[len(record.image) // 2 :, 240:270].mean(), record.image[:40, :40].mean()
        assert centre > corner  # bright = dense: the mediastinum is brighter than the air beside the neck
        assert boxes_mask(record.boxes, record.image.shape).any() == bool(record.boxes)


def test_hannover_images_patients_and_views():
    root = real("hannover-cxr")
    index = hannover.read_index(root)
    assert (len(index), index.patient_id.nunique()) == (243, 71)
    assert index.view.value_counts().to_dict() == {"AP": 194, "PA": 49}
    here = present(index, root)
    assert len(here) >= 60
    for _, row in here.iterrows():
        record = read_record(root, row, "hannover-cxr")
        padded, squashed = read_image(record, "pad"), read_image(record)
        height, width = record.image.shape
        assert record.image.dtype == np.uint8 and width == 640 and record.image.std() > 10
        assert padded.shape == squashed.shape == (224, 224)
        free = (224 - int(224 * min(height, width) / max(height, width))) // 2
        band = padded[:free] if height < width else padded[:, :free]
        assert not band.size or band.max() == 0
