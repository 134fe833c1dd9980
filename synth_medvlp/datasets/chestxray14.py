"""NIH ChestX-ray14 (Wang et al., CVPR 2017): 112,120 frontal radiographs of 30,805 patients, 14 text-mined labels.

| file below the root | columns or content |
| --- | --- |
| Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) | Image Index, Finding Labels ("A|B" or "No Finding"), Follow-up #, Patient ID, View Position, ... |
| BBox_List_2017.csv | Image Index, Finding Label, Bbox [x,y,w,h] in four columns, 984 boxes on 1024 x 1024 pixels |
| train_val_list.txt, test_list.txt | official split, one file name a line |
| images_001/images/*.png ... images_012/images/*.png | 1024 x 1024, 8 bit (a few hundred RGBA); any folder is searched |

Tables may be gzipped. "OriginalImage[Width,Height]" is the film before the release's own scaling to 1024: boxes do not
refer to it. Serves zero-shot and fine-tuned classification of the reference; boxes serve grounding.
"""  # noqa: E501

from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.record import CxrReadError

NAME = "nih-cxr"
CLASSES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")  # fmt: skip
NORMAL = "No Finding"
BOX_NAMES = {"Infiltrate": "Infiltration"}  # the box table's own word
FRAME = 1024
BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
VALID_SHARE = 10_816 / 86_524  # MAVL's validation images among the official train_val list
PUBLISHED = {"val": "official_valid.csv", "test": "official_test.csv"}


def read_index(root: Path) -> pd.DataFrame:
    """One row per row of the label table, with INDEX_COLUMNS; split is "train" (train_val) or "test" where lists lie.

    Noted: "repeated row", "repeated box", "box cut at the border", "box without image", "no split".
    Raises CxrReadError: missing file, bad csv, bad label, bad box, duplicate id.
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    rows = tables.read_table(source, ("Image Index", "Finding Labels", "Patient ID", "View Position"))
    rows = tables.drop_repeats(rows, "Image Index", notes, source)
    names = rows["Image Index"]
    boxes = _boxes(root, set(names), notes)
    here = tables.find_files(root, ".png")
    columns = {
        "image_id": names.str.removesuffix(".png"),
        "patient_id": [str(int(text)) if text.isdecimal() else text for text in rows["Patient ID"]],
        "path": [here.get(name, f"images/{name}") for name in names],
        "view": rows["View Position"].map(tables.view).replace("", "other"),
        "labels": _labels(source, rows),
        "boxes": [tuple(boxes.get(name, ())) for name in names],
        "frame": FRAME,
        "split": _official(root, names, notes),
    }
    return tables.make_index(columns, source, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """Official test list; a validation part of one eighth of train_val.

    as_published (MAVL): validation drawn by IMAGE (its files where they lie in mavl/, else drawn again), so most of its
    patients are in train too. corrected: drawn by PATIENT. Raises CxrReadError where the official lists are absent.
    """
    check_protocol(protocol)
    if not (index.split != "").any():
        raise CxrReadError(Path(root) / "test_list.txt", "missing file", "the split needs train_val_list.txt and it")
    rest, test = index[index.split == "train"], index.image_id[index.split == "test"]
    shares = {"val": VALID_SHARE, "train": 1 - VALID_SHARE}
    if protocol == "corrected":
        parts = splits.by_group(rest, rest.patient_id, shares, seed)
        return splits.table(index, parts | {"test": test}, f"official test list, validation by patient, seed {seed}")
    known = splits.published(root, PUBLISHED, lambda csv: csv["Image Index"].str.removesuffix(".png"))
    if known is None:
        parts = splits.by_row(rest.image_id.tolist(), shares, seed)
        return splits.table(index, parts | {"test": test}, f"published rule drawn again, seed {seed}")
    taken = {*known["val"], *known["test"]}
    train = [name for name in rest.image_id if name not in taken]
    return splits.table(index, known | {"train": train}, "published files")


def _labels(source: Path, rows: pd.DataFrame) -> list[dict[str, int]]:
    dicts = {}
    for text in rows["Finding Labels"].unique():
        found = {part.strip() for part in text.split("|")}
        if not found <= {NORMAL, *CLASSES} or (NORMAL in found and len(found) > 1):
            where = rows.loc[rows["Finding Labels"] == text, "Image Index"].iloc[0]
            detail = f"{where}: {text!r}; names of the 14 classes joined by '|', or {NORMAL!r}, expected"
            raise CxrReadError(source, "bad label", detail)
        dicts[text] = {name: int(name in found) for name in CLASSES}
    return [dicts[text] for text in rows["Finding Labels"]]


def _boxes(root: Path, known: set[str], notes: tables.Notes) -> dict[str, list]:
    """Image name -> boxes; {} where the release's box table is not there."""
    try:
        path = tables.table_path(root, "BBox_List_2017.csv")
    except CxrReadError:
        return {}
    rows = tables.read_table(path, ("Image Index", "Finding Label", *BOX_COLUMNS))
    boxes: dict[str, list] = {}
    for name, label, *cells in rows.to_numpy():
        label = BOX_NAMES.get(label, label)
        if label not in CLASSES:
            raise CxrReadError(path, "bad label", f"{name}: {label!r} is none of the 14 classes")
        box, cut = tables.clipped_box(label, cells, FRAME, path, name)
        notes.add("box cut at the border", [name] if cut else [])
        if name not in known:
            notes.add("box without image", [name])
        elif box in boxes.setdefault(name, []):
            notes.add("repeated box", [name])
        else:
            boxes[name].append(box)
    return boxes


def _official(root: Path, names: pd.Series, notes: tables.Notes) -> list[str]:
    lists = {"train": Path(root) / "train_val_list.txt", "test": Path(root) / "test_list.txt"}
    if not all(path.is_file() for path in lists.values()):
        return [""] * len(names)
    part_of = {line.strip(): part for part, path in lists.items() for line in path.read_text("utf-8").splitlines()}
    found = [part_of.get(name, "") for name in names]
    notes.add("no split", [name for name, part in zip(names, found, strict=True) if not part])
    return found
