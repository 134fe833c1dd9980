"""Packed store: a tree of WFDB files turned into one memory-mapped array for random access (`prep` of every package).

A store is a folder of three files:

    signals.npy      1-D int16, 1 µV per unit, record after record, each [12, n_samples] row-major, leads as in LEADS
    records.parquet  one row per record: INDEX_COLUMNS + offset (values into signals.npy), n_samples, fs_hz,
                     n_interpolated
    manifest.json    counts, every skipped record with its reason, sizes, SHA-256, versions; written last, so it marks
                     the store as finished

1 µV resolves every supported release (1 µV for PTB-XL, CPSC2018 and CSN, 5 µV for MIMIC-IV-ECG), so without resampling
the store is lossless; a record outside ±32.767 mV is a listed skip. Packing decodes on all cores and appends in index
order, so the bytes depend neither on the number of workers nor on interruptions (`shared/store.py`).
"""

import hashlib
import inspect
import json
import os
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.decode import UNITS_PER_MV, decoded_chunks
from shared.ecg.record import INDEX_COLUMNS, LEADS
from shared.locks import locked
from shared.store import FORMAT_VERSION, Partial, Store, StoreError, disk_errors, finished, progress_of

COPY_BYTES = 1 << 20


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
    with locked(out / ".lock"), disk_errors(out):
        manifest = finished(out, job)
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


def _pack(index: pd.DataFrame, root: Path, out: Path, job: dict, workers: int) -> dict:
    partial = _Partial(out, job)
    with progress_of(f"packing {job['dataset']}", len(index), partial.n_done) as done:
        for chunk in decoded_chunks(index, root, job, partial.n_done, workers, out):
            partial.append(*chunk)
            done(partial.n_done)
    return partial.finish(index)


# --- the unfinished store ---------------------------------------------------------------------------------------------


class _Partial(Partial):
    """records: [position in the index, n_samples, n_interpolated]."""

    values, table = "signals", "records"

    def __init__(self, out: Path, job: dict):
        super().__init__(out, job)
        for chunk in out.glob("chunk-*.part"):  # in flight when an earlier run was killed
            chunk.unlink()

    def shape(self) -> tuple[int, ...]:
        return (len(LEADS) * sum(n_samples for _, n_samples, _ in self.records),)

    def append(self, file: Path, records: list, skips: list):
        with open(file, "rb") as samples:
            shutil.copyfileobj(samples, self.values_file, COPY_BYTES)
        file.unlink()
        self.vouch(records, skips)

    def skipped(self, row) -> dict:
        return {"record_id": row.record_id}

    def facts(self, index: pd.DataFrame) -> tuple[dict, dict]:
        import scipy
        import wfdb

        counts = {
            "interpolated_samples": sum(record[2] for record in self.records),
            "interpolated_records": sum(record[2] > 0 for record in self.records),
            "index_warnings": index.attrs.get("warnings", {}),
        }
        return counts, {"scipy": scipy.__version__, "wfdb": wfdb.__version__}

    def write_table(self, index: pd.DataFrame, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        position, n_samples, n_interpolated = np.array(self.records, np.int64).T
        table = index.iloc[position][list(INDEX_COLUMNS)].reset_index(drop=True)
        table["labels"] = [list(labels) for labels in table["labels"]]
        size = len(LEADS) * n_samples
        table["offset"], table["n_samples"], table["fs_hz"] = np.cumsum(size) - size, n_samples, self.job["fs_hz"]
        table["n_interpolated"] = n_interpolated
        types = dict.fromkeys(("record_id", "patient_id", "path", "report", "sex"), pa.string())
        types |= {"labels": pa.list_(pa.string()), "age": pa.float64(), "fs_hz": pa.float64()}
        schema = pa.schema([(column, types.get(column, pa.int64())) for column in table.columns])
        pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), path)


# --- reading ----------------------------------------------------------------------------------------------------------


class EcgStore(Store):
    """A finished store of ECGs."""

    values = "signals"

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

    def _microvolts(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: record {i} of {len(self)}")
        offset, n_samples = self._extents[0][i], self._extents[1][i]
        return self._values[offset : offset + len(LEADS) * n_samples].reshape(len(LEADS), n_samples)

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
