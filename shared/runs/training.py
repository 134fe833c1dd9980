"""What surrounds the Trainer call of every paper: its arguments, the stop at a broken loss, what a run leaves behind.

The call itself, the model and the data are the paper's; a Trainer comes in as it is, so nothing is imported for it.
"""

import importlib
import json
import os
import shutil
import time
from multiprocessing import parent_process
from pathlib import Path

import torch

from shared.locks import write_whole
from shared.runs.config import RunConfig, dump
from shared.runs.facts import run_json
from shared.runs.processes import end_processes, n_processes
from shared.store import disk_errors


class StopsAtBrokenLoss:
    """Stands before `Trainer` among the bases of a class: a loss that is not finite ends the run."""

    advice = "lower train.lr, or look for broken records with `python -m shared.download --check --verify DATASET`"

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.state.global_step}: {self.advice}")
        return loss


class TwoRates(StopsAtBrokenLoss):
    """And gives the parameters that a paper's `of_encoder` names a learning rate of their own; None: the same."""

    def __init__(self, *args, encoder_lr: float | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder_lr = encoder_lr

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args = self.args
            lr = args.learning_rate if self.encoder_lr is None else self.encoder_lr
            trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for n, p in trained if not self.of_encoder(n)]},
                {"params": [p for n, p in trained if self.of_encoder(n)], "lr": lr},
            ]
            groups = [g for g in groups if g["params"]]
            betas = args.adam_beta1, args.adam_beta2
            self.optimizer = torch.optim.AdamW(groups, args.learning_rate, betas, weight_decay=args.weight_decay)
        return self.optimizer


def over_all_processes(model: torch.nn.Module) -> torch.nn.Module:
    """BatchNorm takes its statistics over the global batch, as on one GPU."""
    several = n_processes() > 1 and torch.cuda.is_available()
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) if several else model


def trainer_arguments(cfg: RunConfig, data_hash: str) -> dict:
    """Options of `TrainingArguments` by the keys of `RunTrainConfig`; a paper adds its own.

    Raises ValueError where the global batch is not micro batch x accumulation x processes.
    """
    t = cfg.train
    if t.deepspeed and not torch.cuda.is_available():
        ops = importlib.import_module("deepspeed.ops")  # only where it is asked for: the import takes seconds
        ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no use on a CPU, and compiling it needs ninja
    accumulation, rest = divmod(t.global_batch, t.micro_batch * n_processes())
    if rest or not accumulation:
        raise ValueError(
            f"train.global_batch {t.global_batch} is no multiple of train.micro_batch {t.micro_batch} "
            f"x {n_processes()} processes"
        )
    return {
        "output_dir": str(cfg.run_dir / f"work-{cfg.digest()}-{data_hash}"),  # another config never resumes from it
        "per_device_train_batch_size": t.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": t.epochs,
        "learning_rate": t.lr,
        "lr_scheduler_type": t.schedule,
        "warmup_steps": t.warmup_ratio,  # a value below 1 is a share of all steps
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "bf16": t.bf16,
        "deepspeed": t.deepspeed,
        "use_cpu": not torch.cuda.is_available(),
        "seed": cfg.seed,
        "data_seed": cfg.seed,
        "dataloader_num_workers": cfg.data.workers,
        "dataloader_drop_last": True,  # contrasts need whole batches, BatchNorm more than one record
        "save_steps": t.save_steps,
        "save_total_limit": 1,
        "logging_steps": t.log_steps,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": not os.isatty(2) or parent_process() is not None,  # reproduce.py shows its own progress
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
    }


def fit(cfg: RunConfig, trainer, tokenizer=None, **facts) -> Path:
    """Train from the last checkpoint, if there is one; write `checkpoint/`, `config.yaml` and `run.json`; returns the
    run's folder.

    trainer: a Trainer with the options of `trainer_arguments`; tokenizer: saved with the weights; facts: what the paper
    adds to `run.json`, at least `data_hash`. Raises ValueError where the training set does not fill one batch,
    StoreError where the disk is full: the last checkpoint stays.
    """
    n, batch = len(trainer.train_dataset), cfg.train.micro_batch * n_processes()
    if cfg.train.epochs and n < batch:  # a last, smaller batch is dropped: nothing would be trained
        raise ValueError(f"{n} training records do not fill one batch of {batch}: lower train.micro_batch")
    for printer in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"]:
        trainer.remove_callback(printer)  # the losses are in run.json
    with disk_errors(cfg.run_dir):
        _train_and_keep(cfg, trainer, tokenizer, facts)
    end_processes()
    return cfg.run_dir


def _train_and_keep(cfg: RunConfig, trainer, tokenizer, facts: dict) -> None:
    work = Path(trainer.args.output_dir)
    start = time.perf_counter()
    for left in work.glob("checkpoint-*"):
        if not _whole(left):
            shutil.rmtree(left, ignore_errors=True)
    if cfg.train.epochs:
        trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    wall_s = time.perf_counter() - start
    if trainer.is_world_process_zero():
        for file in ("run.json", "metrics.json"):  # they must never vouch for other weights
            (cfg.run_dir / file).unlink(missing_ok=True)
    trainer.save_model(str(cfg.run_dir / "checkpoint"))
    if trainer.is_world_process_zero():
        if tokenizer is not None:
            tokenizer.save_pretrained(cfg.run_dir / "checkpoint")
        (cfg.run_dir / "checkpoint" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        (cfg.run_dir / "config.yaml").write_text(dump(cfg))
        facts["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
        run = run_json(cfg, trainer, wall_s, **facts)
        write_whole(cfg.run_dir / "run.json", json.dumps(run, indent=1))
        shutil.rmtree(work, ignore_errors=True)
        losses = [f"{entry['loss']:.3f}" for entry in run["loss_log"]] or ["not logged"]
        print(
            f"trained: {cfg.run_dir}, {run['steps']} steps, loss {' -> '.join(dict.fromkeys((losses[0], losses[-1])))}"
        )


def _whole(checkpoint: Path) -> bool:
    """False where a kill left a part of it: its last file is not there, or not to be read."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
