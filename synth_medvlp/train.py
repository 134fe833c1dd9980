"""Pre-train on pairs: `python -m synth_medvlp.train --config synth_medvlp/configs/laptop.yaml --data.regime ..`

ConVIRT or GLoRIA on real, synthetic or mixed pairs (reference: regimes; Training settings). One process, `torchrun` and
`deepspeed` (ZeRO by `--train.deepspeed synth_medvlp/configs/zero1.json`) all run this file.
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
from synth_medvlp.config import Config, parse
from synth_medvlp.data import BySource, Collator, PairDataset
from synth_medvlp.model import VlpModel, tokeniser_of
from synth_medvlp.prep import prepare


class VlpTrainer(Trainer):
    """The library's Trainer, which stops on a loss that is not finite and can draw batches of one source."""

    def __init__(self, *args, by_source: bool, **kwargs):
        self.by_source = by_source
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        if self.by_source:
            return BySource(self.train_dataset, self.args.per_device_train_batch_size)
        return super()._get_train_sampler(train_dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step}: lower train.lr, or look for broken images "
                "with `python -m shared.download --check --verify`"
            )
        return loss


class Epoch(TrainerCallback):
    """The data set draws sentences and augmentations by the number of the epoch."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch = int(state.epoch + 1e-6)


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
        adam_beta1=t.adam_beta1,
        max_grad_norm=t.max_grad_norm,
        bf16=t.bf16,
        deepspeed=t.deepspeed,
        use_cpu=cpu,
        seed=cfg.seed,
        data_seed=cfg.seed,
        dataloader_num_workers=cfg.data.workers,
        dataloader_drop_last=True,  # contrasts need whole batches
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
    train_set = PairDataset(data.pairs, data.keep, cfg.data, cfg.seed)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if len(train_set) < cfg.train.micro_batch * processes:
        raise ValueError(f"{len(train_set)} training pairs do not fill one batch: lower train.micro_batch")
    model = VlpModel.build(cfg.model, tokeniser_of(cfg.model.text, train_set.vocabulary()))
    if not cfg.train.deepspeed:  # which flattens weights; the convolutions of a CPU are a quarter faster with it
        model.image.to(memory_format=torch.channels_last)
    if processes > 1 and torch.cuda.is_available():  # statistics over the global batch, as on one GPU
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)

    work = cfg.run_dir / f"work-{cfg.digest()}-{data.data_hash}"  # another config never resumes from it
    trainer = VlpTrainer(
        model=model,
        args=arguments(cfg, work, processes),
        train_dataset=train_set,
        data_collator=Collator(model.tokeniser, cfg.data.augment, cfg.model.image.normalise),
        callbacks=[Epoch(train_set)],
        by_source=cfg.data.by_source,
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
        negatives = cfg.train.micro_batch * (processes if cfg.model.gather else 1) - 1
        run = run_json(
            cfg,
            trainer,
            wall_s,
            data_hash=data.data_hash,
            split_sha256=data.split_sha256,
            source=data.source,
            peak_gpu_mb=torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0,
            shown={"n_train": len(train_set), "without_text": train_set.left_out, "negatives": negatives,
                   "loaded_tensors": model.loaded},
        )  # fmt: skip
        (cfg.run_dir / "run.json").write_text(json.dumps(run, indent=1))
        shutil.rmtree(work, ignore_errors=True)
        losses = [f"{entry['loss']:.3f}" for entry in run["loss_log"]] or ["none, not trained"]
        loss = " -> ".join(dict.fromkeys((losses[0], losses[-1])))
        print(f"trained: {cfg.run_dir}, {run['steps']} steps, loss {loss}")
    end_processes()
    return cfg.run_dir


if __name__ == "__main__":
    main()
