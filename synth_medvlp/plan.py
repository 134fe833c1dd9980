"""What the paper tier costs, without GPU, weights or network: `python -m synth_medvlp.plan` (reference: A2 to S7, VLP).

Models of VLP are built by the code that trains them, on tensors without memory; parameters, operations and activations
of a training step (forward and backward, all negatives of the global batch) are counted there, not quoted. So are the
operations of Stable Diffusion 1.5 (UNet, decoder) and DINOv2-base at 518 px. Language models cost 2 FLOP a parameter
and token. A training takes the longer of computing (FLOP over GPUs x peak x utilisation) and loading its pairs.

How often a text or an image is made anew is not known before: pass rates are assumptions (a pilot's `stats.json` has
them); how they add up follows the loops of writer and image_check.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, Dinov2Config, Dinov2Model, ResNetConfig

from shared.runs.plan import gpu_hours, kept_bytes, memory_gb, parse_plan, say, say_disk, settings, table
from synth_medvlp.backends import Feedback, messages
from synth_medvlp.config import parse
from synth_medvlp.diffusion import ImageConfig
from synth_medvlp.entities import CLINICAL
from synth_medvlp.mllm import PROMPT
from synth_medvlp.model import ModelConfig, VlpConfig, VlpModel
from synth_medvlp.sampler import Request, SamplerConfig
from synth_medvlp.writer import WriterConfig

N_IMAGES = 377_110  # JPG files of the release
TOWERS = {  # what stands behind the hub names
    ("resnet", "microsoft/resnet-50"): ResNetConfig(),
    ("bert", "emilyalsentzer/Bio_ClinicalBERT"): BertConfig(vocab_size=28_996),
}
PARTS = {"image tower": "image", "text tower": "text", "heads": "on_top"}  # name -> module
CROP = 224  # the public codes' crop; ours resamples a crop to size_px
LATENT, CLIP_TOKENS, CLIP_WIDTH = 64, 77, 768  # of a 512 px image; of its prompt
FEATURE_PX, FEATURE_WIDTH = 518, 768
CHARS_PER_TOKEN = 4  # an assumption; the prompts are counted


@dataclass
class PlanConfig:
    """What to plan: both methods with the towers of `model`, and the generation of n_synthetic reports with images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    writer: WriterConfig = field(default_factory=WriterConfig)
    image: ImageConfig = field(default_factory=lambda: ImageConfig(steps=75, guidance=4.0))
    size_px: int = 256  # of packed images
    text_tokens: int = 48  # of the longest text of a batch, to which all are padded; an assumption
    global_batch: int = 104  # shared by the GPUs of one node
    gpus: int = 8
    epochs: float = 50  # of every regime at equal epochs
    steps: int = 0  # of every regime at equal steps; 0 = as many as the epochs of the real pairs
    n_real: int = 213_384  # pairs of A1, [recalled]; `python -m synth_medvlp.prep` prints the number
    n_synthetic: int = 200_000  # reports that an image is drawn for
    peak_tflops: dict[str, float] = field(default_factory=lambda: {"A100": 312.0, "H100": 989.0})  # bf16
    utilisation: float = 0.2  # share of the peak: training, features
    image_utilisation: float = 0.3  # drawing, in half precision
    llm_utilisation: float = 0.1  # language models that generate small batches
    float32_slowdown: float = 4.0  # of drawing in float32: tensor cores for convolutions only
    workers: int = 8  # loading processes of a GPU
    pairs_per_worker: float = 400  # a second; 500 of 256 px were measured on one core, without word pieces
    findings_pass: float = 0.3  # share of the attempts that pass the check; all three are assumptions
    impression_pass: float = 0.4
    image_pass: float = 0.8
    entity_chars: int = 24  # mean length of an entity
    findings_tokens: int = 180  # mean lengths of the sections
    impression_tokens: int = 65
    llm_billions: float = 70.6  # parameters of the report writer
    mllm_billions: float = 25.5  # of the image checker
    mllm_image_tokens: int = 256  # of an image in its prompt
    mllm_answer_tokens: int = 40  # to six questions
    jpg_mb: float = 1.5  # mean size of a file of the release


# --- vision-language pre-training ---


def variants(cfg: PlanConfig) -> dict[str, tuple[ModelConfig, int]]:
    """(model, pixels of its input) of what is planned side by side: each method at `size_px`, then at the public codes'
    crop; the names tell the pixels inside the encoder."""
    rows, names = {}, {"convirt": "ConVIRT", "convirt_mgca": "ConVIRT as in MGCA", "gloria": "GLoRIA"}
    for profile, name in names.items():
        model = replace(cfg.model, profile=profile).resolved()
        for size in dict.fromkeys((cfg.size_px, CROP if not model.image.resize else cfg.size_px)):
            rows[f"{name}, {model.image.resize or size} px"] = model, size
    return rows


def of_own_size(names: Sequence[str]) -> list[str]:
    """Of the names of `variants` the first of each method, which is at `size_px`."""
    first = {name.rpartition(",")[0]: name for name in reversed(names)}
    return [name for name in names if name in first.values()]


def on_meta(model: ModelConfig) -> VlpModel:
    """The model on the meta device. ValueError or OSError for a hub name that is not in TOWERS and not here."""
    model = model.resolved()
    image = TOWERS.get((model.image.arch, model.image.name)) or model.image.architecture()
    text = TOWERS.get(("bert", model.text.name)) or model.text.architecture(model.text.vocabulary)
    with torch.device("meta"):
        return VlpModel(VlpConfig(model=asdict(model), image=image.to_dict(), text=text.to_dict()))


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by part, their `total`, those `trained`, and numbers `untrained` (frozen layers, statistics)."""
    net = on_meta(model)
    counts = {part: sum(p.numel() for p in getattr(net, name).parameters()) for part, name in PARTS.items()}
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    everything = sum(x.numel() for x in (*net.parameters(), *net.buffers()))
    return counts | {"total": sum(counts.values()), "trained": trained, "untrained": everything - trained}


def training_step(model: ModelConfig, size: int, cfg: PlanConfig) -> dict[str, float]:
    """Of a pair: `flop` of a training step, text `tokens`, image `cells` (of GLoRIA's map of regions, else of the last
    one), and `activations`, the bytes kept for the backward pass under bf16 autocast, without the weights."""
    counter, net, B, seen, loss = FlopCounterMode(display=False), on_meta(model), cfg.global_batch, [], []
    net.image.register_forward_hook(lambda *args: seen.extend(args[2]))
    L = min(cfg.text_tokens, net.cfg.text.max_tokens)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        net.to_empty(device="cpu").train()
        texts = {name: torch.ones(B, L, dtype=torch.int64) for name in ("input_ids", "attention_mask", "word_ids")}
        pixels = torch.zeros(B, 1, size, size)
        with counter:  # entered once: it forgets at each start
            with torch.autocast("cpu", torch.bfloat16):
                held = kept_bytes(net, lambda: loss.append(net(pixels, **texts).loss))
            loss[0].backward()
        cells = seen[0 if net.cfg.method == "gloria" else 1].shape[2:].numel()
    return {"flop": counter.get_total_flops() / B, "tokens": L, "cells": cells, "activations": held / B}


def regimes(cfg: PlanConfig) -> dict[str, int]:
    """Pairs of each regime; the synthetic ones are those whose image passed in time."""
    synthetic = round(cfg.n_synthetic * passed(cfg.image_pass, cfg.image.attempts))
    return {"real": cfg.n_real, "synthetic": synthetic, "mix": cfg.n_real + synthetic}


def schedule(cfg: PlanConfig) -> list[dict[str, Any]]:
    """Optimiser steps and epochs of every regime at equal steps and at equal epochs (whole batches in each epoch)."""
    rows, by_epochs = [], {name: int(n // cfg.global_batch * cfg.epochs) for name, n in regimes(cfg).items()}
    for by, steps in (("steps", dict.fromkeys(by_epochs, cfg.steps or by_epochs["real"])), ("epochs", by_epochs)):
        for name, n in regimes(cfg).items():
            epochs = steps[name] / (n // cfg.global_batch)
            rows.append({"regime": name, "pairs": n, "equal": by, "steps": steps[name], "epochs": epochs})
    return rows


def hours(flop_per_pair: float, steps: int, cfg: PlanConfig, gpu: str) -> tuple[float, float]:
    """(computing, loading) of one training on all GPUs; the longer one is what it takes."""
    pairs = steps * cfg.global_batch
    computing = gpu_hours(pairs * flop_per_pair, cfg.peak_tflops[gpu], cfg.utilisation, cfg.gpus)
    return computing, pairs / (cfg.gpus * cfg.workers * cfg.pairs_per_worker) / 3600


# --- generation ---


def tries(rate: float, most: int) -> float:
    """Expected attempts, where each passes at this rate and there are at most so many."""
    return sum((1 - rate) ** i for i in range(most))


def passed(rate: float, most: int) -> float:
    """Share that passes within so many attempts."""
    return 1 - (1 - rate) ** most


def text_calls(cfg: PlanConfig) -> dict[str, float]:
    """Expected `requests` for n_synthetic reports, and calls by stage: all of them, and those with feedback.

    A FINDINGS is written anew where it fails, or where its IMPRESSION never passes (then without feedback).
    """
    w, f, p = cfg.writer, cfg.findings_pass, cfg.impression_pass
    both = f * passed(p, w.impression_attempts)  # an attempt at FINDINGS that ends in a report
    n = cfg.n_synthetic / passed(both, w.attempts)
    findings, impressions = tries(both, w.attempts), tries(p, w.impression_attempts)
    calls = {"requests": n, "findings": n * findings, "findings retry": n * (1 - f) * tries(both, w.attempts - 1)}
    asked = n * findings * f  # FINDINGS that passed
    return calls | {"impression": asked * impressions, "impression retry": asked * (impressions - 1)}


def prompt_tokens(cfg: PlanConfig) -> dict[str, float]:
    """Tokens of the writer's real prompts; a retry also shows the text before and, of it, two entities missing and one
    too much."""
    n, name = cfg.sampler.k * (1 if cfg.sampler.joint else len(CLINICAL)), "x" * cfg.entity_chars
    clinical = tuple((name, CLINICAL[i % len(CLINICAL)]) for i in range(n))
    request, found = Request(0, 0, clinical, (name,) * cfg.sampler.m), {}
    findings = "x" * (CHARS_PER_TOKEN * cfg.findings_tokens)
    impression = "x" * (CHARS_PER_TOKEN * cfg.impression_tokens)
    for stage, source, before in (("findings", None, findings), ("impression", findings, impression)):
        for key, feedback in ((stage, None), (f"{stage} retry", Feedback(before, clinical[:2], clinical[:1]))):
            turns = messages(request, source, feedback, cfg.writer.impression_words)
            found[key] = sum(len(turn["content"]) for turn in turns) / CHARS_PER_TOKEN
    return found


def forward_flop(net: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Operations of a forward pass of a model on the meta device."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(*inputs)
    return counter.get_total_flops()


def image_flop(cfg: PlanConfig) -> dict[str, float]:
    """`unet`: of one pass for one image of 512 px; `image`: of all passes (two a step under guidance) and the decoder;
    `features`: of the encoder; `parameters` of the UNet."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        net, latent = UNet2DConditionModel(cross_attention_dim=CLIP_WIDTH), torch.zeros(1, 4, LATENT, LATENT)
        unet = forward_flop(net, latent, torch.zeros(()), torch.zeros(1, CLIP_TOKENS, CLIP_WIDTH))
        blocks = {f"{way}_block_types": [f"{kind}Block2D"] * 4 for way, kind in
                  (("down", "DownEncoder"), ("up", "UpDecoder"))}  # fmt: skip
        decoder = AutoencoderKL(block_out_channels=[128, 256, 512, 512], layers_per_block=2, **blocks).decoder
        encoder = Dinov2Model(Dinov2Config(image_size=FEATURE_PX))
        features = forward_flop(encoder, torch.zeros(1, 3, FEATURE_PX, FEATURE_PX))
        passes = cfg.image.steps * (2 if cfg.image.guidance > 1 else 1)
        image = passes * unet + forward_flop(decoder, latent)
    return {"unet": unet, "image": image, "features": features, "parameters": sum(p.numel() for p in net.parameters())}


def generation(cfg: PlanConfig) -> list[dict[str, Any]]:
    """By stage: calls (texts or images), tokens that language models read and write, FLOP, GPU hours by GPU type."""
    calls, asked, one, rows = text_calls(cfg), prompt_tokens(cfg), image_flop(cfg), []
    drawn = cfg.n_synthetic * tries(cfg.image_pass, cfg.image.attempts)

    def add(stage: str, n: float, flop: float, share: float, read: float = 0, written: float = 0) -> None:
        taken = {f"hours_{gpu}": gpu_hours(flop, peak, share) for gpu, peak in cfg.peak_tflops.items()}
        rows.append({"stage": stage, "calls": n, "read": read, "written": written, "flop": flop} | taken)

    def language(stage: str, n: float, billions: float, read: float, written: float) -> None:
        add(stage, n, 2e9 * billions * (read + written), cfg.llm_utilisation, read, written)

    def judge(questions: str, features: str, n: float) -> None:
        read = n * (cfg.mllm_image_tokens + len(PROMPT) / CHARS_PER_TOKEN)
        language(questions, n, cfg.mllm_billions, read, n * cfg.mllm_answer_tokens)
        add(features, n, n * one["features"], cfg.utilisation)

    judge("A2 six questions, real", "A3 features, real", cfg.n_real)
    for stage, key, answer in (("S2", "findings", cfg.findings_tokens), ("S4", "impression", cfg.impression_tokens)):
        n, again = calls[key], calls[f"{key} retry"]
        read = (n - again) * asked[key] + again * asked[f"{key} retry"]
        language(f"{stage} {key.upper()}", n, cfg.llm_billions, read, n * answer)
    slower = cfg.float32_slowdown if cfg.image.dtype == "float32" else 1
    add(f"S5 images, {cfg.image.dtype}", drawn, drawn * one["image"], cfg.image_utilisation / slower)
    judge("S6 six questions, drawn", "S6 features, drawn", drawn)
    return rows


def disk_gb(cfg: PlanConfig) -> dict[str, float]:
    """GB (1e9 bytes) by what is stored. Of an image that is drawn again only the last one is kept."""
    picture, made = cfg.size_px**2 / 1e9, regimes(cfg)["synthetic"]
    return {
        "MIMIC-CXR-JPG": N_IMAGES * cfg.jpg_mb / 1e3,
        "packed real pairs": cfg.n_real * picture,
        "features of real images": cfg.n_real * FEATURE_WIDTH * 4 / 1e9,
        "images of S6, accepted": made * picture,
        "images of S6, rejected": (cfg.n_synthetic - made) * picture,
        "packed synthetic pairs": made * picture,
        "language models in bf16": 2 * (cfg.llm_billions + cfg.mllm_billions),
    }


# --- shown ---


def show_training(cfg: PlanConfig) -> None:
    rows, flop = [], {}
    for name, (model, size) in variants(cfg).items():
        sizes, step = parameters(model), training_step(model, size, cfg)
        flop[name] = step["flop"]
        counts = [f"{sizes[key] / 1e6:,.1f}M" for key in (*PARTS, "total", "trained")]
        states = " ".join(
            f"{memory_gb(sizes['trained'], sizes['untrained'], stage, cfg.gpus):.2f}" for stage in range(4)
        )
        held = step["activations"] * cfg.global_batch / cfg.gpus / 1e9
        per_pair = [f"{step['tokens']} + {step['cells']}", f"{step['flop'] / 1e9:,.1f}"]
        rows.append([name, *counts, *per_pair, states, f"{held:.1f}"])
    columns = ("variant", *PARTS, "total", "trained", "tokens + cells", "GFLOP", "GB, ZeRO 0 1 2 3", "+ GB")
    table("Parameters; tokens, cells, GFLOP per pair; GB per GPU: states, activations", columns, rows)

    rows, names = [], of_own_size(list(flop))
    for row in schedule(cfg):
        cells = [row["regime"], f"{row['pairs']:,}", row["equal"], f"{row['steps']:,}", f"{row['epochs']:.1f}"]
        for name in names:
            taken = [hours(flop[name], row["steps"], cfg, gpu) for gpu in cfg.peak_tflops]
            cells.append(" / ".join(f"{max(both):.2f}" + "l" * (both[1] > both[0]) for both in taken))
        rows.append(cells)
    where = f"{cfg.gpus} GPUs ({' / '.join(cfg.peak_tflops)}), batch {cfg.global_batch}, arithmetic and loading alone"
    columns = ("regime", "pairs", "equal", "steps", "epochs", *names)
    table(f"Hours of one training on {where}; l: limited by loading", columns, rows)


def show_generation(cfg: PlanConfig) -> None:
    made, rows, keys = generation(cfg), [], [f"hours_{gpu}" for gpu in cfg.peak_tflops]
    total = {"stage": "together"} | {key: sum(row[key] for row in made) for key in ("read", "written", "flop", *keys)}
    for row in (*made, total):
        tokens = [f"{row[key] / 1e6:,.0f}M" if row[key] else "" for key in ("read", "written")]
        calls, spent = f"{row['calls']:,.0f}" if "calls" in row else "", [f"{row[key]:,.0f}" for key in keys]
        rows.append([row["stage"], calls, *tokens, f"{row['flop'] / 1e18:,.1f}", *spent])
    columns = ("stage", "calls", "read", "written", "EFLOP", *(f"GPU h, {gpu}" for gpu in cfg.peak_tflops))
    table("Generation: calls, tokens of language models, operations", columns, rows)
    say(
        f"{text_calls(cfg)['requests']:,.0f} requests -> {cfg.n_synthetic:,} reports -> {regimes(cfg)['synthetic']:,} "
        f"pairs, assuming pass rates of an attempt: FINDINGS {cfg.findings_pass:.0%}, IMPRESSION "
        f"{cfg.impression_pass:.0%}, image {cfg.image_pass:.0%}"
    )
    say_disk(disk_gb(cfg))


def from_run_config(file: str) -> dict[str, Any]:
    """The settings of a training config (e.g. synth_medvlp/configs/paper.yaml) that a plan depends on."""
    whole, data = ("model", "sampler", "writer", "image"), ("size_px", "n_synthetic", "workers")
    return settings(parse(["--config", file]), *whole, train=("global_batch", "epochs", "steps"), data=data)


def main(args: list[str] | None = None) -> None:
    cfg = parse_plan(PlanConfig, from_run_config, __doc__, args)
    show_training(cfg)
    show_generation(cfg)


if __name__ == "__main__":
    main()
