"""Pre-train K-MERL or a baseline: `python -m kmerl.train --config kmerl/configs/laptop.yaml --model.method kmerl`.

ECG-text contrast and entity classification on masked leads (reference: M4, M7, M8); MERL by `--model.method merl`. One
process or `torchrun` runs it; ZeRO by `--train.deepspeed shared/runs/zero1.json`.
"""

from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from kmerl.baselines import build, load
from kmerl.config import parse
from kmerl.data import Collator, EcgTextDataset
from kmerl.prep import prepare
from shared.runs.facts import finished
from shared.runs.training import StopsAtBrokenLoss, fit, over_all_processes, trainer_arguments


class EcgTrainer(StopsAtBrokenLoss, Trainer):
    """The library's Trainer, which stops on a loss that is not finite."""


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    data = prepare(cfg)
    if finished(cfg, data.data_hash):
        return cfg.run_dir

    set_seed(cfg.seed)
    train_set = EcgTextDataset(data, cfg.data.permute_entities, cfg.seed)
    sizes = cfg.n_samples, data.text_vectors.shape[1], len(data.entities.names)
    model = load(cfg.train.init) if cfg.train.init else build(cfg.model, *sizes)

    trainer = EcgTrainer(
        model=over_all_processes(model),
        args=TrainingArguments(**trainer_arguments(cfg, data.data_hash)),
        train_dataset=train_set,
        data_collator=Collator(train_set, cfg.n_samples),
    )
    return fit(
        cfg,
        trainer,
        data_hash=data.data_hash,
        split_sha256=data.records.split_sha256,
        source=data.records.source,
        n_train=len(train_set),
        shown={"n_entities": len(data.entities.names), "n_distinct_texts": len(data.text_vectors)},
    )


if __name__ == "__main__":
    main()
