"""Checkpoint + downstream tasks -> predictions.parquet + metrics.json: `python -m supreme.evaluate --config .. `.

Zero-shot: a class's text is the query, its logit the score (reference: M6). Linear probing: on the mean token, taken
once. Every input of `eval.inputs` (supreme/inputs.py) is scored with the same weights and written as it ends, so that a
killed evaluation goes on where it stopped; under torchrun each process takes its share.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from shared.ecg.downstream import Downstream, downstream_hash
from shared.runs.config import hash_of
from shared.runs.evaluation import checkpoint_of
from shared.runs.processes import device
from shared.runs.tasks import TaskEvaluation, cycle, eval_identity, prepare_tasks, prevalence, score_tasks
from supreme.baselines import load
from supreme.config import Config, parse
from supreme.inputs import Input, expand
from supreme.prep import Pretraining, prepare, text_encoder
from supreme.queries import class_texts
from supreme.terminology import Term, ancestors, find, relation


@dataclass
class Evaluation(TaskEvaluation):
    """A model with all it is scored on."""

    queries: dict[str, torch.Tensor]  # data set -> vectors [n_slots, d_text], classes of its tasks in order
    prior: dict[str, np.ndarray]  # data set -> share of positives [n_slots] among the training labels of the tasks

    @torch.inference_mode()
    def run(self, dataset: str, rows: np.ndarray, spec: Input, what: str) -> np.ndarray:
        """`scores` [n, n_slots] or `features` [n, d] of the store's rows."""
        if spec.control == "prior":
            return np.tile(self.prior[dataset].astype(np.float32), (len(rows), 1))
        device, queries = next(self.model.parameters()).device, self.queries[dataset]
        if spec.control == "texts":
            queries = queries[cycle(len(queries), self.cfg.seed)]

        def values_of(signal_mv: np.ndarray) -> torch.Tensor:
            ecg = torch.from_numpy(np.ascontiguousarray(signal_mv)).to(device)
            if what == "features":
                return self.model.features(ecg)
            if self.model.cfg.method == "supervised":
                return self.model.scores(ecg)[:, self.slots(dataset)]
            return self.model.scores(ecg, queries.to(device))

        return self.through(dataset, rows, spec, values_of)

    def slots(self, dataset: str) -> slice:
        """Columns of a supervised head that belong to a release."""
        sizes = {name: len(release.class_names()) for name, release in self.downstream.items()}
        start = sum(n for name, n in sizes.items() if list(sizes).index(name) < list(sizes).index(dataset))
        return slice(start, start + sizes[dataset])


def class_kinds(downstream: dict[str, Downstream], terms: list[Term], hold_out: list[str]) -> dict[str, list[str]]:
    """Task -> per class its kind: seen, related or unseen by what it is called (`relation`, M6), or held_out."""
    return {
        name: [kind_of(c.description, terms, hold_out) for c in task.classes]
        for release in downstream.values()
        for name, task in release.tasks.items()
    }


def kind_of(text: str, terms: list[Term], hold_out: list[str]) -> str:
    """held_out where the class, or something wider, was taken out of the labels (`extract.hold_out`)."""
    found = find(text)
    if found is not None and {found.id, *ancestors(found.id)} & set(hold_out):
        return "held_out"
    return relation(text, terms)


def setup(cfg: Config, checkpoint: Path) -> tuple[Evaluation, Pretraining]:
    """Model, tasks and the vectors of their classes; what the model was trained on."""
    data, downstream = prepare(cfg), prepare_tasks(cfg)
    model = load(checkpoint).to(device()).eval()
    vectors = text_encoder(cfg)
    texts = {
        dataset: [t for name, task in r.tasks.items() for t in class_texts(name, task, cfg.eval.texts)]
        for dataset, r in downstream.items()
    }
    queries = {dataset: torch.from_numpy(vectors(asked)) for dataset, asked in texts.items()}
    prior = {dataset: prevalence(release) for dataset, release in downstream.items()}
    return Evaluation(cfg, model, downstream, queries, prior), data


def main(args: list[str] | None = None) -> Path:
    """Score all inputs; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    checkpoint = checkpoint_of(cfg)
    evaluation, data = setup(cfg, checkpoint)
    kinds = class_kinds(evaluation.downstream, data.terms, cfg.extract.hold_out)
    queries = {d: hashlib.sha256(q.numpy().tobytes()).hexdigest() for d, q in evaluation.queries.items()}
    content = eval_identity(cfg, checkpoint, data.data_hash), downstream_hash(evaluation.downstream), queries, kinds
    evaluation_hash = hash_of([*content, cfg.seed])
    return score_tasks(evaluation, expand(cfg.eval.inputs), evaluation_hash, kinds, {"kinds": kinds}, chance=True)


if __name__ == "__main__":
    main()
