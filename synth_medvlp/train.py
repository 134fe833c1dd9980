"""Pre-train on pairs: `python -m synth_medvlp.train --config synth_medvlp/configs/laptop.yaml --data.regime ..`

ConVIRT or GLoRIA on real, synthetic or mixed pairs (reference: regimes; Training settings). One process or `torchrun`
runs it; ZeRO by `--train.deepspeed shared/runs/zero1.json`.
"""

from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from shared.runs.facts import finished
from shared.runs.processes import n_processes
from shared.runs.training import StopsAtBrokenLoss, fit, over_all_processes, trainer_arguments
from synth_medvlp.config import Config, parse
from synth_medvlp.data import BySource, Collator, PairDataset, sentences_of
from synth_medvlp.model import VlpModel, tokeniser_of
from synth_medvlp.prep import prepare


class VlpTrainer(StopsAtBrokenLoss, Trainer):
    """The library's Trainer, which stops on a loss that is not finite and can draw batches of one source."""

    def __init__(self, *args, by_source: bool, **kwargs):
        self.by_source = by_source
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        if self.by_source:
            return BySource(self.train_dataset, self.args.per_device_train_batch_size)
        return super()._get_train_sampler(train_dataset)


class Epoch(TrainerCallback):
    """The data set draws sentences and augmentations by the number of the epoch."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch = int(state.epoch + 1e-6)


def arguments(cfg: Config, data_hash: str) -> TrainingArguments:
    """What all papers set, and what this one adds."""
    return TrainingArguments(
        **trainer_arguments(cfg, data_hash), max_steps=cfg.train.steps or -1, adam_beta1=cfg.train.adam_beta1
    )


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    data = prepare(cfg)
    if finished(cfg, data.data_hash):
        return cfg.run_dir

    set_seed(cfg.seed)
    train_set = PairDataset(data.pairs, data.keep, cfg.data, cfg.seed)
    model = VlpModel.build(cfg.model, tokeniser_of(cfg.model.text, sentences_of(data.real)))
    if not cfg.train.deepspeed:  # which flattens weights; the convolutions of a CPU are a quarter faster with it
        model.image.to(memory_format=torch.channels_last)

    trainer = VlpTrainer(
        model=over_all_processes(model),
        args=arguments(cfg, data.data_hash),
        train_dataset=train_set,
        data_collator=Collator(model.tokeniser, cfg.data.augment, cfg.model.image.normalise),
        callbacks=[Epoch(train_set)],
        by_source=cfg.data.by_source,
    )
    negatives = cfg.train.micro_batch * (n_processes() if cfg.model.gather else 1) - 1
    return fit(
        cfg,
        trainer,
        data_hash=data.data_hash,
        split_sha256=data.split_sha256,
        source=data.source,
        n_train=len(train_set),
        shown={"without_text": train_set.left_out, "negatives": negatives, "loaded_tensors": model.loaded},
    )


if __name__ == "__main__":
    main()
