"""INSPECT (Huang et al. 2023, arXiv 2311.10798): 23,248 CT pulmonary angiograms of 19,402 patients, impressions only.

Layout: CTPA/*.nii.gz and the tables Final_metadata.csv (`image_id` = file name, `impression_id`), Final_splits.csv
(`impression_id`, `split`), Final_Impressions.csv (`impression_id` and the text), Final_labels.csv (`impression_id` and
labels; optional). Images and impressions are joined by the metadata table only: file names are not impression ids
(Argus). Columns whose names are not established are looked for under several names.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.ct_io import read_row
from shared.ct.tables import find_volumes, make_index, read_table, stem, unique
from shared.ct.volume import CtReadError

NAME = "inspect"
KEY = "impression_id"
# Never Impressions_1, Impressions_2 or Findings_*: those are rewritten by a language model.
TEXT_COLUMNS = ("impressions", "impression", "Impressions_EN")
PATIENT_COLUMNS = ("person_id", "patient_id", "PatientID")
PARTS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}


def read_index(root: Path) -> pd.DataFrame:
    """One row per image of the metadata table that has a file, with INDEX_COLUMNS; no voxel is touched.

    split: as released. Left out and counted in `.attrs["warnings"]`: images without a file, without an impression row
    or without a split. Raises CtReadError: missing file, bad csv, duplicate id, unknown split, no volumes.
    """
    root = Path(root)
    path = root / "Final_metadata.csv"
    metadata = unique(read_table(path, ("image_id", KEY)), "image_id", path)
    texts = _column(root / "Final_Impressions.csv", TEXT_COLUMNS)
    splits = _column(root / "Final_splits.csv", ("split",))
    patient = next((name for name in PATIENT_COLUMNS if name in metadata.columns), None)
    if patient is None:
        raise CtReadError(path, "bad csv", f"no column of patients ({', '.join(PATIENT_COLUMNS)}); splits need one")
    unknown = sorted(set(splits.values()) - set(PARTS) - {""})
    if unknown:
        raise CtReadError(root / "Final_splits.csv", "unknown split", f"{unknown[0]!r}; {', '.join(PARTS)} expected")
    labels = _labels(root / "Final_labels.csv")
    files = {stem(name): relative for name, relative in find_volumes(root).items()}
    rows, warnings = [], {"missing file": 0, "no impression": 0, "no split": 0}
    for image, key, person in zip(metadata.image_id, metadata[KEY], metadata[patient], strict=True):
        name = stem(image)
        absent = {"missing file": name not in files, "no impression": key not in texts, "no split": not splits.get(key)}
        if any(absent.values()):
            warnings[next(reason for reason, is_so in absent.items() if is_so)] += 1
            continue
        row = {"volume_id": name, "study_id": key, "patient_id": person, "path": files[name], "split": splits[key]}
        rows.append(row | {"impression": texts[key], "labels": labels.get(key, {})})
    return make_index(rows, path, warnings)


def _column(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """impression_id -> the first of the columns `names` that the table has."""
    if not path.is_file() and path.with_suffix(".xlsx").is_file():
        raise CtReadError(path.with_suffix(".xlsx"), "bad csv", f"a spreadsheet; save it as {path.name}")
    table = read_table(path, (KEY,))
    name = next((name for name in names if name in table.columns), None)
    if name is None:
        raise CtReadError(path, "bad csv", f"none of the columns {', '.join(names)}; it has {', '.join(table.columns)}")
    table = unique(table[[KEY, name]], KEY, path)
    return dict(zip(table[KEY], table[name], strict=True))


def _labels(path: Path) -> dict[str, dict[str, int]]:
    """impression_id -> labels that are true or false; censored ones are left out."""
    if not path.is_file():
        return {}
    table = unique(read_table(path, (KEY,)), KEY, path)
    values = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}
    names = [name for name in table.columns if name != KEY and table[name].str.lower().isin([*values, ""]).mean() > 0.5]
    return {
        cells[KEY]: {name: values[cells[name].lower()] for name in names if cells[name].lower() in values}
        for cells in table.to_dict("records")
    }


def split(index: pd.DataFrame, seed: int = 0) -> pd.Series:
    """ "train", "val" or "test" per row: the official split; `seed` decides nothing here."""
    return pd.Series(np.array([PARTS[name] for name in index.split], dtype=str), index=index.index)


read_volume = read_row
