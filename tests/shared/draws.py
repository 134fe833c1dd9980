"""The bootstrap's draws as item weights, for what resamples by brute force."""

import numpy as np

from shared.metrics import interval


def bootstrap_weights(patient_ids, n_boot: int, seed: int) -> np.ndarray:
    """Item weights [n_boot, n_items]: patients drawn with replacement, each bringing all of its items."""
    index, n_patients = interval._patients(patient_ids)
    return np.concatenate([d[:, index] for d in interval._patient_draws(n_patients, len(index), n_boot, seed)])
