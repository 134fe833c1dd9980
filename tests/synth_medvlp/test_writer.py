"""Reports for requests: prompts and replies, the loop with its retries, resuming, and every backend."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from report_server import running

from synth_medvlp import backends, train_writer
from synth_medvlp.backends import Feedback, Reply, TemplateWriter, WriterError, _OwnDraws, _sentence, messages, readable
from synth_medvlp.entities import ANATOMY, DictionaryNer, entities, match, mine
from synth_medvlp.sampler import Request, Sampler, SamplerConfig
from synth_medvlp.writer import WriterConfig, make, write_batch, write_reports

NER = DictionaryNer()
REPORTS = train_writer.training_reports(400, 5, "none")
POOL = mine([text for report in REPORTS for text in report], NER)[0]
CLINICAL = (("small left pleural effusion", "ABNORMALITY"), ("pneumothorax", "NON-DISEASE"))
REQUEST = Request(0, 1, CLINICAL, ("carina",))
GOOD = "Small left effusion near the carina. No pneumothorax."


def sampler(**options) -> Sampler:
    return Sampler(POOL, SamplerConfig(**({"k": 3, "m": 1, "tau_max": 100, "seed": 4} | options)))


def count(texts):
    return [len(text.split()) for text in texts]


class Scripted:
    """Writes what a function (request, stage, feedback, seed) says."""

    name, prompt_version = "scripted", "1"

    def __init__(self, say):
        self.say, self.calls = say, []

    def write_findings(self, requests, feedback, seeds):
        return [self._one(r, "findings", f, s) for r, f, s in zip(requests, feedback, seeds, strict=True)]

    def write_impression(self, findings, requests, feedback, seeds):
        assert all(findings)
        return [self._one(r, "impression", f, s) for r, f, s in zip(requests, feedback, seeds, strict=True)]

    def _one(self, request, stage, feedback, seed):
        self.calls.append((request.id, stage, feedback, seed))
        said = self.say(request, stage, feedback, seed)
        return said if isinstance(said, Reply) else Reply(said, 10, 5)


def wholly(request) -> str:
    return " ".join(_sentence(*e) for e in request.entities)


# --- what is asked, what comes back ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lungs are clear.", ("The lungs are clear.", "")),
        ("  FINDINGS:\n The lungs\nare clear. ", ("The lungs are clear.", "")),
        ("**Impression:** No mass.", ("No mass.", "")),
        ("```\nNo mass.\n```", ("No mass.", "")),
        ('"No mass."', ("No mass.", "")),
        ("", ("", "empty")),
        ("FINDINGS:", ("", "empty")),
        ("I'm sorry, I can't do that.", ("", "refusal")),
        ("As an AI model I am no doctor.", ("", "refusal")),
        ("I cannot write this.", ("", "refusal")),
        ('{"findings": "No mass."}', ("", "format")),
        ("No mass. IMPRESSION: No mass.", ("", "format")),
        ("<think>hmm</think> No mass.", ("", "format")),
        ("- - -", ("", "format")),
    ],
)
def test_replies_are_read(text, expected):
    assert readable(text) == expected


def test_a_prompt_names_everything_and_a_retry_says_what_was_wrong():
    (system, user) = messages(REQUEST, None, None, 45)
    assert system["role"] == "system" and "FINDINGS" in user["content"]
    assert all(f"- {name} ({kind})" in user["content"] for name, kind in CLINICAL) and "- carina" in user["content"]
    user = messages(REQUEST, "No mass.", None, 45)[-1]
    assert "No mass." in user["content"] and "at most 45 words" in user["content"]
    said = messages(REQUEST, None, Feedback("No mass.", [CLINICAL[1]], [("mass", "NON-ABNORMALITY")]), 45)
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user"] and said[2]["content"] == "No mass."
    assert "Missing: pneumothorax (NON-DISEASE)" in said[3]["content"]
    assert "not asked for: mass (NON-ABNORMALITY)" in said[3]["content"]
    said = messages(REQUEST, None, Feedback("", error="refusal"), 45)
    assert [m["role"] for m in said] == ["system", "user"] and "no usable answer (refusal)" in said[1]["content"]
    assert "- none" in messages(REQUEST._replace(anatomy=()), None, None, 45)[1]["content"]


# --- the loop ---


def test_a_text_that_names_what_was_asked_is_taken_at_once():
    writer = Scripted(lambda *_: GOOD)
    (record,) = write_batch([REQUEST], writer, NER, WriterConfig(rule="strict"), count)
    assert record["status"] == "accepted" and record["findings"] == record["impression"] == GOOD
    assert record["ner_findings"] == [("Small left effusion", "ABNORMALITY"), ("carina", ANATOMY),
                                      ("pneumothorax", "NON-DISEASE")]  # fmt: skip
    assert [call[1] for call in writer.calls] == ["findings", "impression"]


def test_a_retry_gets_missing_and_extra_and_a_seed_of_its_own():
    replies = iter(["No pneumothorax. Mass.", Reply("", error="refusal"), GOOD, GOOD])
    writer = Scripted(lambda *_: next(replies))
    (record,) = write_batch([REQUEST], writer, NER, WriterConfig(), count)
    feedback = [call[2] for call in writer.calls]
    assert feedback[0] is None and feedback[1].text == "No pneumothorax. Mass."
    assert set(feedback[1].missing) == {CLINICAL[0], ("carina", ANATOMY)} and feedback[1].extra == [
        ("mass", "ABNORMALITY")
    ]
    assert feedback[2].error == "refusal" and feedback[3] is None
    assert len({call[3] for call in writer.calls}) == 4
    assert (record["text_attempts"], record["impression_attempts"], record["status"]) == (3, 1, "accepted")


def test_after_the_last_attempt_a_request_is_rejected():
    writer = Scripted(lambda *_: "The lungs are clear.")
    (record,) = write_batch([REQUEST], writer, NER, WriterConfig(attempts=3), count)
    assert (record["status"], record["reject_reason"], record["text_attempts"]) == ("rejected", "findings", 3)
    assert record["findings"] == "" and len(writer.calls) == 3


def test_findings_whose_impression_never_passes_are_written_anew():
    writer = Scripted(lambda request, stage, *_: GOOD if stage == "findings" else "No pneumothorax.")
    (record,) = write_batch([REQUEST], writer, NER, WriterConfig(attempts=2, impression_attempts=3), count)
    stages = [call[1] for call in writer.calls]
    assert stages == (["findings"] + 3 * ["impression"]) * 2
    assert (record["status"], record["reject_reason"]) == ("rejected", "impression")
    assert len({call[3] for call in writer.calls}) == 8


def test_a_long_impression_is_none():
    long = GOOD + " It is so." * 20
    texts = iter([GOOD, long, GOOD])
    (record,) = write_batch([REQUEST], Scripted(lambda *_: next(texts)), NER, WriterConfig(), count)
    assert [a["error"] for a in record["attempts"]] == ["", "long", ""] and record["impression"] == GOOD


@pytest.mark.parametrize(
    ("text", "passes"),
    [(GOOD, (True, True, True)), ("Left effusion at the carina. No pneumothorax.", (False, True, False)),
     (GOOD + " Mild scoliosis.", (False, False, True)), ("No pneumothorax.", (False, False, False))],
)  # fmt: skip
def test_all_rules_are_reported_and_one_decides(text, passes):
    for rule, expected in zip(("strict", "normalised", "recall"), passes, strict=True):
        cfg = WriterConfig(rule=rule, attempts=1, impression_attempts=1)
        (record,) = write_batch([REQUEST], Scripted(lambda *_: text), NER, cfg, count)
        assert tuple(record["attempts"][0]["passed"].values()) == passes
        assert (record["status"] == "accepted") is expected
    cfg = WriterConfig(check=False, attempts=1)  # control: whatever it says
    assert write_batch([REQUEST], Scripted(lambda *_: text), NER, cfg, count)[0]["status"] == "accepted"


def test_templates_pass_every_rule(tmp_path):
    cfg = WriterConfig(backend="template", rule="strict", batch=16)
    records, stats = write_reports(sampler(), 60, make(cfg), NER, cfg, tmp_path)
    assert len(records) == stats["accepted"] == 60 and stats["stopped"] == ""
    assert stats["findings"]["pass_rate"] == {"strict": 1.0, "normalised": 1.0, "recall": 1.0}
    for r in records:
        assert match([*map(tuple, r["clinical"]), *((a, ANATOMY) for a in r["anatomy"])],
                     entities(NER([r["findings"]])[0]), "strict")[0]  # fmt: skip


# --- many, and on disk ---


def erratic(request, stage, feedback, seed):
    """Fails in every way, by the seed alone."""
    u = np.random.default_rng(seed).random()
    if u < 0.1:
        return Reply("", 10, 0, "refusal")
    if u < 0.3:
        return wholly(request) + " Mild scoliosis of the spine."
    return "No mass." if u < 0.5 else wholly(request)


def test_statistics_are_those_of_the_records(tmp_path):
    cfg = WriterConfig(batch=32, attempts=3, impression_attempts=2)
    records, stats = write_reports(sampler(), 200, Scripted(erratic), NER, cfg, tmp_path)
    accepted = [r for r in records if r["status"] == "accepted"]
    assert len(accepted) == stats["accepted"] == 200 < stats["requests"] == len(records)
    assert [r["id"] for r in records] == list(range(len(records)))
    assert stats["sampler"]["accepted"] == 200
    assert stats["rejected"] == Counter(r["reject_reason"] for r in records if r["reject_reason"])
    found = stats["findings"]
    attempts = [a for r in records for a in r["attempts"] if a["stage"] == "findings"]
    assert found["prompts"] == len(attempts) and found["tokens_out"] < 5 * len(attempts)
    assert found["errors"]["refusal"] == sum(a["error"] == "refusal" for a in attempts) > 10
    firsts = [r["attempts"][0]["passed"]["normalised"] for r in records]
    assert found["pass_rate_by_attempt"][0]["normalised"] == pytest.approx(np.mean(firsts))
    assert found["pass_rate"]["normalised"] == pytest.approx(0.5, abs=0.08)
    assert found["pass_rate"]["recall"] == pytest.approx(0.7, abs=0.08)
    assert ["mild scoliosis", "DISEASE"] in [row[:2] for row in found["extra"]["top"][:3]]
    assert stats["sent_back"] > 0 and stats["impression"]["over_prompt_tokens"] == 0


def test_a_killed_run_goes_on_and_ends_with_the_same_records(tmp_path):
    cfg = WriterConfig(batch=16, attempts=2)
    whole, stats = write_reports(sampler(), 100, Scripted(erratic), NER, cfg, tmp_path / "whole")

    class Killed(Scripted):
        def write_findings(self, requests, *rest):
            if requests[0].id >= 48:
                raise KeyboardInterrupt
            return super().write_findings(requests, *rest)

    with pytest.raises(KeyboardInterrupt):
        write_reports(sampler(), 100, Killed(erratic), NER, cfg, tmp_path / "killed")
    path = tmp_path / "killed" / "manifest.jsonl"
    assert len(path.read_bytes().splitlines()) == 48
    lines = (tmp_path / "whole" / "manifest.jsonl").read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:50]) + lines[50][:25])  # as if the kill had struck while a batch was written
    again = Scripted(erratic)
    records, stats_again = write_reports(sampler(), 100, again, NER, cfg, tmp_path / "killed")
    assert records == whole and path.read_bytes() == b"".join(lines)
    assert min(call[0] for call in again.calls) == 48
    for s in (stats, stats_again):
        del s["seconds"], s["seconds_per_report"]
    assert stats == stats_again
    finished = Scripted(erratic)
    assert write_reports(sampler(), 100, finished, NER, cfg, tmp_path / "killed")[0] == whole and not finished.calls


def test_a_folder_of_other_settings_is_refused(tmp_path):
    write_reports(sampler(), 4, Scripted(erratic), NER, WriterConfig(), tmp_path)
    for other, cfg in ((sampler(seed=5), WriterConfig()), (sampler(), WriterConfig(temperature=1.0))):
        with pytest.raises(ValueError, match=r"holds reports of other settings \((sampler|writer)\); remove it"):
            write_reports(other, 4, Scripted(erratic), NER, cfg, tmp_path)
    write_reports(sampler(), 4, Scripted(erratic), NER, WriterConfig(workers=2), tmp_path)  # speed is no setting


def test_it_stops_with_a_message_where_no_more_can_be_made(tmp_path):
    cfg = WriterConfig(batch=8)
    used_up = sampler(k=1, m=1, tau_max=1)
    records, stats = write_reports(used_up, 500, Scripted(lambda r, *_: wholly(r)), NER, cfg, tmp_path / "a")
    assert stats["accepted"] == len(records) == len(POOL[ANATOMY]) and "raise sampler.tau_max" in stats["stopped"]
    cfg = WriterConfig(batch=8, attempts=1, give_up=3)
    records, stats = write_reports(sampler(), 8, Scripted(lambda *_: "No mass."), NER, cfg, tmp_path / "b")
    assert stats["accepted"] == 0 and len(records) == 24 and "writer.give_up" in stats["stopped"]


def test_tokens_beyond_the_limit_are_counted(tmp_path):
    cfg = WriterConfig(batch=8, prompt_tokens=12)
    _, stats = write_reports(sampler(), 20, Scripted(lambda r, *_: wholly(r)), NER, cfg, tmp_path)
    lengths = [2 + sum(1 + (w[-1] == ".") for w in json.loads(line)["impression"].split())
               for line in (tmp_path / "manifest.jsonl").open()]  # fmt: skip
    assert stats["impression"]["tokens_lost"] == sum(max(n - 12, 0) for n in lengths) > 0
    assert stats["impression"]["over_prompt_tokens"] == pytest.approx(np.mean([n > 12 for n in lengths]))


# --- a language model on this machine ---


@pytest.mark.parametrize("best", [64, 1])  # 1: all have to be sorted
def test_own_draws_have_the_distribution_of_temperature_and_top_p(monkeypatch, best):
    monkeypatch.setattr(backends, "_BEST", best)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    p = torch.softmax(logits / 0.7, -1).numpy()
    order, kept, total = np.argsort(-p), [], 0.0
    for i in order:  # top-p by the book: the fewest that reach it
        if total < 0.9:
            kept.append(i)
            total += p[i]
    expected = np.zeros(5)
    expected[kept] = p[kept] / total
    n = 20_000
    draws = _OwnDraws(range(n), 3, 1, 0.7, 0.9, "cpu")
    chosen = draws(torch.zeros(n, 3, dtype=torch.long), logits.expand(n, 5).clone()).argmax(-1)
    assert np.abs(np.bincount(chosen, minlength=5) / n - expected).max() < 0.012
    assert set(chosen.tolist()) == set(kept)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of two random models: the small writer's form, untaught, and a Llama with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_writer.train_tokenizer([text for report in REPORTS for text in report], 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    folders = {}
    for name in ("plain", "chat"):
        folders[name] = tmp_path_factory.mktemp(name)
        if name == "chat":
            tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
        tokenizer.save_pretrained(folders[name])
        LlamaForCausalLM(config).save_pretrained(folders[name])
    return folders


def local(folder, **options):
    return make(WriterConfig(model=str(folder), max_new_tokens=12, **({"batch": 4} | options)))


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_text_does_not_depend_on_its_batch(tiny, form):
    requests, writer = sampler().draw(6), local(tiny[form])
    writer._ends = lambda stop: []  # a random model would end anywhere
    monkey = [w.text for w in (writer._generate([writer._prompt(r, None, None)], [r.seed], [])[0] for r in requests)]
    together = writer._generate([writer._prompt(r, None, None) for r in requests], [r.seed for r in requests], [])
    assert [w.text for w in together] == monkey
    assert [w.n_prompt for w in together] == [
        len(writer.tokenizer(writer._prompt(r, None, None))["input_ids"]) for r in requests
    ]


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_random_model_ends_in_counted_rejections(tiny, tmp_path, form):
    cfg = WriterConfig(model=str(tiny[form]), max_new_tokens=6, batch=4, attempts=2, give_up=2)
    records, stats = write_reports(sampler(), 4, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] == 0 and all(r["text_attempts"] == 2 for r in records)
    assert stats["findings"]["errors"]["cut"] > 0 and stats["findings"]["tokens_in"] > 100
    assert stats["findings"]["prompts"] == 2 * len(records)


def test_the_small_model_is_asked_in_its_form_and_stops_where_the_section_ends(tiny, monkeypatch):
    writer = local(tiny["plain"])
    asked = []

    def generate(prompts, seeds, ends):
        asked.append((prompts, writer.tokenizer.convert_ids_to_tokens(ends)))
        return [Reply("x")] * len(prompts)

    monkeypatch.setattr(writer, "_generate", generate)
    writer.write_findings([REQUEST], [Feedback("No mass.")], [1])
    writer.write_impression([GOOD], [REQUEST], [None], [1])
    listed = "<ABNORMALITY> small left pleural effusion<NON-DISEASE> pneumothorax<ANATOMY> carina<FINDINGS>"
    assert asked == [([listed], ["<IMPRESSION>"]), ([f"{listed} {GOOD}<IMPRESSION>"], ["</s>"])]


def test_models_and_configs_that_lack_something_are_named(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny["chat"], tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    for file in (tmp_path / "llm").glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<FINDINGS>", "<F>"))
    with pytest.raises(ValueError, match="has no chat template"):
        local(tmp_path / "llm")
    with pytest.raises(ValueError, match=r"writer.backend='gpt': one of local, endpoint, template"):
        make(WriterConfig(backend="gpt"))
    with pytest.raises(ValueError, match=r"needs writer\.base_url"):
        make(WriterConfig(backend="endpoint"))
    with pytest.raises(ValueError, match=r"writer.rule='loose'"):
        write_reports(sampler(), 1, TemplateWriter(WriterConfig()), NER, WriterConfig(rule="loose"), tmp_path)


# --- an endpoint ---


@pytest.fixture
def server():
    with running() as server:
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
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("llm", 0.7, 0.9, 384)
    assert len({body["seed"] for body in server.requests}) == 40


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
    retries = [body for body in server.requests if len(body["messages"]) > 2]
    assert any("Named but not asked for: " in body["messages"][-1]["content"] for body in retries)


def test_a_wrong_key_or_address_ends_the_run_with_a_message(server):
    server.script = {"mass": ["401"]}
    with pytest.raises(WriterError, match="refuses model, key or address: HTTP 401"):
        make(endpoint(server)).write_findings(requests_of(["mass"]), [None], [1])
    nowhere = SimpleNamespace(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(WriterError, match=r"nobody answers at .*is the server running"):
        make(endpoint(nowhere)).write_findings(requests_of(["mass"]), [None], [1])


# --- the small writer: its texts, its training, its weights ---


def test_composed_texts_name_the_same_entities_in_both_sections():
    bank, types = train_writer.bank(REPORTS), Counter()
    for i in range(150):
        asked, findings, impression = train_writer.compose(bank, 4, np.random.default_rng(i))
        found, also = (entities(mentions) for mentions in NER([findings, impression]))
        assert asked == found == also
        types.update(kind for _, kind in asked)
    assert len(types) == 5 and min(types.values()) > 40  # every type often, whatever its share of real reports


def test_the_loss_is_on_the_texts_only():
    tokenizer = train_writer.train_tokenizer([text for report in REPORTS for text in report], 500)
    data = train_writer.Texts(40, 4, REPORTS, tokenizer, 1)
    for i in range(20):
        item = data[i]
        assert item == data[i]
        start = next(j for j, label in enumerate(item["labels"]) if label != -100)
        assert tokenizer.decode(item["input_ids"][:start]).endswith("<FINDINGS>")
        assert item["labels"][start:] == item["input_ids"][start:]
        assert tokenizer.decode(item["input_ids"]).endswith((train_writer.END, train_writer.IMPRESSION))
    batch = train_writer._padded([data[0], data[1]])
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_training_reduces_the_loss_and_leaves_a_usable_folder(tmp_path, capsys):
    args = "--patients 60 --steps 12 --batch 8 --width 32 --layers 1 --vocabulary 400".split()
    train_writer.main([str(tmp_path / "w"), *args])
    readme = (tmp_path / "w" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "w" / "model.safetensors").read_bytes()).hexdigest()
    assert digest in readme and "--patients 60 --seed 11 --level middle --steps 12" in readme
    reply = local(tmp_path / "w").write_findings([REQUEST], [None], [1])[0]
    assert reply.n_new == 12 or reply.error != "cut"
    assert not list((tmp_path / "w").rglob("*.bin"))


WEIGHTS = Path(backends.__file__).parent / "weights" / "writer"


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no weights/writer: python -m synth_medvlp.train_writer makes them")
def test_the_shipped_weights_write_what_is_asked(tmp_path):
    digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (WEIGHTS / "README.md").read_text()
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 3e6
    cfg = WriterConfig(max_new_tokens=120, rule="strict", batch=64)
    _, stats = write_reports(sampler(), 40, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] / stats["requests"] > 0.6
