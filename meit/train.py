"""Train one MEIT model: `python -m meit.train --config meit/configs/laptop.yaml --model.fusion meit`.

LoRA adapters and the whole ECG encoder are trained on instruction -> report (reference: Training). The same script
pre-trains the small language models of the laptop tier: `--model.fusion none --model.lora_r 0` on a scratch backbone.
One process or `torchrun` runs it; ZeRO by `--train.deepspeed shared/runs/zero1.json`.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from meit.config import Config, parse
from meit.data import Collator, ReportDataset, load_tokenizer, prompt_text, train_tokenizer
from meit.encoder import EncoderConfig, EncoderForWords
from meit.instructions import instruction_pool
from meit.model import MeitModel
from meit.prep import prepare
from shared.runs.facts import finished
from shared.runs.training import TwoRates, fit, over_all_processes, trainer_arguments


class MeitTrainer(TwoRates, Trainer):
    """The library's Trainer with two learning rates and a stop on a loss that is not finite."""

    advice = TwoRates.advice.replace("train.lr", "train.lr or train.encoder_lr")

    @staticmethod
    def of_encoder(name: str) -> bool:
        """Everything new, LoRA apart: encoder, projector, and the layers that the compared fusions bring."""
        return not name.startswith("llm.")


def arguments(cfg: Config, data_hash: str) -> TrainingArguments:
    """What all papers set, and what this one adds."""
    return TrainingArguments(
        **trainer_arguments(cfg, data_hash), activation_checkpointing=cfg.train.gradient_checkpointing
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
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    prepared = prepare(cfg)
    if finished(cfg, prepared.data_hash):
        return cfg.run_dir

    set_seed(cfg.seed)
    reports = prepared.records("train").report.str.lower().tolist()
    model, tokenizer = build(cfg, reports)
    train_set = ReportDataset(prepared, "train", cfg.data, tokenizer, seed=cfg.seed, limit=cfg.data.n_train)

    trainer = MeitTrainer(
        model=over_all_processes(model),
        args=arguments(cfg, prepared.data_hash),
        train_dataset=train_set,
        data_collator=Collator(
            prepared.store, cfg.data.normalise, tokenizer.pad_token_id, with_ecg=cfg.model.fusion != "none"
        ),
        encoder_lr=cfg.train.encoder_lr,
    )
    return fit(
        cfg,
        trainer,
        tokenizer,
        data_hash=prepared.data_hash,
        split_sha256=prepared.split_sha256,
        source=prepared.source,
        n_train=len(train_set),
        shown={"n_truncated": train_set.n_truncated},
    )


if __name__ == "__main__":
    main()
