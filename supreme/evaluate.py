"""Checkpoint + downstream tasks -> predictions.parquet + metrics.json: `python -m supreme.evaluate --config .. `.

Zero-shot: a class's text is the query, its logit the score (reference: M6). Linear probing: on the mean token, taken
once. Every input of `eval.inputs` (supreme/inputs.py) is scored with the same weights and written as it ends, so that a
killed evaluation goes on where it stopped; under torchrun each process takes its share.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from shared.ecg.downstream import Downstream, batches, downstream_hash, labels_table
from shared.metrics.scorecard import dumps
from shared.runs.checkpoint import fetched, run_file
from shared.runs.config import hash_of
from shared.runs.facts import commit
from shared.runs.tasks import TaskEvaluation, cycle, predict_all, summary_of
from supreme.baselines import load
from supreme.config import Config, parse
from supreme.inputs import Input, expand
from supreme.prep import Pretraining, prepare, prepare_tasks, text_encoder
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
        device = next(self.model.parameters()).device
        queries, seed = self.queries[dataset], self.cfg.seed
        if spec.control == "texts":
            queries = queries[cycle(len(queries), seed)]
        half = self.cfg.eval.variant == "as_published" and dataset == "cpsc2018"
        store, out = self.downstream[dataset].packed.store, None
        step, size = self.model.step_samples, self.cfg.eval.batch
        for positions, signal_mv in batches(store, rows, self.cfg.n_samples, step, size, half):
            if spec.control == "zeroed":
                signal_mv = np.zeros_like(signal_mv)
            if spec.control == "permuted":
                signal_mv = signal_mv[:, cycle(12, seed)]
            ecg = torch.from_numpy(np.ascontiguousarray(signal_mv)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.cfg.train.bf16):
                if what == "features":
                    values = self.model.features(ecg)
                elif self.model.cfg.method == "supervised":
                    values = self.model.scores(ecg)[:, self.slots(dataset)]
                else:
                    values = self.model.scores(ecg, queries.to(device))
            values = values.float().cpu().numpy()
            out = np.zeros((len(rows), values.shape[1]), np.float32) if out is None else out
            out[positions] = values
        if spec.control == "shuffled":
            out = out[cycle(len(rows), seed)]
        return out

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


def prevalence(release: Downstream) -> np.ndarray:
    """Share of positives of each class slot among its task's training labels."""
    return np.concatenate([task.labels[task.part_rows("train")].mean(0) for task in release.tasks.values()])


def setup(cfg: Config, checkpoint: Path) -> tuple[Evaluation, Pretraining]:
    """Model, tasks and the vectors of their classes; what the model was trained on."""
    data, downstream = prepare(cfg), prepare_tasks(cfg)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    model = load(checkpoint).to(device).eval()
    vectors = text_encoder(cfg)
    texts = {
        dataset: [t for name, task in r.tasks.items() for t in class_texts(name, task, cfg.eval.texts)]
        for dataset, r in downstream.items()
    }
    queries = {dataset: torch.from_numpy(vectors(names)) for dataset, names in texts.items()}
    prior = {dataset: prevalence(release) for dataset, release in downstream.items()}
    return Evaluation(cfg, model, downstream, queries, prior), data


def evaluation_hash(
    cfg: Config, evaluation: Evaluation, data: Pretraining, kinds: dict, data_hash: str, checkpoint: Path
) -> str:
    """Identifies weights, data, queries, kinds of classes and inputs. Raises ValueError where the run's weights are
    another config's or stand on other data."""
    trained = json.loads(run_file(checkpoint, "run.json").read_text())
    if cfg.eval.checkpoint is None and trained["config_hash"] != cfg.digest():
        raise ValueError(f"{checkpoint} was trained with another config (see config.yaml there); train again")
    if cfg.eval.checkpoint is None and trained["data_hash"] != data.data_hash:
        raise ValueError(f"{checkpoint} was trained on other records, labels or text vectors; train again")
    content = asdict(cfg.eval) | {"batch": 0, "n_boot": 0, "checkpoint": [trained["config_hash"], trained["data_hash"]]}
    queries = {d: hashlib.sha256(q.numpy().tobytes()).hexdigest() for d, q in evaluation.queries.items()}
    return hash_of([content, data_hash, queries, kinds, cfg.seed])


def main(args: list[str] | None = None) -> Path:
    """Score all inputs; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    cfg = parse(args)
    file = cfg.run_dir / "metrics.json"
    checkpoint = fetched(cfg.eval.checkpoint or cfg.run_dir / "checkpoint")
    if not run_file(checkpoint, "run.json").is_file():
        raise FileNotFoundError(f"{checkpoint}: no finished run; train it first with `python -m supreme.train`")
    start = time.perf_counter()
    evaluation, data = setup(cfg, checkpoint)
    data_hash = downstream_hash(evaluation.downstream)
    kinds = class_kinds(evaluation.downstream, data.terms, cfg.extract.hold_out)
    identity = {
        "evaluation_hash": evaluation_hash(cfg, evaluation, data, kinds, data_hash, checkpoint),
        "scored_by": [cfg.eval.n_boot],
    }
    if file.exists() and identity.items() <= json.loads(file.read_text()).items():
        return cfg.run_dir

    table = predict_all(evaluation, expand(cfg.eval.inputs), cfg.run_dir / f"parts-{identity['evaluation_hash']}")
    if int(os.environ.get("RANK", 0)):
        return cfg.run_dir
    table.to_parquet(cfg.run_dir / "predictions.parquet", index=False)
    labels = labels_table(evaluation.downstream)
    labels.to_parquet(cfg.run_dir / "labels.parquet", index=False)
    source = next(iter(evaluation.downstream.values())).packed.source
    summary = identity | {"source": source, "data_hash": data_hash, "commit": commit(), "kinds": kinds}
    summary["metrics"] = summary_of(table, labels, kinds, cfg.eval.n_boot, chance=True)
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    file.write_text(dumps(summary))
    first = next(iter(summary["metrics"].items()))
    print(f"evaluated: {cfg.run_dir}, {first[0]}: AUROC {first[1]['auroc']['value']:.3f}")
    return cfg.run_dir


if __name__ == "__main__":
    main()
