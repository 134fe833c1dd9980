"""What is kept of a run beside its weights: `run.json`, and whether it has to be run at all."""

import json
import platform
import resource
import subprocess
from importlib.metadata import version

import torch
from transformers import Trainer
from transformers.utils import logging

from meit.config import Config
from meit.data import ReportDataset
from meit.prep import Prepared


def quiet() -> None:
    """No loading bars and notes of the library; warnings that matter are ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def commit() -> str:
    """The commit that runs, with `-dirty` where files differ from it; `unknown` outside a git checkout."""
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def end_processes() -> None:
    """Leave the process group, if there is one: its threads must not outlive the interpreter, which would abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def n_parameters(model: torch.nn.Module, trained: bool = False) -> int:
    """ZeRO-3 leaves empty tensors behind and keeps the true size in `ds_numel`."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad or not trained)


def run_json(cfg: Config, trainer: Trainer, train_set: ReportDataset, prepared: Prepared, wall_s: float) -> dict:
    """What ran, on what, how fast."""
    args = trainer.args
    return {
        "commit": commit(),
        "config_hash": cfg.digest(),
        "data_hash": prepared.data_hash,
        "split_sha256": prepared.split_sha256,
        "source": prepared.source,
        "versions": {p: version(p) for p in ("torch", "transformers", "peft", "deepspeed", "numpy")},
        "python": platform.python_version(),
        "processes": args.world_size,
        "batch": f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} = "
        f"{args.train_batch_size} x {args.gradient_accumulation_steps} x {args.world_size}",
        "steps": trainer.state.global_step,
        "n_train": len(train_set),
        "n_truncated": train_set.n_truncated,
        "parameters": n_parameters(trainer.model),
        "trainable": n_parameters(trainer.model, trained=True),
        "wall_s": round(wall_s, 1),
        "samples_per_s": round(trainer.state.global_step * cfg.train.global_batch / max(wall_s, 1e-9), 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_mb": torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0,
        "loss_log": [{k: h[k] for k in ("step", "loss")} for h in trainer.state.log_history if "loss" in h],
    }


def finished(cfg: Config, data_hash: str) -> bool:
    """True where this very run, same config and data, has already ended."""
    file = cfg.run_dir / "run.json"
    if not file.exists():
        return False
    run = json.loads(file.read_text())
    return run["config_hash"] == cfg.digest() and run["data_hash"] == data_hash
