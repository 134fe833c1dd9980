"""COVID-19 Image Repository of Hannover Medical School (Winther et al., doi:10.25835/0090041): real films without text.

| file below the root | columns or content |
| --- | --- |
| data.csv | patient_id, image_id, sex, modality (CR, DX), projection (ap, pa), offsets in days, laboratory values |
| png/IMAGEID.png | 8 bit, 640 pixels wide; the repository may hold fewer images than the table has rows |

All patients had COVID-19; there are neither findings nor reports, so labels are empty. No set of the reference and no
experiment: real films on which the tests prove that images are read as they should be.
"""

from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol

NAME = "hannover-cxr"
CLASSES = ()


def read_index(root: Path) -> pd.DataFrame:
    """One row per row of data.csv, with INDEX_COLUMNS. Noted: "repeated row".

    Raises CxrReadError: missing file, bad csv, duplicate id.
    """
    root, notes = Path(root), tables.Notes()
    source = tables.table_path(root, "data.csv")
    rows = tables.read_table(source, ("patient_id", "image_id", "projection"))
    rows = tables.drop_repeats(rows, "image_id", notes, source)
    columns = {
        "image_id": rows.image_id,
        "patient_id": rows.patient_id,
        "path": "png/" + rows.image_id + ".png",
        "view": rows.projection.map(tables.view).replace("", "other"),
    }
    return tables.make_index(columns, source, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """All images are test, under both protocols."""
    check_protocol(protocol)
    return splits.table(index, {"test": index.image_id}, "one part")
