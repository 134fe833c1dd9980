"""A real HTTP server on loopback that cuts, lies, ignores Range and fails, for the tests of shared/download.py.

The fixture `server` (conftest.py) runs it.
"""

import hashlib
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

BIG = bytes(range(256)) * 4096  # 1 MiB
TREE = {
    "LICENSE.txt": b"CC BY 4.0\n",
    "RECORDS": b"",  # empty files exist in releases
    "records500/00000/00001_hr.hea": b"00001_hr 12 500 5000\n",
    "records500/00000/00001_hr.dat": BIG,
    "records100/00000/00001 lr.hea": b"a name with a space\n",
}
DAT = "records500/00000/00001_hr.dat"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        path = self.path.lstrip("/").replace("%20", " ")
        with server.lock:
            server.requests.append((self.command, path, self.headers.get("Range")))
            faults = server.faults.get(path, []) if self.command == "GET" else []
            fault = faults[0] if faults and faults[-1] == "always" else faults.pop(0) if faults else ""
        body = server.files.get(path)
        if body is None or fault == "404":
            return self._answer(404, b"")
        if fault.startswith("503"):
            return self._answer(503, b"busy", {"Retry-After": "0"})
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        first = int(self.headers["Range"][6:-1]) if "Range" in self.headers and server.honours_range else 0
        if first and first >= len(body):
            return self._answer(416, b"")
        if first and fault == "other range":
            first -= 1
        headers = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        cut = int(fault[4:]) if fault.startswith("cut ") else None
        self._answer(206 if first else 200, body[first:], headers, cut, path)

    def _answer(self, status, body, headers=None, cut=None, path=""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        try:
            for start in range(0, len(sent), 1 << 15):
                block = sent[start : start + (1 << 15)]
                self.wfile.write(block)
                with self.server.lock:
                    self.server.served[path] += len(block)
                time.sleep(self.server.pause_s)
            self.wfile.flush()
        except ConnectionError:
            pass  # the client was killed
        if cut is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def publish(httpd, tree: dict, separator: str = " "):
    lines = [f"{hashlib.sha256(body).hexdigest()}{separator}{path}\n" for path, body in tree.items()]
    httpd.files = dict(tree) | {"SHA256SUMS.txt": "".join(lines).encode()}


def assert_tree(root: Path, tree: dict):
    for path, body in tree.items():
        assert (root / path).read_bytes() == body, path
    assert not list(root.rglob("*.part"))
