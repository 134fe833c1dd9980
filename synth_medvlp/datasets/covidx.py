"""COVIDx CXR-2, and CXR-4 of which it is a part (Pavlova et al.): COVID-19 positive or negative, from many collections.

| file below the root | content |
| --- | --- |
| train.txt, val.txt, test.txt | no header, separated by one space: id, file, positive or negative, source |
| mavl/{train,val,test}_split.csv | the CXR-2 rows in the same form; read where the .txt files are not there |
| {train,val,test}/FILE | PNG or JPG, many RGB |

Nearly all test negatives come from one collection (rsna), which has no positives, and nearly all positives
from one hospital, so a source classifier scores high; `source` is kept, so that AUC within a source can be told. The
first column is a patient in hospital collections and an image in others (rsna: the challenge's "patientId").
Serves zero-shot and fine-tuned classification of the reference, as a non-headline set.
"""

from pathlib import Path

import pandas as pd

from synth_medvlp.datasets import splits, tables
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.record import CxrReadError

NAME = "covidx-cxr2"
CLASSES = ("COVID-19",)
LABELS = {"positive": 1, "negative": 0}


def read_index(root: Path) -> pd.DataFrame:
    """One row per line of the three lists, train first, with INDEX_COLUMNS; image_id is the file name.

    patient_id = first column. Noted: "repeated row". Raises CxrReadError: missing file, bad csv (not four words a
    line), bad label, duplicate id.
    """
    root, notes = Path(root), tables.Notes()
    found: list[tuple[str, ...]] = []
    for part in splits.PARTS:
        path = tables.table_path(root, f"{part}.txt", f"{splits.PUBLISHED}/{part}_split.csv")
        seen: set[tuple[str, ...]] = set()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            words = tuple(line.rstrip().split(" "))
            if len(words) != 4 or not all(words):
                raise CxrReadError(path, "bad csv", f"line {number}: {line[:80]!r}; id, file, class, source expected")
            if words[2] not in LABELS:
                raise CxrReadError(path, "bad label", f"line {number}: {words[2]!r}; positive or negative expected")
            if words in seen:
                notes.add("repeated row", [words[1]])
            else:
                found.append((*words, part))
                seen.add(words)
    people, files, labels, sources, parts = zip(*found, strict=True) if found else ((),) * 5
    columns = {
        "image_id": files,
        "patient_id": people,
        "path": [f"{part}/{name}" for part, name in zip(parts, files, strict=True)],
        "labels": [{"COVID-19": LABELS[label]} for label in labels],
        "split": parts,
        "source": sources,
    }
    return tables.make_index(columns, root, notes)


def split(index: pd.DataFrame, root: Path, protocol: str = "corrected", seed: int = 0) -> pd.DataFrame:
    """as_published: the lists as shipped, which share ids. corrected: val without ids of test, train without ids of
    either; test stays whole. seed is not used."""
    check_protocol(protocol)
    parts = {part: index.image_id[index.split == part].tolist() for part in splits.PARTS}
    if protocol == "corrected":
        return splits.table(index, splits.without_shared(index, parts), "shipped lists without shared ids")
    return splits.table(index, parts, "shipped lists")
