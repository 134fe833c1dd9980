"""A hub on loopback: repositories are made, uploaded to (weights by LFS, the rest within the commit) and read from.

The fixture `hub` (conftest.py) runs it and points huggingface_hub at it.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_of_the_tests"
SHA = "0123456789abcdef" * 2 + "01234567"  # of the one commit a repository has


class Hub(ThreadingHTTPServer):
    """repos: owner/name -> {path: content}; private: which were made private; stored: LFS object -> content."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        body = self._body()
        oid = self.path.rsplit("/", 1)[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        self._answer(b"")

    def do_POST(self):
        body, path = self._body(), urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            self.server.private |= {name} if asked.get("visibility") == "private" else set()
            return self._json({"url": f"{self.server.endpoint}/{name}"})
        parts = path.strip("/").split("/")
        if "preupload" in parts:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if path.endswith("/objects/batch"):
            urls = [(o, f"{self.server.endpoint}/lfs/{o['oid']}") for o in json.loads(body)["objects"]]
            objects = [o | {"actions": {"upload": {"href": url}}} for o, url in urls]
            return self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        assert "commit" in parts, path
        return self._commit("/".join(parts[2:4]), body)

    def _commit(self, name: str, body: bytes):
        files = self.server.repos[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        self._json({"commitUrl": f"{self.server.endpoint}/{name}/commit/{SHA}", "commitOid": SHA})

    do_HEAD = lambda self: self.do_GET()  # noqa: E731

    def do_GET(self):
        parts = urlsplit(self.path).path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.repos.get(name)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api" and "tree" in parts:
            return self._json([self._entry(path, content) for path, content in files.items()])
        if parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": SHA, "siblings": siblings, "private": True})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": SHA})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value, status: int = 200, headers: dict | None = None, kind: str = "application/json"):
        self._answer(json.dumps(value).encode(), status, {"Content-Type": kind} | (headers or {}))

    def _answer(self, body: bytes, status: int = 200, headers: dict | None = None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
