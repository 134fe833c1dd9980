"""A language model that is asked for more than free text: dialogues whose replies are checked, and what can go wrong.

A dialogue is a generator. It yields `(messages, JSON schema, number of the attempt)`, is sent the reply, and returns
what the replies came to; it knows no model. `Endpoint` holds dialogues with any server that speaks the OpenAI
chat-completions protocol, `LocalChat` with a causal language model in this process. The prompts are the papers'.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple, Protocol

import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError
from jsonschema import Draft202012Validator

FATAL_STATUS = (401, 403, 404, 405)  # key, model or address are wrong: every other request would fail too
MAX_WAIT_S = 60.0

Dialogue = Generator[tuple[list[dict], dict, int], str, Any]


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all; what was answered so far is in the caller's cache."""


class BadReply(ValueError):
    """A reply that is not what was asked for; its text is said back to the model. ungrounded: what it made up."""

    def __init__(self, message: str, ungrounded: tuple[dict, ...] = ()):
        super().__init__(message)
        self.ungrounded = ungrounded


class Usage(NamedTuple):
    """What a dialogue cost: requests, those of them that were repeated, and tokens (0 where the server counts none)."""

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, *more: int) -> "Usage":
        return Usage(*(a + b for a, b in zip(self, more, strict=True)))


class Reply(NamedTuple):
    """text: "" where the model said nothing; whole: it came to its end before the limit of tokens."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    whole: bool = True


class Outcome(NamedTuple):
    """value: what a dialogue returned; error: why it came to nothing, None where it did not."""

    value: Any = None
    error: Exception | None = None
    usage: Usage = Usage()


def words(error: Exception | None) -> str:
    """What went wrong, short enough for a table; "" for None."""
    status = f"HTTP {error.response.status_code}: " if isinstance(error, HfHubHTTPError) else ""
    return f"{status}{error or ''}"[:300]


# --- what is said ---


def system_and_user(prompt: str, content: str) -> list[dict]:
    return [{"role": "system", "content": prompt}, {"role": "user", "content": content}]


def until_valid(question: list[dict], schema: dict, accept: Callable[[dict], Any], retries: int) -> Dialogue:
    """`accept` of the object in the reply, asked again up to `retries` times. Raises the last BadReply."""
    messages = question
    for attempt in range(retries + 1):
        reply = yield messages, schema, attempt
        try:
            return accept(parse(reply, schema))
        except BadReply as error:
            if attempt == retries:
                raise
            # A greedy model gives the same broken reply to the same question: show it, and what is wrong with it.
            complaint = f"That was no valid answer: {error}. Answer with the JSON object only."
            said = [{"role": "assistant", "content": reply}, {"role": "user", "content": complaint}]
            messages = question + (said if reply.strip() else [])
    raise AssertionError("unreachable: the last attempt returns or raises")


def parse(reply: str, schema: dict) -> dict:
    """The object in a reply; text or a code fence around it is tolerated, a wrong object is not (BadReply)."""
    at = re.search(r"\{.*\}", reply, re.DOTALL)
    if not at:
        raise BadReply("no JSON object in the reply")
    try:
        value = json.loads(at.group())
    except (ValueError, RecursionError) as error:
        raise BadReply(f"broken JSON ({error})") from error
    problems = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
    if problems:
        raise BadReply("; ".join(problems)[:500])
    return value


# --- an endpoint ---


class EndpointConfig(Protocol):
    """retries: further attempts after the first, with the wait doubling from backoff_s."""

    base_url: str  # such as http://localhost:8000/v1
    model: str  # what the endpoint calls it
    workers: int
    retries: int
    timeout_s: float
    backoff_s: float
    max_new_tokens: int


class Endpoint:
    """Any endpoint that speaks the OpenAI chat-completions protocol, `workers` dialogues at a time.

    The hub's client hands a JSON schema on in the form of the hub's own server (type json_object, the schema as
    `value`): other servers see their plain JSON mode, one that refuses it is asked without. The check is ours anyway.
    """

    def __init__(self, cfg: EndpointConfig, api_key: str | None, with_schema: bool = False):
        self.cfg, self.with_schema = cfg, with_schema
        # Without any key the client would fall back on the user's hub token and send that to base_url.
        self.client = InferenceClient(base_url=cfg.base_url, api_key=api_key or "none", timeout=cfg.timeout_s)

    def hold(self, dialogues: Iterable[tuple[Any, Dialogue]]) -> Iterator[tuple[Any, Outcome]]:
        """(key, outcome) as dialogues end. Raises EndpointError where the endpoint refuses key, model or address."""
        return as_done(self._hold_one, dialogues, self.cfg.workers)

    def _hold_one(self, item: tuple[Any, Dialogue]) -> tuple[Any, Outcome]:
        (key, dialogue), spent = item, [Usage()]
        try:
            messages, schema, attempt = next(dialogue)
            while True:
                reply = self.ask(messages, schema, attempt, spent)
                messages, schema, attempt = dialogue.send(reply.text)
        except StopIteration as done:
            return key, Outcome(done.value, None, spent[0])
        except (BadReply, HTTPError, InferenceTimeoutError) as error:
            return key, Outcome(None, error, spent[0])

    def ask(self, messages: list[dict], schema: dict | None = None, attempt: int = 0, spent: list[Usage] | None = None,
            **options) -> Reply:  # fmt: skip
        """The reply; waits and asks again on 429, server errors, timeouts and bodies that are no completion.

        attempt: earlier requests with this question; spent: its only element is added to; options: of the protocol.
        Raises EndpointError, or what the last request came to: BadReply or an HTTPError.
        """
        spent = [Usage()] if spent is None else spent
        at = f"{self.cfg.model} at {self.cfg.base_url}"
        for again in range(self.cfg.retries + 1):
            last, wait_s, with_schema = again == self.cfg.retries, self.cfg.backoff_s * 2**again, self.with_schema
            spent[0] = spent[0].plus(1, int(attempt + again > 0), 0, 0)
            try:
                reply = self._complete(messages, schema if with_schema else None, options)
                spent[0] = spent[0].plus(0, 0, reply.prompt_tokens, reply.completion_tokens)
                return reply
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status in FATAL_STATUS:
                    raise EndpointError(f"{at}: it refuses model, key or address: {words(error)}") from error
                if status in (400, 422) and schema and with_schema:
                    self.with_schema = False  # the endpoint knows no response_format; the reply is checked all the same
                    return self.ask(messages, schema, attempt + 1, spent, **options)
                if last or (status != 429 and status < 500):
                    raise
                asked = error.response.headers.get("Retry-After", "")
                wait_s = max(wait_s, float(asked)) if asked.isdigit() else wait_s
            except (BadReply, InferenceTimeoutError):
                if last:
                    raise
            except HTTPError as error:  # no HTTP answer: refused, cut, unknown host
                if last:
                    raise EndpointError(
                        f"nobody answers at {self.cfg.base_url}: {error}; is the server running?"
                    ) from error
            time.sleep(min(wait_s, MAX_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _complete(self, messages: list[dict], schema: dict | None, options: dict) -> Reply:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        options = {"temperature": 0.0, "max_tokens": self.cfg.max_new_tokens} | options
        options |= {"response_format": form} if schema else {}
        try:
            answer = self.client.chat_completion(messages, model=self.cfg.model, **options)
        except HTTPError:
            raise
        except (ValueError, TypeError, KeyError) as error:  # the body is no JSON, or no chat completion
            raise BadReply(f"the endpoint's answer is no chat completion ({error})") from error
        if not answer.choices:
            raise BadReply("the endpoint's answer has no choices")
        first, usage = answer.choices[0], answer.usage  # not every server counts tokens
        tokens = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        return Reply(first.message.content or "", *tokens, first.finish_reason != "length")


def as_done(one: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator:
    """one(item) of all items as they are done, `workers` at a time; an error stops the rest."""
    stop = threading.Event()

    def unless_stopped(item):
        try:
            return None if stop.is_set() else one(item)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in as_completed([pool.submit(unless_stopped, item) for item in items]):
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


# --- a model in this process ---


class LocalChat:
    """A causal language model of `transformers`: chat template, greedy, `batch` dialogues at a time."""

    def __init__(self, model: torch.nn.Module, tokenizer, batch: int, max_new_tokens: int):
        self.model, self.tokenizer, self.batch, self.max_new_tokens = model.eval(), tokenizer, batch, max_new_tokens
        if tokenizer.chat_template is None:
            raise ValueError(f"{tokenizer.name_or_path} has no chat template; take an instruction-tuned model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def hold(self, dialogues: Iterable[tuple[Any, Dialogue]]) -> Iterator[tuple[Any, Outcome]]:
        """(key, outcome). Dialogues step together; as one ends, the next takes its place: batches stay full."""
        waiting = iter(dialogues)
        active: list[tuple[Any, Dialogue, tuple[list[dict], dict, int], Usage]] = []
        while True:
            while len(active) < self.batch and (new := next(waiting, None)) is not None:
                active.append((*new, next(new[1]), Usage()))
            if not active:
                return
            replies = self.generate([messages for _, _, (messages, _, _), _ in active])
            following = []
            for (key, dialogue, (_, _, attempt), usage), (text, *tokens, _) in zip(active, replies, strict=True):
                usage = usage.plus(1, int(attempt > 0), *tokens)
                try:
                    following.append((key, dialogue, dialogue.send(text), usage))
                except StopIteration as done:
                    yield key, Outcome(done.value, None, usage)
                except BadReply as error:
                    yield key, Outcome(None, error, usage)
            active = following

    @torch.inference_mode()
    def generate(self, conversations: list[list[dict]]) -> list[Reply]:
        self.tokenizer.padding_side = "left"
        inputs = self.tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        pad = self.tokenizer.pad_token_id
        limit = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "pad_token_id": pad}
        out = self.model.generate(**inputs.to(self.model.device), **limit)
        new = out[:, inputs["input_ids"].shape[1] :]
        counts = inputs["attention_mask"].sum(1).tolist(), (new != pad).sum(1).tolist()
        return list(map(Reply, self.tokenizer.batch_decode(new, skip_special_tokens=True), *counts))
