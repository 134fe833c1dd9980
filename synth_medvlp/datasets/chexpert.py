"""CheXpert v1.0 and v1.0-small (Irvin et al., AAAI 2019): Stanford chest radiographs with 14 labels.

| file below the root | columns |
| --- | --- |
| train.csv | Path, Sex, Age, Frontal/Lateral, AP/PA, 14 classes: 1.0, 0.0, -1.0, blank (labeller) |
| valid.csv | the same, 234 images, no uncertain ones (radiologists) |
| test_labels.csv (also groundtruth.csv; mavl/filter_test_labels.csv) | Path, 14 classes; 500 studies (radiologists) |
| {train,valid,test}/patientNNNNN/studyN/viewN_{frontal,lateral}.jpg | images; a leading CheXpert-v1.0*/ is optional |

The test table came later than the others; without it the index has no test rows. The release has no reports.
Serves zero-shot (500 test images, 5 classes) and fine-tuned classification of the reference.
"""

import re
from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import CHEXPERT_CLASSES, CHEXPERT_FIVE, check_protocol
from synth_medvlp.record import CxrReadError

NAME = "chexpert"
CLASSES = CHEXPERT_CLASSES
HEADLINE_CLASSES = CHEXPERT_FIVE
TEST_TABLES = ("test_labels.csv", "groundtruth.csv", "mavl/filter_test_labels.csv")
PATH = re.compile(
    r"(?:CheXpert-v1\.0[^/]*/)?((?:train|valid|test)/(patient\d+)/(study\d+)/view\d+_(frontal|lateral))\.jpg"
)
VALID_SHARE = 5_000 / 223_414  # MGCA draws 5,000 of the training images


def read_index(root: Path) -> pd.DataFrame:
    """One row per image of the tables, train first, with INDEX_COLUMNS; split is train, val (official valid) or test.

    image_id = path without prefix and ending. view: AP, PA or lateral as the table says; "other" for frontal test
    images, whose table does not tell AP from PA. Noted: "repeated row". Raises CxrReadError: missing file, bad csv, bad
    label, duplicate id, malformed path.
    """
    root, notes = Path(root), tables.Notes()
    pieces = [
        _part(root, tables.table_path(root, "train.csv"), "train", notes),
        _part(root, tables.table_path(root, "valid.csv"), "val", notes),
    ]
    for name in TEST_TABLES:
        if (root / name).is_file():
            pieces.append(_part(root, root / name, "test", notes))
            break
    columns = {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
    return tables.make_index(columns, root, notes)


def _part(root: Path, path: Path, part: str, notes: tables.Notes) -> dict[str, list]:
    rows = tables.read_table(path, ("Path", *CLASSES), optional=("Frontal/Lateral", "AP/PA"))
    rows = tables.drop_repeats(rows, "Path", notes, path)
    matches = [PATH.fullmatch(text.strip()) for text in rows.Path]
    for text, match in zip(rows.Path, matches, strict=True):
        if match is None:
            raise CxrReadError(
                path, "malformed path", f"{text!r}; train/patientNNNNN/studyN/viewN_frontal.jpg expected"
            )
    projection = rows["AP/PA"] if "AP/PA" in rows else [""] * len(rows)
    views = [
        "lateral" if match[4] == "lateral" else tables.view(text) or "other"
        for match, text in zip(matches, projection, strict=True)
    ]
    tops = {match[0].split("/")[0] for match in matches}
    archives = {top for top in tops if top.startswith("CheXpert") and (root / top).is_dir()}  # unpacked with its folder
    return {
        "image_id": [match[1] for match in matches],
        "study_id": [f"{match[2]}/{match[3]}" for match in matches],
        "patient_id": [match[2] for match in matches],
        "path": [m[0] if m[0].split("/")[0] in archives else f"{m[1]}.jpg" for m in matches],
        "view": views,
        "labels": tables.label_dicts(rows, CLASSES, path, "Path"),
        "split": [part] * len(rows),
    }


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """Frontal images in train, val and test; test is the official test table.

    as_published (MGCA): validation drawn by IMAGE from the training table, so patients are shared with train (MGCA's
    5x200 retrieval set, 1,000 images that it takes out of train before, stays in here).
    corrected: validation = the official valid table (202 frontal images); train without patients of val and test.
    """
    check_protocol(protocol)
    frontal = index[index.image_id.str.endswith("frontal")]
    parts = {part: frontal.image_id[frontal.split == part].tolist() for part in splits.PARTS}
    if protocol == "corrected":
        return splits.table(index, splits.without_shared(index, parts), "official tables")
    drawn = splits.by_row(parts["train"], {"val": VALID_SHARE, "train": 1 - VALID_SHARE}, seed)
    return splits.table(index, drawn | {"test": parts["test"]}, f"published rule drawn again, seed {seed}")
