"""SIIM-ACR pneumothorax segmentation 2019: 10,675 annotated radiographs from ChestX-ray14, 2,379 with masks.

| file below the root | columns or content |
| --- | --- |
| train-rle.csv (or stage_2_train.csv) | ImageId, " EncodedPixels" (with the space); several rows per image |
| dicom-images-train/STUDY/SERIES/IMAGEID.dcm | 8 bit, 1024 x 1024, JPEG inside; any folder is searched |
| processed_images/IMAGEID.png | MAVL's copies, read where there is no DICOM file |
| mavl/{train,val,test}.csv | MAVL's split, the same columns, by annotation row |

Masks: see `synth_medvlp.datasets.masks`; several rows of an image are one mask, their union (MAVL reads unbinarised PNG
masks; here they are bool). The release names no patients. Serves zero-shot classification, fine-tuning and
segmentation of the reference.
"""

from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import masks, splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.record import CxrReadError

NAME = "siim-acr"
CLASSES = ("Pneumothorax",)
FRAME = 1024
TABLES = ("train-rle.csv", "stage_2_train.csv")
PUBLISHED = {part: f"{part}.csv" for part in splits.PARTS}
ROW_SHARES = {"train": 6_949 / 11_582, "val": 2_316 / 11_582, "test": 2_317 / 11_582}
IMAGE_SHARES = {"train": 0.65, "val": 0.15, "test": 0.2}


def read_index(root: Path) -> pd.DataFrame:
    """One row per image that stands in the table, in its order, with INDEX_COLUMNS; rle holds one code per annotation.

    Noted: "repeated row". Raises CxrReadError: missing file, bad csv, bad mask (a code that is no run-length code or
    leaves the image; "-1" together with a mask).
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, *TABLES)
    rows = tables.read_table(source, ("ImageId", "EncodedPixels"))
    codes: dict[str, list[str]] = {}
    for name, code in zip(rows.ImageId.str.strip(), rows.EncodedPixels.str.strip(), strict=True):
        if code in codes.setdefault(name, []):
            notes.add("repeated row", [name])
        else:
            codes[name].append(code)
    for name, found in codes.items():
        if masks.NO_MASK in found and len(found) > 1:
            raise CxrReadError(source, "bad mask", f"{name}: {masks.NO_MASK} (none) and a mask")
        for code in found:
            masks.check_rle(code, FRAME * FRAME, f"{source}, {name}")
    here = _files(root)
    columns = {
        "image_id": list(codes),
        "path": [here.get(name, f"dicom-images-train/{name}.dcm") for name in codes],
        "labels": [{"Pneumothorax": int(found != [masks.NO_MASK])} for found in codes.values()],
        "rle": [tuple(found) for found in codes.values()],
        "frame": FRAME,
    }
    return tables.make_index(columns, source, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """as_published (MAVL): 60 / 20 / 20 % of annotation ROWS, so images with several masks are in several parts, all of
    them positive; one row of the result per annotation; mavl/ where its files lie. corrected: 65 / 15 / 20 %
    of images, stratified by pneumothorax (the reference's own default)."""
    check_protocol(protocol)
    if protocol == "as_published":
        known = splits.published(root, PUBLISHED, lambda csv: csv["ImageId"].str.strip())
        if known is not None:
            return splits.table(index, known, "published files")
        rows = [name for name, codes in zip(index.image_id, index.rle, strict=True) for _ in codes]
        return splits.table(index, splits.by_row(rows, ROW_SHARES, seed), f"published rule drawn again, seed {seed}")
    positive = [record["Pneumothorax"] == 1 for record in index.labels]
    parts = splits.by_group(index, index.image_id, IMAGE_SHARES, seed, positive)
    return splits.table(index, parts, f"by image, stratified, seed {seed}")


def _files(root: Path) -> dict[str, str]:
    """Image id -> path: the DICOM file of the release, else MAVL's PNG copy."""
    copies = tables.find_files(root / "processed_images", ".png")
    found = {name[:-4]: f"processed_images/{path}" for name, path in copies.items()}
    return found | {name[:-4]: path for name, path in tables.find_files(root, ".dcm").items()}
