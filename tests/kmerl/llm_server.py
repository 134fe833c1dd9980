"""A small local server that speaks the chat-completions protocol, answers by the dictionary, and misbehaves on request.

A statement "bad <behaviour> <n> ..." misbehaves at its first n requests; `rejects` names what the second pass refuses.
"""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kmerl.dictionary import read

GOOD = {"entity": "sinus rhythm", "status": "affirmed", "evidence": "sinus rhythm"}
BROKEN = {
    "prose": "The statement speaks of a normal heart.",
    "cut": '{"entities": [{"entity": "sinus rhy',
    "empty": "",
    "status": json.dumps({"entities": [GOOD | {"status": "maybe"}]}),
    "span": json.dumps({"entities": [GOOD | {"evidence": "words that nobody wrote"}]}),
    "missing": json.dumps({"entities": [{"entity": "sinus rhythm", "status": "affirmed"}]}),
    "extra": json.dumps({"entities": [GOOD | {"confidence": 0.9}]}),
    "list": json.dumps(["sinus rhythm"]),
}


class LlmServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.count, self.lock = [], {}, threading.Lock()
        self.rejects, self.retry_after, self.knows_schema = set(), None, True
        self.active = self.most_active = 0

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):  # a client that gave up waiting is part of the test
        return


def good(statement: str) -> str:
    found = [{"entity": f.entity, "status": f.status, "evidence": statement[f.start : f.end]} for f in read(statement)]
    return json.dumps({"entities": found})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
            self.server.requests.append((dict(self.headers), body))
        try:
            self.reply(body)
        finally:
            with self.server.lock:
                self.server.active -= 1

    def reply(self, body):
        content = body["messages"][1]["content"]
        statement = re.search(r"<statement>\n(.*)\n</statement>", content)[1]
        with self.server.lock:
            n = self.server.count[statement] = self.server.count.get(statement, 0) + 1
        if "response_format" in body and not self.server.knows_schema:
            return self.answer(400, b'{"error": "unknown field response_format"}')
        _, behaviour, times, *_ = statement.split() if statement.startswith("bad ") else ("", "", "0")
        if n > int(times):
            return self.complete(self.verdicts(content) if "<entities>" in content else good(statement))
        if behaviour.isdigit():
            return self.answer(int(behaviour), b'{"error": "scripted"}')
        if behaviour == "slow":
            time.sleep(0.6)
            return self.complete(good(statement))
        if behaviour == "nojson":
            return self.answer(200, b"<html>gateway</html>")
        if behaviour == "nochoices":
            return self.answer(200, b'{"choices": [], "created": 0, "id": "x", "model": "m", "object": "x"}')
        return self.complete(BROKEN[behaviour])

    def verdicts(self, content):
        asked = json.loads(re.search(r"<entities>\n(.*)\n</entities>", content)[1])
        out = [{"entity": e["entity"], "occurs": e["entity"] not in self.server.rejects} for e in asked]
        return json.dumps({"verdicts": out})

    def complete(self, content):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429 and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return
