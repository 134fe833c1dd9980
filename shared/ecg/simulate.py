"""Simulated ECGs with known findings, in four hospitals' official layouts: the data of MEIT, K-MERL, SuPreME.

    python -m shared.ecg.simulate mimic-iv-ecg ROOT --n 1000 --seed 0 --fs-hz 100
    python -m shared.ecg.simulate --contact-sheet conditions.png

Findings are drawn with a long tail that differs between hospitals and combined under compatibility rules; the heart
(`simulate_heart`), the electrodes (`simulate_noise`), the text (`simulate_reports`) and the files (`simulate_layouts`)
follow from them. Records come in chunks of CHUNK, each seeded by (seed, chunk): record i does not depend on how many
are asked for, and the findings, ages and texts do not depend on the sampling rate.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.ecg.codes import FINDINGS
from shared.ecg.simulate_heart import build
from shared.ecg.simulate_noise import NoiseLevels, electrode_noise, lost_electrodes, twelve_leads
from shared.ecg.simulate_rhythm import Flags
from shared.ecg.simulate_waves import Patients, draw_patients, render

CHUNK = 64  # records drawn together
NAMES = tuple(FINDINGS)
_COLUMN = {name: i for i, name in enumerate(NAMES)}
_RHYTHMS = tuple(name for name in NAMES if FINDINGS[name].group == "rhythm")
_WITHOUT_P = ("paced_rhythm", "atrial_fibrillation", "atrial_flutter", "supraventricular_tachycardia",
              "junctional_rhythm")  # fmt: skip
_INFARCTS = ("anterior_mi", "septal_mi", "inferior_mi", "lateral_mi")
_HIDES_QRS = ("lbbb", "paced_rhythm", "wpw")
# What a patient keeps from one recording to the next; the rest is drawn anew each time.
_CHRONIC = frozenset(
    "paced_rhythm atrial_fibrillation av_block_1 lbbb rbbb incomplete_rbbb incomplete_lbbb lafb lpfb ivcd wpw lvh rvh "
    "left_atrial_enlargement right_atrial_enlargement low_voltage left_axis_deviation right_axis_deviation "
    "anterior_mi septal_mi inferior_mi lateral_mi early_repolarization".split()
)


@dataclass(frozen=True)
class Profile:
    """A hospital. rhythm: relative frequency of each rhythm; findings: probability in a patient who is not healthy;
    repeat: chance that a record belongs to the patient of the one before; fs_hz: the official rate."""

    name: str
    healthy: float
    rhythm: dict
    findings: dict
    repeat: float
    age_mean: float
    noise: NoiseLevels
    fs_hz: float = 500.0


def _long_tail(**changes) -> dict:
    """Probability of each finding in a patient who is not healthy; `changes` name what a hospital sees more or less."""
    base = {
        "pac": 0.06, "pvc": 0.09, "bigeminy": 0.018, "trigeminy": 0.015,
        "av_block_1": 0.09, "av_block_2": 0.018, "av_block_3": 0.016, "wpw": 0.026,
        "lbbb": 0.055, "rbbb": 0.085, "incomplete_rbbb": 0.04, "incomplete_lbbb": 0.015, "ivcd": 0.03,
        "lafb": 0.07, "lpfb": 0.018, "left_axis_deviation": 0.10, "right_axis_deviation": 0.035,
        "lvh": 0.12, "rvh": 0.025, "left_atrial_enlargement": 0.06, "right_atrial_enlargement": 0.045,
        "low_voltage": 0.055,
        "anterior_mi": 0.06, "septal_mi": 0.07, "inferior_mi": 0.11, "lateral_mi": 0.035, "acute_mi": 0.16,
        "anterior_ischemia": 0.06, "inferior_ischemia": 0.05, "lateral_ischemia": 0.065, "st_depression": 0.075,
        "st_elevation": 0.05, "t_wave_inversion": 0.075, "t_wave_abnormality": 0.20, "early_repolarization": 0.06,
        "long_qt": 0.06,
    }  # fmt: skip
    unknown = set(changes) - set(base)
    if unknown:
        raise KeyError(f"no such finding: {sorted(unknown)}")
    return base | changes


def _rhythms(**changes) -> dict:
    base = {
        "sinus_rhythm": 0.64, "sinus_bradycardia": 0.10, "sinus_tachycardia": 0.09, "sinus_arrhythmia": 0.03,
        "atrial_fibrillation": 0.08, "atrial_flutter": 0.02, "supraventricular_tachycardia": 0.01,
        "junctional_rhythm": 0.01, "paced_rhythm": 0.025,
    }  # fmt: skip
    return base | changes


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("mimic-iv-ecg", 0.24, _rhythms(), _long_tail(), 0.55, 64,
                NoiseLevels(0.045, 0.012, 0.006, 60.0, 0.04, 0.010)),
        Profile("ptb-xl", 0.42, _rhythms(sinus_rhythm=0.78, sinus_bradycardia=0.03, sinus_tachycardia=0.04),
                _long_tail(septal_mi=0.14, inferior_mi=0.16, lafb=0.10, long_qt=0.015, left_atrial_enlargement=0.04,
                           lvh=0.17, lateral_ischemia=0.08), 0.14, 60,
                NoiseLevels(0.050, 0.010, 0.005, 50.0, 0.03, 0.006)),
        Profile("cpsc2018", 0.14, _rhythms(atrial_fibrillation=0.18, atrial_flutter=0.004, sinus_bradycardia=0.02),
                _long_tail(rbbb=0.27, pac=0.12, pvc=0.14, av_block_1=0.13, st_depression=0.14, st_elevation=0.05), 0.0,
                60, NoiseLevels(0.060, 0.014, 0.008, 50.0, 0.06, 0.015)),
        Profile("chapman-shaoxing-ningbo", 0.22,
                _rhythms(sinus_rhythm=0.25, sinus_bradycardia=0.36, sinus_tachycardia=0.16, sinus_arrhythmia=0.05,
                         atrial_flutter=0.08, supraventricular_tachycardia=0.04),
                _long_tail(t_wave_abnormality=0.28, lvh=0.16, anterior_mi=0.02, septal_mi=0.02, inferior_mi=0.03,
                           lateral_mi=0.02), 0.0, 58, NoiseLevels(0.035, 0.008, 0.003, 50.0, 0.03, 0.006)),
    )
}  # fmt: skip


@dataclass
class Simulated:
    """n records. signal_mv: float32 [n, 12, samples], rows in the order of `LEADS`; findings: list of canonical
    names per record; strength: float [n, F] of each finding in NAMES (1 = typical); patient: int [n]; age in
    years, male [n]; measures: name -> [n] intervals in ms, axis in degrees; wording: int [n], seeds of the texts."""

    profile: str
    fs_hz: float
    signal_mv: np.ndarray
    findings: list
    strength: np.ndarray
    patient: np.ndarray
    age: np.ndarray
    male: np.ndarray
    measures: dict
    wording: np.ndarray


class _Rows:
    """Findings of n records, bool [n, F] (columns NAMES): a copy that the rules of `make_compatible` change."""

    def __init__(self, present: np.ndarray):
        self.present = present.copy()

    def has(self, *names) -> np.ndarray:
        return self.present[:, [_COLUMN[name] for name in names]].any(1)

    def add(self, where, name) -> None:
        self.present[where, _COLUMN[name]] = True

    def drop(self, where, *names) -> None:
        for name in names:
            self.present[where, _COLUMN[name]] = False

    def first_of(self, *names) -> None:  # at most one of them, the earliest wins
        for i, name in enumerate(names[1:], 1):
            self.drop(self.has(*names[:i]), name)


def make_compatible(present: np.ndarray) -> np.ndarray:
    """Drop or add findings so that each row of bool [n, F] (columns NAMES) is an ECG that can exist.

    One rhythm, one bundle branch, one ST-T story; what hides another finding wins (pacing, complete blocks); what
    implies another adds it (left anterior fascicular block and left axis); normal only without anything abnormal.
    """
    rows = _Rows(present)
    _one_rhythm(rows)
    _one_qrs(rows)
    _one_st_t_story(rows)
    abnormal = [name for name in NAMES if name not in ("normal", "sinus_rhythm", "sinus_arrhythmia")]
    rows.present[:, _COLUMN["normal"]] = ~rows.has(*abnormal)
    return rows.present


def _one_rhythm(rows: _Rows) -> None:
    """Rhythm, conduction from the atria to the ventricles, and the extra beats that fit into it."""
    has, drop, first_of = rows.has, rows.drop, rows.first_of
    first_of(*_WITHOUT_P, "sinus_tachycardia", "sinus_bradycardia", "sinus_rhythm")
    without_p = has(*_WITHOUT_P)
    drop(without_p | has("sinus_tachycardia"), "sinus_arrhythmia")
    drop(has("sinus_arrhythmia"), "sinus_rhythm")
    rows.add(~has(*_RHYTHMS), "sinus_rhythm")
    first_of("av_block_3", "av_block_2", "wpw", "av_block_1")
    for name in ("av_block_3", "av_block_2"):  # drawn on a regular sinus rate of their own
        drop(has(name) & ~has("sinus_rhythm"), name)
    drop(without_p, "wpw", "av_block_1", "left_atrial_enlargement", "right_atrial_enlargement", "pac")
    drop(has("sinus_tachycardia"), "av_block_1")
    drop(has("av_block_3", "av_block_2", "wpw", "supraventricular_tachycardia", "paced_rhythm", "sinus_arrhythmia"),
         "pac", "pvc", "bigeminy", "trigeminy")  # fmt: skip
    first_of("bigeminy", "trigeminy", "pac")
    first_of("bigeminy", "trigeminy")
    rows.add(has("bigeminy", "trigeminy"), "pvc")
    drop(has("pvc"), "pac")
    drop(has("atrial_flutter", "atrial_fibrillation", "junctional_rhythm"), "bigeminy", "trigeminy")


def _one_qrs(rows: _Rows) -> None:
    """Pacing, pre-excitation and bundle branch blocks hide axis, fascicles, hypertrophy and infarction."""
    has, drop, first_of = rows.has, rows.drop, rows.first_of
    first_of("lbbb", "rbbb", "incomplete_rbbb", "incomplete_lbbb", "ivcd", "wpw")
    drop(has("paced_rhythm"), "lbbb", "rbbb", "incomplete_rbbb", "incomplete_lbbb", "ivcd")
    hides = has(*_HIDES_QRS)
    drop(hides | has("incomplete_lbbb", "ivcd"), "lafb", "lpfb", "left_axis_deviation", "right_axis_deviation", "rvh")
    drop(hides, "lvh", "low_voltage", *_INFARCTS, "acute_mi")
    drop(has("rbbb", "incomplete_rbbb"), "rvh", "septal_mi")
    first_of("rvh", "lvh", "low_voltage")
    first_of("lafb", "lpfb", "inferior_mi")  # both decide the inferior leads
    drop(has("rvh"), "lafb", "lpfb", "lateral_mi", "septal_mi", "anterior_mi")
    drop(has("lpfb", "right_axis_deviation"), "lateral_mi")
    drop(has("inferior_mi", "lateral_mi"), "left_axis_deviation", "right_axis_deviation")
    rows.add(has("lafb"), "left_axis_deviation")
    rows.add(has("lpfb", "rvh"), "right_axis_deviation")
    drop(has("lafb"), "right_axis_deviation")
    first_of("right_axis_deviation", "left_axis_deviation")
    drop(has("low_voltage"), "left_axis_deviation", "right_axis_deviation", "lafb", "lpfb", "early_repolarization")


def _one_st_t_story(rows: _Rows) -> None:
    """ST segment and T wave: none of their own where QRS or rhythm change them already."""
    has, drop = rows.has, rows.drop
    infarct = has(*_INFARCTS)
    drop(~infarct, "acute_mi")
    stories = ("anterior_ischemia", "inferior_ischemia", "lateral_ischemia", "st_depression", "st_elevation",
               "t_wave_inversion", "t_wave_abnormality", "early_repolarization")  # fmt: skip
    secondary = has(*_HIDES_QRS, "rbbb", "incomplete_lbbb", "lvh", "rvh", "supraventricular_tachycardia",
                    "atrial_flutter", "ivcd")  # fmt: skip
    drop(secondary | infarct, *stories)
    rows.first_of(*stories)
    drop(has("supraventricular_tachycardia", "sinus_tachycardia", "atrial_fibrillation", "atrial_flutter",
             "paced_rhythm", "lbbb", "av_block_3"), "long_qt")  # fmt: skip


def _draw_findings(profile: Profile, person: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Findings (bool) and their strength of one chunk, [CHUNK, F] each."""
    chronic = np.array([name in _CHRONIC for name in NAMES])
    shape = (CHUNK, len(NAMES))
    chance = np.where(chronic & (rng.random(shape) > 0.08), rng.random(shape)[person], rng.random(shape))
    probability = np.array([profile.findings.get(name, 0.0) for name in NAMES])
    healthy = np.where(rng.random(CHUNK) < 0.15, rng.random(CHUNK), rng.random(CHUNK)[person]) < profile.healthy
    present = (chance < probability) & ~healthy[:, None]
    rates = np.array([profile.rhythm[name] for name in _RHYTHMS])
    edges = np.cumsum(rates / rates.sum())
    keep = rng.random(CHUNK) < 0.7
    chance = np.where(keep, rng.random(CHUNK)[person], rng.random(CHUNK))
    rhythm = np.searchsorted(edges, chance).clip(max=len(edges) - 1)
    rhythm = np.where(healthy & (_RHYTHMS.index("sinus_arrhythmia") != rhythm), 0, rhythm)
    present[np.arange(CHUNK), [NAMES.index(_RHYTHMS[r]) for r in rhythm]] = True
    both = (rhythm == _RHYTHMS.index("sinus_arrhythmia")) & ~healthy & (rng.random(CHUNK) < 0.25)
    present[both, NAMES.index("sinus_bradycardia")] = True
    strength = rng.uniform(0.65, 1.35, shape)
    return make_compatible(present), strength


def _leads(flags: Flags, patients: Patients, seeds, noise: NoiseLevels, fs_hz: float):
    """Signals [n, 12, samples] and measures of flagged records; separate streams for heart and electrodes."""
    heart, electrodes = (np.random.default_rng([*seeds, stream]) for stream in (1, 2))
    beats, waves = build(flags, patients, heart)
    eight = render(flags, patients, beats, waves, fs_hz, heart)
    n, _, n_samples = eight.shape
    added = electrode_noise(n, n_samples, fs_hz, noise, electrodes)
    lost = lost_electrodes(n, n_samples, noise.dropout_rate, electrodes)
    return twelve_leads(eight, added, lost), waves.measures


def simulate_chunk(profile: str, seed: int, chunk: int, fs_hz: float = 500.0) -> Simulated:
    """Records chunk * CHUNK ... of a hospital."""
    hospital = _profile(profile)
    seeds = _stream(profile, seed, chunk)
    rng = np.random.default_rng([*seeds, 0])
    new_person = rng.random(CHUNK) >= hospital.repeat
    new_person[0] = True
    person = np.cumsum(new_person) - 1
    present, strength = _draw_findings(hospital, person, rng)
    patients = draw_patients(CHUNK, hospital.age_mean, rng).take(person)
    wording = rng.integers(0, 2**31, CHUNK)
    signal_mv, measures = _leads(Flags(NAMES, present, strength), patients, seeds, hospital.noise, fs_hz)
    findings = [[NAMES[j] for j in np.flatnonzero(row)] for row in present]
    patient = chunk * CHUNK + person
    return Simulated(
        profile, fs_hz, signal_mv, findings, strength, patient, patients.age, patients.male, measures, wording
    )


def simulate(n: int, profile: str, seed: int, fs_hz: float = 500.0) -> Simulated:
    """n records of the hospital named like its data set; see `Simulated`. Same arguments, same bytes."""
    chunks = [simulate_chunk(profile, seed, chunk, fs_hz) for chunk in range(-(-n // CHUNK))]
    if not chunks:
        raise ValueError(f"n must be at least 1, not {n}")
    joined = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])[:n]
        for name in ("signal_mv", "strength", "patient", "age", "male", "wording")
    }
    measures = {key: np.concatenate([chunk.measures[key] for chunk in chunks])[:n] for key in chunks[0].measures}
    findings = [row for chunk in chunks for row in chunk.findings][:n]
    return Simulated(profile, fs_hz, findings=findings, measures=measures, **joined)


def simulate_findings(wanted: list, seed: int, fs_hz: float = 500.0, strength: float = 1.0, noisy: bool = True):
    """ECGs that show exactly the findings asked for: list of lists of names -> (signal_mv [n, 12, samples], measures).

    The lists must be compatible already (`make_compatible` leaves them as they are): ValueError names the first that
    is not.
    """
    present = np.array([[name in row for name in NAMES] for row in wanted])
    for row, before, after in zip(wanted, present, make_compatible(present), strict=True):
        if set(row) - set(NAMES) or (before != after).any():
            names = [name for name, there in zip(NAMES, after, strict=True) if there]
            raise ValueError(f"cannot draw {row}: the compatible set is {names}")
    rng = np.random.default_rng([seed, 0, 0])
    patients = draw_patients(len(wanted), 60, rng)
    levels = PROFILES["ptb-xl"].noise
    if not noisy:
        levels = NoiseLevels(0.0, 0.0, 0.0, 50.0, 0.0, 0.0)
    return _leads(Flags(NAMES, present, np.full(present.shape, strength)), patients, (seed, 0), levels, fs_hz)


def conditions() -> dict:
    """Finding -> the smallest compatible set of findings that shows it."""
    with_finding = {}
    for name in NAMES:
        row = np.array([[other == name for other in NAMES]])
        if name == "acute_mi":
            row[0, NAMES.index("inferior_mi")] = True
        with_finding[name] = [NAMES[j] for j in np.flatnonzero(make_compatible(row)[0])]
    return with_finding


def _stream(profile: str, seed: int, chunk: int) -> tuple[int, ...]:
    """Seeds of a chunk: hospitals share no random numbers, so that record i of one is nobody of another's."""
    number = list(PROFILES).index(profile)
    return (seed, chunk, 100 + number) if number else (seed, chunk)  # the first hospital keeps its old stream


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise KeyError(f"unknown profile {name!r}: one of {', '.join(PROFILES)}")
    return PROFILES[name]


def write(profile: str, root: Path, n_records: int, seed: int, fs_hz: float = 500.0, workers: int = 1) -> Path:
    """Write n_records in the official layout of the data set `profile` into `root`, with truth.parquet (record_id,
    findings). The tree is built beside `root` and renamed when complete, so a killed run leaves no half tree."""
    from shared.ecg.simulate_layouts import write_tree

    return write_tree(_profile(profile).name, Path(root), n_records, seed, fs_hz, workers)


def contact_sheet(path: Path, seed: int = 0) -> Path:
    """One 12-lead ECG per finding on standard paper, as one PNG."""
    from shared.ecg.plot import draw_page

    wanted = conditions()
    signal_mv, _ = simulate_findings(list(wanted.values()), seed)
    return draw_page(path, signal_mv, 500.0, [f"{name}: {', '.join(rest)}" for name, rest in wanted.items()])


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profile", nargs="?", choices=sorted(PROFILES), help="hospital = data set to imitate")
    parser.add_argument("root", nargs="?", type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--n", type=int, default=100, help="records")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fs-hz", type=float, default=500.0, help="500, or 100 for the laptop tier")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw one ECG per finding and stop")
    args = parser.parse_args(argv)
    if args.contact_sheet:
        print(contact_sheet(args.contact_sheet, args.seed))
    elif args.profile and args.root:
        print(write(args.profile, args.root, args.n, args.seed, args.fs_hz, args.workers))
    else:
        parser.error("give PROFILE and ROOT, or --contact-sheet PNG")


if __name__ == "__main__":
    main()
