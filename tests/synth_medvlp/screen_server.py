"""A local server of the OpenAI chat-completions protocol that looks at the image it is sent, and misbehaves on request.

Pixel (0, 0) of an image names what it does at its first calls (`script`: value -> behaviours, one per call); after that
it answers by pixel (0, 1): bit i = NO to question i.
"""

import base64
import io
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

TEXTS = {
    "prose": "This looks like a normal chest X-ray of an adult.",
    "five": "1. YES\n2. YES\n3. YES\n4. NO\n5. YES",
    "cut": '{"1": "YES", "2": "Y',
    "empty": "",
}


class ScreenServer(ThreadingHTTPServer):
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
    with ScreenServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
        which, bits = int(image[0, 0, 0]), int(image[0, 1, 0])
        with self.server.lock:
            self.server.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            n = self.server.calls[which]
            self.server.calls[which] += 1
        script = self.server.script.get(which, [])
        behaviour = script[n] if n < len(script) else "good"
        if behaviour == "good":
            answers = {str(i + 1): "NO" if bits >> i & 1 else "YES" for i in range(6)}
            return self.complete(f"Here you are:\n```json\n{json.dumps(answers)}\n```")
        if behaviour.isdigit():
            return self.answer(int(behaviour), b'{"error": "scripted"}')
        if behaviour == "slow":
            time.sleep(1.0)
            return self.complete("late")
        if behaviour == "nojson":
            return self.answer(200, b"<html>gateway</html>")
        return self.complete(TEXTS[behaviour])

    def complete(self, content):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return
