"""shared/download.py against a server that behaves: what is fetched, trusted, refused, checked and printed."""

import gzip
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from download_server import BIG, DAT, TREE, assert_tree, publish

from shared import download as dl
from shared import fetchers
from shared.download import DownloadError, check, download
from shared.locks import sha256_of
from shared.releases import MERL_SHA256, RELEASES


def test_fresh_then_nothing_again(server, tmp_path, capsys):
    assert download("ptb-xl", tmp_path, server.url) == {
        "files": 5,
        "fetched": 5,
        "already": 0,
        "bytes": sum(map(len, server.files.values())),
    }
    assert_tree(tmp_path / "ptb-xl", TREE)
    printed = capsys.readouterr().out
    assert "CC BY 4.0" in printed and "3.0 GB" in printed and "Wagner" in printed
    server.requests.clear()
    again = download("ptb-xl", tmp_path, server.url)
    assert (again["fetched"], again["already"], again["bytes"]) == (0, 5, 0)
    assert server.requests == [("HEAD", "SHA256SUMS.txt", None)]


def test_second_run_trusts_the_journal_and_notices_a_change(server, tmp_path, monkeypatch):
    download("ptb-xl", tmp_path, server.url)
    hashed = []
    monkeypatch.setattr(fetchers, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    download("ptb-xl", tmp_path, server.url)
    assert hashed == []
    path = tmp_path / "ptb-xl" / DAT
    path.write_bytes(b"\xff" + BIG[1:])  # same size, another time of change
    assert download("ptb-xl", tmp_path, server.url)["fetched"] == 1
    assert "00001_hr.dat" in hashed
    assert_tree(tmp_path / "ptb-xl", TREE)


def test_licence_is_printed_before_the_first_request(server, tmp_path, capsys):
    server.files.clear()
    with pytest.raises(DownloadError, match=r"SHA256SUMS\.txt: HTTP 404"):
        download("mimic-iv-ecg", tmp_path, server.url)
    assert "ODbL" in capsys.readouterr().out


def test_only_the_prefix_of_the_parent_release_is_fetched(server, tmp_path):
    wanted = {"g1/A0001.hea": b"A0001 12 500\n", "g1/A0001.mat": b"\1\2"}
    other = {"training/cpsc_2018_extra/g1/Q0001.hea": b"no", "LICENSE.txt": b"no"}
    publish(server, {f"training/cpsc_2018/{path}": body for path, body in wanted.items()} | other, separator="  ")
    assert download("cpsc2018", tmp_path, server.url)["files"] == 2
    found = {path for path in dl._walk(tmp_path / "cpsc2018") if not path.startswith(".")}
    assert found == {*wanted, "SHA256SUMS.txt"}
    assert_tree(tmp_path / "cpsc2018", wanted)
    publish(server, other)
    with pytest.raises(DownloadError, match="lists no file below training/cpsc_2018/"):
        download("cpsc2018", tmp_path / "again", server.url)


@pytest.mark.realdata
def test_published_merl_splits_have_the_pinned_checksums(server, tmp_path):
    folder = Path(os.environ.get("DATA_ROOT", "data/official")) / "splits" / "merl"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set DATA_ROOT")
    ours = {"chapman": "csn", "icbeb": "cpsc2018"}
    server.files = {}
    for name in MERL_SHA256:
        stem = Path(name).stem
        for theirs, mine in ours.items():
            stem = stem.replace(theirs + "_", mine + "_")
        server.files[RELEASES["merl-splits"].prefix + name] = gzip.decompress((folder / f"{stem}.csv.gz").read_bytes())
    assert download("merl-splits", tmp_path, server.url)["fetched"] == len(MERL_SHA256)
    assert check("merl-splits", tmp_path)["complete"]


def test_bad_names_and_addresses(tmp_path):
    with pytest.raises(DownloadError, match=r"unknown data set 'ptbxl'.*ptb-xl"):
        download("ptbxl", tmp_path)
    with pytest.raises(DownloadError, match="not http"):
        download("ptb-xl", tmp_path, "s3://bucket/")


def test_command_line_reports_an_error_in_one_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    del server.files[DAT]
    assert dl.main(["ptb-xl", "--base-url", server.url]) == 1
    assert DAT in capsys.readouterr().err


class TestCheck:
    @pytest.fixture(autouse=True)
    def small_release(self, monkeypatch):
        monkeypatch.setitem(RELEASES, "ptb-xl", replace(RELEASES["ptb-xl"], n_files=2))

    def without_network(self, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("check() used the network")

        monkeypatch.setattr(socket.socket, "connect", refuse)

    def test_absent(self, tmp_path, monkeypatch):
        self.without_network(monkeypatch)
        result = check("ptb-xl", tmp_path)
        assert (result["found"], result["expected"], result["complete"]) == (0, 2, False)
        assert result["first_missing"][0]["url"] == "https://physionet.org/files/ptb-xl/1.0.3/SHA256SUMS.txt"
        assert "counted only" in result["state"]
        text = dl.report(result)
        assert "ABSENT" in text and "make data-ptb-xl" in text and "CC BY 4.0" in text

    def test_complete_missing_and_wrong(self, server, tmp_path, monkeypatch):
        download("ptb-xl", tmp_path, server.url)
        self.without_network(monkeypatch)
        before = dl._walk(tmp_path)
        result = check("ptb-xl", tmp_path)
        assert result["complete"] and result["verified"] == result["listed"] == 5 and result["found"] == 2
        (tmp_path / "ptb-xl" / DAT).write_bytes(b"x")
        result = check("ptb-xl", tmp_path)
        assert result["verified"] == 4 and result["wrong"] == []  # not verified any more, and not hashed either
        result = check("ptb-xl", tmp_path, verify=True)
        assert result["wrong"] == [DAT] and not result["complete"] and DAT in dl.report(result)
        (tmp_path / "ptb-xl" / DAT).unlink()
        result = check("ptb-xl", tmp_path)
        assert result["missing"] == 1 and not result["complete"]
        assert result["first_missing"] == [{"path": DAT, "url": RELEASES["ptb-xl"].base_url + DAT}]
        assert dl._walk(tmp_path) == before - {f"ptb-xl/{DAT}"}  # nothing was written

    def test_records_are_counted_where_there_are_no_sums(self, server, tmp_path, monkeypatch, capsys):
        download("ptb-xl", tmp_path, server.url)
        (tmp_path / "ptb-xl" / "SHA256SUMS.txt").unlink()
        monkeypatch.setenv("DATA_ROOT", str(tmp_path))
        assert dl.main(["--check", "ptb-xl", "cpsc2018"]) == 0
        printed = capsys.readouterr().out
        assert "2 of 2 .hea files" in printed and "no SHA256SUMS.txt here" in printed and "0 of 6,877" in printed


def test_every_release_says_what_a_user_must_know():
    for release in RELEASES.values():
        text = dl.describe(release, Path("data"))
        for needed in (release.licence, release.size, release.citation, release.base_url):
            assert needed and needed in text
        assert release.base_url.startswith("https://") and release.base_url.endswith("/")
        assert release.prefix == "" or release.prefix.endswith("/")
    assert all(len(sha256) == 64 for sha256 in MERL_SHA256.values()) and len(MERL_SHA256) == 18


def test_a_release_that_a_person_must_fetch_prints_its_steps_and_fetches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert dl.main(["mimic-cxr-jpg"]) == 1
    said = capsys.readouterr().err
    assert "PhysioNet Credentialed" in said and "  1. create a PhysioNet account" in said
    assert not list(tmp_path.iterdir())
    assert dl.main(["--check", "mimic-cxr-jpg"]) == 0
    assert "ABSENT: 0 of 377,110 .jpg files" in capsys.readouterr().out
