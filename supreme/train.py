"""Pre-train SuPreME or a baseline: `python -m supreme.train --config supreme/configs/laptop.yaml --model.method ..`.

Supervised by labels that were extracted once from the reports (reference: M5); the self-supervised objectives by
`--model.method simclr` and so on. One process or `torchrun` runs it; ZeRO by `--train.deepspeed
shared/runs/zero1.json`.
"""

from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from shared.runs.facts import finished
from shared.runs.training import StopsAtBrokenLoss, fit, over_all_processes, trainer_arguments
from supreme.baselines import build
from supreme.config import Config, parse
from supreme.data import Collator, EcgDataset
from supreme.prep import prepare


class EcgTrainer(StopsAtBrokenLoss, Trainer):
    """The library's Trainer, which stops on a loss that is not finite."""


class AfterStep(TrainerCallback):
    """Slow targets (BYOL, MoCo-v3) follow after each step of the optimiser."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if hasattr(model, "after_step"):
            model.after_step(state.global_step / max(1, state.max_steps))


def arguments(cfg: Config, data_hash: str) -> TrainingArguments:
    """What all papers set, and what this one adds."""
    return TrainingArguments(**trainer_arguments(cfg, data_hash), max_steps=cfg.train.steps or -1)


def main(args: list[str] | None = None) -> Path:
    """Train, save `checkpoint/`, write `run.json`; returns the run's folder."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    data = prepare(cfg)
    if finished(cfg, data.data_hash):
        return cfg.run_dir

    set_seed(cfg.seed)
    train_set = EcgDataset(data)
    model = build(cfg.model, cfg.ssl, cfg.n_samples, data.term_vectors.shape[1], data.y.shape[1])

    trainer = EcgTrainer(
        model=over_all_processes(model),
        args=arguments(cfg, data.data_hash),
        train_dataset=train_set,
        data_collator=Collator(data, cfg.n_samples),
        callbacks=[AfterStep()],
    )
    return fit(
        cfg,
        trainer,
        data_hash=data.data_hash,
        split_sha256=data.split_sha256,
        source=data.source,
        n_train=len(train_set),
        shown={"n_terms": len(data.terms)},
    )


if __name__ == "__main__":
    main()
