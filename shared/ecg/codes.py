"""The ECG findings that the simulator draws and `shared.metrics.findings` reads, with codes of public vocabularies.

SCP: statement code of PTB-XL 1.0.3 (`scp_statements.csv`). SNOMED: code of the PhysioNet/CinC 2020/2021 tables
(`dx_mapping_scored.csv`, `dx_mapping_unscored.csv`). "" where a vocabulary has no such statement.

Below them the two vocabularies that whole releases are written in: the SCP statements of PTB-XL, and the acronyms of
Chapman-Shaoxing-Ningbo. `shared.ecg.tasks` and the simulator read them.
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


class Statement(NamedTuple):
    """A row of PTB-XL's scp_statements.csv. A diagnostic one has a class and a subclass, "" otherwise."""

    description: str
    diagnostic: bool
    form: bool
    rhythm: bool
    diagnostic_class: str
    diagnostic_subclass: str


# code | kinds (d diagnostic, f form, r rhythm) | class | subclass, "=" where it is the code itself | description.
# Facts of scp_statements.csv (PTB-XL 1.0.3, CC BY 4.0), all 71 rows in its order.
_SCP_ROWS = """
NDT | df | STTC | STTC | non-diagnostic T abnormalities
NST_ | df | STTC | = | non-specific ST changes
DIG | df | STTC | STTC | digitalis-effect
LNGQT | df | STTC | STTC | long QT-interval
NORM | d | NORM | = | normal ECG
IMI | d | MI | = | inferior myocardial infarction
ASMI | d | MI | AMI | anteroseptal myocardial infarction
LVH | d | HYP | = | left ventricular hypertrophy
LAFB | d | CD | LAFB/LPFB | left anterior fascicular block
ISC_ | d | STTC | = | non-specific ischemic
IRBBB | d | CD | = | incomplete right bundle branch block
1AVB | d | CD | _AVB | first degree AV block
IVCD | d | CD | = | non-specific intraventricular conduction disturbance (block)
ISCAL | d | STTC | ISCA | ischemic in anterolateral leads
CRBBB | d | CD | = | complete right bundle branch block
CLBBB | d | CD | = | complete left bundle branch block
ILMI | d | MI | IMI | inferolateral myocardial infarction
LAO/LAE | d | HYP | = | left atrial overload/enlargement
AMI | d | MI | = | anterior myocardial infarction
ALMI | d | MI | AMI | anterolateral myocardial infarction
ISCIN | d | STTC | ISCI | ischemic in inferior leads
INJAS | d | MI | AMI | subendocardial injury in anteroseptal leads
LMI | d | MI | = | lateral myocardial infarction
ISCIL | d | STTC | ISCI | ischemic in inferolateral leads
LPFB | d | CD | LAFB/LPFB | left posterior fascicular block
ISCAS | d | STTC | ISCA | ischemic in anteroseptal leads
INJAL | d | MI | AMI | subendocardial injury in anterolateral leads
ISCLA | d | STTC | ISCA | ischemic in lateral leads
RVH | d | HYP | = | right ventricular hypertrophy
ANEUR | d | STTC | STTC | ST-T changes compatible with ventricular aneurysm
RAO/RAE | d | HYP | = | right atrial overload/enlargement
EL | d | STTC | STTC | electrolytic disturbance or drug (former EDIS)
WPW | d | CD | = | Wolf-Parkinson-White syndrome
ILBBB | d | CD | = | incomplete left bundle branch block
IPLMI | d | MI | IMI | inferoposterolateral myocardial infarction
ISCAN | d | STTC | ISCA | ischemic in anterior leads
IPMI | d | MI | IMI | inferoposterior myocardial infarction
SEHYP | d | HYP | = | septal hypertrophy
INJIN | d | MI | IMI | subendocardial injury in inferior leads
INJLA | d | MI | AMI | subendocardial injury in lateral leads
PMI | d | MI | = | posterior myocardial infarction
3AVB | d | CD | _AVB | third degree AV block
INJIL | d | MI | IMI | subendocardial injury in inferolateral leads
2AVB | d | CD | _AVB | second degree AV block
ABQRS | f |  |  | abnormal QRS
PVC | f |  |  | ventricular premature complex
STD_ | f |  |  | non-specific ST depression
VCLVH | f |  |  | voltage criteria (QRS) for left ventricular hypertrophy
QWAVE | f |  |  | Q waves present
LOWT | f |  |  | low amplitude T-waves
NT_ | f |  |  | non-specific T-wave changes
PAC | f |  |  | atrial premature complex
LPR | f |  |  | prolonged PR interval
INVT | f |  |  | inverted T-waves
LVOLT | f |  |  | low QRS voltages in the frontal and horizontal leads
HVOLT | f |  |  | high QRS voltage
TAB_ | f |  |  | T-wave abnormality
STE_ | f |  |  | non-specific ST elevation
PRC(S) | f |  |  | premature complex(es)
SR | r |  |  | sinus rhythm
AFIB | r |  |  | atrial fibrillation
STACH | r |  |  | sinus tachycardia
SARRH | r |  |  | sinus arrhythmia
SBRAD | r |  |  | sinus bradycardia
PACE | r |  |  | normal functioning artificial pacemaker
SVARR | r |  |  | supraventricular arrhythmia
BIGU | r |  |  | bigeminal pattern (unknown origin, SV or Ventricular)
AFLT | r |  |  | atrial flutter
SVTAC | r |  |  | supraventricular tachycardia
PSVT | r |  |  | paroxysmal supraventricular tachycardia
TRIGU | r |  |  | trigeminal pattern (unknown origin, SV or Ventricular)
"""


def _scp_statements() -> dict[str, Statement]:
    statements = {}
    for row in _SCP_ROWS.strip().splitlines():
        code, kinds, group, subclass, description = (cell.strip() for cell in row.split("|"))
        flags = ("d" in kinds, "f" in kinds, "r" in kinds)
        statements[code] = Statement(description, *flags, group, code if subclass == "=" else subclass)
    return statements


SCP_STATEMENTS = _scp_statements()


# acronym | SNOMED CT | name. Facts of ConditionNames_SNOMED-CT.csv (Chapman-Shaoxing-Ningbo 1.0.0, CC BY 4.0), written
# from public copies of that table, in its order; the release's own file is read where it lies. Every acronym that the
# published split files use is checked against the CinC 2021 tables and against headers of the release (tests of
# `shared.ecg.tasks`). Where acronyms share a code the first one is meant: the published files say IDC, LBBB, MI.
_CSN_ROWS = """
1AVB | 270492004 | first degree AV block
2AVB | 195042002 | second degree AV block
2AVB1 | 54016002 | second degree AV block (type one)
2AVB2 | 28189009 | second degree AV block (type two)
3AVB | 27885002 | third degree AV block
ABI | 251173003 | atrial bigeminy
ALS | 39732003 | axis left shift
APB | 284470004 | atrial premature beats
AQW | 164917005 | abnormal Q wave
ARS | 47665007 | axis right shift
AVB | 233917008 | atrioventricular block
CCR | 251199005 | counter-clockwise rotation
CR | 251198002 | clockwise rotation
ERV | 428417006 | early repolarization of the ventricles
FQRS | 164942001 | fQRS wave
IDC | 698252002 | interior differences conduction
IVB | 698252002 | intraventricular block
JEB | 426995002 | junctional escape beat
JPT | 251164006 | junctional premature beat
LBBB | 164909002 | left bundle branch block
LBBBB | 164909002 | left back bundle branch block
LFBBB | 164909002 | left front bundle branch block
LVH | 164873001 | left ventricle hypertrophy
LVQRSAL | 251146004 | lower voltage QRS in all lead
LVQRSCL | 251148003 | lower voltage QRS in chest lead
LVQRSLL | 251147008 | lower voltage QRS in limb lead
MI | 164865005 | myocardial infarction
MIBW | 164865005 | myocardial infarction in back wall
MIFW | 164865005 | myocardial infarction in the front wall
MILW | 164865005 | myocardial infarction in the lower wall
MISW | 164865005 | myocardial infarction in the side wall
PRIE | 164947007 | PR interval extension
PWC | 164912004 | P wave change
QTIE | 111975006 | QT interval extension
RAH | 446358003 | right atrial hypertrophy
RBBB | 59118001 | right bundle branch block
RVH | 89792004 | right ventricle hypertrophy
STDD | 429622005 | ST drop down
STE | 164930006 | ST extension
STTC | 428750005 | ST-T change
STTU | 164931005 | ST tilt up
TWC | 164934002 | T wave change
TWO | 59931005 | T wave opposite
UW | 164937009 | U wave
VB | 11157007 | ventricular bigeminy
VEB | 75532003 | ventricular escape beat
VFW | 13640000 | ventricular fusion wave
VPB | 17338001 | ventricular premature beat
VPE | 195060002 | ventricular preexcitation
VET | 251180001 | ventricular escape trigeminy
WAVN | 195101003 | wandering in the atrioventricular node
WPW | 74390002 | WPW
SB | 426177001 | sinus bradycardia
SR | 426783006 | sinus rhythm
AFIB | 164889003 | atrial fibrillation
ST | 427084000 | sinus tachycardia
AF | 164890007 | atrial flutter
SA | 427393009 | sinus irregularity
SVT | 426761007 | supraventricular tachycardia
AT | 713422000 | atrial tachycardia
AVNRT | 233896004 | atrioventricular node reentrant tachycardia
AVRT | 233897008 | atrioventricular reentrant tachycardia
SAAWR | 195101003 | sinus atrium to atrial wandering rhythm
"""

CSN_CONDITIONS = [tuple(cell.strip() for cell in row.split("|")) for row in _CSN_ROWS.strip().splitlines()]
