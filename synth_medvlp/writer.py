"""Reports for requests (reference: S2-S4): FINDINGS, their check by the reader of entities, IMPRESSION, its check.

A text is accepted where the entities found in it are those asked for, by one of three rules; else it is written again
with what was missing or too much, up to a number of attempts. A FINDINGS whose IMPRESSION never passes is written anew.
Requests go in batches; a finished batch stands in manifest.jsonl, rejected requests too, and is never written again.
Under `torchrun` or `accelerate launch` the workers share each batch by chunks, so that a text is written in the same
company, with the same rounding, whoever writes it: the sampler, which needs to know what became of a batch before it
draws the next, is replayed by all of them; the first one puts the shares together.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.progress import Progress

from shared.locks import write_whole
from synth_medvlp.backends import ERRORS, Feedback, Reply, Writer, make
from synth_medvlp.entities import CLINICAL, RULES, TYPES, Mention, Ner, entities, match
from synth_medvlp.journal import POLL_S, shows_progress, worker
from synth_medvlp.sampler import Request, Sampler

__all__ = ["Writer", "WriterConfig", "make", "write_reports"]
STAGES = ("findings", "impression")
SHARES = 8  # a batch is cut into so many chunks, for as many workers


@dataclass
class WriterConfig:
    """Section `writer:` (reference: S2-S4)."""

    backend: str = "local"  # local (transformers) | endpoint (OpenAI-compatible) | template (control)
    model: str = "weights/writer"  # hub name, folder, or folder in this package; at an endpoint its name there
    revision: str | None = None  # of a hub model
    base_url: str | None = None  # of the endpoint, such as http://localhost:8000/v1; key: environment WRITER_API_KEY
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 384
    batch: int = 256  # requests between two steps of the sampler; a killed run loses one batch at most
    workers: int = 8  # endpoint: requests at a time
    timeout_s: float = 120.0
    backoff_s: float = 1.0  # first wait after a failure; doubles
    retries: int = 3  # endpoint: further tries of one call
    rule: str = "normalised"  # strict | normalised | recall
    check: bool = True  # False: the first readable text is taken (control without S3)
    attempts: int = 5  # at FINDINGS, before the request is rejected
    impression_attempts: int = 3  # at the IMPRESSION of one FINDINGS, before that is written anew
    impression_words: int = 45  # more are no IMPRESSION
    prompt_tokenizer: str | None = None  # of the text-to-image model; null = words and signs are counted
    prompt_tokens: int = 77  # that it reads, begin and end included
    give_up: float = 20.0  # requests drawn per report asked for, at most


# Change how fast, not what is written.
_SPEED = ("workers", "timeout_s", "backoff_s", "retries", "base_url")


@dataclass
class _Case:
    """One request on its way. texts: accepted so far; tries: of FINDINGS, and of the IMPRESSION since the last ones."""

    request: Request
    texts: dict[str, str] = field(default_factory=dict)
    found: dict[str, list[Mention]] = field(default_factory=dict)
    attempts: list[dict] = field(default_factory=list)
    tries: Counter = field(default_factory=Counter)
    feedback: Feedback | None = None
    reason: str = ""

    @property
    def stage(self) -> str:
        """What it needs next; "" where it is done."""
        return "" if self.reason else next((s for s in STAGES if s not in self.texts), "")

    def seed(self, stage: str) -> int:
        made = sum(a["stage"] == stage for a in self.attempts)
        return int(np.random.default_rng([self.request.seed, STAGES.index(stage), made]).integers(2**31))

    def take(self, stage: str, reply: Reply, mentions: list[Mention], cfg: WriterConfig, n_tokens: int) -> None:
        """Judge a reply: accept it, or note what was wrong with it and where to go from here."""
        asked, found = self.request.entities, entities(mentions)
        words, error = len(reply.text.split()), reply.error
        if not error and stage == "impression" and words > cfg.impression_words:
            error = "long"
        verdicts = {rule: match(asked, found, rule) for rule in RULES}
        _, missing, extra = verdicts[cfg.rule]
        self.attempts.append({
            "stage": stage, "error": error, "passed": {rule: ok and not error for rule, (ok, _, _) in verdicts.items()},
            "missing": missing, "extra": extra, "words": words, "prompt_tokens": n_tokens, "tokens_in": reply.n_prompt,
            "tokens_out": reply.n_new,
        })  # fmt: skip
        self.tries[stage] += 1
        if not error and (verdicts[cfg.rule][0] or not cfg.check):
            self.texts[stage], self.found[stage], self.feedback = reply.text, mentions, None
            return
        self.feedback = Feedback(reply.text, missing, extra, error)
        if stage == "impression" and self.tries[stage] >= cfg.impression_attempts:
            self.texts, self.found, self.feedback = {}, {}, None  # back to S2
            self.tries[stage] = 0
            self.reason = "" if self.tries["findings"] < cfg.attempts else "impression"
        elif stage == "findings" and self.tries[stage] >= cfg.attempts:
            self.reason = "findings"

    def record(self, writer: Writer) -> dict:
        """The line of the manifest."""
        n = Counter(a["stage"] for a in self.attempts)
        return {
            "id": self.request.id, "seed": self.request.seed, "clinical": self.request.clinical,
            "anatomy": self.request.anatomy, "status": "rejected" if self.reason else "accepted",
            "reject_reason": self.reason, **{stage: self.texts.get(stage, "") for stage in STAGES},
            **{f"ner_{stage}": [(m.text, m.type) for m in self.found.get(stage, ())] for stage in STAGES},
            "text_attempts": n["findings"], "impression_attempts": n["impression"], "attempts": self.attempts,
            "writer": writer.name, "prompt_version": writer.prompt_version,
        }  # fmt: skip


def write_batch(requests: Sequence[Request], writer: Writer, ner: Ner, cfg: WriterConfig,
                n_tokens: Callable[[list[str]], list[int]]) -> list[dict]:  # fmt: skip
    """Records of these requests, accepted or rejected, in their order. Depends on nothing but its arguments."""
    cases = [_Case(request) for request in requests]
    while waiting := [case for case in cases if case.stage]:
        stage = "findings" if any(case.stage == "findings" for case in waiting) else "impression"
        now = [case for case in waiting if case.stage == stage]
        asked = [case.request for case in now], [case.feedback for case in now], [case.seed(stage) for case in now]
        if stage == "findings":
            replies = writer.write_findings(*asked)
        else:
            replies = writer.write_impression([case.texts["findings"] for case in now], *asked)
        texts = [reply.text for reply in replies]
        for case, reply, mentions, n in zip(now, replies, ner(texts), n_tokens(texts), strict=True):
            case.take(stage, reply, mentions, cfg, n)
    return [case.record(writer) for case in cases]


def write_reports(sampler: Sampler, n: int, writer: Writer, ner: Ner, cfg: WriterConfig,
                  folder: Path) -> tuple[list[dict], dict]:  # fmt: skip
    """n accepted reports for requests of a fresh sampler -> (all records, by id; statistics of S1 to S4).

    Records are kept in folder/manifest.jsonl batch by batch; a run that was killed goes on there and ends with the same
    records, also with other workers at its side: all return all records. Fewer than n are made where the sampler has no
    strings left or too many requests are rejected; stats["stopped"] says so. Raises ValueError where the folder holds
    reports of other settings.
    """
    if cfg.rule not in RULES:
        raise ValueError(f"writer.rule={cfg.rule!r}: one of {', '.join(RULES)}")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _identity(sampler, writer, cfg))
    path, count = folder / "manifest.jsonl", _counter(cfg)
    known, records, accepted, stopped = _read(path), [], 0, ""
    size = 0  # bytes of the manifest that hold whole batches
    with Progress(disable=not shows_progress()) as progress:
        bar = progress.add_task("reports", total=n)
        while accepted < n and not stopped:
            requests = sampler.draw(min(cfg.batch, n - accepted))
            if not requests:
                stopped = sampler.exhausted
                break
            lines = known[len(records) : len(records) + len(requests)]
            if len(lines) < len(requests):
                known = []
                lines = _batch(
                    path, size, requests, lambda some: write_batch(some, writer, ner, cfg, count), writer.batched
                )
            batch = [json.loads(line) for line in lines]
            size += sum(len(line) for line in lines)
            if [record["id"] for record in batch] != [request.id for request in requests]:
                raise ValueError(f"{path}: its records are of other requests; remove {folder}")
            for request, record in zip(requests, batch, strict=True):
                (sampler.accept if record["status"] == "accepted" else sampler.reject)(request)
            records += batch
            accepted += sum(record["status"] == "accepted" for record in batch)
            if len(records) >= cfg.give_up * n:
                stopped = f"{len(records)} requests gave {accepted} reports (writer.give_up); see pass rates"
            progress.update(bar, completed=min(accepted, n))
    seconds = _seconds(folder)
    stats = {"sampler": sampler.stats(), "asked": n, "requests": len(records), "accepted": accepted, "stopped": stopped}
    stats |= {"rejected": dict(Counter(r["reject_reason"] for r in records if r["reject_reason"]))}
    stats |= {"sent_back": sum(_sent_back(r) for r in records), "seconds": seconds}
    stats |= {"seconds_per_report": seconds / accepted if accepted else None}
    return records, stats | {stage: _stage_stats(records, stage, cfg) for stage in STAGES}


# --- on disk ---


def _batch(
    path: Path, size: int, requests: Sequence[Request], write: Callable[..., list[dict]], batched: bool
) -> list[bytes]:
    """Lines of the manifest from byte `size` on: what the workers wrote for these requests, in their order.

    Chunks go to the workers in turn. A worker's share stands in a file of its own until the first worker, which alone
    writes the manifest, took it over.
    """
    start, (rank, world) = time.perf_counter(), worker()
    chunk = -(-len(requests) // SHARES)
    chunks = [requests[i : i + chunk] for i in range(0, len(requests), chunk)]

    def written(mine: Sequence[Sequence[Request]]) -> bytes:
        """Chunk by chunk, where a text's rounding depends on what it is written with."""
        together = mine if batched else [[request for some in mine for request in some]]
        return b"".join(_lines(write(some)) for some in together if some)

    shares = [path.parent / f"share-{requests[0].id}-{requests[-1].id}-{i}of{world}.jsonl" for i in range(1, world)]
    if rank:
        share = shares[rank - 1]
        # A share may be left by a run that was killed, and be taken over, then removed, before this worker looks.
        if not share.exists() and len(_read(path, size)) < len(requests):
            share.with_suffix(".tmp").write_bytes(written(chunks[rank::world]))
            share.with_suffix(".tmp").replace(share)
        while len(lines := _read(path, size)) < len(requests):
            time.sleep(POLL_S)
        return lines[: len(requests)]
    found = {0: written(chunks[::world]).splitlines(True)}
    for i, share in enumerate(shares, 1):
        while not share.exists():
            time.sleep(POLL_S)
        found[i] = _read(share)
    waiting = {i: iter(some) for i, some in found.items()}
    lines = [next(waiting[number % world]) for number, some in enumerate(chunks) for _ in some]
    with path.open("ab") as manifest:
        manifest.truncate(size)  # what a kill left of a batch
        manifest.write(b"".join(lines))
        manifest.flush()
        os.fsync(manifest.fileno())
    with (path.parent / "seconds.txt").open("a") as spent:
        spent.write(f"{time.perf_counter() - start:.3f}\n")
    for share in shares:
        share.unlink()
    return lines


def _lines(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _read(path: Path, start: int = 0) -> list[bytes]:
    """Whole lines from byte `start` on."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        stream.seek(start)
        return [line for line in stream.read().splitlines(True) if line.endswith(b"\n")]


def _seconds(folder: Path) -> float:
    path = folder / "seconds.txt"  # beside the manifest, which is the same for every run
    return sum(float(line) for line in path.read_text().split()) if path.exists() else 0.0


def _identity(sampler: Sampler, writer: Writer, cfg: WriterConfig) -> dict:
    pool = sha256(json.dumps({k: dict(v) for k, v in sampler.real.items()}).encode()).hexdigest()[:16]
    kept = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in _SPEED}
    return {"sampler": asdict(sampler.cfg), "pool": pool, "writer": kept, "name": writer.name,
            "prompt_version": writer.prompt_version}  # fmt: skip


def _claim(folder: Path, identity: dict) -> None:
    path = folder / "writer.json"
    if not path.exists():
        write_whole(path, json.dumps(identity, indent=1) + "\n")
    elif (there := json.loads(path.read_text())) != identity:
        differ = [key for key in identity if there.get(key) != identity[key]]
        raise ValueError(f"{folder} holds reports of other settings ({', '.join(differ)}); remove it or take another")


def _counter(cfg: WriterConfig) -> Callable[[list[str]], list[int]]:
    """Texts -> tokens that the text-to-image model needs for each, begin and end included."""
    if cfg.prompt_tokenizer is None:
        return lambda texts: [2 + sum(len(w) - len(w.strip(".,;:()")) + 1 for w in text.split()) for text in texts]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cfg.prompt_tokenizer)
    return lambda texts: [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]  # too long ones are counted


# --- statistics ---


def _sent_back(record: dict) -> int:
    """How often FINDINGS were written anew because no IMPRESSION passed."""
    stages = [a["stage"] for a in record["attempts"]]
    return sum(pair == ("impression", "findings") for pair in pairwise(stages))


def _stage_stats(records: list[dict], stage: str, cfg: WriterConfig) -> dict:
    """The reference's statistics of S2 and S3, or of S4."""
    by_record = [[a for a in r["attempts"] if a["stage"] == stage] for r in records]
    attempts = [a for row in by_record for a in row]
    read = [a for a in attempts if not a["error"]]
    most = max((len(row) for row in by_record), default=0)
    nth = [[row[i] for row in by_record if len(row) > i] for i in range(most)]
    reached = sum(bool(row) for row in by_record)
    done = sum(any(_passed(a, cfg) for a in row) for row in by_record)
    words = [a["words"] for a in read]
    stats = {
        "prompts": len(attempts), "tokens_in": sum(a["tokens_in"] for a in attempts),
        "tokens_out": sum(a["tokens_out"] for a in attempts),
        "errors": {e: sum(a["error"] == e for a in attempts) for e in (*ERRORS, "long")},
        "words": {f"q{q}": float(np.percentile(words, q)) for q in (0, 25, 50, 75, 100)} if words else {},
        "pass_rate": _rates(attempts),
        "pass_rate_by_attempt": [{"n": len(row)} | _rates(row) for row in nth], "requests": reached, "passed": done,
        "mean_attempts": len(attempts) / reached if reached else 0.0,
        **{side: _by_type(e for a in read for e in a[side]) for side in ("missing", "extra")},
        "type_flips": _flips(read),
    }  # fmt: skip
    if stage == "impression":
        lengths = [a["prompt_tokens"] for a in attempts if _passed(a, cfg)]
        over = [n - cfg.prompt_tokens for n in lengths if n > cfg.prompt_tokens]
        stats |= {"over_prompt_tokens": len(over) / len(lengths) if lengths else 0.0, "tokens_lost": sum(over)}
    return stats


def _rates(attempts: list[dict]) -> dict[str, float]:
    """Share that passes by each rule, of all attempts, unusable ones included."""
    return {rule: sum(a["passed"][rule] for a in attempts) / max(len(attempts), 1) for rule in RULES}


def _passed(attempt: dict, cfg: WriterConfig) -> bool:
    return not attempt["error"] and (attempt["passed"][cfg.rule] or not cfg.check)


def _by_type(found) -> dict:
    """Number per type and the most frequent strings."""
    counts = Counter(map(tuple, found))
    per_type = {kind: sum(n for (_, k), n in counts.items() if k == kind) for kind in TYPES}
    return {"per_type": per_type, "top": [[*entity, n] for entity, n in counts.most_common(20)]}


def _flips(attempts: list[dict]) -> dict[str, int]:
    """A string that was asked for as one clinical type and found as another."""
    flips: Counter = Counter()
    for a in attempts:
        extra = {name: kind for name, kind in map(tuple, a["extra"]) if kind in CLINICAL}
        flips.update(f"{kind}->{extra[name]}" for name, kind in map(tuple, a["missing"]) if name in extra)
    return dict(flips.most_common())
