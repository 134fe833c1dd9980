"""`kmerl.backends`: a language model behind a misbehaving local server, and one of `transformers` on this machine."""

import json
import threading
import time

import pytest
from llm_server import BROKEN, LlmServer, good

from kmerl import backends
from kmerl.backends import BackendError, make
from kmerl.dictionary import read
from kmerl.extract import ExtractConfig

GOOD = "Sinus rhythm with PACs, no LVH, possible inferior infarct"


@pytest.fixture
def server():
    with LlmServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
    reading = _read(_endpoint(server), GOOD)[GOOD]
    assert reading.error == "" and {f.verdict for f in reading.found} == {"confirmed"}
    assert [f[:2] for f in reading.found] == [f[:2] for f in read(GOOD)]
    assert all(f.start < f.end for f in reading.found)
    assert len(server.requests) == 2
    for headers, body in server.requests:
        assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret"
        assert body["model"] == "llm" and body["temperature"] == 0
        assert body["response_format"]["value"] in (backends.EXTRACT_SCHEMA, backends.VERIFY_SCHEMA)
        assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_the_users_hub_token_is_not_sent_to_the_endpoint(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    monkeypatch.delenv(backends.API_KEY, raising=False)
    _read(_endpoint(server), GOOD)
    assert "hf_private" not in json.dumps([headers for headers, _ in server.requests])


def test_the_second_pass_rejects(server):
    server.rejects = {"premature atrial complexes"}
    found = _read(_endpoint(server), GOOD)[GOOD].found
    assert {f.entity for f in found if f.verdict == "rejected"} == server.rejects and len(found) == 4
    assert {f.verdict for f in _read(_endpoint(server, verify=False), GOOD)[GOOD].found} == {""}
    assert len(server.requests) == 3


@pytest.mark.parametrize("behaviour", [*BROKEN, "nojson", "nochoices", "429", "500", "503"])
def test_it_asks_again_and_reads_the_statement(server, behaviour):
    statement = f"bad {behaviour} 2 sinus rhythm"
    reading = _read(_endpoint(server), statement)[statement]
    assert [f.entity for f in reading.found] == ["sinus rhythm"] and reading.error == ""
    assert len(server.requests) == 4  # two bad, one good, one of the second pass


def test_a_broken_second_pass_is_asked_again(server, monkeypatch):
    answers = iter(["nonsense", '{"verdicts": []}', '{"verdicts": [{"entity": "sinus rhythm", "occurs": true}]}'])
    monkeypatch.setattr("llm_server.Handler.verdicts", lambda self, content: next(answers))
    reading = _read(_endpoint(server), "Sinus rhythm")["Sinus rhythm"]
    assert reading.found[0].verdict == "confirmed" and len(server.requests) == 4


def test_a_broken_reply_is_shown_to_the_model_with_what_is_wrong(server):
    _read(_endpoint(server), "bad span 1 sinus rhythm")
    again = server.requests[1][1]["messages"]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == BROKEN["span"] and "words that nobody wrote" in again[3]["content"]


def test_a_timeout_is_asked_again(server):
    statement = "bad slow 1 sinus rhythm"
    assert _read(_endpoint(server, timeout_s=0.25), statement)[statement].found


def test_retry_after_is_obeyed_and_the_wait_doubles_without_it(server, monkeypatch):
    waits = []
    monkeypatch.setattr(backends.time, "sleep", waits.append)
    server.retry_after = "7"
    _read(_endpoint(server, backoff_s=2.0), "bad 429 2 sinus rhythm")
    assert waits == [7.0, 7.0]
    waits.clear()
    server.retry_after = None
    _read(_endpoint(server, backoff_s=2.0), "bad 503 2 sinus rhythm")
    assert waits == [2.0, 4.0]


def test_failures_are_said_and_bounded_and_never_read_as_nothing(server):
    bad = {"span": "not in the statement", "slow": "timed out", "429": "HTTP 429", "422": "HTTP 422"}
    found = _read(
        _endpoint(server, retries=1, timeout_s=0.25), *(f"bad {b} 99 x" for b in bad), "Sinus rhythm", "Baseline wander"
    )
    for behaviour, words in bad.items():
        reading = found[f"bad {behaviour} 99 x"]
        assert words in reading.error and not reading.found
        assert server.count[reading.statement] <= 3
    assert found["Sinus rhythm"].found and not found["Sinus rhythm"].error
    assert not found["Baseline wander"].found and not found["Baseline wander"].error


def test_an_endpoint_without_response_format_is_still_checked(server):
    server.knows_schema = False
    statements = ["Sinus rhythm", "bad status 1 sinus rhythm", "Atrial fibrillation"]
    assert all(r.found and not r.error for r in _read(_endpoint(server, retries=1), *statements).values())
    assert "response_format" not in server.requests[-1][1]
    sent = len(server.requests)
    _read(_endpoint(server, response_format=False), "Sinus rhythm")
    assert all("response_format" not in body for _, body in server.requests[sent:])


def test_no_more_requests_at_a_time_than_workers(server, monkeypatch):
    monkeypatch.setattr("llm_server.good", lambda statement: time.sleep(0.03) or good(statement))
    _read(_endpoint(server, workers=3), *(f"Sinus rhythm {i}" for i in range(12)))
    assert 1 < server.most_active <= 3


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_at_once(server, status):
    backend = _endpoint(server, workers=1)
    with pytest.raises(BackendError, match=f"refuses model, key or address: HTTP {status}"):
        list(backend.read(["Sinus rhythm", f"bad {status} 99 x", *(f"y {i}" for i in range(50))]))
    assert len(server.requests) < 10


def test_no_server_is_an_error_that_names_the_address(server):
    backend = _endpoint(server, retries=1)
    server.server_close()
    with pytest.raises(BackendError, match=f"nobody answers at {server.base_url}.*is the server running"):
        list(backend.read(["Sinus rhythm"]))


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


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory):
    """Folder of a random two-layer model with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm")
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
        max_position_embeddings=16384, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _local(folder, **options):
    return make(ExtractConfig("local", str(folder), **({"retries": 1, "batch": 2, "max_new_tokens": 6} | options)))


def test_a_random_model_ends_in_listed_failures(tiny_llm):
    statements = ["Sinus rhythm", "Atrial fibrillation", "LVH"]
    found = _read(_local(tiny_llm), *statements)
    assert all(r.error and not r.found for r in found.values())


def test_dialogues_share_batches_and_end_one_by_one(tiny_llm, monkeypatch):
    """Scripted replies in place of the random model's: batches stay full, a second try is one reply more."""
    backend, sizes, tried = _local(tiny_llm), [], set()

    def generate(conversations):
        sizes.append(len(conversations))
        replies = []
        for messages in conversations:
            content = messages[1]["content"]
            statement = content.split("\n")[1]
            if "<entities>" in content:
                asked = json.loads(content.split("<entities>\n")[1].split("\n</entities>")[0])
                replies.append(json.dumps({"verdicts": [{"entity": e["entity"], "occurs": True} for e in asked]}))
            elif statement == "LVH" and statement not in tried:
                tried.add(statement)
                replies.append("no idea")
            else:
                replies.append("```json\n" + good(statement) + "\n```")
        return replies

    monkeypatch.setattr(backend, "_generate", generate)
    statements = ["LVH", "Sinus rhythm", "Baseline wander", "Atrial fibrillation"]
    found = _read(backend, *statements)
    for s in statements:
        assert [f[:4] for f in found[s].found] == [f[:4] for f in read(s)] and not found[s].error
    assert sizes == [2, 2, 2, 1, 1]  # LVH takes 3 replies, sinus 2, then wander 1 in its place, then fibrillation 2


def test_generation_is_greedy_and_does_not_depend_on_the_batch(tiny_llm):
    backend = _local(tiny_llm)
    short, long = ([{"role": "user", "content": text}] for text in ("LVH", "Sinus rhythm with many words behind it"))
    both = backend._generate([short, long])
    assert both == [*backend._generate([short]), *backend._generate([long])]


def test_a_model_without_chat_template_is_refused(tiny_llm, tmp_path):
    import shutil

    shutil.copytree(tiny_llm, tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        _local(tmp_path / "llm")
