"""WFDB files to millivolts, leads by name, and named errors: the one place where ECG waveforms are decoded.

Serves every package that reads ECGs (MEIT, K-MERL, SuPreME). Also holds what the four loaders have in common: the
check of an index, the reading of CSV tables, and the header comments of the PhysioNet/CinC 2020/2021 form.

Reasons of `EcgReadError`, as they are counted in a store's manifest:
missing file · bad header · unreadable · truncated · no samples · wrong rate · wrong unit · missing lead · duplicate
lead · flat lead · long gap · amplitude · path outside the root (records); bad csv · duplicate id · no records (whole
data sets).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from shared.ecg.record import INDEX_COLUMNS, LEADS, EcgReadError, EcgRecord

MAX_GAP_S = 0.040  # a longer gap could hide a QRS complex; it is not interpolated
MAX_ABS_MV = 32.767  # the packed store keeps int16 in 1 µV units; no ECG on the body surface comes near it
MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3}  # keys: micro sign U+00B5 and Greek mu U+03BC
BITS_PER_SAMPLE = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12}
ROW_OF_LEAD = {name.lower(): row for row, name in enumerate(LEADS)}


# ----------------------------------------------------------------------------------------------- waveforms


def read_signal(path: Path, fs_hz: float | None = None, leads: Sequence[str] = LEADS) -> tuple[np.ndarray, float, int]:
    """One WFDB record (path without extension) -> (signal_mv [12, n_samples] float32, fs_hz, n_interpolated).

    Rows are in the order of LEADS, found by case-insensitive name; other leads (VX, VY, VZ of PTBDB) are left out.
    mV and µV are read, into mV. Missing samples: gaps of at most 40 ms are filled by a straight line (at an end, by the
    nearest sample) and counted over all leads in `n_interpolated`.
    fs_hz: the rate the file must have, in Hz; None accepts any. leads: those that are asked for, in the order of LEADS;
    the rows of all others are zeros, whatever the file holds.
    Raises EcgReadError; the module docstring lists the reasons.
    """
    import wfdb

    path = Path(path)
    try:
        record = wfdb.rdrecord(str(path), return_res=32)
    except (
        Exception
    ) as error:  # wfdb raises ten kinds (IndexError, TypeError, KeyError ...) for files that are not sound
        raise _diagnosis(path, error) from error
    if not record.n_sig or not record.sig_len:
        raise EcgReadError(path, "no samples")
    if not record.fs or not math.isfinite(record.fs) or record.fs < 0:
        raise EcgReadError(path, "bad header", f"sampling rate {record.fs}")
    if fs_hz is not None and abs(record.fs - fs_hz) > 1e-6:
        raise EcgReadError(path, "wrong rate", f"{record.fs:g} Hz in the header, {fs_hz:g} Hz expected")
    column = _columns_of_leads(path, record.sig_name, leads)
    signal_mv = np.ascontiguousarray(record.p_signal[:, column].T, dtype=np.float32)  # [n_leads, n_samples]
    _scale_to_mv(path, signal_mv, record.units, column)
    n_interpolated = fill_short_gaps(path, signal_mv, record.fs, leads)
    low, high = signal_mv.min(axis=1), signal_mv.max(axis=1)  # [n_leads]
    if max(high.max(), -low.min()) > MAX_ABS_MV:
        raise EcgReadError(path, "amplitude", f"{max(high.max(), -low.min()):.1f} mV exceeds {MAX_ABS_MV} mV")
    if (low == high).any():
        names = [name for name, flat in zip(leads, low == high, strict=True) if flat]
        raise EcgReadError(path, "flat lead", ", ".join(names))
    return _twelve_rows(signal_mv, leads), float(record.fs), n_interpolated


def read_file(path: Path, fs_hz: float | None = None, leads: Sequence[str] = LEADS) -> tuple[np.ndarray, float]:
    """Any one ECG a user may have -> (signal_mv [12, n_samples], fs_hz); rows of leads not asked for are zeros.

    A WFDB record (path without or with extension), or a CSV file in mV with one column per lead, named in the header,
    whose rate `fs_hz` must be given. Raises EcgReadError naming the file and what is wrong.
    """
    leads = tuple(name for name in LEADS if name.lower() in {lead.lower() for lead in leads})
    if path.suffix.lower() != ".csv":
        return read_signal(path.with_suffix("") if path.suffix in (".hea", ".dat", ".mat") else path, None, leads)[:2]
    if fs_hz is None:
        raise EcgReadError(path, "wrong rate", "a CSV file has no sampling rate; give --fs-hz")
    table = pd.read_csv(path)
    columns = {c.strip().lower(): c for c in table.columns}
    missing = [lead for lead in leads if lead.lower() not in columns]
    if missing:
        raise EcgReadError(path, "missing lead", f"no column for {', '.join(missing)}")
    cells = table[[columns[lead.lower()] for lead in leads]].apply(pd.to_numeric, errors="coerce")
    signal_mv = np.ascontiguousarray(cells.to_numpy(np.float32).T)
    fill_short_gaps(path, signal_mv, fs_hz, leads)
    return _twelve_rows(signal_mv, leads), fs_hz


def _twelve_rows(signal_mv: np.ndarray, leads: Sequence[str]) -> np.ndarray:
    if len(leads) == len(LEADS):
        return signal_mv
    rows = np.zeros((len(LEADS), signal_mv.shape[1]), np.float32)
    rows[[LEADS.index(lead) for lead in leads]] = signal_mv
    return rows


def read_record(root: Path, row, dataset: str, fs_hz: float | None = None) -> EcgRecord:
    """The record that `row` of an index describes (Series or dict with INDEX_COLUMNS); raises EcgReadError."""
    relative = PurePosixPath(str(row["path"]).replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in str(relative) or not relative.parts:
        raise EcgReadError(row["path"], "path outside the root", f"record {row['record_id']}")
    signal_mv, file_fs_hz, n_interpolated = read_signal(Path(root) / relative, fs_hz)
    return EcgRecord(
        record_id=row["record_id"],
        patient_id=row["patient_id"],
        dataset=dataset,
        signal_mv=signal_mv,
        fs_hz=file_fs_hz,
        report=row["report"],
        labels=tuple(row["labels"]),
        fold=int(row["fold"]),
        age=float(row["age"]),
        sex=row["sex"],
        n_interpolated=n_interpolated,
    )


def fill_short_gaps(path: Path, signal_mv: np.ndarray, fs_hz: float, leads: Sequence[str] = LEADS) -> int:
    """Interpolate NaN runs of at most 40 ms in place, lead by lead; returns how many samples were filled.

    signal_mv: [n_leads, n_samples]. Raises EcgReadError "long gap" where a lead lacks more at a stretch.
    """
    missing = np.isnan(signal_mv)
    if not missing.any():
        return 0
    n_samples = signal_mv.shape[1]
    longest = math.floor(MAX_GAP_S * fs_hz + 1e-9)
    for row in np.flatnonzero(missing.any(axis=1)):
        edges = np.flatnonzero(np.diff(missing[row], prepend=False, append=False))
        run = int((edges[1::2] - edges[::2]).max())
        if run > longest or run == n_samples:
            detail = (
                f"{leads[row]}: {1000 * run / fs_hz:.0f} ms missing at a stretch, {1000 * MAX_GAP_S:.0f} ms allowed"
            )
            raise EcgReadError(path, "long gap", detail)
        hole = missing[row]
        signal_mv[row, hole] = np.interp(np.flatnonzero(hole), np.flatnonzero(~hole), signal_mv[row, ~hole])
    return int(missing.sum())


def _columns_of_leads(path: Path, names: list[str | None], leads: Sequence[str]) -> list[int]:
    """For each of `leads`, the signal of the file that carries its name."""
    column = [-1] * len(LEADS)
    for position, name in enumerate(names):
        row = ROW_OF_LEAD.get((name or "").strip().lower())
        if row is None:
            continue
        if column[row] >= 0:
            raise EcgReadError(path, "duplicate lead", LEADS[row])
        column[row] = position
    absent = [lead for lead in leads if column[LEADS.index(lead)] < 0]
    if absent:
        raise EcgReadError(path, "missing lead", f"{', '.join(absent)} not among {names}")
    return [column[LEADS.index(lead)] for lead in leads]


def _scale_to_mv(path: Path, signal_mv: np.ndarray, units: list[str], column: list[int]) -> None:
    used = [units[position] for position in column]
    if "V" in used:
        # wfdb drops the non-ASCII "µ" of a header, which would turn µV into V: ask the file itself.
        written = _units_as_written(path)
        used = [written.get(position, units[position]) for position in column]
    for row, unit in enumerate(used):
        factor = MV_PER_UNIT.get(unit.lower())
        if factor is None:
            raise EcgReadError(path, "wrong unit", f"{LEADS[row]} is in {unit!r}, mV or µV expected")
        if factor != 1.0:
            signal_mv[row] *= factor


def _units_as_written(path: Path) -> dict[int, str]:
    """Unit of each signal from the bytes of the header (UTF-8 or Latin-1), where one is written."""
    raw = Path(f"{path}.hea").read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    gains = [[*line.split(), "", "", ""][2] for line in lines[1:]]
    return {position: gain.split("/", 1)[1] for position, gain in enumerate(gains) if "/" in gain}


def _diagnosis(path: Path, error: Exception) -> EcgReadError:
    """Why wfdb could not read the record: the first of these that is true."""
    import wfdb

    header_path = Path(f"{path}.hea")
    if not header_path.is_file():
        return EcgReadError(path, "missing file", header_path.name)
    try:
        header = wfdb.rdheader(str(path))
    except Exception as header_error:
        return EcgReadError(path, "bad header", str(header_error))
    if header.n_sig == 0 or header.sig_len == 0:
        return EcgReadError(path, "no samples", "according to the header")
    files = getattr(header, "file_name", None)  # a multi-segment header has none
    if not files or len(files) != header.n_sig or None in files:
        return EcgReadError(path, "bad header", f"{header.n_sig} signals announced, {len(files or [])} described")
    for name in dict.fromkeys(files):
        data_path = path.parent / name
        if not data_path.is_file():
            return EcgReadError(path, "missing file", name)
        first = files.index(name)
        n_bytes, bits = (
            data_path.stat().st_size - (header.byte_offset[first] or 0),
            BITS_PER_SAMPLE.get(header.fmt[first]),
        )
        if bits is None:
            continue
        if n_bytes <= 0 and header.sig_len is None:
            return EcgReadError(path, "no samples", f"{name} is empty")
        expected = sum(
            (header.samps_per_frame[i] or 1) * (header.sig_len or 0) for i, f in enumerate(files) if f == name
        )
        if n_bytes * 8 < expected * bits:
            return EcgReadError(
                path, "truncated", f"{name}: {max(n_bytes, 0)} of {expected * bits // 8} bytes of samples"
            )
    return EcgReadError(path, "unreadable", f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------------------------- indexes and tables


def make_index(columns: dict, source: Path, warnings: dict[str, int]) -> pd.DataFrame:
    """An index with exactly INDEX_COLUMNS, unique record ids, and `.attrs["warnings"]` = counts that are not zero."""
    index = pd.DataFrame({name: columns[name] for name in INDEX_COLUMNS})
    if index.empty:
        raise EcgReadError(source, "no records", "is this the data set's own folder?")
    twice = index.record_id[index.record_id.duplicated()]
    if len(twice):
        example = index.path[index.record_id == twice.iloc[0]].tolist()
        raise EcgReadError(
            source, "duplicate id", f"{twice.nunique()} ids, first {twice.iloc[0]}: {', '.join(example)}"
        )
    index["fold"] = index["fold"].astype(np.int64)
    index["age"] = index["age"].astype(np.float64)
    index.attrs["warnings"] = {reason: int(n) for reason, n in warnings.items() if n}
    return index


def read_table(path: Path, required: tuple[str, ...], optional=lambda name: False) -> pd.DataFrame:
    """A CSV table as text, "" where a cell is empty: the `required` columns and those for which `optional(name)`."""
    if not path.is_file():
        raise EcgReadError(path, "missing file", "download the data set, or set DATA_ROOT to where it lies")
    try:
        present = pd.read_csv(path, nrows=0).columns.tolist()
        absent = [name for name in required if name not in present]
        if absent:
            raise EcgReadError(path, "bad csv", f"no column {', '.join(absent)}; it has {', '.join(present)}")
        wanted = [name for name in present if name in required or optional(name)]
        return pd.read_csv(path, usecols=wanted, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise EcgReadError(path, "bad csv", str(error)) from error


def age_years(text: str) -> float:
    """Age in years; NaN where unknown; 90 for the 300 by which PTB-XL hides ages above 89."""
    try:
        age = float(text)
    except ValueError:
        return math.nan
    return 90.0 if age >= 300 else age if age >= 0 else math.nan


def cinc_index(root: Path) -> pd.DataFrame:
    """Index of a tree of WFDB records in the PhysioNet/CinC 2020/2021 form, whatever its folders are called.

    One row per header, sorted by record id, with INDEX_COLUMNS; patient_id = record id. Labels (SNOMED CT codes), age
    and sex come from the comments `# Dx:`, `# Age:`, `# Sex:`, text from nowhere. A header that cannot be parsed stays
    in the index, without labels, so that its reading fails by name later. Counts in `.attrs["warnings"]`: "no Dx",
    "malformed Dx". Raises EcgReadError: missing file, no records, duplicate id.
    """
    root = Path(root)
    if not root.is_dir():
        raise EcgReadError(root, "missing file", "download the data set, or set DATA_ROOT to where it lies")
    found = []  # (record id, path, codes, age, sex)
    n_without, n_malformed = 0, 0
    for folder, _, files in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix()
        for name in files:
            if not name.endswith(".hea"):
                continue
            comments = _header_comments(os.path.join(folder, name))
            tokens = [token.strip() for token in comments.get("dx", "").split(",")]
            codes = list(dict.fromkeys(token for token in tokens if token.isdigit()))
            n_without += not codes
            n_malformed += any(not token.isdigit() and token.lower() not in ("", "unknown", "nan") for token in tokens)
            path = name[:-4] if prefix == "." else f"{prefix}/{name[:-4]}"
            found.append((name[:-4], path, codes, age_years(comments.get("age", "")), _sex(comments.get("sex", ""))))
    found.sort(key=lambda row: row[:2])
    ids, paths, labels, ages, sexes = zip(*found, strict=True) if found else ((),) * 5
    columns = {"record_id": ids, "patient_id": ids, "path": paths, "report": "", "labels": labels, "fold": 0}
    return make_index(columns | {"age": ages, "sex": sexes}, root, {"no Dx": n_without, "malformed Dx": n_malformed})


def _header_comments(path: str) -> dict[str, str]:
    """`# Key: value` lines of a header, keys in lower case."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line[1:] for line in file if line.startswith("#")]
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _sex(text: str) -> str:
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(text.strip().lower(), "")
