"""Verified, resumable downloads of the releases in shared/releases.py into DATA_ROOT, and the check of what lies there.

    python -m shared.download DATASET ... [--split SPLIT] [--base-url URL]   what `make data-<dataset>` runs
    python -m shared.download --check DATASET ... [--verify]   what `make check-data-<paper>` runs; needs no network

Every file is checked against the release's SHA256SUMS.txt (or pinned checksums, or those that the hub lists) before it
gets its final name. A file grows as `NAME.part` and continues there with an HTTP Range request after a cut; a file that
arrives complete but wrong is fetched once more from the start. `.verified.tsv` in the data set's folder remembers what
was verified (checksum, size, time of change), so a second run hashes nothing again. Archives that no checksum is
published for are proven whole by unpacking them; their SHA-256 is remembered there too. Licence, size and citation are
printed before the first byte.
"""

import argparse
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import requests

from shared import archives, github, hub, lists
from shared.fetch import (
    DownloadError,
    fetch,
    git_blob_of,
    is_lfs_pointer,
    is_safe,
    part_of,
    sha256_of,
    size_on_server,
)
from shared.releases import GITHUB, RELEASES, Release

SUMS = "SHA256SUMS.txt"
VERIFIED = ".verified.tsv"
N_CONNECTIONS = 8  # PhysioNet serves each slowly and refuses many more
MAX_BAD_FILES = 10  # files given up; then the whole download is


class _Stopped(Exception):
    """Another thread failed, or the user stopped the download."""


def download(dataset: str, data_root: Path, base_url: str | None = None, split: str = "") -> dict:
    """Fetch and verify the release `dataset` into data_root/dataset.

    base_url: a mirror of the folder that holds SHA256SUMS.txt or the archives, or a host in place of the hub, or of
    GitHub's two (API and files). split: only this part, of a data set on the hub that has parts; "" = all.
    Returns {"files", "fetched", "already", "bytes"}.
    Raises DownloadError naming the files that could not be had; what was fetched stays, and the same call continues.
    """
    release = _release(dataset)
    if release.steps and not release.archives:
        raise DownloadError(f"{by_hand(release, Path(data_root) / release.name)}")
    if split and not release.splits:
        raise DownloadError(f"{dataset}: it has no splits to choose from; leave SPLIT out")
    source = _source(release)
    base_url = (base_url or (source.ENDPOINT if source else release.base_url)).rstrip("/") + "/"
    if not base_url.startswith(("http://", "https://")):
        raise DownloadError(f"base URL {base_url!r} is not http:// or https://")
    root = Path(data_root) / release.name
    print(describe(release, root))
    root.mkdir(parents=True, exist_ok=True)
    if source:
        fetcher = _of_list(release, root, split, base_url.rstrip("/"))
    elif release.archives:
        fetcher = _ArchiveFetcher(release, base_url, root, release.archives)
    else:
        fetcher = _Fetcher(release, base_url, root, release.sha256)
    try:
        return fetcher.run()
    except OSError as error:
        raise DownloadError(f"{error.filename or root}: cannot write: {error.strerror}; fix and run again") from error
    finally:
        fetcher.verified_file.close()


def _source(release: Release) -> ModuleType | None:
    """The module that lists the files of the release; None where the release itself does."""
    return hub if release.hub else github if release.github else None


def _of_list(release: Release, root: Path, split: str, endpoint: str) -> "_Fetcher":
    """The fetcher of a data set on the hub or GitHub, once its files are listed and the disk has room for them."""
    source = _source(release)
    commit, listed = source.files(release, root, split, endpoint)
    absent = sum(size for name, (_, size) in listed.items() if not (root / name).is_file())
    total, free = sum(size for _, size in listed.values()), shutil.disk_usage(root).free
    print(f"  commit    {commit}\n  files     {len(listed):,}, {total / 1e9:,.1f} GB; to fetch {absent / 1e9:,.1f} GB")
    if absent > free:
        advice = "make room" + (", or SPLIT=.." if release.splits else "")
        raise DownloadError(f"{root}: {free / 1e9:,.1f} GB free, {absent / 1e9:,.1f} GB needed; {advice}")
    sums = {name: checksum for name, (checksum, _) in listed.items()}
    return _Fetcher(release, source.folder_url(release, commit, endpoint), root, sums, source.headers())


def describe(release: Release, root: Path) -> str:
    """Licence, size, citation: what a user should know before the first byte."""
    lines = [
        release.title,
        f"  licence   {release.licence}",
        f"  size      {release.size}",
        f"  cite      {release.citation}",
        f"  from      {release.base_url}{release.prefix}",
        f"  to        {root}",
    ]
    if release.mirror:
        lines.append(f"  faster    --base-url {release.mirror} (the same files, verified in the same way)")
    return "\n".join(lines)


def by_hand(release: Release, root: Path) -> str:
    """The steps of a release that this program cannot fetch."""
    steps = "\n".join(f"  {i}. {step}" for i, step in enumerate(release.steps, 1))
    return f"{release.name} is not fetched by this program. What to do:\n{describe(release, root)}\n{steps}"


def read_sums(text: str, release: Release, source: str) -> dict[str, str]:
    """SHA256SUMS.txt -> {local path: checksum} of the files below the release's prefix.

    Raises DownloadError on a line that is not `checksum path` or whose path would leave the data set's folder.
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]?(\S.*)", line.rstrip())
        if match is None:
            raise DownloadError(
                f"{source}, line {number}: not `checksum path`: {line[:100]!r}; delete it and run again"
            )
        path = match[2].removeprefix("./")
        if not is_safe(path):
            raise DownloadError(f"{source}, line {number}: unsafe path {path!r}; nothing was fetched")
        if path.startswith(release.prefix) and path != SUMS:
            sums[path.removeprefix(release.prefix)] = match[1].lower()
    return sums


def _sums_in(path: Path, release: Release) -> dict[str, str]:
    return read_sums(path.read_text(encoding="utf-8", errors="replace"), release, str(path))


def _release(dataset: str) -> Release:
    if dataset not in RELEASES:
        raise DownloadError(f"unknown data set {dataset!r}: choose one of {', '.join(RELEASES)}")
    return RELEASES[dataset]


# --- fetching ---------------------------------------------------------------------------------------------------------


class _Fetcher:
    """One download: a few threads take files from one list, each with its own session."""

    def __init__(self, release: Release, base_url: str, root: Path, sums: dict[str, str], headers: dict | None = None):
        """sums: checksum by path, or link by folder; {} = those of the release's SHA256SUMS.txt. headers: of each."""
        self.release, self.base_url, self.root = release, base_url, root
        self.sums, self.headers = sums, headers or {}
        self.verified = _read_verified(root)
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
                _sums_in(part_of(path), self.release)
                os.replace(part_of(path), path)
        return _sums_in(path, self.release)

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
            if self.verified.get(name) == _stamp(path, checksum):
                return self._done(name, None, "already")
            if self._holds(path, name, checksum):
                return self._done(name, _stamp(path, checksum), "already")
            path.unlink()  # of another version, or damaged: no bad file keeps the final name
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            fetch(session, url, part_of(path), self._count_bytes, self._pause)
            if self._holds(part_of(path), name, checksum):
                os.replace(part_of(path), path)
                return self._done(name, _stamp(path, checksum), "fetched")
            part_of(path).unlink()
        raise DownloadError(f"{name}: wrong checksum twice; the copy at {url} differs from the release; try later")

    def _holds(self, path: Path, name: str, checksum: str) -> bool:
        """Whether `path` is the file `name`. Raises DownloadError where git has only a pointer in its place."""
        if _checksum(path, checksum) != checksum:
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


class _ArchiveFetcher(_Fetcher):
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
                self._done(name, _stamp(archive, sha256_of(archive)), "fetched")
                images.parent.mkdir(exist_ok=True)
                os.replace(part_of(self.root / name), images)
                return archive.unlink()
        raise DownloadError(f"{name}.tar.gz: damaged twice ({damage}), from {self.base_url}{link}; try later")


def _checksum(path: Path, like: str) -> str:
    """Checksum of a file, of the kind of `like`: SHA-256, or a git blob id, which is shorter."""
    return sha256_of(path) if len(like) == 64 else git_blob_of(path)


def _stamp(path: Path, checksum: str) -> str:
    status = path.stat()
    return f"{checksum}\t{status.st_size}\t{status.st_mtime_ns}"


def _read_verified(root: Path) -> dict[str, str]:
    """{path: stamp} of files verified before; a torn last line is left out."""
    try:
        lines = (root / VERIFIED).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return {}
    fields = [line.rsplit("\t", 1) for line in lines]
    return {field[1]: field[0] for field in fields if len(field) == 2}


# --- checking ---------------------------------------------------------------------------------------------------------


def check(dataset: str, data_root: Path, verify: bool = False) -> dict:
    """What lies in data_root/dataset, against the release; reads only, without network.

    verify: hash every file (minutes to hours) instead of trusting what was verified when it was fetched.
    Returns expected and found counts, checksum state, the first missing and wrong files with where to get them.
    """
    release = _release(dataset)
    root = Path(data_root) / release.name
    present = _walk(root)
    sums, state, urls, expected = release.sha256, "", {}, release.n_files
    url, verified, source = release.base_url + release.prefix, _read_verified(root), _source(release)
    if source:
        commit, listed = lists.known(root)
        sums = {name: checksum for name, (checksum, _) in listed.items()}
        url = source.folder_url(release, commit, source.ENDPOINT) + release.prefix
        state = "" if sums else "no list of its files here; "
        if sums and release.github:  # the whole of it, of whatever commit was fetched
            expected = sum(name.endswith(release.suffix) for name in sums)
    elif release.archives:
        absent = [name for name in release.archives if name not in verified or not (root / name / "images").is_dir()]
        state = f"{len(release.archives) - len(absent)} of {len(release.archives)} archives read to their ends; "
        urls = {f"{name}.tar.gz": url + release.archives[name] for name in absent[:5]}
    elif not sums and SUMS in present:
        sums = _sums_in(root / SUMS, release)
        state = "" if sums else f"{SUMS} lists no file of this data set; "
    elif not sums and not release.steps:
        state, urls = f"no {SUMS} here; ", {SUMS: release.base_url + SUMS}
    missing = [name for name in sums if name not in present]
    urls |= {name: url + quote(name) for name in missing[:5]}
    known, wrong = 0, []
    for name, checksum in sums.items():
        if name in present and verify and _checksum(root / name, checksum) != checksum:
            wrong.append(name)
        elif name in present and (verify or verified.get(name) == _stamp(root / name, checksum)):
            known += 1
    found = sum(name.endswith(release.suffix) for name in present)
    if sums:
        state += f"{known:,} of {len(sums):,} listed files verified, {len(missing):,} missing, {len(wrong):,} wrong"
        state += "" if verify or known else " (add --verify to hash what is here)"
    else:
        state += f"nothing can be verified, {release.suffix} files are counted only"
    return {
        "dataset": dataset,
        "root": str(root),
        "expected": expected,
        "found": found,
        "suffix": release.suffix,
        "listed": len(sums),
        "verified": known,
        "missing": len(missing),
        "wrong": wrong,
        "first_missing": [{"path": name, "url": url} for name, url in urls.items()],
        "complete": found >= expected and not missing and not wrong,
        "state": state,
        "url": release.base_url + release.prefix,
        "licence": release.licence,
        "size": release.size,
        "get": f"make data-{dataset}" + (f" [SPLIT={'|'.join(release.splits)}]" if release.splits else ""),
    }


def _walk(root: Path) -> set[str]:
    """Paths of all files below root, relative, with forward slashes."""
    found = set()
    for folder, _, files in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix()
        found.update(name if prefix == "." else f"{prefix}/{name}" for name in files)
    return found


def report(result: dict) -> str:
    """The result of check() as lines for a person."""
    status = "complete" if result["complete"] else "INCOMPLETE" if result["found"] else "ABSENT"
    lines = [
        f"{result['dataset']}: {status}: {result['found']:,} of {result['expected']:,} {result['suffix']} files",
        f"  in        {result['root']}",
        f"  checksums {result['state']}",
    ]
    lines += [f"  wrong     {name}" for name in result["wrong"][:5]]
    lines += [f"  missing   {item['path']} from {item['url']}" for item in result["first_missing"]]
    if not result["complete"]:
        lines += [f"  get       {result['get']} ({result['size']}) from {result['url']}"]
    return "\n".join([*lines, f"  licence   {result['licence']}"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shared.download", description="Fetch or check data sets.")
    parser.add_argument("dataset", nargs="+", choices=list(RELEASES))
    parser.add_argument("--split", default="", help="only this split, of a data set on the hub")
    parser.add_argument("--base-url", help="mirror of the folder that is fetched, or a host for the hub or GitHub")
    parser.add_argument("--check", action="store_true", help="only say what is there; no network")
    parser.add_argument("--verify", action="store_true", help="with --check: hash every file")
    options = parser.parse_args(arguments)
    data_root = Path(os.environ.get("DATA_ROOT", "data/official"))
    for dataset in options.dataset:
        try:
            if options.check:
                print(report(check(dataset, data_root, options.verify)))
                continue
            counts = download(dataset, data_root, options.base_url, options.split)
            if RELEASES[dataset].archives:
                print(report(check(dataset, data_root)))
            else:
                print(f"  done      {counts['files']:,} files verified, {counts['fetched']:,} of them fetched now")
            for step in RELEASES[dataset].steps:
                print(f"  by hand   {step}")
        except DownloadError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; the same command continues", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
