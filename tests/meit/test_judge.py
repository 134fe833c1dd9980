"""The judge against a small local server that speaks the chat-completions protocol and misbehaves on request.

What the server does is scripted by the candidate report: "bad:<behaviour>:<n>" misbehaves n times, then rates.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from meit import judge
from meit.judge import CRITERIA, JudgeError, judge_reports, judge_scores

GOOD = {"terminology": 4, "logic": 5, "completeness": 2, "diagnosis": 3}
BROKEN_REPLIES = {
    "prose": "I would say that this is a fine report.",
    "cut": '{"terminology": 4, "logic": 5, "comple',
    "range": json.dumps({**GOOD, "diagnosis": 6}),
    "zero": json.dumps({**GOOD, "logic": 0}),
    "half": json.dumps({**GOOD, "logic": 3.5}),
    "bool": json.dumps({**GOOD, "logic": True}),
    "text": json.dumps({**GOOD, "logic": "5"}),
    "missing": json.dumps({k: v for k, v in GOOD.items() if k != "completeness"}),
    "list": json.dumps([4, 5, 2, 3]),
    "empty": "",
}


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.count, self.lock = [], {}, threading.Lock()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):  # a client that gave up waiting is part of the test
        return


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        candidate = body["messages"][1]["content"].split("<candidate>\n")[1].split("\n</candidate>")[0]
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            n = self.server.count[candidate] = self.server.count.get(candidate, 0) + 1
        _, behaviour, times = candidate.split(":") if candidate.startswith("bad:") else ("", "", "0")
        if n > int(times):
            self.complete(json.dumps(GOOD) if candidate != "fenced" else f"Sure:\n```json\n{json.dumps(GOOD)}\n```")
        elif behaviour.isdigit():
            self.answer(int(behaviour), b'{"error": "scripted"}')
        elif behaviour == "slow":
            time.sleep(0.6)
            self.complete(json.dumps(GOOD))
        elif behaviour == "nojson":
            self.answer(200, b"<html>gateway</html>")
        elif behaviour == "nochoices":
            self.answer(200, b'{"choices": [], "created": 0, "id": "x", "model": "m", "object": "chat.completion"}')
        else:
            self.complete(BROKEN_REPLIES[behaviour])

    def complete(self, content):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return


@pytest.fixture
def server():
    with JudgeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _pairs(*candidates):
    ids = [f"r{i}" for i in range(len(candidates))]
    return pd.DataFrame({"id": ids, "reference": "Sinus rhythm.", "prediction": list(candidates)})


def _judge(server, pairs, path, **options):
    options = {"retries": 2, "timeout_s": 5.0, "backoff_s": 0.01} | options
    return judge_reports(pairs, server.base_url, "judge-model", path, **options)


def test_a_rating_is_read_and_the_request_is_what_the_protocol_asks(server, tmp_path):
    table = _judge(server, _pairs("Sinus rhythm.", "fenced"), tmp_path / "cache.jsonl", api_key="secret")
    assert list(table.columns) == ["id", *CRITERIA, "error"] and list(table["id"]) == ["r0", "r1"]
    assert (table[list(CRITERIA)] == list(GOOD.values())).all(axis=None) and (table["error"] == "").all()
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "judge-model" and body["temperature"] == 0
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert all(name in body["messages"][0]["content"] for name in CRITERIA)


def test_the_users_hub_token_is_not_sent_to_the_judge(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    _judge(server, _pairs("a"), tmp_path / "cache.jsonl")
    assert "hf_private" not in json.dumps(server.requests[0][1])
    monkeypatch.setenv("JUDGE_API_KEY", "from-environment")
    _judge(server, _pairs("b"), tmp_path / "cache.jsonl")
    assert "Bearer from-environment" in json.dumps(server.requests[1][1])


@pytest.mark.parametrize("behaviour", [*BROKEN_REPLIES, "nojson", "nochoices", "429", "500", "503"])
def test_it_asks_again_and_gets_a_rating(server, tmp_path, behaviour):
    table = _judge(server, _pairs(f"bad:{behaviour}:2"), tmp_path / "cache.jsonl")
    assert table.loc[0, list(CRITERIA)].to_dict() == GOOD and len(server.requests) == 3


def test_it_asks_again_after_a_timeout(server, tmp_path):
    table = _judge(server, _pairs("bad:slow:1"), tmp_path / "cache.jsonl", timeout_s=0.25)
    assert table.loc[0, "logic"] == 5 and len(server.requests) == 2


def test_a_broken_reply_is_shown_to_the_judge_with_what_is_wrong(server, tmp_path):
    _judge(server, _pairs("bad:range:1"), tmp_path / "cache.jsonl")
    again = server.requests[1][2]["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert (
        again[2]["content"] == BROKEN_REPLIES["range"] and "6 is greater than the maximum of 5" in again[3]["content"]
    )


def test_retry_after_is_obeyed(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(judge.time, "sleep", waits.append)
    monkeypatch.setattr(Handler, "end_headers", _with_retry_after(Handler.end_headers))
    _judge(server, _pairs("bad:429:2"), tmp_path / "cache.jsonl", backoff_s=2.0)
    assert waits == [7.0, 7.0]
    waits.clear()
    _judge(server, _pairs("bad:cut:2"), tmp_path / "cache.jsonl", backoff_s=2.0)
    assert waits == [2.0, 4.0]  # doubles


def _with_retry_after(end_headers):
    def patched(self):
        self.send_header("Retry-After", "7")
        end_headers(self)

    return patched


def test_failures_are_counted_and_listed_and_never_scored(server, tmp_path, caplog):
    pairs = _pairs("Sinus rhythm.", "bad:range:99", "bad:slow:99", "bad:429:99", "bad:400:99", "AF.")
    table = _judge(server, pairs, tmp_path / "cache.jsonl", retries=1, timeout_s=0.25)
    failed = [1, 2, 3, 4]
    assert table.loc[failed, list(CRITERIA)].isna().all(axis=None) and table.loc[[0, 5], "diagnosis"].eq(3).all()
    assert [bool(error) for error in table["error"]] == [False, True, True, True, True, False]
    for row, words in zip(failed, ["greater than", "timed out", "HTTP 429", "HTTP 400"], strict=True):
        assert words in table.loc[row, "error"], table.loc[row, "error"]
    assert "4 of 6 pairs got no rating: ['r1', 'r2', 'r3', 'r4']" in caplog.text
    assert server.count["bad:range:99"] == 2 and server.count["bad:400:99"] == 1  # a refusal of the pair is final
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 2  # failures are asked again next time


def test_the_cache_answers_without_asking_again_and_survives_a_cut(server, tmp_path):
    cache = tmp_path / "deep" / "cache.jsonl"
    first = _judge(server, _pairs("a", "b", "a"), cache)
    assert len(server.requests) == 2  # equal pairs are asked once
    pd.testing.assert_frame_equal(_judge(server, _pairs("a", "b", "a"), cache), first)
    assert len(server.requests) == 2
    text = cache.read_text()
    cache.write_text(text[:-20])  # killed while writing the last line
    pd.testing.assert_frame_equal(_judge(server, _pairs("a", "b", "a"), cache), first)
    assert len(server.requests) == 3 and len(cache.read_text().splitlines()) == 2
    judge_reports(_pairs("a"), server.base_url, "other-model", cache)
    _judge(server, _pairs("a").assign(reference="AF."), cache)
    assert len(server.requests) == 5  # another judge or another reference is another question


def test_a_foreign_cache_file_is_named(server, tmp_path):
    (tmp_path / "cache.jsonl").write_text('{"key": "x"}\n')
    with pytest.raises(ValueError, match=r"cache\.jsonl, line 1: not a rating"):
        _judge(server, _pairs("a"), tmp_path / "cache.jsonl")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_keeps_what_was_rated(server, tmp_path, status):
    pairs = _pairs("a", f"bad:{status}:99", *(f"x{i}" for i in range(50)))
    with pytest.raises(JudgeError, match=f"judge-model.*HTTP {status}"):
        _judge(server, pairs, tmp_path / "cache.jsonl", workers=1)
    assert len(server.requests) == 2 and len((tmp_path / "cache.jsonl").read_text().splitlines()) == 1


def test_no_server_is_an_error_that_names_the_address(server, tmp_path):
    server.server_close()
    with pytest.raises(JudgeError, match=f"no judge answers at {server.base_url}.*is the server running"):
        _judge(server, _pairs("a"), tmp_path / "cache.jsonl", retries=1)


def test_scores_are_means_over_the_rated_pairs():
    table = pd.DataFrame({"id": ["a", "b", "c"], **{name: [1.0, np.nan, 4.0] for name in CRITERIA}})
    scores = judge_scores(table)
    assert list(scores) == [f"judge_{name}" for name in (*CRITERIA, "mean")]
    for s in scores.values():
        assert s.stats.shape == (3, 2) and s.reduce(s.stats.sum(0)) == 2.5
        two_draws = np.array([[2, 5, 0], [0, 1, 0]]) @ s.stats  # bootstrap weights; one draw has no rated pair
        assert s.reduce(two_draws)[0] == 1.0 and np.isnan(s.reduce(two_draws)[1])


def test_evaluation_with_a_judge_carries_the_ratings(server, tmp_path, monkeypatch):
    from meit import evaluate, train

    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    llm = "--model.llm={hidden_size: 32, layers: 2, heads: 2}"
    args = ["--config=meit/configs/smoke.yaml", f"--runs={tmp_path}", llm, "--eval.inputs=[ecg, shuffle]"]
    args += ['--eval.metrics=["bleu"]', f"--eval.judge_url={server.base_url}", "--eval.judge_model=judge-model"]
    run = train.main(args)
    evaluate.main(args)
    table = pd.read_parquet(run / "predictions.parquet")
    rated = table[table.input == "ecg"]
    assert len(rated) and (rated[list(CRITERIA)] == list(GOOD.values())).all(axis=None)
    assert table.loc[table.input == "shuffle", list(CRITERIA)].isna().all(axis=None)
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["ecg"]["judge_mean"]["value"] == np.mean(list(GOOD.values()))
