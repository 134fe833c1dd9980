"""Runs that are scored on the six downstream tasks: predictions of every input, and their scores over seeds.

TaskEvaluation   a model with the tasks; a paper says how an input is run
predict_all      every input -> one table, resumable
summary_of       that table -> what metrics.json holds
score_all        predictions in the results folder -> `name@input` -> Scored
"""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from shared.ecg.downstream import VAL, Downstream, batches, downstream_hash, load_tasks, probe_scores
from shared.ecg.tasks import TASKS
from shared.metrics.probe import ProbeConfig
from shared.metrics.six_tasks import average, items_of, metrics_of, task_metrics, usable_tasks
from shared.runs.config import RunConfig, SimulateConfig
from shared.runs.evaluation import entries, evaluated, in_parts, keep, weights_of
from shared.runs.evidence import Scored, add_seed, folder, read_predictions, runs_of
from shared.runs.facts import commit
from shared.runs.processes import worker

Kinds = Mapping[str, Sequence[str]]  # task -> kind of each class ("seen" ..), for `metrics_of`


@dataclass
class TaskEvalConfig:
    """Zero-shot and probing on the six tasks; a paper adds its inputs and texts."""

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    simulate: SimulateConfig | None = None  # of each downstream release
    variant: str = "corrected"  # corrected | as_published: labels and signals downstream
    all_records: bool = False  # score all records of a release, not its test part (350 real PTB-XL records)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    checkpoint: str | None = None  # of another run; null = this run's own
    batch: int = 128
    n_boot: int = 1000


class TaskInput(Protocol):
    """What a model is given. control: val = the validation part; kind: probe | oof | "" (scores)."""

    name: str
    control: str
    kind: str


@dataclass
class TaskEvaluation(ABC):
    """A model with all it is scored on. cfg.eval has `all_records` and `probe`."""

    cfg: Any
    model: Any
    downstream: dict[str, Downstream]

    @abstractmethod
    def run(self, dataset: str, rows: np.ndarray, spec: TaskInput, what: str) -> np.ndarray:
        """`scores` [n, n_slots] or `features` [n, d] of the store's rows, given the input `spec`."""

    def through(
        self, dataset: str, rows: np.ndarray, spec: TaskInput, values_of: Callable[[np.ndarray], torch.Tensor]
    ) -> np.ndarray:
        """`values_of` [b, d] of signals [b, 12, T] in mV, batch by batch -> float32 [n, d] of the store's rows. The
        controls zeroed, permuted (leads) and shuffled (records) are made here."""
        cfg, store, out = self.cfg, self.downstream[dataset].packed.store, None
        half = cfg.eval.variant == "as_published" and dataset == "cpsc2018"
        for positions, signal_mv in batches(store, rows, cfg.n_samples, self.model.step_samples, cfg.eval.batch, half):
            if spec.control == "zeroed":
                signal_mv = np.zeros_like(signal_mv)
            if spec.control == "permuted":
                signal_mv = signal_mv[:, cycle(12, cfg.seed)]
            with torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16, enabled=cfg.train.bf16):
                values = values_of(signal_mv)
            values = values.float().cpu().numpy()
            out = np.zeros((len(rows), values.shape[1]), np.float32) if out is None else out
            out[positions] = values
        return out[cycle(len(rows), cfg.seed)] if spec.control == "shuffled" else out

    def rows(self, dataset: str, spec: TaskInput) -> pd.DataFrame:
        """Records that are run: the test part, validation for thresholds, all parts for probes."""
        release = self.downstream[dataset]
        if self.cfg.eval.all_records or spec.kind:
            return release.rows(("train", "val", "test"))
        return release.rows(("val",) if spec.control == "val" else ("test",))

    def tables(self, spec: TaskInput) -> list[pd.DataFrame]:
        """Predictions of one input, one table per data set (and per ratio and draw of a probe)."""
        found = []
        for dataset, release in self.downstream.items():
            rows = self.rows(dataset, spec)
            if not len(rows):
                continue
            if spec.kind:
                features = self.run(dataset, rows.row.to_numpy(), spec, "features")
                scored = probe_scores(release, rows, features, self.cfg.eval.probe, spec.name, spec.kind == "oof")
            else:
                scored = {spec.name: self.run(dataset, rows.row.to_numpy(), spec, "scores")}
            for name, values in scored.items():
                kept = rows[~np.isnan(values).all(1)]
                table = pd.DataFrame({"dataset": dataset, "id": kept.record_id, "patient": kept.patient_id})
                table["split"], table["input"] = "val" if VAL in name else "test", name
                table["prediction"] = list(values[~np.isnan(values).all(1)].astype(np.float16))
                found.append(table)
        return found


def prepare_tasks(cfg: Any) -> dict[str, Downstream]:
    """Data set -> its store and the tasks of `eval.tasks`, labels in the variant `eval.variant`."""
    return load_tasks(cfg.eval.tasks, cfg.data.fs_hz, cfg.eval.simulate, cfg.eval.variant)


def prevalence(release: Any) -> np.ndarray:
    """Share of positives of each class slot among its task's training labels; 0 where there are none."""
    shares = []
    for task in release.tasks.values():
        train = task.labels[task.part_rows("train")]
        shares.append((train == 1).sum(0) / np.maximum((train >= 0).sum(0), 1))
    return np.concatenate(shares)


def labels_table(downstream: Mapping[str, Any]) -> pd.DataFrame:
    """One row per task and record: dataset, task, id, part, reference (list of 1, 0, -1 uncertain, one
    per class)."""
    found = []
    for dataset, release in downstream.items():
        for name, task in release.tasks.items():
            table = pd.DataFrame({"dataset": dataset, "task": name, "id": task.record_ids, "part": task.part})
            found.append(table.assign(reference=list(task.labels)))
    return pd.concat(found, ignore_index=True)


def cycle(n: int, seed: int) -> np.ndarray:
    """A seeded permutation [n] that leaves nothing in its place (for n > 1)."""
    order = np.random.default_rng(seed).permutation(n)
    return np.roll(order, 1)[np.argsort(order)]


def predict_all(evaluation: TaskEvaluation, specs: Sequence[TaskInput], parts: Path) -> pd.DataFrame:
    """One row per record and input: dataset, id, patient, split, input, prediction (float16, one per class slot); see
    `in_parts`."""
    jobs = {hashlib.sha256(spec.name.encode()).hexdigest()[:16]: spec for spec in specs}

    def scored(spec: TaskInput) -> pd.DataFrame:
        return pd.concat(evaluation.tables(spec), ignore_index=True)

    return in_parts(jobs, scored, parts, f"scoring {evaluation.cfg.experiment}")


def summary_of(
    table: pd.DataFrame, labels: pd.DataFrame, kinds: Kinds, n_boot: int, chance: bool = False
) -> dict[str, dict]:
    """Input -> metric -> value, interval, number of rows and version of the metric; chance: see `metrics_of`."""
    found: dict[str, dict] = {}
    for name, rows in table.groupby("input", sort=False):
        metrics, patients = metrics_of(rows, labels, kinds, chance)
        wanted = {key: metrics[key] for key in ("auroc", "auroc_min10") if key in metrics}
        found[name] = entries(wanted, patients, len(rows), n_boot)
    return found


def eval_identity(cfg: Any, checkpoint: Path, data_hash: str) -> dict:
    """What a hash of an evaluation takes from its config and weights; see `weights_of`."""
    return asdict(cfg.eval) | {"batch": 0, "n_boot": 0, "checkpoint": weights_of(cfg, checkpoint, data_hash)}


def score_tasks(
    evaluation: TaskEvaluation,
    specs: Sequence[TaskInput],
    evaluation_hash: str,
    kinds: Kinds,
    facts: dict,
    chance: bool = False,
) -> Path:
    """Score all inputs and write predictions, labels and metrics.json; returns the run's folder. A finished evaluation
    is not run again. facts: what the paper adds to metrics.json."""
    cfg, start = evaluation.cfg, time.perf_counter()
    identity = {"evaluation_hash": evaluation_hash, "scored_by": [cfg.eval.n_boot]}
    if evaluated(cfg, identity):
        return cfg.run_dir
    table = predict_all(evaluation, specs, cfg.run_dir / f"parts-{evaluation_hash}")
    if worker()[0]:
        return cfg.run_dir
    labels = labels_table(evaluation.downstream)
    source = " + ".join(dict.fromkeys(release.packed.source for release in evaluation.downstream.values()))
    summary = identity | {"source": source, "data_hash": downstream_hash(evaluation.downstream), "commit": commit()}
    summary |= facts | {"metrics": summary_of(table, labels, kinds, cfg.eval.n_boot, chance)}
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    keep(cfg, summary, predictions=table, labels=labels)
    name, metrics = next(iter(summary["metrics"].items()))
    print(f"evaluated: {cfg.run_dir}, {name}: AUROC {metrics['auroc']['value']:.3f}")
    return cfg.run_dir


# --- over the runs of a tier ---


def read_labels(cfg: RunConfig, data_hash: str) -> pd.DataFrame:
    return pd.read_parquet(folder(cfg) / "predictions" / f"labels-{data_hash}.parquet")


def score_all(
    cfg: RunConfig, facts: dict, kinds_of: Callable[[dict], Kinds], chance: bool = False
) -> dict[str, Scored]:
    """`name@input` -> Scored, for every experiment in the results folder. kinds_of: facts of a run -> its `Kinds`;
    chance: see `metrics_of`."""
    scored: dict[str, Scored] = {}
    labels: dict[str, pd.DataFrame] = {}
    for name, seed, run in runs_of(facts):
        data_hash = run["data_hash"]
        if data_hash not in labels:
            labels[data_hash] = read_labels(cfg, data_hash)
        for kind, rows in read_predictions(cfg, name, seed).groupby("input", sort=False):
            ids, _, _ = items_of(rows, labels[data_hash])
            found, patients = metrics_of(rows, labels[data_hash], kinds_of(run), chance)
            folds = 10 if kind.startswith("oof:") else 1
            n_records = len(rows[["dataset", "id"]].drop_duplicates())
            new = Scored({}, ids, patients, run["source"], data_hash, folds, n_records=n_records)
            add_seed(scored, f"{name}@{kind}", new, seed, found)
    return scored


def means_over_draws(scored: dict[str, Scored]) -> dict[str, Scored]:
    """`name@<input> <ratio>`: mean over the few-label draws `name@<input> <ratio> #<draw>`."""
    groups: dict[str, list[Scored]] = {}
    for key, one in scored.items():
        if " #" in key:
            groups.setdefault(key.split(" #")[0], []).append(one)
    return {key: mean_of(entries) for key, entries in groups.items()}


def mean_of(entries: list[Scored]) -> Scored:
    """One Scored whose metrics are means over several inputs of the same run; metrics that all of them have."""
    first = entries[0]
    if any(not np.array_equal(e.ids, first.ids) for e in entries):
        raise ValueError("a mean over inputs needs the same records in each; run the experiment again")
    names = [m for m in first.scores if all(m in e.scores for e in entries)]
    n_seeds = {len(e.scores[m]) for e in entries for m in names}
    if len(n_seeds) != 1 or any(e.seeds != first.seeds for e in entries):
        raise ValueError(f"a mean over inputs needs the same seeds in each, found {sorted(n_seeds)}")
    scores = {m: [average([e.scores[m][k] for e in entries]) for k in range(*n_seeds)] for m in names}
    base = first.ids, first.patients, first.source, first.data_hash, first.n_folds
    return Scored(scores, *base, n_records=first.n_records, seeds=first.seeds)


# --- tables and figures ---

AUROC_NOTE = "AUROC, macro over classes, mean over tasks, x 1; [95 % interval over patients and seeds]."


def richest_record(run: Path, evaluation: TaskEvaluation) -> tuple[str, str, np.ndarray, list[int]]:
    """Test record of the first data set with the most findings: data set, id, signals [12, n_samples] in mV, and slots
    of its classes."""
    dataset, release = next(iter(evaluation.downstream.items()))
    labels = pd.read_parquet(run / "labels.parquet")
    test = labels[(labels.dataset == dataset) & (labels.part == "test")]
    n_true = test.assign(n=test.reference.map(lambda r: int(np.sum(r)))).groupby("id").n.sum()
    record = n_true.sort_values(ascending=False, kind="stable").index[0]
    found = test[test.id == record].set_index("task").reference
    there = [t for name, task in release.tasks.items() for t in found.get(name, [0] * len(task.classes))]
    row = int(np.flatnonzero(release.packed.store.records.record_id == record)[0])
    signal_mv = release.packed.store.signal_mv(row)[:, : evaluation.cfg.n_samples]
    return dataset, record, signal_mv, np.flatnonzero(there).tolist()


def protocol_table(cfg: RunConfig, facts: dict, runs: Mapping[str, str]) -> dict:
    """F1 and accuracy of the first seed with thresholds chosen on the test part (as published) and on validation.

    runs: label -> experiment that has scores of the validation part, `<input>~val`; others are left out.
    """
    seed, rows = cfg.reproduce.seeds[0], []
    for label, name in runs.items():
        if f"{name}/seed{seed}" not in facts["runs"]:
            continue
        labels = read_labels(cfg, facts["runs"][f"{name}/seed{seed}"]["data_hash"])
        table = read_predictions(cfg, name, seed)
        val_input = next((i for i in table.input.unique() if i.endswith(VAL) and ":" not in i), None)
        if val_input is None:
            continue
        _, _, test = items_of(table[table.input == val_input.removesuffix(VAL)], labels)
        _, _, val = items_of(table[table.input == val_input], labels)
        for task in usable_tasks({task: part[1:] for task, part in test.items()}):
            _, y, s = test[task]
            published, _ = task_metrics(y, s, "as_published")
            corrected, info = task_metrics(y, s, "corrected", val[task][1:] if task in val else None)
            wanted = [published.get("oracle_macro_f1"), corrected.get("macro_f1"), published.get("accuracy_strict")]
            wanted += [corrected.get("accuracy"), corrected["macro_auroc"]]
            values = [None if m is None else m.value for m in wanted]
            rows.append([f"{task}, {label}", len(y), f"{len(info['classes'])} of {y.shape[1]}", *values])
    columns = ["task", "records", "classes scored", "F1, threshold from test (as published)", "F1, from validation",
               "accuracy, >, threshold from test (as published)", "accuracy, from validation", "AUROC"]  # fmt: skip
    note = "First seed. A class without positives, or without negatives, in the test part has no AUROC and is left out."
    title = "As published against corrected"
    return {"id": "protocols", "title": title, "columns": columns, "rows": rows, "note": note}
