"""From labels as released to targets: blanks and uncertain mentions. Reference: Fine-tuned classification, MGCA style.

| protocol | blank | uncertain (-1) |
| --- | --- | --- |
| as_published | 0 | 1 for atelectasis, edema, effusion; 0 for cardiomegaly, consolidation; other classes have no rule |
| corrected (default) | 0 | left out of loss and metric (NaN): no rule turns "may be present" into a fact |
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

PROTOCOLS = ("as_published", "corrected")

# The 14 classes of the CheXpert labeller, in the order of CheXpert's csv.
CHEXPERT_CLASSES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices")  # fmt: skip
CHEXPERT_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
UNCERTAIN_AS_PUBLISHED = {
    "Atelectasis": 1.0,
    "Edema": 1.0,
    "Pleural Effusion": 1.0,
    "Cardiomegaly": 0.0,
    "Consolidation": 0.0,
}


def check_protocol(protocol: str) -> None:
    """Raises ValueError for anything but the two protocols."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")


def targets(index: pd.DataFrame, classes: Iterable[str], protocol: str) -> pd.DataFrame:
    """float32 [n, classes] with 1, 0 and NaN (not to be used), rows as in the index, columns the classes.

    A class that a record's labels do not have counts as blank (0), as PadChest lists only what is present; a record
    without any label gives NaN.
    Raises ValueError: unknown protocol; an uncertain label of a class for which nothing was published.
    """
    check_protocol(protocol)
    values = {}
    for name in classes:
        raw = [(record.get(name) or 0) if record else np.nan for record in index.labels]
        column = np.array(raw, np.float32)
        uncertain = column == -1
        if uncertain.any() and protocol == "as_published":
            if name not in UNCERTAIN_AS_PUBLISHED:
                raise ValueError(f"{name}: {uncertain.sum()} uncertain labels and no published rule; use corrected")
            column[uncertain] = UNCERTAIN_AS_PUBLISHED[name]
        else:
            column[uncertain] = np.nan
        values[name] = column
    return pd.DataFrame(values, index=index.image_id)
