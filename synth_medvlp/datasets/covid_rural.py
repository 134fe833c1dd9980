"""COVID-19 Rural (COVID-19-AR of TCIA, Desai et al., Sci Data 2020) with opacity masks (Tang et al. 2020).

| file below the root | content |
| --- | --- |
| jpgs/COVID-19-AR-PATIENT_MM-DD-YYYY-XR*.jpg | radiographs; 221 of them in the reference's lists |
| pngs_masks/SAME_STEM.png | mask of the opacities, 0 and 255 |
| mavl/{train,val,test}.csv | MAVL's split, one column filepath with the stems |

The label is whether the mask has any pixel, as in MAVL. Serves grounding and segmentation of the reference.
"""

import re
from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.datasets.reading import read_mask
from synth_medvlp.record import CxrReadError

NAME = "covid-rural"
CLASSES = ("Lung Opacity",)
STEM = re.compile(r"(COVID-19-AR-\d+)_.+")
SHARES = {"train": 132 / 221, "val": 44 / 221, "test": 45 / 221}
PUBLISHED = {part: f"{part}.csv" for part in splits.PARTS}


def read_index(root: Path) -> pd.DataFrame:
    """One row per image with a readable mask, sorted by name, with INDEX_COLUMNS; every mask is opened for the label.

    Left out and noted: "missing mask", "bad mask". Raises CxrReadError: missing file, malformed name, no records.
    """
    root, notes = Path(root), tables.Notes()
    images = tables.find_files(root / "jpgs", ".jpg", ".jpeg")
    if not (root / "jpgs").is_dir():
        raise CxrReadError(root / "jpgs", "missing file", "download the data set, or set DATA_ROOT to where it lies")
    found = []
    for name in sorted(images):
        stem = Path(name).stem
        match = STEM.fullmatch(stem)
        if match is None:
            raise CxrReadError(root / "jpgs" / name, "malformed name", "COVID-19-AR-PATIENT_DATE-XR expected")
        mask_path = f"pngs_masks/{stem}.png"
        try:
            label = int(read_mask(root, mask_path, stem).any())
        except CxrReadError as error:
            notes.add("missing mask" if error.reason == "missing file" else "bad mask", [stem])
            continue
        found.append((stem, match[1], f"jpgs/{images[name]}", mask_path, {"Lung Opacity": label}))
    names, people, paths, mask_paths, labels = zip(*found, strict=True) if found else ((),) * 5
    columns = {"image_id": names, "patient_id": people, "path": paths, "mask_path": mask_paths, "labels": labels}
    return tables.make_index(columns, root / "jpgs", notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """as_published (MAVL): by IMAGE, 22 of 33 test patients being in train too; mavl/ where its files lie.
    corrected: the same shares of patients."""
    check_protocol(protocol)
    if protocol == "corrected":
        parts = splits.by_group(index, index.patient_id, SHARES, seed)
        return splits.table(index, parts, f"by patient, seed {seed}")
    known = splits.published(root, PUBLISHED, lambda csv: csv["filepath"])
    if known is not None:
        return splits.table(index, known, "published files")
    parts = splits.by_row(index.image_id.tolist(), SHARES, seed)
    return splits.table(index, parts, f"published rule drawn again, seed {seed}")
