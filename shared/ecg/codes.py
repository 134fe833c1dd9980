"""The ECG findings that the simulator draws and `shared.metrics.findings` reads, with codes of public vocabularies.

SCP: statement code of PTB-XL 1.0.3 (`scp_statements.csv`). SNOMED: code of the PhysioNet/CinC 2020/2021 tables
(`dx_mapping_scored.csv`, `dx_mapping_unscored.csv`). "" where a vocabulary has no such statement.
"""

from typing import NamedTuple


class Finding(NamedTuple):
    name: str  # canonical name, used as key everywhere
    phrase: str  # plain English, as a report says it
    group: str  # rhythm | ectopy | conduction | hypertrophy | infarction | st_t | axis | overall
    scp: tuple[str, ...]  # every PTB-XL code that asserts the finding
    snomed: tuple[str, ...]


_ROWS = [
    ("normal", "normal ECG", "overall", "NORM", ""),
    # rhythm
    ("sinus_rhythm", "sinus rhythm", "rhythm", "SR", "426783006"),
    ("sinus_bradycardia", "sinus bradycardia", "rhythm", "SBRAD", "426177001"),
    ("sinus_tachycardia", "sinus tachycardia", "rhythm", "STACH", "427084000"),
    ("sinus_arrhythmia", "sinus arrhythmia", "rhythm", "SARRH", "427393009"),
    ("atrial_fibrillation", "atrial fibrillation", "rhythm", "AFIB", "164889003"),
    ("atrial_flutter", "atrial flutter", "rhythm", "AFLT", "164890007"),
    ("supraventricular_tachycardia", "supraventricular tachycardia", "rhythm", "SVTAC PSVT", "426761007"),
    ("junctional_rhythm", "junctional rhythm", "rhythm", "", "29320008 426995002"),
    ("paced_rhythm", "ventricular paced rhythm", "rhythm", "PACE", "10370003"),
    # ectopy
    ("pac", "premature atrial complexes", "ectopy", "PAC", "284470004 63593006"),
    ("pvc", "premature ventricular complexes", "ectopy", "PVC", "427172004 17338001 164884008"),
    ("bigeminy", "ventricular bigeminy", "ectopy", "BIGU", "11157007"),
    ("trigeminy", "ventricular trigeminy", "ectopy", "TRIGU", "251180001"),
    # conduction
    ("av_block_1", "first degree AV block", "conduction", "1AVB LPR", "270492004 164947007"),
    ("av_block_2", "second degree AV block", "conduction", "2AVB", "195042002 54016002 426183003"),
    ("av_block_3", "complete AV block", "conduction", "3AVB", "27885002"),
    ("lbbb", "left bundle branch block", "conduction", "CLBBB", "164909002 733534002"),
    ("rbbb", "right bundle branch block", "conduction", "CRBBB", "59118001 713427006"),
    ("incomplete_rbbb", "incomplete right bundle branch block", "conduction", "IRBBB", "713426002"),
    ("incomplete_lbbb", "incomplete left bundle branch block", "conduction", "ILBBB", "251120003"),
    ("lafb", "left anterior fascicular block", "conduction", "LAFB", "445118002"),
    ("lpfb", "left posterior fascicular block", "conduction", "LPFB", "445211001"),
    ("ivcd", "nonspecific intraventricular conduction delay", "conduction", "IVCD", "698252002"),
    ("wpw", "Wolff-Parkinson-White pattern", "conduction", "WPW", "74390002 195060002"),
    # hypertrophy, enlargement, voltage
    ("lvh", "left ventricular hypertrophy", "hypertrophy", "LVH VCLVH", "164873001 55827005"),
    ("rvh", "right ventricular hypertrophy", "hypertrophy", "RVH", "89792004"),
    ("left_atrial_enlargement", "left atrial enlargement", "hypertrophy", "LAO/LAE", "67741000119109 253352002"),
    ("right_atrial_enlargement", "right atrial enlargement", "hypertrophy", "RAO/RAE", "446358003 253339007"),
    ("low_voltage", "low QRS voltage", "hypertrophy", "LVOLT", "251146004"),
    # axis
    ("left_axis_deviation", "left axis deviation", "axis", "", "39732003"),
    ("right_axis_deviation", "right axis deviation", "axis", "", "47665007"),
    # infarction: old (pathological Q or lost R) and acute (ST elevation with it)
    ("anterior_mi", "anterior infarction", "infarction", "AMI ALMI", "54329005"),
    ("septal_mi", "septal infarction", "infarction", "ASMI", ""),
    ("inferior_mi", "inferior infarction", "infarction", "IMI ILMI IPMI IPLMI", ""),
    ("lateral_mi", "lateral infarction", "infarction", "LMI ALMI ILMI IPLMI", ""),
    ("acute_mi", "acute infarction", "infarction", "", "57054005"),
    # ST, T, QT
    ("anterior_ischemia", "anterior ischemia", "st_t", "ISCAN ISCAS ISCAL", "426434006"),
    ("inferior_ischemia", "inferior ischemia", "st_t", "ISCIN ISCIL", "425419005"),
    ("lateral_ischemia", "lateral ischemia", "st_t", "ISCLA ISCAL ISCIL", "425623009"),
    ("st_depression", "ST depression", "st_t", "STD_", "429622005"),
    ("st_elevation", "ST elevation", "st_t", "STE_", "164931005"),
    ("t_wave_inversion", "T wave inversion", "st_t", "INVT", "59931005"),
    ("t_wave_abnormality", "nonspecific T wave abnormality", "st_t", "NDT NT_ TAB_ LOWT", "164934002 428750005"),
    ("early_repolarization", "early repolarization", "st_t", "", "428417006"),
    ("long_qt", "prolonged QT interval", "st_t", "LNGQT", "111975006"),
]

FINDINGS = {r[0]: Finding(r[0], r[1], r[2], tuple(r[3].split()), tuple(r[4].split())) for r in _ROWS}
