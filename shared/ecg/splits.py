"""Which record is trained on, tuned on and scored: seeded, saved as id lists, hashed.

Protocols:
official_folds  PTB-XL folds 1-8 / 9 / 10 (Wagner et al. 2020, section "Usage Notes").
patient         80/10/10 of the patients, seeded: the protocol for every release without official folds.
as_published    the public MEIT code on MIMIC-IV-ECG: records, not patients, split 90/10 at random, then one tenth of
                that tenth is scored ("test", about 8,000 of 800,035); the other nine tenths ("val") were built and
                never scored. Patients leak.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

PARTS = ("train", "val", "test")
N_FOLDS = 10


def split(records: pd.DataFrame, protocol: str, seed: int) -> dict[str, list[str]]:
    """{"train", "val", "test"} -> record ids, in the order of `records` (columns record_id, patient_id, fold).

    `seed` decides `patient` and `as_published`; `official_folds` has no chance in it. `patient` depends on the set of
    patients and the seed only, not on the order of the rows.
    Raises ValueError for an unknown protocol, repeated ids, records without a fold, an empty part, or (except in
    as_published) a patient in two parts.
    """
    if protocol == "official_folds":
        fold = _folds_of(records)
        part = np.where(fold == N_FOLDS, "test", np.where(fold == N_FOLDS - 1, "val", "train"))
    elif protocol == "patient":
        part = _by_patient(records, seed)
    elif protocol == "as_published":
        part = _by_record(len(records), seed)
    else:
        raise ValueError(f"unknown split protocol {protocol!r}; choose official_folds, patient or as_published")
    return _parts(records, part, leaks=protocol == "as_published")


def folds(records: pd.DataFrame) -> list[dict[str, list[str]]]:
    """Ten splits for out-of-fold predictions: test = official fold k, val = the fold before, train = the rest."""
    fold = _folds_of(records)
    splits = []
    for k in range(1, N_FOLDS + 1):
        before = k - 1 or N_FOLDS
        splits.append(_parts(records, np.where(fold == k, "test", np.where(fold == before, "val", "train"))))
    return splits


def save_split(split: dict[str, list[str]], path: Path) -> str:
    """Write the id lists as JSON, atomically; returns the SHA-256 of the file, which belongs in the manifest."""
    path = Path(path)
    content = json.dumps({part: split[part] for part in PARTS}, indent=0).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
    return hashlib.sha256(content).hexdigest()


def load_split(path: Path) -> dict[str, list[str]]:
    """Read what `save_split` wrote; raises ValueError where it is not a split."""
    loaded = json.loads(Path(path).read_bytes())
    if not isinstance(loaded, dict) or tuple(loaded) != PARTS:
        raise ValueError(f"{path}: not a split; expected the keys {', '.join(PARTS)}")
    ids = [record_id for part in PARTS for record_id in loaded[part]]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: a record id occurs twice")
    return loaded


def _folds_of(records: pd.DataFrame) -> np.ndarray:
    fold = records["fold"].to_numpy()
    if ((fold < 1) | (fold > N_FOLDS)).any():
        raise ValueError("official folds 1 to 10 expected; this release has none, use the protocol 'patient'")
    return fold


def _by_patient(records: pd.DataFrame, seed: int) -> np.ndarray:
    patients = np.sort(records["patient_id"].unique())
    shuffled = np.random.default_rng(seed).permutation(patients)
    tenth = max(1, round(len(shuffled) / 10))
    part_of = dict.fromkeys(shuffled, "train")
    part_of |= dict.fromkeys(shuffled[:tenth], "test") | dict.fromkeys(shuffled[tenth : 2 * tenth], "val")
    return records["patient_id"].map(part_of).to_numpy(dtype=str)


def _by_record(n_records: int, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(n_records)
    n_held_out = -(-n_records // 10)  # rounded up, as scikit-learn's train_test_split does
    part = np.full(n_records, "train")
    part[shuffled[:n_held_out]] = "val"
    part[shuffled[: -(-n_held_out // 10)]] = "test"
    return part


def _parts(records: pd.DataFrame, part: np.ndarray, leaks: bool = False) -> dict[str, list[str]]:
    if records["record_id"].duplicated().any():
        raise ValueError("record ids repeat; a split needs one row per record")
    ids = records["record_id"].to_numpy()
    result = {name: ids[part == name].tolist() for name in PARTS}
    empty = [name for name in PARTS if not result[name]]
    if empty:
        raise ValueError(f"no records for {', '.join(empty)}: {len(records)} records are too few for this protocol")
    if not leaks:
        shared = pd.Series(part).groupby(records["patient_id"].to_numpy()).nunique()
        if (shared > 1).any():
            raise ValueError(f"patient {shared.index[shared > 1][0]} is in two parts of the split")
    return result
