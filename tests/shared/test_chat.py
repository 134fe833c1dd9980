"""`shared.chat`: dialogues with a misbehaving local server, and with a model of `transformers` in this process."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
from chat_server import ChatServer, running, save_tiny_llm

from shared import chat
from shared.chat import Endpoint, EndpointError, LocalChat, Reply, system_and_user, until_valid, words

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


class Lengths(ChatServer):
    """Says how long the question is."""

    broken = {"prose": "It is long.", "text": '{"n": "5"}', "cut": '{"n": ', "empty": "", "list": "[5]"}  # noqa: RUF012
    wait_s = 0.0

    def asked(self, body):
        return body["messages"][1]["content"]

    def good(self, body):
        time.sleep(self.wait_s)
        return json.dumps({"n": len(self.asked(body))})


@pytest.fixture
def server():
    with running(Lengths()) as server:
        yield server


def dialogue(question: str, retries: int = 2):
    """Two questions, the second about the answer to the first."""
    n = yield from until_valid(system_and_user("How long?", question), SCHEMA, lambda reply: reply["n"], retries)
    return (yield from until_valid(system_and_user("How long?", "x" * n), SCHEMA, lambda reply: reply["n"], retries))


def endpoint(server, key="secret", with_schema=True, **options) -> Endpoint:
    options = {"retries": 2, "timeout_s": 5.0, "backoff_s": 0.01, "workers": 4, "max_new_tokens": 64} | options
    return Endpoint(SimpleNamespace(base_url=server.base_url, model="llm", **options), key, with_schema)


def hold(held, *questions, retries=2):
    found = dict(held.hold((q, dialogue(q, retries)) for q in questions))
    assert set(found) == set(questions)
    return found


def test_dialogues_are_held_and_the_requests_are_what_the_protocol_asks(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    assert hold(endpoint(server), "seven 7")["seven 7"] == (7, None, (2, 0, 200, 14))
    for headers, body in server.requests:
        assert headers["authorization"] == "Bearer secret"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("llm", 0, 64)
        assert body["response_format"]["value"] == SCHEMA
    hold(endpoint(server, key=None), "seven 7")
    assert "hf_private" not in json.dumps(server.requests), "the user's hub token is not sent"


@pytest.mark.parametrize("does", [*Lengths.broken, "nojson", "nochoices", "garbage", "429", "500", "503"])
def test_it_asks_again(server, does):
    found = hold(endpoint(server), f"bad {does} 2 x")[f"bad {does} 2 x"]
    assert found.error is None and found.value == len(f"bad {does} 2 x")
    assert found.usage[:2] == (4, 2) and len(server.requests) == 4


def test_a_broken_reply_is_shown_to_the_model_with_what_is_wrong(server):
    hold(endpoint(server), "bad text 1 x")
    first, again = (body["messages"] for _, body in server.requests[:2])
    assert again[:-2] == first and [m["role"] for m in again[-2:]] == ["assistant", "user"]
    assert again[-2]["content"] == Lengths.broken["text"] and "'5' is not of type" in again[-1]["content"]


def test_retry_after_is_obeyed_and_the_wait_doubles_without_it(server, monkeypatch):
    waits = []
    monkeypatch.setattr(chat.time, "sleep", waits.append)
    for server.retry_after, question, expected in (("7", "bad 429 2", [7, 7]), (None, "bad 503 2", [2, 4])):
        hold(endpoint(server, backoff_s=2.0), question)
        assert [w for w in waits if w] == expected
        waits.clear()


def test_failures_are_said_and_bounded(server):
    bad = {"text": "is not of type", "cut": "no JSON object", "slow": "timed out", "429": "HTTP 429", "422": "HTTP 422"}
    found = hold(endpoint(server, retries=1, timeout_s=0.25), *(f"bad {b} 99" for b in bad), "good", retries=1)
    assert found.pop("good").value == 4
    for question, outcome in found.items():
        assert outcome.value is None and bad[question.split()[1]] in words(outcome.error)
        assert server.calls[question] == outcome.usage.calls <= 3


def test_a_timeout_is_asked_again(server):
    assert hold(endpoint(server, timeout_s=0.25), "bad slow 1")["bad slow 1"].value == 10


def test_an_endpoint_without_response_format_is_still_checked(server):
    server.knows_schema = False
    found = hold(endpoint(server, retries=1), "a", "bad text 1", "b", retries=1)
    assert all(outcome.value == len(question) for question, outcome in found.items())
    assert "response_format" not in server.requests[-1][1]
    sent = len(server.requests)
    hold(endpoint(server, with_schema=False), "a")
    assert all("response_format" not in body for _, body in server.requests[sent:])


def test_no_more_requests_at_a_time_than_workers(server):
    server.wait_s = 0.03
    hold(endpoint(server, workers=3), *(f"question {i}" for i in range(12)))
    assert 1 < server.most_active <= 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(server, status):
    questions = ["a", f"bad {status} 99", *(f"y {i}" for i in range(50))]
    with pytest.raises(EndpointError, match=f"llm at .*refuses model, key or address: HTTP {status}"):
        hold(endpoint(server, workers=1), *questions)
    assert len(server.requests) == 3


def test_no_server_is_an_error_that_names_the_address(server):
    held = endpoint(server, retries=1)
    server.server_close()
    with pytest.raises(EndpointError, match=f"nobody answers at {server.base_url}.*is the server running"):
        hold(held, "a")


# --- a model in this process ---


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory):
    save_tiny_llm(tmp_path_factory.mktemp("llm"))
    return tmp_path_factory.getbasetemp() / "llm0"


def local(folder) -> LocalChat:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return LocalChat(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), 2, 6)


def test_a_random_model_ends_in_listed_failures(tiny_llm):
    found = hold(local(tiny_llm), "a", "b", "c", retries=1)
    assert all(o.value is None and words(o.error) and o.usage[:2] == (2, 1) for o in found.values())


def test_dialogues_share_batches_and_end_one_by_one(tiny_llm, monkeypatch):
    """Scripted replies in place of the random model's: batches stay full, a second try is one reply more."""
    held, sizes, tried = local(tiny_llm), [], set()

    def one(messages) -> Reply:
        question = messages[1]["content"]
        if question == "hard" and question not in tried:
            tried.add(question)
            return Reply("no idea", 10, 3)
        return Reply(f"```json\n{json.dumps({'n': len(question)})}\n```", 10, 3)

    monkeypatch.setattr(held, "generate", lambda all_of: sizes.append(len(all_of)) or [one(m) for m in all_of])
    found = hold(held, "hard", "easy 1", "easy 22", "easy 333")
    assert {q: o.value for q, o in found.items()} == {q: len(q) for q in found}
    assert sizes == [2, 2, 2, 2, 1] and found["hard"].usage == (3, 1, 30, 9) and found["easy 1"].usage == (2, 0, 20, 6)


def test_generation_is_greedy_and_does_not_depend_on_the_batch(tiny_llm):
    held = local(tiny_llm)
    short, long = ([{"role": "user", "content": text}] for text in ("LVH", "Sinus rhythm with many words behind it"))
    both = held.generate([short, long])
    assert both == [*held.generate([short]), *held.generate([long])]
    assert both[0].prompt_tokens == len("user: LVH\nassistant: ")


def test_a_model_without_chat_template_is_refused(tiny_llm, tmp_path):
    shutil.copytree(tiny_llm, tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        local(tmp_path / "llm")
