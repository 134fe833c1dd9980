"""What a paper-tier run costs, without a GPU and without weights: `python -m meit.plan` (paper: backbones, training).

Every model is built on torch's meta device from its published architecture, written out below, by the same code that
trains it; so parameters and LoRA sizes are counted, not quoted. `--hub true` reads the architectures from the hub.

Memory per GPU: weights, gradients and Adam states (`memory_bytes` in shared/runs/plan.py); frozen weights have neither
of the latter. Activations, logits and buffers come on top. Hours: FLOP = 2 P a token forward, 2 P backward through
frozen weights, 2 T for trained ones (P all parameters, T trained ones), and three encoder passes an ECG; over GPUs x
peak x utilisation. An estimate, for planning only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from meit.config import parse
from meit.model import MeitConfig, MeitModel
from shared.ecg.plan import N_MIMIC
from shared.runs.plan import gpu_hours, memory_bytes, parse_plan, say, settings, table

GIB = 2**30
ENCODER_FLOP_PER_ECG = 2 * 7.8e9  # forward, 12 x 5000 samples (reference: 7.8 GMAC)
N_TRAIN = {  # training records per epoch
    "mimic": N_MIMIC * 0.9,  # record-level 90/10 of the public code
    "ptb-xl": 17_418,  # official folds 1-8
}


def _llama(d: int, layers: int, heads: int, inner: int, vocab: int = 32_000, kv_heads: int | None = None) -> dict:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    return dict(zip(names, (d, layers, heads, inner, vocab), strict=True)) | {"num_key_value_heads": kv_heads or heads}


def _gpt2(d: int, layers: int, heads: int) -> dict:
    return {"n_embd": d, "n_layer": layers, "n_head": heads, "vocab_size": 50_257, "n_positions": 1024}


def _gpt_neo(d: int, layers: int, heads: int) -> dict:
    attention = [[["global", "local"], layers // 2]]
    sizes = {"hidden_size": d, "num_layers": layers, "num_heads": heads, "attention_types": attention}
    return sizes | {"vocab_size": 50_257, "max_position_embeddings": 2048, "window_size": 256}


_BLOOM = {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250_880}
_OPT = _llama(4096, 32, 32, 0, 50_272) | {"ffn_dim": 16_384, "word_embed_proj_dim": 4096}
_OPT = {k: v for k, v in _OPT.items() if k not in ("intermediate_size", "num_key_value_heads")}
_GPTJ = {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50_400}
_NEOX = {k: v for k, v in _llama(6144, 44, 64, 24_576, 50_432).items() if k != "num_key_value_heads"}
_MISTRAL = _llama(4096, 32, 32, 14_336, kv_heads=8)
_LLAMA_7B = _llama(4096, 32, 32, 11_008)

# name in the paper -> (hub name in the public scripts, family, architecture)
BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT2-Medium": ("gpt2-medium", "gpt2", _gpt2(1024, 24, 16)),
    "GPT2-Large": ("gpt2-large", "gpt2", _gpt2(1280, 36, 20)),
    "GPT-Neo 1.3B": ("EleutherAI/gpt-neo-1.3B", "gpt_neo", _gpt_neo(2048, 24, 16)),
    "GPT-Neo 2.7B": ("EleutherAI/gpt-neo-2.7B", "gpt_neo", _gpt_neo(2560, 32, 20)),
    "GPT-NeoX": ("EleutherAI/gpt-neox-20b", "gpt_neox", _NEOX),
    "GPT-J": ("EleutherAI/gpt-j-6B", "gptj", _GPTJ),
    "BLOOM": ("bigscience/bloom-7b1", "bloom", _BLOOM),
    "OPT": ("facebook/opt-6.7b", "opt", _OPT),
    "LLaMA-1": ("huggyllama/llama-7b", "llama", _LLAMA_7B),
    "Mistral": ("mistralai/Mistral-7B-v0.1", "mistral", _MISTRAL),
    "LLaMA-2": ("meta-llama/Llama-2-7b-hf", "llama", _LLAMA_7B),
    "Mistral-Instruct": ("mistralai/Mistral-7B-Instruct-v0.2", "mistral", _MISTRAL),
    "LLaMA-3-Instruct": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "llama",
        _llama(4096, 32, 32, 14_336, 128_256, kv_heads=8),
    ),
    "LLaMA-2 13B": ("meta-llama/Llama-2-13b-chat-hf", "llama", _llama(5120, 40, 40, 13_824)),
    "LLaMA-2 70B": ("meta-llama/Llama-2-70b-chat-hf", "llama", _llama(8192, 80, 64, 28_672, kv_heads=8)),
}


@dataclass
class PlanConfig:
    """What to plan.

    Args:
        backbones: names of the paper's table; [] = all of them.
        gpus: GPU counts of the memory columns.
        weights: bf16 (DeepSpeed) or fp32 (as published, with bf16 autocast).
        lora_r: LoRA rank; 0 trains the whole LLM.
        max_tokens: prompt + report.
        global_batch: records per optimiser step.
        epochs: passes over the training records.
        peak_tflops: bf16 peak of one GPU (A100: 312).
        utilisation: share of the peak that is reached.
        hub: read the architectures from the hub instead of the table here (gated ones need a token).
    """

    backbones: list[str] = field(default_factory=list)
    gpus: list[int] = field(default_factory=lambda: [1, 8])
    weights: str = "bf16"
    lora_r: int = 64
    max_tokens: int = 128
    global_batch: int = 64
    epochs: float = 5
    peak_tflops: float = 312
    utilisation: float = 0.35
    hub: bool = False


def llm_config(name: str, hub: bool = False) -> PretrainedConfig:
    if name not in BACKBONES:
        raise ValueError(f"backbones: '{name}' is not in the paper's table; known: {', '.join(BACKBONES)}")
    hub_name, family, architecture = BACKBONES[name]
    return AutoConfig.from_pretrained(hub_name) if hub else CONFIG_MAPPING[family](**architecture)


def count(config: PretrainedConfig, lora_r: int = 64) -> dict[str, int]:
    """Parameters of the MEIT model over this LLM: llm, encoder, lora, total and trained, counted on the meta device."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
        base = sum(p.numel() for p in llm.parameters())  # tied embeddings count once
        model = MeitModel(MeitConfig(llm=config.to_dict(), hidden_size=config.hidden_size, lora_r=lora_r), llm)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"llm": base, "encoder": encoder, "lora": total - base - encoder, "total": total, "trained": trained}


def steps(n_records: float, epochs: float = 5, global_batch: int = 64) -> int:
    """Optimiser steps of a whole run: 800,035 x 0.9 / 64 x 5 = 56,252 on MIMIC, as logged by the authors."""
    return int(n_records / global_batch * epochs)


def hours(sizes: dict[str, int], n_records: float, cfg: PlanConfig, n_gpus: int) -> float:
    per_record = cfg.max_tokens * (4 * sizes["llm"] + 2 * sizes["trained"]) + 3 * ENCODER_FLOP_PER_ECG
    return gpu_hours(n_records * cfg.epochs * per_record, cfg.peak_tflops, cfg.utilisation, n_gpus)


def plan(cfg: PlanConfig) -> list[dict[str, Any]]:
    """One row per backbone: counts, GiB per ZeRO stage and GPU count, hours per data set and GPU count."""
    rows = []
    for name in cfg.backbones or BACKBONES:
        sizes = count(llm_config(name, cfg.hub), cfg.lora_r)
        row = {"backbone": name, "hub_name": BACKBONES[name][0], **sizes}
        for n in cfg.gpus:
            for stage in (0, 1, 2, 3) if n > 1 else (0,):  # one GPU has nothing to share
                row[f"gib_zero{stage}_{n}gpu"] = (
                    memory_bytes(sizes["total"], sizes["trained"], stage, n, cfg.weights) / GIB
                )
            for data, n_records in N_TRAIN.items():
                row[f"hours_{data}_{n}gpu"] = hours(sizes, n_records, cfg, n)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], cfg: PlanConfig) -> None:
    for data, n in N_TRAIN.items():
        tokens = n * cfg.epochs * cfg.max_tokens
        say(
            f"{data}: {int(n):,} records x {cfg.epochs:g} epochs / global batch {cfg.global_batch} = "
            f"{steps(n, cfg.epochs, cfg.global_batch):,} optimiser steps; at most {tokens / 1e6:,.0f}M tokens "
            f"(window {cfg.max_tokens})"
        )
    memory = [k for k in rows[0] if k.startswith("gib_")]
    times = [k for k in rows[0] if k.startswith("hours_")]
    columns = ["backbone", "LLM", "LoRA", "encoder", "trained"]
    columns += [f"ZeRO-{k[8]}\n{k.split('_')[-1].removesuffix('gpu')} GPU" for k in memory]
    columns += ["{}\nh, {} GPU".format(*k.removesuffix("gpu").split("_")[1:]) for k in times]
    shown = []
    for row in rows:
        counts = [f"{row[k] / 1e6:,.1f}M" for k in ("llm", "lora", "encoder", "trained")]
        shown.append([row["backbone"], *counts, *(f"{row[k]:,.1f}" for k in (*memory, *times))])
    title = f"{cfg.weights} weights, LoRA r {cfg.lora_r}; GiB per GPU without activations; hours = estimate"
    table(title, columns, shown, width=160)
    say("GiB: ZeRO-0 w+g+a; ZeRO-1 w+g+a/N; ZeRO-2 w+(g+a)/N; ZeRO-3 (w+g+a)/N; see `shared/runs/plan.py`")


def from_run_config(file: str) -> dict[str, Any]:
    """The settings of a training config (e.g. meit/configs/paper.yaml) that a plan depends on."""
    run = parse(["--config", file])
    keys = settings(run, model=("lora_r",), data=("max_tokens",), train=("global_batch", "epochs"))
    return keys | {"weights": "bf16" if run.train.deepspeed or run.model.dtype == "bfloat16" else "fp32"}


def main(args: list[str] | None = None) -> None:
    cfg = parse_plan(PlanConfig, from_run_config, __doc__, args)
    show(plan(cfg), cfg)


if __name__ == "__main__":
    main()
