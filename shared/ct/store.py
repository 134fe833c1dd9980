"""Packed store: CT files, read, oriented, clipped and resampled once, as one memory-mapped int16 array.

A store is a folder of three files (Argus, reference: "Cache"):

    volumes.npy      [n, D, H, W] int16, HU, LPS, all in one geometry
    volumes.parquet  one row per volume: ids, texts, labels and whatever else the index holds, the spacing of the stored
                     grid, shape and spacing of the file
    manifest.json    geometry, counts, every skipped volume with its reason, sizes, SHA-256, versions; written last, so
                     it marks the store as finished

Volumes are prepared in threads (decompression and arithmetic leave the interpreter free) and appended in index order,
so the bytes depend neither on the number of threads nor on interruptions: until the manifest appears, values grow in
`volumes.npy.part` and `journal.jsonl` gets one line per finished chunk; a run killed at any moment loses the last chunk
and the next run continues after the last journaled one.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ct.geometry import Geometry, prepare
from shared.ct.volume import CtReadError
from shared.locks import locked

FORMAT_VERSION = 1
HEADER_BYTES = 128  # fixed, so that the number of volumes can be filled in when it is known
CHUNK_BYTES = 64 << 20  # written and journaled together
CHUNK_VOLUMES = 64
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of the file, not of the stored grid: not kept.
FILE_COLUMNS = ("n_slices", "spacing_mm", "origin_mm", "direction", "slope", "intercept", "blank_header")


class StoreError(RuntimeError):
    """A store that cannot be written or read as it is; the message names the file and the fix."""


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
    with locked(out / ".lock"), _disk_errors(out):
        manifest = _finished(out, job)
        return manifest if manifest is not None else _pack(index, roots, out, geometry, job, workers or os.cpu_count())


def _pack(index: pd.DataFrame, roots: dict, out: Path, geometry: Geometry, job: dict, workers: int) -> dict:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    partial = _Partial(out, job, geometry.shape)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("packing CT volumes", total=len(index), completed=partial.n_done)
        for result in _prepared(index, roots, geometry, partial.n_done, workers):
            partial.add(*result)
            progress.update(task, advance=1)
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


def _finished(out: Path, job: dict) -> dict | None:
    """The manifest of a finished pack of the same job, else None."""
    try:
        manifest = json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = all(manifest.get(key) == value for key, value in job.items())
    whole = same and all((out / f).exists() and (out / f).stat().st_size == n for f, n in manifest["bytes"].items())
    return manifest if whole else None


# --- the unfinished store ---------------------------------------------------------------------------------------------


class _Partial:
    """An unfinished pack: values in volumes.npy.part, one JSON line per finished chunk in journal.jsonl."""

    def __init__(self, out: Path, job: dict, shape: tuple[int, int, int]):
        self.out, self.job, self.shape = out, job, tuple(shape)
        self.part, self.journal = out / "volumes.npy.part", out / "journal.jsonl"
        self.volume_bytes = 2 * int(np.prod(self.shape))
        self.records: list[list] = []  # [position in the index, facts]
        self.skips: list[list] = []  # [position in the index, reason, detail]
        if not self._resume():
            self._restart()
        self.chunk = {"records": [], "skips": []}
        self.values_file, self.journal_file = open(self.part, "ab"), open(self.journal, "ab")

    @property
    def n_done(self) -> int:
        return len(self.records) + len(self.skips)

    def _resume(self) -> bool:
        """Take up the journal of the same job; False where there is none or its values are gone."""
        if not self.journal.exists():
            return False
        lines, kept_bytes = [], 0
        for line in self.journal.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # torn: killed while writing it
                break
            lines.append(json.loads(line))
            kept_bytes += len(line)
        if not lines or lines[0] != self.job:
            return False
        if not self.part.exists() and (self.out / "volumes.npy").exists():  # killed between rename and manifest
            os.replace(self.out / "volumes.npy", self.part)
        end = HEADER_BYTES + self.volume_bytes * sum(len(line["records"]) for line in lines[1:])
        if not self.part.exists() or self.part.stat().st_size < end:
            return False
        for line in lines[1:]:
            self.records += line["records"]
            self.skips += line["skips"]
        os.truncate(self.part, end)
        os.truncate(self.journal, kept_bytes)
        return True

    def _restart(self):
        for name in ("manifest.json", "journal.jsonl", "volumes.npy", "volumes.npy.part", "volumes.parquet"):
            (self.out / name).unlink(missing_ok=True)
        self.part.write_bytes(_npy_header(0, self.shape))
        self.journal.write_text(json.dumps(self.job) + "\n")

    def add(self, position: int, values: np.ndarray | None, facts):
        if values is None:
            self.chunk["skips"].append([position, *facts])
        else:
            self.values_file.write(np.ascontiguousarray(values).data)
            self.chunk["records"].append([position, facts])
        n_records = len(self.chunk["records"])
        if n_records * self.volume_bytes >= CHUNK_BYTES or n_records + len(self.chunk["skips"]) >= CHUNK_VOLUMES:
            self._close_chunk()

    def _close_chunk(self):
        """Values first, journal line after they are on disk: a line therefore vouches for what it covers."""
        if not self.chunk["records"] and not self.chunk["skips"]:
            return
        _sync(self.values_file)
        self.records += self.chunk["records"]
        self.skips += self.chunk["skips"]
        if self.values_file.tell() != HEADER_BYTES + self.volume_bytes * len(self.records):
            raise StoreError(f"{self.part}: not as long as its volumes; is something else writing there?")
        self.journal_file.write(json.dumps(self.chunk).encode() + b"\n")
        _sync(self.journal_file)
        self.chunk = {"records": [], "skips": []}

    def finish(self, index: pd.DataFrame) -> dict:
        """Fill in the header, hash, and give the files their final names; the manifest comes last."""
        self._close_chunk()
        self.values_file.close()
        self.journal_file.close()
        manifest = self._manifest(index)
        with open(self.part, "r+b") as file:
            file.write(_npy_header(len(self.records), self.shape))
            _sync(file)
        table_part, manifest_part = self.out / "volumes.parquet.part", self.out / "manifest.json.part"
        _write_table(index, self.records, table_part)
        for name, path in (("volumes.npy", self.part), ("volumes.parquet", table_part)):
            manifest["bytes"][name], manifest["sha256"][name] = path.stat().st_size, _sha256(path)
        with open(manifest_part, "w") as file:
            json.dump(manifest, file, indent=1)
            _sync(file)
        os.replace(self.part, self.out / "volumes.npy")
        os.replace(table_part, self.out / "volumes.parquet")
        os.replace(manifest_part, self.out / "manifest.json")
        self.journal.unlink()
        return manifest

    def _manifest(self, index: pd.DataFrame) -> dict:
        import SimpleITK as sitk

        rows = index.iloc[[skip[0] for skip in self.skips]]
        skips = [
            {"source": row.source, "volume_id": row.volume_id, "path": row.path, "reason": reason, "detail": detail}
            for row, (_, reason, detail) in zip(rows.itertuples(), self.skips, strict=True)
        ]
        reasons = Counter(skip["reason"] for skip in skips)
        if not self.records:
            first = skips[0]
            why = f"{dict(reasons)}; the first: {first['path']}: {first['reason']} ({first['detail']})"
            raise StoreError(f"{self.out}: none of {len(index)} volumes can be used: {why}")
        counts = {"found": len(index), "packed": len(self.records), "skipped": len(skips)}
        counts["skipped_by_reason"] = dict(sorted(reasons.items()))
        counts["orientation_from"] = dict(
            sorted(Counter(facts["orientation_from"] for _, facts in self.records).items())
        )
        versions = {"python": platform.python_version(), "numpy": np.__version__, "pandas": pd.__version__}
        versions["SimpleITK"] = sitk.Version_VersionString()
        return {**self.job, "counts": counts, "bytes": {}, "sha256": {}, "skips": skips, "versions": versions}


def _write_table(index: pd.DataFrame, records: list, path: Path):
    positions = [position for position, _ in records]
    table = index.iloc[positions].drop(columns=list(FILE_COLUMNS)).reset_index(drop=True)
    table["labels"] = [json.dumps(labels, sort_keys=True) for labels in table["labels"]]
    for name in ("spacing_mm", "source_shape", "source_spacing_mm", "orientation_from"):
        table[name] = [facts[name] for _, facts in records]
    table.attrs = {}
    table.to_parquet(path, index=False)


def _npy_header(n: int, shape: tuple[int, int, int]) -> bytes:
    """Header of a little-endian int16 .npy file (format 1.0), padded to HEADER_BYTES."""
    text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {(n, *shape)}, }}".ljust(HEADER_BYTES - 11) + "\n"
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
        why = f"no room to write ({error.strerror}; {free_gb:.1f} GB free); make room and run again to continue"
        raise StoreError(f"{out}: {why}") from error


# --- reading ----------------------------------------------------------------------------------------------------------


class CtStore:
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
    def volumes(self) -> pd.DataFrame:
        """The index's rows of the packed volumes + spacing_mm, source_shape, source_spacing_mm; row i = volume i."""
        table = pd.read_parquet(self.path / "volumes.parquet")
        table["labels"] = [json.loads(labels) for labels in table["labels"]]
        return table

    @cached_property
    def _values(self) -> np.ndarray:
        return np.load(self.path / "volumes.npy", mmap_mode="r", allow_pickle=False)

    def hu(self, i: int) -> np.ndarray:
        """Volume i as int16 [D, H, W] in HU, a read-only view of the file."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: volume {i} of {len(self)}")
        return self._values[i]

    def batch_hu(self, indices) -> np.ndarray:
        """Volumes as float32 [B, D, H, W] in HU."""
        return np.stack([self.hu(int(i)) for i in indices]).astype(np.float32)

    def verify(self):
        """Hash both files against the manifest; StoreError naming the file that differs."""
        for name, expected in self.manifest["sha256"].items():
            if _sha256(self.path / name) != expected:
                raise StoreError(f"{self.path / name}: SHA-256 differs from the manifest: damaged; pack it again")
