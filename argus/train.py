"""Train one stage of Argus: `python -m argus.train --config argus/configs/laptop.yaml --model.train_llm false`.

`model.objective` says what is trained: an encoder (mae, clip, supervised), a small language model on report text
(language), or volume -> report, whose two stages (reference: Training schedule) are two runs: the second names the
first's checkpoint in `train.init`. One process or `torchrun` runs it; ZeRO by `--train.deepspeed
shared/runs/zero1.json`.
"""

from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from argus.config import Config, parse
from argus.data import (
    Collator,
    PretrainCollator,
    PretrainDataset,
    ReportDataset,
    load_tokenizer,
    read_volumes,
    train_tokenizer,
)
from argus.language import LanguageDataset, drawn_reports, lists_of, texts_hash
from argus.model import ENCODER_PREFIXES, PRETRAIN, ArgusModel, shape_of
from argus.prep import Prepared, prepare
from argus.pretrain import EncoderPretraining
from shared.runs.facts import finished
from shared.runs.training import TwoRates, fit, trainer_arguments


class ArgusTrainer(TwoRates, Trainer):
    """The library's Trainer with two learning rates and a stop on a loss that is not finite."""

    advice = (
        "lower train.lr or train.encoder_lr, or look for broken volumes with `python -m argus.prep --config .. --check`"
    )

    @staticmethod
    def of_encoder(name: str) -> bool:
        return name.startswith(ENCODER_PREFIXES)


def arguments(cfg: Config, data_hash: str) -> TrainingArguments:
    """What all papers set, and what this one adds."""
    return TrainingArguments(
        **trainer_arguments(cfg, data_hash) | {"num_train_epochs": cfg.train.epochs / cfg.data.share},
        max_steps=cfg.train.steps or -1,
        adam_beta2=cfg.train.adam_beta2,
        activation_checkpointing=cfg.model.gradient_checkpointing,
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
        lists = lists_of(texts, cfg.seed)
        tokenizer = train_tokenizer([*texts.target, *lists])
        train_set = LanguageDataset(texts, lists, d, tokenizer)
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
    """A ViT that standardises its input learns how from the training volumes, where no earlier stage did, or did at
    another resolution: finer voxels have more noise."""
    if encoder is None or not cfg.model.standardise or cfg.train.init:
        return
    if cfg.model.encoder and shape_of(cfg.model.encoder) == encoder.shape:
        return
    rows = train_set.records.row.to_numpy()
    encoder.fit_input(read_volumes(prepared, rows[i : i + 64], cfg.data.slice_only) for i in range(0, len(rows), 64))


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    text_only = cfg.model.objective == "language"
    prepared = None if text_only else prepare(cfg)
    data_hash = texts_hash(cfg.data) if text_only else prepared.data_hash
    if finished(cfg, data_hash):
        return cfg.run_dir

    set_seed(cfg.seed)
    model, tokenizer, train_set, collator = build(cfg, prepared)
    fit_input(cfg, model.encoder, train_set, prepared)
    trainer = ArgusTrainer(
        model=model,
        args=arguments(cfg, data_hash),
        train_dataset=train_set,
        data_collator=collator,
        encoder_lr=cfg.train.encoder_lr,
    )
    return fit(
        cfg,
        trainer,
        tokenizer,
        data_hash=data_hash,
        split_sha256="" if text_only else prepared.split_sha256,
        source="simulated" if text_only else prepared.source,
        n_train=len(train_set),
        n_visual=getattr(getattr(model, "compressor", None), "n_tokens", 0),
        shown={"n_truncated": train_set.n_truncated},
    )


if __name__ == "__main__":
    main()
