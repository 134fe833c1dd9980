"""Packed store: CT files, read, oriented, clipped and resampled once, as one memory-mapped int16 array.

A store is a folder of three files (Argus, reference: "Cache"):

    volumes.npy      [n, D, H, W] int16, HU, LPS, all in one geometry
    volumes.parquet  one row per volume: ids, texts, labels and whatever else the index holds, the spacing of the stored
                     grid, shape and spacing of the file
    manifest.json    geometry, counts, every skipped volume with its reason, sizes, SHA-256, versions; written last, so
                     it marks the store as finished

Volumes are prepared in threads (decompression and arithmetic leave the interpreter free) and appended in index order,
so the bytes depend neither on the number of threads nor on interruptions (`shared/store.py`).
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.geometry import Geometry, prepare
from shared.ct.volume import CtReadError
from shared.locks import locked
from shared.store import FORMAT_VERSION, Partial, Store, StoreError, disk_errors, finished, progress_of

CHUNK_BYTES = 64 << 20  # written and journaled together
CHUNK_VOLUMES = 64
# Of the file, not of the stored grid: not kept.
FILE_COLUMNS = ("n_slices", "spacing_mm", "origin_mm", "direction", "slope", "intercept", "blank_header")


def pack(
    index: pd.DataFrame, roots: dict[str, Path], out: Path, geometry: Geometry, workers: int | None = None
) -> dict:
    """Pack the volumes of `index` into the store `out`; returns its manifest.

    index: INDEX_COLUMNS + `source` (a key of LOADERS and of `roots`), any further columns are kept; its order is the
    store's. roots: source -> the data set's own folder. workers: threads (default: all cores).
    Continues an interrupted pack, and returns at once where `out` already holds the same (index, file sizes, geometry).
    Raises StoreError (disk full, nothing usable) and RuntimeError naming the volume for what is not a CtReadError.
    """
    out, index = Path(out), index.reset_index(drop=True)
    if index.empty:
        raise StoreError(f"{out}: the index names no volume")
    if max(map(abs, geometry.clip_hu)) > np.iinfo(np.int16).max:
        raise ValueError(f"geometry: clip_hu {geometry.clip_hu} does not fit int16")
    unknown = sorted(set(index.source) - set(roots))
    if unknown:
        raise ValueError(f"no root for source {unknown[0]!r}; roots has {', '.join(sorted(roots))}")
    job = {"format_version": FORMAT_VERSION, "geometry": json.loads(json.dumps(asdict(geometry)))}
    job["source_sha256"] = _source_sha256(index, roots)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"), disk_errors(out):
        manifest = finished(out, job)
        return manifest if manifest is not None else _pack(index, roots, out, geometry, job, workers or os.cpu_count())


def _pack(index: pd.DataFrame, roots: dict, out: Path, geometry: Geometry, job: dict, workers: int) -> dict:
    partial = _Partial(out, job)
    with progress_of("packing CT volumes", len(index), partial.n_done) as done:
        for result in _prepared(index, roots, geometry, partial.n_done, workers):
            partial.add(*result)
            done(result[0] + 1)
    partial.close_chunk()
    return partial.finish(index)


def _prepared(index: pd.DataFrame, roots: dict, geometry: Geometry, start: int, workers: int) -> Iterator[tuple]:
    """(position, int16 array or None, facts or [reason, detail]) of index[start:], in order, made in threads."""
    from shared.ct import LOADERS

    def one(position: int) -> tuple:
        row = index.iloc[position]
        try:
            volume = LOADERS[row.source].read_volume(Path(roots[row.source]), row)
            ready = prepare(volume, geometry)
        except CtReadError as error:
            return position, None, [error.reason, error.detail]
        except Exception as error:
            raise RuntimeError(f"{row.source}: volume {row.volume_id} ({row.path}): {error!r}") from error
        facts = {
            "spacing_mm": list(ready.spacing_mm),
            "source_shape": list(volume.hu.shape),
            "source_spacing_mm": list(volume.spacing_mm),
            "orientation_from": volume.orientation_from,
        }
        return position, np.rint(ready.hu).astype("<i2"), facts

    positions = range(start, len(index))
    pending: deque = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for position in positions:
                pending.append(pool.submit(one, position))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _source_sha256(index: pd.DataFrame, roots: dict) -> str:
    """Hash of what a pack depends on besides its geometry: index and sizes of files (contents: a full read)."""
    digest = hashlib.sha256()
    for row in index.to_dict("records"):
        try:
            size = os.stat(Path(roots[row["source"]]) / row["path"]).st_size
        except OSError:
            size = -1
        digest.update(json.dumps([row, size], sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


# --- the unfinished store ---------------------------------------------------------------------------------------------


class _Partial(Partial):
    """records: [position in the index, facts]."""

    values, table = "volumes", "volumes"

    def __init__(self, out: Path, job: dict):
        super().__init__(out, job)
        self.chunk: tuple[list, list] = [], []  # records, skips

    def shape(self) -> tuple[int, ...]:
        return len(self.records), *self.job["geometry"]["shape"]

    def add(self, position: int, values: np.ndarray | None, facts):
        records, skips = self.chunk
        if values is None:
            skips.append([position, *facts])
        else:
            self.values_file.write(np.ascontiguousarray(values).data)
            records.append([position, facts])
        full = 2 * len(records) * np.prod(self.job["geometry"]["shape"]) >= CHUNK_BYTES
        if full or len(records) + len(skips) >= CHUNK_VOLUMES:
            self.close_chunk()

    def close_chunk(self):
        if any(self.chunk):
            self.vouch(*self.chunk)
        self.chunk = [], []

    def skipped(self, row) -> dict:
        return {"source": row.source, "volume_id": row.volume_id}

    def facts(self, index: pd.DataFrame) -> tuple[dict, dict]:
        import SimpleITK as sitk

        told = Counter(facts["orientation_from"] for _, facts in self.records)
        return {"orientation_from": dict(sorted(told.items()))}, {"SimpleITK": sitk.Version_VersionString()}

    def write_table(self, index: pd.DataFrame, path: Path):
        positions = [position for position, _ in self.records]
        table = index.iloc[positions].drop(columns=list(FILE_COLUMNS)).reset_index(drop=True)
        table["labels"] = [json.dumps(labels, sort_keys=True) for labels in table["labels"]]
        for name in ("spacing_mm", "source_shape", "source_spacing_mm", "orientation_from"):
            table[name] = [facts[name] for _, facts in self.records]
        table.attrs = {}
        table.to_parquet(path, index=False)


# --- reading ----------------------------------------------------------------------------------------------------------


class CtStore(Store):
    """A finished store of CT volumes."""

    values = "volumes"

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """The index's rows of the packed volumes + spacing_mm, source_shape, source_spacing_mm; row i = volume i."""
        table = pd.read_parquet(self.path / "volumes.parquet")
        table["labels"] = [json.loads(labels) for labels in table["labels"]]
        return table

    def hu(self, i: int) -> np.ndarray:
        """Volume i as int16 [D, H, W] in HU, a read-only view of the file."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: volume {i} of {len(self)}")
        return self._values[i]

    def batch_hu(self, indices) -> np.ndarray:
        """Volumes as float32 [B, D, H, W] in HU."""
        return np.stack([self.hu(int(i)) for i in indices]).astype(np.float32)
