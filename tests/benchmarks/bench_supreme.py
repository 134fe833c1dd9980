"""Pre-training steps of SuPreME: all tokens against half of them, and against two self-supervised objectives.

Sizes are the default ones (ViT-tiny, 5,000 samples, patches of 50, a fusion network 768 wide and 4 deep, every term of
the terminology), with one batch of random ECGs for all.
"""

import os
import tempfile
from unittest import mock

import numpy as np
import torch

from shared.metrics.benchmark import Row
from supreme.baselines import build
from supreme.config import parse
from supreme.data import Collator
from supreme.model import ModelConfig
from supreme.prep import prepare
from supreme.terminology import terminology
from tests.benchmarks.steps import against_reading, records_per_s

N_SAMPLES, D_TEXT = 5000, 768
MODELS = {
    "SuPreME": ModelConfig(),
    "half": ModelConfig(token_drop=0.5),
    "SimCLR": ModelConfig(method="simclr"),
    "ST-MEM": ModelConfig(method="st_mem"),
}


def run() -> list[Row]:
    """All rows; takes about a minute on the CPU."""
    on_gpu = torch.cuda.is_available()
    batch, n_rounds = (64, 20) if on_gpu else (2, 2)
    rates = _rates(batch, n_rounds)
    name = f"supreme: steps of {batch}, {{}}, {'GPU, bf16' if on_gpu else '1 core'}".format
    full, half = rates["SuPreME"], rates["half"]
    rows = [Row(name("half of the tokens"), half, "records/s", f"{full:,.2f}/s all tokens", half / full)]
    for other in ("SimCLR", "ST-MEM"):
        rate = rates[other]
        rows.append(Row(name("all tokens"), full, "records/s", f"{rate:,.2f}/s {other}", full / rate))
    return [*rows, loading()]


def loading() -> Row:
    """A training step of the laptop tier against the reading of its batch."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CACHE_ROOT=folder):
        small = ["--data.simulate.n_records=400", "--extract.min_records=5"]
        cfg = parse(["--config=supreme/configs/laptop.yaml", *small])
        data = prepare(cfg)
        items = np.random.default_rng(0).permutation(len(data.rows))[: cfg.train.micro_batch].tolist()
        model = build(cfg.model, cfg.ssl, cfg.n_samples, data.term_vectors.shape[1], data.y.shape[1]).train()
        return against_reading("supreme", model, Collator(data, cfg.n_samples), items)


def _rates(batch: int, n_rounds: int) -> dict[str, float]:
    """Records/s of a training step of every model."""
    rng, n_terms = torch.Generator().manual_seed(0), len(terminology())
    inputs = {
        "ecg": torch.randn(batch, 12, N_SAMPLES, generator=rng),
        "y": torch.randint(0, 2, (batch, n_terms), generator=rng).float(),
        "mask": torch.ones(batch, n_terms, dtype=torch.bool),
        "queries": torch.randn(n_terms, D_TEXT, generator=rng),
    }
    models = {name: build(cfg, None, N_SAMPLES, D_TEXT, n_terms) for name, cfg in MODELS.items()}
    return records_per_s(models, inputs, n_rounds)
