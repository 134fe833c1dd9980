"""Train one stage of Argus: `python -m argus.train --config argus/configs/laptop.yaml --model.train_llm false`.

`model.objective` says what is trained: an encoder (mae, clip, supervised), a small language model on report text
(language), or volume -> report, whose two stages (reference: Training schedule) are two runs: the second names the
first's checkpoint in `train.init`. One process, `torchrun` and `deepspeed` (ZeRO by `--train.deepspeed
argus/configs/zero1.json`) all run this file.
"""

import json
import os
import shutil
import time
from multiprocessing import parent_process
from pathlib import Path

import torch
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from argus.config import Config, parse
from argus.data import (
    ByLength,
    Collator,
    PretrainCollator,
    PretrainDataset,
    ReportDataset,
    load_tokenizer,
    read_volumes,
    train_tokenizer,
)
from argus.language import LanguageDataset, drawn_reports, texts_hash
from argus.model import PRETRAIN, ArgusModel
from argus.prep import Prepared, prepare
from argus.pretrain import EncoderPretraining
from argus.runs import quiet
from shared.runs.config import dump
from shared.runs.facts import finished, run_json
from shared.runs.processes import end_processes


class ArgusTrainer(Trainer):
    """The library's Trainer with two learning rates, batches by length and a stop on a loss that is not finite."""

    def __init__(self, *args, encoder_lr: float | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder_lr = encoder_lr

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            encoder = self.model.encoder
            of_vit = set() if encoder is None else {id(p) for p in encoder.parameters()}
            trained = [p for p in self.model.parameters() if p.requires_grad]
            lr = self.args.learning_rate if self.encoder_lr is None else self.encoder_lr
            groups = [
                {"params": [p for p in trained if id(p) not in of_vit]},
                {"params": [p for p in trained if id(p) in of_vit], "lr": lr},
            ]
            groups = [g for g in groups if g["params"]]
            betas = self.args.adam_beta1, self.args.adam_beta2
            self.optimizer = torch.optim.AdamW(
                groups, self.args.learning_rate, betas, weight_decay=self.args.weight_decay
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """Reports of like length share a batch; objectives without text, or of one cut length, take any order."""
        if not hasattr(self.train_dataset, "lengths"):
            return super()._get_train_sampler(train_dataset)
        t = self.args
        batch = t.per_device_train_batch_size * t.gradient_accumulation_steps * t.world_size
        return ByLength(self.train_dataset.lengths, batch, t.data_seed)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step}: lower train.lr or train.encoder_lr, "
                "or look for broken volumes with `python -m argus.prep --config .. --check`"
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
        max_steps=t.steps or -1,
        learning_rate=t.lr,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=t.weight_decay,
        adam_beta2=t.adam_beta2,
        max_grad_norm=t.max_grad_norm,
        bf16=t.bf16,
        activation_checkpointing=cfg.model.gradient_checkpointing,
        deepspeed=t.deepspeed,
        use_cpu=cpu,
        seed=cfg.seed,
        data_seed=cfg.seed,
        dataloader_num_workers=cfg.data.workers,
        dataloader_drop_last=True,  # clip needs as many rows in every process
        save_steps=t.save_steps,
        save_total_limit=1,
        logging_steps=t.log_steps,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=not os.isatty(2) or parent_process() is not None,  # reproduce.py shows its own progress
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


def tokenizer_of(cfg: Config, prepared: Prepared) -> PreTrainedTokenizerBase:
    """From the earlier stage, the text tower or the backbone; for a scratch backbone learnt on the training reports."""
    if cfg.train.init:
        return load_tokenizer(cfg.train.init)
    if cfg.model.objective == "clip" and cfg.model.text != "scratch":
        return load_tokenizer(cfg.model.text)
    if not cfg.model.backbone.startswith("scratch:"):
        return load_tokenizer(cfg.model.backbone)
    return train_tokenizer(prepared.records("train").target.tolist())


def build(
    cfg: Config, prepared: Prepared | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, Dataset, object]:
    """Model, tokenizer (None where no text is read), training set and collator of the objective. prepared: None for
    language, which reads text alone."""
    m, d = cfg.model, cfg.data
    if m.objective == "language":
        texts = drawn_reports(d)
        tokenizer = train_tokenizer(texts.target.tolist())
        train_set = LanguageDataset(texts, d, tokenizer, cfg.seed)
        return ArgusModel.build(m, d.shape, tokenizer), tokenizer, train_set, Collator(None, tokenizer.pad_token_id)
    tokenizer = tokenizer_of(cfg, prepared) if m.objective not in ("mae", "supervised") else None
    if m.objective in PRETRAIN:
        train_set = PretrainDataset(prepared, "train", tokenizer, m.text_tokens, d.n_train)
        model = EncoderPretraining.build(m, d.shape, tokenizer, train_set.labels)
        pad_id = 0 if tokenizer is None else tokenizer.pad_token_id
        return model, tokenizer, train_set, PretrainCollator(prepared, pad_id, d.slice_only)
    if cfg.train.init:
        model = ArgusModel.next_stage(cfg.train.init, m, d.shape)
    else:
        model = ArgusModel.build(m, d.shape, tokenizer)
    train_set = ReportDataset(prepared, "train", d, tokenizer, limit=d.n_train)
    seen = prepared if model.encoder is not None else None
    return model, tokenizer, train_set, Collator(seen, tokenizer.pad_token_id, d.slice_only)


def fit_input(cfg: Config, encoder, train_set: Dataset, prepared: Prepared | None) -> None:
    """A ViT that standardises its input learns how from the training volumes, where no earlier stage did."""
    if encoder is None or not cfg.model.standardise or cfg.model.encoder or cfg.train.init:
        return
    rows = train_set.records.row.to_numpy()
    encoder.fit_input(read_volumes(prepared, rows[i : i + 64], cfg.data.slice_only) for i in range(0, len(rows), 64))


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    quiet()
    cfg = parse(args)
    text_only = cfg.model.objective == "language"
    prepared = None if text_only else prepare(cfg.data)
    data_hash = texts_hash(cfg.data) if text_only else prepared.data_hash
    if finished(cfg, data_hash):
        print(f"already trained: {cfg.run_dir}")
        return cfg.run_dir

    set_seed(cfg.seed)
    model, tokenizer, train_set, collator = build(cfg, prepared)
    fit_input(cfg, model.encoder, train_set, prepared)
    work = cfg.run_dir / f"work-{cfg.digest()}-{data_hash}"  # another config never resumes from it
    trainer = ArgusTrainer(
        model=model,
        args=arguments(cfg, work, int(os.environ.get("WORLD_SIZE", 1))),
        train_dataset=train_set,
        data_collator=collator,
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
        if tokenizer is not None:
            tokenizer.save_pretrained(cfg.run_dir / "checkpoint")
        (cfg.run_dir / "checkpoint" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says it all
        (cfg.run_dir / "config.yaml").write_text(dump(cfg))
        run = run_json(
            cfg,
            trainer,
            wall_s,
            data_hash=data_hash,
            split_sha256="" if text_only else prepared.split_sha256,
            source="simulated" if text_only else prepared.source,
            n_train=len(train_set),
            n_visual=getattr(getattr(model, "compressor", None), "n_tokens", 0),
            peak_gpu_mb=torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0,
            shown={"n_truncated": train_set.n_truncated},
        )
        (cfg.run_dir / "run.json").write_text(json.dumps(run, indent=1))
        shutil.rmtree(work)
        last = "".join(f", loss {entry['loss']:.3f} at step {entry['step']}" for entry in run["loss_log"][-1:])
        print(f"trained: {cfg.run_dir}, {run['steps']} steps{last}")
    end_processes()
    return cfg.run_dir


if __name__ == "__main__":
    main()
