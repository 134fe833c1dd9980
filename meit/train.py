"""Train one MEIT model: `python -m meit.train --config meit/configs/laptop.yaml --model.fusion meit`.

LoRA adapters and the whole ECG encoder are trained on instruction -> report (reference: Training). The same script
pre-trains the small language models of the laptop tier: `--model.fusion none --model.lora_r 0` on a scratch backbone.
One process, `torchrun` and `deepspeed` (ZeRO by `--train.deepspeed meit/configs/zero1.json`) all run this file.
"""

import json
import os
import shutil
import time
from multiprocessing import parent_process
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from meit.config import Config, parse
from meit.data import Collator, ReportDataset, load_tokenizer, prompt_text, train_tokenizer
from meit.encoder import EncoderConfig, EncoderForWords
from meit.instructions import instruction_pool
from meit.model import MeitModel
from meit.prep import prepare
from meit.runs import quiet
from shared.runs.config import dump
from shared.runs.facts import finished, run_json
from shared.runs.processes import end_processes


class MeitTrainer(Trainer):
    """The library's Trainer with two learning rates and a stop on a loss that is not finite."""

    def __init__(self, *args, encoder_lr: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder_lr = encoder_lr

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            groups = [  # LoRA; everything new: encoder, projector, and the layers that the compared fusions bring
                {"params": [p for n, p in trained if n.startswith("llm.")]},
                {"params": [p for n, p in trained if not n.startswith("llm.")], "lr": self.encoder_lr},
            ]
            groups = [g for g in groups if g["params"]]
            self.optimizer = torch.optim.AdamW(groups, self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step}: lower train.lr or train.encoder_lr, "
                "or look for broken records with `python -m shared.download --check --verify`"
            )
        return loss


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
        learning_rate=t.lr,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        bf16=t.bf16,
        activation_checkpointing=t.gradient_checkpointing,
        deepspeed=t.deepspeed,
        use_cpu=cpu,
        seed=cfg.seed,
        data_seed=cfg.seed,
        dataloader_num_workers=cfg.data.workers,
        dataloader_drop_last=True,  # BatchNorm never sees a batch of one
        save_steps=t.save_steps,
        save_total_limit=1,
        logging_steps=t.log_steps,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=not os.isatty(2) or parent_process() is not None,  # reproduce.py shows its own progress
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


def build(cfg: Config, reports: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer: from the hub, from a local language model, from scratch, or warm from `train.init`."""
    if cfg.train.init:
        return MeitModel.from_pretrained(cfg.train.init), load_tokenizer(cfg.train.init)
    if cfg.model.backbone.startswith("scratch:"):
        tokenizer = train_tokenizer(reports + [prompt_text(i) for i in instruction_pool()])
    else:
        tokenizer = load_tokenizer(cfg.model.backbone)
    if cfg.model.fusion == "words":
        sizes = {"width": cfg.model.encoder_width, "blocks": cfg.model.encoder_blocks}
        return EncoderForWords(EncoderConfig(**sizes, vocab_size=len(tokenizer))), tokenizer
    return MeitModel.build(cfg.model, tokenizer), tokenizer


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    quiet()
    cfg = parse(args)
    prepared = prepare(cfg.data)
    if finished(cfg, prepared.data_hash):
        print(f"already trained: {cfg.run_dir}")
        return cfg.run_dir

    set_seed(cfg.seed)
    reports = prepared.records("train").report.str.lower().tolist()
    model, tokenizer = build(cfg, reports)
    train_set = ReportDataset(prepared, "train", cfg.data, tokenizer, seed=cfg.seed, limit=cfg.data.n_train)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and torch.cuda.is_available():  # statistics over the global batch, as on one GPU
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)

    work = cfg.run_dir / f"work-{cfg.digest()}-{prepared.data_hash}"  # another config never resumes from it
    trainer = MeitTrainer(
        model=model,
        args=arguments(cfg, work, processes),
        train_dataset=train_set,
        data_collator=Collator(
            prepared.store, cfg.data.normalise, tokenizer.pad_token_id, with_ecg=cfg.model.fusion != "none"
        ),
        encoder_lr=cfg.train.encoder_lr,
    )
    trainer.remove_callback(PrinterCallback)  # the losses are in run.json
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    wall_s = time.perf_counter() - start

    if trainer.is_world_process_zero():
        (cfg.run_dir / "run.json").unlink(missing_ok=True)  # it must never vouch for other weights
    trainer.save_model(str(cfg.run_dir / "checkpoint"))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(cfg.run_dir / "checkpoint")
        (cfg.run_dir / "checkpoint" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        (cfg.run_dir / "config.yaml").write_text(dump(cfg))
        run = run_json(
            cfg,
            trainer,
            wall_s,
            data_hash=prepared.data_hash,
            split_sha256=prepared.split_sha256,
            source=prepared.source,
            n_train=len(train_set),
            peak_gpu_mb=torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0,
            shown={"n_truncated": train_set.n_truncated},
        )
        (cfg.run_dir / "run.json").write_text(json.dumps(run, indent=1))
        shutil.rmtree(work)
        print(f"trained: {cfg.run_dir}, {run['steps']} steps, last loss {run['loss_log'][-1:]}")
    end_processes()
    return cfg.run_dir


if __name__ == "__main__":
    main()
