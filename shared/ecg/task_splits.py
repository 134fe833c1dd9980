"""Which record belongs to which part of a downstream task: MERL's published label files and the rules behind them.

Serves `shared.ecg.tasks` (K-MERL, MERL, SuPreME). Reference: D2, D4, D5 of K-MERL.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.splits import PARTS

PUBLISHED_SEED = 42
# Column that names the record, in the files of each release.
_ID_COLUMN = {"ptb-xl": "ecg_id", "cpsc2018": "filename", "chapman-shaoxing-ningbo": "ecg_path"}


def find_splits(data_root: Path) -> Path | None:
    """Folder of the published files below DATA_ROOT: what `make data-merl-splits` fetches, or `splits/merl`."""
    folders = (Path(data_root) / "merl-splits", Path(data_root) / "splits" / "merl")
    return next((folder for folder in folders if folder.is_dir()), None)


def permutation(n: int, seed: int = PUBLISHED_SEED) -> np.ndarray:
    """The order in which the published splits and few-label subsets draw n rows; the same bits in every NumPy."""
    return np.random.RandomState(seed).permutation(n)


def permutation_split(n: int) -> dict[str, np.ndarray]:
    """Rows 0..n-1 of each part, in the order of the published CPSC2018 files: 80/20, then 90/10 of the rest (D4).

    The test share is rounded up at both steps, and the generator starts anew for the second one.
    """
    shuffled, n_test = permutation(n), math.ceil(0.2 * n)
    rest = shuffled[n_test:]
    again, n_val = permutation(len(rest)), math.ceil(0.1 * len(rest))
    return {"train": rest[again[n_val:]], "val": rest[again[:n_val]], "test": shuffled[:n_test]}


def by_rule(record_ids: np.ndarray, part: np.ndarray | None) -> pd.DataFrame:
    """Members (record_id, part, position) where no published file says: official parts [n], or the permutation.

    part None: `permutation_split` of the sorted ids. Otherwise the order of `record_ids` counts.
    """
    if part is None:
        ids = np.sort(record_ids)
        rows = permutation_split(len(ids))
        members = pd.concat([pd.DataFrame({"record_id": ids[rows[name]], "part": name}) for name in PARTS])
    else:
        members = pd.DataFrame({"record_id": record_ids, "part": part})
    members["position"] = members.groupby("part").cumcount()
    return members.reset_index(drop=True)


def published_tables(splits: Path, stems: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Part -> the published table as text, "" where a cell is empty.

    Found anywhere below `splits` as STEM_PART.csv or .csv.gz. Raises FileNotFoundError naming what is missing.
    """
    tables = {}
    for part in PARTS:
        names = {f"{stem}_{part}.csv{end}" for stem in stems for end in ("", ".gz")}
        found = sorted(path for path in Path(splits).rglob(f"*_{part}.csv*") if path.name in names)
        if not found:
            raise FileNotFoundError(
                f"{splits}: none of {', '.join(sorted(names))}. Fetch the published label files with "
                "`make data-merl-splits`, or leave `splits` out to split by the stated rule."
            )
        tables[part] = pd.read_csv(found[0], dtype=str, na_filter=False)
    return tables


def published_members(tables: dict[str, pd.DataFrame], dataset: str) -> pd.DataFrame:
    """record_id, part and position (row of the part's file), train rows first; index 0..n-1."""
    column = _ID_COLUMN[dataset]
    frames = []
    for part, table in tables.items():
        ids = table[column].str.rsplit("/", n=1).str[-1].str.removesuffix(".mat")
        frames.append(pd.DataFrame({"record_id": ids, "part": part, "position": range(len(ids))}))
    members = pd.concat(frames, ignore_index=True)
    twice = members.record_id[members.record_id.duplicated()]
    if len(twice):
        raise ValueError(f"record {twice.iloc[0]} is in two rows of the published {dataset} files")
    return members
