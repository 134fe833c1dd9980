"""Checkpoint + downstream tasks -> predictions.parquet + metrics.json: `python -m kmerl.evaluate --config .. `.

Zero-shot: the score of a class is that of its name as a query (reference: Evaluation protocols). Linear probing: on
features extracted once. Every input of `eval.inputs` (kmerl/inputs.py) is scored with the same weights and written as
it ends, so a killed evaluation goes on where it stopped; under torchrun each process takes its share.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from kmerl import leads as lead_tools
from kmerl.baselines import load
from kmerl.config import Config, parse
from kmerl.dictionary import is_seen
from kmerl.inputs import Input, expand
from kmerl.prep import Pretraining, prepare, text_encoder
from kmerl.scoring import seen_or_not
from shared.ecg.downstream import Downstream, downstream_hash, read_mv
from shared.ecg.prompts import class_texts
from shared.runs.config import hash_of
from shared.runs.evaluation import checkpoint_of
from shared.runs.processes import device
from shared.runs.tasks import TaskEvaluation, eval_identity, prepare_tasks, score_tasks


@dataclass
class Evaluation(TaskEvaluation):
    """A model with all it is scored on."""

    queries: dict[str, torch.Tensor]  # data set -> vectors [n_slots, d_text], classes of its tasks in order
    training_mean: np.ndarray  # [12] mV, of the pre-training leads

    @torch.inference_mode()
    def run(self, dataset: str, rows: np.ndarray, spec: Input, what: str) -> np.ndarray:
        """`scores` [n, n_slots] or `features` [n, d] of the store's rows, given only the leads of `spec`."""
        mask, device = spec.mask, next(self.model.parameters()).device
        filled = bool(spec.fill) or not self.model.accepts_partial_leads
        if not spec.fill and filled and not mask.all():
            raise ValueError(
                f"eval.inputs: {spec.name!r} needs a fill (such as {spec.name}/zero): the model takes 12 leads"
            )
        if spec.fill.startswith(lead_tools.EINTHOVEN):  # completed leads are known, so they count for the range
            known = mask | lead_tools.derivable(mask)
        else:
            known = mask

        def values_of(signal_mv: np.ndarray) -> torch.Tensor:
            if filled:
                signal_mv = lead_tools.fill(signal_mv, mask, spec.fill or "zero", self.training_mean)
            ecg, leads = torch.from_numpy(signal_mv).to(device), torch.from_numpy(known).to(device)
            if what == "features":
                return self.model.features(ecg, leads)
            return self.model.scores(ecg, self.queries[dataset].to(device), leads)

        return self.through(dataset, rows, spec, values_of)


def seen_classes(downstream: dict[str, Downstream], entities: list[str]) -> dict[str, list[int]]:
    """Task -> per class 1 where its name, as the dictionary reads it, is a training entity, else 0 (`is_seen`)."""
    return {
        name: [int(is_seen(c.description, entities)) for c in task.classes]
        for release in downstream.values()
        for name, task in release.tasks.items()
    }


def setup(cfg: Config, checkpoint: Path) -> tuple[Evaluation, Pretraining]:
    """Model, tasks and the vectors of their classes; what the model was trained on."""
    data, downstream = prepare(cfg), prepare_tasks(cfg)
    model = load(checkpoint).to(device()).eval()
    store, rows = data.records.store, data.rows
    vectors = text_encoder(cfg, [store.records.report.iloc[i] for i in rows])
    texts = {
        dataset: [t for name, task in r.tasks.items() for t in class_texts(name, task, cfg.eval.prompts)]
        for dataset, r in downstream.items()
    }
    queries = {dataset: torch.from_numpy(vectors(asked)) for dataset, asked in texts.items()}
    some = read_mv(store, rows[:: max(1, len(rows) // 1000)], cfg.n_samples)  # a thousand will do
    mean = lead_tools.lead_means(some)
    return Evaluation(cfg, model, downstream, queries, mean), data


def main(args: list[str] | None = None) -> Path:
    """Score all inputs; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    checkpoint = checkpoint_of(cfg)
    evaluation, data = setup(cfg, checkpoint)
    queries = {d: hashlib.sha256(q.numpy().tobytes()).hexdigest() for d, q in evaluation.queries.items()}
    content = eval_identity(cfg, checkpoint, data.data_hash), downstream_hash(evaluation.downstream), queries, cfg.seed
    seen = seen_classes(evaluation.downstream, data.entities.names)
    specs = expand(cfg.eval.inputs, cfg.eval.n_random_sets)
    return score_tasks(evaluation, specs, hash_of(content), seen_or_not(seen), {"seen": seen})


if __name__ == "__main__":
    main()
