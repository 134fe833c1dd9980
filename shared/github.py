"""Data sets that lie in a repository on GitHub: which files, with which checksums. Serves COVID Rural and Hannover.

The newest commit of the default branch and its files are asked for once and kept in the data set's folder
(`.github.tsv`, see shared/lists.py); every later call stays on that commit. Each file has the id of its git blob.
"""

from pathlib import Path

import requests

from shared import lists
from shared.fetch import TIMEOUT_S, DownloadError
from shared.releases import Release

API, ENDPOINT = "https://api.github.com", "https://raw.githubusercontent.com"
LIST = ".github.tsv"


def files(release: Release, root: Path, split: str, endpoint: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """(commit, {path below the prefix: (blob id, bytes)}), from the list in `root` or from GitHub.

    endpoint: the host of the files; one other than GitHub's stands for its API too. split: "", a repository has none.
    Raises DownloadError: no answer, a list that is cut short, a folder that is not in the repository.
    """
    if not (root / LIST).exists():
        lists.write(root / LIST, *_ask(release, API if endpoint == ENDPOINT else endpoint))
    return lists.read(root / LIST)


def folder_url(release: Release, commit: str, endpoint: str) -> str:
    """Address below which the files of a commit lie."""
    return f"{endpoint}/{release.github}/{commit}/"


def headers() -> dict[str, str]:
    """None: no user needs to be known."""
    return {}


def _ask(release: Release, api: str) -> tuple[str, dict[str, tuple[str, int]]]:
    repository = f"{api}/repos/{release.github}"
    try:
        commit = _json(f"{repository}/commits/HEAD")["sha"]
        tree = _json(f"{repository}/git/trees/{commit}?recursive=1")
        blobs = {entry["path"]: (entry["sha"], entry["size"]) for entry in tree["tree"] if entry["type"] == "blob"}
        truncated = tree["truncated"]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DownloadError(
            f"{release.name}: {repository} does not answer as expected: {reason}; later again"
        ) from error
    if truncated:
        raise DownloadError(f"{release.name}: GitHub's list of {release.github} is truncated, files would be missing")
    listed = {}
    for folder in release.folders:
        path = release.prefix + folder
        found = {name: blob for name, blob in blobs.items() if name == path or name.startswith(path + "/")}
        if not found:
            raise DownloadError(f"{release.name}: commit {commit} of {release.github} has no {path}")
        listed |= {name.removeprefix(release.prefix): blob for name, blob in found.items()}
    return commit, listed


def _json(url: str):
    response = requests.get(url, timeout=TIMEOUT_S)
    response.raise_for_status()  # 403: GitHub answers each address 60 times an hour
    return response.json()
