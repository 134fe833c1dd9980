"""Seeded splits by annotation row, image or patient, published split files, and the count of what a split shares.

Reference: Data, Validation sets. A split is a table with one row per scored item (image_id, patient_id,
split in train | val | test); an image may stand in it twice where a published split goes by annotation rows.
`.attrs["made"]` says whether published files were read or the published rule was drawn again with our seed. Published
files are those of the repository HieuPhan33/CVPR2024_MAVL (data/<set>/*.csv), put unchanged into <root>/mavl/.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from synth_medvlp.record import CxrReadError

PARTS = ("train", "val", "test")
PUBLISHED = "mavl"


def table(index: pd.DataFrame, parts: Mapping[str, Iterable[str]], made: str) -> pd.DataFrame:
    """Split table from image ids by part; order and repetitions of the ids are kept.

    Ids that the index lacks are left out and counted in `.attrs["unknown"]`: a part of the release may lie there.
    """
    patient = dict(zip(index.image_id, index.patient_id, strict=True))
    rows, unknown = [], 0
    for part in PARTS:
        for name in parts.get(part, ()):
            if name in patient:
                rows.append((name, patient[name], part))
            else:
                unknown += 1
    result = pd.DataFrame(rows, columns=["image_id", "patient_id", "split"])
    result.attrs |= {"made": made, "unknown": unknown}
    return result


def by_row(items: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Items (image ids, possibly repeated) drawn at random into parts; the last part takes what is left."""
    order = np.random.default_rng(seed).permutation(len(items))
    cuts = np.rint(np.cumsum(list(shares.values())) * len(items)).astype(int)
    cuts[-1] = len(items)
    pieces = np.split(order, cuts[:-1])
    return {part: [items[i] for i in sorted(piece)] for part, piece in zip(shares, pieces, strict=True)}


def by_group(
    index: pd.DataFrame, groups: Sequence[str], shares: Mapping[str, float], seed: int, positive: Sequence[bool] = ()
) -> dict[str, list[str]]:
    """Image ids by part so that no group (patient, image) is in two parts; shares are of groups.

    positive: per row; groups with and without a positive row are drawn separately, so that prevalences agree.
    """
    frame = pd.DataFrame({"group": list(groups), "positive": list(positive) or False}, index=index.image_id)
    of_group = frame.groupby("group", sort=True).positive.any()
    part_of: dict[str, str] = {}
    for stratum in (True, False):
        names = of_group.index[of_group == stratum].tolist()
        if names:
            drawn = by_row(names, shares, seed)
            part_of |= {name: part for part, members in drawn.items() for name in members}
    parts = frame.group.map(part_of)
    return {part: parts.index[parts == part].tolist() for part in shares}


def published(root: Path, names: Mapping[str, str], key, **csv) -> dict[str, list[str]] | None:
    """Image ids by part from <root>/mavl/<name>, or None where none of the files lies there.

    names: part -> file name. key: function of the table -> Series of image ids. csv: arguments of pandas.read_csv.
    Raises CxrReadError "missing file" where only some of the files are there, "bad csv".
    """
    paths = {part: Path(root) / PUBLISHED / name for part, name in names.items()}
    there = [path for path in paths.values() if path.is_file()]
    if not there:
        return None
    if len(there) < len(paths):
        absent = next(path for path in paths.values() if not path.is_file())
        raise CxrReadError(absent, "missing file", f"{there[0].name} is there; a published split needs all its files")
    parts = {}
    for part, path in paths.items():
        try:
            parts[part] = key(pd.read_csv(path, dtype=str, na_filter=False, **csv)).tolist()
        except (pd.errors.ParserError, pd.errors.EmptyDataError, KeyError, AttributeError) as error:
            raise CxrReadError(path, "bad csv", f"{type(error).__name__}: {error}") from error
    return parts


def shared(split: pd.DataFrame) -> dict[str, int]:
    """What pairs of parts have in common: {"train-val patients": n, "train-val images": n, ...}."""
    counts = {}
    for first, second in combinations(PARTS, 2):
        for name, column in (("patients", "patient_id"), ("images", "image_id")):
            one, two = (set(split.loc[split.split == part, column]) for part in (first, second))
            counts[f"{first}-{second} {name}"] = len(one & two)
    return counts


def without_shared(index: pd.DataFrame, parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Parts from which patients of the test part, then those of the validation part, are removed; test stays whole."""
    patient = dict(zip(index.image_id, index.patient_id, strict=True))
    taken: set[str] = set()
    kept = {}
    for part in reversed(PARTS):
        kept[part] = [name for name in parts.get(part, ()) if patient[name] not in taken]
        taken |= {patient[name] for name in kept[part]}
    return kept
