"""What the three CT loaders have in common: reading tables as text, checking an index, holding out patients."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.ct_io import missing
from shared.ct.volume import INDEX_COLUMNS, CtReadError

DEFAULTS = {
    "split": "",
    "findings": "",
    "impression": "",
    "language": "en",
    "flag": "",
    "n_slices": 0,
    "slope": float("nan"),
    "intercept": float("nan"),
    "blank_header": False,
}


def read_table(path: Path, required: tuple[str, ...] = ()) -> pd.DataFrame:
    """A CSV table as text, "" where a cell is empty; CtReadError where it is missing, torn or lacks a column."""
    if not path.is_file():
        raise missing(path)
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CtReadError(path, "bad csv", str(error)) from error
    absent = [name for name in required if name not in table.columns]
    if absent:
        raise CtReadError(path, "bad csv", f"no column {', '.join(absent)}; it has {', '.join(table.columns)}")
    return table


def unique(table: pd.DataFrame, key: str, source: Path) -> pd.DataFrame:
    """The table with whole-row repeats dropped; CtReadError where one key has two different rows."""
    table = table.drop_duplicates()
    twice = table[key][table[key].duplicated()]
    if len(twice):
        raise CtReadError(source, "duplicate id", f"{twice.nunique()} of column {key}, first {twice.iloc[0]}")
    return table


def make_index(rows: list[dict], source: Path, warnings: dict[str, int]) -> pd.DataFrame:
    """An index with exactly INDEX_COLUMNS, unique volume ids, and `.attrs["warnings"]` = counts that are not zero."""
    if not rows:
        raise CtReadError(source, "no volumes", f"is this the data set's own folder? {warnings}")
    index = pd.DataFrame([DEFAULTS | row for row in rows])
    for name, empty in (("labels", dict), ("spacing_mm", tuple), ("origin_mm", tuple), ("direction", tuple)):
        if name not in index:
            index[name] = [empty() for _ in rows]
    index = index[list(INDEX_COLUMNS)]
    twice = index.volume_id[index.volume_id.duplicated()]
    if len(twice):
        paths = index.path[index.volume_id == twice.iloc[0]].tolist()
        raise CtReadError(source, "duplicate id", f"{twice.nunique()} ids, first {twice.iloc[0]}: {', '.join(paths)}")
    index.attrs["warnings"] = {reason: int(n) for reason, n in warnings.items() if n}
    return index


def find_volumes(root: Path) -> dict[str, str]:
    """File name -> path relative to `root` of every .nii.gz and .nii below it; CtReadError where a name repeats."""
    if not Path(root).is_dir():
        raise missing(Path(root))
    found: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            if not name.endswith((".nii.gz", ".nii")):
                continue
            path = (Path(folder) / name).relative_to(root).as_posix()
            if name in found:
                raise CtReadError(root, "duplicate id", f"{found[name]} and {path} have one name")
            found[name] = path
    return found


def stem(name: str) -> str:
    """File name without .nii.gz or .nii."""
    return name.removesuffix(".gz").removesuffix(".nii")


def held_out(patients: Iterable[str], share: float, seed: int) -> list[str]:
    """A seeded `share` of the patients (at least one where there are two or more); does not depend on their order."""
    patients = np.sort(np.unique(np.array(list(patients), dtype=str)))
    n = min(max(1, round(share * len(patients))), len(patients) - 1) if share else 0
    return np.random.default_rng(seed).permutation(patients)[: max(n, 0)].tolist()
