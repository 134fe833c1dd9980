"""What is done of a long stage, line by line on disk, so that a killed one goes on; and who does what of it.

Under `torchrun` or `accelerate launch` item i belongs to worker i % WORLD_SIZE; all workers read all journals of the
(shared) folder, so each ends with the whole result. Redone items come out the same, so a line may stand twice, and what
some workers left unfinished another number of them ends.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import track

from shared.runs.processes import worker

POLL_S = 0.5


def shows_progress() -> bool:
    """Of several processes the first has a progress bar, where somebody looks at it."""
    return worker()[0] == 0 and os.isatty(2)


class Journal:
    """<folder>/<name>-<worker>.jsonl: a line that says of which settings, then one per item with its number as "item".

    Raises ValueError where the folder holds work of other settings (`identity`: what the result depends on).
    """

    def __init__(self, folder: Path, name: str, identity: dict):
        self.folder, self.name = Path(folder), name
        self.rank, self.world = worker()
        self.path = self.folder / f"{name}-{self.rank}.jsonl"
        self.identity = identity
        self.folder.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self.path)
        if not self.path.exists() or not self.path.stat().st_size:
            self._write([{"identity": self.identity}])
        self._check(self.path)

    def done(self) -> dict[int, dict]:
        """Item -> its line, of all workers."""
        lines = [line for path in sorted(self.folder.glob(f"{self.name}-*.jsonl")) for line in _lines(path)[1:]]
        return {line["item"]: line for line in lines}

    def mine(self, n: int) -> list[int]:
        """Items of this worker, done or not."""
        return list(range(self.rank, n, self.world))

    def shown(self, work: Sequence[int], what: str) -> Iterable[int]:
        """The same work, with a progress bar of the first worker's part on a terminal."""
        return track(work, what, disable=not work or not shows_progress())

    def add(self, entries: list[dict]) -> None:
        self._write(entries)

    def wait(self, n: int) -> list[dict]:
        """The lines of items 0..n-1, once all workers are there."""
        while True:
            found = self.done()
            if all(i in found for i in range(n)):
                return [found[i] for i in range(n)]
            time.sleep(POLL_S)

    def _check(self, path: Path) -> None:
        found = _lines(path)[0].get("identity", {})
        found.pop("workers", None)  # older journals say how many there were
        if found != json.loads(json.dumps(self.identity)):
            raise ValueError(f"{path} holds work of other settings ({found}); remove the folder or give another")

    def _write(self, entries: list[dict]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(entry) + "\n" for entry in entries))


def _drop_cut_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _lines(path: Path) -> list[dict]:
    """Whole lines; another worker may be writing the last one."""
    content = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]
