"""Images for prompts, drawn again with a new seed until one passes (reference: S5, S6).

Each image must show something, pass the six questions that the real images were asked, and not look like a bad real
one. All that is known of an item stands in one line of manifest-<worker>.jsonl; its last image, of rejected items too,
in images-<chunk>.npy. Earlier ones follow from their seeds. Workers share chunks, not items: an image is drawn in the
same batch whoever draws it, so that not a grey level depends on their number.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from synth_medvlp.audit import max_similarity, quantiles
from synth_medvlp.diffusion import ImageConfig, Made
from synth_medvlp.journal import Journal
from synth_medvlp.screening import NO, QUESTIONS, Screener, answer_stats, is_bad, save_array

_NEUTRAL = ("batch", "device")  # keys of ImageConfig that do not change what is drawn


def attempt_seed(base: int, seed: int, attempt: int) -> int:
    """Of the `attempt`-th image (from 0) of an item."""
    return int(np.random.default_rng([base, seed, attempt]).integers(2**31))


def check_images(prompts: Sequence[str], seeds: Sequence[int], generator: Made, screener: Screener | None,
                 bad_features: np.ndarray, cfg: ImageConfig, folder: Path, rule: str = "any_no",
                 threshold: float = 0.5) -> tuple[np.ndarray, list[dict], dict]:  # fmt: skip
    """(images uint8 [n, size, size], records, stats) of n prompts with a seed each.

    generator, screener: of `diffusion` and `screening`; screener None (cfg.check False): the first image that shows
    anything is kept. bad_features: float32 [m, d] of the bad real images; rule, threshold: what makes an image fail.
    A record: item, prompt, status accepted | rejected, reject_reason, image_seed, image_attempts, answers [6] or null,
    max_sim_bad or null, tries (one dict per attempt). A killed call goes on; the result is the same, also with other
    workers at its side (`journal`). ValueError where `folder` holds work of other settings.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed per prompt")
    asked = sha256("\n".join(f"{s} {p}" for p, s in zip(prompts, seeds, strict=True)).encode()).hexdigest()[:16]
    image = {k: v for k, v in asdict(cfg).items() if k not in _NEUTRAL}
    identity = {"image": image, "generator": generator.name, "prompts": asked, "chunk": cfg.batch, "rule": rule,
                "threshold": threshold, "screener": screener.identity if screener else None,
                "bad": sha256(bad_features.tobytes()).hexdigest()[:16]}  # fmt: skip
    journal = Journal(folder, "manifest", identity)
    known = journal.done()
    check = _Check(generator, screener, bad_features, cfg, rule, threshold)
    items_of = [range(i, min(i + cfg.batch, len(prompts))) for i in range(0, len(prompts), cfg.batch)]
    todo = [chunk for chunk in journal.mine(len(items_of)) if not all(i in known for i in items_of[chunk])]
    for chunk in journal.shown(todo, "images"):
        items, name = items_of[chunk], f"images-{chunk:06d}.npy"
        images, records = check.chunk([prompts[i] for i in items], [seeds[i] for i in items])
        save_array(Path(folder) / name, images)
        lines = [{"item": i, **record, "file": name, "row": row}
                 for row, (i, record) in enumerate(zip(items, records, strict=True))]  # fmt: skip
        journal.add(lines)
    records = journal.wait(len(prompts))
    return _gather(Path(folder), records), records, stats(records, rule, threshold)


def _gather(folder: Path, records: list[dict]) -> np.ndarray:
    """The images of all records, in their order."""
    images = None
    of_file: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        of_file.setdefault(record["file"], []).append(i)
    for name, items in of_file.items():
        found = np.load(folder / name, allow_pickle=False)
        if images is None:
            images = np.zeros((len(records), *found.shape[1:]), np.uint8)
        images[items] = found[[records[i]["row"] for i in items]]
    return np.zeros((0, 0, 0), np.uint8) if images is None else images


class _Check:
    """Draws and judges one chunk of items."""

    def __init__(self, generator, screener, bad_features, cfg: ImageConfig, rule: str, threshold: float):
        self.generator, self.screener, self.bad_features = generator, screener, bad_features
        self.cfg, self.rule, self.threshold = cfg, rule, threshold

    def chunk(self, prompts: list[str], seeds: list[int]) -> tuple[np.ndarray, list[dict]]:
        """(uint8 [b, size, size] the last image of each, records)."""
        tries: list[list[dict]] = [[] for _ in prompts]
        images, pending = None, list(range(len(prompts)))
        for attempt in range(self.cfg.attempts):
            drawn = [attempt_seed(self.cfg.seed, seeds[i], attempt) for i in pending]
            made, told = self.generator([prompts[i] for i in pending], drawn)
            images = np.zeros((len(prompts), *made.shape[1:]), np.uint8) if images is None else images
            images[pending] = made
            cost, verdicts = {"seconds": told["seconds"] / len(pending)}, self.judge(made, told["reasons"])
            for i, seed, n, verdict in zip(pending, drawn, told["lost"], verdicts, strict=True):
                tries[i].append({"seed": seed, "tokens_lost": n, **verdict, **cost})
            pending = [i for i in pending if tries[i][-1]["reason"]]
            if not pending:
                break
        return images, [_record(p, t) for p, t in zip(prompts, tries, strict=True)]

    def judge(self, images: np.ndarray, reasons: list[str]) -> list[dict]:
        """Per image its answers, similarity, and "" or why it fails: nan, constant, blank, questions, similarity."""
        verdicts = [{"answers": None, "max_sim": None, "reason": reason} for reason in reasons]
        shown = [i for i, reason in enumerate(reasons) if not reason]
        if self.screener is None or not shown:
            return verdicts
        answers = self.screener.answers(images[shown])
        similarity = max_similarity(self.screener.features(images[shown]), self.bad_features)
        failed = is_bad(answers, self.rule)
        for i, row, value, bad in zip(shown, answers, similarity, failed, strict=True):
            reason = "questions" if bad else "similarity" if value > self.threshold else ""
            verdicts[i] = {"answers": row.tolist(), "max_sim": round(float(value), 5), "reason": reason}
        return verdicts


def _record(prompt: str, tries: list[dict]) -> dict:
    last = tries[-1]
    return {
        "prompt": prompt, "status": "rejected" if last["reason"] else "accepted", "reject_reason": last["reason"],
        "image_seed": last["seed"], "image_attempts": len(tries), "answers": last["answers"],
        "max_sim_bad": last["max_sim"], "tries": tries,
    }  # fmt: skip


def stats(records: list[dict], rule: str, threshold: float) -> dict:
    """The reference's statistics of S5 and S6 from the records alone."""
    tries = [t for record in records for t in record["tries"]]
    reasons = Counter(t["reason"] for t in tries)
    judged = [t for t in tries if t["answers"] is not None]
    answers = np.array([t["answers"] for t in judged], np.int8).reshape(-1, len(QUESTIONS))
    similarity = np.array([t["max_sim"] for t in judged])
    lost = [record["tries"][0]["tokens_lost"] for record in records]
    accepted = sum(record["status"] == "accepted" for record in records)
    made = {"made": len(tries), **{name: reasons[name] for name in ("nan", "constant", "blank")},
            "prompts_truncated": sum(n > 0 for n in lost), "tokens_lost": sum(lost),
            "seconds_per_image": sum(t["seconds"] for t in tries) / len(tries) if tries else None}  # fmt: skip
    check = {
        "rule": rule, "threshold": threshold, "prompts": len(records), "accepted": accepted,
        "rejected": len(records) - accepted, "regenerated": sum(r["image_attempts"] > 1 for r in records),
        "attempts": _by_attempt(records),
        "failed_similarity": int((similarity > threshold).sum()),
        "failed_questions": {name: int((answers[:, i] == NO).sum()) for i, name in enumerate(QUESTIONS)},
        "similarity": quantiles(similarity), "answers": answer_stats(answers),
    }  # fmt: skip
    return {"S5": made, "S6": check}


def _by_attempt(records: list[dict]) -> list[dict]:
    """Per attempt how many images were drawn and how many passed."""
    rows = []
    for attempt in range(max((r["image_attempts"] for r in records), default=0)):
        made = [r["tries"][attempt] for r in records if r["image_attempts"] > attempt]
        passed = sum(not t["reason"] for t in made)
        rows.append({"attempt": attempt + 1, "images": len(made), "passed": passed, "rate": passed / len(made)})
    return rows
