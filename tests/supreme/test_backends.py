"""`supreme.backends`: a language model behind a misbehaving local server or on this machine, a replayed file, the cache
that a killed run leaves, and what is counted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import StatementServer, running, save_tiny_llm

from shared.chat import parse
from supreme import backends, prompt, rules
from supreme.backends import make, read_statements, write_jsonl
from supreme.extract import ExtractConfig
from supreme.prompt import EXTRACT_SCHEMA, REJECTED, VERIFY_SCHEMA, as_item, ground, paper_view

STATEMENT = "sinus rhythm with pacs, no lvh, possible inferior infarct"
STATEMENTS = [STATEMENT, "otherwise normal ecg", "poor data quality", "no previous ecg available for comparison"]


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
    items = [{k: v for k, v in as_item(e).items() if k != "span"} for e in rules.read(statement)]
    return json.dumps({"entities": items})


@pytest.fixture
def server():
    with running(StatementServer(good)) as server:
        server.broken = BROKEN
        yield server


def _config(server, **options):
    options = {"retries": 2, "timeout_s": 5.0, "backoff_s": 0.01, "workers": 4, "verify": True} | options
    return ExtractConfig(backend="endpoint", model="llm", base_url=server.base_url, **options)


def _read(cfg, *statements):
    found = {r.statement: r for r in make(cfg).read(list(statements))}
    assert set(found) == set(statements)
    return found


# --- what is asked, and what an answer may be ---


def test_the_few_shot_pairs_obey_what_they_teach():
    shots = prompt.texts()["shots"]
    assert len(shots) >= 2
    for shot in shots:
        parse(json.dumps({"entities": shot["entities"]}), EXTRACT_SCHEMA)
        entities, ungrounded = ground(shot["entities"], shot["statement"])
        assert len(entities) == len(shot["entities"]) and not ungrounded
        assert [(e.entity, e.certainty, e.residual) for e in entities] == [
            (e.entity, e.certainty, e.residual) for e in rules.read(shot["statement"])
        ] or "cannot be read" in shot["statement"]


def test_the_question_has_the_three_blocks_and_ends_with_the_statement():
    messages = prompt.question("lvh")
    roles = [m["role"] for m in messages]
    assert roles == ["system", *["user", "assistant"] * len(prompt.texts()["shots"]), "user"]
    assert messages[-1]["content"] == "<statement>\nlvh\n</statement>"
    for block in ("constraints", "knowledge"):
        assert prompt.texts()[block] in messages[0]["content"]
    assert prompt.version(True) != prompt.version(False)


def test_grounding_drops_and_lists_what_the_statement_does_not_say():
    item = GOOD
    cases = [
        ({"surface": "Sinus Rhythm"}, (0, 12), ""),
        ({"span": [0, 12]}, (0, 12), ""),
        ({"span": [17, 29]}, (17, 29), ""),
        ({"span": [1, 13]}, None, "span does not match"),
        ({"span": [17, 999]}, None, "span does not match"),
        ({"surface": "atrial flutter"}, None, "not in the statement"),
        ({"surface": " "}, None, "not in the statement"),
    ]
    for change, span, reason in cases:
        entities, ungrounded = ground([item | change], "sinus rhythm and sinus rhythm")
        assert [(e.start, e.end) for e in entities] == ([span] if span else [])
        assert [u["reason"] for u in ungrounded] == ([reason] if reason else [])
    twice, _ = ground([item, item], "sinus rhythm and sinus rhythm")
    assert [e.start for e in twice] == [0, 17]
    assert len(ground([item, item], "sinus rhythm")[0]) == 1


# --- the endpoint ---


def test_a_statement_is_read_and_verified_and_the_requests_are_what_the_protocol_asks(server, monkeypatch):
    monkeypatch.setenv(backends.API_KEY, "secret")
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    reading = _read(_config(server), STATEMENT)[STATEMENT]
    assert reading.error == "" and reading.entities == tuple(rules.read(STATEMENT)) and len(reading.entities) == 4
    assert reading.usage == (2, 0, 200, 14)
    assert len(server.requests) == 2
    for (headers, body), schema in zip(server.requests, (EXTRACT_SCHEMA, VERIFY_SCHEMA), strict=True):
        assert headers["authorization"] == "Bearer secret"
        assert body["model"] == "llm" and body["temperature"] == 0 and body["max_tokens"] == 512
        assert body["response_format"]["value"] == schema


def test_the_second_pass_rejects_and_what_it_rejects_is_listed(server):
    server.rejects = {"atrial premature complex"}
    reading = _read(_config(server), STATEMENT)[STATEMENT]
    assert len(reading.entities) == 3 and "atrial premature complex" not in {e.entity for e in reading.entities}
    assert [(u["surface"], u["reason"]) for u in reading.ungrounded] == [("pacs", REJECTED)]
    assert len(_read(_config(server, verify=False), STATEMENT)[STATEMENT].entities) == 4
    assert len(server.requests) == 3


@pytest.mark.parametrize("behaviour", [*BROKEN, "nojson", "nochoices", "429", "500", "503"])
def test_it_asks_again_and_reads_the_statement(server, behaviour):
    statement = f"bad {behaviour} 2 sinus rhythm"
    reading = _read(_config(server), statement)[statement]
    assert [e.entity for e in reading.entities] == ["sinus rhythm"] and reading.error == ""
    assert len(server.requests) == 4  # two bad, one good, one of the second pass
    assert (reading.usage.calls, reading.usage.retries) == (4, 2)


def test_what_is_made_up_is_dropped_and_the_rest_is_kept(server, monkeypatch):
    made_up = GOOD | {"surface": "atrial flutter", "entity": "atrial flutter"}
    monkeypatch.setattr(server, "read", lambda statement: json.dumps({"entities": [made_up, GOOD]}))
    reading = _read(_config(server), "sinus rhythm")["sinus rhythm"]
    assert [e.entity for e in reading.entities] == ["sinus rhythm"] and not reading.error
    assert [(u["surface"], u["reason"]) for u in reading.ungrounded] == [("atrial flutter", "not in the statement")]
    assert reading.usage.retries == 0


def test_a_broken_second_pass_is_asked_again(server, monkeypatch):
    answers = iter(["nonsense", '{"verdicts": []}', '{"verdicts": [{"entity": "sinus rhythm", "occurs": true}]}'])
    monkeypatch.setattr(server, "verdicts", lambda content: next(answers))
    reading = _read(_config(server), "sinus rhythm")["sinus rhythm"]
    assert len(reading.entities) == 1 and len(server.requests) == 4


def test_failures_are_said_and_bounded_and_never_read_as_nothing(server):
    bad = {"made-up": "does not contain", "cut": "no JSON object", "slow": "timed out", "429": "HTTP 429", "422": "422"}
    cfg = _config(server, retries=1, timeout_s=0.25)
    found = _read(cfg, *(f"bad {b} 99 x" for b in bad), "sinus rhythm", "no previous ecg for comparison")
    for behaviour, words in bad.items():
        reading = found[f"bad {behaviour} 99 x"]
        assert words in reading.error and not reading.entities
        assert server.calls[reading.statement] == reading.usage.calls <= 3
    assert found["bad made-up 99 x"].ungrounded[0]["surface"] == "words that nobody wrote"
    assert found["sinus rhythm"].entities and not found["sinus rhythm"].error
    nothing = found["no previous ecg for comparison"]
    assert not nothing.entities and not nothing.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "oracle"}, "extract.backend='oracle': one of rules, local, endpoint, replay"),
        ({"backend": "endpoint", "model": "m"}, "needs extract.base_url"),
        ({"backend": "local"}, "needs extract.model"),
        ({"backend": "replay"}, "needs extract.replay_file"),
        ({"backend": "replay", "replay_file": "nowhere.jsonl"}, "extract.replay_file: there is no nowhere.jsonl"),
    ],
)
def test_a_config_that_lacks_something_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(ExtractConfig(**options))


# --- the cache ---


def test_a_rerun_from_the_cache_asks_nothing_and_is_byte_identical(server, tmp_path):
    cfg = _config(server)
    statements = [*STATEMENTS, "bad cut 1 lvh"]
    outputs = []
    for i in range(2):
        readings, counts = read_statements(cfg, statements, tmp_path / "cache")
        write_jsonl(tmp_path / f"{i}.jsonl", readings, counts)
        outputs.append(((tmp_path / f"{i}.jsonl").read_bytes(), json.dumps(counts), readings, len(server.requests)))
    assert outputs[0] == outputs[1]
    assert [r.statement for r in outputs[0][2]] == statements
    counts = json.loads(outputs[0][1])
    assert (counts["source"], counts["model"], counts["prompt_version"]) == ("llm", "llm", prompt.version(True))
    assert (counts["statements"], counts["failed"], counts["valid_share"], counts["nothing"]) == (5, 0, 1.0, 1)
    assert (counts["entities"], counts["ungrounded"], counts["grounded_share"]) == (7, 0, 1.0)
    assert (counts["calls"], counts["retries"]) == (len(server.requests), 1) == (10, 1)
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (1000, 70)


def test_a_line_has_the_references_schema(tmp_path):
    readings, counts = read_statements(ExtractConfig(backend="rules"), STATEMENTS, tmp_path)
    write_jsonl(tmp_path / "extraction.jsonl", readings, counts)
    lines = [json.loads(line) for line in (tmp_path / "extraction.jsonl").read_text().splitlines()]
    assert [line["statement"] for line in lines] == STATEMENTS
    for line, reading in zip(lines, readings, strict=True):
        assert (line["source"], line["prompt_version"]) == ("rules", rules.version())
        assert line["paper_view"] == paper_view(reading.entities)
        for e in line["entities"]:
            assert line["statement"][slice(*e["span"])] == e["surface"]


def test_failures_are_asked_again_and_never_cached(server, tmp_path):
    cfg = _config(server, retries=0)
    readings, counts = read_statements(cfg, ["bad cut 2 lvh", "sinus rhythm"], tmp_path)
    assert [bool(r.error) for r in readings] == [True, False]
    assert (counts["failed"], counts["valid_share"], counts["nothing"]) == (1, 0.5, 0)
    write_jsonl(tmp_path / "out.jsonl", readings, counts)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1
    assert read_statements(cfg, ["bad cut 2 lvh", "sinus rhythm"], tmp_path)[0][0].error
    readings, counts = read_statements(cfg, ["bad cut 2 lvh", "sinus rhythm"], tmp_path)
    assert readings[0].entities and counts["failed"] == 0
    assert server.calls["sinus rhythm"] == 2  # one of each pass


def test_what_was_asked_otherwise_is_read_anew(server, tmp_path):
    for options in ({}, {"verify": False}, {"max_new_tokens": 64}, {"revision": "abc"}, {"response_format": False}):
        sent = len(server.requests)
        read_statements(_config(server, **options), ["sinus rhythm"], tmp_path)
        assert len(server.requests) > sent
    sent = len(server.requests)
    read_statements(_config(server, timeout_s=4.0, workers=1, retries=1), ["sinus rhythm"], tmp_path)
    assert len(server.requests) == sent  # neither patience nor parallelism changes an answer


KILLED = """
import sys
from pathlib import Path
from supreme.backends import read_statements
from supreme.extract import ExtractConfig
cfg = ExtractConfig(backend="endpoint", model="llm", base_url=sys.argv[1], workers=1, verify=False)
read_statements(cfg, [f"sinus rhythm {i}" for i in range(200)], Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_where_it_stopped(server, tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.base_url, str(tmp_path)], env=env)
    deadline = time.time() + 60
    while not any(p.stat().st_size > 2000 for p in tmp_path.glob("*.jsonl")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = tmp_path.glob("*.jsonl")
    n_kept = path.read_bytes().count(b"\n")
    assert 0 < n_kept < 200
    with path.open("ab") as f:  # as if the kill had struck in the middle of a line, in the middle of a letter
        f.write('{"statement_id": "0", "statement": "förmaks'.encode()[:-6])
    before, sent = path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1], len(server.requests)
    cfg = _config(server, retries=3, timeout_s=60.0, verify=False, workers=8)
    readings, counts = read_statements(cfg, [f"sinus rhythm {i}" for i in range(200)], tmp_path)
    assert all(r.entities for r in readings) and counts["calls"] == 200
    assert len(server.requests) - sent == 200 - n_kept
    assert path.read_bytes().startswith(before) and path.read_bytes().count(b"\n") == 200


def test_a_broken_line_inside_the_cache_is_named(tmp_path):
    cfg = ExtractConfig(backend="rules")
    read_statements(cfg, STATEMENTS, tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken\n", *lines[1:]]))
    with pytest.raises(ValueError, match=r"rules-.*\.jsonl, line 2: not a reading .*delete the line"):
        read_statements(cfg, STATEMENTS, tmp_path)


# --- replay ---


def test_what_one_backend_wrote_another_machine_replays(server, tmp_path):
    readings, counts = read_statements(_config(server), STATEMENTS, tmp_path / "cache")
    write_jsonl(tmp_path / "extraction.jsonl", readings, counts)
    sent = len(server.requests)
    cfg = ExtractConfig(backend="replay", replay_file=str(tmp_path / "extraction.jsonl"))
    replayed, again = read_statements(cfg, [*STATEMENTS, "unheard of"], tmp_path / "cache")
    assert replayed[:4] == readings and len(server.requests) == sent
    assert "not in extract.replay_file" in replayed[4].error and again["failed"] == 1
    assert (again["source"], again["calls"], again["valid_share"]) == ("replay", counts["calls"], 0.8)


def test_a_replayed_span_that_does_not_match_is_dropped_and_listed(tmp_path):
    path = tmp_path / "replay.jsonl"
    items = [GOOD | {"span": [0, 12]}, GOOD | {"span": [3, 15], "entity": "sinus arrhythmia"}]
    lines = [{"statement": "sinus rhythm and lvh", "entities": items}, {"statement": "lvh", "entities": items[1:]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cfg = ExtractConfig(backend="replay", replay_file=str(path))
    (good_one, bad_one), counts = read_statements(cfg, ["sinus rhythm and lvh", "lvh"], tmp_path)
    assert [e.entity for e in good_one.entities] == ["sinus rhythm"]
    assert good_one.ungrounded[0]["reason"] == "span does not match"
    assert bad_one.error and not bad_one.entities
    assert (counts["ungrounded"], counts["grounded_share"]) == (2, pytest.approx(1 / 3))
    path.write_text(json.dumps({"statement": "lvh", "entities": [GOOD | {"polarity": "good"}]}) + "\n")
    with pytest.raises(ValueError, match=r"replay.jsonl, line 1: not a reading \('good' is not one of"):
        make(cfg)


# --- a language model on this machine ---


@pytest.fixture
def tiny_llm(tmp_path):
    save_tiny_llm(tmp_path / "llm")
    return tmp_path / "llm"


def _local(folder, **options):
    options = {"retries": 1, "batch": 2, "max_new_tokens": 6, "verify": True} | options
    return ExtractConfig(backend="local", model=str(folder), **options)


def test_a_random_model_ends_in_listed_failures(tiny_llm, tmp_path):
    readings, counts = read_statements(_local(tiny_llm), ["lvh"], tmp_path)
    assert all(r.error and not r.entities for r in readings)
    assert counts["failed"] == 1 and counts["valid_share"] == 0 and (counts["calls"], counts["retries"]) == (2, 1)
    assert counts["prompt_tokens"] > 2 * 3000 and counts["completion_tokens"] <= 12
