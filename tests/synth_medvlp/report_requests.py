"""Requests and writers that the tests of the report writer share."""

import re

from chat_server import ChatServer

from synth_medvlp import train_writer
from synth_medvlp.backends import Reply, _sentence
from synth_medvlp.entities import DictionaryNer, mine
from synth_medvlp.sampler import Request, Sampler, SamplerConfig

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

    name, prompt_version, batched = "scripted", "1", True

    def __init__(self, say):
        self.say, self.calls = say, []
        self.companies: list[tuple[int, ...]] = []  # requests that were written together

    def write_findings(self, requests, feedback, seeds):
        self.companies.append(tuple(r.id for r in requests))
        return [self._one(r, "findings", f, s) for r, f, s in zip(requests, feedback, seeds, strict=True)]

    def write_impression(self, findings, requests, feedback, seeds):
        assert all(findings)
        self.companies.append(tuple(r.id for r in requests))
        return [self._one(r, "impression", f, s) for r, f, s in zip(requests, feedback, seeds, strict=True)]

    def _one(self, request, stage, feedback, seed):
        self.calls.append((request.id, stage, feedback, seed))
        said = self.say(request, stage, feedback, seed)
        return said if isinstance(said, Reply) else Reply(said, 10, 5)


def wholly(request) -> str:
    return " ".join(_sentence(*e) for e in request.entities)


TEXTS = {
    "empty": "  ",
    "refusal": "I'm sorry, but I cannot write medical reports.",
    "json": '{"findings": "There is a mass."}',
    "headings": "FINDINGS: There is a mass. IMPRESSION: Mass.",
    "extra": "Mild cardiomegaly. There is a large mass in the carina.",
    "fenced": "```text\n{text}\n```",
    "titled": "**FINDINGS:**\n{text}",
}


class ReportServer(ChatServer):
    """Writes by template what is asked for, which is named by its first entity."""

    def entities(self, body) -> list[tuple[str, str]]:
        asked = next(m["content"] for m in body["messages"] if m["role"] == "user")
        places = [name for name in re.findall(r"^ *- ([^(\n]+)$", asked, re.M) if name != "none"]
        return [*re.findall(r"^ *- (.+) \(([A-Z-]+)\)$", asked, re.M), *((place, "ANATOMY") for place in places)]

    def asked(self, body):
        return self.entities(body)[0][0]

    def good(self, body):
        return " ".join(_sentence(*e) for e in self.entities(body))

    def text(self, does, body):
        return TEXTS.get(does, "{text}").replace("{text}", self.good(body))
