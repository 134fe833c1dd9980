"""Reports for requests: prompts and replies, the loop with its retries, statistics, resuming."""

import json
from collections import Counter

import numpy as np
import pytest
from report_requests import CLINICAL, GOOD, NER, POOL, REQUEST, Scripted, count, sampler, wholly

from synth_medvlp.backends import Feedback, Reply, messages, readable
from synth_medvlp.entities import ANATOMY, entities, match
from synth_medvlp.writer import WriterConfig, make, write_batch, write_reports

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
