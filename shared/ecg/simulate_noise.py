"""Electrode noise and the twelve leads: what the wire and the skin add to the simulated heart.

Noise lives at the nine electrodes (RA, LA, LL, V1..V6); the limb leads and Wilson's terminal are derived from the noisy
potentials, so I + III = II and aVR + aVL + aVF = 0 hold exactly before quantisation, as in recorded ECGs.
"""

from dataclasses import dataclass

import numpy as np

_WANDER_HZ = np.array([0.07, 0.13, 0.22, 0.31, 0.45, 0.62])


@dataclass(frozen=True)
class NoiseLevels:
    """Medians over records of a hospital. wander_mv, muscle_mv, mains_mv: RMS at one electrode; mains_hz: 50 or 60;
    motion_rate, dropout_rate: share of records with an electrode that moves, or loses contact for 1 to 3 s."""

    wander_mv: float
    muscle_mv: float
    mains_mv: float
    mains_hz: float
    motion_rate: float
    dropout_rate: float


def electrode_noise(n: int, n_samples: int, fs_hz: float, levels: NoiseLevels, rng) -> np.ndarray:
    """Noise potentials [n, 9, n_samples] in mV; electrodes RA, LA, LL, V1..V6."""
    t = np.arange(n_samples) / fs_hz
    white = rng.standard_normal((n, 9, n_samples), dtype=np.float32)
    # muscle: broad-band, so a 100 Hz file, low-pass filtered at 50 Hz, holds less of it
    share = np.sqrt(min(1.0, fs_hz / 300))
    muscle = levels.muscle_mv * share * np.exp(0.5 * rng.standard_normal((n, 1)) + 0.3 * rng.standard_normal((n, 9)))
    noise = white * muscle[:, :, None]
    basis = 2 * np.pi * np.outer(_WANDER_HZ, t)
    basis = np.concatenate([np.sin(basis), np.cos(basis)])  # [12, n_samples]
    weights = rng.standard_normal((n, 9, 12)) + rng.standard_normal((n, 1, 12))
    weights *= np.tile(1 / (1 + _WANDER_HZ / 0.2), 2) / 3.2
    weights *= levels.wander_mv * np.exp(0.7 * rng.standard_normal((n, 1, 1)))
    noise += (weights.reshape(9 * n, 12) @ basis).reshape(noise.shape)
    if levels.mains_hz < fs_hz / 2.2:
        mains = levels.mains_mv * np.exp(0.6 * rng.standard_normal((n, 1))) * rng.standard_normal((n, 9))
        hum = np.sin(2 * np.pi * (levels.mains_hz * t + rng.random((n, 1))))
        noise += mains[:, :, None] * hum[:, None]
    for i in np.flatnonzero(rng.random(n) < levels.motion_rate):
        electrode, at, width = rng.integers(9), rng.uniform(0, 10), rng.uniform(0.08, 0.35)
        bump = np.exp(-0.5 * ((t - at) / width) ** 2) * (1 - 1.4 * (t > at))
        noise[i, electrode] += rng.choice([-1, 1]) * rng.uniform(0.3, 0.9) * bump
    return noise


def twelve_leads(eight_mv: np.ndarray, noise_mv: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """[n, 8, T] (I, II, V1..V6) and electrode noise [n, 9, T] -> float32 [n, 12, T] in the order of `LEADS`.

    lost: int [n, 3] from `lost_electrodes`; a chest lead without contact shows noise around zero meanwhile.
    """
    n, _, n_samples = eight_mv.shape
    ra, la, ll = noise_mv[:, 0], noise_mv[:, 1], noise_mv[:, 2]
    leads = np.empty((n, 12, n_samples), np.float32)
    one, two = eight_mv[:, 0] + la - ra, eight_mv[:, 1] + ll - ra
    leads[:, 0], leads[:, 1] = one, two
    leads[:, 2] = two - one
    leads[:, 3] = -0.5 * (one + two)
    leads[:, 4] = one - 0.5 * two
    leads[:, 5] = two - 0.5 * one
    leads[:, 6:] = eight_mv[:, 2:] + noise_mv[:, 3:] - ((ra + la + ll) / 3)[:, None]
    for i in np.flatnonzero(lost[:, 0] >= 0):
        chest, first, last = lost[i]
        leads[i, 6 + chest, first:last] = 0.3 * noise_mv[i, 3 + chest, first:last]
    return leads


def lost_electrodes(n: int, n_samples: int, rate: float, rng) -> np.ndarray:
    """int [n, 3]: chest electrode (0..5, or -1 for none), first and last sample of the gap."""
    chest = np.where(rng.random(n) < rate, rng.integers(0, 6, n), -1)
    first = (rng.uniform(0, 0.7, n) * n_samples).astype(int)
    return np.stack([chest, first, first + (rng.uniform(0.1, 0.3, n) * n_samples).astype(int)], 1)
