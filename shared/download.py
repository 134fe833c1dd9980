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
import shutil
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from shared import github, hub, lists
from shared.fetch import DownloadError
from shared.fetchers import SUMS, ArchiveFetcher, Fetcher, checksum_of, read_verified, stamp_of, sums_in
from shared.releases import RELEASES, Release


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
        fetcher = ArchiveFetcher(release, base_url, root, release.archives)
    else:
        fetcher = Fetcher(release, base_url, root, release.sha256)
    try:
        return fetcher.run()
    except OSError as error:
        raise DownloadError(f"{error.filename or root}: cannot write: {error.strerror}; fix and run again") from error
    finally:
        fetcher.verified_file.close()


def _source(release: Release) -> ModuleType | None:
    """The module that lists the files of the release; None where the release itself does."""
    return hub if release.hub else github if release.github else None


def _of_list(release: Release, root: Path, split: str, endpoint: str) -> "Fetcher":
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
    return Fetcher(release, source.folder_url(release, commit, endpoint), root, sums, source.headers())


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


def _release(dataset: str) -> Release:
    if dataset not in RELEASES:
        raise DownloadError(f"unknown data set {dataset!r}: choose one of {', '.join(RELEASES)}")
    return RELEASES[dataset]


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
    url, verified, source = release.base_url + release.prefix, read_verified(root), _source(release)
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
        sums = sums_in(root / SUMS, release)
        state = "" if sums else f"{SUMS} lists no file of this data set; "
    elif not sums and not release.steps:
        state, urls = f"no {SUMS} here; ", {SUMS: release.base_url + SUMS}
    missing = [name for name in sums if name not in present]
    urls |= {name: url + quote(name) for name in missing[:5]}
    known, wrong = 0, []
    for name, checksum in sums.items():
        if name in present and verify and checksum_of(root / name, checksum) != checksum:
            wrong.append(name)
        elif name in present and (verify or verified.get(name) == stamp_of(root / name, checksum)):
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
