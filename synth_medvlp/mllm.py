"""A multimodal language model as the screener, RAD-DINO's format as the feature encoder (reference: A2, A3, S6).

All six questions stand in one prompt; the reply is read as JSON or line by line. What cannot be read is asked again
with a reminder, so that greedy decoding has something new to answer; what then stays unread is counted.
"""

import base64
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from shared.chat import BadReply, Endpoint, EndpointError, words
from shared.runs.evaluation import device
from synth_medvlp.screening import NO, QUESTIONS, UNREAD, YES, AuditConfig

API_KEY = "SCREEN_API_KEY"  # environment variable, so that no key stands in a config
PROMPT = (
    "You check images for a set of chest X-rays. Answer each question about this image with YES or NO.\n"
    + "\n".join(f"{i}. {question}" for i, question in enumerate(QUESTIONS.values(), 1))
    + "\nReply with JSON only, one key per question: "
    + json.dumps({str(i): "YES or NO" for i in range(1, len(QUESTIONS) + 1)})
)
REMINDER = "Reply with JSON only: the keys 1 to 6, each with YES or NO. Nothing else."
_VALUES = {"yes": YES, "true": YES, "no": NO, "false": NO}
_NUMBERED = re.compile(r"^\W*(?:q(?:uestion)?\s*)?([1-6])\b(.*)$", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def read(reply: str) -> list[int] | None:
    """Six answers from a reply: a JSON object by number or by key, a list of six, numbered lines, or six words YES or
    NO and no more. None where an answer is missing or said twice in different ways."""
    found = _from_json(reply) or _from_lines(reply)
    if found:
        return found
    words = [_VALUES[word.lower()] for word in _WORD.findall(reply)]
    return words if len(words) == len(QUESTIONS) else None


def _from_json(reply: str) -> list[int] | None:
    for match in re.finditer(r"\{[^{}]*\}|\[[^\[\]]*\]", reply, re.DOTALL):
        try:
            value = json.loads(match.group())
        except ValueError:
            continue
        if isinstance(value, dict):
            keys = {str(k).strip().lower().removeprefix("q"): v for k, v in value.items()}
            value = [keys.get(str(i), keys.get(name)) for i, name in enumerate(QUESTIONS, 1)]
        answers = [_VALUES.get(str(v).strip().rstrip(".").lower()) for v in value]
        if len(answers) == len(QUESTIONS) and None not in answers:
            return answers
    return None


def _from_lines(reply: str) -> list[int] | None:
    answers: dict[int, set] = {}
    for number, rest in _NUMBERED.findall(reply):
        said = [_VALUES[word.lower()] for word in _WORD.findall(rest)]
        answers.setdefault(int(number), set()).update(said[-1:])  # the question may be repeated before its answer
    complete = len(answers) == len(QUESTIONS) and all(len(said) == 1 for said in answers.values())
    return [next(iter(answers[i])) for i in range(1, len(QUESTIONS) + 1)] if complete else None


class MllmScreener:
    """`screening.Screener` of `audit.screener: mllm | endpoint`. Raises EndpointError where the endpoint refuses."""

    def __init__(self, cfg: AuditConfig):
        self.cfg, self.counts = cfg, Counter()
        self._encoder = None
        self.ask = _Local(cfg) if cfg.screener == "mllm" else _Endpoint(cfg)
        prompt = sha256((PROMPT + REMINDER).encode()).hexdigest()[:12]
        keys = ("screener", "model", "revision", "encoder", "encoder_revision", "reasks", "max_new_tokens")
        self.identity = {key: getattr(cfg, key) for key in keys} | {"prompt": prompt}

    def answers(self, images: np.ndarray) -> np.ndarray:
        """int8 [n, 6], UNREAD in all six where no reply could be read."""
        out = np.full((len(images), len(QUESTIONS)), UNREAD, np.int8)
        for first in range(0, len(images), self.cfg.batch):
            pending = {i: [] for i in range(first, min(first + self.cfg.batch, len(images)))}  # earlier replies
            for attempt in range(self.cfg.reasks + 1):
                replies = self.ask([images[i] for i in pending], list(pending.values()))
                self.counts.update(replies=len(replies), reasks=len(replies) * (attempt > 0))
                left = {}
                for (i, earlier), reply in zip(pending.items(), replies, strict=True):
                    found = read(reply)
                    if found:
                        out[i] = found
                    else:
                        left[i] = [*earlier, reply]
                pending = left
                if not pending:
                    break
            self.counts["unread"] += len(pending)
        return out

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 [n, d]: the [CLS] token of the encoder, L2-normalised."""
        self._encoder = self._encoder or Encoder(self.cfg)
        return self._encoder(images)


class Encoder:
    """A vision transformer in DINOv2's format (RAD-DINO) with its own image processor."""

    def __init__(self, cfg: AuditConfig):
        from transformers import AutoImageProcessor, AutoModel

        self.batch, self.device = cfg.batch, _device(cfg)
        self.processor = AutoImageProcessor.from_pretrained(cfg.encoder, revision=cfg.encoder_revision)
        self.model = AutoModel.from_pretrained(cfg.encoder, revision=cfg.encoder_revision).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = []
        for first in range(0, len(images), self.batch):
            pictures = [_picture(image) for image in images[first : first + self.batch]]
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
            first_token = self.model(pixel_values=pixels).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(first_token.float(), dim=1).cpu())
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.model.config.hidden_size), np.float32)


def _device(cfg: AuditConfig) -> str:
    return cfg.device or str(device())


def _picture(image: np.ndarray):
    from PIL import Image

    return Image.fromarray(np.repeat(image[..., None], 3, 2))


def _conversation(image: dict, earlier: list[str], text: Callable[[str], object]) -> list[dict]:
    """One image with the questions, then every unreadable reply with the reminder. text: of a later turn."""
    turns = [{"role": "user", "content": [image, {"type": "text", "text": PROMPT}]}]
    for reply in earlier:
        turns += [{"role": "assistant", "content": text(reply or "-")}, {"role": "user", "content": text(REMINDER)}]
    return turns


class _Local:
    """An image-text-to-text model of `transformers` on this machine, greedy."""

    def __init__(self, cfg: AuditConfig):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.cfg, self.device = cfg, _device(cfg)
        try:
            self.processor = AutoProcessor.from_pretrained(cfg.model, revision=cfg.revision, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:  # processors of some models need torchvision
            raise ValueError(
                f"audit.model={cfg.model!r} is no model that transformers loads by itself; take one that it does (of "
                "InternVL those whose names end in -hf), or serve this one with vLLM: --audit.screener endpoint "
                f"--audit.base_url ({error})"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"audit.model={cfg.model!r} has no chat template; take an instruction-tuned model")
        self.processor.tokenizer.padding_side = "left"
        dtype = {"dtype": torch.bfloat16} if self.device.startswith("cuda") else {}
        model = AutoModelForImageTextToText.from_pretrained(cfg.model, revision=cfg.revision, **dtype)
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray], earlier: list[list[str]]) -> list[str]:
        conversations = [
            _conversation({"type": "image", "image": _picture(image)}, said, lambda t: [{"type": "text", "text": t}])
            for image, said in zip(images, earlier, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, self.model.dtype)  # fmt: skip
        out = self.model.generate(**inputs, max_new_tokens=self.cfg.max_new_tokens, do_sample=False)
        return self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class _Endpoint:
    """Any endpoint that speaks the OpenAI chat-completions protocol with images, `audit.workers` at a time."""

    def __init__(self, cfg: AuditConfig):
        self.cfg, self.endpoint = cfg, Endpoint(cfg, os.environ.get(API_KEY))

    def __call__(self, images: list[np.ndarray], earlier: list[list[str]]) -> list[str]:
        with ThreadPoolExecutor(self.cfg.workers) as pool:
            return list(pool.map(self._one, images, earlier))

    def _one(self, image: np.ndarray, earlier: list[str]) -> str:
        """The reply; "" where the server answers, but never with a completion."""
        messages = _conversation({"type": "image_url", "image_url": {"url": data_url(image)}}, earlier, str)
        try:
            return self.endpoint.ask(messages).text
        except HfHubHTTPError as error:
            at = self.cfg.base_url
            raise EndpointError(f"{at} is busy or refuses the request: {words(error)}; run again to go on") from error
        except (BadReply, InferenceTimeoutError):
            return ""


def data_url(image: np.ndarray) -> str:
    """A uint8 image [h, w] as PNG."""
    stream = io.BytesIO()
    _picture(image).save(stream, "png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
