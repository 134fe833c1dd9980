"""One file over HTTP, resumed after a cut: what shared/download.py builds on. Serves `make data-<dataset>`."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import requests

MAX_FAILURES = 6  # attempts in a row that bring no new byte of a file; then it is given up
TIMEOUT_S = (20, 60)  # connect, silence
BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
BLOCK_BYTES = 1 << 12  # a block that a cut leaves incomplete is lost, so blocks are small
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(RuntimeError):
    """A download that did not succeed; the message names the file, the reason and what to do."""


class Interrupted(Exception):
    """An attempt that may succeed when repeated, not before `wait_s` seconds."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        self.wait_s = wait_s
        super().__init__(reason)


def part_of(path: Path) -> Path:
    """Where the file `path` grows until it is verified."""
    return path.with_name(path.name + ".part")


def git_blob_of(path: Path) -> str:
    """Id that git gives the file's content: the checksum of small files on the Hugging Face hub."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file only says which file Git LFS keeps elsewhere: what git itself, and its checksum, is about."""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def is_safe(path: str) -> bool:
    """Whether a path of a release stays inside the folder it is fetched to, on any system."""
    parts = PurePosixPath(path).parts
    odd = "\\" in path or ":" in path or any(ord(character) < 32 for character in path)
    return bool(parts) and not (odd or path.startswith("/") or ".." in parts or path.endswith("/"))


def size_on_server(session: requests.Session, url: str) -> int | None:
    """Content-Length of url in bytes; None where the server does not say or cannot be reached."""
    try:
        response = session.head(url, allow_redirects=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})
    except requests.RequestException:
        return None
    length = response.headers.get("Content-Length", "")
    return int(length) if response.status_code == 200 and length.isdigit() else None


def fetch(
    session: requests.Session, url: str, part: Path, count: Callable[[int], None], pause: Callable[[float], None]
):
    """Bring the file `part` to the length that the server states, continuing what is there.

    count(n_bytes) is called for each block, pause(seconds) between attempts; either may raise to stop.
    Raises DownloadError: refused (404 ...), or MAX_FAILURES attempts in a row without a new byte; OSError of the disk.
    """
    failures, most = 0, _size(part)
    while True:
        try:
            return _attempt(session, url, part, count)
        except Interrupted as error:
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= MAX_FAILURES:
                raise DownloadError(f"{url}: {error}; {failures} attempts without progress; run again later") from error
            pause(min(MAX_BACKOFF_S, max(error.wait_s, BACKOFF_S * 2 ** max(0, failures - 1))))


def _attempt(session: requests.Session, url: str, part: Path, count: Callable[[int], None]):
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # nothing left to send: complete, or longer than the file; the hash decides
                return
            _check_status(response, url)
            first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            resumed = response.status_code == 206
            if resumed and (first is None or int(first[1]) != have):
                part.unlink(missing_ok=True)
                raise Interrupted("the server sent another range than asked for")
            length, received = response.headers.get("Content-Length", ""), 0
            with open(part, "ab" if resumed else "wb") as file:  # 200 = the server ignores Range: from the start
                for block in response.iter_content(BLOCK_BYTES):
                    file.write(block)
                    received += len(block)
                    count(len(block))
            if length.isdigit() and received < int(length):
                raise Interrupted(f"connection cut after {received} of {length} bytes")
    except requests.RequestException as error:
        raise Interrupted(f"{type(error).__name__}: {error}") from error


def _check_status(response: requests.Response, url: str):
    if response.status_code in RETRY_STATUS:
        wait_s = response.headers.get("Retry-After", "")
        raise Interrupted(f"HTTP {response.status_code}", float(wait_s) if wait_s.isdigit() else 0.0)
    if response.status_code not in (200, 206):
        raise DownloadError(f"{url}: HTTP {response.status_code} {response.reason}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
