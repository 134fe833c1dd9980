"""Findings -> the codes that PTB-XL, CPSC2018 and Chapman-Shaoxing-Ningbo would file the drawn ECG under.

A statement is made only of what the strip shows: either the drawn finding implies it (an old infarct has Q waves; a
premature beat is a "premature complex"), or it is measured on the finished signal (voltage criteria, rotation). Codes
of one meaning are all written, so no class is a matter of a reader's taste; several PTB-XL form classes coincide for
that reason (NDT, NT_ and LOWT: the flat T wave; LPR: every first degree block).

Classes that stay without positives, because nothing like them is drawn: SEHYP, PMI (PTB-XL subclass); DIG (form); PSVT
(rhythm; ten seconds show no onset); UW, AT, VEB (CSN; the escape beats drawn are narrow).
"""

import numpy as np

from shared.ecg.codes import CSN_CONDITIONS, FINDINGS, SCP_STATEMENTS
from shared.ecg.record import LEADS
from shared.ecg.simulate_reports import is_hedged

INFARCTS = ("anterior_mi", "septal_mi", "inferior_mi", "lateral_mi")
ISCHEMIAS = ("anterior_ischemia", "inferior_ischemia", "lateral_ischemia")
_WEAK, _STRONG = 0.85, 1.0  # strength of a finding; below the first, reports hedge it
_VOLTAGE_MV, _HIGH_MV = 3.5, 4.5  # Sokolow-Lyon: S in V1 + the larger R of V5, V6
_WINDOW_S = 2.0  # holds a beat at any rate that is drawn
# What makes chest leads unfit to read voltage or rotation from.
_OTHER_QRS = frozenset(
    "paced_rhythm pvc lbbb rbbb incomplete_rbbb incomplete_lbbb lafb lpfb ivcd wpw rvh low_voltage".split()
) | {*INFARCTS, *ISCHEMIAS}

# --- PTB-XL: further statements beside the first code of `FINDINGS` ---
_SCP_ALSO = {
    "pac": "PRC(S)", "pvc": "PRC(S)", "av_block_1": "LPR", "junctional_rhythm": "SVARR",
    "t_wave_abnormality": "NT_ LOWT TAB_", "t_wave_inversion": "TAB_",
} | dict.fromkeys(INFARCTS, "QWAVE ABQRS") | dict.fromkeys(
    "paced_rhythm lbbb rbbb incomplete_rbbb incomplete_lbbb lafb lpfb ivcd wpw rvh".split(), "ABQRS")  # fmt: skip

# --- CPSC2018: nine codes of its own, 426783006 meaning "normal"; the rest as the CinC tables have it ---
_CPSC = {name: " ".join(finding.snomed[:1]) for name, finding in FINDINGS.items()} | {
    "normal": "426783006", "sinus_rhythm": "", "av_block_1": "270492004", "pac": "284470004", "pvc": "164884008",
    "lbbb": "164909002", "rbbb": "59118001", "st_depression": "429622005", "st_elevation": "164931005",
    "acute_mi": "57054005 164931005", "early_repolarization": "428417006 164931005",
    "septal_mi": "164865005", "inferior_mi": "164865005", "lateral_mi": "164865005",
} | {name: f"{FINDINGS[name].snomed[0]} 429622005" for name in ISCHEMIAS}  # fmt: skip

# --- CSN: acronyms of ConditionNames_SNOMED-CT.csv, or the SNOMED code where the release has one without acronym ---
_CSN = {
    "normal": "", "sinus_rhythm": "SR", "sinus_bradycardia": "SB", "sinus_tachycardia": "ST", "sinus_arrhythmia": "SA",
    "atrial_fibrillation": "AFIB", "atrial_flutter": "AF", "supraventricular_tachycardia": "SVT",
    "junctional_rhythm": "JEB", "paced_rhythm": "10370003",
    "pac": "APB", "pvc": "VPB", "bigeminy": "VB", "trigeminy": "VET",
    "av_block_1": "1AVB PRIE", "av_block_2": "2AVB", "av_block_3": "3AVB AVB",
    "lbbb": "LBBB", "rbbb": "RBBB", "incomplete_rbbb": "713426002", "incomplete_lbbb": "251120003",
    "lafb": "445118002", "lpfb": "445211001", "ivcd": "IDC", "wpw": "WPW",
    "lvh": "LVH", "rvh": "RVH", "left_atrial_enlargement": "PWC", "right_atrial_enlargement": "RAH PWC",
    "low_voltage": "LVQRSAL", "left_axis_deviation": "ALS", "right_axis_deviation": "ARS",
    "acute_mi": "STE STTU", "st_depression": "STDD", "st_elevation": "STE STTU", "early_repolarization": "ERV STE",
    "t_wave_inversion": "TWO TWC", "t_wave_abnormality": "TWC", "long_qt": "QTIE",
} | dict.fromkeys(INFARCTS, "MI AQW") | dict.fromkeys(ISCHEMIAS, "STTC STDD TWO")  # fmt: skip
_CSN_CODE = dict(reversed([(acronym, code) for acronym, code, _ in CSN_CONDITIONS]))


def chest_deflections(signal_mv: np.ndarray, fs_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """R and S in mV, [6] each (V1..V6), above zero: median over windows of 2 s, so one artefact changes nothing.

    signal_mv: [12, n_samples], at least 2 s.
    """
    width = round(_WINDOW_S * fs_hz)
    chest = signal_mv[LEADS.index("V1") :]
    windows = chest[:, : chest.shape[1] // width * width].reshape(6, -1, width)
    windows = windows - np.median(windows, -1, keepdims=True)
    return np.median(windows.max(-1), -1), -np.median(windows.min(-1), -1)


def sokolow_mv(signal_mv: np.ndarray, fs_hz: float) -> float:
    r, s = chest_deflections(signal_mv, fs_hz)
    return float(s[0] + max(r[4], r[5]))


def rotation(signal_mv: np.ndarray, fs_hz: float) -> str:
    """ "CR" (clockwise: the first R larger than its S in V5 or later), "CCR" (in V1 or V2), else ""."""
    r, s = chest_deflections(signal_mv, fs_hz)
    larger = np.flatnonzero(r > s)
    first = larger[0] + 1 if len(larger) else 7
    return "CR" if first >= 5 else "CCR" if first <= 2 else ""


def scp_codes(findings: list, strength: dict, signal_mv: np.ndarray, fs_hz: float, rng) -> dict[str, float]:
    """SCP statements with likelihoods as PTB-XL has them: 100 when sure, 15..50 when hedged, 0 for rhythm and form."""
    codes = {}
    for name in findings:
        statements = [*FINDINGS[name].scp[:1], *_SCP_ALSO.get(name, "").split()]
        if name in ("st_depression", "st_elevation") and strength[name] < _WEAK:
            statements.append("NST_")
        if name == "st_depression" and strength[name] >= _STRONG:
            statements.append("ISC_")  # more than 0.1 mV in many leads
        hedged = float(rng.choice([15, 35, 50])) if is_hedged(name, strength[name], rng) else 100.0
        for code in statements:
            likelihood = hedged if SCP_STATEMENTS[code].diagnostic else 0.0
            codes[code] = max(codes.get(code, 0.0), likelihood)
    if not _OTHER_QRS & set(findings):
        voltage_mv = sokolow_mv(signal_mv, fs_hz)
        if "lvh" in findings and voltage_mv >= _VOLTAGE_MV:
            codes["VCLVH"] = 0.0
        if "lvh" not in findings and voltage_mv >= _HIGH_MV:
            codes["HVOLT"] = 0.0
    return dict(sorted(codes.items(), key=lambda item: -item[1]))


def cpsc_codes(findings: list) -> list[str]:
    """SNOMED CT codes in the order of the findings, each once."""
    codes = [code for name in findings for code in _CPSC[name].split()]
    return list(dict.fromkeys(codes))


def csn_codes(findings: list, wenckebach: bool, signal_mv: np.ndarray, fs_hz: float) -> list[str]:
    """SNOMED CT codes in the order of the findings, each once. wenckebach: type of a second degree AV block."""
    terms = [term for name in findings for term in _CSN[name].split()]
    if wenckebach:
        terms = ["2AVB1" if term == "2AVB" else term for term in terms]
    if not _OTHER_QRS & set(findings):
        terms.append(rotation(signal_mv, fs_hz))
    return list(dict.fromkeys(_CSN_CODE.get(term, term) for term in terms if term))
