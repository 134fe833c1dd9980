"""CT-RATE and BIMCV-R from a hub on loopback: what is asked for, fetched, resumed, refused; INSPECT's printed steps."""

import hashlib
import json
import os
import shutil
import socket
import threading
from collections import defaultdict
from dataclasses import replace
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from download_server import BIG, Handler

from shared import download as dl
from shared import fetch, lists
from shared.download import DownloadError, check, download
from shared.releases import RELEASES

SHA, TOKEN = "a" * 40, "hf_of_a_test"
REPO = "ibrahimhamamci/CT-RATE"
VALID = "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz"
TRAIN = "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"
TREE = {
    ".gitattributes": b"*.nii.gz filter=lfs\n",
    "dataset/metadata/train_metadata.csv": b"VolumeName\ntrain_1_a_1.nii.gz\n",
    "dataset/metadata/validation_metadata.csv": b"VolumeName\nvalid_1_a_1.nii.gz\n",
    "dataset/radiology_text_reports/validation_reports.csv": b"VolumeName,Findings_EN\n",
    "dataset/multi_abnormality_labels/valid_predicted_labels.csv": b"VolumeName,Emphysema\n",
    "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz": b"of v1, never fetched",
    VALID: BIG,
    "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_1.nii.gz": BIG[::-1],
    TRAIN: b"train" + BIG,
}
TABLES = {name for name in TREE if name.endswith(".csv")}


class Hub(Handler):
    """/api/datasets/REPO answers in JSON, two entries a page; large files are sent on to another host, as LFS does."""

    def do_GET(self):
        server, url = self.server, urlsplit(self.path)
        path = unquote(url.path)
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        with server.lock:
            server.asked.append((path, self.headers.get("Authorization")))
        if path.startswith("/cdn/"):
            return super().do_GET()
        if path.endswith("/auth-check"):
            error = {} if authorised or not server.gated else {"X-Error-Code": "GatedRepo"}
            return self._answer(403 if error else 200, b"{}", error)
        if path == f"/api/datasets/{server.repo}":
            return self._json({"id": server.repo, "sha": server.commit})
        if path.startswith(f"/api/datasets/{server.repo}/tree/"):
            return self._tree(path.split("/tree/")[1], parse_qs(url.query))
        revision, _, name = path.removeprefix(f"/datasets/{server.repo}/resolve/").partition("/")
        if server.gated and not authorised:
            return self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        assert revision == SHA, path
        if name.endswith(".gz"):
            return self._answer(302, b"", {"Location": f"http://localhost:{server.server_port}/cdn/{name}"})
        self.path = f"/cdn/{name}"
        return super().do_GET()

    def _json(self, content, headers=None):
        self._answer(200, json.dumps(content).encode(), headers)

    def _tree(self, where: str, query: dict):
        revision, _, folder = where.partition("/")
        assert revision == SHA and query["recursive"] == ["true"], (where, query)
        entries = [{"type": "directory", "path": folder or "dataset", "oid": "0" * 40, "size": 0}]
        for name, body in self.server.tree.items():
            if not folder or name.startswith(folder + "/"):
                blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                entry = {"type": "file", "path": name, "oid": blob, "size": len(body)}
                if name.endswith(".gz"):
                    entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
                entries.append(entry)
        if len(entries) == 1:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        at = int(query.get("cursor", ["0"])[0])
        query["cursor"] = [str(at + 2)]
        again = "&".join(f"{key}={values[0]}" for key, values in query.items())
        here = f"http://127.0.0.1:{self.server.server_port}{urlsplit(self.path).path}"
        self._json(entries[at : at + 2], {"Link": f'<{here}?{again}>; rel="next"'} if at + 2 < len(entries) else {})


@pytest.fixture
def web(monkeypatch):
    """A hub that holds TREE as CT-RATE, gated; `asked`: (path, Authorization) of each request."""
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.005)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    httpd.daemon_threads = True
    httpd.lock, httpd.faults, httpd.honours_range, httpd.pause_s = threading.Lock(), {}, True, 0.0
    httpd.served, httpd.requests, httpd.asked = defaultdict(int), [], []
    httpd.gated, httpd.repo, httpd.commit = True, REPO, SHA
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    publish(httpd, TREE)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def publish(httpd, tree: dict):
    httpd.tree = dict(tree)
    httpd.files = {f"cdn/{name}": body for name, body in tree.items()}


def on_disk(root) -> set[str]:
    return {name for name in dl._walk(root) if not name.startswith((".verified", ".hub-"))}


def test_one_split_with_the_tables_and_nothing_else(web, tmp_path, capsys):
    counts = download("ct-rate", tmp_path, web.url, split="valid")
    wanted = TABLES | {name for name in TREE if name.startswith("dataset/valid_fixed/")}
    assert counts["files"] == counts["fetched"] == len(wanted) == 6
    assert on_disk(tmp_path / "ct-rate") == wanted
    assert all((tmp_path / "ct-rate" / name).read_bytes() == TREE[name] for name in wanted)
    printed = capsys.readouterr().out
    assert f"commit    {SHA}" in printed and "to fetch 0.0 GB" in printed and "CC BY-NC-SA" in printed


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(web, tmp_path):
    download("ct-rate", tmp_path, web.url, split="valid")
    redirected = [token for path, token in web.asked if path.startswith("/cdn/")]
    assert redirected == [None, None]
    assert {token for path, token in web.asked if not path.startswith("/cdn/")} == {f"Bearer {TOKEN}"}


def test_second_run_lists_and_fetches_nothing(web, tmp_path):
    download("ct-rate", tmp_path, web.url, split="valid")
    web.asked.clear()
    again = download("ct-rate", tmp_path, web.url, split="valid")
    assert (again["fetched"], again["already"], again["bytes"]) == (0, 6, 0)
    assert [path for path, _ in web.asked] == [f"/api/datasets/{REPO}/auth-check"]


def test_another_split_continues_on_the_commit_of_the_first(web, tmp_path):
    download("ct-rate", tmp_path, web.url, split="valid")
    web.commit = "b" * 40  # somebody pushed; the hub above refuses any commit but SHA
    counts = download("ct-rate", tmp_path, web.url, split="train")
    assert (counts["files"], counts["fetched"]) == (5, 1)
    both = download("ct-rate", tmp_path, web.url)
    assert (both["files"], both["fetched"]) == (7, 0)
    assert on_disk(tmp_path / "ct-rate") == {n for n in TREE if n in TABLES or "_fixed/" in n}


def test_cut_volume_continues_where_it_was_cut(web, tmp_path):
    web.faults[f"cdn/{VALID}"] = ["cut 696320"]
    download("ct-rate", tmp_path, web.url, split="valid")
    assert web.served[f"cdn/{VALID}"] == len(BIG)
    assert ("GET", f"cdn/{VALID}", "bytes=696320-") in [(c, p, r) for c, p, r in web.requests if r]


def test_a_killed_run_is_continued_by_the_next(web, tmp_path):
    web.faults[f"cdn/{VALID}"] = ["cut 409600"] + ["503"] * fetch.MAX_FAILURES + [""]
    with pytest.raises(DownloadError, match="attempts without progress"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not (tmp_path / "ct-rate" / VALID).exists()
    web.faults.clear()
    assert download("ct-rate", tmp_path, web.url, split="valid")["fetched"] == 1
    assert (tmp_path / "ct-rate" / VALID).read_bytes() == BIG
    assert web.served[f"cdn/{VALID}"] == len(BIG)


@pytest.mark.parametrize("name", [VALID, "dataset/metadata/validation_metadata.csv"])  # SHA-256, git blob id
def test_wrong_bytes_are_never_taken(web, tmp_path, name):
    web.faults[f"cdn/{name}"] = ["wrong"]
    download("ct-rate", tmp_path, web.url, split="valid")
    assert (tmp_path / "ct-rate" / name).read_bytes() == TREE[name]
    (tmp_path / "ct-rate" / name).unlink()
    web.faults[f"cdn/{name}"] = ["wrong", "always"]
    with pytest.raises(DownloadError, match="wrong checksum twice"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not (tmp_path / "ct-rate" / name).exists()


def test_no_access_says_which_terms_and_how_to_log_in(web, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(DownloadError, match=r"ct-rate: the hub refuses this user; accept the terms on .*auth login"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not [path for path, _ in web.asked if "resolve" in path]


def test_unknown_split_missing_folder_and_silent_hub(web, tmp_path):
    with pytest.raises(DownloadError, match="no split 'test'; splits: train, valid"):
        download("ct-rate", tmp_path, web.url, split="test")
    with pytest.raises(DownloadError, match="it has no splits"):
        download("bimcv-r", tmp_path, web.url, split="valid")
    publish(web, {name: body for name, body in TREE.items() if "valid_fixed" not in name})
    with pytest.raises(DownloadError, match=r"ct-rate: the hub does not answer as expected: .*see https://hugging"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not list((tmp_path / "ct-rate").glob(".hub-*"))  # half a list is no list


def test_a_path_that_leaves_the_folder_is_refused(web, tmp_path):
    publish(web, TREE | {"dataset/valid_fixed/../../../evil.nii.gz": b"x"})
    with pytest.raises(DownloadError, match="not `checksum bytes path`"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not list(tmp_path.rglob("*.gz")) and not list(tmp_path.rglob(".hub-valid.tsv"))


def test_full_disk_is_said_before_the_first_byte(web, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(DownloadError, match=r"0\.0 GB free.*make room, or SPLIT"):
        download("ct-rate", tmp_path, web.url, split="valid")
    assert not [path for path, _ in web.asked if "resolve" in path]


def test_a_data_set_without_splits_is_fetched_whole(web, tmp_path):
    web.repo, web.gated = "cyd0806/BIMCV-R", False
    tree = {"curated_ct_report_path_En.csv": b"path,Report_en\n", "CT1/ct/sub-S1_ses-E1_ct.nii.gz": b"volume"}
    publish(web, tree)
    assert download("bimcv-r", tmp_path, web.url)["fetched"] == 2
    assert on_disk(tmp_path / "bimcv-r") == set(tree)


def test_check_counts_expected_and_found_without_network(web, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASES, "ct-rate", replace(RELEASES["ct-rate"], n_files=3))
    absent = check("ct-rate", tmp_path)
    assert (absent["found"], absent["listed"], absent["complete"]) == (0, 0, False)
    assert "no list of its files" in absent["state"] and "SPLIT=train|valid" in dl.report(absent)
    download("ct-rate", tmp_path, web.url, split="valid")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("check() used the network"))
    result = check("ct-rate", tmp_path, verify=True)
    assert (result["found"], result["expected"], result["verified"], result["listed"]) == (2, 3, 6, 6)
    assert not result["complete"]  # the training split is not here
    os.truncate(tmp_path / "ct-rate" / VALID, 10)
    (tmp_path / "ct-rate/dataset/metadata/train_metadata.csv").unlink()
    result = check("ct-rate", tmp_path, verify=True)
    assert result["wrong"] == [VALID] and result["missing"] == 1
    assert result["first_missing"][0]["url"] == (
        f"https://huggingface.co/datasets/{REPO}/resolve/{SHA}/dataset/metadata/train_metadata.csv"
    )


def test_command_line(web, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert dl.main(["ct-rate", "--split", "valid", "--base-url", web.url]) == 0
    assert "6 files verified, 6 of them fetched now" in capsys.readouterr().out
    assert dl.main(["inspect"]) == 1
    said = capsys.readouterr().err
    assert "data use agreement" in said and "Final_Impressions.csv" in said
    assert dl.main(["--check", "ct-rate", "bimcv-r", "inspect"]) == 0
    printed = capsys.readouterr().out
    assert "ct-rate: INCOMPLETE: 2 of 50,188 .nii.gz files" in printed
    assert "bimcv-r: ABSENT: 0 of 8,069" in printed and "inspect: ABSENT: 0 of 23,248" in printed


def test_git_blob_ids_are_those_of_git(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert fetch.git_blob_of(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_torn_list_is_named(tmp_path):
    (tmp_path / ".hub-all.tsv").write_text(f"# {SHA}\n{'0' * 64}\t12\n")
    with pytest.raises(DownloadError, match=r"\.hub-all\.tsv, line 2"):
        lists.known(tmp_path)
