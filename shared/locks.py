"""One process at a time: several processes of one run ask for the same prepared data. And what a killed one leaves."""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_HELD: set = set()  # lock files of this process


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made where it is absent; the file stays. A worker that is forked meanwhile does
    not hold it, and ends with this process: after a kill -9 of it the lock is free and nobody else writes."""
    with Path(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _HELD.add(lock)
        try:
            yield
        finally:
            _HELD.discard(lock)


def _in_a_forked_worker() -> None:
    def end_with(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if _HELD:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    for lock in _HELD:
        os.close(lock.fileno())
    _HELD.clear()


os.register_at_fork(after_in_child=_in_a_forked_worker)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: a kill leaves no half of it, and a reader meanwhile sees the old one."""
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")  # threads and machines may write it at once
    partial.write_text(text)
    partial.replace(path)


def entries(path: Path, read: Callable[[dict], T], what: str) -> list[T]:
    """`read` of every line of a file of JSON lines that grows; [] where there is none. A last line that a kill cut is
    cut off, so that the next one starts clean. Raises ValueError that names the line that is no `what`."""
    if not Path(path).exists():
        return []
    text = Path(path).read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    found = []
    for number, line in enumerate(text[:whole].splitlines(), 1):
        try:
            found.append(read(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a {what} ({error}); delete the line") from error
    return found
