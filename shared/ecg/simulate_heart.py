"""Findings -> waves: the physiology of the simulated ECGs.

A healthy beat is drawn per patient; conduction, infarction, ischaemia, hypertrophy and the rest then change its
kernels as a cardiologist expects. Amounts are dipoles in mV along Frank's axes (x left, y foot, z back) and, where a
lesion lies under them, potentials at V1..V6. Serves the embedded ECG data of MEIT, K-MERL and SuPreME.
"""

import numpy as np

from shared.ecg.simulate_rhythm import Beats, Flags, beat_clock
from shared.ecg.simulate_waves import DOWER, KERNEL_INDEX, KERNELS, LOCAL_MV, Patients, Waves


def _frontal(torso: np.ndarray, amplitude_mv, axis_deg) -> tuple[np.ndarray, np.ndarray]:
    """Dipole x, y [n] that this torso shows as a wave of that size and axis in the limb leads (at z = 0)."""
    gain = np.linalg.norm(torso, axis=(1, 2)) / np.linalg.norm(DOWER)
    lead_1, avf = torso[:, 0], torso[:, 1] - 0.5 * torso[:, 0]
    matrix = np.stack([lead_1[:, :2], avf[:, :2]], 1)  # [n, 2, 2]
    angle = np.deg2rad(axis_deg)
    wanted = np.stack([np.cos(angle), np.sqrt(0.75) * np.sin(angle)], -1) * (np.asarray(amplitude_mv) * gain)[:, None]
    xy = np.linalg.solve(matrix, wanted[..., None])[..., 0]
    return xy[:, 0], xy[:, 1]


def _axis(flags: Flags, patients: Patients, rng: np.random.Generator) -> np.ndarray:
    """Frontal QRS axis in degrees [n]."""
    n, axis = len(flags), patients.axis_deg
    axis = np.where(flags.has("lbbb", "incomplete_lbbb"), rng.uniform(-10, 35, n), axis)
    axis = np.where(flags.has("left_axis_deviation"), rng.uniform(-48, -36, n), axis)
    axis = np.where(flags.has("lafb"), rng.uniform(-72, -54, n), axis)
    axis = np.where(flags.has("right_axis_deviation"), rng.uniform(98, 115, n), axis)
    axis = np.where(flags.has("lpfb", "rvh"), rng.uniform(100, 116, n), axis)
    return np.where(flags.has("paced_rhythm"), rng.uniform(-80, -60, n), axis)


def _normal_beat(waves: Waves, patients: Patients, beats: Beats, axis, rng: np.random.Generator) -> np.ndarray:
    """P, QRS and T of a healthy heart. Returns the width factor of the QRS [n]."""
    n, all_ = len(axis), np.ones(len(axis), bool)
    width = np.clip(1 + 0.06 * rng.standard_normal(n), 0.88, 1.12)
    p_size = 1.15 * np.exp(0.15 * rng.standard_normal(n))
    waves.put(all_, "p1", 34, 15, 0.035 * p_size, 0.085 * p_size, -0.055 * p_size)
    waves.put(all_, "p2", 62, 15, 0.075 * p_size, 0.050 * p_size, 0.035 * p_size)
    waves.put(all_, "pe", 40, 16, 0.03 * p_size, -0.12 * p_size, 0.05 * p_size)  # low atrial: negative in II
    x1, y1 = _frontal(patients.torso, 0.80 * np.exp(0.12 * rng.standard_normal(n)), axis)
    x2, y2 = _frontal(patients.torso, 0.60 * np.exp(0.15 * rng.standard_normal(n)), axis + 8)
    back = np.exp(0.2 * rng.standard_normal(n))
    waves.put(all_, "q", 17 * width, 6.5 * width, -0.15, -0.01, -0.30)
    waves.put(all_, "r1", 36 * width, 8.0 * width, x1, y1, 0.02)
    waves.put(all_, "r2", 51 * width, 8.5 * width, x2, y2, 0.78 * back)
    waves.put(all_, "s", 68 * width, 8.0 * width, -0.13, -0.10, 0.45 * back)
    waves.put(all_, "x", 90 * width, 10.0 * width, 0.0, 0.0, 0.0)
    tx, ty = _frontal(patients.torso, 0.26 * np.exp(0.2 * rng.standard_normal(n)), np.clip(0.7 * axis + 12, 5, 70))
    waves.put(all_, "t", x=tx, y=ty, z=-0.17 * np.exp(0.25 * rng.standard_normal(n)))
    return width


def _conduction(waves: Waves, flags: Flags, patients: Patients, axis, width, rng) -> np.ndarray:
    """Bundle branches, fascicles, accessory pathway, pacing. Returns the QRS duration in ms [n]."""
    n, duration, paced = len(axis), 92 * width, flags.has("paced_rhythm")
    for name, low, high in (("lbbb", 138, 165), ("incomplete_lbbb", 108, 117), ("paced_rhythm", 145, 178)):
        mask, asked = flags.has(name), rng.uniform(low, high, n)
        f = asked / 156
        x1, y1 = _frontal(patients.torso, np.where(mask & paced, 0.85, 0.58), axis)
        waves.put(mask, "q", 20 * f, 8 * f, 0.10, 0.08, 0.05)  # no septal q in I, V5, V6
        waves.put(mask, "r1", 48 * f, 17 * f, x1, y1, 0.75)
        waves.put(mask, "x", 74 * f, 7 * f, -0.08 * x1, -0.08 * y1, 0.1)  # the notch
        waves.put(mask, "r2", 96 * f, 17 * f, 1.1 * x1, 1.05 * y1, 0.80)
        waves.put(mask, "s", 130 * f, 11 * f, 0.25 * x1, 0.2 * y1, 0.25)
        waves.add(mask * 1.0, "r1", V5=0.35, V6=0.5)
        waves.add(mask * 1.0, "r2", V4=0.2, V5=0.45, V6=0.55)
        share = np.where(name == "incomplete_lbbb", 0.5, 1.0)
        waves.put(mask, "t", x=-0.42 * x1 * share, y=-0.25 * y1 * share, z=-0.34)  # discordant
        waves.add(mask * share, "t", V5=-0.12, V6=-0.15)
        waves.add(mask * share, "st", x=-0.06, z=-0.14)
        duration = np.where(mask, asked, duration)
    waves.put(paced, "spike", 0, 1.2, 0.7, 1.3, 0.3)
    for name, low, high, size in (("rbbb", 128, 152, 1.0), ("incomplete_rbbb", 106, 116, 0.6)):
        mask, asked = flags.has(name), rng.uniform(low, high, n)
        late, sigma = asked - 30 * asked / 140, 14 * asked / 140
        waves.put(mask, "x", late, sigma, -0.58 * size, 0.05, -0.55 * size)
        waves.add(mask * size, "x", V1=0.30, V2=0.10)
        waves.put(mask, "s", 66, 8, -0.05, -0.02, 0.20)
        waves.scale(np.where(mask, 0.75, 1.0), "r2")
        waves.add(mask * size, "t", z=0.26, V1=-0.05)
        duration = np.where(mask, asked, duration)
    lafb, lpfb = flags.has("lafb"), flags.has("lpfb")
    waves.put(lafb, "q", 18, 7, -0.20, 0.20, -0.18)  # first down and right: q in I and aVL, r in II, III, aVF
    waves.put(lpfb, "s", x=0.0, y=0.02)
    waves.put(lpfb, "q", 18, 7, 0.15, -0.18, -0.18)  # first up and left: r in I and aVL, q in III and aVF
    turned = flags.has("lpfb", "right_axis_deviation")
    waves.add(turned * 1.0, "r1", V4=0.3, V5=0.6, V6=0.6)  # left chest leads keep their R
    duration = np.where(lafb | lpfb, np.maximum(duration, 98), duration)
    duration = _slow_or_early(waves, flags, width, duration, rng)
    return duration


def _slow_or_early(waves: Waves, flags: Flags, width, duration, rng) -> np.ndarray:
    """Nonspecific conduction delay (stretched, notched QRS) and WPW (delta wave before a widened QRS)."""
    n, qrs = len(width), [KERNEL_INDEX[name] for name in ("q", "r1", "r2", "s")]
    ivcd, asked = flags.has("ivcd"), rng.uniform(120, 140, n)
    stretch = np.where(ivcd, asked / duration, 1.0)[:, None]
    for array in (waves.centre_s, waves.left_s, waves.right_s):
        array[:, qrs] *= stretch
    k1, k2 = waves.dipole_mv[:, KERNEL_INDEX["r1"]], waves.dipole_mv[:, KERNEL_INDEX["r2"]]
    notch = np.where(ivcd[:, None], -0.50 * (k1 + k2) / 2, waves.dipole_mv[:, KERNEL_INDEX["x"]])
    waves.dipole_mv[:, KERNEL_INDEX["x"]] = notch
    waves.put(ivcd, "x", 44 * asked / 92, 6)
    duration = np.where(ivcd, asked, duration)

    wpw, delta_ms = flags.has("wpw"), 28.0
    waves.centre_s[:, qrs] += np.where(wpw, delta_ms / 1000, 0.0)[:, None]
    right_sided = rng.random(n) < 0.5  # pathway side: delta negative or positive in V1
    waves.put(wpw, "q", x=0.0, y=0.0, z=0.0)
    dx, dy = 0.32 * k1[:, 0] + 0.10, 0.32 * k1[:, 1] + 0.04
    waves.put(wpw, "x", 34, 14, dx, dy, np.where(right_sided, 0.25, -0.45), right_ms=20)
    waves.add(wpw * 1.0, "t", x=-0.25, y=-0.20, z=0.05)
    return np.where(wpw, duration + delta_ms, duration)


def _hypertrophy(waves: Waves, flags: Flags) -> None:
    """Ventricular hypertrophy, atrial enlargement, low voltage."""
    lvh = flags.amount("lvh")
    waves.add(lvh, "r1", x=0.55, z=0.05, V5=0.45, V6=0.30)
    waves.add(lvh, "r2", x=0.35, z=0.60, V1=-0.25, V2=-0.2, V5=0.25)
    waves.add(lvh, "t", x=-0.32, y=-0.04, z=-0.05, V5=-0.12, V6=-0.12)  # strain
    waves.add(lvh, "st", x=-0.09, z=-0.03, V6=-0.03)
    rvh = flags.has("rvh")
    for name, z in (("r1", -0.55), ("r2", -0.45)):
        waves.put(rvh, name, z=z)
    rvh_size = flags.amount("rvh")
    waves.add(rvh_size, "r1", V1=0.35, V2=0.1, V5=-0.1, V6=-0.1)
    waves.add(rvh_size, "s", x=-0.30, z=-0.30, V5=-0.35, V6=-0.35)
    waves.add(rvh_size, "t", z=0.24, V1=-0.12, V2=-0.06)
    lae, rae = flags.amount("left_atrial_enlargement"), flags.amount("right_atrial_enlargement")
    waves.put(lae > 0, "p1", 34, 14)
    waves.put(lae > 0, "p2", 88, 19)  # P of 130 ms, notched in II, deep terminal part in V1
    waves.add(lae, "p2", x=0.05, y=0.06, z=0.10, V1=-0.05)
    waves.add(rae, "p1", x=0.02, y=0.22, z=-0.06, V1=0.04)
    low = flags.has("low_voltage")
    weak = np.where(low, 0.30 - 0.06 * (flags.amount("low_voltage") - 1), 1.0)
    waves.scale(weak, "q", "r1", "r2", "s", "x", "v1", "v2", "v3", "l1", "l2", "l3", "l4")
    waves.scale(np.where(low, 0.55, 1.0), "t", "p1", "p2", "vt")


def _infarction(waves: Waves, flags: Flags, patients: Patients, rng) -> None:
    """Pathological Q waves by territory; T inversion when old, ST elevation with a tall T when acute."""
    acute = np.where(flags.has("acute_mi"), 1.0, 0.0)
    inverted = np.where((acute == 0) & (rng.random(len(flags)) < 0.75), 1.0, 0.0)
    a, s = flags.amount("anterior_mi"), flags.amount("septal_mi")
    i, lat = flags.amount("inferior_mi"), flags.amount("lateral_mi")
    q_wave = flags.has("anterior_mi", "inferior_mi", "lateral_mi")
    waves.put(q_wave, "q", 20, 11)  # 40 ms and more
    waves.add(a, "q", z=0.20, V2=-0.20, V3=-0.50, V4=-0.50)
    waves.erase(1.5 * a, "r1", patients, "V2", "V3", "V4")
    waves.erase(1.3 * a, "r2", patients, "V3", "V4")
    waves.add(a, "r1", V2=-0.10, V3=-0.30, V4=-0.25)
    waves.add(a * inverted, "t", V2=-0.45, V3=-0.80, V4=-0.65)
    waves.add(a * acute, "st", V1=0.08, V2=0.28, V3=0.38, V4=0.30)
    waves.add(a * acute, "t", V2=0.2, V3=0.3, V4=0.25)
    for name in ("q", "r1"):
        waves.erase(1.5 * s, name, patients, "V1", "V2")
    waves.add(s, "q", V1=-0.20, V2=-0.28)
    waves.add(s, "r1", V1=-0.15, V2=-0.25)
    waves.add(s * inverted, "t", V1=-0.12, V2=-0.45)
    waves.add(s * acute, "st", V1=0.20, V2=0.30)
    waves.add(i, "q", y=-0.55)
    waves.add(i, "r1", y=-0.15)
    waves.add(i * inverted, "t", y=-0.36)
    waves.add(i * acute, "st", x=-0.08, y=0.24)  # reciprocal depression in I and aVL
    waves.add(i * acute, "t", y=0.15)
    waves.add(lat, "q", x=-0.55, V5=-0.05, V6=-0.12)
    waves.add(lat, "r1", x=-0.22, V5=-0.20, V6=-0.25)
    waves.add(lat * inverted, "t", x=-0.50)
    waves.add(lat * acute, "st", x=0.24, y=-0.05)


def _repolarisation(waves: Waves, flags: Flags) -> None:
    """Ischaemia, ST and T changes without infarction. ST amounts in mV at the leads named."""
    a, i, lat = (flags.amount(f"{where}_ischemia") for where in ("anterior", "inferior", "lateral"))
    waves.add(a, "st", V2=-0.13, V3=-0.18, V4=-0.16)
    waves.add(a, "t", V1=-0.10, V2=-0.60, V3=-0.80, V4=-0.62)
    waves.add(i, "st", y=-0.13)
    waves.add(i, "t", y=-0.36)
    waves.add(lat, "st", x=-0.15)
    waves.add(lat, "t", x=-0.52)
    waves.add(flags.amount("st_depression"), "st", x=-0.13, y=-0.11, z=-0.02, V4=-0.05, V5=-0.05)
    elevation = flags.amount("st_elevation")
    waves.add(elevation, "st", V1=0.12, V2=0.24, V3=0.26, V4=0.14)
    waves.add(elevation, "t", V2=0.10, V3=0.10)
    inversion = flags.amount("t_wave_inversion")
    waves.scale(np.where(inversion > 0, -0.9 * inversion, 1.0), "t")
    waves.scale(np.where(flags.has("t_wave_abnormality"), 0.12, 1.0), "t")
    early = flags.amount("early_repolarization")
    waves.add(early, "j", x=0.16, y=0.14, V4=0.06, V5=0.06)
    waves.add(early, "st", x=0.06, y=0.07, z=-0.06, V3=0.05, V4=0.06)
    waves.add(early, "t", x=0.14, y=0.10, z=-0.10)


def _local_sources(waves: Waves, patients: Patients, duration_ms, qt_ms) -> None:
    """Muscle under V1..V6, with times of its own; more of it where conduction is slow."""
    slow, all_ = duration_ms / 92, np.ones(len(duration_ms), bool)
    for name, at, width_ms, size in (("l1", 0.22, 5.5, 1.0), ("l2", 0.45, 5.5, 1.4), ("l3", 0.70, 6.5, 1.2)):
        k = KERNEL_INDEX[name]
        waves.put(all_, name, at * duration_ms, width_ms * slow)
        waves.local_mv[:, k, 2:] = LOCAL_MV * size * slow[:, None] * patients.local[:, 2:, k]
    waves.put(all_, "l4", qt_ms - 35, 28)
    waves.local_mv[:, KERNEL_INDEX["l4"], 2:] = 0.35 * LOCAL_MV * patients.local[:, 2:, KERNEL_INDEX["l4"]]


def _timing(waves: Waves, flags: Flags, beats: Beats, duration_ms, rng) -> np.ndarray:
    """Place J point, ST and T by the QT interval (Fridericia). Returns QT in ms [n]."""
    n = len(duration_ms)
    qtc = rng.uniform(385, 430, n)
    qtc = np.where(flags.has("long_qt"), 500 + 45 * flags.amount("long_qt"), qtc)
    qt = qtc * np.cbrt(np.clip(beats.rr_s, 0.27, 1.5)) + 0.6 * np.maximum(duration_ms - 100, 0)
    shape = (qt - duration_ms) / 310
    right = 33 * shape
    peak = qt - 2.1 * right
    end = duration_ms - 4
    all_ = np.ones(n, bool)
    waves.put(all_, "t", peak, 52 * shape, right_ms=right)
    waves.put(all_, "j", end, 9)
    waves.put(all_, "st", (end + peak) / 2, np.maximum((peak - end) / 2 + 8, 20))
    return qt


def _ectopic_beat(waves: Waves, flags: Flags, rng) -> None:
    """A ventricular premature beat: 150 ms wide, from either ventricle, T against it."""
    n = len(flags)
    side = np.where(rng.random(n) < 0.6, 1.0, -1.0)  # 1: from the right ventricle, looks like left bundle branch block
    x, y, z = 0.55 * side * rng.uniform(0.7, 1.3, n), rng.uniform(-0.9, 0.9, n), 0.75 * side * rng.uniform(0.7, 1.3, n)
    all_ = np.ones(n, bool)
    waves.put(all_, "v1", 45, 17, 0.7 * x, y, 0.6 * z)
    waves.put(all_, "v2", 88, 19, 1.1 * x, 0.9 * y, 1.1 * z)
    waves.put(all_, "v3", 130, 13, -0.2 * x, -0.3 * y, 0.25 * z)
    waves.put(all_, "vt", 305, 58, -0.5 * x, -0.5 * y, -0.5 * z, right_ms=42)


def build(flags: Flags, patients: Patients, rng: np.random.Generator) -> tuple[Beats, Waves]:
    """Beat times and wave shapes of n records that show the flagged findings."""
    n, kernels = len(flags), len(KERNELS)
    beats = beat_clock(flags, rng)
    times = (np.full((n, kernels), 0.01) for _ in range(3))
    waves = Waves(*times, np.zeros((n, kernels, 3)), np.zeros((n, kernels, 8)))
    axis = _axis(flags, patients, rng)
    width = _normal_beat(waves, patients, beats, axis, rng)
    _ectopic_beat(waves, flags, rng)
    duration = _conduction(waves, flags, patients, axis, width, rng)
    _infarction(waves, flags, patients, rng)
    _repolarisation(waves, flags)
    qt = _timing(waves, flags, beats, duration, rng)
    _local_sources(waves, patients, duration, qt)
    _hypertrophy(waves, flags)
    retrograde = flags.has("supraventricular_tachycardia")
    waves.add(retrograde * 1.0, "s", V1=0.12)  # pseudo-r' of a retrograde P just after the QRS
    fibrillation = flags.amount("atrial_fibrillation") * rng.uniform(0.7, 1.3, n)
    waves.add(fibrillation, "f1", x=0.01, y=0.05, z=-0.05, V1=0.03)
    waves.add(fibrillation, "f2", x=-0.02, y=0.03, z=-0.05, V1=0.03, V2=0.02)
    waves.add(flags.amount("atrial_flutter"), "f1", x=0.01, y=-0.135, z=-0.04, V1=0.04)
    p_width = np.where(flags.has("left_atrial_enlargement"), 132, 96)
    waves.measures = {
        "rr_ms": beats.rr_s * 1000, "pr_ms": beats.pr_s * 1000, "p_ms": p_width, "qrs_ms": duration, "qt_ms": qt,
        "axis_deg": axis, "has_p": np.isfinite(beats.p_s).any(1) * 1.0, "wenckebach": beats.wenckebach * 1.0,
    }  # fmt: skip
    return beats, waves
