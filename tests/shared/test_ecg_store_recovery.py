"""shared/ecg/store.py: a pack that is killed, runs out of disk or meets another one is continued to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from store_files import FILES, REPOSITORY, digest, write_tree

from shared import store as packing
from shared.ecg import decode, store
from shared.ecg.store import EcgStore, StoreError, pack

SLOW_PACK = """
import sys, time
from pathlib import Path
from shared.ecg import decode, store
decode.CHUNK_RECORDS = 2
append = store._Partial.append
def slow_append(self, *chunk):
    append(self, *chunk)
    print(self.n_done, flush=True)
    time.sleep(0.2)
store._Partial.append = slow_append
store.pack("ptb-xl", Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_kill_minus_nine_and_continue(tree, packed, tmp_path, small_chunks):
    command = [sys.executable, "-c", SLOW_PACK, str(tree), str(tmp_path / "store")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    done = [int(process.stdout.readline()) for _ in range(3)]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert done == [2, 4, 6]
    with pytest.raises(StoreError, match="no finished store"):
        EcgStore(tmp_path / "store")
    assert (tmp_path / "store" / "signals.npy.part").exists()
    started = []
    partial = store._Partial.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            store._Partial, "append", lambda self, *chunk: started.append(self.n_done) or partial(self, *chunk)
        )
        pack("ptb-xl", tree, tmp_path / "store", workers=2)
    assert started[0] >= 6  # nothing journaled is decoded again
    assert digest(tmp_path / "store") == digest(packed)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted([*FILES, ".lock"])
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "workers outlived the killed parent"


@pytest.mark.parametrize("moment", range(10))
def test_every_moment_of_death(tree, packed, tmp_path, small_chunks, monkeypatch, moment):
    """Die before the k-th of the steps that touch the disk in the last chunk and in finishing, then continue."""
    steps = []

    def dying(function):
        def wrapped(*arguments, **keywords):
            steps.append(function.__name__)
            if len(steps) > 14 + moment:  # 8 chunks of samples and journal lines are 16 syncs; finishing is 8 steps
                raise MemoryError("killed here")
            return function(*arguments, **keywords)

        return wrapped

    with monkeypatch.context() as patch:
        for of, name in ((packing, "sync"), (packing, "sha256_of"), (store._Partial, "write_table")):
            patch.setattr(of, name, dying(getattr(of, name)))
        patch.setattr(packing.os, "replace", dying(os.replace))
        with pytest.raises(MemoryError):
            pack("ptb-xl", tree, tmp_path / "store", workers=1)
    pack("ptb-xl", tree, tmp_path / "store", workers=1)
    assert digest(tmp_path / "store") == digest(packed)


@pytest.mark.parametrize("renames", range(3))
def test_death_between_the_final_renames(tree, packed, tmp_path, monkeypatch, renames):
    done = []

    def replace(source, target):
        if len(done) == renames:
            raise MemoryError("killed here")
        done.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "replace", replace)
        with pytest.raises(MemoryError):
            pack("ptb-xl", tree, tmp_path / "store", workers=1)
    with pytest.raises(StoreError):
        EcgStore(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_chunk", None)  # everything is there: nothing may be decoded again
        pack("ptb-xl", tree, tmp_path / "store", workers=1)
    assert digest(tmp_path / "store") == digest(packed)


def interrupted(tree: Path, out: Path, monkeypatch) -> Path:
    """A pack that stopped after 12 records."""
    append = store._Partial.append

    def dying(self, *chunk):
        append(self, *chunk)
        if self.n_done >= 12:
            raise MemoryError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(store._Partial, "append", dying)
        with pytest.raises(MemoryError):
            pack("ptb-xl", tree, out, workers=1)
    return out


@pytest.mark.parametrize("damage", ["torn line", "garbage line", "samples behind the journal", "samples lost", "empty"])
def test_journal_and_samples_out_of_step(tree, packed, tmp_path, small_chunks, monkeypatch, damage):
    out = interrupted(tree, tmp_path / "store", monkeypatch)
    journal, part = out / "journal.jsonl", out / "signals.npy.part"
    if damage == "torn line":
        os.truncate(journal, journal.stat().st_size - 5)
    elif damage == "garbage line":
        journal.write_bytes(journal.read_bytes() + b"\0" * 100 + b"\n")
    elif damage == "samples behind the journal":
        part.write_bytes(part.read_bytes() + b"\1" * 999)
    elif damage == "samples lost":
        os.truncate(part, part.stat().st_size - 1)
    else:
        journal.write_bytes(b"")
    pack("ptb-xl", tree, out, workers=1)
    assert digest(out) == digest(packed)


def test_another_source_does_not_continue_this_journal(tree, packed, tmp_path, small_chunks, monkeypatch):
    out = interrupted(tree, tmp_path / "store", monkeypatch)
    other = write_tree(tmp_path / "ptb-xl", [500] * 20)
    assert pack("ptb-xl", other, out, workers=1)["counts"]["packed"] == 20
    EcgStore(out).verify()


FULL_DISK = """
import resource, sys
from pathlib import Path
from shared.ecg.store import StoreError, pack
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    pack("ptb-xl", Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
except StoreError as error:
    print(error)
"""


def test_full_disk_is_a_clear_error_and_the_pack_continues(tree, packed, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tree), str(tmp_path / "store")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "no room to write" in result.stdout and "run again to continue" in result.stdout, result.stderr
    pack("ptb-xl", tree, tmp_path / "store", workers=1)
    assert digest(tmp_path / "store") == digest(packed)


def test_second_packer_waits_and_finds_the_store(tree, packed, tmp_path):
    command = [sys.executable, "-c", SLOW_PACK, str(tree), str(tmp_path / "store")]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    first.stdout.readline()
    start = time.monotonic()
    pack("ptb-xl", tree, tmp_path / "store", workers=1)
    assert time.monotonic() - start > 1.0  # 14 further chunks of 0.2 s
    assert first.wait(timeout=10) == 0
    assert digest(tmp_path / "store") == digest(packed)
