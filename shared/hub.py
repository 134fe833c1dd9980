"""Data sets on the Hugging Face hub: which files, with which checksums, under whose token. Serves CT-RATE and BIMCV-R.

The list of files of a split is asked for once and kept in the data set's folder (`.hub-<split>.tsv`, see
shared/lists.py), so that a download continues, also with another split, on the commit on which it began. Large files
have a SHA-256 on the hub, small ones the id of their git blob.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from shared import lists
from shared.fetch import DownloadError
from shared.releases import Release

ENDPOINT = constants.ENDPOINT


def files(release: Release, root: Path, split: str, endpoint: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """(commit, {path: (checksum, bytes)}) of a split ("" = all of them), from the list in `root` or from the hub.

    endpoint: address of the hub. Raises DownloadError: no such split, no access, no answer.
    """
    folders = [*release.folders, *(folder for name in _splits(release, split) for folder in release.splits[name])]
    path = root / f".hub-{split or 'all'}.tsv"
    commit = _access(release, endpoint, lists.known(root)[0])
    if not path.exists():
        lists.write(path, commit, _ask(release, folders, commit, endpoint))
    return lists.read(path)


def folder_url(release: Release, commit: str, endpoint: str) -> str:
    """Address below which the files of a commit lie."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(release.hub, "x", repo_type="dataset", revision=commit, endpoint=endpoint).removesuffix("x")


def headers() -> dict[str, str]:
    """What identifies the user: the token of `hf auth login` or HF_TOKEN, where there is one."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers()


def _splits(release: Release, split: str) -> list[str]:
    if split and split not in release.splits:
        choices = ", ".join(release.splits) or "none: it is fetched as a whole"
        raise DownloadError(f"{release.name}: no split {split!r}; splits: {choices}")
    return [split] if split else list(release.splits)


def _access(release: Release, endpoint: str, commit: str) -> str:
    """The commit to fetch (`commit`, or the newest where that is ""), once the hub lets the user read files."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    with _explained(release):
        api.auth_check(release.hub, repo_type="dataset")
        return commit or api.dataset_info(release.hub).sha


def _ask(release: Release, folders: list[str], commit: str, endpoint: str) -> dict[str, tuple[str, int]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, found = HfApi(endpoint=endpoint), {}
    with _explained(release):
        for folder in folders:
            tree = api.list_repo_tree(release.hub, folder or None, recursive=True, revision=commit, repo_type="dataset")
            for entry in tree:
                if isinstance(entry, RepoFile):
                    found[entry.path] = (entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size)
    return found


@contextmanager
def _explained(release: Release) -> Iterator[None]:
    """Turns the hub's errors into a DownloadError that says what to do."""
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, RepositoryNotFoundError

    try:
        yield
    except (HTTPError, OSError, EntryNotFoundError) as error:
        name, page = release.name, release.base_url
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):  # gated ones are among them
            why = f"accept the terms on {page}, then `hf auth login`, or set HF_TOKEN to a token that may read"
            raise DownloadError(f"{name}: the hub refuses this user; {why}") from error
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(f"{name}: the hub does not answer as expected: {line}; see {page}") from error
