"""What all loaders of this package share: csv tables, the index with its columns, notes of what was left out, paths.

Serves the reference's section Data. An index holds one row per image with INDEX_COLUMNS; `.attrs["warnings"]` counts
what was skipped or is odd, `listed(index)` names the rows.
"""

import csv
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from synth_medvlp.record import Box, CxrReadError

INDEX_COLUMNS = (
    "image_id",  # str, unique within the data set
    "study_id",  # str; the image id where a release knows no studies
    "patient_id",  # str; the image id where a release names no patients
    "path",  # str, relative to the data set's root, forward slashes, with extension
    "view",  # PA, AP, lateral, other; "" where only the image file itself says it
    "findings",  # str, "" where there is no such section
    "impression",  # str, likewise
    "labels",  # dict, class -> 1, 0, -1 uncertain, None not mentioned
    "boxes",  # tuple of (label, x, y, w, h) in pixels of the frame
    "rle",  # tuple of run-length masks on the frame (SIIM), () elsewhere
    "mask_path",  # str, relative path of a mask image, "" where there is none
    "frame",  # int, side in pixels of the square that boxes and rle refer to; 0 = the image's own size
    "split",  # str, official split of the release, "" where it has none
    "source",  # str, hospital or collection, "" where the release names none
)
_EMPTY = {"view": "", "findings": "", "impression": "", "mask_path": "", "frame": 0, "split": "", "source": ""}
_VIEW = {"PA": "PA", "AP": "AP", "AP_HORIZONTAL": "AP", "LATERAL": "lateral", "LL": "lateral", "RL": "lateral"}
_VIEW |= {"L": "lateral", "XTABLE LATERAL": "lateral"}


class Notes:
    """Ids by reason: rows that a loader left out, or kept although something is odd."""

    def __init__(self):
        self._ids: dict[str, list[str]] = {}

    def add(self, reason: str, ids: Iterable[str]) -> None:
        ids = [str(name) for name in ids]
        if ids:
            self._ids.setdefault(reason, []).extend(ids)

    def attach(self, index: pd.DataFrame) -> pd.DataFrame:
        """Put the counts and the ids on the index; ids as one string, because pandas copies attrs at every step."""
        index.attrs["warnings"] = {reason: len(ids) for reason, ids in self._ids.items()}
        index.attrs["listed"] = {reason: "\n".join(ids) for reason, ids in self._ids.items()}
        return index


def listed(index: pd.DataFrame) -> pd.DataFrame:
    """Every noted row of an index: columns reason, id."""
    rows = [(reason, name) for reason, ids in index.attrs["listed"].items() for name in ids.split("\n")]
    return pd.DataFrame(rows, columns=["reason", "id"])


def make_index(columns: dict, source: Path, notes: Notes) -> pd.DataFrame:
    """An index with exactly INDEX_COLUMNS from the given ones; ids that are left out are the image id.

    Raises CxrReadError: no records, duplicate id.
    """
    index = pd.DataFrame({"image_id": pd.Series(columns["image_id"], dtype=object)})
    n = len(index)
    if not n:
        raise CxrReadError(source, "no records", "is this the data set's own folder?")
    for name in INDEX_COLUMNS[1:]:
        if name in columns:
            values = columns[name]
            index[name] = values if isinstance(values, str | int) else pd.Series(list(values), dtype=object)
        elif name in ("study_id", "patient_id"):
            index[name] = index.image_id
        elif name in ("labels", "boxes", "rle"):
            index[name] = pd.Series([{} if name == "labels" else () for _ in range(n)], dtype=object)
        else:
            index[name] = _EMPTY[name]
    twice = index.image_id[index.image_id.duplicated()]
    if len(twice):
        paths = index.path[index.image_id == twice.iloc[0]].tolist()
        detail = f"{twice.nunique()} ids, first {twice.iloc[0]}: {', '.join(paths[:3])}"
        raise CxrReadError(source, "duplicate id", detail)
    return notes.attach(index)


def drop_repeats(table: pd.DataFrame, key: str, notes: Notes, source: Path) -> pd.DataFrame:
    """The table without rows that repeat another one in every column (noted). Raises CxrReadError where rows with the
    same key differ: which one is right cannot be known."""
    same = table.duplicated()
    notes.add("repeated row", table.loc[same, key])
    table = table[~same].reset_index(drop=True)
    twice = table[key][table[key].duplicated()]
    if len(twice):
        detail = f"{twice.nunique()} values of {key} with differing rows, first {twice.iloc[0]}"
        raise CxrReadError(source, "duplicate id", detail)
    return table


def table_path(root: Path, *names: str) -> Path:
    """The first of the names (each also with .gz) that lies in root. Raises CxrReadError "missing file"."""
    for name in names:
        for candidate in (Path(root) / name, Path(root) / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    advice = "download the data set, or set DATA_ROOT to where it lies"
    raise CxrReadError(Path(root) / names[0], "missing file", advice)


def read_table(path: Path, required: Iterable[str], optional: Iterable[str] = ()) -> pd.DataFrame:
    """A csv or csv.gz as text, "" where a cell is empty: the required columns and those of the optional that exist.

    Spaces around column names are dropped (SIIM writes " EncodedPixels"). A last row that ends before the columns asked
    for means a cut file: pandas would fill it up with blanks. Raises CxrReadError: missing file, bad csv.
    """
    if not Path(path).is_file():
        raise CxrReadError(path, "missing file", "download the data set, or set DATA_ROOT to where it lies")
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read()
        table = pd.read_csv(io.StringIO(text), dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CxrReadError(path, "bad csv", str(error)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CxrReadError(path, "bad csv", f"damaged gzip: {error}; fetch it again") from error
    table.columns = [name.strip() for name in table.columns]
    absent = [name for name in required if name not in table.columns]
    if absent:
        raise CxrReadError(path, "bad csv", f"no column {', '.join(absent)}; it has {', '.join(table.columns)}")
    wanted = [*required, *(name for name in optional if name in table.columns)]
    last = next(csv.reader([text.rstrip("\r\n").rsplit("\n", 1)[-1]]), [])
    if len(table) and len(last) <= max(table.columns.get_loc(name) for name in wanted):
        raise CxrReadError(path, "bad csv", f"the last row has {len(last)} cells: {last}; is the file complete?")
    return table[list(dict.fromkeys(wanted))]


def label_dicts(table: pd.DataFrame, classes: Iterable[str], path: Path, key: str) -> list[dict[str, int | None]]:
    """Per row the dict class -> 1, 0, -1, None (blank) of cells such as "1.0", "-1", "".

    Rows with equal cells share one dict: hundreds of thousands of rows hold few patterns.
    Raises CxrReadError "bad label" naming row and value.
    """
    classes = list(classes)
    known = {"": None}
    for text in {cell for name in classes for cell in table[name].unique()} - {""}:
        value = number(text)
        if value not in (1, 0, -1):
            name = next(name for name in classes if (table[name] == text).any())
            where = table.loc[table[name] == text, key].iloc[0]
            raise CxrReadError(path, "bad label", f"{key} {where}: {name} is {text!r}; 1, 0, -1 or blank expected")
        known[text] = int(value)
    patterns: dict[tuple, dict] = {}
    rows = zip(*([known[cell] for cell in table[name]] for name in classes), strict=True)
    return [patterns.setdefault(row, dict(zip(classes, row, strict=True))) for row in rows]


def number(text: str) -> float:
    """The number a cell holds; NaN where it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def clipped_box(label: str, cells: Iterable[str], frame: int, path: Path, where: str) -> tuple[Box, bool]:
    """((label, x, y, w, h) cut to a frame of frame x frame pixels, whether something was cut).

    cells: x, y, width, height as text. Raises CxrReadError "bad box": not four finite numbers, empty, outside.
    """
    cells = list(cells)
    values = [number(cell) for cell in cells]
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise CxrReadError(path, "bad box", f"{where}: {cells} are not x, y, width, height")
    x, y, w, h = values
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(frame)), min(y + h, float(frame))
    if w <= 0 or h <= 0 or x1 <= x0 or y1 <= y0:
        raise CxrReadError(path, "bad box", f"{where}: x {x:g} y {y:g} w {w:g} h {h:g} on {frame} x {frame} pixels")
    cut = (x0, y0, x1, y1) != (x, y, x + w, y + h)
    return ((label, x0, y0, x1 - x0, y1 - y0) if cut else (label, x, y, w, h)), cut


def view(text: str) -> str:
    """The release's word for a projection -> PA, AP, lateral, other; "" stays ""."""
    return _VIEW.get(text.strip().upper(), "other") if text.strip() else ""


def find_files(root: Path, *suffixes: str) -> dict[str, str]:
    """File name -> path relative to root, forward slashes, of all files below it with one of the suffixes.

    Of files with the same name the first counts, folders in alphabetical order, a folder before those within it.
    """
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        prefix = Path(folder).relative_to(root).as_posix()
        for name in files:
            if name.lower().endswith(suffixes):
                found.setdefault(name, name if prefix == "." else f"{prefix}/{name}")
    return found


def inside(root: Path, relative: str, record: str) -> Path:
    """root / relative. Raises CxrReadError "path outside the root" for absolute paths, "..", drives and addresses."""
    pure = PurePosixPath(str(relative).replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in str(pure) or not pure.parts:
        raise CxrReadError(relative, "path outside the root", f"record {record}")
    return Path(root) / pure


def present(index: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The rows whose image file lies under root; the others are noted as "missing file"."""
    here = [inside(root, row.path, row.image_id).is_file() for row in index.itertuples()]
    notes = Notes()
    for reason, ids in index.attrs["listed"].items():
        notes.add(reason, ids.split("\n"))
    notes.add("missing file", index.image_id[[not there for there in here]])
    return notes.attach(index[here].reset_index(drop=True))
