"""Requests and writers that the tests of the report writer share."""

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
