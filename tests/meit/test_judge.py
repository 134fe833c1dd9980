"""The judge against a small local server that speaks the chat-completions protocol and misbehaves on request.

What the server does is scripted by the candidate report: "bad <behaviour> <n>" misbehaves n times, then rates.
"""

import json

import numpy as np
import pandas as pd
import pytest
from chat_server import ChatServer, between, running

from meit.judge import ASKING, CRITERIA, judge_reports, judge_scores
from shared.chat import EndpointError

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


class JudgeServer(ChatServer):
    broken = BROKEN_REPLIES

    def asked(self, body):
        return between("candidate", body["messages"][1]["content"])

    def good(self, body):
        rating = json.dumps(GOOD)
        return f"Sure:\n```json\n{rating}\n```" if self.asked(body) == "fenced" else rating


@pytest.fixture
def server():
    with running(JudgeServer()) as server:
        yield server


def _pairs(*candidates):
    ids = [f"r{i}" for i in range(len(candidates))]
    return pd.DataFrame({"id": ids, "reference": "Sinus rhythm.", "prediction": list(candidates)})


def _judge(server, pairs, path, **options):
    with pytest.MonkeyPatch.context() as patch:
        for key, value in ({"retries": 2, "timeout_s": 5.0, "backoff_s": 0.01} | options).items():
            patch.setitem(ASKING, key, value)
        return judge_reports(pairs, server.base_url, "judge-model", path)


def test_a_rating_is_read_and_the_request_is_what_the_protocol_asks(server, tmp_path):
    table = _judge(server, _pairs("Sinus rhythm.", "fenced"), tmp_path / "cache.jsonl")
    assert list(table.columns) == ["id", *CRITERIA, "error"] and list(table["id"]) == ["r0", "r1"]
    assert (table[list(CRITERIA)] == list(GOOD.values())).all(axis=None) and (table["error"] == "").all()
    _, body = server.requests[0]
    assert body["model"] == "judge-model" and body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert all(name in body["messages"][0]["content"] for name in CRITERIA)


def test_the_users_hub_token_is_not_sent_to_the_judge(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    _judge(server, _pairs("a"), tmp_path / "cache.jsonl")
    assert "hf_private" not in json.dumps(server.requests[0][0])
    monkeypatch.setenv("JUDGE_API_KEY", "from-environment")
    _judge(server, _pairs("b"), tmp_path / "cache.jsonl")
    assert "Bearer from-environment" in json.dumps(server.requests[1][0])


@pytest.mark.parametrize("behaviour", [*BROKEN_REPLIES, "nojson", "nochoices", "429", "500", "503"])
def test_it_asks_again_and_gets_a_rating(server, tmp_path, behaviour):
    table = _judge(server, _pairs(f"bad {behaviour} 2"), tmp_path / "cache.jsonl")
    assert table.loc[0, list(CRITERIA)].to_dict() == GOOD and len(server.requests) == 3


def test_a_broken_reply_is_shown_to_the_judge_with_what_is_wrong(server, tmp_path):
    _judge(server, _pairs("bad range 1"), tmp_path / "cache.jsonl")
    again = server.requests[1][1]["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert (
        again[2]["content"] == BROKEN_REPLIES["range"] and "6 is greater than the maximum of 5" in again[3]["content"]
    )


def test_failures_are_counted_and_listed_and_never_scored(server, tmp_path, caplog):
    pairs = _pairs("Sinus rhythm.", "bad range 99", "bad slow 99", "bad 429 99", "bad 400 99", "AF.")
    table = _judge(server, pairs, tmp_path / "cache.jsonl", retries=1, timeout_s=0.25)
    failed = [1, 2, 3, 4]
    assert table.loc[failed, list(CRITERIA)].isna().all(axis=None) and table.loc[[0, 5], "diagnosis"].eq(3).all()
    assert [bool(error) for error in table["error"]] == [False, True, True, True, True, False]
    for row, words in zip(failed, ["greater than", "timed out", "HTTP 429", "HTTP 400"], strict=True):
        assert words in table.loc[row, "error"], table.loc[row, "error"]
    assert "4 of 6 pairs got no rating: ['r1', 'r2', 'r3', 'r4']" in caplog.text
    assert server.calls["bad range 99"] == 2 and server.calls["bad 400 99"] == 1  # a refusal of the pair is final
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
    pairs = _pairs("a", f"bad {status} 99", *(f"x{i}" for i in range(50)))
    with pytest.raises(EndpointError, match=f"judge-model.*HTTP {status}"):
        _judge(server, pairs, tmp_path / "cache.jsonl", workers=1)
    assert len(server.requests) == 2 and len((tmp_path / "cache.jsonl").read_text().splitlines()) == 1


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
    evaluate.main([*args, "--eval.bertscore_layer=3"])
    assert 3 in json.loads((run / "metrics.json").read_text())["scored_by"], "of another layer, so scored again"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"data_hash": "x"}))
    with pytest.raises(ValueError, match="other records, labels or texts; train again"):
        evaluate.main(args)
