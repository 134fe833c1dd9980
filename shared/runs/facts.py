"""What is kept of a run beside its weights: `run.json`, and whether it has to be run at all."""

import json
import platform
import resource
import shutil
import subprocess
from importlib.metadata import version

from shared.runs.config import RunConfig, check_writable

VERSIONS = ("torch", "transformers", "peft", "deepspeed", "numpy", "scipy", "scikit-learn")


MADE = (":!results", ":!*/REPRODUCTION.md")  # what runs write decides nothing about them


def commit() -> str:
    """The commit that runs, with `-dirty` where other files than results differ from it; `unknown` outside a git
    checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD") if shutil.which("git") else ""
    dirty = head and git("status", "--porcelain", "--untracked-files=no", "--", ":/", *MADE)
    return (head + ("-dirty" if dirty else "")) or "unknown"


def versions() -> dict[str, str]:
    return {package: version(package) for package in VERSIONS} | {"python": platform.python_version()}


def n_parameters(model, trained: bool = False) -> int:
    """Of a torch module. ZeRO-3 leaves empty tensors behind and keeps the true size in `ds_numel`."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad or not trained)


def run_json(cfg: RunConfig, trainer, wall_s: float, **facts) -> dict:
    """What ran, on what, how fast. trainer: a Trainer; facts: what the paper adds, at least `data_hash`."""
    args, state = trainer.args, trainer.state
    micro, accumulation, world = args.train_batch_size, args.gradient_accumulation_steps, args.world_size
    return {
        "commit": commit(),
        "config_hash": cfg.digest(),
        "versions": versions(),
        "processes": world,
        "batch": f"{micro * accumulation * world} = {micro} x {accumulation} x {world}",
        "steps": state.global_step,
        "parameters": n_parameters(trainer.model),
        "trainable": n_parameters(trainer.model, trained=True),
        "wall_s": round(wall_s, 1),
        "samples_per_s": round(state.global_step * micro * accumulation * world / max(wall_s, 1e-9), 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss_log": [{k: h[k] for k in ("step", "loss")} for h in state.log_history if "loss" in h],
        **facts,
    }


def finished(cfg: RunConfig, data_hash: str) -> bool:
    """True, said in a line, where this very run, same config and data, has ended; else its folder must be writable."""
    file = cfg.run_dir / "run.json"
    run = json.loads(file.read_text()) if file.is_file() else {}
    same = run.get("config_hash") == cfg.digest() and run.get("data_hash") == data_hash
    if same:
        print(f"already trained: {cfg.run_dir}")
    else:
        check_writable("runs", cfg.run_dir)
    return same
