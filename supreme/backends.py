"""Who reads a statement (reference: M2, stages 1 and 2): the offline rules, a language model on this machine, one
behind an OpenAI-compatible endpoint, or a file of earlier readings.

One interface: `read(statements)` yields a `Reading` per statement, in any order, as it is done; a statement that no
number of retries makes readable comes back with `error`, never as "nothing there". `read_statements` asks only for what
is not on disk yet.
"""

import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError
from jsonschema import Draft202012Validator

from shared.locks import locked
from supreme import prompt, rules
from supreme.prompt import EXTRACT_SCHEMA, REJECTED, BadReply, Dialogue, Entity, Reading, Usage, as_item, paper_view
from supreme.statements import statement_id

if TYPE_CHECKING:
    from supreme.extract import ExtractConfig

__all__ = ["Entity", "Reading", "make", "paper_view", "read_statements", "write_jsonl"]
FATAL_STATUS = (401, 403, 404, 405)  # key, model or address are wrong: every other statement would fail too
MAX_WAIT_S = 60.0
API_KEY = "EXTRACT_API_KEY"  # environment variable, so that no key stands in a config
_VALIDATOR = Draft202012Validator(EXTRACT_SCHEMA)


class BackendError(RuntimeError):
    """The backend cannot be used at all; what was read so far is in the cache."""


class Backend(Protocol):
    source: str  # rules | llm | replay
    model: str
    revision: str
    prompt_version: str  # of the prompts, of the rules, or of the replayed file
    decoding: dict

    def read(self, statements: list[str]) -> Iterator[Reading]: ...


def make(cfg: "ExtractConfig") -> Backend:
    """The backend that a config names. Raises ValueError where it lacks a key the backend needs."""
    kinds = {"rules": RulesBackend, "local": LocalBackend, "endpoint": EndpointBackend, "replay": ReplayBackend}
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
        known = _read_cache(path)
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


def _reading(line: bytes, where: str) -> Reading:
    """A line of a cache or of a replayed file. Its spans are checked again: the file may have been written by hand."""
    try:
        entry = json.loads(line)
        items, dropped = entry["entities"], tuple(entry.get("ungrounded", ()))
        problem = next(_VALIDATOR.iter_errors({"entities": items}), None)
        if problem:
            raise ValueError(problem.message)
        usage = Usage(**entry.get("usage", {}))
        entities, ungrounded = prompt.ground(items, entry["statement"])
        error = "" if entities or not ungrounded else "no surface stands in the statement"
        return Reading(entry["statement"], entities, error, dropped + ungrounded, usage)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a reading ({error}); delete the line") from error


def _read_cache(path: Path) -> dict[str, Reading]:
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    lines = enumerate(text[:whole].splitlines(), 1)
    return {r.statement: r for r in (_reading(line, f"{path}, line {number}") for number, line in lines)}


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
        lines = list(enumerate(text.splitlines(), 1))
        self.readings = {r.statement: r for r in (_reading(line, f"{path}, line {i}") for i, line in lines)}
        self.model, self.decoding = path.name, {}
        self.prompt_version = sha256(text).hexdigest()[:12]

    def read(self, statements: list[str]) -> Iterator[Reading]:
        for statement in statements:
            missing = Reading(statement, error=f"not in extract.replay_file ({self.model})")
            yield self.readings.get(statement, missing)


class _LanguageModel:
    """What the cache's key needs of a language model."""

    source = "llm"

    def __init__(self, cfg: "ExtractConfig"):
        self.cfg, self.model, self.revision = cfg, str(cfg.model), cfg.revision or ""
        self.prompt_version = prompt.version(cfg.verify)
        self.decoding = {"temperature": 0, "max_new_tokens": cfg.max_new_tokens}


class LocalBackend(_LanguageModel):
    """A causal language model of `transformers` on this machine: chat template, greedy, `batch` dialogues at a time."""

    def __init__(self, cfg: "ExtractConfig"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(cfg)
        self.tokenizer = AutoTokenizer.from_pretrained(cfg.model, revision=cfg.revision or "main", padding_side="left")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"extract.model={cfg.model!r} has no chat template; take an instruction-tuned model")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        place = {"device_map": "auto", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
        model = AutoModelForCausalLM.from_pretrained(cfg.model, revision=cfg.revision or "main", **place)
        self.network = model.eval()

    def read(self, statements: list[str]) -> Iterator[Reading]:
        """Dialogues step in lockstep; as one ends, the next takes its place, so that batches stay full."""
        waiting = iter(statements)
        active: list[tuple[str, Dialogue, tuple[list[dict], dict, int], Usage]] = []
        while True:
            while len(active) < self.cfg.batch and (statement := next(waiting, None)) is not None:
                steps = prompt.dialogue(statement, self.cfg.retries, self.cfg.verify)
                active.append((statement, steps, next(steps), Usage()))
            if not active:
                return
            replies = self._generate([messages for _, _, (messages, _, _), _ in active])
            following = []
            for (statement, steps, asked, usage), (reply, *tokens) in zip(active, replies, strict=True):
                usage = usage.plus(asked[2] > 0, *tokens)
                try:
                    following.append((statement, steps, steps.send(reply), usage))
                except StopIteration as done:
                    yield Reading(statement, done.value[0], "", done.value[1], usage)
                except BadReply as error:
                    yield Reading(statement, (), str(error), error.ungrounded, usage)
            active = following

    def _generate(self, conversations: list[list[dict]]) -> list[tuple[str, int, int]]:
        """(reply, tokens of the prompt, tokens of the reply) per conversation."""
        import torch

        inputs = self.tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            out = self.network.generate(
                **inputs.to(self.network.device), max_new_tokens=self.cfg.max_new_tokens, do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        new = out[:, inputs["input_ids"].shape[1] :]
        n_prompt = inputs["attention_mask"].sum(1).tolist()
        n_new = (new != self.tokenizer.pad_token_id).sum(1).tolist()
        return list(zip(self.tokenizer.batch_decode(new, skip_special_tokens=True), n_prompt, n_new, strict=True))


class EndpointBackend(_LanguageModel):
    """Any endpoint that speaks the OpenAI chat-completions protocol, `workers` statements at a time.

    The hub's client hands a JSON schema on in the form of the hub's own server (type json_object, the schema as
    `value`): other servers see their plain JSON mode, one that refuses it is asked without. The check is ours anyway.
    """

    def __init__(self, cfg: "ExtractConfig"):
        super().__init__(cfg)
        self.decoding |= {"response_format": cfg.response_format}
        # Without any key the client would fall back on the user's hub token and send that to base_url.
        key = os.environ.get(API_KEY) or "none"
        self.client = InferenceClient(base_url=cfg.base_url, api_key=key, timeout=cfg.timeout_s)
        self.with_schema = cfg.response_format

    def read(self, statements: list[str]) -> Iterator[Reading]:
        """Readings come as they are done. Raises BackendError where the endpoint refuses key, model or address."""
        done: queue.Queue = queue.Queue()
        stop = threading.Event()

        def one(statement: str) -> None:
            try:
                done.put(None if stop.is_set() else self._read_one(statement))
            except Exception as error:  # handed to the caller's thread, which raises it
                done.put(error)

        with ThreadPoolExecutor(self.cfg.workers) as pool:
            for statement in statements:
                pool.submit(one, statement)
            try:
                for _ in statements:
                    reading = done.get()
                    if isinstance(reading, Exception):
                        raise reading
                    yield reading
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _read_one(self, statement: str) -> Reading:
        steps = prompt.dialogue(statement, self.cfg.retries, self.cfg.verify)
        spent = [Usage()]
        try:
            messages, schema, attempt = next(steps)
            while True:
                messages, schema, attempt = steps.send(self._ask(messages, schema, attempt, spent))
        except StopIteration as done:
            return Reading(statement, done.value[0], "", done.value[1], spent[0])
        except (BadReply, HTTPError, InferenceTimeoutError) as error:
            return Reading(statement, (), _words(error), getattr(error, "ungrounded", ()), spent[0])

    def _ask(self, messages: list[dict], schema: dict, attempt: int, spent: list[Usage]) -> str:
        """The reply's text; waits and asks again on 429, server errors, timeouts and bodies that are no completion."""
        for again in range(self.cfg.retries + 1):
            last, wait_s = again == self.cfg.retries, self.cfg.backoff_s * 2**again
            with_schema = self.with_schema
            spent[0] = spent[0].plus(attempt + again > 0)
            try:
                return self._complete(messages, schema if with_schema else None, spent)
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status in FATAL_STATUS:
                    raise BackendError(f"{self.cfg.base_url} refuses model, key or address: {_words(error)}") from error
                if status in (400, 422) and with_schema:
                    self.with_schema = False  # the endpoint knows no response_format; the reply is checked all the same
                    return self._ask(messages, schema, attempt + 1, spent)
                if last or (status != 429 and status < 500):
                    raise
                asked = error.response.headers.get("Retry-After", "")
                wait_s = max(wait_s, float(asked)) if asked.isdigit() else wait_s
            except (BadReply, InferenceTimeoutError):
                if last:
                    raise
            except HTTPError as error:  # no HTTP answer: refused, cut, unknown host
                if last:
                    at = self.cfg.base_url
                    raise BackendError(f"nobody answers at {at}: {error}; is the server running?") from error
            time.sleep(min(wait_s, MAX_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _complete(self, messages: list[dict], schema: dict | None, spent: list[Usage]) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        try:
            answer = self.client.chat_completion(
                messages, model=self.cfg.model, temperature=0.0, max_tokens=self.cfg.max_new_tokens,
                response_format=form if schema else None,
            )  # fmt: skip
        except HTTPError:
            raise
        except (ValueError, TypeError, KeyError) as error:  # the body is no JSON, or no chat completion
            raise BadReply(f"the endpoint's answer is no chat completion ({error})") from error
        if not answer.choices:
            raise BadReply("the endpoint's answer has no choices")
        if answer.usage:  # not every server counts
            calls, retries, n_prompt, n_new = spent[0]
            n_prompt += answer.usage.prompt_tokens or 0
            spent[0] = Usage(calls, retries, n_prompt, n_new + (answer.usage.completion_tokens or 0))
        return answer.choices[0].message.content or ""


def _words(error: Exception) -> str:
    status = f"HTTP {error.response.status_code}: " if isinstance(error, HfHubHTTPError) else ""
    return f"{status}{error}"[:300]
