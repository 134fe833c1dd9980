"""Who writes reports (reference: S2, S4): a causal language model on this machine, one behind an OpenAI-compatible
endpoint, or plain templates (control).

A model with a chat template is asked in words (writer_prompt.yaml) and told at a retry what was missing or too much.
The small model of the laptop tier (`train_writer`) reads entities with their types and goes by the seed alone. A reply
is a `Reply`, also where it is of no use: empty, a refusal, in another form, cut off, or not obtained.
"""

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from huggingface_hub.errors import HTTPError

from shared.chat import BadReply, Endpoint, as_done
from shared.runs.evaluation import device
from shared.runs.processes import one_thread
from synth_medvlp.entities import ANATOMY, TYPES, Entity
from synth_medvlp.journal import worker
from synth_medvlp.lexicon import elements
from synth_medvlp.sampler import Request

if TYPE_CHECKING:
    from synth_medvlp.writer import WriterConfig

PROMPT = Path(__file__).with_name("writer_prompt.yaml")
# What the small writer reads and where it stops.
END, FINDINGS, IMPRESSION = "</s>", "<FINDINGS>", "<IMPRESSION>"
SPECIAL = ("<pad>", END, FINDINGS, IMPRESSION, *(f"<{kind}>" for kind in TYPES))
API_KEY = "WRITER_API_KEY"  # environment variable, so that no key stands in a config
_BEST = 64  # tokens among which the top-p ones nearly always are
ERRORS = ("empty", "refusal", "format", "cut", "endpoint")
_REFUSAL = re.compile(r"(?:i['’]?m |i am )?(?:sorry\b|unable\b)|i (?:can['’]?t|cannot|won['’]?t)\b|as an ai\b", re.I)
_HEADING = re.compile(r"^\W*(?:findings|impression)\W*:\W*|^\W*(?:findings|impression)\W*\n", re.I)
_FOREIGN = re.compile(r"[{}<>|]|```|\b(?:findings|impression|note)\s*:", re.I)


class Reply(NamedTuple):
    """text: "" with an error of `ERRORS`; n_prompt, n_new: tokens, 0 where the backend does not count."""

    text: str
    n_prompt: int = 0
    n_new: int = 0
    error: str = ""


class Feedback(NamedTuple):
    """What was wrong with the reply before."""

    text: str
    missing: Sequence[Entity] = ()
    extra: Sequence[Entity] = ()
    error: str = ""


class Writer(Protocol):
    """seeds: one per request; the same request, feedback and seed give the same text, whatever stands beside it - up to
    rounding, where the writer is `batched`; an endpoint may not honour seeds."""

    name: str  # model and revision
    prompt_version: str
    batched: bool  # texts are computed together

    def write_findings(self, requests: Sequence[Request], feedback: Sequence[Feedback | None],
                       seeds: Sequence[int]) -> list[Reply]: ...  # fmt: skip

    def write_impression(self, findings: Sequence[str], requests: Sequence[Request],
                         feedback: Sequence[Feedback | None], seeds: Sequence[int]) -> list[Reply]: ...  # fmt: skip


def make(cfg: "WriterConfig") -> Writer:
    """The writer that a config names. Raises ValueError where a key is missing or wrong."""
    kinds = {"local": LocalWriter, "endpoint": EndpointWriter, "template": TemplateWriter}
    if cfg.backend not in kinds:
        raise ValueError(f"writer.backend={cfg.backend!r}: one of {', '.join(kinds)}")
    if cfg.backend == "endpoint" and not cfg.base_url:
        raise ValueError("writer.backend='endpoint' needs writer.base_url")
    return kinds[cfg.backend](cfg)


# --- what is asked, and what comes back ---


@lru_cache(maxsize=1)
def _said() -> dict[str, str]:
    return yaml.safe_load(PROMPT.read_text(encoding="utf-8"))


def listed(entities: Iterable[Entity]) -> str:
    """Entities as the small writer reads them."""
    return "".join(f"<{kind}> {name}" for name, kind in entities)


def messages(request: Request, findings: str | None, feedback: Feedback | None, words: int) -> list[dict]:
    """The dialogue with a chat model: FINDINGS where `findings` is None, else their IMPRESSION of at most `words`."""
    said = _said()
    clinical = "\n".join(f"- {name} ({kind})" for name, kind in request.clinical)
    places = "\n".join(f"- {name}" for name in request.anatomy) or "- none"
    form = said["findings" if findings is None else "impression"]
    asked = form.format(entities=clinical, places=places, findings=findings, words=words)
    out = [{"role": "system", "content": said["system"]}, {"role": "user", "content": asked}]
    if feedback is None:
        return out
    if feedback.text:
        out.append({"role": "assistant", "content": feedback.text})
    lists = {k: "; ".join(f"{name} ({kind})" for name, kind in getattr(feedback, k)) or "nothing"
             for k in ("missing", "extra")}  # fmt: skip
    form = said["unreadable" if feedback.error else "retry"]
    complaint = form.format(**lists, error=feedback.error, words=words)
    if out[-1]["role"] == "user":  # a template may insist on turns
        out[-1]["content"] += f"\n\n{complaint}"
        return out
    return [*out, {"role": "user", "content": complaint}]


def readable(text: str) -> tuple[str, str]:
    """(text of the section, error): without heading, fence, quotes and line breaks."""
    text = text.strip().removeprefix("```text").strip("`").strip().strip('"').strip()
    text = " ".join(_HEADING.sub("", text).replace("**", "").split())
    if not text:
        return "", "empty"
    if _REFUSAL.match(text):
        return "", "refusal"
    if _FOREIGN.search(text) or not re.search(r"[A-Za-z]{3}", text):
        return "", "format"
    return text, ""


def _reply(text: str, n_prompt: int, n_new: int, whole: bool) -> Reply:
    section, error = readable(text)
    if not whole and error in ("", "format"):
        section, error = "", "cut"
    return Reply(section, n_prompt, n_new, error)


# --- the backends ---


class TemplateWriter:
    """One sentence for each entity; the control without a language model."""

    name, prompt_version, batched = "template", "1", False

    def __init__(self, cfg: "WriterConfig"):
        pass

    def write_findings(self, requests, feedback, seeds) -> list[Reply]:
        return [Reply(" ".join(_sentence(*e) for e in request.entities)) for request in requests]

    def write_impression(self, findings, requests, feedback, seeds) -> list[Reply]:
        return self.write_findings(requests, feedback, seeds)


def _sentence(name: str, kind: str) -> str:
    if kind == ANATOMY:
        return f"The {name} is shown."
    says_so = any(part.value == "normal" for part in elements(name)) or not kind.startswith("NON-")
    return f"{name.capitalize()}." if says_so else f"No {name}."


class _OwnDraws:
    """Logits processor: temperature and top-p, and the token that one random number of the item and step selects.

    A text follows from its seed, not from the batch it is in; `generate` has nothing left to draw.
    """

    def __init__(self, seeds: Sequence[int], n_prompt: int, n_new: int, temperature: float, top_p: float, device):
        numbers = np.stack([np.random.default_rng(seed).random(n_new) for seed in seeds])
        self.numbers = torch.tensor(numbers, device=device)
        self.n_prompt, self.temperature, self.top_p = n_prompt, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(scores.double() / self.temperature, -1)
        best, order = p.topk(min(_BEST, p.shape[-1]))
        if best.sum(-1).min() < self.top_p:  # rare, and sorting all is slow
            best, order = p.sort(dim=-1, descending=True, stable=True)
        sums = best.cumsum(-1)
        last = (sums < self.top_p).sum(-1, keepdim=True).clamp(max=best.shape[-1] - 1)  # of the kept ones
        at = self.numbers[:, input_ids.shape[1] - self.n_prompt, None] * sums.gather(-1, last)
        token = order.gather(-1, torch.minimum((sums <= at).sum(-1, keepdim=True), last))
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


class LocalWriter:
    """A causal language model of `transformers`: any with a chat template, or the small one of `train_writer`."""

    batched = True

    def __init__(self, cfg: "WriterConfig"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        shipped = Path(__file__).parent / cfg.model
        self.cfg, source = cfg, str(shipped) if shipped.is_dir() else cfg.model
        options = {"revision": cfg.revision or "main"}
        self.tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        self.chat = self.tokenizer.chat_template is not None
        if not self.chat and FINDINGS not in self.tokenizer.get_vocab():
            raise ValueError(f"writer.model={cfg.model!r} has no chat template; take an instruction-tuned model")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        place = {"dtype": torch.float32}
        if torch.cuda.is_available():  # one process spreads the model over all GPUs; of several each has its own
            place = {"dtype": torch.bfloat16, "device_map": "auto" if worker()[1] == 1 else {"": device()}}
        self.network = AutoModelForCausalLM.from_pretrained(source, **options, **place).eval()
        self.name = f"{cfg.model}@{_hash(shipped) if shipped.is_dir() else cfg.revision or 'main'}"
        self.prompt_version = _hash(PROMPT) if self.chat else "entities-1"

    def write_findings(self, requests, feedback, seeds) -> list[Reply]:
        return self._write([None] * len(requests), requests, feedback, seeds)

    def write_impression(self, findings, requests, feedback, seeds) -> list[Reply]:
        return self._write(findings, requests, feedback, seeds)

    def _write(self, findings, requests, feedback, seeds) -> list[Reply]:
        prompts = [self._prompt(*item) for item in zip(requests, findings, feedback, strict=True)]
        stop = IMPRESSION if findings and findings[0] is None else END
        replies: list[Reply] = []
        for i in range(0, len(prompts), self.cfg.batch):
            part = slice(i, i + self.cfg.batch)
            replies += self._generate(prompts[part], seeds[part], self._ends(stop))
        return replies

    def _prompt(self, request: Request, findings: str | None, feedback: Feedback | None) -> str:
        if not self.chat:
            asked = listed(request.entities) + FINDINGS
            return asked if findings is None else f"{asked} {findings}{IMPRESSION}"
        said = messages(request, findings, feedback, self.cfg.impression_words)
        return self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)

    def _ends(self, stop: str) -> list[int]:
        if not self.chat:
            return [self.tokenizer.convert_tokens_to_ids(stop)]
        ends = self.network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return sorted({e for e in (*ends, self.tokenizer.eos_token_id) if e is not None})

    def _generate(self, prompts: list[str], seeds: Sequence[int], ends: list[int]) -> list[Reply]:
        inputs = self.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt",
                                return_token_type_ids=False).to(self.network.device)  # fmt: skip
        n_prompt, n_new = inputs["input_ids"].shape[1], self.cfg.max_new_tokens
        draws = _OwnDraws(seeds, n_prompt, n_new, self.cfg.temperature, self.cfg.top_p, self.network.device)
        with torch.inference_mode(), one_thread(not self.chat):
            out = self.network.generate(
                **inputs, max_new_tokens=n_new, do_sample=False, temperature=None, top_p=None, top_k=None,
                logits_processor=[draws], eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        replies = []
        for row, mask in zip(out[:, n_prompt:].tolist(), inputs["attention_mask"], strict=True):
            end = next((j for j, token in enumerate(row) if token in ends), None)
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
            replies.append(_reply(text, int(mask.sum()), len(row[:end]), end is not None))
        return replies


def _hash(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class EndpointWriter:
    """Any endpoint that speaks the OpenAI chat-completions protocol, `workers` requests at a time."""

    batched = False

    def __init__(self, cfg: "WriterConfig"):
        self.cfg, self.name, self.prompt_version = cfg, f"{cfg.model}@{cfg.revision or 'endpoint'}", _hash(PROMPT)
        self.endpoint = Endpoint(cfg, os.environ.get(API_KEY))

    def write_findings(self, requests, feedback, seeds) -> list[Reply]:
        return self._write([None] * len(requests), requests, feedback, seeds)

    def write_impression(self, findings, requests, feedback, seeds) -> list[Reply]:
        return self._write(findings, requests, feedback, seeds)

    def _write(self, findings, requests, feedback, seeds) -> list[Reply]:
        items = enumerate(zip(requests, findings, feedback, seeds, strict=True))
        replies = dict(as_done(lambda item: (item[0], self._one(*item[1])), items, self.cfg.workers))
        return [replies[i] for i in range(len(requests))]

    def _one(self, request: Request, findings: str | None, feedback: Feedback | None, seed: int) -> Reply:
        asked = messages(request, findings, feedback, self.cfg.impression_words)
        try:
            return _reply(*self.endpoint.ask(asked, temperature=self.cfg.temperature, top_p=self.cfg.top_p, seed=seed))
        except (BadReply, HTTPError):
            return Reply("", error="endpoint")
