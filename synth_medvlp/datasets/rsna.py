"""RSNA pneumonia detection challenge 2018 (Shih et al., Radiology: AI 2019): 26,684 radiographs with boxes of opacity.

| file below the root | columns or content |
| --- | --- |
| stage_2_train_labels.csv | patientId, x, y, width, height, Target; one row per box, one with blanks for negatives |
| stage_2_detailed_class_info.csv (optional) | patientId, class (Lung Opacity; No Lung Opacity / Not Normal; Normal) |
| stage_2_train_images/PATIENTID.dcm | 8 bit, 1024 x 1024, JPEG inside, MONOCHROME2; the view is in the header |
| pneumonia-challenge-dataset-mappings_2018.json (optional) | img_id (the NIH file), subset_img_id (patientId) |
| mavl/test.csv | ID, path below the md.ai download, boxes "x;y;w;h" joined by a vertical bar, class |
| mavl/val.csv | a merge artefact: ID_x, img_path, boxes_x, classes_x, ID_y, boxes_y, classes_y |

"patientId" names an IMAGE: the challenge drew it from ChestX-ray14, whose patients have several. Only the mapping file
tells who they are. Serves zero-shot classification, grounding, fine-tuning and segmentation of the reference.
"""

import json
from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.record import CxrReadError

NAME = "rsna-pneumonia"
CLASSES = ("Pneumonia",)
FRAME = 1024
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
KINDS = {"Lung Opacity": "opacity", "No Lung Opacity / Not Normal": "not normal", "Normal": "normal"}


def read_index(root: Path) -> pd.DataFrame:
    """One row per image, in the order of the label table, with INDEX_COLUMNS.

    patient_id: the NIH patient where the mapping file lies, else the image id (noted: "patient unknown").
    source: opacity, not normal, normal where the class table lies. Noted: "repeated box", "box cut at the border".
    Raises CxrReadError: missing file, bad csv, bad label (Target not 0 or 1, or differing, or without a box), bad box.
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, "stage_2_train_labels.csv")
    rows = tables.read_table(source, ("patientId", "x", "y", "width", "height", "Target"))
    boxes: dict[str, list] = {}
    target: dict[str, int] = {}
    for name, *cells, text in rows.to_numpy():
        if text not in ("0", "1") or target.setdefault(name, int(text)) != int(text):
            raise CxrReadError(source, "bad label", f"{name}: Target {text!r}; 0 or 1, equal in all rows of an image")
        _add_box(boxes.setdefault(name, []), cells, text == "1", source, name, notes)
    names = list(target)
    patient = _patients(root)
    notes.add("patient unknown", [name for name in names if name not in patient])
    kinds = _kinds(root)
    columns = {
        "image_id": names,
        "patient_id": [patient.get(name, name) for name in names],
        "path": [f"stage_2_train_images/{name}.dcm" for name in names],
        "labels": [{"Pneumonia": target[name]} for name in names],
        "boxes": [tuple(boxes[name]) for name in names],
        "frame": FRAME,
        "source": [kinds.get(name, "") for name in names],
    }
    return tables.make_index(columns, source, notes)


def read_published(root: Path, protocol: str = "corrected") -> pd.DataFrame:
    """MAVL's own test and validation rows (md.ai paths) as an index; split is val or test.

    as_published: boxes as they stand, 1,074 of 1,704 positive validation rows having repeated ones;
    corrected: each box once. The pixels inside them are the same. Evaluated as published where <root>/mavl/ lies
    (`downstream`), with the images at the md.ai paths below root. Raises CxrReadError: missing file, bad csv, bad
    label, bad box, duplicate id.
    """
    check_protocol(protocol)
    notes, found = tables.Notes(), []
    for part in ("val", "test"):
        path = tables.table_path(Path(root) / splits.PUBLISHED, f"{part}.csv")
        for identifier, relative, text, label in _published_rows(path):
            cells = [] if text in ("", "nan", "0", "[]") else [box.split(";") for box in text.split("|")]
            if label not in ("0", "1", "0.0", "1.0") or (label[0] == "1") != bool(cells):
                raise CxrReadError(path, "bad label", f"ID {identifier}: class {label!r} with {len(cells)} boxes")
            boxes: list = []
            for box in cells:
                _add_box(boxes, box, True, path, identifier, notes, repeat=protocol == "as_published")
            found.append((Path(relative).name.removesuffix(".dcm"), relative, int(label[0]), tuple(boxes), part))
    names, paths, labels, boxes, parts = zip(*found, strict=True) if found else ((),) * 5
    columns = {"image_id": names, "path": paths, "labels": [{"Pneumonia": label} for label in labels], "boxes": boxes}
    return tables.make_index(columns | {"frame": FRAME, "split": parts}, Path(root), notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """Of an index of `read_published`: its own parts. Of the challenge's index:

    as_published (MGCA): 70 / 15 / 15 % drawn by image. corrected: test 20 %, validation 20 % of the rest, drawn by
    patient and stratified, so that thresholds are chosen at the prevalence of the test set.
    """
    check_protocol(protocol)
    if (index.split != "").any():
        return splits.table(index, {p: index.image_id[index.split == p] for p in splits.PARTS}, "published files")
    if protocol == "as_published":
        parts = splits.by_row(index.image_id.tolist(), {"test": 0.15, "val": 0.15, "train": 0.7}, seed)
        return splits.table(index, parts, f"published rule drawn again, seed {seed}")
    positive = [record["Pneumonia"] == 1 for record in index.labels]
    parts = splits.by_group(index, index.patient_id, {"test": 0.2, "val": 0.16, "train": 0.64}, seed, positive)
    return splits.table(index, parts, f"by patient where known, stratified, seed {seed}")


def _add_box(boxes: list, cells, positive: bool, path: Path, name: str, notes: tables.Notes, repeat=False) -> None:
    """Append the box of a row; negatives must have blanks. An equal box is noted and dropped unless repeat."""
    if not positive:
        if any(cell.strip() not in ("", "nan") for cell in cells):
            raise CxrReadError(path, "bad label", f"{name}: Target 0 with a box {list(cells)}")
        return
    box, cut = tables.clipped_box("Pneumonia", cells, FRAME, path, name)
    notes.add("box cut at the border", [name] if cut else [])
    if box in boxes:
        notes.add("repeated box", [name])
    if repeat or box not in boxes:
        boxes.append(box)


def _published_rows(path: Path):
    """(ID, path, boxes, class) of each row; the columns stand in this order, whatever the merge called them."""
    try:
        rows = pd.read_csv(path, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CxrReadError(path, "bad csv", str(error)) from error
    stems = [name.strip().removesuffix("_x").lower() for name in rows.columns[:4]]
    if len(stems) < 4 or "path" not in stems[1] or not stems[2].startswith("box") or not stems[3].startswith("class"):
        detail = f"columns {', '.join(rows.columns)}; ID, path, boxes, class expected first"
        raise CxrReadError(path, "bad csv", detail)
    return rows.iloc[:, :4].to_numpy()


def _patients(root: Path) -> dict[str, str]:
    """patientId of the challenge -> NIH patient, {} without the mapping file."""
    path = root / MAPPING
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text("utf-8"))
        return {entry["subset_img_id"]: f"nih:{int(entry['img_id'].split('_')[0])}" for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CxrReadError(path, "bad mapping", f"{type(error).__name__}: {error}") from error


def _kinds(root: Path) -> dict[str, str]:
    path = root / "stage_2_detailed_class_info.csv"
    if not path.is_file():
        return {}
    rows = tables.read_table(path, ("patientId", "class"))
    wrong = rows[~rows["class"].isin(list(KINDS))]
    if len(wrong):
        raise CxrReadError(path, "bad label", f"{wrong.patientId.iloc[0]}: class {wrong['class'].iloc[0]!r}")
    return dict(zip(rows.patientId, rows["class"].map(KINDS), strict=True))
