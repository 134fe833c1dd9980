"""A local server that speaks the OpenAI chat-completions protocol, answers by the rules, and misbehaves on request.

A statement "bad <behaviour> <n> <rest>" misbehaves at its first n requests; `rejects`: what the second pass refuses.
"""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from supreme.prompt import as_item
from supreme.rules import read

GOOD = {
    "surface": "sinus rhythm", "entity": "sinus rhythm", "category": "rhythm", "polarity": "normal",
    "certainty": "definite", "temporality": "current", "location": [], "residual": False,
}  # fmt: skip
BROKEN = {
    "prose": "The statement speaks of a normal heart.",
    "cut": '{"entities": [{"surface": "sinus rhy',
    "empty": "",
    "certainty": json.dumps({"entities": [GOOD | {"certainty": "maybe"}]}),
    "made-up": json.dumps({"entities": [GOOD | {"surface": "words that nobody wrote"}]}),
    "wrong-span": json.dumps({"entities": [GOOD | {"span": [0, 3]}]}),
    "missing": json.dumps({"entities": [{"surface": "sinus rhythm", "entity": "sinus rhythm"}]}),
    "extra": json.dumps({"entities": [GOOD | {"confidence": 0.9}]}),
    "list": json.dumps(["sinus rhythm"]),
}


def good(statement: str) -> str:
    items = [{k: v for k, v in as_item(e).items() if k != "span"} for e in read(statement)]
    return json.dumps({"entities": items})


class ChatServer(ThreadingHTTPServer):
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


@contextmanager
def running():
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
        asked = [m["content"] for m in body["messages"] if m["role"] == "user" and "<statement>" in m["content"]]
        statement = re.search(r"<statement>\n(.*)\n</statement>", asked[-1])[1]
        with self.server.lock:
            n = self.server.count[statement] = self.server.count.get(statement, 0) + 1
        if "response_format" in body and not self.server.knows_schema:
            return self.answer(400, b'{"error": "unknown field response_format"}')
        _, behaviour, times, *_ = statement.split() if statement.startswith("bad ") else ("", "", "0")
        if n > int(times):
            return self.complete(self.verdicts(asked[-1]) if "<entities>" in asked[-1] else good(statement))
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
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
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
