"""Signal perturbation, the third task of MEIT: the published noise and a true signal-to-noise sweep.

Each record draws from its own generator, seeded by (seed, record id), so it gets the same noise whatever the batch it
comes in. The level (`p`, `snr_db`) is not part of the seed: a sweep over levels compares the same noise, only
stronger or longer, which takes sampling noise out of the comparison.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

PUBLISHED_MAX_SIGMA = 0.1  # of a record scaled to [0, 1]


def _generator(seed: int, record_id: str) -> np.random.Generator:
    digest = hashlib.sha256(str(record_id).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _check(signals: np.ndarray, record_ids: Sequence[str]) -> None:
    if signals.ndim != 3 or len(signals) != len(record_ids):
        raise ValueError(
            f"signals must be [B, leads, T] with one record id each: shape {signals.shape}, {len(record_ids)} ids"
        )


def published(ecg: np.ndarray, record_ids: Sequence[str], p: float, seed: int = 0) -> np.ndarray:
    """The perturbation of the public code: one noise burst, the same trace on all leads.

    ecg: [B, 12, T] min-max normalised to [0, 1] (the noise is scaled for that range). p: upper bound of the noisy
    fraction of the record, 0 to 0.2 in the paper, where figures call it SNR; it is none. Window length
    int(U(0, p) * T), uniform start, sigma ~ U(0, 0.1). Returns a copy, same dtype; samples
    outside the window are untouched.
    """
    _check(ecg, record_ids)
    if not 0 <= p <= 1:
        raise ValueError(f"p is a fraction of the record, 0 to 1: {p}")
    out = ecg.copy()
    n = ecg.shape[2]
    for row, record_id in zip(out, record_ids, strict=True):
        rng = _generator(seed, record_id)
        length = int(rng.uniform() * p * n)
        start = int(rng.uniform() * (n - length + 1))
        sigma = rng.uniform(0, PUBLISHED_MAX_SIGMA)
        row[:, start : start + length] += (sigma * rng.standard_normal(length)).astype(ecg.dtype)
    return out


def at_snr(signal_mv: np.ndarray, record_ids: Sequence[str], snr_db: float, seed: int = 0) -> np.ndarray:
    """Add independent white Gaussian noise to every lead over the whole record, at a true signal-to-noise ratio.

    signal_mv: [B, 12, T]. snr_db: 10 log10(signal power / noise power), met by each lead (and so by the record) exactly
    because the noise is scaled by its own realised power. Signal power is taken about the lead's mean, so that an
    electrode offset does not count as signal; a flat lead has none and stays as it is. Returns a copy, same dtype.
    """
    _check(signal_mv, record_ids)
    out = signal_mv.copy()
    for row, record_id in zip(out, record_ids, strict=True):
        noise = _generator(seed, record_id).standard_normal(row.shape)  # [12, T]
        noise -= noise.mean(-1, keepdims=True)
        noise /= noise.std(-1, keepdims=True)
        sigma_mv = row.std(-1, keepdims=True, dtype=np.float64) * 10 ** (-snr_db / 20)
        row += (sigma_mv * noise).astype(row.dtype)
    return out
