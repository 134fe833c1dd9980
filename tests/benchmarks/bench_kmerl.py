"""Pre-training steps of K-MERL: hidden tokens dropped against computed and masked, and against MERL's two encoders.

Sizes are the published or default ones (ViT-tiny, ResNet18 of width 64, 5,000 samples, patches of 50, 277 entities),
with one batch of random ECGs for all; forward and backward, float32 on one core, bf16 autocast where a GPU is present.
A step draws 9, 10 or 11 masked leads; here each is timed apart. The variants alternate and the fastest step of each
counts, because what else runs on the machine only ever slows them down.
"""

import os
import tempfile
import time
from contextlib import nullcontext
from unittest import mock

import numpy as np
import torch

from kmerl.baselines import build
from kmerl.config import parse
from kmerl.data import Collator, EcgTextDataset
from kmerl.model import ModelConfig
from kmerl.prep import prepare
from tests.benchmarks.row import Row

N_SAMPLES, D_TEXT, N_ENTITIES = 5000, 768, 277
GOAL = 4.0


def run() -> list[Row]:
    """All rows; takes one to two minutes on the CPU."""
    on_gpu = torch.cuda.is_available()
    batch, n_rounds = (64, 20) if on_gpu else (4, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _rates(batch, n_rounds, "cuda" if on_gpu else "cpu")
    finally:
        torch.set_num_threads(threads)
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
    """A training step of the laptop tier against the reading of its batch: loading must not be the bottleneck."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CACHE_ROOT=folder):
        small = ["--data.simulate.n_records=400", "--extract.min_count=5"]
        cfg = parse(["--config=kmerl/configs/laptop.yaml", *small])
        dataset, n_samples = EcgTextDataset(prepare(cfg)), round(cfg.data.fs_hz * cfg.data.seconds)
        collate = Collator(dataset, n_samples)
        items = np.random.default_rng(0).permutation(len(dataset))[: cfg.train.micro_batch].tolist()
        model = build(cfg.model, n_samples, cfg.text.dim).train()
        read_s = step_s = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            batch = collate(items)
            read_s = min(read_s, time.perf_counter() - start)
            with torch.autocast("cpu", torch.bfloat16):
                step_s = min(step_s, _step(model, batch, "cpu"))
    reference = f"{1000 * read_s:.1f} ms to read it (goal: under a fifth)"
    return Row("kmerl: laptop step of 64 records", 1000 * step_s, "ms", reference, step_s / read_s, 5.0)


def configs() -> dict[str, ModelConfig]:
    """Every timed variant by name; all contrast with reports, K-MERL asks its 277 entities too."""
    variants = {"ResNet18": ModelConfig(method="merl"), "ViT": ModelConfig(method="merl", encoder="vit")}
    for n_visible in (1, 2, 3):
        for name, drop in (("dropped", True), ("masked", False)):
            variants[f"{name} {n_visible}"] = ModelConfig(masked_leads=[12 - n_visible], drop_tokens=drop)
    return variants


def _rates(batch: int, n_rounds: int, device: str) -> dict[str, float]:
    """Records/s of a training step of every variant."""
    rng = torch.Generator().manual_seed(0)
    inputs = {
        "ecg": torch.randn(batch, 12, N_SAMPLES, generator=rng),
        "text": torch.randn(batch, D_TEXT, generator=rng),
        "entities": torch.randint(0, 2, (batch, N_ENTITIES), generator=rng),
        "queries": torch.randn(N_ENTITIES, D_TEXT, generator=rng),
    }
    inputs = {k: v.to(device) for k, v in inputs.items()}
    models = {name: build(cfg, N_SAMPLES, D_TEXT).to(device).train() for name, cfg in configs().items()}
    seconds = dict.fromkeys(models, float("inf"))
    for _ in range(n_rounds + 1):  # the first round warms up; the fastest counts
        for name, model in models.items():
            seconds[name] = min(seconds[name], _step(model, inputs, device))
    return {name: batch / s for name, s in seconds.items()}


def _step(model, inputs: dict[str, torch.Tensor], device: str) -> float:
    """Seconds of one forward and backward."""
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
        loss = model(**inputs).loss
    loss.backward()
    if on_gpu:
        torch.cuda.synchronize()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start
