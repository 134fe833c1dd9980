"""Waves in a torso: kernels with a dipole and local sources, and the 8 independent leads that they draw.

Every wave is a Gaussian kernel in time (McSharry 2003; Sameni 2007) with a dipole vector in space, seen through the
Dower matrix, perturbed per patient, plus a local source under each precordial electrode: a pure dipole has rank 3, and
any three leads would then determine all twelve. What the waves are in health and disease: `simulate_heart`.
"""

from dataclasses import dataclass, field

import numpy as np

from shared.ecg.simulate_rhythm import STRIP_S, Beats, Flags

# Rows I, II, V1..V6; columns Frank x (left), y (foot), z (back). Dower 1980.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# p1 p2: right and left atrium; pe: ectopic P. q r1 r2 s: the four parts of a QRS; x: what a lesion adds (delta wave,
# R' of a block, notch). j: J-point notch. st: flat-topped ST segment. t. v1 v2 v3 vt: a ventricular ectopic beat.
# spike: pacemaker. l1 .. l4: the muscle right under the chest electrodes, depolarised and
# repolarised in turn. f1 f2: atrial activity of fibrillation and flutter, not tied to a beat.
KERNELS = ("p1", "p2", "pe", "q", "r1", "r2", "s", "x", "j", "st", "t", "v1", "v2", "v3", "vt", "spike", "l1", "l2",
           "l3", "l4", "f1", "f2")  # fmt: skip
KERNEL_INDEX = {name: i for i, name in enumerate(KERNELS)}
_BEAT_KIND = {"p1": "p_s", "p2": "p_s", "pe": "ectopic_p_s", "v1": "pvc_s", "v2": "pvc_s", "v3": "pvc_s", "vt": "pvc_s"}
# Local sources under an electrode: share of the dipole's strength, and mV of their own in l1 .. l4. Together they put a
# median of 2.3 % of the energy outside rank 3, as in PTB-XL.
LOCAL_SPREAD, LOCAL_MV = 0.18, 1.7


@dataclass
class Patients:
    """What stays with a person: torso [n, 8, 3] (lead fields), local [n, 8, K], axis_deg, age, male [n]."""

    torso: np.ndarray
    local: np.ndarray
    axis_deg: np.ndarray
    age: np.ndarray
    male: np.ndarray

    def take(self, index: np.ndarray) -> "Patients":
        return Patients(*(getattr(self, name)[index] for name in ("torso", "local", "axis_deg", "age", "male")))


@dataclass
class Waves:
    """Kernels of n records: centre and left/right width in s after the beat's onset [n, K]; dipole [n, K, 3] and
    local [n, K, 8] in mV. `measures`: what an ECG machine would print, [n] each."""

    centre_s: np.ndarray
    left_s: np.ndarray
    right_s: np.ndarray
    dipole_mv: np.ndarray
    local_mv: np.ndarray
    measures: dict = field(default_factory=dict)

    def put(self, mask, name, centre_ms=None, width_ms=None, x=None, y=None, z=None, right_ms=None):
        """Overwrite what is given of one kernel where `mask`; scalars or [n]."""
        k = KERNEL_INDEX[name]
        if centre_ms is not None:
            self.centre_s[:, k] = np.where(mask, np.asarray(centre_ms) / 1000, self.centre_s[:, k])
        if width_ms is not None:
            self.left_s[:, k] = np.where(mask, np.asarray(width_ms) / 1000, self.left_s[:, k])
            right = width_ms if right_ms is None else right_ms
            self.right_s[:, k] = np.where(mask, np.asarray(right) / 1000, self.right_s[:, k])
        for axis, value in enumerate((x, y, z)):
            if value is not None:
                self.dipole_mv[:, k, axis] = np.where(mask, value, self.dipole_mv[:, k, axis])

    def add(self, amount, name, x=0.0, y=0.0, z=0.0, **leads_mv):
        """Add a dipole and potentials at named leads (V1..V6), times `amount` [n]."""
        k = KERNEL_INDEX[name]
        self.dipole_mv[:, k] += np.asarray(amount)[:, None] * np.array([x, y, z])
        for lead, value in leads_mv.items():
            self.local_mv[:, k, 1 + int(lead[1])] += amount * value

    def erase(self, amount, name, patients, *leads):
        """Take away the positive deflection of one kernel at chest leads: dead muscle. amount [n]: 1 takes all."""
        k = KERNEL_INDEX[name]
        for lead in leads:
            row = 1 + int(lead[1])
            dipole = self.dipole_mv[:, k]
            seen_mv = np.einsum("nx,nx->n", patients.torso[:, row], dipole) + self.local_mv[:, k, row]
            seen_mv += patients.local[:, row, k] * np.linalg.norm(dipole, axis=1)
            self.local_mv[:, k, row] -= np.clip(amount, 0, 1) * np.maximum(seen_mv, 0)

    def scale(self, factor, *names):
        for name in names:
            self.dipole_mv[:, KERNEL_INDEX[name]] *= np.asarray(factor)[:, None]
            self.local_mv[:, KERNEL_INDEX[name]] *= np.asarray(factor)[:, None]


def draw_patients(n: int, age_mean: float, rng: np.random.Generator) -> Patients:
    """n people: torso, heart position, age in years, sex."""
    gain = np.exp(0.16 * rng.standard_normal(n)).clip(0.75, 1.3)[:, None, None]
    torso = gain * (DOWER * (1 + 0.13 * rng.standard_normal((n, 8, 3))) + 0.05 * rng.standard_normal((n, 8, 3)))
    size = LOCAL_SPREAD * np.exp(0.18 * rng.standard_normal(n))[:, None, None]
    local = rng.standard_normal((n, 8, len(KERNELS)))
    local[:, 3:] = 0.75 * local[:, 3:] + 0.5 * local[:, 2:-1]  # neighbouring electrodes share part of it
    local *= size * np.array([0.25, 0.25, 0.9, 1.3, 1.3, 1.2, 1.0, 0.8])[None, :, None]
    axis = np.clip(45 + 25 * rng.standard_normal(n), -15, 82)
    age = np.clip(age_mean + 17 * rng.standard_normal(n), 18, 95).round()
    return Patients(torso, local, axis, age, rng.random(n) < 0.52)


def _place(times_s, waves: Waves, k: int, n_samples: int, fs_hz: float, antialias_s: float) -> np.ndarray:
    """One kernel at all its beats [n, n_samples]; the ST kernel is flat-topped (power 4), the others Gaussian."""
    n = len(times_s)
    record, beat = np.nonzero(np.isfinite(times_s) & (times_s > -1.2) & (times_s < STRIP_S + 1.2))
    if not len(record):
        return np.zeros((n, n_samples))
    centre = times_s[record, beat] + waves.centre_s[record, k]
    # a narrow wave seen through the anti-aliasing filter: wider, and lower by as much
    left = np.hypot(waves.left_s[record, k], antialias_s)
    right = np.hypot(waves.right_s[record, k], antialias_s)
    height = (waves.left_s[record, k] + waves.right_s[record, k]) / (left + right)
    reach = 1.6 if KERNELS[k] == "st" else 3.4
    first = np.ceil((centre - reach * left) * fs_hz).astype(np.int64)
    steps = np.arange(int(np.ceil(reach * (left + right).max() * fs_hz)) + 1)
    at = first[:, None] + steps  # [beats, window]
    z = at / fs_hz - centre[:, None]
    z /= np.where(z < 0, left[:, None], right[:, None])
    z *= z
    if KERNELS[k] == "st":
        z *= 2 * z
    value = height[:, None] * np.exp(-0.5 * z)
    inside = (at >= 0) & (at < n_samples)
    flat = (record[:, None] * n_samples + at)[inside]
    return np.bincount(flat, value[inside], n * n_samples).reshape(n, n_samples)


def _atrial_activity(flags: Flags, beats: Beats, sources, fs_hz: float, rng) -> None:
    """Fill sources f1, f2 in place: fibrillatory waves (4-9 Hz, wandering) or the flutter sawtooth."""
    n, _, n_samples = sources.shape
    t = np.arange(n_samples) / fs_hz
    phase, rate = rng.random((n, 4)) * 2 * np.pi, rng.uniform(4.8, 7.5, (n, 2))
    wobble, depth = rng.uniform(0.25, 0.9, (n, 2)), rng.uniform(1.0, 3.0, (n, 2))
    for i in np.flatnonzero(flags.has("atrial_fibrillation")):
        for j, name in enumerate(("f1", "f2")):
            angle = 2 * np.pi * rate[i, j] * t + depth[i, j] * np.sin(2 * np.pi * wobble[i, j] * t + phase[i, j])
            swell = 1 + 0.4 * np.sin(2 * np.pi * 0.7 * wobble[i, 1 - j] * t + phase[i, 2 + j])
            sources[i, KERNEL_INDEX[name]] = swell * (np.sin(angle) + 0.35 * np.sin(2 * angle + phase[i, 2]))
    for i in np.flatnonzero(flags.has("atrial_flutter")):
        angle = 2 * np.pi * beats.flutter_hz[i] * (t - np.nanmin(beats.qrs_s[i])) + 1.0
        sources[i, KERNEL_INDEX["f1"]] = np.sin(angle) + 0.42 * np.sin(2 * angle) + 0.2 * np.sin(3 * angle)


def render(flags: Flags, patients: Patients, beats: Beats, waves: Waves, fs_hz: float, rng) -> np.ndarray:
    """The 8 independent leads I, II, V1..V6 without noise: [n, 8, STRIP_S * fs_hz] in mV."""
    n, n_samples = len(flags), round(STRIP_S * fs_hz)
    sources = np.zeros((n, len(KERNELS), n_samples))
    used = np.abs(waves.dipole_mv).max(-1) + np.abs(waves.local_mv).max(-1) > 0  # [n, K]
    for k, name in enumerate(KERNELS[:-2]):
        times = getattr(beats, _BEAT_KIND.get(name, "qrs_s"))
        times = np.where(used[:, k, None], times, np.nan)
        # a spike of 1 ms must still show between samples of 10 ms
        antialias_s = 0.0 if fs_hz >= 400 else (0.4 if name == "spike" else 0.2) / fs_hz
        sources[:, k] = _place(times, waves, k, n_samples, fs_hz, antialias_s)
    _atrial_activity(flags, beats, sources, fs_hz, rng)
    strength = np.linalg.norm(waves.dipole_mv, axis=-1)  # [n, K]
    mixing = np.einsum("nlx,nkx->nlk", patients.torso, waves.dipole_mv) + waves.local_mv.transpose(0, 2, 1)
    mixing = mixing + patients.local * strength[:, None]
    return np.matmul(mixing, sources)
