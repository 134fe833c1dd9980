"""When the chambers beat: P and QRS times of simulated ECGs, for every rhythm that `codes.py` names.

A sinus (or atrial, or ventricular) clock is drawn per record; ectopy, AV block and pacing then edit it. Everything is
vectorised over records. Serves the embedded ECG data of MEIT, K-MERL and SuPreME.
"""

from dataclasses import dataclass

import numpy as np

MAX_BEATS = 56  # 10 s at 230/min, with a margin on both sides of the strip
STRIP_S = 10.0  # every hospital here stores ten seconds

# Ventricular rate (atrial rate in AV block), beats/min: low, high. Clinical cut-offs at 60 and 100 are kept clear of.
_RATES = {
    "sinus_rhythm": (62, 96),
    "sinus_bradycardia": (38, 56),
    "sinus_tachycardia": (105, 145),
    "sinus_arrhythmia": (62, 84),
    "atrial_fibrillation": (58, 135),
    "atrial_flutter": (70, 155),
    "supraventricular_tachycardia": (152, 194),
    "junctional_rhythm": (38, 58),
    "paced_rhythm": (60, 82),
}


class Flags:
    """Which record shows which finding, and how strongly. present: bool [n, F]; strength: float [n, F], 1 = typical."""

    def __init__(self, names: tuple[str, ...], present: np.ndarray, strength: np.ndarray):
        self.names, self.present, self.strength = names, present, strength
        self._column = {name: i for i, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.present)

    def has(self, *names: str) -> np.ndarray:
        """bool [n]: any of the names."""
        return self.present[:, [self._column[name] for name in names]].any(1)

    def amount(self, name: str) -> np.ndarray:
        """float [n]: strength where present, 0 elsewhere."""
        column = self._column[name]
        return np.where(self.present[:, column], self.strength[:, column], 0.0)


@dataclass
class Beats:
    """Beat clock of n records; times in seconds from the start of the strip, NaN in unused slots.

    p_s: onset of sinus P waves; ectopic_p_s: onset of P waves of premature atrial complexes; qrs_s: onset of QRS
    complexes conducted normally; pvc_s: onset of ventricular premature ones [n, MAX_BEATS each].
    rr_s, pr_s: the record's typical RR and PR interval [n]. flutter_hz: atrial rate of flutter [n]. wenckebach: bool
    [n], the PR interval grows before each dropped beat.
    """

    p_s: np.ndarray
    ectopic_p_s: np.ndarray
    qrs_s: np.ndarray
    pvc_s: np.ndarray
    rr_s: np.ndarray
    pr_s: np.ndarray
    flutter_hz: np.ndarray
    wenckebach: np.ndarray


def _rr_intervals(flags: Flags, rr_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RR intervals [n, MAX_BEATS]: respiratory and slow variability; AF draws every interval anew (CV about 0.22)."""
    n, beat = len(flags), np.arange(MAX_BEATS)
    breaths_per_beat = rr_s * rng.uniform(0.2, 0.32, n)
    depth = rng.uniform(0.008, 0.03, n)
    depth = np.where(flags.has("sinus_arrhythmia"), rng.uniform(0.14, 0.22, n), depth)
    steady = flags.has("paced_rhythm", "supraventricular_tachycardia", "atrial_flutter", "junctional_rhythm")
    steady |= flags.has("sinus_tachycardia", "av_block_2", "av_block_3")
    depth = np.where(steady, 0.004, depth)
    swing = np.sin(2 * np.pi * (breaths_per_beat[:, None] * beat + rng.random(n)[:, None]))
    jitter = rng.standard_normal((n, MAX_BEATS)) * np.where(steady, 0.003, 0.010)[:, None]
    regular = rr_s[:, None] * (1 + depth[:, None] * swing + jitter)
    irregular = np.maximum(rr_s[:, None] * (0.45 + rng.gamma(5.0, 0.11, (n, MAX_BEATS))), 0.30)
    return np.where(flags.has("atrial_fibrillation")[:, None], irregular, regular)


def _ectopic(mask: np.ndarray, period: np.ndarray, jittered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bool [n, MAX_BEATS]: one beat in each run of `period` beats is premature; jittered: not always the same one."""
    beat = np.arange(MAX_BEATS)[None]
    cycle = beat // period[:, None]
    offset = rng.random((len(mask), MAX_BEATS)) * np.maximum(period - 1, 1)[:, None]
    offset = np.take_along_axis(offset, cycle, 1).astype(int)
    offset = np.where(jittered[:, None], offset, (rng.random(len(mask)) * period).astype(int)[:, None])
    return mask[:, None] & (beat % period[:, None] == offset)


def _record_rates(flags: Flags, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Typical RR interval in s and flutter rate in Hz, [n] each."""
    n = len(flags)
    rate = rng.uniform(*_RATES["sinus_rhythm"], n)
    for name, (low, high) in _RATES.items():
        rate = np.where(flags.has(name), rng.uniform(low, high, n), rate)
    slow_arrhythmia = flags.has("sinus_arrhythmia") & flags.has("sinus_bradycardia")
    rate = np.where(slow_arrhythmia, rng.uniform(44, 54, n), rate)
    rate = np.where(flags.has("av_block_3", "av_block_2"), rng.uniform(66, 90, n), rate)
    flutter_hz = rng.uniform(4.6, 5.3, n)  # 276-318 per minute
    ratio = rng.choice([2, 3, 4], n, p=[0.35, 0.2, 0.45])
    rr_s = np.where(flags.has("atrial_flutter"), ratio / flutter_hz, 60 / rate)
    return rr_s, flutter_hz


def _pr_intervals(flags: Flags, rng: np.random.Generator) -> np.ndarray:
    """P onset to QRS onset in s, [n]: 1st degree above 0.2, pre-excitation below 0.12."""
    n = len(flags)
    pr_s = rng.uniform(0.135, 0.180, n)
    pr_s = np.where(flags.has("sinus_tachycardia"), rng.uniform(0.12, 0.15, n), pr_s)
    pr_s = np.where(flags.has("av_block_1"), 0.215 + 0.055 * flags.amount("av_block_1"), pr_s)
    return np.where(flags.has("wpw"), rng.uniform(0.085, 0.105, n), pr_s)


def beat_clock(flags: Flags, rng: np.random.Generator) -> Beats:
    """Draw the beats of every record. Deterministic in `rng`."""
    n, beat = len(flags), np.arange(MAX_BEATS)[None]
    rr_s, flutter_hz = _record_rates(flags, rng)
    pr_s = _pr_intervals(flags, rng)
    rr = _rr_intervals(flags, rr_s, rng)
    # variable conduction in a third of the flutters: 2:1 and 4:1 mixed, always on the flutter clock
    variable = flags.has("atrial_flutter") & (rng.random(n) < 0.33)
    mixed = rng.choice([2, 4], (n, MAX_BEATS), p=[0.4, 0.6]) / flutter_hz[:, None]
    rr = np.where(variable[:, None], mixed, rr)
    locked = flags.has("atrial_flutter") & ~variable
    rr = np.where(locked[:, None], rr_s[:, None], rr)

    beats_in_strip = np.maximum((STRIP_S - 1.5) / rr_s, 4)
    period = np.clip(rng.integers(4, 10, n), 3, (beats_in_strip * 0.5).astype(int)).clip(2)
    period = np.where(flags.has("bigeminy"), 2, np.where(flags.has("trigeminy"), 3, period))
    is_pac = _ectopic(flags.has("pac"), period, np.ones(n, bool), rng)
    early = rng.uniform(0.60, 0.72, n)[:, None]
    rr = np.where(np.roll(is_pac, -1, 1), rr * early, np.where(is_pac, rr * 1.08, rr))  # rr[i]: beat i to beat i + 1

    start = -rng.uniform(0.2, 1.2, n)[:, None] * rr_s[:, None] - rr_s[:, None]
    p_s = start + np.concatenate([np.zeros((n, 1)), np.cumsum(rr, 1)[:, :-1]], 1)
    qrs_s = p_s + pr_s[:, None]

    fixed_pvc = flags.has("bigeminy", "trigeminy")
    is_pvc = _ectopic(flags.has("pvc"), period, ~fixed_pvc, rng) & (beat > 0)
    coupling = np.minimum(rng.uniform(0.56, 0.66, n) * rr_s, 0.58)
    # early beat, then the next sinus beat on time: a full compensatory pause
    pvc_s = np.where(is_pvc, np.roll(qrs_s, 1, 1) + np.minimum(coupling, 0.8 * rr_s)[:, None], np.nan)

    blocked, wenckebach_s = _second_degree(flags, rng)
    qrs_s = qrs_s + wenckebach_s
    escape_rr = 60 / rng.uniform(31, 44, n)
    escape_s = -rng.random((n, 1)) + escape_rr[:, None] * (beat + 0.01 * rng.standard_normal((n, MAX_BEATS)))
    qrs_s = np.where(flags.has("av_block_3")[:, None], escape_s, qrs_s)
    qrs_s = np.where(is_pvc | blocked, np.nan, qrs_s)

    no_p = flags.has("atrial_fibrillation", "atrial_flutter", "supraventricular_tachycardia", "junctional_rhythm")
    no_p |= flags.has("paced_rhythm") & (rng.random(n) < 0.6)  # the rest: atrial tracking, P before the spike
    ectopic_p_s = np.where(is_pac & ~no_p[:, None], p_s + 0.02, np.nan)
    p_s = np.where(no_p[:, None] | is_pac | is_pvc, np.nan, p_s)
    rr_s = np.where(flags.has("av_block_3"), escape_rr, rr_s)
    return Beats(p_s, ectopic_p_s, qrs_s, pvc_s, rr_s, pr_s, flutter_hz, wenckebach_s.any(1))


def _second_degree(flags: Flags, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dropped beats (bool) and extra PR delay in s, [n, MAX_BEATS] each: Wenckebach or Mobitz II, 3:2 to 5:4."""
    n, beat = len(flags), np.arange(MAX_BEATS)[None]
    cycle = rng.integers(3, 6, n)[:, None]
    position = (beat + rng.integers(0, 5, n)[:, None]) % cycle
    second = flags.has("av_block_2")[:, None]
    wenckebach = (rng.random(n) < 0.6)[:, None]
    delay_s = np.where(second & wenckebach, 0.06 * position, 0.0)
    return second & (position == cycle - 1), delay_s
