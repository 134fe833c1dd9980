"""The fetching of a release, file by file in a few threads; see shared/download.py for what is promised."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import quote

import requests

from shared import archives
from shared.fetch import (
    DownloadError,
    fetch,
    git_blob_of,
    is_lfs_pointer,
    is_safe,
    part_of,
    size_on_server,
)
from shared.locks import sha256_of
from shared.releases import GITHUB, Release

SUMS = "SHA256SUMS.txt"
VERIFIED = ".verified.tsv"
N_CONNECTIONS = 8  # PhysioNet serves each slowly and refuses many more
MAX_BAD_FILES = 10  # files given up; then the whole download is


class _Stopped(Exception):
    """Another thread failed, or the user stopped the download."""


class Fetcher:
    """One download: a few threads take files from one list, each with its own session."""

    def __init__(self, release: Release, base_url: str, root: Path, sums: dict[str, str], headers: dict | None = None):
        """sums: checksum by path, or link by folder; {} = those of the release's SHA256SUMS.txt. headers: of each."""
        self.release, self.base_url, self.root = release, base_url, root
        self.sums, self.headers = sums, headers or {}
        self.verified = read_verified(root)
        self.verified_file = open(root / VERIFIED, "a", encoding="utf-8")
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.failures: list[str] = []
        self.counts = {"files": 0, "fetched": 0, "already": 0, "bytes": 0}

    def run(self) -> dict:
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        sums = self.sums or self._fetch_sums()
        if not sums:
            raise DownloadError(f"{self.base_url}{SUMS} lists no file below {self.release.prefix or '/'}")
        self.counts["files"] = len(sums)
        columns = (
            *Progress.get_default_columns(),
            TextColumn("{task.completed}/{task.total} files, {task.fields[mb]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(self.release.name, total=len(sums), mb="")
            files = iter(sums.items())

            def advance():
                progress.update(task, advance=1, mb=f"{self.counts['bytes'] / 1e6:,.0f} MB")

            with ThreadPoolExecutor(N_CONNECTIONS) as pool:
                try:
                    workers = [pool.submit(self._work, files, advance) for _ in range(N_CONNECTIONS)]
                    wait(workers)
                finally:  # Ctrl-C: let the threads end at their next block
                    self.stop.set()
                for worker in workers:
                    worker.result()
        if self.failures:
            more = "; given up" if len(self.failures) >= MAX_BAD_FILES else ""
            listed = "\n  ".join(self.failures)
            raise DownloadError(f"{self.release.name}: {len(self.failures)} files failed{more}:\n  {listed}")
        return self.counts

    def _fetch_sums(self) -> dict[str, str]:
        """The release's SHA256SUMS.txt, fetched unless a copy of the same size lies there (180 MB for MIMIC)."""
        url, path = self.base_url + SUMS, self.root / SUMS
        with requests.Session() as session:
            if not path.exists() or path.stat().st_size != size_on_server(session, url):
                part_of(path).unlink(missing_ok=True)  # no checksum vouches for it, so it is never continued
                fetch(session, url, part_of(path), self._count_bytes, self._pause)
                sums_in(part_of(path), self.release)
                os.replace(part_of(path), path)
        return sums_in(path, self.release)

    def _work(self, files: Iterator[tuple[str, str]], advance: Callable[[], None]):
        with requests.Session() as session:
            session.headers.update(self.headers)
            while not self.stop.is_set():
                with self.lock:
                    name, sha256 = next(files, (None, None))
                if name is None:
                    return
                try:
                    self._provide(session, name, sha256)
                except _Stopped:
                    return
                except DownloadError as error:
                    with self.lock:
                        self.failures.append(str(error))
                        if len(self.failures) >= MAX_BAD_FILES:
                            self.stop.set()
                except BaseException:
                    self.stop.set()
                    raise
                advance()

    def _provide(self, session: requests.Session, name: str, checksum: str):
        """Make root/name the file with this checksum: known, hashed now, or fetched (at most twice)."""
        path, url = self.root / name, self.base_url + quote(self.release.prefix + name)
        if path.is_file():
            if self.verified.get(name) == stamp_of(path, checksum):
                return self._done(name, None, "already")
            if self._holds(path, name, checksum):
                return self._done(name, stamp_of(path, checksum), "already")
            path.unlink()  # of another version, or damaged: no bad file keeps the final name
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            fetch(session, url, part_of(path), self._count_bytes, self._pause)
            if self._holds(part_of(path), name, checksum):
                os.replace(part_of(path), path)
                return self._done(name, stamp_of(path, checksum), "fetched")
            part_of(path).unlink()
        raise DownloadError(f"{name}: wrong checksum twice; the copy at {url} differs from the release; try later")

    def _holds(self, path: Path, name: str, checksum: str) -> bool:
        """Whether `path` is the file `name`. Raises DownloadError where git has only a pointer in its place."""
        if checksum_of(path, checksum) != checksum:
            return False
        if is_lfs_pointer(path):
            path.unlink()
            advice = f"clone {GITHUB}{self.release.github} with `git lfs` by hand and take its files instead"
            raise DownloadError(f"{name}: a pointer of Git LFS, which this program cannot follow; {advice}")
        return True

    def _done(self, name: str, stamp: str | None, count: str):
        with self.lock:
            self.counts[count] += 1
            if stamp is not None:
                self.verified_file.write(f"{stamp}\t{name}\n")
                self.verified_file.flush()

    def _count_bytes(self, n_bytes: int):
        with self.lock:
            self.counts["bytes"] += n_bytes
        if self.stop.is_set():
            raise _Stopped

    def _pause(self, seconds: float):
        if self.stop.wait(seconds):
            raise _Stopped


class ArchiveFetcher(Fetcher):
    """Archives for which no checksum is published: root/NAME/images is what one held that could be read to its end."""

    def _provide(self, session: requests.Session, name: str, link: str):
        images, archive = self.root / name / "images", part_of(self.root / f"{name}.tar.gz")
        if name in self.verified and images.is_dir():
            archive.unlink(missing_ok=True)  # left by a run that was killed after the move below
            return self._done(name, None, "already")
        if images.exists():
            raise DownloadError(f"{images}: not unpacked by this program; move it elsewhere and run again")
        for _ in range(2):
            fetch(session, self.base_url + link, archive, self._count_bytes, self._pause)
            try:
                archives.unpack(archive, part_of(self.root / name), self.release.suffix, lambda: self._count_bytes(0))
            except archives.Damaged as error:
                archive.unlink()
                damage = error
            else:  # remembered first: a folder without an entry is somebody else's, an entry without a folder is redone
                self._done(name, stamp_of(archive, sha256_of(archive)), "fetched")
                images.parent.mkdir(exist_ok=True)
                os.replace(part_of(self.root / name), images)
                return archive.unlink()
        raise DownloadError(f"{name}.tar.gz: damaged twice ({damage}), from {self.base_url}{link}; try later")


# --- what was verified, and what should be ---


def checksum_of(path: Path, like: str) -> str:
    """Checksum of a file, of the kind of `like`: SHA-256, or a git blob id, which is shorter."""
    return sha256_of(path) if len(like) == 64 else git_blob_of(path)


def stamp_of(path: Path, checksum: str) -> str:
    status = path.stat()
    return f"{checksum}\t{status.st_size}\t{status.st_mtime_ns}"


def read_verified(root: Path) -> dict[str, str]:
    """{path: stamp} of files verified before; a torn last line is left out."""
    try:
        lines = (root / VERIFIED).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return {}
    fields = [line.rsplit("\t", 1) for line in lines]
    return {field[1]: field[0] for field in fields if len(field) == 2}


def sums_in(file: Path, release: Release) -> dict[str, str]:
    """SHA256SUMS.txt -> {local path: checksum} of the files below the release's prefix.

    Raises DownloadError on a line that is not `checksum path` or whose path would leave the data set's folder.
    """
    sums = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]?(\S.*)", line.rstrip())
        if match is None:
            raise DownloadError(f"{file}, line {number}: not `checksum path`: {line[:100]!r}; delete it and run again")
        path = match[2].removeprefix("./")
        if not is_safe(path):
            raise DownloadError(f"{file}, line {number}: unsafe path {path!r}; nothing was fetched")
        if path.startswith(release.prefix) and path != SUMS:
            sums[path.removeprefix(release.prefix)] = match[1].lower()
    return sums
