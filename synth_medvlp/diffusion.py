"""Images from text (reference: S5): any `StableDiffusionPipeline`, or the simulator as an oracle.

One interface: `generator(prompts, seeds)` gives one grey image per prompt and what is to be told of them. An image
depends on its prompt and its seed, not on the others of its batch (a batch of another size may round a grey level
otherwise). The safety checker stays off: it blanks radiographs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.runs.config import hash_of
from shared.runs.evaluation import device

SHIPPED = Path(__file__).parent / "weights" / "image"
SCHEDULERS = {"ddim": "DDIMScheduler", "dpmsolver": "DPMSolverMultistepScheduler"}
BLANK = 4.0  # grey levels; standard deviation below which a picture shows nothing


@dataclass
class ImageConfig:
    """Section `image:` (reference: S5, S6). RoentGen at paper tier: 75 steps, guidance 4, float32, 512 pixels."""

    checkpoint: str = "shipped"  # shipped | oracle | folder or hub name of a StableDiffusionPipeline
    revision: str | None = None
    scheduler: str = "dpmsolver"  # ddim | dpmsolver | saved (the pipeline's own)
    steps: int = 16
    guidance: float = 3.0
    batch: int = 64
    dtype: str = "float32"  # float32 | bfloat16 | float16
    device: str | None = None  # null = this process's GPU where there is one, else cpu
    seed: int = 0
    attempts: int = 5  # images per prompt before it is given up (R_img)
    check: bool = True  # False: the first image that shows anything is kept (ablation)


class Made(Protocol):
    """name: for manifests. A call gives (uint8 [n, size, size], what `told` returns)."""

    name: str

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[np.ndarray, dict]: ...


def generator(cfg: ImageConfig, size: int) -> Made:
    """The generator that a config names; its images are uint8 [n, size, size], bright = dense."""
    if cfg.checkpoint == "oracle":
        from synth_medvlp.oracle import Oracle

        return Oracle(size)
    return Generator(cfg, size)


class Generator:
    """A `StableDiffusionPipeline`, loaded when it first draws. Raises ValueError for a config it cannot follow."""

    def __init__(self, cfg: ImageConfig, size: int):
        if cfg.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"image.dtype={cfg.dtype!r}: one of float32, bfloat16, float16")
        if cfg.scheduler not in (*SCHEDULERS, "saved"):
            raise ValueError(f"image.scheduler={cfg.scheduler!r}: one of {', '.join(SCHEDULERS)}, saved")
        if cfg.checkpoint == "shipped" and not SHIPPED.is_dir():
            raise FileNotFoundError(
                f"{SHIPPED}: no weights; make them with `python -m synth_medvlp.train_diffusion --out {SHIPPED} "
                "--patients 4000 --seed 11 --level middle`, or name another image.checkpoint"
            )
        self.cfg, self.size = cfg, size

    @cached_property
    def pipeline(self):
        import diffusers
        import torch

        import synth_medvlp.blocks  # noqa: F401  (diffusers loads our class only where it is imported already)

        cfg = self.cfg
        diffusers.utils.logging.set_verbosity_error()  # cut prompts are counted by us
        diffusers.utils.logging.disable_progress_bar()
        checkpoint = SHIPPED if cfg.checkpoint == "shipped" else cfg.checkpoint
        try:
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                checkpoint, revision=cfg.revision, dtype=getattr(torch, cfg.dtype), safety_checker=None,
                feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ValueError(f"image.checkpoint={cfg.checkpoint!r}: no StableDiffusionPipeline ({error})") from error
        pipeline.set_progress_bar_config(disable=True)
        if cfg.scheduler != "saved":
            kind = getattr(diffusers, SCHEDULERS[cfg.scheduler])
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        return pipeline.to(cfg.device or device())

    @property
    def name(self) -> str:
        """With what tells its weights apart: of the shipped ones, the hashes that their README lists."""
        if self.cfg.checkpoint == "shipped":
            return f"shipped@{hash_of((SHIPPED / 'README.md').read_text())}"
        return self.cfg.checkpoint + (f"@{self.cfg.revision}" if self.cfg.revision else "")

    def lost_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Per prompt, the tokens behind the text encoder's limit, which the image knows nothing of."""
        tokenizer = self.pipeline.tokenizer
        limit = min(tokenizer.model_max_length, self.pipeline.text_encoder.config.max_position_embeddings)
        return [max(len(ids) - limit, 0) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[np.ndarray, dict]:
        """(uint8 [n, size, size], told): told["reasons"] is "" or nan | constant | blank per image, told["lost"]
        its prompt's lost tokens."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed per image")
        start, images, reasons = time.perf_counter(), [], []
        for i in range(0, len(prompts), self.cfg.batch):
            for picture in self._batch(prompts[i : i + self.cfg.batch], seeds[i : i + self.cfg.batch]):
                image, reason = grey(picture, self.size)
                images.append(image)
                reasons.append(reason)
        stacked = np.stack(images) if images else np.zeros((0, self.size, self.size), np.uint8)
        return stacked, told(reasons, self.lost_tokens(prompts) if prompts else [], time.perf_counter() - start)

    def _batch(self, prompts, seeds) -> np.ndarray:
        """Float [b, h, w, channels] in 0..1, NaN where the network failed."""
        import torch

        # On the CPU, so that a seed means the same noise on every machine.
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        with torch.inference_mode():
            return self.pipeline(
                list(prompts), num_inference_steps=self.cfg.steps, guidance_scale=self.cfg.guidance,
                generator=generators, output_type="np",
            ).images  # fmt: skip


def told(reasons: list[str], lost: list[int], seconds: float) -> dict:
    """The reference's statistics of S5, counts of one call."""
    counts = {name: reasons.count(name) for name in ("nan", "constant", "blank")}
    truncated = {"prompts_truncated": sum(n > 0 for n in lost), "tokens_lost": sum(lost)}
    return {"reasons": reasons, "lost": lost, "made": len(reasons), **counts, **truncated, "seconds": seconds}


def grey(picture: np.ndarray, size: int) -> tuple[np.ndarray, str]:
    """Float [h, w, channels] in 0..1 -> (uint8 [size, size], "" or why it is no picture: nan | constant | blank)."""
    from PIL import Image

    if not np.isfinite(picture).all():
        return np.zeros((size, size), np.uint8), "nan"
    levels = np.rint(255 * np.clip(picture.mean(axis=-1), 0, 1)).astype(np.uint8)
    if levels.shape != (size, size):
        smaller = max(levels.shape) > size
        kind = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        levels = np.asarray(Image.fromarray(levels).resize((size, size), kind))
    return levels, shows_nothing(levels)


def shows_nothing(image: np.ndarray) -> str:
    """ "" | constant | blank of a uint8 image."""
    if image.min() == image.max():
        return "constant"
    return "blank" if image.std() < BLANK else ""
