"""`kmerl.backends`: a language model behind a misbehaving local server, and one of `transformers` on this machine."""

import json

import pytest
from chat_server import StatementServer, running, save_tiny_llm

from kmerl import backends
from kmerl.backends import make
from kmerl.dictionary import read
from kmerl.extract import ExtractConfig

STATEMENT = "Sinus rhythm with PACs, no LVH, possible inferior infarct"


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


def good(statement: str) -> str:
    found = [{"entity": f.entity, "status": f.status, "evidence": statement[f.start : f.end]} for f in read(statement)]
    return json.dumps({"entities": found})


@pytest.fixture
def server():
    with running(StatementServer(good)) as server:
        server.broken = BROKEN
        yield server


def _endpoint(server, **options):
    options = {"retries": 2, "timeout_s": 5.0, "backoff_s": 0.01, "workers": 4} | options
    return make(ExtractConfig("endpoint", "llm", server.base_url, **options))


def _read(backend, *statements):
    found = {r.statement: r for r in backend.read(list(statements))}
    assert set(found) == set(statements)
    return found


def test_a_statement_is_read_and_verified_and_the_requests_are_what_the_protocol_asks(server, monkeypatch):
    monkeypatch.setenv(backends.API_KEY, "secret")
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    reading = _read(_endpoint(server), STATEMENT)[STATEMENT]
    assert reading.error == "" and {f.verdict for f in reading.found} == {"confirmed"}
    assert [f[:2] for f in reading.found] == [f[:2] for f in read(STATEMENT)]
    assert all(f.start < f.end for f in reading.found)
    assert len(server.requests) == 2
    for headers, body in server.requests:
        assert headers["authorization"] == "Bearer secret"
        assert body["model"] == "llm" and body["temperature"] == 0
        assert body["response_format"]["value"] in (backends.EXTRACT_SCHEMA, backends.VERIFY_SCHEMA)
        assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_the_second_pass_rejects(server):
    server.rejects = {"premature atrial complexes"}
    found = _read(_endpoint(server), STATEMENT)[STATEMENT].found
    assert {f.entity for f in found if f.verdict == "rejected"} == server.rejects and len(found) == 4
    assert {f.verdict for f in _read(_endpoint(server, verify=False), STATEMENT)[STATEMENT].found} == {""}
    assert len(server.requests) == 3


@pytest.mark.parametrize("behaviour", [*BROKEN, "nojson", "nochoices", "429", "500", "503"])
def test_it_asks_again_and_reads_the_statement(server, behaviour):
    statement = f"bad {behaviour} 2 sinus rhythm"
    reading = _read(_endpoint(server), statement)[statement]
    assert [f.entity for f in reading.found] == ["sinus rhythm"] and reading.error == ""
    assert len(server.requests) == 4  # two bad, one good, one of the second pass


def test_a_broken_second_pass_is_asked_again(server, monkeypatch):
    answers = iter(["nonsense", '{"verdicts": []}', '{"verdicts": [{"entity": "sinus rhythm", "occurs": true}]}'])
    monkeypatch.setattr(server, "verdicts", lambda content: next(answers))
    reading = _read(_endpoint(server), "Sinus rhythm")["Sinus rhythm"]
    assert reading.found[0].verdict == "confirmed" and len(server.requests) == 4


def test_failures_are_said_and_bounded_and_never_read_as_nothing(server):
    bad = {"span": "not in the statement", "slow": "timed out", "429": "HTTP 429", "422": "HTTP 422"}
    found = _read(
        _endpoint(server, retries=1, timeout_s=0.25), *(f"bad {b} 99 x" for b in bad), "Sinus rhythm", "Baseline wander"
    )
    for behaviour, words in bad.items():
        reading = found[f"bad {behaviour} 99 x"]
        assert words in reading.error and not reading.found
        assert server.calls[reading.statement] <= 3
    assert found["Sinus rhythm"].found and not found["Sinus rhythm"].error
    assert not found["Baseline wander"].found and not found["Baseline wander"].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "oracle"}, "extract.backend='oracle': one of dictionary, local, endpoint"),
        ({"backend": "endpoint", "model": "m"}, "needs extract.base_url"),
        ({"backend": "local"}, "needs extract.model"),
    ],
)
def test_a_config_that_lacks_something_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(ExtractConfig(**options))


# --- a language model on this machine ---


@pytest.fixture
def tiny_llm(tmp_path):
    save_tiny_llm(tmp_path)
    return tmp_path


def _local(folder, **options):
    return make(ExtractConfig("local", str(folder), **({"retries": 1, "batch": 2, "max_new_tokens": 6} | options)))


def test_a_random_model_ends_in_listed_failures(tiny_llm):
    statements = ["Sinus rhythm", "Atrial fibrillation", "LVH"]
    found = _read(_local(tiny_llm), *statements)
    assert all(r.error and not r.found for r in found.values())
