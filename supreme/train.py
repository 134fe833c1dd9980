"""Pre-train SuPreME or a baseline: `python -m supreme.train --config supreme/configs/laptop.yaml --model.method ..`.

Supervised by labels that were extracted once from the reports (reference: M5); the self-supervised objectives by
`--model.method simclr` and so on. One process, `torchrun` and `deepspeed` (ZeRO by `--train.deepspeed
supreme/configs/zero1.json`) all run this file.
"""

import json
import os
import shutil
import time
from multiprocessing import parent_process
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from shared.runs.config import dump
from shared.runs.facts import finished, run_json
from shared.runs.processes import end_processes
from supreme.baselines import build
from supreme.config import Config, parse
from supreme.data import Collator, EcgDataset
from supreme.prep import prepare


class EcgTrainer(Trainer):
    """The library's Trainer, which stops on a loss that is not finite."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step}: lower train.lr, or look for broken records "
                "with `python -m shared.download --check --verify`"
            )
        return loss


class AfterStep(TrainerCallback):
    """Slow targets (BYOL, MoCo-v3) follow after each step of the optimiser."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if hasattr(model, "after_step"):
            model.after_step(state.global_step / max(1, state.max_steps))


def arguments(cfg: Config, out: Path, processes: int) -> TrainingArguments:
    """Batch identity: global = micro x accumulation x processes, or an error."""
    t = cfg.train
    accumulation, rest = divmod(t.global_batch, t.micro_batch * processes)
    if rest or not accumulation:
        raise ValueError(
            f"train.global_batch {t.global_batch} is no multiple of train.micro_batch {t.micro_batch} "
            f"x {processes} processes"
        )
    cpu = not torch.cuda.is_available()
    if cpu and t.deepspeed:  # a CPU has no use for the fused all-reduce, and compiling it needs ninja
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=t.micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=t.epochs,
        max_steps=t.steps or -1,
        learning_rate=t.lr,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        bf16=t.bf16,
        deepspeed=t.deepspeed,
        use_cpu=cpu,
        seed=cfg.seed,
        data_seed=cfg.seed,
        dataloader_num_workers=cfg.data.workers,
        dataloader_drop_last=True,  # contrasts need whole batches, BatchNorm more than one record
        save_steps=t.save_steps,
        save_total_limit=1,
        logging_steps=t.log_steps,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=not os.isatty(2) or parent_process() is not None,  # reproduce.py shows its own progress
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    data = prepare(cfg)
    if finished(cfg, data.data_hash):
        print(f"already trained: {cfg.run_dir}")
        return cfg.run_dir

    set_seed(cfg.seed)
    train_set = EcgDataset(data)
    if len(train_set) < cfg.train.micro_batch * int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"{len(train_set)} training records do not fill one batch: lower train.micro_batch")
    model = build(cfg.model, cfg.ssl, cfg.n_samples, data.term_vectors.shape[1], data.y.shape[1])
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and torch.cuda.is_available():  # statistics over the global batch, as on one GPU
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)

    work = cfg.run_dir / f"work-{cfg.digest()}-{data.data_hash}"  # another config never resumes from it
    trainer = EcgTrainer(
        model=model,
        args=arguments(cfg, work, processes),
        train_dataset=train_set,
        data_collator=Collator(data, cfg.n_samples),
        callbacks=[AfterStep()],
    )
    trainer.remove_callback(PrinterCallback)  # the losses are in run.json
    start = time.perf_counter()
    if cfg.train.epochs:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    wall_s = time.perf_counter() - start

    if trainer.is_world_process_zero():
        (cfg.run_dir / "run.json").unlink(missing_ok=True)  # it must never vouch for other weights
    trainer.save_model(str(cfg.run_dir / "checkpoint"))
    if trainer.is_world_process_zero():
        (cfg.run_dir / "checkpoint" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        (cfg.run_dir / "config.yaml").write_text(dump(cfg))
        run = run_json(
            cfg,
            trainer,
            wall_s,
            data_hash=data.data_hash,
            split_sha256=data.split_sha256,
            source=data.source,
            peak_gpu_mb=torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0,
            shown={"n_terms": len(data.terms), "n_train": len(train_set)},
        )
        (cfg.run_dir / "run.json").write_text(json.dumps(run, indent=1))
        shutil.rmtree(work, ignore_errors=True)
        losses = [f"{entry['loss']:.3f}" for entry in run["loss_log"]] or ["none, not trained"]
        loss = " -> ".join(dict.fromkeys((losses[0], losses[-1])))
        print(f"trained: {cfg.run_dir}, {run['steps']} steps, loss {loss}")
    end_processes()
    return cfg.run_dir


if __name__ == "__main__":
    main()
