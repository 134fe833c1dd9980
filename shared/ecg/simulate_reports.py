"""The words of simulated reports: what a cart prints (MIMIC-IV-ECG) and what a PTB-XL reader wrote, in three languages.

Every positive statement is about a finding that was drawn; negations are only of findings that were not. One drawn
weakly (strength below 0.85) is often hedged, as devices do. Own wording in the manner of the two corpora.
"""

import numpy as np

from shared.ecg.codes import FINDINGS

# Order of statements in a report.
_ORDER = {group: i for i, group in enumerate(
    ("rhythm", "ectopy", "axis", "conduction", "hypertrophy", "infarction", "st_t", "overall"))}  # fmt: skip
_HEDGED_GROUPS = ("hypertrophy", "infarction")
_HEDGED = {"anterior_ischemia", "inferior_ischemia", "lateral_ischemia", "lafb", "lpfb", "wpw", "atrial_flutter"}
_NOT_HEDGED = {"low_voltage", "acute_mi"}

ENGLISH = {
    "normal": ["Normal ECG"],
    "sinus_rhythm": ["Sinus rhythm", "Normal sinus rhythm", "Regular sinus rhythm"],
    "sinus_bradycardia": ["Sinus bradycardia", "Marked sinus bradycardia"],
    "sinus_tachycardia": ["Sinus tachycardia", "Sinus tachycardia, rate above 100"],
    "sinus_arrhythmia": ["Sinus arrhythmia", "Marked sinus arrhythmia"],
    "atrial_fibrillation": ["Atrial fibrillation", "Atrial fibrillation with irregular ventricular response",
                            "Irregular rhythm without P waves, atrial fibrillation"],
    "atrial_flutter": ["Atrial flutter", "Atrial flutter with AV conduction ratio of 2:1 to 4:1",
                       "Flutter waves present, atrial flutter"],
    "supraventricular_tachycardia": ["Supraventricular tachycardia", "Narrow complex supraventricular tachycardia"],
    "junctional_rhythm": ["Junctional rhythm", "Junctional escape rhythm, P waves not seen"],
    "paced_rhythm": ["Ventricular paced rhythm", "Electronic ventricular pacemaker", "Ventricular pacing"],
    "pac": ["Premature atrial complexes", "Atrial premature complexes", "PACs", "Supraventricular extrasystoles"],
    "pvc": ["Premature ventricular complexes", "Ventricular premature complexes", "PVCs", "Ventricular extrasystoles"],
    "bigeminy": ["in a pattern of bigeminy", "with ventricular bigeminy"],
    "trigeminy": ["in a pattern of trigeminy", "with ventricular trigeminy"],
    "av_block_1": ["First degree AV block", "Prolonged PR interval", "1st degree A-V block"],
    "av_block_2": ["Second degree AV block", "2nd degree A-V block with dropped beats"],
    "av_block_3": ["Complete AV block", "Third degree AV block", "Complete heart block with escape rhythm"],
    "lbbb": ["Left bundle branch block", "Complete left bundle branch block", "LBBB"],
    "rbbb": ["Right bundle branch block", "Complete right bundle branch block", "RBBB"],
    "incomplete_rbbb": ["Incomplete right bundle branch block", "Incomplete RBBB"],
    "incomplete_lbbb": ["Incomplete left bundle branch block", "Incomplete LBBB"],
    "lafb": ["Left anterior fascicular block", "Left anterior hemiblock"],
    "lpfb": ["Left posterior fascicular block", "Left posterior hemiblock"],
    "ivcd": ["Nonspecific intraventricular conduction delay", "IV conduction defect",
             "Nonspecific intraventricular block"],
    "wpw": ["Wolff-Parkinson-White pattern", "Ventricular preexcitation, WPW pattern", "WPW pattern"],
    "lvh": ["Left ventricular hypertrophy", "LVH", "Left ventricular hypertrophy by voltage"],
    "rvh": ["Right ventricular hypertrophy", "RVH"],
    "left_atrial_enlargement": ["Left atrial enlargement", "Left atrial abnormality"],
    "right_atrial_enlargement": ["Right atrial enlargement", "Right atrial abnormality"],
    "low_voltage": ["Low QRS voltage", "Low QRS voltages in precordial and limb leads", "Low voltage QRS"],
    "left_axis_deviation": ["Left axis deviation", "Leftward axis"],
    "right_axis_deviation": ["Right axis deviation", "Rightward axis"],
    "anterior_mi": ["Anterior infarct", "Anterior infarction", "Anterior myocardial infarction"],
    "septal_mi": ["Septal infarct", "Septal infarction", "Septal myocardial infarction"],
    "inferior_mi": ["Inferior infarct", "Inferior infarction", "Inferior myocardial infarction"],
    "lateral_mi": ["Lateral infarct", "Lateral infarction", "Lateral myocardial infarction"],
    "acute_mi": ["acute", "possibly acute"],
    "anterior_ischemia": ["Anterior ischemia", "Anterior ST-T changes due to myocardial ischemia",
                          "Anterior myocardial ischemia"],
    "inferior_ischemia": ["Inferior ischemia", "Inferior ST-T changes due to myocardial ischemia",
                          "Inferior myocardial ischemia"],
    "lateral_ischemia": ["Lateral ischemia", "Lateral ST-T changes due to myocardial ischemia",
                         "Lateral myocardial ischemia"],
    "st_depression": ["ST depression", "Nonspecific ST depression", "ST segment depression"],
    "st_elevation": ["ST elevation", "ST segment elevation", "Nonspecific ST elevation"],
    "t_wave_inversion": ["T wave inversion", "Inverted T waves", "Diffuse T wave inversions"],
    "t_wave_abnormality": ["Nonspecific T wave abnormality", "Nonspecific T wave changes", "T wave flattening",
                           "Low T waves"],
    "early_repolarization": ["Early repolarization", "Early repolarization pattern"],
    "long_qt": ["Prolonged QT interval", "Long QT interval", "QT prolongation"],
}  # fmt: skip

GERMAN = {
    "normal": ["normales ekg"],
    "sinus_rhythm": ["sinusrhythmus"],
    "sinus_bradycardia": ["sinusbradykardie"],
    "sinus_tachycardia": ["sinustachykardie"],
    "sinus_arrhythmia": ["sinus arrhythmie", "sinusarrhythmie"],
    "atrial_fibrillation": ["vorhofflimmern", "vorhofflimmern, absolute arrhythmie"],
    "atrial_flutter": ["vorhofflattern"],
    "supraventricular_tachycardia": ["supraventrikuläre tachykardie"],
    "junctional_rhythm": ["av-rhythmus", "junktionaler rhythmus"],
    "paced_rhythm": ["schrittmacher ekg", "ventrikulärer schrittmacherrhythmus"],
    "pac": ["supraventrikuläre extrasystole(n)"],
    "pvc": ["ventrikuläre extrasystole(n)"],
    "bigeminy": ["bigeminus"],
    "trigeminy": ["trigeminus"],
    "av_block_1": ["a-v block i", "av-block i. grades"],
    "av_block_2": ["av-block ii. grades"],
    "av_block_3": ["kompletter av-block", "av-block iii. grades"],
    "lbbb": ["linksschenkelblock", "kompletter linksschenkelblock"],
    "rbbb": ["rechtsschenkelblock", "kompletter rechtsschenkelblock"],
    "incomplete_rbbb": ["unvollständiger rechtsschenkelblock", "inkompletter rechtsschenkelblock"],
    "incomplete_lbbb": ["unvollständiger linksschenkelblock"],
    "lafb": ["linksanteriorer hemiblock"],
    "lpfb": ["linksposteriorer hemiblock"],
    "ivcd": ["unspezifische intraventrikuläre leitungsstörung", "unspezifischer intraventrikulärer block"],
    "wpw": ["wpw-syndrom"],
    "lvh": ["linkshypertrophie"],
    "rvh": ["rechtshypertrophie"],
    "left_atrial_enlargement": ["p-sinistrocardiale", "vorhofsüberlastung links"],
    "right_atrial_enlargement": ["p-dextrocardiale", "vorhofsüberlastung rechts"],
    "low_voltage": ["periphere niederspannung"],
    "left_axis_deviation": ["linkstyp", "überdrehter linkstyp"],
    "right_axis_deviation": ["rechtstyp", "überdrehter rechtstyp"],
    "anterior_mi": ["anteriorer infarkt"],
    "septal_mi": ["septaler infarkt"],
    "inferior_mi": ["inferiorer infarkt"],
    "lateral_mi": ["lateraler infarkt"],
    "acute_mi": ["akut"],
    "anterior_ischemia": ["anteriore ischämie"],
    "inferior_ischemia": ["inferiore ischämie"],
    "lateral_ischemia": ["laterale ischämie"],
    "st_depression": ["st-senkung"],
    "st_elevation": ["st-hebung"],
    "t_wave_inversion": ["t-negativierung", "negative t-wellen"],
    "t_wave_abnormality": ["unspezifisches abnormes t", "flache t-wellen"],
    "early_repolarization": ["frühe repolarisation"],
    "long_qt": ["qt-verlängerung"],
}  # fmt: skip

SWEDISH = {
    "normal": ["normalt ekg"],
    "sinus_rhythm": ["sinusrytm"],
    "sinus_bradycardia": ["sinusbradykardi"],
    "sinus_tachycardia": ["sinustakykardi"],
    "sinus_arrhythmia": ["sinusarytmi"],
    "atrial_fibrillation": ["förmaksflimmer"],
    "atrial_flutter": ["förmaksfladder"],
    "supraventricular_tachycardia": ["supraventrikulär takykardi"],
    "junctional_rhythm": ["nodal rytm"],
    "paced_rhythm": ["pacemaker-ekg"],
    "pac": ["supraventrikulära extraslag"],
    "pvc": ["ventrikulära extraslag"],
    "bigeminy": ["bigemini"],
    "trigeminy": ["trigemini"],
    "av_block_1": ["av-block i"],
    "av_block_2": ["av-block ii"],
    "av_block_3": ["av-block iii"],
    "lbbb": ["vänster skänkelblock"],
    "rbbb": ["höger skänkelblock"],
    "incomplete_rbbb": ["inkomplett höger skänkelblock"],
    "incomplete_lbbb": ["inkomplett vänster skänkelblock"],
    "lafb": ["vänster främre fascikelblock"],
    "lpfb": ["vänster bakre fascikelblock"],
    "ivcd": ["ospecifikt skänkelblock"],
    "wpw": ["wpw"],
    "lvh": ["vänster kammarhypertrofi"],
    "rvh": ["höger kammarhypertrofi"],
    "left_atrial_enlargement": ["vänster förmaksförstoring"],
    "right_atrial_enlargement": ["höger förmaksförstoring"],
    "low_voltage": ["låga qrs amplituder"],
    "left_axis_deviation": ["vänster el-axel"],
    "right_axis_deviation": ["höger el-axel"],
    "anterior_mi": ["anterior infarkt"],
    "septal_mi": ["septal infarkt"],
    "inferior_mi": ["inferior infarkt"],
    "lateral_mi": ["lateral infarkt"],
    "acute_mi": ["akut"],
    "anterior_ischemia": ["anterior ischemi"],
    "inferior_ischemia": ["inferior ischemi"],
    "lateral_ischemia": ["lateral ischemi"],
    "st_depression": ["st-sänkning"],
    "st_elevation": ["st-höjning"],
    "t_wave_inversion": ["negativa t-vågor"],
    "t_wave_abnormality": ["ospecifik t-förändring"],
    "early_repolarization": ["tidig repolarisation"],
    "long_qt": ["förlängd qt-tid"],
}  # fmt: skip

_HEDGES = {
    "en": ["Possible {}", "Probable {}", "Consider {}", "Cannot rule out {}", "Suggests {}"],
    "de": ["{} möglich", "{} nicht auszuschliessen", "verdacht auf {}", "wahrscheinlich {}"],
    "sv": ["möjlig {}", "{} bör övervägas"],
}
_AGES = {
    "en": [" - age undetermined", ", old", ", probably old", ""],
    "de": ["     alter unbest.", "     wahrscheinlich alt", ""],
    "sv": ["     ålder ej bestämmbar", ""],
}
_ACUTE = {
    "en": [", acute", ", possibly acute", " - acute"],
    "de": ["     mögl. akut", "     akut"],
    "sv": ["     akut"],
}
# Negations, each with the findings whose absence it states.
_ST_T = tuple(name for name, finding in FINDINGS.items() if finding.group == "st_t")
_INFARCTS = ("anterior_mi", "septal_mi", "inferior_mi", "lateral_mi", "acute_mi")
_NEGATIONS = {
    "No acute ST-T changes": (*_ST_T, *_INFARCTS),
    "No evidence of acute infarction": _INFARCTS,
    "No evidence of atrial fibrillation": ("atrial_fibrillation", "atrial_flutter"),
    "No ventricular ectopy": ("pvc", "bigeminy", "trigeminy"),
    "No bundle branch block": ("lbbb", "rbbb", "incomplete_lbbb", "incomplete_rbbb", "ivcd", "paced_rhythm"),
}
_NEUTRAL = (
    "No previous ECG available for comparison",
    "Compared to the previous tracing there is no significant change",
    "Clinical correlation is suggested",
    "Baseline artifact",
)
_BORDERLINE = {
    "sinus_rhythm", "sinus_bradycardia", "sinus_arrhythmia", "left_axis_deviation", "t_wave_abnormality",
    "incomplete_rbbb", "av_block_1", "early_repolarization", "low_voltage", "right_axis_deviation", "pac",
}  # fmt: skip


def is_hedged(name: str, strength: float, rng: np.random.Generator) -> bool:
    """Does the report hedge this finding? Often when it was drawn weakly, seldom otherwise, never for rhythms."""
    may = name in _HEDGED or (FINDINGS[name].group in _HEDGED_GROUPS and name not in _NOT_HEDGED)
    return may and rng.random() < (0.6 if strength < 0.85 else 0.06)


def statements(findings: list, strength: dict, rng: np.random.Generator, language: str = "en") -> list[str]:
    """One statement per finding, in reporting order, without the overall line. strength: name -> float."""
    words = {"en": ENGLISH, "de": GERMAN, "sv": SWEDISH}[language]

    def pick(options):
        return options[int(rng.integers(len(options)))]

    lines = []
    for name in sorted(findings, key=lambda f: (_ORDER[FINDINGS[f].group], list(FINDINGS).index(f))):
        if name in ("normal", "bigeminy", "trigeminy", "acute_mi"):
            continue  # said in the overall line, or with the beats or the infarct they belong to
        text = pick(words[name])
        pattern = next((p for p in ("bigeminy", "trigeminy") if name == "pvc" and p in findings), None)
        if pattern:
            text += (" " if language == "en" else ", ") + pick(words[pattern])
        if is_hedged(name, strength[name], rng):
            text = pick(_HEDGES[language]).format(_lower_first(text))
        if name in _INFARCTS:
            text += pick(_ACUTE[language] if "acute_mi" in findings else _AGES[language])
        if name == "lvh" and language == "en" and rng.random() < 0.3:
            text += " with strain pattern"
        lines.append(text)
    return lines


def mimic_report(findings: list, strength: dict, rng: np.random.Generator) -> list[str]:
    """Lines of a machine report, at most 18: statements, now and then a negation, the overall line."""
    lines = statements(findings, strength, rng)
    if rng.random() < 0.30:
        there = set(findings)
        allowed = [line for line, absent in _NEGATIONS.items() if not there & set(absent)]
        if allowed:
            lines.append(allowed[int(rng.integers(len(allowed)))])
    if rng.random() < 0.15:
        lines.append(_NEUTRAL[int(rng.integers(len(_NEUTRAL)))])
    if "normal" in findings:
        overall = "Normal ECG"
    elif set(findings) <= _BORDERLINE and len(findings) <= 2 and rng.random() < 0.6:
        overall = "Borderline ECG"
    else:
        overall = "Abnormal ECG"
    return [*lines, overall][:18]


def ptbxl_report(findings: list, strength: dict, rng: np.random.Generator) -> str:
    """One line of lower-case text in the mix of PTB-XL: German 67 %, English 25 %, Swedish 8 %."""
    language = ("de", "en", "sv")[int(np.searchsorted([0.67, 0.92], rng.random()))]
    lines = statements(findings, strength, rng, language)
    if "normal" in findings:
        lines.append({"de": "normales ekg", "en": "Normal ECG", "sv": "normalt ekg"}[language])
    if language == "en":
        return ". ".join(lines).lower() + "."
    text = " ".join(lines)
    if language == "de" and "normal" not in findings and rng.random() < 0.25:
        text += " 4.46                          unbestätigter bericht"
    return text.translate(str.maketrans("äöå", "ÄÖÅ")).replace("ü", "ue")  # as the release has it


def _lower_first(text: str) -> str:
    """Lower the first letter unless the word is an abbreviation or a name."""
    keep = text[:2].isupper() or text.startswith("Wolff")
    return text if keep else text[:1].lower() + text[1:]
