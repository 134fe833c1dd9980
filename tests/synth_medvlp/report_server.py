"""A local server of the OpenAI chat-completions protocol that writes reports by template and misbehaves on request.

`script`: name of a request's first entity -> what it does at its first, second ... call; after that it behaves.
"""

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from synth_medvlp.backends import _sentence

TEXTS = {
    "empty": "  ",
    "refusal": "I'm sorry, but I cannot write medical reports.",
    "json": '{"findings": "There is a mass."}',
    "headings": "FINDINGS: There is a mass. IMPRESSION: Mass.",
    "extra": "Mild cardiomegaly. There is a large mass in the carina.",
    "fenced": "```text\n{text}\n```",
    "titled": "**FINDINGS:**\n{text}",
}


class ReportServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.calls, self.script, self.lock = [], Counter(), {}, threading.Lock()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):  # a client that gave up waiting is part of the test
        return


@contextmanager
def running():
    with ReportServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = next(m["content"] for m in body["messages"] if m["role"] == "user")
        entities = re.findall(r"^ *- (.+) \(([A-Z-]+)\)$", asked, re.M)
        places = [name for name in re.findall(r"^ *- ([^(\n]+)$", asked, re.M) if name != "none"]
        first = entities[0][0]
        with self.server.lock:
            self.server.requests.append(body)
            n = self.server.calls[first]
            self.server.calls[first] += 1
        does = (self.server.script.get(first, []) + [""] * (n + 1))[n]
        text = " ".join(_sentence(*e) for e in [*entities, *((place, "ANATOMY") for place in places)])
        if does.isdigit():
            return self.answer(int(does), b'{"error": "scripted"}')
        if does == "slow":
            time.sleep(0.6)
        if does == "nojson":
            return self.answer(200, b"<html>gateway</html>")
        if does == "garbage":
            return self.answer(200, bytes(range(256)))
        if does == "nochoices":
            return self.answer(200, b'{"choices": [], "created": 0, "id": "x", "model": "m", "object": "x"}')
        content = TEXTS.get(does, "{text}").replace("{text}", text)
        reason = "length" if does == "cut" else "stop"
        choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content}}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        if does != "uncounted":
            answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return
