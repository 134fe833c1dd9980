"""MIMIC-CXR-JPG 2.0.0 / 2.1.0 with the reports of MIMIC-CXR (Johnson et al., Sci Data 6:317, 2019).

| file below the root | columns or content |
| --- | --- |
| mimic-cxr-2.0.0-metadata.csv.gz | dicom_id, subject_id, study_id, ViewPosition, ... one row per image |
| mimic-cxr-2.0.0-split.csv.gz | dicom_id, study_id, subject_id, split (train, validate, test) |
| mimic-cxr-2.0.0-chexpert.csv.gz (optional) | subject_id, study_id, 14 classes: 1.0, 0.0, -1.0, blank |
| files/pNN/pSUBJECT/sSTUDY/DICOM.jpg | images, 8 bit |
| files/pNN/pSUBJECT/sSTUDY.txt | reports; also looked for in mimic-cxr-reports/ and in ../mimic-cxr/ |

The csv files may be unpacked. Serves A1 (entity pool, real pairs) and the real regime of the reference.
"""

from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import CHEXPERT_CLASSES, check_protocol
from synth_medvlp.datasets.reports import findings_and_impression
from synth_medvlp.record import CxrReadError

NAME = "mimic-cxr-jpg"
CLASSES = CHEXPERT_CLASSES
PREFIX = "mimic-cxr-2.0.0-"
OFFICIAL = {"train": "train", "validate": "val", "test": "test", "": ""}


def read_index(root: Path) -> pd.DataFrame:
    """One row per image of the metadata table, with INDEX_COLUMNS; reports are read, images are not.

    Kept and noted: "missing report", "empty report" (neither findings nor impression), "no split", "no labels".
    Raises CxrReadError: missing file, bad csv, bad label, duplicate id, path outside the root.
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, PREFIX + "metadata.csv")
    images = tables.read_table(source, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
    images = tables.drop_repeats(images, "dicom_id", notes, source)
    official = _official_split(root, images, notes)
    reports = _reports(root, images[["subject_id", "study_id"]].drop_duplicates(), notes)
    texts = [reports[study] for study in images.study_id]
    columns = {
        "image_id": images.dicom_id,
        "study_id": images.study_id,
        "patient_id": images.subject_id,
        "path": [f"{_folder(s, t)}/{d}.jpg" for d, s, t in images[["dicom_id", "subject_id", "study_id"]].to_numpy()],
        "view": [tables.view(text) or "other" for text in images.ViewPosition],
        "findings": [findings for findings, _ in texts],
        "impression": [impression for _, impression in texts],
        "labels": _labels(root, images.study_id, notes),
        "split": official,
    }
    return tables.make_index(columns, source, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """Frontal images (AP, PA) whose report has findings or impression, by the official split.

    as_published (MGCA): official validate and test together are the validation set, so nothing is left to test on;
    corrected: the official parts as they are. Both are disjoint in patients; seed is not used.
    """
    check_protocol(protocol)
    usable = index[index.view.isin(("AP", "PA")) & ((index.findings != "") | (index.impression != ""))]
    merged = {"test": "val"} if protocol == "as_published" else {}
    part = usable.split.replace(merged)
    return splits.table(index, {p: usable.image_id[part == p] for p in splits.PARTS}, "official split")


def _folder(subject: str, study: str) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def _official_split(root: Path, images: pd.DataFrame, notes: tables.Notes) -> list[str]:
    path = tables.table_path(root, PREFIX + "split.csv")
    rows = tables.drop_repeats(tables.read_table(path, ("dicom_id", "split")), "dicom_id", notes, path)
    wrong = rows[~rows.split.isin(list(OFFICIAL))]
    if len(wrong):
        raise CxrReadError(path, "bad label", f"dicom_id {wrong.dicom_id.iloc[0]}: split {wrong.split.iloc[0]!r}")
    part_of = dict(zip(rows.dicom_id, rows.split.map(OFFICIAL), strict=True))
    found = [part_of.get(name, "") for name in images.dicom_id]
    notes.add("no split", [name for name, part in zip(images.dicom_id, found, strict=True) if not part])
    return found


def _reports(root: Path, studies: pd.DataFrame, notes: tables.Notes) -> dict[str, tuple[str, str]]:
    """study_id -> (findings, impression), each report read once."""
    places = (root, root / "mimic-cxr-reports", root.parent / "mimic-cxr")
    found, missing, empty = {}, [], []
    for subject, study in studies.to_numpy():
        relative = f"{_folder(subject, study)}.txt"
        tables.inside(root, relative, study)
        text = next((text for place in places if (text := _text(place / relative)) is not None), None)
        found[study] = ("", "") if text is None else findings_and_impression(text)
        if text is None:
            missing.append(study)
        elif found[study] == ("", ""):
            empty.append(study)
    notes.add("missing report", missing)
    notes.add("empty report", empty)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _labels(root: Path, study_ids: pd.Series, notes: tables.Notes) -> list[dict]:
    try:
        path = tables.table_path(root, PREFIX + "chexpert.csv")
    except CxrReadError:  # image-text pre-training needs no labels
        return [{} for _ in study_ids]
    rows = tables.drop_repeats(tables.read_table(path, ("study_id", *CLASSES)), "study_id", notes, path)
    of_study = dict(zip(rows.study_id, tables.label_dicts(rows, CLASSES, path, "study_id"), strict=True))
    notes.add("no labels", sorted(set(study_ids) - set(of_study)))
    return [of_study.get(study, {}) for study in study_ids]
