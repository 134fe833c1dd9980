"""Six questions about an image, asked of real ones (reference: A2) and of generated ones (S6).

Answers are int8 [n, 6]: 1 YES, 0 NO, -1 where no reply could be read, which counts against no image. Every question is
put so that YES is good. `image_check` is the loop of S5 and S6, `audit` the expansion to near-bad images (A3).
"""

import re
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from synth_medvlp.journal import Journal

# key -> question. The paper's wording is not public; the six topics are [recalled] in the reference.
QUESTIONS = {
    "is_cxr": "Is this image a chest X-ray?",
    "human": "Does this image show a human?",
    "frontal": "Is this a frontal (PA or AP) view?",
    "quality": "Is the quality of this image acceptable for diagnosis?",
    "clean": "Is this image upright and free of artefacts?",
    "fidelity": "Is this a high-fidelity chest X-ray, one that could come from a hospital's archive?",
}
YES, NO, UNREAD = 1, 0, -1
_CHUNK = 64  # images between two writes of the journal


@dataclass
class SampleConfig:
    """Images of the simulated training hospital, whose defects are the annotators' answers (`quality.NO_TO`)."""

    patients: int = 500  # 1.6 images each
    seed: int = 911  # another seed than the training set's: other patients
    level: str = "strong"
    epochs: int = 20


@dataclass
class AuditConfig:
    """Section `audit:` (reference: A2, A3, S6)."""

    screener: str = "classifier"  # classifier (taught in the run) | mllm (transformers) | endpoint (OpenAI protocol)
    model: str = ""  # of mllm and endpoint
    revision: str | None = None
    base_url: str = ""  # of endpoint; its key comes from the environment variable SCREEN_API_KEY
    encoder: str = "microsoft/rad-dino"  # of mllm and endpoint: DINOv2 format, features for A3 and S6
    encoder_revision: str | None = None
    rule: str = "any_no"  # all_no | any_no | at_least_<n>: NOs that make a real image bad
    image_rule: str = "any_no"  # the same of a generated image
    threshold: float | None = 0.5  # cosine to a bad image above which an image is near-bad; null = by share
    share: float = 0.026  # of the images of stage A3 that the calibrated threshold drops
    batch: int = 32
    workers: int = 8  # of endpoint
    reasks: int = 2  # of a reply that cannot be read
    retries: int = 4  # of a request that fails
    timeout_s: float = 120.0
    backoff_s: float = 1.0
    max_new_tokens: int = 64
    device: str | None = None
    sample: SampleConfig = field(default_factory=SampleConfig)


class Screener(Protocol):
    """identity: what the answers depend on; counts: replies read at all, re-asked, unread (of language models)."""

    identity: dict
    counts: dict

    def answers(self, images: np.ndarray) -> np.ndarray: ...  # uint8 [n, s, s] -> int8 [n, 6]

    def features(self, images: np.ndarray) -> np.ndarray: ...  # -> float32 [n, d], L2-normalised


def screener(cfg: AuditConfig, size: int, folder: Path | None = None) -> Screener:
    """The screener that a config names. size: pixels of the images; folder: keeps what is taught in the run.

    Raises ValueError for an unknown name or where a key is missing.
    """
    needed = {"mllm": ("model", "encoder"), "endpoint": ("model", "base_url", "encoder"), "classifier": ()}
    if cfg.screener not in needed:
        raise ValueError(f"audit.screener={cfg.screener!r}: one of {', '.join(needed)}")
    for key in needed[cfg.screener]:
        if not getattr(cfg, key):
            raise ValueError(f"audit.screener={cfg.screener!r} needs audit.{key}")
    if cfg.screener == "classifier":
        from synth_medvlp.quality import taught

        return taught(cfg.sample, size, folder)
    from synth_medvlp.mllm import MllmScreener

    return MllmScreener(cfg)


# --- rules ---


def is_bad(answers: np.ndarray, rule: str) -> np.ndarray:
    """bool [n]: by all_no, any_no or at_least_<n> NOs among answers int8 [n, 6]. ValueError for another rule."""
    n_no = (np.asarray(answers) == NO).sum(axis=1)
    return n_no >= _needed(rule)


def _needed(rule: str) -> int:
    found = re.fullmatch(r"at_least_([1-6])", rule)
    if rule not in ("all_no", "any_no") and not found:
        raise ValueError(f"rule {rule!r}: one of all_no, any_no, at_least_1 .. at_least_6")
    return {"all_no": len(QUESTIONS), "any_no": 1}.get(rule) or int(found[1])


def answer_stats(answers: np.ndarray) -> dict:
    """YES-rate per question, agreement of every two questions over images with both answers, images with at least n
    NOs."""
    answers = np.asarray(answers)
    read, yes = answers != UNREAD, answers == YES
    names = list(QUESTIONS)
    both = [[read[:, i] & read[:, j] for j in range(len(names))] for i in range(len(names))]
    agreement = [[_mean((yes[:, i] == yes[:, j])[both[i][j]]) for j in range(len(names))] for i in range(len(names))]
    rules = {"any_no": "any_no", "all_no": "all_no"} | {f"at_least_{n}": f"at_least_{n}" for n in range(2, 6)}
    return {
        "images": len(answers),
        "yes_rate": {name: _mean(yes[read[:, i], i]) for i, name in enumerate(names)},
        "unread": {name: int((~read[:, i]).sum()) for i, name in enumerate(names)},
        "agreement": agreement,
        "bad_by_rule": {name: int(is_bad(answers, rule).sum()) for name, rule in rules.items()},
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


# --- A2 ---


def screen(images: np.ndarray, screener: Screener, rule: str, folder: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    """(bad bool [n], answers int8 [n, 6], stats) of uint8 images [n, s, s].

    Answers are kept in `folder`: a run that was killed goes on, and another rule over the same answers costs nothing.
    """
    _needed(rule)
    journal = Journal(folder, "answers", {"screener": screener.identity, "images": fingerprint(images)})
    start, known = time.perf_counter(), journal.done()
    todo = [i for i in journal.mine(len(images)) if i not in known]
    counts = dict.fromkeys(("replies", "reasks", "unread"), 0)
    for first in journal.shown(range(0, len(todo), _CHUNK), "six questions"):
        items = todo[first : first + _CHUNK]
        before = dict(screener.counts)
        found = screener.answers(np.asarray(images[items]))
        journal.add([{"item": i, "answers": row.tolist()} for i, row in zip(items, found, strict=True)])
        counts = {key: n + screener.counts.get(key, 0) - before.get(key, 0) for key, n in counts.items()}
    seconds = time.perf_counter() - start
    lines = journal.wait(len(images))
    answers = np.array([line["answers"] for line in lines], np.int8).reshape(len(lines), len(QUESTIONS))
    bad = is_bad(answers, rule)
    stats = {"screener": screener.identity, "rule": rule, "dropped": int(bad.sum()), **answer_stats(answers)}
    asked = {"asked_now": len(todo), "seconds_per_image": seconds / len(todo) if todo else None, "replies_now": counts}
    return bad, answers, stats | asked


def features(images: np.ndarray, screener: Screener, folder: Path) -> np.ndarray:
    """float32 [n, d] of all images, L2-normalised; kept in `folder`."""
    journal = Journal(folder, "features", {"screener": screener.identity, "images": fingerprint(images)})
    known, n_chunks = journal.done(), -(-len(images) // 1024)
    for chunk in journal.shown([c for c in journal.mine(n_chunks) if c not in known], "image features"):
        found = screener.features(np.asarray(images[1024 * chunk : 1024 * (chunk + 1)]))
        save_array(folder / f"features-{chunk:06d}.npy", found.astype(np.float32))
        journal.add([{"item": chunk}])
    journal.wait(n_chunks)
    parts = [np.load(folder / f"features-{c:06d}.npy", allow_pickle=False) for c in range(n_chunks)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def save_array(path: Path, array: np.ndarray) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".tmp.npy")
    np.save(unfinished, array, allow_pickle=False)
    unfinished.replace(path)


def fingerprint(images: np.ndarray) -> str:
    digest = sha256(f"{images.shape} {images.dtype}".encode())
    for first in range(0, len(images), 4096):
        digest.update(np.ascontiguousarray(images[first : first + 4096]).tobytes())
    return digest.hexdigest()[:16]
