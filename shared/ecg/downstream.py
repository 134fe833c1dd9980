"""The six downstream tasks as models meet them: stores and labels of all releases, signals, linear probes.

Two papers score their encoders here. A record has one score per class slot of its release: the classes of the release's
tasks, joined in the order in which the tasks are asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from shared.ecg.prepare import Packed, packed
from shared.ecg.store import EcgStore
from shared.ecg.task_splits import find_splits
from shared.ecg.tasks import TASKS, TaskData, load_task
from shared.metrics.probe import ProbeConfig, out_of_fold, probe
from shared.runs.config import SimulateConfig, data_root, hash_of

AS_PUBLISHED_SAMPLES = 0.5  # CPSC2018 in the public code: the first half of the input length, then padding


@dataclass
class Downstream:
    """One release with all of its tasks."""

    packed: Packed
    tasks: dict[str, TaskData]

    def rows(self, parts: tuple[str, ...] = ("test",)) -> pd.DataFrame:
        """Records that some task has in `parts`: record_id, patient_id, row of the store; in the store's order."""
        ids = {r for t in self.tasks.values() for part in parts for r in np.array(t.record_ids)[t.part_rows(part)]}
        table = self.packed.store.records[["record_id", "patient_id"]].assign(row=range(len(self.packed.store)))
        return table[table.record_id.isin(ids)].reset_index(drop=True)

    def class_names(self) -> list[str]:
        """Plain names of all class slots."""
        return [c.description for task in self.tasks.values() for c in task.classes]


def load_tasks(
    names: Sequence[str], fs_hz: float, simulate: SimulateConfig | None, variant: str = "corrected"
) -> dict[str, Downstream]:
    """Data set -> its store at fs_hz and the named tasks, labels rebuilt by the rules of D4 in a variant."""
    splits = None if simulate else find_splits(data_root())
    found = {}
    for name in names:
        dataset = TASKS[name].dataset
        if dataset not in found:
            found[dataset] = Downstream(packed(dataset, fs_hz, simulate), {})
        store = found[dataset].packed
        found[dataset].tasks[name] = load_task(name, store.store.records, store.root, variant=variant, splits=splits)
    return found


def downstream_hash(downstream: dict[str, Downstream]) -> str:
    """Of signals, labels and parts of all tasks."""
    parts = []
    for dataset, release in sorted(downstream.items()):
        parts += [dataset, *release.packed.sha256.values()]
        for name, task in sorted(release.tasks.items()):
            parts += [name, task.labels.tobytes().hex(), " ".join(task.record_ids), " ".join(task.part)]
    return hash_of(parts)


# --- signals ---


def read_mv(store: EcgStore, rows, n_samples: int) -> np.ndarray:
    """Records [B, 12, n_samples] in mV: longer ones cut, shorter ones padded with zeros at the end."""
    batch = np.zeros((len(rows), 12, n_samples), np.float32)
    for i, row in enumerate(rows):
        signal_mv = store.signal_mv(int(row))[:, :n_samples]
        batch[i, :, : signal_mv.shape[1]] = signal_mv
    return batch


def batches(
    store: EcgStore, rows: np.ndarray, n_samples: int, step: int, size: int, as_published: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions in rows, signals [b, 12, t] in mV) of records of one length at a time, none of them padded.

    Records are cut to at most n_samples and to whole steps (patches), so that few lengths remain; a record shorter than
    one step is an error. as_published (CPSC2018): the first half of n_samples, padded with zeros before normalisation.
    """
    keep = int(n_samples * AS_PUBLISHED_SAMPLES) if as_published else n_samples
    lengths = np.minimum(store.records.n_samples.to_numpy()[rows], keep)
    lengths = lengths // step * step
    if (lengths == 0).any():
        short = store.records.record_id.to_numpy()[rows][lengths == 0]
        raise ValueError(f"{store.path}: record {short[0]} is shorter than one patch of {step} samples")
    for length in np.unique(lengths):
        positions = np.flatnonzero(lengths == length)
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            signal_mv = read_mv(store, rows[chosen], int(length))
            if as_published:
                signal_mv = np.pad(signal_mv, ((0, 0), (0, 0), (0, n_samples - int(length))))
            yield chosen, signal_mv


# --- linear probes ---

VAL = "~val"


def probe_scores(
    release: Downstream, rows: pd.DataFrame, features: np.ndarray, cfg: ProbeConfig, name: str, folds: bool
) -> dict[str, np.ndarray]:
    """name -> scores [n, n_slots] of the release's rows, NaN where a record is not scored.

    features: [n, d] of `rows` (all parts); tasks are probed apart, on the same features. folds: one entry `name`, out
    of fold over the official folds; else one entry per ratio and draw, `name ratio #draw`, of which draw 0 is the
    published subset. A name that ends in ~val adds the scores of the validation part: `name` then stands for both,
    `probe:x ratio #draw` and `probe:x~val ratio #draw`.
    """
    found: dict[str, np.ndarray] = {}
    place = {r: i for i, r in enumerate(rows.record_id)}
    start, n_slots = 0, len(release.class_names())
    for task in release.tasks.values():
        index = np.array([place[r] for r in task.record_ids])
        x, slots = features[index], slice(start, start + len(task.classes))
        start += len(task.classes)
        runs = {}
        if folds:
            records = release.packed.store.records.set_index("record_id")
            numbers = records.fold.loc[list(task.record_ids)].to_numpy()
            runs[name] = index, out_of_fold(x, task.labels, numbers, cfg).scores
        else:
            parts = {p: task.part_rows(p) for p in ("val", "test")}
            for ratio in cfg.ratios:
                for draw in range(cfg.draws if ratio < 1 else 1):
                    train = task.few_label_rows(ratio, draw or None)
                    fit = probe(x, task.labels, parts | {"train": train}, cfg)
                    runs[f"{name.removesuffix(VAL)} {ratio:g} #{draw}"] = index[parts["test"]], fit.scores
                    if name.endswith(VAL):
                        runs[f"{name} {ratio:g} #{draw}"] = index[parts["val"]], fit.val_scores
        for run, (where, scores) in runs.items():
            values = found.setdefault(run, np.full((len(rows), n_slots), np.nan, np.float32))
            values[where, slots] = scores
    return found
