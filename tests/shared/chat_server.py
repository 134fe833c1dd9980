"""A local server that speaks the OpenAI chat-completions protocol and misbehaves on request.

A test says what is asked (`asked`), how it is answered rightly (`good`), and what a wrong answer looks like (`broken`).
What is asked by "bad <behaviour> <n> ..." misbehaves at its first n requests; `script` names behaviours for others.
"""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODIES = {
    "nojson": b"<html>gateway</html>",
    "garbage": bytes(range(256)),
    "nochoices": b'{"choices": [], "created": 0, "id": "x", "model": "m", "object": "x"}',
}


class ChatServer(ThreadingHTTPServer):
    """requests: (headers by their lower-case names, body) of all. calls: what was asked -> how often."""

    daemon_threads = True
    broken: dict[str, str] = {}  # noqa: RUF012 (a constant of the subclass)
    slow_s = 0.6

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.calls, self.script, self.lock = [], Counter(), {}, threading.Lock()
        self.retry_after, self.knows_schema = None, True
        self.active = self.most_active = 0

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):  # a client that gave up waiting is part of the test
        return

    def asked(self, body):
        raise NotImplementedError

    def good(self, body) -> str:
        raise NotImplementedError

    def text(self, does: str, body) -> str:
        """Of a reply that misbehaves."""
        return self.broken[does]

    def behaviour(self, asked, n: int) -> str:
        """What the n-th request (from 0) does; "" = it behaves."""
        if isinstance(asked, str) and asked.startswith("bad "):
            _, does, times, *_ = asked.split()
            return does if n < int(times) else ""
        return (self.script.get(asked, []) + [""] * (n + 1))[n]


@contextmanager
def running(server: ChatServer):
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = server.asked(body)
        with server.lock:
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            server.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            does = server.behaviour(asked, server.calls[asked])
            server.calls[asked] += 1
        self.reply(does, body)

    def reply(self, does: str, body):
        if self.path != "/v1/chat/completions":
            return self.answer(404, b'{"error": "no such path"}')
        if "response_format" in body and not self.server.knows_schema:
            return self.answer(400, b'{"error": "unknown field response_format"}')
        if does.isdigit():
            return self.answer(int(does), b'{"error": "scripted"}')
        if does in BODIES:
            return self.answer(200, BODIES[does])
        if does == "slow":
            time.sleep(self.server.slow_s)
        good = does in ("", "slow", "uncounted")
        message = {"role": "assistant", "content": self.server.good(body) if good else self.server.text(does, body)}
        choice = {"index": 0, "finish_reason": "length" if does == "cut" else "stop", "message": message}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        if does != "uncounted":
            answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        with self.server.lock:
            self.server.active -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429 and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return


# --- what kmerl and supreme have in common: statements, read and then verified ---


class StatementServer(ChatServer):
    """rejects: entities that the second pass refuses."""

    def __init__(self, read):
        super().__init__()
        self.read, self.rejects = read, set()

    def last(self, body) -> str:
        return [m["content"] for m in body["messages"] if m["role"] == "user" and "<statement>" in m["content"]][-1]

    def asked(self, body):
        return between("statement", self.last(body))

    def good(self, body):
        content = self.last(body)
        return self.verdicts(content) if "<entities>" in content else self.read(between("statement", content))

    def verdicts(self, content):
        asked = json.loads(between("entities", content))
        out = [{"entity": e["entity"], "occurs": e["entity"] not in self.rejects} for e in asked]
        return json.dumps({"verdicts": out})


def between(tag: str, text: str) -> str:
    return text.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def save_tiny_llm(folder) -> None:
    """A random two-layer model with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<pad>", "<end>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32768, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
