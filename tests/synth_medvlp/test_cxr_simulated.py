"""What the simulated hospitals write is what the loaders read: ids, findings, boxes and masks agree with the truth."""

import json

import numpy as np
import pandas as pd
import pytest

from synth_medvlp.datasets import LOADERS, decode_rle, present, read_image, read_record, shared
from synth_medvlp.datasets.labels import PROTOCOLS
from synth_medvlp.simulate_layouts import write

SIZE = 64
SETS = [name for name in LOADERS if name != "hannover-cxr"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """data set -> (root, index, truth by image id), each written once."""
    made = {}

    def tree(dataset):
        if dataset not in made:
            root = write(dataset, tmp_path_factory.mktemp("official") / dataset, 48, seed=3, size_px=SIZE)
            truth = pd.read_parquet(root / "truth.parquet").set_index("image_id")
            made[dataset] = root, LOADERS[dataset].read_index(root), truth
        return made[dataset]

    return tree


@pytest.mark.parametrize("dataset", SETS)
def test_every_image_is_found_and_readable(trees, dataset):
    root, index, truth = trees(dataset)
    assert set(index.image_id) == set(truth.index) and index.image_id.is_unique
    assert len(present(index, root)) == len(index)
    pd.testing.assert_series_equal(index.set_index("image_id").path, truth.path[index.image_id], check_dtype=False)
    patient = truth.patient[index.image_id].to_numpy()
    assert (pd.Series(patient).groupby(index.patient_id.to_numpy()).nunique() == 1).all()  # no two people under one id
    if dataset not in ("siim-acr", "covidx-cxr2"):  # SIIM names no patients; in COVIDx each collection has its own ids
        assert index.patient_id.nunique() == len(set(patient))
    for _, row in index.head(5).iterrows():
        record = read_record(root, row, dataset)
        assert record.image.shape == (SIZE, SIZE) and read_image(record).shape == (224, 224)
        words = {"PA": "PA", "AP": "AP", "LATERAL": "lateral"}
        assert record.view in (words.get(truth.view[record.image_id], "other"), "other")


@pytest.mark.parametrize("dataset", SETS)
def test_both_splits_can_be_made_and_the_corrected_one_shares_nobody(trees, dataset):
    root, index, _ = trees(dataset)
    for protocol in PROTOCOLS:
        split = LOADERS[dataset].split(index, root, protocol)
        assert len(split) and set(split.split) <= {"train", "val", "test"}
        if protocol == "corrected":
            assert not any(shared(split).values()) and split.image_id.is_unique


@pytest.mark.parametrize(("dataset", "finding"), [("siim-acr", "pneumothorax"), ("covid-rural", "consolidation")])
def test_masks_are_those_drawn(trees, dataset, finding):
    root, index, truth = trees(dataset)
    positive = 0
    for _, row in index.iterrows():
        drawn = json.loads(truth.masks[row.image_id]).get(finding, "-1")
        expected = decode_rle(drawn, (SIZE, SIZE))
        np.testing.assert_array_equal(read_record(root, row, dataset).mask, expected)
        assert set(row.labels.values()) == {int(expected.any())}
        positive += expected.any()
    assert 0 < positive < len(index)


@pytest.mark.parametrize("dataset", ["rsna-pneumonia", "nih-cxr"])
def test_boxes_lie_where_the_findings_were_drawn(trees, dataset):
    root, index, truth = trees(dataset)
    n = 0
    for _, row in index[index.boxes.map(len) > 0].iterrows():
        drawn = [decode_rle(code, (SIZE, SIZE)) for code in json.loads(truth.masks[row.image_id]).values()]
        drawn = np.any(drawn, axis=0)
        for label, x, y, w, h in read_record(root, row, dataset).boxes:
            inside = drawn[round(y) : round(y + h), round(x) : round(x + w)]
            assert inside.size and inside.mean() > 0.2, (row.image_id, label)
            assert row.labels[label] == 1
            n += 1
    assert n > 3


def test_mimic_reports_and_labels_say_what_was_written(trees):
    _, index, truth = trees("mimic-cxr-jpg")
    frontal = index[index.view.isin(("PA", "AP"))]
    for row in frontal.itertuples():
        assert row.findings == " ".join(truth.report_findings[row.image_id].split())
        assert row.impression == " ".join(truth.report_impression[row.image_id].split())
    assert {value for labels in frontal.labels for value in labels.values()} == {1, 0, -1, None}
