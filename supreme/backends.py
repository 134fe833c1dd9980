"""Who reads a statement (reference: M2, stages 1 and 2): the offline rules, a language model on this machine, one
behind an OpenAI-compatible endpoint, or a file of earlier readings.

One interface: `read(statements)` yields a `Reading` per statement, in any order, as it is done; a statement that no
number of retries makes readable comes back with `error`, never as "nothing there". `read_statements` asks only for what
is not on disk yet.
"""

import json
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jsonschema import Draft202012Validator

from shared.chat import Endpoint, LocalChat, Usage, words
from shared.locks import entries, locked
from supreme import prompt, rules
from supreme.prompt import EXTRACT_SCHEMA, REJECTED, Entity, Reading, as_item, paper_view
from supreme.statements import statement_id

if TYPE_CHECKING:
    from supreme.extract import ExtractConfig

__all__ = ["Entity", "Reading", "make", "paper_view", "read_statements", "write_jsonl"]
API_KEY = "EXTRACT_API_KEY"  # environment variable, so that no key stands in a config
_VALIDATOR = Draft202012Validator(EXTRACT_SCHEMA)


class Backend(Protocol):
    source: str  # rules | llm | replay
    model: str
    revision: str
    prompt_version: str  # of the prompts, of the rules, or of the replayed file
    decoding: dict

    def read(self, statements: list[str]) -> Iterator[Reading]: ...


def make(cfg: "ExtractConfig") -> Backend:
    """The backend that a config names. Raises ValueError where it lacks a key the backend needs."""
    kinds = {"rules": RulesBackend, "local": LanguageModel, "endpoint": LanguageModel, "replay": ReplayBackend}
    if cfg.backend not in kinds:
        raise ValueError(f"extract.backend={cfg.backend!r}: one of {', '.join(kinds)}")
    needed = {"local": ("model",), "endpoint": ("model", "base_url"), "replay": ("replay_file",)}
    for key in needed.get(cfg.backend, ()):
        if not getattr(cfg, key):
            raise ValueError(f"extract.backend={cfg.backend!r} needs extract.{key}")
    return kinds[cfg.backend](cfg)


# --- readings on disk ---


def read_statements(cfg: "ExtractConfig", statements: list[str], folder: Path) -> tuple[list[Reading], dict]:
    """Readings of unique normalised statements, in their order, and what the reading came to.

    They are kept in one JSONL file per hash(model, revision, prompt version, decoding) under `folder`, a line as soon
    as a statement is read, so that a killed run goes on where it stopped (a last line cut off is dropped). Failures are
    not kept: the next run asks again. What is counted is part of a line: a rerun from the file gives the same counts.

    counts: source, model, revision, prompt_version, decoding, statements, failed (statements without a reading),
    valid_share (1 - failed / statements), entities, ungrounded (dropped entities), grounded_share, rejected (by the
    second pass), nothing (statements read as naming no entity), calls, retries, prompt_tokens, completion_tokens.
    """
    from rich.progress import track

    backend = make(cfg)
    # One file holds what was asked in one way; in it a statement is its own key.
    origin = {key: getattr(backend, key) for key in ("source", "model", "revision", "prompt_version", "decoding")}
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{backend.source}-{Path(backend.model).name}")[-60:]
    path = Path(folder) / f"{name}-{sha256(json.dumps(origin).encode()).hexdigest()[:12]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        known = {r.statement: r for r in entries(path, _reading, "reading")}
        todo = [s for s in dict.fromkeys(statements) if s not in known]
        with path.open("a", encoding="utf-8") as cache:
            new = track(backend.read(todo), f"{backend.source}: statements", len(todo), disable=len(todo) < 1000)
            for reading in new:
                known[reading.statement] = reading
                if not reading.error:
                    cache.write(_line(origin, reading))
                    cache.flush()
    readings = [known[s] for s in statements]
    return readings, origin | _counts(readings)


def write_jsonl(path: Path, readings: list[Reading], counts: dict) -> None:
    """extraction.jsonl: one object of the reference's schema per statement that was read, in the order of `readings`;
    counts as `read_statements` gives them. The file can be replayed."""
    Path(path).write_text("".join(_line(counts, r) for r in readings if not r.error), encoding="utf-8")


def _line(origin: dict, reading: Reading) -> str:
    entry = {"statement_id": statement_id(reading.statement), "statement": reading.statement}
    entry |= {key: origin[key] for key in ("source", "model", "prompt_version")}
    entry |= {"entities": [as_item(e) for e in reading.entities], "paper_view": paper_view(reading.entities)}
    entry |= {"ungrounded": list(reading.ungrounded), "usage": reading.usage._asdict()}
    return json.dumps(entry) + "\n"


def _reading(entry: dict) -> Reading:
    """Of a line of a cache or of a replayed file. Its spans are checked again: it may have been written by hand."""
    items, dropped = entry["entities"], tuple(entry.get("ungrounded", ()))
    problem = next(_VALIDATOR.iter_errors({"entities": items}), None)
    if problem:
        raise ValueError(problem.message)
    usage = Usage(**entry.get("usage", {}))
    entities, ungrounded = prompt.ground(items, entry["statement"])
    error = "" if entities or not ungrounded else "no surface stands in the statement"
    return Reading(entry["statement"], entities, error, dropped + ungrounded, usage)


def _counts(readings: list[Reading]) -> dict:
    n, failed = len(readings), sum(bool(r.error) for r in readings)
    dropped = [item["reason"] for r in readings for item in r.ungrounded]
    entities, rejected = sum(len(r.entities) for r in readings), dropped.count(REJECTED)
    ungrounded = len(dropped) - rejected
    named = entities + len(dropped)
    counts = {"statements": n, "failed": failed, "valid_share": (n - failed) / n if n else 1.0}
    counts |= {"entities": entities, "ungrounded": ungrounded, "rejected": rejected}
    counts |= {"grounded_share": 1 - ungrounded / named if named else 1.0}
    counts |= {"nothing": sum(not r.entities and not r.error for r in readings)}
    return counts | {name: sum(getattr(r.usage, name) for r in readings) for name in Usage._fields}


# --- the backends ---


class RulesBackend:
    """supreme/rules.py and lexicon.yaml; cannot fail."""

    source, model, revision = "rules", "rules", ""

    def __init__(self, cfg: "ExtractConfig"):
        self.prompt_version, self.decoding = rules.version(), {}

    def read(self, statements: list[str]) -> Iterator[Reading]:
        for statement in statements:
            yield Reading(statement, tuple(rules.read(statement)))


class ReplayBackend:
    """A JSONL file in the form of the cache, of whatever backend wrote it; what is not in it is a failure."""

    source, revision = "replay", ""

    def __init__(self, cfg: "ExtractConfig"):
        path = Path(cfg.replay_file)
        if not path.exists():
            raise ValueError(f"extract.replay_file: there is no {path}")
        text = path.read_bytes()
        self.readings = {r.statement: r for r in entries(path, _reading, "reading")}
        self.model, self.decoding = path.name, {}
        self.prompt_version = sha256(text).hexdigest()[:12]

    def read(self, statements: list[str]) -> Iterator[Reading]:
        for statement in statements:
            missing = Reading(statement, error=f"not in extract.replay_file ({self.model})")
            yield self.readings.get(statement, missing)


class LanguageModel:
    """A causal language model of `transformers` on this machine, or one behind an endpoint."""

    source = "llm"

    def __init__(self, cfg: "ExtractConfig"):
        self.cfg, self.model, self.revision = cfg, str(cfg.model), cfg.revision or ""
        self.prompt_version = prompt.version(cfg.verify)
        self.decoding = {"temperature": 0, "max_new_tokens": cfg.max_new_tokens}
        if cfg.backend == "local":
            self.chat = _load(cfg)
        else:
            self.decoding |= {"response_format": cfg.response_format}
            self.chat = Endpoint(cfg, os.environ.get(API_KEY), cfg.response_format)

    def read(self, statements: list[str]) -> Iterator[Reading]:
        """Readings come as they are done. Raises EndpointError where the endpoint refuses key, model or address."""
        steps = ((s, prompt.dialogue(s, self.cfg.retries, self.cfg.verify)) for s in statements)
        for statement, (value, error, usage) in self.chat.hold(steps):
            entities, ungrounded = value or ((), getattr(error, "ungrounded", ()))
            yield Reading(statement, entities, words(error), ungrounded, usage)


def _load(cfg: "ExtractConfig") -> LocalChat:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    at = {"revision": cfg.revision or "main"}
    place = {"device_map": "auto", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
    model = AutoModelForCausalLM.from_pretrained(cfg.model, **at, **place)
    return LocalChat(model, AutoTokenizer.from_pretrained(cfg.model, **at), cfg.batch, cfg.max_new_tokens)
