"""Stage A1: the training hospital's frontal images with their reports (reference: Stages; Data).

What is left out is counted by reason: view, no report, short text, unreadable.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from synth_medvlp.datasets import mimic_cxr_jpg, read_image, read_record
from synth_medvlp.pairs import Pairs, read_pairs, write_pairs
from synth_medvlp.record import CxrReadError

MIN_TOKENS = 3  # of lower-case alphanumerics, findings and impression together


def frontal_pairs(root: Path, folder: Path, size: int, geometry: str, protocol: str = "corrected") -> Pairs:
    """Pairs of the training part, packed in `folder` once; meta["made_from"]["stats"] has the counts of stage A1.

    size: pixels of a side; geometry: a rule of `datasets.reading`. Raises ValueError where nothing is left.
    """
    if (folder / "meta.json").exists():
        return read_pairs(folder)
    index = mimic_cxr_jpg.read_index(root)
    split = mimic_cxr_jpg.split(index, root, protocol)
    train = set(split.image_id[split.split == "train"])
    stats = {"studies": int(index.study_id.nunique()), "images": len(index)}
    stats["dropped"] = dropped = dict.fromkeys(("view", "no report", "other part", "short text", "unreadable"), 0)
    rows = []
    for row in index.to_dict("records"):
        if reason := _unusable(row, train):
            dropped[reason] += 1
        else:
            rows.append(row)
    images = np.zeros((len(rows), size, size), np.uint8)

    def read(place: int) -> str:
        """Why an image cannot be read; "" where it stands in `images`."""
        try:
            images[place] = read_image(read_record(root, rows[place], mimic_cxr_jpg.NAME), geometry, size)
        except CxrReadError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders work without the interpreter's lock
        errors = list(pool.map(read, range(len(rows))))
    kept = [i for i, error in enumerate(errors) if not error]
    dropped["unreadable"] = len(rows) - len(kept)
    if not kept:
        raise ValueError(f"{root}: no frontal image with a report in the training part; left out: {dropped}")
    stats |= {"pairs": len(kept), "unreadable": [error for error in errors if error][:100]}
    names = {"image_id": "id", "patient_id": "patient", "study_id": "study"}
    table = pd.DataFrame(rows).iloc[kept].rename(columns=names)
    table = table[[*names.values(), "view", "findings", "impression"]].assign(source="real")
    return write_pairs(folder, images[kept], table, {"stage": "A1", "geometry": geometry, "stats": stats})


def _unusable(row: dict, train: set) -> str:
    """Why an image is no training pair; "" where it is one."""
    if row["view"] not in ("AP", "PA"):
        return "view"
    if not row["findings"] and not row["impression"]:
        return "no report"
    if row["image_id"] not in train:
        return "other part"
    words = re.findall(r"[a-z0-9]+", f"{row['findings']} {row['impression']}".lower())
    return "short text" if len(words) < MIN_TOKENS else ""
