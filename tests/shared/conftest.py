"""Fixtures of several test files: a server to download from, a tree in the PTB-XL layout and its packed store."""

import os
import threading
from collections import defaultdict
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from download_server import TREE, Handler, publish
from store_files import N_RECORDS, write_tree

from shared import fetch
from shared.ecg import decode
from shared.ecg.store import pack


@pytest.fixture
def server(monkeypatch):
    """A server with TREE; `files`, `faults` {path: [per GET]}, `honours_range`, `served` {path: bytes}, `requests`."""
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.005)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.lock, httpd.faults, httpd.honours_range, httpd.pause_s = threading.Lock(), {}, True, 0.0
    httpd.served, httpd.requests, httpd.files = defaultdict(int), [], {}
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    publish(httpd, TREE)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """Records of several lengths; number 7 is truncated, 12 lacks its samples."""
    root = write_tree(tmp_path_factory.mktemp("tree") / "ptb-xl", [500 + 10 * (i % 3) for i in range(N_RECORDS)])
    os.truncate(root / "records500/00000/00007_hr.dat", 100)
    (root / "records500/00000/00012_hr.dat").unlink()
    return root


@pytest.fixture(scope="session")
def packed(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "store"
    pack("ptb-xl", tree, out, workers=1)
    return out


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(decode, "CHUNK_RECORDS", 4)
