"""CT-RATE (Hamamci et al. 2024): 25,692 non-contrast chest CTs, 50,188 reconstructions, 21,304 patients, reports.

Layout: dataset/{train,valid}/PATIENT/SCAN/VOLUME.nii.gz (v1), dataset/{train_fixed,valid_fixed}/... (re-upload),
dataset/metadata/{train,validation}_metadata.csv, dataset/radiology_text_reports/{train,validation}_reports.csv,
dataset/multi_abnormality_labels/{train,valid}_predicted_labels.csv, dataset/metadata/no_chest_{train,valid}.txt.

v1 files hold raw values under a blank header: rescale and geometry come from the metadata table. Fixed files hold HU
under a sound header: nothing of the table is applied to them (Argus, reference: "Data"). The
folder decides, never the values; where a volume is there in both forms, the fixed one is read.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.ct_io import TableHeader, read_row, resolve
from shared.ct.tables import held_out, make_index, read_table, unique
from shared.ct.volume import CtReadError, CtVolume

NAME = "ct-rate"
SPLITS = {"train": ("train", "train"), "valid": ("validation", "valid")}  # folder -> prefix of tables, of label tables
VOLUME_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
NOT_GIVEN = "not given."  # the whole field; in prose it also says that no contrast agent was given
HEAD = re.compile(r"\b(head|brain|skull|cranial|kranial|beyin|kafa)\b", re.IGNORECASE)

# Reconstructions that SPECTRE removed by hand as outliers.
EXCLUDED = {
    "train_1022_a": range(1, 10),
    **dict.fromkeys(("train_11401_a", "train_18676_a"), (1, 2, 3, 5, 6)),
    "train_13728_a": (1, 2, 3, 5, 6, 7),
    **dict.fromkeys(("train_1162_a", "train_13739_a", "train_17867_a", "train_3821_a", "train_6331_a"), (1, 2, 4, 5)),
    **dict.fromkeys(("train_2871_a", "train_4288_a"), (1, 2, 3, 5)),
    "valid_1170_a": (1, 2, 5),
}


def read_index(root: Path) -> pd.DataFrame:
    """One row per volume that has a report and a file, with INDEX_COLUMNS; no voxel is touched.

    split: "train" or "valid" as released. `Not given.` as a whole field is an empty text. flag: "excluded
    reconstruction", "not a chest CT" (the release's list, or the series description), "malformed <column>" (v1 only).
    Volumes of the report tables without a file, and v1 volumes without metadata, are left out and counted in
    `.attrs["warnings"]`. Raises CtReadError: missing file, bad csv, duplicate id, malformed VolumeName, no volumes.
    """
    root = Path(root)
    tables = root / "dataset" / "radiology_text_reports"
    present = [split for split, (prefix, _) in SPLITS.items() if (tables / f"{prefix}_reports.csv").is_file()]
    if not present:
        read_table(tables / "train_reports.csv")  # raises, naming the file
    rows, warnings = [], {"missing file": 0, "no metadata": 0}
    for split in present:
        rows += _rows_of_split(root, split, warnings)
    return make_index(rows, tables, warnings)


def _rows_of_split(root: Path, split: str, warnings: dict[str, int]) -> list[dict]:
    prefix, label_prefix = SPLITS[split]
    folder = root / "dataset"
    path = folder / "radiology_text_reports" / f"{prefix}_reports.csv"
    reports = unique(read_table(path, ("VolumeName", "Findings_EN", "Impressions_EN")), "VolumeName", path)
    metadata = _keyed(folder / "metadata" / f"{prefix}_metadata.csv")
    labels = _keyed(folder / "multi_abnormality_labels" / f"{label_prefix}_predicted_labels.csv")
    no_chest = _listed(folder / "metadata" / f"no_chest_{split}.txt")
    rows = []
    for name, findings, impression in zip(reports.VolumeName, reports.Findings_EN, reports.Impressions_EN, strict=True):
        match = VOLUME_NAME.fullmatch(name)
        if not match or match[2] != split:
            raise CtReadError(path, "malformed VolumeName", f"{name!r}; {split}_<patient>_<scan>_<n>.nii.gz expected")
        patient, study, number = match[1], f"{match[1]}_{match[3]}", int(match[4])
        relative, blank = _file(root, split, patient, study, name)
        meta = metadata.get(name)
        if not relative or (blank and meta is None):
            warnings["no metadata" if relative else "missing file"] += 1
            continue
        row = {
            "volume_id": name.removesuffix(".nii.gz"),
            "study_id": study,
            "patient_id": patient,
            "path": relative,
            "split": split,
            "findings": _text(findings),
            "impression": _text(impression),
            "labels": {k: int(float(v)) for k, v in labels.get(name, {}).items() if v},
            "blank_header": blank,
        }
        row |= _of_metadata(meta or {}, blank)
        if number in EXCLUDED.get(study, ()):
            row["flag"] = "excluded reconstruction"
        elif no_chest & {study, row["volume_id"]} or HEAD.search((meta or {}).get("SeriesDescription", "")):
            row["flag"] = "not a chest CT"
        rows.append(row)
    return rows


def _keyed(path: Path) -> dict[str, dict[str, str]]:
    """VolumeName -> the other cells; {} where the table is not there (only v1 volumes need one)."""
    if not path.is_file():
        return {}
    table = unique(read_table(path, ("VolumeName",)), "VolumeName", path).set_index("VolumeName")
    return table.to_dict("index")


def _listed(path: Path) -> set[str]:
    """Volume and scan names in a text file, however separated."""
    return set(re.findall(r"(?:train|valid)_\d+_[a-z]+(?:_\d+)?", path.read_text())) if path.is_file() else set()


def _file(root: Path, split: str, patient: str, study: str, name: str) -> tuple[str, bool]:
    """Relative path of a volume and whether it is the v1 form; ("", False) where it is in neither folder."""
    for folder, blank in ((f"{split}_fixed", False), (split, True)):
        relative = f"dataset/{folder}/{patient}/{study}/{name}"
        if (root / relative).is_file():
            return relative, blank
    return "", False


def _text(text: str) -> str:
    return "" if text.strip().lower() in (NOT_GIVEN, NOT_GIVEN[:-1], "nan") else text


def _of_metadata(meta: dict[str, str], blank: bool) -> dict:
    """Columns that the metadata table gives. A cell that cannot be read matters only under a blank header."""
    try:
        column = "NumberofSlices"
        row = {"n_slices": int(float(meta.get(column) or 0))}
        column = "ZSpacing"
        z_mm = float(meta.get(column) or "nan")
        if blank and not 0 < z_mm < math.inf:
            raise ValueError
        column = "XYSpacing"
        x_mm, y_mm = _numbers(meta.get(column), 2)
        row["spacing_mm"] = (z_mm, y_mm, x_mm)
        if not blank:
            return row if math.isfinite(z_mm) else row | {"spacing_mm": ()}
        if not min(x_mm, y_mm) > 0:
            raise ValueError
        column = "ImagePositionPatient"
        row["origin_mm"] = tuple(_numbers(meta.get(column), 3))
        column = "ImageOrientationPatient"
        along = np.reshape(_numbers(meta.get(column), 6), (2, 3))
        if np.abs(along @ along.T - np.eye(2)).max() > 0.01:
            raise ValueError
        # Slices are taken to follow their normal, as DICOM sorts them; the release does not say.
        row["direction"] = tuple(np.stack([*along, np.cross(*along)], axis=1).ravel().tolist())
        for name, column in (("slope", "RescaleSlope"), ("intercept", "RescaleIntercept")):
            row[name] = float(meta[column])
        column = "RescaleSlope"
        if not row["slope"] > 0 or not math.isfinite(row["slope"] + row["intercept"]):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        return {"flag": f"malformed {column}"} if blank else {}
    return row


def _numbers(cell: str | None, n: int) -> list[float]:
    """ "[0.8, 0.8]" -> [0.8, 0.8]; ValueError for anything but n numbers."""
    values = [float(v) for v in json.loads(cell or "")]
    if len(values) != n:
        raise ValueError
    return values


def split(index: pd.DataFrame, seed: int, val_share: float = 0.05) -> pd.Series:
    """ "train", "val" or "test" per row: the official validation set is the test set, 5 % of training patients tune."""
    train = index.patient_id[index.split == "train"]
    held = held_out(train, val_share, seed)
    parts = np.where(index.split == "valid", "test", np.where(index.patient_id.isin(held), "val", "train"))
    return pd.Series(parts, index=index.index)


def read_volume(root: Path, row) -> CtVolume:
    """The volume of an index row (Series or dict) as HU in LPS; CtReadError where it is broken or no chest in HU."""
    path = resolve(root, row["path"])
    if row["flag"].startswith("malformed"):
        raise CtReadError(path, row["flag"], "in the metadata table, which a blank header needs")
    table = None
    if row["blank_header"]:
        geometry = (tuple(row["spacing_mm"]), tuple(row["origin_mm"]), tuple(row["direction"]))
        table = TableHeader(*geometry, row["slope"], row["intercept"])
    return read_row(root, row, table)
