"""An OpenAI-compatible endpoint as report writer, and whatever it may answer."""

from types import SimpleNamespace

import pytest
from chat_server import running
from report_requests import CLINICAL, NER, ReportServer, sampler

from shared.chat import EndpointError
from synth_medvlp.entities import entities, match
from synth_medvlp.sampler import Request
from synth_medvlp.writer import WriterConfig, make, write_reports


@pytest.fixture
def server():
    with running(ReportServer()) as server:
        yield server


def endpoint(server, **options) -> WriterConfig:
    options = {"workers": 4, "timeout_s": 5.0, "backoff_s": 0.01, "retries": 2, "batch": 8} | options
    return WriterConfig(backend="endpoint", model="llm", base_url=server.base_url, **options)


def requests_of(names) -> list[Request]:
    return [Request(i, i, ((name, "ABNORMALITY"), *CLINICAL[1:]), ("carina",)) for i, name in enumerate(names)]


def test_an_endpoint_writes_reports(server, tmp_path):
    cfg = endpoint(server)
    records, stats = write_reports(sampler(), 20, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] == len(records) == 20
    assert (stats["findings"]["tokens_in"], stats["findings"]["tokens_out"]) == (2000, 140)
    body = server.requests[0][1]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("llm", 0.7, 0.9, 384)
    assert len({body["seed"] for _, body in server.requests}) == 40


BAD = {
    "left upper lobe mass": (["nojson", "garbage"], ""),
    "right basilar atelectasis": (["429"], ""),
    "mild cardiomegaly": (["503", "500"], ""),
    "nodule": (["nochoices"], ""),
    "left pleural thickening": (["fenced"], ""),
    "enteric tube": (["titled"], ""),
    "endotracheal tube": (["uncounted"], ""),
    "mild edema": (["empty"], "empty"),
    "severe edema": (["refusal"], "refusal"),
    "consolidation": (["json"], "format"),
    "linear atelectasis": (["headings"], "format"),
    "granuloma": (["cut"], "cut"),
    "right pacemaker": (["500"] * 3, "endpoint"),
    "left pacemaker": (["422"], "endpoint"),
    "sternotomy wire": (["garbage"] * 3, "endpoint"),
}


def test_whatever_an_endpoint_answers_becomes_a_reply(server):
    server.script = {name: does for name, (does, _) in BAD.items()}
    requests = requests_of(BAD)
    replies = make(endpoint(server)).write_findings(requests, [None] * len(BAD), range(len(BAD)))
    for request, reply in zip(requests, replies, strict=True):
        assert reply.error == BAD[request.clinical[0][0]][1], request
        assert match(request.entities, entities(NER([reply.text])[0]), "strict")[0] is (reply.error == "")
    assert replies[6].n_prompt == 0 and replies[0].n_prompt == 100


def test_a_slow_endpoint_is_asked_again(server):
    server.script = {"mass": ["slow"], "nodule": ["slow"] * 3}
    writer = make(endpoint(server, timeout_s=0.25))
    replies = writer.write_findings(requests_of(["mass", "nodule"]), [None, None], [1, 2])
    assert [r.error for r in replies] == ["", "endpoint"] and server.calls == {"mass": 2, "nodule": 3}


def test_bad_replies_cost_an_attempt_and_are_counted(server, tmp_path):
    first = sampler().draw(8)
    server.script = {r.clinical[0][0]: ["refusal", "extra"] for r in first[:3]}
    cfg = endpoint(server)
    records, stats = write_reports(sampler(), 8, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] == 8 and stats["findings"]["errors"]["refusal"] >= 3
    assert max(r["text_attempts"] for r in records) == 3
    retries = [body for _, body in server.requests if len(body["messages"]) > 2]
    assert any("Named but not asked for: " in body["messages"][-1]["content"] for body in retries)


def test_a_wrong_key_or_address_ends_the_run_with_a_message(server):
    server.script = {"mass": ["401"]}
    with pytest.raises(EndpointError, match="refuses model, key or address: HTTP 401"):
        make(endpoint(server)).write_findings(requests_of(["mass"]), [None], [1])
    nowhere = SimpleNamespace(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(EndpointError, match=r"nobody answers at .*is the server running"):
        make(endpoint(nowhere)).write_findings(requests_of(["mass"]), [None], [1])
