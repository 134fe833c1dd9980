"""Datasets and collator: signals in mV from the memory-mapped store, entity labels, one cached vector per report."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from kmerl.prep import Pretraining
from shared.ecg.store import EcgStore

AS_PUBLISHED_SAMPLES = 0.5  # CPSC2018 in the public code: the first half of the input length, then padding (trap 16)


def read_mv(store: EcgStore, rows, n_samples: int) -> np.ndarray:
    """Records [B, 12, n_samples] in mV: longer ones cut, shorter ones padded with zeros at the end."""
    batch = np.zeros((len(rows), 12, n_samples), np.float32)
    for i, row in enumerate(rows):
        signal_mv = store.signal_mv(int(row))[:, :n_samples]
        batch[i, :, : signal_mv.shape[1]] = signal_mv
    return batch


class EcgTextDataset(Dataset):
    """Pairs of ECG and report: row of the store, entity labels, row of the table of report vectors."""

    def __init__(self, data: Pretraining, permute_entities: bool = False, seed: int = 0):
        self.data = data
        self.labels = data.entities.labels
        if permute_entities:
            self.labels = self.labels[np.random.default_rng(seed).permutation(len(self.labels))]

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, i: int) -> int:
        return i


class Collator:
    """Indices -> batch for the model: ecg float32 [B, 12, T] in mV, text [B, d_text], entities int8 [B, E]."""

    def __init__(self, dataset: EcgTextDataset, n_samples: int):
        self.dataset, self.n_samples = dataset, n_samples
        self.vectors = torch.from_numpy(dataset.data.text_vectors)
        self.queries = torch.from_numpy(dataset.data.entity_vectors)

    def __call__(self, items: list[int]) -> dict[str, torch.Tensor]:
        data = self.dataset.data
        return {
            "ecg": torch.from_numpy(read_mv(data.records.store, data.rows[items], self.n_samples)),
            "text": self.vectors[data.text_of[items]],
            "entities": torch.from_numpy(self.dataset.labels[items]),
            "queries": self.queries,
        }


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
