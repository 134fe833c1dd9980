"""One process at a time: several processes of one run ask for the same prepared data. And what a killed one leaves."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made where it is absent; the file stays."""
    with Path(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
