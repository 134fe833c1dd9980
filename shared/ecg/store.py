"""Packed store: a tree of WFDB files turned into one memory-mapped array for random access (`prep` of every package).

A store is a folder of three files:

    signals.npy      1-D int16, 1 µV per unit, record after record, each [12, n_samples] row-major, leads as in LEADS
    records.parquet  one row per record: INDEX_COLUMNS + offset (values into signals.npy), n_samples, fs_hz,
                     n_interpolated
    manifest.json    counts, every skipped record with its reason, sizes, SHA-256, versions; written last, so it marks
                     the store as finished

1 µV resolves every supported release (1 µV for PTB-XL, CPSC2018 and CSN, 5 µV for MIMIC-IV-ECG), so without resampling
the store is lossless; a record outside ±32.767 mV is a listed skip. Packing decodes on all cores and appends in index
order, so the bytes depend neither on the number of workers nor on interruptions: until the manifest appears, samples
grow in `signals.npy.part` and `journal.jsonl` gets one line per finished chunk; a run killed at any moment loses the
last chunks in flight and the next run continues after the last journaled one.
"""

import errno
import hashlib
import inspect
import json
import os
import platform
import shutil
from collections import Counter
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.decode import UNITS_PER_MV, StoreError, decoded_chunks
from shared.ecg.record import INDEX_COLUMNS, LEADS
from shared.locks import locked

FORMAT_VERSION = 1
HEADER_BYTES = 128  # fixed, so that the shape can be filled in when the number of samples is known
COPY_BYTES = 1 << 20
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def pack(
    dataset: str,
    root: Path,
    out: Path,
    source_fs_hz: float | None = None,
    fs_hz: float | None = None,
    workers: int | None = None,
) -> dict:
    """Pack the data set `dataset` (a key of LOADERS) lying in its own folder `root` into the store `out`.

    source_fs_hz: rate that the files must have (default: the release's); other rates are listed skips.
    fs_hz: rate of the store (default: source_fs_hz); differs = polyphase resampling with an anti-aliasing filter.
    workers: decoding processes (default: all cores).

    Returns the manifest. Continues an interrupted pack, and returns at once where `out` already holds this source (same
    index, file sizes and rates).
    Raises StoreError (disk full, nothing usable, a worker died) and RuntimeError naming the record for anything that is
    not an EcgReadError. Call it from a module guarded by `if __name__ == "__main__"`: workers import the main module.
    """
    from shared.ecg import LOADERS

    if dataset not in LOADERS:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(sorted(LOADERS))}")
    root, out = Path(root), Path(out)
    source_fs_hz = float(source_fs_hz or LOADERS[dataset].FS_HZ)
    job = {
        "dataset": dataset,
        "source_fs_hz": source_fs_hz,
        "fs_hz": float(fs_hz or source_fs_hz),
        "format_version": FORMAT_VERSION,
    }
    index = _read_index(LOADERS[dataset], root, source_fs_hz)
    if index.empty:
        raise StoreError(f"{root}: the index of {dataset} names no record; is this the data set's own folder?")
    job["source_sha256"] = _source_sha256(index, root, job)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"), _disk_errors(out):
        manifest = _finished(out, job)
        return manifest if manifest is not None else _pack(index, root, out, job, workers or os.cpu_count() or 1)


def _read_index(loader, root: Path, source_fs_hz: float) -> pd.DataFrame:
    """The loader's index; PTB-XL ships two rates in two folders, so its loader is told which."""
    if "fs_hz" not in inspect.signature(loader.read_index).parameters:
        return loader.read_index(root).reset_index(drop=True)
    return loader.read_index(root, fs_hz=int(source_fs_hz)).reset_index(drop=True)


def _source_sha256(index: pd.DataFrame, root: Path, job: dict) -> str:
    """Hash of what a pack depends on: job, index, and the sizes of all files (contents would cost a full read)."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    for row in index[list(INDEX_COLUMNS)].itertuples(index=False):
        sizes = []
        for suffix in (".hea", ".dat", ".mat"):
            try:
                sizes.append(os.stat(f"{root / row.path}{suffix}").st_size)
            except FileNotFoundError:
                sizes.append(-1)
        fields = [list(field) if isinstance(field, list | tuple | np.ndarray) else str(field) for field in row]
        digest.update(json.dumps([fields, sizes]).encode())
    return digest.hexdigest()


def _finished(out: Path, job: dict) -> dict | None:
    """The manifest of a finished pack of the same source, else None."""
    try:
        manifest = json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = all(manifest.get(key) == value for key, value in job.items())
    whole = same and all((out / f).exists() and (out / f).stat().st_size == n for f, n in manifest["bytes"].items())
    return manifest if whole else None


def _pack(index: pd.DataFrame, root: Path, out: Path, job: dict, workers: int) -> dict:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    partial = _Partial(out, job)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"packing {job['dataset']}", total=len(index), completed=partial.n_done)
        for chunk in decoded_chunks(index, root, job, partial.n_done, workers, out):
            partial.append(*chunk)
            progress.update(task, completed=partial.n_done)
    return partial.finish(index)


# --- the unfinished store ---------------------------------------------------------------------------------------------


class _Partial:
    """An unfinished pack: samples in signals.npy.part, one JSON line per finished chunk in journal.jsonl."""

    def __init__(self, out: Path, job: dict):
        self.out, self.job = out, job
        self.part, self.journal = out / "signals.npy.part", out / "journal.jsonl"
        self.records: list[list[int]] = []  # [position in the index, n_samples, n_interpolated]
        self.skips: list[list] = []  # [position in the index, reason, detail]
        self.n_values = 0
        if not self._resume():
            self._restart()
        for chunk in out.glob("chunk-*.part"):  # in flight when an earlier run was killed
            chunk.unlink()
        self.samples_file, self.journal_file = open(self.part, "ab"), open(self.journal, "ab")

    @property
    def n_done(self) -> int:
        return len(self.records) + len(self.skips)

    def _resume(self) -> bool:
        """Take up the journal of the same job; False where there is none or its samples are gone."""
        if not self.journal.exists():
            return False
        lines, kept_bytes = [], 0
        for line in self.journal.read_bytes().splitlines(keepends=True):
            try:
                lines.append(json.loads(line))
            except ValueError:  # a torn line: killed while writing it
                break
            if not line.endswith(b"\n"):
                lines.pop()
                break
            kept_bytes += len(line)
        if not lines or lines[0] != self.job:
            return False
        if not self.part.exists() and (self.out / "signals.npy").exists():  # killed between rename and manifest
            os.replace(self.out / "signals.npy", self.part)
        end = lines[-1]["n_values"] if len(lines) > 1 else 0
        if not self.part.exists() or self.part.stat().st_size < HEADER_BYTES + 2 * end:
            return False
        for chunk in lines[1:]:
            self.records += chunk["records"]
            self.skips += chunk["skips"]
        self.n_values = end
        os.truncate(self.part, HEADER_BYTES + 2 * end)
        os.truncate(self.journal, kept_bytes)
        return True

    def _restart(self):
        for name in ("manifest.json", "journal.jsonl", "signals.npy", "signals.npy.part", "records.parquet"):
            (self.out / name).unlink(missing_ok=True)
        self.part.write_bytes(_npy_header(0))
        self.journal.write_text(json.dumps(self.job) + "\n")

    def append(self, file: Path, records: list, skips: list):
        """Samples first, journal line after they are on disk: a line therefore vouches for what it covers."""
        with open(file, "rb") as samples:
            shutil.copyfileobj(samples, self.samples_file, COPY_BYTES)
        file.unlink()
        _sync(self.samples_file)
        self.n_values += len(LEADS) * sum(n_samples for _, n_samples, _ in records)
        if self.samples_file.tell() != HEADER_BYTES + 2 * self.n_values:
            raise StoreError(f"{self.part}: not as long as its records; is something else writing there?")
        self.records += records
        self.skips += skips
        line = {"n_values": self.n_values, "records": records, "skips": skips}
        self.journal_file.write(json.dumps(line).encode() + b"\n")
        _sync(self.journal_file)

    def finish(self, index: pd.DataFrame) -> dict:
        """Fill in the header, hash, and give the files their final names; the manifest comes last."""
        self.samples_file.close()
        self.journal_file.close()
        manifest = self._manifest(index)
        with open(self.part, "r+b") as file:
            file.write(_npy_header(self.n_values))
            _sync(file)
        records_part, manifest_part = self.out / "records.parquet.part", self.out / "manifest.json.part"
        _write_records(index, self.records, self.job["fs_hz"], records_part)
        for name, path in (("signals.npy", self.part), ("records.parquet", records_part)):
            manifest["bytes"][name] = path.stat().st_size
            manifest["sha256"][name] = _sha256(path)
        with open(manifest_part, "w") as file:
            json.dump(manifest, file, indent=1)
            _sync(file)
        os.replace(self.part, self.out / "signals.npy")
        os.replace(records_part, self.out / "records.parquet")
        os.replace(manifest_part, self.out / "manifest.json")
        self.journal.unlink()
        return manifest

    def _manifest(self, index: pd.DataFrame) -> dict:
        import scipy
        import wfdb

        rows = index.iloc[[skip[0] for skip in self.skips]]
        skips = [
            {"record_id": row.record_id, "path": row.path, "reason": reason, "detail": detail}
            for row, (_, reason, detail) in zip(rows.itertuples(), self.skips, strict=True)
        ]
        reasons = Counter(skip["reason"] for skip in skips)
        if not self.records:
            first = skips[0]
            why = f"{dict(reasons)}; the first: {first['path']}: {first['reason']} ({first['detail']})"
            raise StoreError(f"{self.out}: none of {len(index)} records of {self.job['dataset']} can be used: {why}")
        counts = {
            "found": len(index),
            "packed": len(self.records),
            "skipped": len(skips),
            "skipped_by_reason": dict(sorted(reasons.items())),
            "interpolated_samples": sum(record[2] for record in self.records),
            "interpolated_records": sum(record[2] > 0 for record in self.records),
        }
        versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
        versions |= {"pandas": pd.__version__, "wfdb": wfdb.__version__}
        counts["index_warnings"] = index.attrs.get("warnings", {})
        return {**self.job, "counts": counts, "bytes": {}, "sha256": {}, "skips": skips, "versions": versions}


def _write_records(index: pd.DataFrame, records: list, fs_hz: float, path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    position, n_samples, n_interpolated = np.array(records, np.int64).T
    table = index.iloc[position][list(INDEX_COLUMNS)].reset_index(drop=True)
    table["labels"] = [list(labels) for labels in table["labels"]]
    size = len(LEADS) * n_samples
    table["offset"], table["n_samples"], table["fs_hz"] = np.cumsum(size) - size, n_samples, fs_hz
    table["n_interpolated"] = n_interpolated
    types = dict.fromkeys(("record_id", "patient_id", "path", "report", "sex"), pa.string())
    types |= {"labels": pa.list_(pa.string()), "age": pa.float64(), "fs_hz": pa.float64()}
    schema = pa.schema([(column, types.get(column, pa.int64())) for column in table.columns])
    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), path)


def _npy_header(n_values: int) -> bytes:
    """Header of a 1-D little-endian int16 .npy file (format 1.0), padded to HEADER_BYTES."""
    text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({n_values},), }}".ljust(HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file):
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _disk_errors(out: Path):
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        free_gb = shutil.disk_usage(out).free / 1e9
        message = (
            f"{out}: no room to write ({error.strerror}; {free_gb:.1f} GB free); make room and run again to continue"
        )
        raise StoreError(message) from error


# --- reading ----------------------------------------------------------------------------------------------------------


class EcgStore:
    """A finished store. Cheap to open and to pickle: files are opened on first use, in each data-loader worker anew."""

    def __init__(self, path: Path):
        self.path = Path(path)
        if not (self.path / "manifest.json").exists():
            raise StoreError(f"{self.path}: no manifest.json, so no finished store; run the package's prep to pack it")
        self.manifest = json.loads((self.path / "manifest.json").read_text())
        if self.manifest["format_version"] != FORMAT_VERSION:
            found = self.manifest["format_version"]
            raise StoreError(f"{self.path}: store format {found}, this code reads {FORMAT_VERSION}; pack it again")
        for name, expected in self.manifest["bytes"].items():
            file = self.path / name
            found = file.stat().st_size if file.exists() else 0
            if found != expected:
                raise StoreError(f"{file}: {found} bytes instead of {expected}: damaged; pack it again")

    def __len__(self) -> int:
        return self.manifest["counts"]["packed"]

    def __getstate__(self):
        return {"path": self.path, "manifest": self.manifest}

    @cached_property
    def records(self) -> pd.DataFrame:
        """INDEX_COLUMNS + offset (values into signals.npy), n_samples, fs_hz, n_interpolated; row i = signal i."""
        records = pd.read_parquet(self.path / "records.parquet")
        records["labels"] = records["labels"].map(list)
        return records

    @cached_property
    def _extents(self) -> tuple[np.ndarray, np.ndarray]:
        """offset, n_samples [n_records], without reading the texts."""
        table = pd.read_parquet(self.path / "records.parquet", columns=["offset", "n_samples"])
        return table["offset"].to_numpy(), table["n_samples"].to_numpy()

    @cached_property
    def _signals(self) -> np.ndarray:
        return np.load(self.path / "signals.npy", mmap_mode="r", allow_pickle=False)

    def _microvolts(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: record {i} of {len(self)}")
        offset, n_samples = self._extents[0][i], self._extents[1][i]
        return self._signals[offset : offset + len(LEADS) * n_samples].reshape(len(LEADS), n_samples)

    def signal_mv(self, i: int) -> np.ndarray:
        """Record i as float32 [12, n_samples] in mV."""
        return np.multiply(self._microvolts(i), np.float32(1 / UNITS_PER_MV), dtype=np.float32)

    def batch_mv(self, indices) -> np.ndarray:
        """Records of one common length as float32 [B, 12, n_samples] in mV; ValueError naming the lengths otherwise."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = np.unique(self._extents[1][indices])
        if len(lengths) != 1:
            raise ValueError(f"{self.path}: a batch needs records of one length, got lengths {lengths.tolist()}")
        batch = np.empty((len(indices), len(LEADS), lengths[0]), np.float32)
        for row, i in enumerate(indices):
            np.multiply(self._microvolts(i), np.float32(1 / UNITS_PER_MV), out=batch[row])
        return batch

    def verify(self):
        """Hash both files against the manifest; StoreError naming the file that differs."""
        for name, expected in self.manifest["sha256"].items():
            if _sha256(self.path / name) != expected:
                raise StoreError(f"{self.path / name}: SHA-256 differs from the manifest: damaged; pack it again")
