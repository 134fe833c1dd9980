"""Chest X-ray releases from loopback: two repositories in place of GitHub's hosts, and ChestX-ray14's archives."""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cxr_trees import film, save, write_csv, write_nih, write_rural
from download_server import BIG

from shared import archives, fetch, fetchers, github
from shared import download as dl
from shared.download import DownloadError, check, download
from shared.releases import NIH_LINKS, RELEASES
from synth_medvlp.datasets import chestxray14, covid_rural, hannover, read_record

SHA = "c" * 40
RURAL, HANNOVER = "haimingt/opacity_segmentation_covid_chest_X_ray", "ml-workgroup/covid-19-image-repository"
NOTES = "covid_rural_radiologist_notes.csv"


def blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def host(server, repository: str, tree: dict, commit: str = SHA, **more):
    """Answer as api.github.com and raw.githubusercontent.com do for a repository with these files."""
    entries = [{"path": name.rpartition("/")[0], "type": "tree", "sha": "0" * 40} for name in tree if "/" in name]
    entries += [{"path": n, "type": "blob", "mode": "100644", "sha": blob(b), "size": len(b)} for n, b in tree.items()]
    listing = {"sha": commit, "tree": entries, "truncated": False} | more
    server.files = {f"{repository}/{commit}/{name}": body for name, body in tree.items()}
    server.files[f"repos/{repository}/commits/HEAD"] = json.dumps({"sha": commit, "parents": []}).encode()
    server.files[f"repos/{repository}/git/trees/{commit}?recursive=1"] = json.dumps(listing).encode()


def files_of(root) -> dict:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def rural(server, tmp_path):
    """The tree of COVID Rural as its repository has it, in its folder and among others; returned without the folder."""
    write_rural(tmp_path / "published", 2)
    (tmp_path / "published/jpgs/jsons").mkdir()
    (tmp_path / "published/jpgs/jsons/COVID-19-AR-16400000_01-01-2012-XR.json").write_text('{"shapes": []}')
    for name in ("covid_rural_patient_info.csv", NOTES):
        write_csv(tmp_path / "published" / name, [{"patient_id": "COVID-19-AR-16400000"}])
    tree = files_of(tmp_path / "published")
    others = {"README.md": b"#", "model_info/weights.h5": fetch.LFS_POINTER, "covid_rural_annot2/jpgs/x.jpg": b"no"}
    others["covid_rural_annot/manual_segmentations_model_predictions/x.jpg.png"] = b"no"
    host(server, RURAL, {f"covid_rural_annot/{name}": body for name, body in tree.items()} | others)
    return tree


def fetched(root) -> dict:
    return {name: body for name, body in files_of(root).items() if not name.startswith((".verified", ".github"))}


def test_covid_rural_lies_where_its_loader_looks(server, rural, tmp_path, capsys):
    counts = download("covid-rural", tmp_path, server.url)
    root = tmp_path / "covid-rural"
    assert counts["files"] == counts["fetched"] == len(rural) == 15 and fetched(root) == rural
    index = covid_rural.read_index(root)
    assert len(index) == 6 and index.attrs["warnings"] == {}
    assert [row["Lung Opacity"] for row in index.labels] == [1, 1, 0] * 2
    assert read_record(root, index.iloc[0], "covid-rural").image.shape == (20, 24)
    printed = capsys.readouterr().out
    assert f"commit    {SHA}" in printed and "CC BY 4.0" in printed and "Desai" in printed


def test_hannover_lies_where_its_loader_looks(server, tmp_path):
    rows = [{"patient_id": "p1", "image_id": f"i{k}", "modality": "CR", "projection": "ap"} for k in range(3)]
    write_csv(tmp_path / "published/data.csv", rows)
    for k in range(2):  # fewer images than rows, as in the repository
        save(tmp_path / f"published/png/i{k}.png", film(k))
    tree = files_of(tmp_path / "published")
    host(
        server, HANNOVER, tree | {"readme.md": b"#", "nii/readme.md": b"#", "data.csv.old": b"no", "pngs/x.png": b"no"}
    )
    assert download("hannover-cxr", tmp_path, server.url)["fetched"] == 3
    root = tmp_path / "hannover-cxr"
    assert fetched(root) == tree
    index = hannover.read_index(root)
    assert len(index) == 3 and set(index.view) == {"AP"}
    assert read_record(root, index.iloc[0], "hannover-cxr").image.any()
    result = check("hannover-cxr", tmp_path)  # what the commit holds, not how many rows there are
    assert (result["found"], result["expected"], result["complete"]) == (2, 2, True)


def test_second_call_asks_nothing_and_stays_on_its_commit(server, rural, tmp_path):
    download("covid-rural", tmp_path, server.url)
    host(server, RURAL, {"covid_rural_annot/jpgs/new.jpg": b"pushed since"}, commit="d" * 40)
    server.requests.clear()
    again = download("covid-rural", tmp_path, server.url)
    assert (again["fetched"], again["already"], again["bytes"], server.requests) == (0, 15, 0, [])


def test_without_base_url_api_and_files_have_githubs_hosts(server, rural, tmp_path, monkeypatch):
    server.files = {f"{'api' if n.startswith('repos/') else 'raw'}/{n}": body for n, body in server.files.items()}
    monkeypatch.setattr(github, "API", server.url + "api")
    monkeypatch.setattr(github, "ENDPOINT", server.url + "raw")
    download("covid-rural", tmp_path)
    assert fetched(tmp_path / "covid-rural") == rural
    monkeypatch.undo()
    assert (github.API, github.ENDPOINT) == ("https://api.github.com", "https://raw.githubusercontent.com")
    url = github.folder_url(RELEASES["covid-rural"], SHA, github.ENDPOINT)
    assert url == f"https://raw.githubusercontent.com/{RURAL}/{SHA}/"


def test_cut_file_continues_where_it_was_cut(server, tmp_path):
    host(server, HANNOVER, {"data.csv": b"patient_id\n", "png/a.png": BIG})
    path = f"{HANNOVER}/{SHA}/png/a.png"
    server.faults[path] = ["cut 409600"] + ["503"] * fetch.MAX_FAILURES
    with pytest.raises(DownloadError, match="attempts without progress"):
        download("hannover-cxr", tmp_path, server.url)
    assert not (tmp_path / "hannover-cxr/png/a.png").exists()
    assert download("hannover-cxr", tmp_path, server.url)["fetched"] == 1
    assert (tmp_path / "hannover-cxr/png/a.png").read_bytes() == BIG and server.served[path] == len(BIG)


def test_wrong_blob_is_refused_twice_and_named(server, rural, tmp_path):
    path = f"{RURAL}/{SHA}/covid_rural_annot/{NOTES}"
    server.faults[path] = ["wrong", "always"]
    with pytest.raises(DownloadError, match=f"{NOTES}: wrong checksum twice"):
        download("covid-rural", tmp_path, server.url)
    assert [name for _, name, _ in server.requests].count(path) == 2
    assert fetched(tmp_path / "covid-rural") == {name: body for name, body in rural.items() if name != NOTES}


def test_truncated_list_is_an_error_and_is_not_kept(server, rural, tmp_path):
    host(server, RURAL, {f"covid_rural_annot/{name}": body for name, body in rural.items()}, truncated=True)
    with pytest.raises(DownloadError, match=r"covid-rural: GitHub's list of .* is truncated"):
        download("covid-rural", tmp_path, server.url)
    assert not fetched(tmp_path / "covid-rural") and not (tmp_path / "covid-rural" / github.LIST).exists()


@pytest.mark.parametrize("here", [False, True])  # fetched, or already there from a clone without git lfs
def test_pointer_of_git_lfs_is_not_taken_for_the_image(server, rural, tmp_path, here):
    name = "jpgs/COVID-19-AR-16400000_01-01-2012-XR.jpg"
    pointer = fetch.LFS_POINTER + b"\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
    host(server, RURAL, {f"covid_rural_annot/{n}": pointer if n == name else b for n, b in rural.items()})
    if here:
        (tmp_path / "covid-rural/jpgs").mkdir(parents=True)
        (tmp_path / "covid-rural" / name).write_bytes(pointer)
    with pytest.raises(
        DownloadError, match=f"{name}: a pointer of Git LFS.*clone https://github.com/{RURAL} with `git lfs` by hand"
    ):
        download("covid-rural", tmp_path, server.url)
    assert fetched(tmp_path / "covid-rural") == {n: body for n, body in rural.items() if n != name}


def test_answers_that_are_no_list(server, rural, tmp_path):
    good = dict(server.files)
    del server.files[f"repos/{RURAL}/commits/HEAD"]
    with pytest.raises(DownloadError, match=r"covid-rural: .* does not answer as expected: HTTPError: 404"):
        download("covid-rural", tmp_path, server.url)
    server.files = good | {f"repos/{RURAL}/commits/HEAD": b"<html>"}
    with pytest.raises(DownloadError, match="does not answer as expected: JSONDecodeError"):
        download("covid-rural", tmp_path, server.url)
    server.files = good | {f"repos/{RURAL}/commits/HEAD": b'{"message": "Moved"}'}
    with pytest.raises(DownloadError, match="does not answer as expected: KeyError: 'sha'"):
        download("covid-rural", tmp_path, server.url)
    host(server, RURAL, {f"covid_rural_annot/{n}": body for n, body in rural.items() if "masks" not in n})
    with pytest.raises(DownloadError, match=f"commit {SHA} of {RURAL} has no covid_rural_annot/pngs_masks"):
        download("covid-rural", tmp_path, server.url)
    host(server, RURAL, {f"covid_rural_annot/{n}": b for n, b in (rural | {"jpgs/../../../evil.jpg": b"x"}).items()})
    with pytest.raises(DownloadError, match="not `checksum bytes path`"):
        download("covid-rural", tmp_path, server.url)
    assert not list((tmp_path / "covid-rural").rglob("*.jpg")) and not list(tmp_path.glob("evil*"))


def test_full_disk_is_said_before_the_first_file(server, rural, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DownloadError, match=r"0\.0 GB free, 0\.0 GB needed; make room$"):
        download("covid-rural", tmp_path, server.url)
    assert not fetched(tmp_path / "covid-rural")


def test_check_needs_no_network(server, rural, tmp_path, monkeypatch):
    absent = check("covid-rural", tmp_path)
    assert (absent["found"], absent["expected"], absent["complete"]) == (0, 221, False)
    assert "no list of its files here" in absent["state"] and "make data-covid-rural" in dl.report(absent)
    download("covid-rural", tmp_path, server.url)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("check() used the network"))
    for verify in (False, True):
        result = check("covid-rural", tmp_path, verify)
        assert (result["found"], result["expected"], result["verified"], result["listed"]) == (6, 6, 15, 15)
        assert result["complete"]
    (tmp_path / "covid-rural" / NOTES).unlink()
    name = "jpgs/COVID-19-AR-16400000_01-01-2012-XR.jpg"
    os.truncate(tmp_path / "covid-rural" / name, 10)
    result = check("covid-rural", tmp_path, verify=True)
    assert (result["wrong"], result["missing"], result["complete"]) == ([name], 1, False)
    missing = result["first_missing"][0]["url"]
    assert missing == f"https://raw.githubusercontent.com/{RURAL}/{SHA}/covid_rural_annot/{NOTES}"


# --- ChestX-ray14 -----------------------------------------------------------------------------------------------------


def tar_gz(members: dict, links: dict | None = None) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if name.endswith("/") else (tarfile.REGTYPE, len(body))
            tar.addfile(info, io.BytesIO(body))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return content.getvalue()


PNG = b"\x89PNG\r\n\x1a\n"
IMAGES = {k: {f"{k:08d}_{n:03d}.png": PNG + bytes([k, n]) for n in range(2)} for k in range(1, 13)}


@pytest.fixture
def nih(server, monkeypatch):
    """Twelve archives with two images each under the links of the release."""
    monkeypatch.setitem(RELEASES, "nih-cxr", replace(RELEASES["nih-cxr"], n_files=24))
    server.files = {}
    for k, link in enumerate(NIH_LINKS, 1):
        members = {"images/": b""} | {f"images/{name}": body for name, body in IMAGES[k].items()}
        server.files[link] = tar_gz(members | {"images/Thumbs.db": b"no image"})
    return server


def unpacked(*numbers) -> dict:
    return {f"images_{k:03d}/images/{name}": body for k in numbers for name, body in IMAGES[k].items()}


def test_archives_are_unpacked_and_the_tables_are_left_to_the_user(nih, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert dl.main(["nih-cxr", "--base-url", nih.url]) == 0
    assert fetched(tmp_path / "nih-cxr") == unpacked(*range(1, 13))
    printed = capsys.readouterr().out
    assert "complete: 24 of 24 .png files" in printed and "12 of 12 archives read to their ends" in printed
    last = printed.splitlines()[-1]
    assert "by hand" in last and "Data_Entry_2017_v2020.csv" in last and "https://nihcc.app.box.com/" in last
    journal = (tmp_path / "nih-cxr" / fetchers.VERIFIED).read_text()
    for k, link in enumerate(NIH_LINKS, 1):
        assert f"{hashlib.sha256(nih.files[link]).hexdigest()}\t" in journal and f"\timages_{k:03d}\n" in journal
    nih.requests.clear()
    assert download("nih-cxr", tmp_path, nih.url)["already"] == 12 and nih.requests == []


def test_its_loader_finds_the_images_of_the_archive(nih, tmp_path):
    write_nih(tmp_path / "published", 2)
    image = (tmp_path / "published/images_001/images/00000001_000.png").read_bytes()
    nih.files[NIH_LINKS[0]] = tar_gz({"images/00000001_000.png": image})
    download("nih-cxr", tmp_path, nih.url)
    shutil.rmtree(tmp_path / "published/images_001")
    shutil.copytree(tmp_path / "published", tmp_path / "nih-cxr", dirs_exist_ok=True)  # the step by hand
    row = chestxray14.read_index(tmp_path / "nih-cxr").iloc[0]
    assert row.path == "images_001/images/00000001_000.png"
    assert read_record(tmp_path / "nih-cxr", row, "nih-cxr").image.shape == (32, 32)


DAMAGE = {
    "half": lambda whole: whole[: len(whole) // 2],
    "without its length": lambda whole: whole[:-4],
    "with another CRC": lambda whole: whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
    "a page": lambda _: b"<html>Please log in</html>",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_archive_is_fetched_twice_and_leaves_no_image(nih, tmp_path, damage):
    link, whole = NIH_LINKS[4], nih.files[NIH_LINKS[4]]
    nih.files[link] = DAMAGE[damage](whole)
    with pytest.raises(DownloadError, match=f"images_005.tar.gz: damaged twice .*{link}"):
        download("nih-cxr", tmp_path, nih.url)
    assert [path for _, path, _ in nih.requests].count(link) == 2
    rest = [k for k in range(1, 13) if k != 5]
    found = fetched(tmp_path / "nih-cxr")
    assert {n: b for n, b in found.items() if n.endswith(".png")} == unpacked(*rest)
    assert not [name for name in found if name.endswith(".gz.part")]
    result = check("nih-cxr", tmp_path)
    assert (result["found"], result["complete"]) == (22, False) and "11 of 12 archives" in result["state"]
    assert result["first_missing"] == [
        {"path": "images_005.tar.gz", "url": f"https://nihcc.box.com/shared/static/{link}"}
    ]
    nih.files[link] = whole
    assert download("nih-cxr", tmp_path, nih.url)["fetched"] == 1
    assert fetched(tmp_path / "nih-cxr") == unpacked(*range(1, 13))


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../../evil.png", "c:evil.png"])
def test_member_that_would_leave_the_folder_is_refused(nih, tmp_path, name):
    nih.files[NIH_LINKS[0]] = tar_gz({"images/00000001_000.png": PNG, name: b"evil"})
    with pytest.raises(DownloadError, match=r"damaged twice .*unsafe member"):
        download("nih-cxr", tmp_path, nih.url)
    assert not list(tmp_path.rglob("*evil*")) and not (tmp_path / "nih-cxr/images_001").exists()


def test_link_in_an_archive_is_refused(nih, tmp_path):
    nih.files[NIH_LINKS[0]] = tar_gz({"images/00000001_000.png": PNG}, {"images/00000001_001.png": "/etc/hostname"})
    with pytest.raises(DownloadError, match=r"unsafe member 'images/00000001_001\.png'"):
        download("nih-cxr", tmp_path, nih.url)
    assert not (tmp_path / "nih-cxr/images_001").exists()


class Killed(BaseException):
    pass


def killed(*_, **__):
    raise Killed


@pytest.fixture
def one(nih, monkeypatch):
    """A release of one archive, of more than a MiB."""
    monkeypatch.setitem(RELEASES, "nih-cxr", replace(RELEASES["nih-cxr"], archives={"images_001": NIH_LINKS[0]}))
    nih.tree = {"images_001/images/a.png": BIG, "images_001/images/b.png": PNG}
    tar = gzip.decompress(tar_gz({"images/a.png": BIG, "images/b.png": PNG}))
    nih.files = {NIH_LINKS[0]: gzip.compress(tar, compresslevel=0)}
    return nih


def test_cut_archive_continues_where_it_was_cut(one, tmp_path):
    one.faults[NIH_LINKS[0]] = ["cut 409600"] + ["503"] * fetch.MAX_FAILURES
    with pytest.raises(DownloadError, match="attempts without progress"):
        download("nih-cxr", tmp_path, one.url)
    assert not list(tmp_path.rglob("*.png"))
    download("nih-cxr", tmp_path, one.url)
    assert fetched(tmp_path / "nih-cxr") == one.tree
    assert one.served[NIH_LINKS[0]] == len(one.files[NIH_LINKS[0]])


@pytest.mark.parametrize("owner, step", [(tarfile.TarFile, "extract"), (fetchers, "sha256_of"), (os, "replace")])
def test_kill_while_unpacking_leaves_nothing_half(one, tmp_path, monkeypatch, owner, step):
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, killed)
        with pytest.raises(Killed):
            download("nih-cxr", tmp_path, one.url)
    assert not (tmp_path / "nih-cxr/images_001/images").exists()
    assert check("nih-cxr", tmp_path)["first_missing"][0]["path"] == "images_001.tar.gz"
    download("nih-cxr", tmp_path, one.url)
    assert fetched(tmp_path / "nih-cxr") == one.tree
    assert one.served[NIH_LINKS[0]] == len(one.files[NIH_LINKS[0]])  # the archive was kept


def test_kill_before_the_archive_is_deleted(one, tmp_path):
    download("nih-cxr", tmp_path, one.url)
    (tmp_path / "nih-cxr/images_001.tar.gz.part").write_bytes(one.files[NIH_LINKS[0]])
    assert download("nih-cxr", tmp_path, one.url)["already"] == 1
    assert fetched(tmp_path / "nih-cxr") == one.tree


def test_images_that_a_user_unpacked_are_not_touched(nih, tmp_path):
    own = tmp_path / "nih-cxr/images_003/images/own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(PNG)
    with pytest.raises(DownloadError, match="images_003/images: not unpacked by this program; move it elsewhere"):
        download("nih-cxr", tmp_path, nih.url)
    assert list(own.parent.iterdir()) == [own] and NIH_LINKS[2] not in [path for _, path, _ in nih.requests]


def test_what_a_kill_leaves_of_an_archive_is_no_image(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({f"images/{k}.png": PNG for k in range(5)}))
    ticks = iter(range(3))
    with pytest.raises(StopIteration):
        archives.unpack(tmp_path / "a.tar.gz", tmp_path / "out", ".png", lambda: next(ticks))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png.part", "1.png.part", "2.png.part"]
    archives.unpack(tmp_path / "a.tar.gz", tmp_path / "out", ".png", lambda: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{k}.png" for k in range(5)]


def test_links_are_those_of_the_release():
    assert len(set(NIH_LINKS)) == 12 and all(len(link) == 35 and link.endswith(".gz") for link in NIH_LINKS)
    assert list(RELEASES["nih-cxr"].archives) == [f"images_{k:03d}" for k in range(1, 13)]
