"""The list of a release's files that is kept in its folder, so that a download continues and a check needs no network.

A first line `# commit`, then checksum, bytes and path of each file. Serves shared/hub.py (a list for each split) and
shared/github.py (one list). A checksum is a SHA-256 or, shorter, the id of a git blob.
"""

import os
import re
from pathlib import Path

from shared.fetch import DownloadError, is_safe

NAMES = (".hub-*.tsv", ".github.tsv")
LINE = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\t(\d+)\t(\S.*)")


def known(root: Path) -> tuple[str, dict[str, tuple[str, int]]]:
    """(commit, {path: (checksum, bytes)}) of all lists in `root`; ("", {}) where there is none."""
    commit, found = "", {}
    for path in sorted(path for name in NAMES for path in root.glob(name)):
        commit, listed = read(path)
        found |= listed
    return commit, found


def write(path: Path, commit: str, listed: dict[str, tuple[str, int]]):
    """Keep a list. Raises DownloadError, and keeps nothing, where it is empty or a path would leave the folder."""
    part = path.with_name(path.name + ".part")
    lines = [f"# {commit}", *(f"{checksum}\t{size}\t{name}" for name, (checksum, size) in sorted(listed.items()))]
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read(part)  # refuses unsafe paths before the list gets its name
    os.replace(part, path)


def read(path: Path) -> tuple[str, dict[str, tuple[str, int]]]:
    """(commit, {path: (checksum, bytes)}). Raises DownloadError that names the line."""
    first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    commit, found = first.removeprefix("# "), {}
    for number, line in enumerate(lines, 2):
        match = LINE.fullmatch(line)
        if match is None or not is_safe(match[3]):
            raise DownloadError(f"{path}, line {number}: not `checksum bytes path`: {line[:100]!r}; delete it")
        found[match[3]] = (match[1], int(match[2]))
    if not commit or not found:
        raise DownloadError(f"{path}: lists no file; delete it and run again")
    return commit, found
