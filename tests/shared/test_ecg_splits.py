"""Splits: patients never leak, seeds decide, official folds are kept, files carry their hash."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from shared.ecg import ptbxl
from shared.ecg.splits import folds, load_split, save_split, split

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "data/official"))
N_RECORDS = 1000


@pytest.fixture
def records() -> pd.DataFrame:
    """1,000 records of 400 patients (2 or 3 each); a patient lies in one official fold."""
    patient = [i * 400 // N_RECORDS for i in range(N_RECORDS)]
    return pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(N_RECORDS)],
            "patient_id": [f"p{p}" for p in patient],
            "fold": [p % 10 + 1 for p in patient],
        }
    )


def patients(records: pd.DataFrame, ids: list[str]) -> set[str]:
    return set(records.set_index("record_id").patient_id[ids])


@pytest.mark.parametrize("protocol", ["official_folds", "patient", "as_published"])
def test_every_record_once_and_seeded(records, protocol):
    parts = split(records, protocol, seed=1)
    assert list(parts) == ["train", "val", "test"]
    ids = parts["train"] + parts["val"] + parts["test"]
    assert sorted(ids) == sorted(records.record_id)
    assert parts == split(records, protocol, seed=1)
    assert (parts == split(records, protocol, seed=2)) == (protocol == "official_folds")


def test_official_folds(records):
    parts = split(records, "official_folds", seed=0)
    fold = records.set_index("record_id").fold
    assert set(fold[parts["train"]]) == set(range(1, 9))
    assert set(fold[parts["val"]]) == {9}
    assert set(fold[parts["test"]]) == {10}


def test_patient_split_has_whole_patients_in_80_10_10_whatever_the_row_order(records):
    parts = split(records, "patient", seed=3)
    sets = {part: patients(records, ids) for part, ids in parts.items()}
    assert {part: len(s) for part, s in sets.items()} == {"train": 320, "val": 40, "test": 40}
    assert not (sets["train"] & sets["val"] or sets["train"] & sets["test"] or sets["val"] & sets["test"])
    shuffled = split(records.sample(frac=1, random_state=0), "patient", seed=3)
    assert {part: set(ids) for part, ids in shuffled.items()} == {part: set(ids) for part, ids in parts.items()}


def test_as_published_counts_and_leak(records):
    """Counts as scikit-learn's train_test_split gives them for 800,035 records: 720,031 / 72,003 / 8,001."""
    parts = split(records, "as_published", seed=0)
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 900, "val": 90, "test": 10}
    assert patients(records, parts["train"]) & patients(records, parts["test"]), "a record-level split leaks patients"
    n = 800_035
    big = pd.DataFrame({"record_id": range(n), "patient_id": range(n)})
    sizes = {part: len(ids) for part, ids in split(big, "as_published", seed=0).items()}
    assert sizes == {"train": 720_031, "val": 72_003, "test": 8_001}


def test_folds_are_ten_out_of_fold_splits(records):
    splits = folds(records)
    fold = records.set_index("record_id").fold
    assert sorted(i for parts in splits for i in parts["test"]) == sorted(records.record_id)
    for k, parts in enumerate(splits, start=1):
        assert set(fold[parts["test"]]) == {k}
        assert set(fold[parts["val"]]) == {k - 1 if k > 1 else 10}
        assert len(set(fold[parts["train"]])) == 8
        assert sum(map(len, parts.values())) == N_RECORDS


@pytest.mark.parametrize(
    ("change", "protocol", "message"),
    [
        ({}, "random", "unknown split protocol 'random'"),
        ({"fold": 0}, "official_folds", "this release has none"),
        ({"fold": 11}, "official_folds", "folds 1 to 10 expected"),
        ({"fold": 1}, "official_folds", "no records for val, test"),
        ({"patient_id": "one"}, "official_folds", "patient one is in two parts"),
        ({"patient_id": "one"}, "patient", "no records for train, val"),
        ({"record_id": "same"}, "patient", "record ids repeat"),
    ],
)
def test_errors(records, change, protocol, message):
    with pytest.raises(ValueError, match=message):
        split(records.assign(**change), protocol, seed=0)


def test_saved_splits_carry_their_hash(records, tmp_path):
    parts = split(records, "patient", seed=0)
    path = tmp_path / "splits" / "patient.json"
    sha256 = save_split(parts, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == save_split(parts, tmp_path / "again.json")
    assert load_split(path) == parts
    assert [p.name for p in path.parent.iterdir()] == ["patient.json"]  # nothing unfinished is left
    assert save_split(split(records, "patient", seed=1), path) != sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a"], "test": ["b"]}, "not a split"),
        ({"train": ["a"], "val": ["b"], "test": ["a"]}, "occurs twice"),
    ],
)
def test_load_split_refuses_what_is_no_split(tmp_path, content, message):
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "s.json")


@pytest.mark.realdata
def test_real_ptbxl_folds():
    root = DATA_ROOT / "ptb-xl"
    if not root.is_dir():
        pytest.skip(f"{root} is not there; set DATA_ROOT to a folder with the official release")
    records = ptbxl.read_index(root)
    parts = split(records, "official_folds", seed=0)  # raises where a patient lies in two parts
    counts = records.fold.value_counts()
    assert (len(parts["val"]), len(parts["test"])) == (counts[9], counts[10])
    assert [len(parts["test"]) for parts in folds(records)] == [counts[k] for k in range(1, 11)]
