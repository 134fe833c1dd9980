"""What the paper tier costs, without GPU and weights: `python -m argus.plan` (reference: "Reaching 512x512x256", LLM).

For each rung of the ladder, shuffle and LLM size: tokens, parameters, operations, activations, memory per GPU under
ZeRO, steps and hours; the formulas stand in `argus/costs.py`. Hours = operations over GPUs x peak x utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from argus import costs
from argus.config import parse
from argus.costs import LLMS, RUNGS, Axes, Rung
from argus.model import ModelConfig
from shared.runs.plan import gpu_hours, memory_bytes, parse_plan, say, settings, table

GIB = 2**30
STAGES = ("align", "tune")


@dataclass
class StageConfig:
    """Passes over the training volumes, and volumes per optimiser step."""

    epochs: float
    global_batch: int


@dataclass
class PlanConfig:
    """What to plan.

    Args:
        model: ViT, compressor and LoRA; patch and factors come from the rung.
        rungs: names of the ladder; [] = all.
        factors: D, H, W shuffles to plan beside each rung's own.
        llms: sizes: 3B | 8B | 70B.
        volumes: training volumes per source of CT-3DRRG. The paper's numbers are not established; these are CT-RATE's
            24,128 training scans less 5 %, 80 % of BIMCV-R's 8,069 volumes, INSPECT's training CTs in a follow-up.
        text_tokens: prompt and report: the budget, so an upper bound.
        align: stage 1.
        tune: stage 2.
        gpus: of the ZeRO columns and the hours.
        peak_tflops: bf16 peak of one GPU (A100: 312).
        utilisation: share of the peak that is reached.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    rungs: list[str] = field(default_factory=list)
    factors: list[list[int]] = field(default_factory=lambda: [[2, 2, 2], [2, 4, 4], [4, 4, 4]])
    llms: list[str] = field(default_factory=lambda: list(LLMS))
    volumes: dict[str, int] = field(default_factory=lambda: {"ct-rate": 22_922, "bimcv-r": 6_455, "inspect": 18_945})
    text_tokens: int = 1024
    align: StageConfig = field(default_factory=lambda: StageConfig(3, 128))
    tune: StageConfig = field(default_factory=lambda: StageConfig(3, 64))
    gpus: int = 8
    peak_tflops: float = 312
    utilisation: float = 0.35

    def __post_init__(self):
        for key, known in (("rungs", RUNGS), ("llms", LLMS)):
            if unknown := sorted(set(getattr(self, key)) - set(known)):
                raise ValueError(f"{key}: unknown {unknown}; known: {', '.join(known)}")


def steps(n_volumes: int, stage: StageConfig) -> int:
    """Optimiser steps of a stage."""
    return int(n_volumes / stage.global_batch * stage.epochs)


def cases(cfg: PlanConfig) -> list[tuple[str, Rung, Axes]]:
    """(name, rung, shuffle): each rung's own shuffle, then those others that divide its grid and make no rung twice."""
    found, own = [], {RUNGS[name] for name in cfg.rungs or RUNGS}
    for name in cfg.rungs or RUNGS:
        rung = RUNGS[name]
        found.append((name, rung, rung.factors))
        for factors in map(tuple, cfg.factors):
            other = replace(rung, factors=factors)
            divides = all(g % f == 0 for g, f in zip(rung.grid, factors, strict=True))
            if divides and not rung.compressor and other not in own:
                found.append((name, rung, factors))
                own.add(other)
    return found


def plan_encoder(cfg: PlanConfig) -> list[dict[str, Any]]:
    """One row per rung: tokens, parameters, operations of a forward pass, activations of one volume in GiB."""
    rows, m = [], cfg.model
    for name in cfg.rungs or RUNGS:
        rung = RUNGS[name]
        n = rung.tokens // rung.tiles
        layer, inputs = costs.vit_layer_bytes(n, m.width, m.heads, m.mlp), 2 * (n + 1) * m.width
        flop = rung.tiles * costs.vit_flop(n, m.width, m.depth, m.mlp)
        row = {"rung": name, "shape": rung.shape, "patch": rung.patch, "grid": rung.grid, "tokens": rung.tokens}
        row |= {"parameters": costs.encoder_parameters(rung, m), "tflop": flop / 1e12}
        row |= {"tflop_all": costs.encoder_flop(rung, rung.factors, m) / 1e12}
        row |= {"attention": rung.tiles * m.depth * 4 * n**2 * m.width / flop}
        row |= {"gib_kept": rung.tiles * m.depth * layer / GIB}
        row |= {"gib_recomputed": (rung.tiles * m.depth * inputs + layer) / GIB}
        rows.append(row | {"gib_scores": 2 * m.heads * n**2 / GIB})
    return rows


def plan(cfg: PlanConfig, llm_name: str) -> list[dict[str, Any]]:
    """One row per rung and shuffle under one LLM: tokens, parameters; per stage operations, GiB, hours."""
    llm = costs.llm_of(LLMS[llm_name][1](), cfg.model)
    rows, m, text, volumes = [], cfg.model, cfg.text_tokens, sum(cfg.volumes.values())
    for name, rung, factors in cases(cfg):
        arm = costs.n_parameters(lambda r=rung, f=factors: costs.compressor_of(r, f, m, llm.width))
        encoder, visual = costs.encoder_parameters(rung, m), rung.visual_tokens(factors)
        row = {"rung": name, "factors": factors, "visual": visual, "tokens": visual + text, "compressor": arm}
        row |= {"llm": llm.total, "lora": llm.lora, "total": llm.total + llm.lora + encoder + arm}
        forward = costs.encoder_flop(rung, factors, m), costs.compressor_flop(rung, factors, m, llm.width)
        trained = {"align": arm, "tune": encoder + arm + (llm.lora or llm.total)}
        for stage in STAGES:
            flop = costs.step_flop(*forward, llm, visual, text, stage, recompute=True)
            row |= {f"trained_{stage}": trained[stage], f"tflop_{stage}": flop / 1e12}
            flop *= volumes * getattr(cfg, stage).epochs
            row[f"hours_{stage}"] = gpu_hours(flop, cfg.peak_tflops, cfg.utilisation, cfg.gpus)
            for key, recompute in (("kept", False), ("recomputed", True)):
                kept = costs.activation_bytes(rung, m, llm, visual, text, stage == "tune", recompute)
                row[f"gib_{stage}_{key}"] = kept / GIB
            for zero in range(4):
                row[f"gib_{stage}_zero{zero}"] = memory_bytes(row["total"], trained[stage], zero, cfg.gpus) / GIB
        rows.append(row)
    return rows


def _size(axes: Axes) -> str:
    return "x".join(map(str, axes))


def _encoder_table(cfg: PlanConfig) -> None:
    names = ["rung", "D x H x W", "patch", "grid", "N", "ViT", "TFLOP", "with patches", "attention"]
    rows = []
    for r in plan_encoder(cfg):
        cells = [r["rung"], *(_size(r[key]) for key in ("shape", "patch", "grid")), f"{r['tokens']:,}"]
        cells += [f"{r['parameters'] / 1e6:,.1f}M", f"{r['tflop']:,.2f}", f"{r['tflop_all']:,.2f}"]
        cells += [f"{r['attention']:.0%}"]
        rows.append(cells + [f"{r[key]:,.1f}" for key in ("gib_kept", "gib_recomputed", "gib_scores")])
    title = (
        "ViT, forward of one volume. GiB of activations kept or recomputed; scores: one layer's, were they not fused"
    )
    table(title, [*names, "kept", "recomputed", "scores"], rows)


def _llm_table(cfg: PlanConfig, llm: str) -> None:
    names = ["rung", "shuffle", "M", "M+text", "compr.", "trained", "TFLOP 1", "TFLOP 2", "kept", "recomp."]
    names += [*(f"ZeRO-{zero}" for zero in range(4)), "h 1", "h 2"]
    rows = []
    for r in plan(cfg, llm):
        cells = [r["rung"], _size(r["factors"]), f"{r['visual']:,}", f"{r['tokens']:,}"]
        cells += [f"{r[key] / 1e6:,.1f}M" for key in ("compressor", "trained_tune")]
        cells += [f"{r[f'tflop_{stage}']:,.0f}" for stage in STAGES]
        cells += [f"{r[f'gib_tune_{key}']:,.1f}" for key in ("kept", "recomputed", *(f"zero{k}" for k in range(4)))]
        rows.append(cells + [f"{r[f'hours_{stage}']:,.0f}" for stage in STAGES])
    size = f"{r['llm'] / 1e6:,.1f}M parameters, LoRA {r['lora'] / 1e6:,.1f}M"
    title = f"{llm} ({LLMS[llm][0]}, {size}): a training step of one volume; GiB per GPU of stage 2, {cfg.gpus} GPUs"
    table(title, names, rows)


def show(cfg: PlanConfig) -> None:
    volumes = sum(cfg.volumes.values())
    listed = " + ".join(f"{n:,} {source}" for source, n in cfg.volumes.items())
    say(f"Training volumes (assumed: the paper's are not established): {listed} = {volumes:,}")
    for name in STAGES:
        stage = getattr(cfg, name)
        tokens = volumes * stage.epochs * cfg.text_tokens
        say(
            f"{name}: {stage.epochs:g} epochs / global batch {stage.global_batch} = {steps(volumes, stage):,} "
            f"optimiser steps; at most {tokens / 1e6:,.0f}M text tokens"
        )
    _encoder_table(cfg)
    for llm in cfg.llms:
        _llm_table(cfg, llm)
    say(
        f"1 align (compressor), 2 tune (ViT, compressor, {'LoRA' if cfg.model.lora_r else 'LLM'}). kept, recomp.: "
        "activations of a volume; ZeRO: weights, gradients and Adam states, without activations. h: hours on "
        f"{cfg.gpus} GPUs at {cfg.utilisation:.0%} of {cfg.peak_tflops:g} TFLOP/s, activations recomputed. "
        "hr_tiled is arithmetic only: the model here does not tile. Formulas: argus/costs.py"
    )


def from_run_config(file: str) -> dict[str, Any]:
    """The settings of a training config (e.g. argus/configs/paper.yaml) that a plan depends on; its train section is
    that of stage 2."""
    run = parse(["--config", file])
    tune = {"tune.epochs": run.train.epochs, "tune.global_batch": run.train.global_batch}
    return settings(run, "model") | tune | {"text_tokens": run.data.max_tokens}


def main(args: list[str] | None = None) -> None:
    show(parse_plan(PlanConfig, from_run_config, __doc__, args))


if __name__ == "__main__":
    main()
