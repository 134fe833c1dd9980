"""What packed stores share: one memory-mapped int16 array, a table and a manifest, made so that a kill loses nothing.

Until the manifest appears, values grow in `<values>.npy.part` and `journal.jsonl` gets one line per finished chunk; the
next run continues after the last journaled one. `shared/ecg/store.py` and `shared/ct/store.py` say what is in them.
"""

import errno
import json
import os
import platform
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from shared.locks import sha256_of

FORMAT_VERSION = 1
HEADER_BYTES = 128  # fixed, so that the shape can be filled in when it is known
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNNUMBERED = re.compile(  # what numpy, torch and safetensors say, whose errors have no number
    rf"\d+ requested and \d+ written|inline_container.*unexpected pos|PytorchStreamWriter failed writing"
    rf"|\(os error ({'|'.join(map(str, DISK_ERRORS))})\)"
)


class ReadError(ValueError):
    """What cannot be used as it is. `reason` is a short key that counts in a manifest's list of skips."""

    def __init__(self, path, reason: str, detail: str = ""):
        self.path, self.reason, self.detail = str(path), reason, detail
        super().__init__(f"{path}: {reason}" + (f" ({detail})" if detail else ""))

    def __reduce__(self):  # three arguments, one message: worker processes hand errors on by pickling them
        return type(self), (self.path, self.reason, self.detail)


class StoreError(RuntimeError):
    """A store that cannot be written or read as it is; the message names the file and the fix."""


def npy_header(*shape: int) -> bytes:
    """Header of a little-endian int16 .npy file (format 1.0), padded to HEADER_BYTES."""
    text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def sync(file):
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def disk_errors(out: Path):
    """A full disk, whichever library meets it, becomes a StoreError of one line that names the folder."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in DISK_ERRORS and not UNNUMBERED.search(str(error)):
            raise
        existing = next(p for p in (Path(out), *Path(out).absolute().parents) if p.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        why = f"no room to write ({said}; {free_gb:.1f} GB free); make room and run again to continue"
        raise StoreError(f"{out}: {why}") from error


@contextmanager
def progress_of(title: str, total: int, completed: int) -> Iterator:
    """Yields a function to be called with the number that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, completed=completed)
        yield lambda n: progress.update(task, completed=n)


def finished(out: Path, job: dict) -> dict | None:
    """The manifest of a finished pack of the same job, else None."""
    try:
        manifest = json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = all(manifest.get(key) == value for key, value in job.items())
    whole = same and all((out / f).exists() and (out / f).stat().st_size == n for f, n in manifest["bytes"].items())
    return manifest if whole else None


class Partial(ABC):
    """An unfinished pack. records: one list per packed item, skips: [position, reason, detail]; both begin with the
    position in the index. values, table: names of the files without their endings."""

    values: str
    table: str

    def __init__(self, out: Path, job: dict):
        self.out, self.job = out, job
        self.part, self.journal = out / f"{self.values}.npy.part", out / "journal.jsonl"
        self.records: list[list] = []
        self.skips: list[list] = []
        if not self._resume():
            self._restart()
        self.values_file, self.journal_file = open(self.part, "ab"), open(self.journal, "ab")

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the array that holds the values of `records`."""

    @abstractmethod
    def write_table(self, index: pd.DataFrame, path: Path): ...

    @abstractmethod
    def skipped(self, row) -> dict:
        """What names a skipped row of the index in the manifest."""

    @abstractmethod
    def facts(self, index: pd.DataFrame) -> tuple[dict, dict]:
        """(further counts, further versions) of the manifest."""

    @property
    def n_done(self) -> int:
        return len(self.records) + len(self.skips)

    def _end(self) -> int:
        """Bytes of the values file up to the last of `records`."""
        return HEADER_BYTES + 2 * int(np.prod(self.shape()))

    def _resume(self) -> bool:
        """Take up the journal of the same job; False where there is none or its values are gone."""
        if not self.journal.exists():
            return False
        lines, kept_bytes = [], 0
        for line in self.journal.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):  # torn: killed while writing it
                break
            lines.append(entry)
            kept_bytes += len(line)
        if not lines or lines[0] != self.job:
            return False
        values = self.out / f"{self.values}.npy"
        if not self.part.exists() and values.exists():  # killed between rename and manifest
            os.replace(values, self.part)
        for line in lines[1:]:
            self.records += line["records"]
            self.skips += line["skips"]
        if not self.part.exists() or self.part.stat().st_size < self._end():
            self.records, self.skips = [], []
            return False
        os.truncate(self.part, self._end())
        os.truncate(self.journal, kept_bytes)
        return True

    def _restart(self):
        for name in ("manifest.json", "journal.jsonl", f"{self.values}.npy", self.part.name, f"{self.table}.parquet"):
            (self.out / name).unlink(missing_ok=True)
        self.part.write_bytes(npy_header(*self.shape()))
        self.journal.write_text(json.dumps(self.job) + "\n")

    def vouch(self, records: list, skips: list):
        """Values first, journal line after they are on disk: a line therefore vouches for what it covers."""
        sync(self.values_file)
        self.records += records
        self.skips += skips
        if self.values_file.tell() != self._end():
            raise StoreError(f"{self.part}: not as long as its {self.table}; is something else writing there?")
        self.journal_file.write(json.dumps({"records": records, "skips": skips}).encode() + b"\n")
        sync(self.journal_file)

    def finish(self, index: pd.DataFrame) -> dict:
        """Fill in the header, hash, and give the files their final names; the manifest comes last."""
        self.values_file.close()
        self.journal_file.close()
        manifest = self._manifest(index)
        with open(self.part, "r+b") as file:
            file.write(npy_header(*self.shape()))
            sync(file)
        table_part, manifest_part = self.out / f"{self.table}.parquet.part", self.out / "manifest.json.part"
        self.write_table(index, table_part)
        for name, path in ((f"{self.values}.npy", self.part), (f"{self.table}.parquet", table_part)):
            manifest["bytes"][name], manifest["sha256"][name] = path.stat().st_size, sha256_of(path)
        with open(manifest_part, "w") as file:
            json.dump(manifest, file, indent=1)
            sync(file)
        os.replace(self.part, self.out / f"{self.values}.npy")
        os.replace(table_part, self.out / f"{self.table}.parquet")
        os.replace(manifest_part, self.out / "manifest.json")
        self.journal.unlink()
        return manifest

    def _manifest(self, index: pd.DataFrame) -> dict:
        rows = index.iloc[[skip[0] for skip in self.skips]]
        skips = [
            self.skipped(row) | {"path": row.path, "reason": reason, "detail": detail}
            for row, (_, reason, detail) in zip(rows.itertuples(), self.skips, strict=True)
        ]
        reasons = dict(sorted(Counter(skip["reason"] for skip in skips).items()))
        if not self.records:
            first = skips[0]
            why = f"{reasons}; the first: {first['path']}: {first['reason']} ({first['detail']})"
            raise StoreError(f"{self.out}: none of {len(index)} {self.table} can be used: {why}")
        counts = {"found": len(index), "packed": len(self.records), "skipped": len(skips), "skipped_by_reason": reasons}
        versions = {"python": platform.python_version(), "numpy": np.__version__, "pandas": pd.__version__}
        more_counts, more_versions = self.facts(index)
        of = {"counts": counts | more_counts, "bytes": {}, "sha256": {}, "skips": skips}
        return {**self.job, **of, "versions": versions | more_versions}


class Store:
    """A finished store. Cheap to open and to pickle: files are opened on first use, in each data-loader worker anew."""

    values: str

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
    def _values(self) -> np.ndarray:
        return np.load(self.path / f"{self.values}.npy", mmap_mode="r", allow_pickle=False)

    def verify(self):
        """Hash both files against the manifest; StoreError naming the file that differs."""
        for name, expected in self.manifest["sha256"].items():
            if sha256_of(self.path / name) != expected:
                raise StoreError(f"{self.path / name}: SHA-256 differs from the manifest: damaged; pack it again")
