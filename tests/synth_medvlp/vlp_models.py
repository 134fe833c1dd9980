"""Small models of every profile, a tokenizer, batches."""

import torch

from synth_medvlp.encoders import ImageTowerConfig, TextTowerConfig
from synth_medvlp.model import ModelConfig, VlpModel
from synth_medvlp.text import Tokeniser

TEXTS = [
    "there is a small left pleural effusion", "no pneumothorax", "the heart is moderately enlarged",
    "mild pulmonary edema is present", "the lungs are clear", "right lower lobe consolidation", "no edema",
    "there is cardiomegaly",
]  # fmt: skip


def tokeniser(max_tokens: int = 24) -> Tokeniser:
    return Tokeniser.train(TEXTS[:6], 90, max_tokens)  # so small that words have several pieces


def config(profile: str = "convirt", image: dict | None = None, text: dict | None = None, **options) -> ModelConfig:
    sizes = {"stem": 4, "stages": [4, 8, 12], "depths": [1, 1, 1], "layer": "basic", "resize": 0}
    sizes |= {"width": 16, "depth": 2, "heads": 2, "mlp": 16, "patch": 8, "size": 32}
    of_text = {"width": 16, "depth": 2, "heads": 2, "mlp": 16, "max_tokens": 24, "vocabulary": 90, "frozen_layers": 0}
    options = {"head_hidden": 10, "projection": 6, "last_layers": 2} | options
    return ModelConfig(
        profile=profile,
        image=ImageTowerConfig(**({"name": None} | sizes | (image or {}))),
        text=TextTowerConfig(**({"name": None, "dropout": 0.0} | of_text | (text or {}))),
        **options,
    )


def small(profile: str = "convirt", seed: int = 0, **options) -> VlpModel:
    torch.manual_seed(seed)
    return VlpModel.build(config(profile, **options), tokeniser())


def images(n: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batch(model: VlpModel, n: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"pixel_values": model.pixels(images(n, seed))} | vars(model.tokeniser(TEXTS[:n]))
