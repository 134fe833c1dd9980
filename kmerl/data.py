"""Datasets and collator: signals in mV from the memory-mapped store, entity labels, one cached vector per report."""

import numpy as np
import torch
from torch.utils.data import Dataset

from kmerl.prep import Pretraining
from shared.ecg.downstream import read_mv


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
