"""BIMCV-R (Chen et al. 2024, arXiv 2403.15992): 8,069 chest CTs of 5,340 patients, Spanish reports and translations.

Layout: CT*/ct/sub-X_ses-Y_..._ct.nii.gz and curated_ct_report_path_En.csv (in the root or in meta/) with `path`,
`Report_en` (translated by machine), and `Report` (Spanish), `PatientID`, `Labels` where the release has them. The table
was written on another machine: volumes are found by file name. HU and orientation come from each header (Argus,
reference: "Data"); the report has no sections, so the whole of it stands in `findings`.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.ct_io import read_row
from shared.ct.tables import find_volumes, held_out, make_index, read_table, stem
from shared.ct.volume import CtReadError

NAME = "bimcv-r"
TABLE = "curated_ct_report_path_En.csv"
TEXT_COLUMNS = {"en": "Report_en", "es": "Report"}
FILE_NAME = re.compile(r"(sub-[^_]+)_(ses-[^_]+)_")
BODY_PART = re.compile(r"_bp-([a-z]+)")


def read_index(root: Path, language: str = "en") -> pd.DataFrame:
    """One row per volume that has a row in the table and a file, with INDEX_COLUMNS; no voxel is touched.

    language: "en" (Report_en) or "es" (Report). No official split. flag: "not a chest CT" where the file name gives
    another body part. Left out and counted in `.attrs["warnings"]`: rows without a file, volumes that two rows give
    different reports. Raises CtReadError: missing file, bad csv, no patient id, duplicate id, no volumes.
    """
    root = Path(root)
    if language not in TEXT_COLUMNS:
        raise ValueError(f"language {language!r}: choose one of {', '.join(TEXT_COLUMNS)}")
    path = root / "meta" / TABLE
    path = path if path.is_file() else root / TABLE
    table = read_table(path, ("path", TEXT_COLUMNS[language]))
    files = find_volumes(root)
    sessions: dict[str, list[str]] = {}  # "sub-X_ses-Y" -> file names
    for name in files:
        if match := FILE_NAME.match(name):
            sessions.setdefault(f"{match[1]}_{match[2]}", []).append(name)
    rows, warnings = {}, Counter()
    reports: dict[str, set[str]] = {}
    for cells in table.to_dict("records"):
        names = _names(cells, files, sessions)
        warnings["missing file"] += not names
        labels = _labels(cells.get("Labels", ""))
        warnings["malformed Labels"] += labels is None
        for name in names:
            text = cells[TEXT_COLUMNS[language]]
            reports.setdefault(name, set()).add(text)
            rows[name] = _row(path, cells, name, files[name], text, language, labels or {})
    for name in [name for name, texts in reports.items() if len(texts) > 1]:
        warnings["two reports for one volume"] += 1
        del rows[name]
    return make_index(list(rows.values()), path, warnings)


def _names(cells: dict, files: dict[str, str], sessions: dict[str, list[str]]) -> list[str]:
    """File names a row stands for: the file it names, or every volume of the session folder it names."""
    path = (cells.get("ct_path") or cells["path"]).replace("\\", "/").rstrip("/")
    name = path.rsplit("/", 1)[-1]
    if name.endswith((".nii.gz", ".nii")):
        return [name] if name in files else []
    folder = re.search(r"(sub-[^/_]+)/(ses-[^/_]+)", path)
    return sessions.get(f"{folder[1]}_{folder[2]}", []) if folder else []


def _row(path: Path, cells: dict, name: str, relative: str, text: str, language: str, labels: dict) -> dict:
    match = FILE_NAME.match(name)
    patient = match[1] if match else cells.get("PatientID", "")
    if not patient:
        raise CtReadError(path, "no patient id", f"{name}: neither sub-... in its name nor a PatientID")
    part = BODY_PART.search(name)
    return {
        "volume_id": stem(name),
        "study_id": f"{patient}_{match[2] if match else stem(name)}",
        "patient_id": patient,
        "path": relative,
        "findings": text,
        "language": language,
        "labels": labels,
        "flag": "not a chest CT" if part and part[1] not in ("chest", "thorax") else "",
    }


def _labels(cell: str) -> dict[str, int] | None:
    """ "['nodule', ' pleural effusion']" -> {"nodule": 1, "pleural effusion": 1}; None where it is no such list."""
    if not cell.strip():
        return {}
    try:
        names = ast.literal_eval(cell)
        return {name.strip(): 1 for name in names if name.strip()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return None


def split(index: pd.DataFrame, seed: int) -> pd.Series:
    """ "train", "val" or "test" per row: 80/10/10 of the patients, seeded (the release has no split)."""
    test = held_out(index.patient_id, 0.1, seed)
    n_rest = index.patient_id.nunique() - len(test)
    share = len(test) / n_rest if n_rest else 0
    val = held_out(index.patient_id[~index.patient_id.isin(test)], share, seed)
    parts = np.where(index.patient_id.isin(test), "test", np.where(index.patient_id.isin(val), "val", "train"))
    return pd.Series(parts, index=index.index)


read_volume = read_row
