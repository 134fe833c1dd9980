"""Dataset and collator: signals in mV from the memory-mapped stores, labels with their mask, cached text vectors."""

import numpy as np
import torch
from torch.utils.data import Dataset

from shared.ecg.downstream import read_mv
from supreme.prep import Pretraining


class EcgDataset(Dataset):
    """Indices of training records; the collator reads."""

    def __init__(self, data: Pretraining):
        self.data = data

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, i: int) -> int:
        return i


class Collator:
    """Indices -> batch for any model: ecg float32 [B, 12, T] in mV, y float32 and mask bool [B, L], queries float32
    [L, d_text] (vectors of the terms), text [B, d_text] (of the reports), patient int64 [B]."""

    def __init__(self, data: Pretraining, n_samples: int):
        self.data, self.n_samples = data, n_samples
        self.vectors = torch.from_numpy(data.text_vectors)
        self.queries = torch.from_numpy(data.term_vectors)
        self.patients = torch.from_numpy(np.asarray(data.patients, dtype=np.int64))

    def __call__(self, items: list[int]) -> dict[str, torch.Tensor]:
        data = self.data
        ecg = np.zeros((len(items), 12, self.n_samples), np.float32)
        for number in np.unique(data.store_of[items]):
            chosen = np.flatnonzero(data.store_of[items] == number)
            ecg[chosen] = read_mv(data.stores[number], data.rows[items][chosen], self.n_samples)
        return {
            "ecg": torch.from_numpy(ecg),
            "y": torch.from_numpy(data.y[items]),
            "mask": torch.from_numpy(data.mask[items]),
            "queries": self.queries,
            "text": self.vectors[data.text_of[items]],
            "patient": self.patients[items],
        }
