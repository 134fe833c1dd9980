"""Stage A1: the training hospital's frontal images with their reports (reference: Stages; Data).

What is left out is counted by reason: view, no report, short text, unreadable.
"""

import re
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
    images, rows, unreadable = [], [], []
    for row in index.to_dict("records"):
        reason = _unusable(row, train)
        if not reason:
            try:
                images.append(read_image(read_record(root, row, mimic_cxr_jpg.NAME), geometry, size))
            except CxrReadError as error:
                reason = "unreadable"
                unreadable.append(str(error))
        if reason:
            dropped[reason] += 1
            continue
        names = {"id": "image_id", "patient": "patient_id", "study": "study_id"}
        rows.append({k: row[v] for k, v in names.items()} | {k: row[k] for k in ("view", "findings", "impression")})
    if not rows:
        raise ValueError(f"{root}: no frontal image with a report in the training part; left out: {dropped}")
    stats |= {"pairs": len(rows), "unreadable": unreadable[:100]}
    table = pd.DataFrame(rows).assign(source="real")
    return write_pairs(folder, np.stack(images), table, {"stage": "A1", "geometry": geometry, "stats": stats})


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
