"""`supreme.rules`: what is read from machine statements and PTB-XL reports: how certain, how old, where."""

import ast
import os
from pathlib import Path

import pandas as pd
import pytest

from shared.ecg import mimic_iv_ecg, simulate
from shared.ecg.codes import FINDINGS
from shared.ecg.simulate_reports import ENGLISH
from supreme import rules
from supreme.prompt import CATEGORIES, CERTAINTIES, POLARITIES, TEMPORALITIES, paper_view
from supreme.rules import read
from supreme.statements import collect, normalise

# "name" definite, "name?" hedged, "-name" negated, "!name" uninterpretable, "~name" residual; own sentences.
STATEMENTS = [
    ("Normal sinus rhythm", "sinus rhythm"),
    ("Sinus rhythm with PAC(s)", "sinus rhythm, atrial premature complex"),
    ("Atrial fibrillation has replaced sinus rhythm", "atrial fibrillation, -sinus rhythm"),
    ("Possible inferior infarct - age undetermined", "inferior myocardial infarction?"),
    ("Inferior infarct, possibly acute", "inferior myocardial infarction, acute myocardial infarction?"),
    ("Old anteroseptal infarct", "anteroseptal myocardial infarction"),
    ("Anterior and lateral infarct", "anterior myocardial infarction, lateral myocardial infarction"),
    ("Anterior or lateral infarct", "anterior myocardial infarction?, lateral myocardial infarction?"),
    ("Cannot rule out anterior infarct", "anterior myocardial infarction?"),
    ("No evidence of acute infarction", "-acute myocardial infarction"),
    ("No ST elevation, T wave inversion or LVH",
     "-ST elevation, -T wave inversion, -left ventricular hypertrophy"),
    ("Suggests left ventricular hypertrophy", "left ventricular hypertrophy?"),
    ("Likely left atrial enlargement", "left atrial enlargement?"),
    ("Borderline 1st degree A-V block", "first degree atrioventricular block?"),
    ("Prolonged PR interval", "prolonged PR interval"),
    ("Borderline prolonged QT", "prolonged QT interval?"),
    ("Consider acute ST elevation MI >>>", "ST elevation myocardial infarction?"),
    ("Anterior T wave changes may be due to myocardial ischemia", "T wave abnormality, anterior ischemia?"),
    ("PVC(s) or aberrant conduction", "ventricular premature complex?, aberrant conduction?"),
    ("2:1 AV block", "two to one atrioventricular block"),
    ("Mobitz I second degree AV block", "Mobitz type I second degree atrioventricular block"),
    ("RBBB with left anterior fascicular block", "right bundle branch block, left anterior fascicular block"),
    ("Incomplete RBBB", "incomplete right bundle branch block"),
    ("Voltage criteria for LVH", "voltage criteria for left ventricular hypertrophy"),
    ("QRS changes V3/V4 may be due to LVH but cannot rule out anterior infarct",
     "abnormal QRS, left ventricular hypertrophy?, anterior myocardial infarction?"),
    ("Lateral ST-T changes may be due to myocardial ischemia", "ST-T changes, lateral ischemia?"),
    ("Poor R wave progression - probable normal variant", "poor R wave progression, normal variant?"),
    ("Ventricular premature complexes in a pattern of bigeminy", "ventricular premature complex, ventricular bigeminy"),
    ("Atrial-sensed ventricular-paced rhythm", "atrial-sensed ventricular-paced rhythm"),
    ("Wandering atrial pacemaker", "wandering atrial pacemaker"),
    ("Nonspecific T wave flattening", "low amplitude T wave"),
    ("Normal ECG", "normal ECG"),
    ("Otherwise normal ECG", "~normal ECG"),
    ("Normal ECG except for sinus bradycardia", "~normal ECG, sinus bradycardia"),
    ("Probably normal ECG", "normal ECG?"),
    ("Abnormal ECG", "abnormal ECG"),
    ("Borderline ECG", "borderline ECG?"),
    ("*** Poor data quality, interpretation may be affected ***", "!poor data quality"),
    ("Suspect arm lead reversal", "!lead reversal"),
    ("Undetermined rhythm", "!undetermined rhythm"),
    ("No artifact", "-artifact"),
    ("Compared to the previous tracing there is no significant change", ""),
    ("Clinical correlation is suggested", ""),
    ("", ""),
    # German and Swedish wording of PTB-XL
    ("sinusrhythmus normales ekg", "sinus rhythm, normal ECG"),
    ("sonst normales ekg", "~normal ECG"),
    ("verdacht auf linkshypertrophie", "left ventricular hypertrophy?"),
    ("hochlateraler infarkt nicht auszuschliessen", "lateral myocardial infarction?"),
    ("kein linksschenkelblock", "-left bundle branch block"),
    ("unvollstÄndiger rechtsschenkelblock", "incomplete right bundle branch block"),
    ("mÄssige amplitudenkriterien fÜr linkshypertrophie", "voltage criteria for left ventricular hypertrophy"),
    ("st & t abnorm, wahrscheinlich    anterolaterale ischÄmie oder linksbelastung",
     "ST-T changes, anterolateral ischemia?, left ventricular strain?"),
    ("sinusrhythmus lagetyp normal qrs(t) abnormal pathologisch",
     "sinus rhythm, normal axis, abnormal QRS, abnormal ECG"),
    ("fÖrmaksflimmer", "atrial fibrillation"),
]  # fmt: skip


def _marked(e) -> str:
    if e.residual:
        return f"~{e.entity}"
    return {"definite": "{}", "hedged": "{}?", "negated": "-{}", "uninterpretable": "!{}"}[e.certainty].format(e.entity)


@pytest.mark.parametrize(("statement", "expected"), STATEMENTS, ids=[s[:40] for s, _ in STATEMENTS])
def test_reads_exactly_this(statement, expected):
    norm = normalise(statement)
    found = read(norm)
    assert {_marked(e) for e in found} == set(filter(None, expected.split(", ")))
    _check_form(norm, found)


def _check_form(norm, found):
    for e in found:
        assert norm[e.start : e.end] == e.surface and e.surface == e.surface.strip() != ""
        assert e.category in CATEGORIES and e.polarity in POLARITIES
        assert e.certainty in CERTAINTIES and e.temporality in TEMPORALITIES
        assert not e.residual or (e.certainty, e.entity) == ("hedged", "normal ECG")


def test_the_surface_takes_its_hedge_or_negation_with_it():
    def surface(text):
        return [e.surface for e in read(text)]

    assert surface("possible inferior infarct") == ["possible inferior infarct"]
    assert surface("inferior infarct cannot be excluded") == ["inferior infarct cannot be excluded"]
    assert surface("no st elevation or lvh") == ["no st elevation", "lvh"]
    assert surface("sinus rhythm, possible lvh") == ["sinus rhythm", "possible lvh"]
    assert surface("kein  linksschenkelblock") == ["kein  linksschenkelblock"]


def test_paper_view_has_the_drawn_lists():
    found = [e for s in ("normal sinus rhythm", "otherwise normal ecg", "possible inferior infarct", "lvh", "no rbbb",
                         "undetermined rhythm", "left ventricular hypertrophy") for e in read(s)]  # fmt: skip
    assert paper_view(found) == {
        "Normal": ["sinus rhythm"],
        "Abnormal": ["left ventricular hypertrophy"],
        "Uncertain": ["otherwise normal ecg", "possible inferior infarct", "undetermined rhythm"],
    }


@pytest.mark.parametrize(
    ("statement", "age"),
    [
        ("inferior infarct", "undetermined"),
        ("inferior infarct - age undetermined", "undetermined"),
        ("inferior infarct of uncertain age", "undetermined"),
        ("inferior infarct, old", "old"),
        ("possible old inferior myocardial infarct", "old"),
        ("inferior infarct, probably old", "old"),
        ("chronischer inferiorer infarkt", "old"),
        ("inferiorer infarkt     wahrscheinlich alt", "old"),
        ("inferiorer infarkt     alter unbest.", "undetermined"),
        ("inferior infarct, possibly acute", "current"),
        ("recent inferior infarct", "current"),
        ("inferior ischemia", "current"),
        ("sinus rhythm", "current"),
    ],
)
def test_temporality(statement, age):
    assert read(normalise(statement))[0].temporality == age


def test_ages_stay_with_their_infarct():
    found = read(normalise("anteriorer infarkt     wahrscheinlich alt    inferiorer infarkt     alter unbest."))
    assert [(e.entity.split()[0], e.temporality) for e in found] == [("anterior", "old"), ("inferior", "undetermined")]


@pytest.mark.parametrize(
    ("statement", "location"),
    [
        ("anteroseptal infarct", ("anterior", "septal")),
        ("inferior ischemia", ("inferior",)),
        ("t waves are inverted in i, avl, v4,5,6", ("I", "aVL", "V4", "V5", "V6")),
        ("st segments are depressed in v3-6", ("V3", "V4", "V5", "V6")),
        ("lateral st depression", ("lateral",)),
        ("low qrs voltages in limb leads", ("limb leads",)),
        ("t abnorm in inferioren ableitungen", ("inferior",)),
        ("st-senkung in i,ii,avl,v5-6", ("I", "II", "aVL", "V5", "V6")),
        ("sinus rhythm", ()),
        ("t waves are inverted in v2,3 and low in i, v4", ()),  # two lists for two things: not guessed
    ],
)
def test_location(statement, location):
    assert read(statement)[0].location == location


@pytest.mark.parametrize("finding", list(FINDINGS))
def test_every_wording_of_the_simulator_names_its_finding(finding):
    if finding == "acute_mi":
        wordings = [f"Inferior infarct, {words}" for words in ENGLISH[finding]]
    elif finding in ("bigeminy", "trigeminy"):
        wordings = [f"PVCs {words}" for words in ENGLISH[finding]]
    else:
        wordings = ENGLISH[finding]
    for words in wordings:
        assert {FINDING_OF.get(e.entity) for e in read(normalise(words))} >= {finding}, words


# The entity of a finding, and the more exact entities that the simulator's wordings name.
FINDING_OF = {name: finding for finding, name in rules.rules().of_finding.items()} | {
    "prolonged PR interval": "av_block_1", "ventricular paced rhythm": "paced_rhythm",
    "ventricular bigeminy": "bigeminy", "ventricular trigeminy": "trigeminy", "ventricular preexcitation": "wpw",
    "nonspecific T wave abnormality": "t_wave_abnormality", "low amplitude T wave": "t_wave_abnormality",
}  # fmt: skip


def test_simulated_reports_are_read_without_error_or_omission(tmp_path):
    """Hedged findings were drawn too, and the grammar denies only what was not drawn: a certainty is never wrong."""
    root = simulate.write("mimic-iv-ecg", tmp_path / "tree", 300, 3, fs_hz=100)
    index = mimic_iv_ecg.read_index(root).set_index("record_id")
    truth = pd.read_parquet(root / "truth.parquet").set_index("record_id").findings
    statements = collect(index.report[truth.index].tolist())
    found = [read(norm) for norm in statements.norm]
    for norm, entities in zip(statements.norm, found, strict=True):
        _check_form(norm, entities)
    for row, drawn in zip(statements.of_report, truth, strict=True):
        entities = [e for i in row for e in found[i] if e.entity in FINDING_OF]
        said = {FINDING_OF[e.entity] for e in entities if e.certainty in ("definite", "hedged")}
        assert said == set(drawn)
        assert not {FINDING_OF[e.entity] for e in entities if e.certainty == "negated"} & set(drawn)


def test_a_lexicon_with_unknown_names_is_refused(tmp_path, monkeypatch):
    text = rules.LEXICON.read_text(encoding="utf-8")
    for good, bad, message in [
        ("  summary:\n", "  verdict:\n", "category.*verdict"),
        ("finding: sinus_rhythm,", "finding: sinus_rythm,", "finding.*sinus_rythm"),
        ("instead_of: [atrial fibrillation]", "instead_of: [atrial fib]", "instead_of.*atrial fib"),
    ]:
        assert good in text
        path = tmp_path / "lexicon.yaml"
        path.write_text(text.replace(good, bad, 1), encoding="utf-8")
        monkeypatch.setattr(rules, "LEXICON", path)
        with pytest.raises(ValueError, match=message):
            rules.rules.__wrapped__()


@pytest.mark.realdata
def test_real_ptbxl_reports():
    """English and German reports of the release, against its codes where a code says what the report says."""
    root = os.environ.get("DATA_ROOT")
    path = Path(root or ".") / "ptb-xl" / "ptbxl_database.csv"
    if not root or not path.exists():
        pytest.skip("DATA_ROOT holds no ptb-xl/ptbxl_database.csv")
    table = pd.read_csv(path)
    statements = collect(table.report.astype(str).tolist())
    found = [read(norm) for norm in statements.norm]
    for norm, entities in zip(statements.norm, found, strict=True):
        _check_form(norm, entities)
    said = [{e.entity for i in row for e in found[i] if e.certainty != "negated"} for row in statements.of_report]
    assert sum(map(bool, said)) / len(said) > 0.95
    for code, entity in (("SR", "sinus rhythm"), ("AFIB", "atrial fibrillation"), ("SBRAD", "sinus bradycardia")):
        coded = [code in ast.literal_eval(codes) for codes in table.scp_codes]
        both = sum(entity in names for names, there in zip(said, coded, strict=True) if there)
        assert both >= 0.9 * sum(coded) > 0
