"""shared/download.py against a server that cuts, lies, ignores Range and fails, against bad lists, and killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from download_server import BIG, DAT, TREE, assert_tree, publish

from shared import fetch
from shared.download import DownloadError, download
from shared.releases import MERL_SHA256, RELEASES

REPOSITORY = Path(__file__).parents[2]


def test_cut_connection_is_resumed_where_it_was_cut(server, tmp_path):
    server.faults[DAT] = ["cut 300000", "cut 200001", "503", "cut 5"]
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)
    ranges = [wanted for _, path, wanted in server.requests if path == DAT]
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in ranges[1:]]
    block = fetch.BLOCK_BYTES
    assert ranges[0] is None and len(ranges) == 5
    assert 300_000 - block < starts[0] <= 300_000 and starts[0] + 200_001 - block < starts[1] <= starts[0] + 200_001
    assert starts[1] == starts[2] == starts[3]  # neither a 503 nor 5 bytes bring the file further
    assert len(BIG) <= server.served[DAT] < len(BIG) + 3 * block


def test_cut_connection_and_a_server_that_ignores_range(server, tmp_path):
    server.honours_range = False
    server.faults[DAT] = ["cut 300000", "cut 200000"]
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)
    assert server.served[DAT] == 500_000 + len(BIG)


def test_cut_at_the_same_place_for_ever_is_given_up(server, tmp_path):
    server.honours_range = False
    server.faults[DAT] = ["cut 1000", "always"]
    with pytest.raises(DownloadError, match=rf"{DAT}.*attempts without progress"):
        download("ptb-xl", tmp_path, server.url)
    assert not (tmp_path / "ptb-xl" / DAT).exists()


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    server.faults[DAT] = ["cut 300000", "other range"]
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)


@pytest.mark.parametrize("have", [1, 500_000, len(BIG)])
def test_part_of_an_earlier_run_is_continued(server, tmp_path, have):
    part = tmp_path / "ptb-xl" / (DAT + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG[:have])
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)
    assert server.served[DAT] == len(BIG) - have


@pytest.mark.parametrize("part_bytes", [b"\0" * 1000, b"\0" * (len(BIG) + 7)])
def test_foreign_part_is_found_out_and_fetched_anew(server, tmp_path, part_bytes):
    part = tmp_path / "ptb-xl" / (DAT + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(part_bytes)
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)


def test_wrong_byte_once_is_fetched_again(server, tmp_path):
    server.faults[DAT] = ["wrong"]
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)
    assert server.served[DAT] == 2 * len(BIG)


def test_wrong_byte_always_is_an_error_and_leaves_no_file(server, tmp_path):
    server.faults[DAT] = ["wrong", "always"]
    with pytest.raises(DownloadError, match=f"{DAT}: wrong checksum twice"):
        download("ptb-xl", tmp_path, server.url)
    root = tmp_path / "ptb-xl"
    assert not (root / DAT).exists() and not list(root.rglob("*.part"))
    assert_tree(root, {path: body for path, body in TREE.items() if path != DAT})
    assert server.served[DAT] == 2 * len(BIG)


def test_wrong_file_under_the_final_name_does_not_survive_a_failed_download(server, tmp_path):
    path = tmp_path / "ptb-xl" / DAT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of another release")
    server.faults[DAT] = ["404", "always"]
    with pytest.raises(DownloadError, match=DAT):
        download("ptb-xl", tmp_path, server.url)
    assert not path.exists()


def test_missing_file_is_an_error_without_retries(server, tmp_path):
    del server.files[DAT]
    with pytest.raises(DownloadError, match=f"{DAT}: HTTP 404"):
        download("ptb-xl", tmp_path, server.url)
    assert [path for _, path, _ in server.requests].count(DAT) == 1


def test_busy_server_is_asked_again_but_not_for_ever(server, tmp_path):
    server.faults[DAT] = ["503", "503", "503"]
    download("ptb-xl", tmp_path, server.url)
    assert_tree(tmp_path / "ptb-xl", TREE)
    (tmp_path / "ptb-xl" / DAT).unlink()
    server.faults[DAT], server.requests[:] = ["503", "always"], []
    with pytest.raises(DownloadError, match=f"{DAT}: HTTP 503; {fetch.MAX_FAILURES} attempts without progress"):
        download("ptb-xl", tmp_path, server.url)
    assert [path for _, path, _ in server.requests].count(DAT) == fetch.MAX_FAILURES


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.001)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(DownloadError, match=r"SHA256SUMS\.txt: ConnectionError.*run again later"):
            download("ptb-xl", tmp_path, url)


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:/evil", "..", "a/", "a\tb", "//evil"]
)
def test_paths_that_leave_the_folder_are_refused_before_anything_is_fetched(server, tmp_path, path):
    publish(server, TREE | {path: b"evil"})
    with pytest.raises(DownloadError, match="unsafe path"):
        download("ptb-xl", tmp_path / "data", server.url)
    assert {name for _, name, _ in server.requests} == {"SHA256SUMS.txt"}
    assert not list(tmp_path.rglob("*evil*")) and not (tmp_path / "data" / "ptb-xl" / "SHA256SUMS.txt").exists()


def test_sums_that_are_a_web_page_are_refused(server, tmp_path):
    server.files["SHA256SUMS.txt"] = b"<html>Please log in</html>\n"
    with pytest.raises(DownloadError, match=r"line 1: not `checksum path`"):
        download("ptb-xl", tmp_path, server.url)
    assert not (tmp_path / "ptb-xl" / "SHA256SUMS.txt").exists()


def test_pinned_checksums_refuse_other_files_and_give_up(server, tmp_path):
    prefix = RELEASES["merl-splits"].prefix
    server.files = {prefix + name: b"ecg_id\n1\n" for name in MERL_SHA256}
    with pytest.raises(DownloadError, match="wrong checksum twice") as caught:
        download("merl-splits", tmp_path, server.url)
    assert "given up" in str(caught.value)
    assert not list((tmp_path / "merl-splits").rglob("*.csv"))


def test_a_disk_that_cannot_take_the_file_is_named(server, tmp_path):
    (tmp_path / "ptb-xl" / "LICENSE.txt.part").mkdir(parents=True)  # neither file nor room
    with pytest.raises(DownloadError, match=r"LICENSE\.txt\.part: cannot write"):
        download("ptb-xl", tmp_path, server.url)


def run_cli(*arguments, data_root: Path):
    command = [sys.executable, "-m", "shared.download", *arguments]
    environment = os.environ | {"DATA_ROOT": str(data_root)}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_kill_and_run_again_through_the_command_line(server, tmp_path):
    server.pause_s = 0.05
    process = run_cli("ptb-xl", "--base-url", server.url, data_root=tmp_path)
    part = tmp_path / "ptb-xl" / (DAT + ".part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    had = part.stat().st_size
    assert 200_000 < had < len(BIG)
    server.pause_s = 0.0
    time.sleep(0.1)  # until the server has noticed
    server.served.clear()
    process = run_cli("ptb-xl", "--base-url", server.url, data_root=tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert server.served[DAT] == len(BIG) - had
    assert output.index("licence") < output.index("5 files verified")
    assert_tree(tmp_path / "ptb-xl", TREE)
