"""What the paper tier costs, without a GPU and without weights: `python -m kmerl.plan` (reference: M1 to M9, D1).

Every model is built by the same code that trains it, on tensors without memory; parameters, tokens and floating-point
operations of a training step (forward and backward) are counted there, not quoted.

Hours of pre-training are the greater of two estimates: computing, FLOP over GPUs x peak x utilisation, and reading, the
bytes of the packed signals (12 x T of 16 bit a record) over the rate at which they arrive. Small models on dropped
tokens are limited by reading. A language model is asked to extract and to verify once per UNIQUE statement; what that
saves against one call per report is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kmerl.baselines import build
from kmerl.config import parse
from kmerl.losses import entity_bce
from kmerl.masking import N_LEADS, Visible, draw_tokens, masked_not_dropped
from kmerl.model import KmerlModel, ModelConfig
from shared.ecg.plan import D_TEXT, N_REPORTS, disk_gb, llm_costs, say_extraction, training_hours
from shared.runs.plan import parse_plan, say, say_disk, settings, table

N_ENTITIES = 277
PARTS = {"encoder": "encoder", "projections": "_projection", "query network": "query_network", "views": "views"}


@dataclass
class PlanConfig:
    """What to plan.

    Args:
        model: of K-MERL; MERL is planned at the same sizes.
        n_samples: per lead; 10 s at 500 Hz.
        train_share: of the reports; the rest is validation (D1).
        epochs: passes over the training reports (M8).
        global_batch: pairs per optimiser step.
        gpus: in one node.
        peak_tflops: bf16 peak of a GPU by its name.
        utilisation: share of the peak that such small models reach.
        read_gb_s: rate at which packed signals arrive at the node, disk or page cache.
        unique_statements: of the reports, an assumption; `python -m kmerl.extract` prints the number.
        llm_billions: parameters of the extracting language model, in 1e9.
        llm_tokens: prompt and answer of one call.
        llm_calls: per statement: extraction and verification.
        llm_utilisation: share of the peak while generating.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    n_samples: int = 5000
    train_share: float = 0.98
    epochs: float = 50
    global_batch: int = 512
    gpus: int = 8
    peak_tflops: dict[str, float] = field(default_factory=lambda: {"A100": 312.0, "H100": 989.0})
    utilisation: float = 0.15
    read_gb_s: float = 4.0
    unique_statements: int = 1000
    llm_billions: float = 70.6
    llm_tokens: int = 900
    llm_calls: int = 2
    llm_utilisation: float = 0.1


def variants(model: ModelConfig) -> dict[str, ModelConfig]:
    """What is planned side by side: the method, the same without dropping tokens, and the baseline's two encoders."""
    kmerl = replace(model, method="kmerl", encoder=None)
    merl = replace(model, method="merl", lead_masking="none", entity_head=False)
    return {
        "K-MERL": replace(kmerl, drop_tokens=True),
        "K-MERL, hidden tokens computed": replace(kmerl, drop_tokens=False),
        "MERL, ResNet18": replace(merl, encoder="resnet"),
        "MERL, ViT": replace(merl, encoder="vit"),
    }


def parameters(cfg: ModelConfig, n_samples: int = 5000) -> dict[str, int]:
    """Trained parameters by part, and `total`; the frozen text encoder (109 M, MedCPT) comes on top."""
    with torch.device("meta"):
        model = build(cfg, n_samples, D_TEXT)
    counts = {
        part: sum(p.numel() for name, p in model.named_parameters() if key in name.split(".")[0])
        for part, key in PARTS.items()
    }
    return counts | {"total": sum(p.numel() for p in model.parameters())}


def masking_cases(cfg: ModelConfig) -> list[tuple[float, ModelConfig]]:
    """(probability, config that always masks so) of the numbers of hidden leads a training step may draw (M4)."""
    if cfg.encoder_name != "lead-vit":
        return [(1.0, cfg)]
    share = (1 - cfg.p_full_leads) / len(cfg.masked_leads)
    cases = [(share, replace(cfg, masked_leads=[k], p_full_leads=0.0)) for k in cfg.masked_leads]
    return cases + [(cfg.p_full_leads, replace(cfg, masked_leads=[0], p_full_leads=0.0))] * (cfg.p_full_leads > 0)


def computed_tokens(cfg: ModelConfig, n_samples: int = 5000) -> list[int]:
    """Tokens that are computed for a record in each of `masking_cases`; for MERL those of its map."""
    if cfg.encoder_name == "resnet":
        return [-(-n_samples // 16)]  # four convolutions of stride 2
    segments = n_samples // cfg.patch
    if cfg.encoder_name == "vit":
        return [segments]
    joint = cfg.tokens == "joint"
    if not cfg.drop_tokens:
        return [segments if joint else N_LEADS * segments]
    cases = [case for _, case in masking_cases(cfg)]
    return [draw_tokens(1, segments, joint, c.masked_leads, c.segment_masking).index.shape[1] for c in cases]


def training_flops(cfg: ModelConfig, n_samples: int = 5000, n_entities: int = N_ENTITIES, batch: int = 4) -> float:
    """Operations of a training step per record, forward and backward; mean over what the masking draws."""
    return sum(share * _flops(case, n_samples, n_entities, batch) for share, case in masking_cases(cfg))


def _flops(cfg: ModelConfig, n_samples: int, n_entities: int, batch: int) -> float:
    visible = None
    if cfg.method == "kmerl":  # which tokens are shown decides about shapes, so it is drawn on real tensors
        m, joint = n_samples // cfg.patch, cfg.tokens == "joint"
        visible = draw_tokens(batch, m, joint, cfg.masked_leads, cfg.segment_masking)
        visible = visible if cfg.drop_tokens else masked_not_dropped(visible, m if joint else N_LEADS * m)
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        model = build(cfg, n_samples, D_TEXT)
        batch_of = {"ecg": torch.zeros(batch, N_LEADS, n_samples), "text": torch.zeros(batch, D_TEXT)}
        batch_of |= {"entities": torch.zeros(batch, n_entities), "queries": torch.zeros(n_entities, D_TEXT)}
        with counter:
            (model(**batch_of).loss if visible is None else _kmerl_loss(model, visible, **batch_of)).backward()
    return counter.get_total_flops() / batch


def _kmerl_loss(model: KmerlModel, visible: Visible, ecg, text, entities, queries) -> torch.Tensor:
    """`KmerlModel.forward` with the visible tokens given."""
    tokens = model.encoder(model.normalise(ecg), visible)
    terms = {}
    if model.cfg.has_contrast:
        terms["contrastive"] = model.contrast(model.ecg_projection(model.encoder.pool(tokens, visible)), text)
    if model.cfg.has_queries:
        terms["entity"] = entity_bce(model.query_network(queries, tokens, visible.mask), entities)
    return model.total(**terms).loss


def steps(cfg: PlanConfig) -> int:
    """Optimiser steps: whole batches of the training reports in each epoch."""
    return int(int(N_REPORTS * cfg.train_share) // cfg.global_batch * cfg.epochs)


def hours(flops_per_record: float, cfg: PlanConfig, gpu: str) -> tuple[float, float]:
    """(computing, reading) of the whole pre-training; the longer one is what it takes."""
    return training_hours(steps(cfg) * cfg.global_batch, flops_per_record, cfg, gpu)


def plan(cfg: PlanConfig) -> list[dict[str, Any]]:
    """One row per variant: parameters by part, tokens and GFLOP per record, hours per GPU type."""
    rows = []
    for name, model in variants(cfg.model).items():
        flops = training_flops(model, cfg.n_samples)
        row = {"variant": name, **parameters(model, cfg.n_samples), "gflop": flops / 1e9}
        row["tokens"] = computed_tokens(model, cfg.n_samples)
        rows.append(row | {f"hours_{gpu}": hours(flops, cfg, gpu) for gpu in cfg.peak_tflops})
    return rows


def extraction(cfg: PlanConfig) -> dict[str, float]:
    """Calls, tokens in 1e6 and GPU hours of the language model, by unique statement and (for comparison) by report."""
    calls = {"statement": cfg.unique_statements * cfg.llm_calls, "report": N_REPORTS * cfg.llm_calls}
    return llm_costs(cfg, {by: (n, n * cfg.llm_tokens) for by, n in calls.items()})


def show(cfg: PlanConfig) -> None:
    n_train = int(N_REPORTS * cfg.train_share)
    say(
        f"MIMIC-IV-ECG: {n_train:,} of {N_REPORTS:,} reports / batch {cfg.global_batch} x {cfg.epochs:g} epochs = "
        f"{steps(cfg):,} optimiser steps of {cfg.global_batch // cfg.gpus} pairs on each of {cfg.gpus} GPUs"
    )
    rows = []
    for row in plan(cfg):
        counts = [f"{row[k] / 1e6:,.2f}M" for k in (*PARTS, "total")]
        tokens = "-".join(f"{n:,}" for n in sorted({min(row["tokens"]), max(row["tokens"])}))
        taken = [
            f"{max(both):,.1f}" + " r" * (both[1] > both[0]) for both in (row[f"hours_{g}"] for g in cfg.peak_tflops)
        ]
        rows.append([row["variant"], *counts, tokens, f"{row['gflop']:,.1f}", *taken])
    title = f"Trained parameters, tokens and operations per record; hours on {cfg.gpus} GPUs at {cfg.utilisation:.0%}"
    table(title, ("variant", *PARTS, "total", "tokens", "GFLOP", *(f"h, {gpu}" for gpu in cfg.peak_tflops)), rows)
    say(f"r: limited by reading signals at {cfg.read_gb_s:g} GB/s, not by computing")
    total = parameters(variants(cfg.model)["K-MERL"], cfg.n_samples)["total"]
    say(f"K-MERL's weights, gradients and Adam states in fp32: {16 * total / 1e9:.2f} GB on every GPU")
    say_extraction(cfg, extraction(cfg))
    say_disk(disk_gb(cfg.n_samples) | {"entity labels": N_REPORTS * N_ENTITIES / 1e9})


def from_run_config(file: str) -> dict[str, Any]:
    """The settings of a training config (e.g. kmerl/configs/paper.yaml) that a plan depends on."""
    run = parse(["--config", file])
    return settings(run, "model", train=("global_batch", "epochs")) | {"n_samples": run.n_samples}


def main(args: list[str] | None = None) -> None:
    show(parse_plan(PlanConfig, from_run_config, __doc__, args))


if __name__ == "__main__":
    main()
