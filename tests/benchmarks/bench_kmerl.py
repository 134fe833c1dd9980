"""Pre-training steps of K-MERL: hidden tokens dropped against computed and masked, and against MERL's two encoders.

Sizes are the published or default ones (ViT-tiny, ResNet18 of width 64, 5,000 samples, patches of 50, 277 entities),
with one batch of random ECGs for all. A step draws 9, 10 or 11 masked leads; here each is timed apart.
"""

import os
import tempfile
from unittest import mock

import numpy as np
import torch

from kmerl.baselines import build
from kmerl.config import parse
from kmerl.data import Collator, EcgTextDataset
from kmerl.model import ModelConfig
from kmerl.prep import prepare
from shared.metrics.benchmark import Row
from tests.benchmarks.steps import against_reading, records_per_s

N_SAMPLES, D_TEXT, N_ENTITIES = 5000, 768, 277
GOAL = 4.0


def run() -> list[Row]:
    """All rows; takes one to two minutes on the CPU."""
    on_gpu = torch.cuda.is_available()
    batch, n_rounds = (64, 20) if on_gpu else (4, 2)
    rates = _rates(batch, n_rounds)
    where = "GPU, bf16" if on_gpu else "1 core"
    rows = []
    for n in (1, 2, 3):
        fast, slow = rates[f"dropped {n}"], rates[f"masked {n}"]
        reference = f"{slow:,.2f}/s computing and masking all tokens"
        rows.append(
            Row(f"kmerl: steps of {batch}, {n} leads visible, {where}", fast, "records/s", reference, fast / slow, GOAL)
        )
    mean = 3 / sum(1 / rates[f"dropped {n}"] for n in (1, 2, 3))  # of the leads that training draws
    for name in ("ResNet18", "ViT"):
        merl = rates[name]
        reference = f"{merl:,.2f}/s MERL {name}"
        rows.append(Row(f"kmerl: steps of {batch}, 1 to 3 leads, {where}", mean, "records/s", reference, mean / merl))
    return [*rows, loading()]


def loading() -> Row:
    """A training step of the laptop tier against the reading of its batch."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CACHE_ROOT=folder):
        small = ["--data.simulate.n_records=400", "--extract.min_count=5"]
        cfg = parse(["--config=kmerl/configs/laptop.yaml", *small])
        dataset = EcgTextDataset(prepare(cfg))
        items = np.random.default_rng(0).permutation(len(dataset))[: cfg.train.micro_batch].tolist()
        model = build(cfg.model, cfg.n_samples, cfg.text.dim).train()
        return against_reading("kmerl", model, Collator(dataset, cfg.n_samples), items)


def configs() -> dict[str, ModelConfig]:
    """Every timed variant by name; all contrast with reports, K-MERL asks its 277 entities too."""
    variants = {"ResNet18": ModelConfig(method="merl"), "ViT": ModelConfig(method="merl", encoder="vit")}
    for n_visible in (1, 2, 3):
        for name, drop in (("dropped", True), ("masked", False)):
            variants[f"{name} {n_visible}"] = ModelConfig(masked_leads=[12 - n_visible], drop_tokens=drop)
    return variants


def _rates(batch: int, n_rounds: int) -> dict[str, float]:
    """Records/s of a training step of every variant."""
    rng = torch.Generator().manual_seed(0)
    inputs = {
        "ecg": torch.randn(batch, 12, N_SAMPLES, generator=rng),
        "text": torch.randn(batch, D_TEXT, generator=rng),
        "entities": torch.randint(0, 2, (batch, N_ENTITIES), generator=rng),
        "queries": torch.randn(N_ENTITIES, D_TEXT, generator=rng),
    }
    models = {name: build(cfg, N_SAMPLES, D_TEXT) for name, cfg in configs().items()}
    return records_per_s(models, inputs, n_rounds)
