"""What the paper tier costs, without a GPU and without weights: `python -m supreme.plan` (reference: M2 to M5, Data).

Every model is built by the same code that trains it, on tensors without memory; parameters, tokens and floating-point
operations of a training step (forward and backward; of slow targets, forward) are counted there, not quoted.

Hours of pre-training are the greater of two estimates: computing, FLOP over GPUs x peak x utilisation, and reading, the
bytes of the packed signals (12 x T of 16 bit a record) over the rate at which they arrive. A language model is asked
once per UNIQUE statement; what that saves against one call per report is shown.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from shared.ecg.plan import D_TEXT, N_REPORTS, disk_gb, llm_costs, say_extraction, training_hours
from shared.runs.plan import memory_gb, parse_plan, say, say_disk, settings, table
from supreme.baselines import METHODS, build
from supreme.config import parse
from supreme.encoder import N_LEADS
from supreme.model import EcgModel, ModelConfig
from supreme.prompt import question, texts
from supreme.ssl import SslConfig
from supreme.terminology import terminology

N_LABELLED = 17_084 + 4_950 + 16_546  # records in the training parts of the tasks (PTB-XL: of its superclass task)
N_CLASSES = 106  # of the six tasks together
STATEMENT_CHARS, STATEMENTS_PER_REPORT, CHARS_PER_TOKEN = 40, 4, 4  # assumptions; the prompt is counted
PARTS = {"encoder": "encoder", "fusion network": "cfn"}  # name -> module; all else are heads


@dataclass
class PlanConfig:
    """What to plan.

    Args:
        model, ssl: sizes; SuPreME and all baselines are planned at the same ones.
        n_samples: per lead; 10 s at 500 Hz.
        n_terms: labels of a record; default: all terms of our terminology, the most there can be.
        train_share: of the reports; the rest is validation.
        epochs, steps: passes over the training reports (M5); optimiser steps in place of them, 0 = by epochs.
        global_batch, gpus: records per optimiser step, shared by the GPUs of one node.
        peak_tflops, utilisation: bf16 peak of a GPU by its name; share of it that such small models reach.
        read_gb_s: rate at which packed signals arrive at the node, disk or page cache.
        unique_statements, verify: an assumption (`python -m supreme.extract` prints the number); second pass over each.
        llm_billions, llm_answer_tokens, llm_utilisation: parameters of the extracting language model in 1e9; answer
            for one statement; share of the peak while generating.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    ssl: SslConfig = field(default_factory=SslConfig)
    n_samples: int = 5000
    n_terms: int = field(default_factory=lambda: len(terminology()))
    train_share: float = 0.8
    epochs: float = 20
    steps: int = 0
    global_batch: int = 1024
    gpus: int = 8
    peak_tflops: dict[str, float] = field(default_factory=lambda: {"A100": 312.0, "H100": 989.0})
    utilisation: float = 0.15
    read_gb_s: float = 4.0
    unique_statements: int = 1000
    verify: bool = False
    llm_billions: float = 70.6
    llm_answer_tokens: int = 120
    llm_utilisation: float = 0.1


def variants(model: ModelConfig) -> dict[str, ModelConfig]:
    """What is planned side by side: the method, with fewer or all tokens, with the other encoder, every baseline."""
    supreme = replace(model, method="supreme", encoder="vit")
    drop = 0.0 if model.token_drop else 0.5
    rows = {"SuPreME": supreme, f"SuPreME, token_drop {drop:g}": replace(supreme, token_drop=drop)}
    rows["SuPreME, ResNet18"] = replace(supreme, encoder="resnet")
    return rows | {name: replace(supreme, method=name) for name in METHODS if name != "supreme"}


def on_meta(model: ModelConfig, cfg: PlanConfig) -> EcgModel:
    """The model on the meta device. Supervised ones have the classes of the tasks, all others terms."""
    with torch.device("meta"):
        return build(model, cfg.ssl, cfg.n_samples, D_TEXT, N_CLASSES if model.method == "supervised" else cfg.n_terms)


def parameters(model: ModelConfig, cfg: PlanConfig) -> dict[str, int]:
    """Trained parameters by part, their `total`, and numbers kept `untrained` (slow targets, statistics of norms). The
    frozen text encoder, MedCPT of 109 M, which runs once per term and report, comes on top."""
    net = on_meta(model, cfg)
    trained = {name: p.numel() for name, p in net.named_parameters() if p.requires_grad}
    counts = {part: sum(n for p, n in trained.items() if p.split(".")[0] == key) for part, key in PARTS.items()}
    total = sum(trained.values())
    everything = sum(x.numel() for x in (*net.parameters(), *net.buffers()))
    return counts | {"heads": total - sum(counts.values()), "total": total, "untrained": everything - total}


class WithoutValues(TorchFunctionMode):
    """Makes do where a step looks at values, which fake tensors have not: a number that is drawn (TS-TCC's time step)
    is the middle of its range, a selection by a mask (CRT's other records, no counted operation) takes all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.randint and args[1] == ():
            return torch.tensor((args[0] - 1) // 2)
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            return args[0].flatten()
        return func(*args, **(kwargs or {}))


def training_step(model: ModelConfig, cfg: PlanConfig) -> dict[str, float]:
    """Of a training step, per record: `flop`, encoder `tokens` that are trained on, and `slow tokens` of a target."""
    cases = [(1.0, 0.0)]
    if model.method == "crt":  # its drop share follows the progress; Simpson's rule is exact for parabolas
        low, high = cfg.ssl.crt_drop_low, cfg.ssl.crt_drop_high
        rise = (high - low) / 6
        cases = [(low + rise, low), (4 * rise, (low + high) / 2), (1 - high + rise, high)]
    counted = [(share, _count(model, cfg, progress)) for share, progress in cases]
    return {key: sum(share * count[key] for share, count in counted) for key in counted[0][1]}


def _count(model: ModelConfig, cfg: PlanConfig, progress: float) -> dict[str, float]:
    counter, net, b = FlopCounterMode(display=False), on_meta(model, cfg), max(2, cfg.global_batch // cfg.gpus)
    seen = {"encoder.norm": [], "objective.target.copies.encoder.norm": []}  # what leaves the last norms
    for name in seen.keys() & dict(net.named_modules()):
        net.get_submodule(name).register_forward_hook(lambda *args, out=seen[name]: out.append(args[2]))
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), WithoutValues():
        net.to_empty(device="cpu")
        if model.method == "crt":
            net.progress = torch.tensor(progress)
        n = net.config.n_classes
        batch = {"ecg": torch.zeros(b, N_LEADS, cfg.n_samples), "patient": torch.zeros(b, dtype=torch.int64)}
        batch |= {"y": torch.zeros(b, n), "mask": torch.ones(b, n, dtype=torch.bool)}
        batch |= {"text": torch.zeros(b, D_TEXT), "queries": torch.zeros(n, D_TEXT)}
        with counter:
            net.train()(**batch).loss.backward()
    tokens, slow_tokens = (sum(x.shape[:2].numel() for x in out) / b for out in seen.values())
    return {"flop": counter.get_total_flops() / b, "tokens": tokens, "slow tokens": slow_tokens}


def steps(cfg: PlanConfig, method: str = "supreme") -> int:
    """Optimiser steps: whole batches in each epoch, of all training reports or of the labelled records (supervised)."""
    n = N_LABELLED if method == "supervised" else int(N_REPORTS * cfg.train_share)
    return cfg.steps or int(n // cfg.global_batch * cfg.epochs)


def hours(flop_per_record: float, cfg: PlanConfig, gpu: str, method: str = "supreme") -> tuple[float, float]:
    """(computing, reading) of the whole pre-training; the longer one is what it takes."""
    return training_hours(steps(cfg, method) * cfg.global_batch, flop_per_record, cfg, gpu)


def plan(cfg: PlanConfig) -> list[dict[str, Any]]:
    """One row per variant: parameters by part, tokens and GFLOP per record, GB, hours per GPU type."""
    rows = []
    for name, model in variants(cfg.model).items():
        sizes, step = parameters(model, cfg), training_step(model, cfg)
        row = {"variant": name, **sizes, **step, "gb": memory_gb(sizes["total"], sizes["untrained"], 0, cfg.gpus)}
        rows.append(row | {f"hours_{gpu}": hours(step["flop"], cfg, gpu, model.method) for gpu in cfg.peak_tflops})
    return rows


def extraction(cfg: PlanConfig) -> dict[str, float]:
    """Calls, tokens in 1e6 and GPU hours of the language model, by unique statement and (for comparison) by report."""
    units, asked = {}, sum(len(turn["content"]) for turn in question(""))
    for by, n, k in (("statement", cfg.unique_statements, 1), ("report", N_REPORTS, STATEMENTS_PER_REPORT)):
        tokens = (asked + k * STATEMENT_CHARS) / CHARS_PER_TOKEN + k * cfg.llm_answer_tokens
        if cfg.verify:  # reads the statement and the first answer, and answers about as much
            tokens += (len(texts()["verify"]) + k * STATEMENT_CHARS) / CHARS_PER_TOKEN + 2 * k * cfg.llm_answer_tokens
        units[by] = n * (1 + cfg.verify), n * tokens
    return llm_costs(cfg, units)


def show(cfg: PlanConfig) -> None:
    say(
        f"MIMIC-IV-ECG: {int(N_REPORTS * cfg.train_share):,} of {N_REPORTS:,} reports / batch {cfg.global_batch} = "
        f"{steps(cfg):,} optimiser steps of {cfg.global_batch // cfg.gpus} records on each of {cfg.gpus} GPUs; "
        f"supervised: {N_LABELLED:,} labelled records of the tasks, {steps(cfg, 'supervised'):,} steps"
    )
    sums, rows, shown = (*PARTS, "heads", "total"), plan(cfg), []
    for row in rows:
        cells = [row["variant"], *(f"{row[k] / 1e6:,.2f}M" for k in sums)]
        cells.append(f"{row['tokens']:,.0f}" + f" + {row['slow tokens']:,.0f}" * (row["slow tokens"] > 0))
        cells += [f"{row['flop'] / 1e9:,.1f}", f"{row['gb']:.2f}"]
        for computing, reading in (row[f"hours_{gpu}"] for gpu in cfg.peak_tflops):
            cells.append(f"{max(computing, reading):,.2f}" + " r" * (reading > computing))
        shown.append(cells)
    columns = ("variant", *sums, "tokens", "GFLOP", "GB", *(f"h, {gpu}" for gpu in cfg.peak_tflops))
    table(f"Parameters; tokens, GFLOP per record; {cfg.gpus} GPUs at {cfg.utilisation:.0%}", columns, shown)
    kept = rows[0]["total"], rows[0]["untrained"]
    stages = ", ".join(f"ZeRO-{s} {memory_gb(*kept, s, cfg.gpus):.2f}" for s in (1, 2, 3))
    say(
        f"+: of a slow target; r: limited by reading signals at {cfg.read_gb_s:g} GB/s, not by computing\n"
        f"GB: weights, gradients, Adam states on every GPU, without activations; SuPreME by {stages}"
    )
    say_extraction(cfg, extraction(cfg))
    say_disk(disk_gb(cfg.n_samples))


def from_run_config(file: str) -> dict[str, Any]:
    """The settings of a training config (e.g. supreme/configs/paper.yaml) that a plan depends on."""
    run = parse(["--config", file])
    keys = settings(run, "model", "ssl", train=("global_batch", "epochs", "steps"), extract=("verify",))
    return keys | {"n_samples": run.n_samples}


def main(args: list[str] | None = None) -> None:
    show(parse_plan(PlanConfig, from_run_config, __doc__, args))


if __name__ == "__main__":
    main()
