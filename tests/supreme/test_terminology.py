"""`supreme.terminology`: what is findable by its words, what must stay apart, and how class texts stand to terms."""

import csv

import pytest

from shared.ecg.codes import CSN_CONDITIONS, FINDINGS, SCP_STATEMENTS
from shared.ecg.tasks import TASKS
from shared.runs.config import data_root
from supreme import rules, terminology
from supreme.mapping import known
from supreme.terminology import ancestors, find, findings_of, key, relation, term


def _id(name):
    return found.id if (found := find(name)) else None


@pytest.mark.parametrize("task", TASKS)
def test_every_class_of_the_six_tasks_is_findable(task):
    assert [c for c in TASKS[task].published_classes if find(c.description) is None] == []


def test_every_scp_statement_and_csn_condition_is_findable():
    assert [code for code, s in SCP_STATEMENTS.items() if find(s.description) is None] == []
    assert [acronym for acronym, _, name in CSN_CONDITIONS if find(name) is None] == []


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_has_a_term_of_its_name_that_asserts_it(name):
    assert findings_of(name) == {name}
    assert name in findings_of(_id(FINDINGS[name].phrase))


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["dx_mapping_scored.csv", "dx_mapping_unscored.csv"])
def test_cinc_names_are_findable(file):
    path = data_root() / "cinc2021-mappings" / file
    if not path.exists():
        pytest.skip(f"DATA_ROOT has no {path.name}")
    rows = list(csv.DictReader(path.open()))
    assert [row["Dx"] for row in rows if find(row["Dx"]) is None] == []
    codes = {row["SNOMEDCTCode"] for row in rows}
    printed = {t.snomed_ct for t in terminology.terminology() if t.snomed_ct}
    others = {code for _, code, _ in CSN_CONDITIONS}
    assert len(codes & printed) >= 20 and all(code.isdigit() for code in printed)
    if "unscored" in file:
        scored = csv.DictReader((path.parent / "dx_mapping_scored.csv").open())
        assert printed <= codes | others | {row["SNOMEDCTCode"] for row in scored}


def test_what_the_rules_name_is_known_with_or_without_its_place():
    assert [name for name in rules.rules().kinds if known(name, subtypes=True) == (None, None)] == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("RBBB", "complete right bundle branch block"),
        ("LBBB", "complete left bundle branch block"),
        ("premature atrial contraction", "supraventricular premature beats"),
        ("premature ventricular contractions", "ventricular premature beats"),
        ("atrioventricular  node reentrant tachycardia", "AVNRT"),
        ("1st degree A-V block", "first degree atrioventricular block"),
        ("T-wave inversions", "inverted T waves"),
        ("premature complex(es)", "extrasystole"),
        ("Inferior infarct", "myocardial infarction, inferior wall"),
    ],
)
def test_names_of_one_thing_are_one(a, b):
    assert _id(a) == _id(b) is not None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("incomplete right bundle branch block", "right bundle branch block"),
        ("incomplete left bundle branch block", "complete left bundle branch block"),
        ("first degree AV block", "AV block"),
        ("complete AV block", "second degree AV block"),
        ("ST elevation", "ST depression"),
        ("prolonged PR interval", "prolonged QT interval"),
        ("non-ST elevation myocardial infarction", "ST elevation myocardial infarction"),
        ("normal rhythm", "normal ECG"),
        ("atrial fibrillation", "atrial flutter"),
        ("clockwise rotation", "counter-clockwise rotation"),
        ("ventricular escape beat", "ventricular premature beat"),
    ],
)
def test_names_of_different_things_stay_apart(a, b):
    assert _id(a) != _id(b) and None not in (_id(a), _id(b))


@pytest.mark.parametrize("abbreviation", ["AF", "AMI", "ST", "PR", "SA", "STE", "AVB", "STTC", "CD", "AB", "LAD", "AT"])
def test_abbreviations_with_two_meanings_are_no_names(abbreviation):
    assert find(abbreviation) is None
    assert relation(abbreviation, terminology.terminology()) == "unseen"


def test_a_key_is_the_same_in_any_order_spelling_and_number():
    assert key("Atrial premature complexes") == key("premature atrial complex") == key("atrial premature beats")
    assert key("anterior ischaemia") == key("Ischemic in anterior leads")
    assert key("") == () and key("of the") == ("of", "the")


def test_terms_have_unique_ids_known_parents_and_no_guessed_cui():
    terms = terminology.terminology()
    assert len({t.id for t in terms}) == len(terms) and all(t.umls_cui is None for t in terms)
    assert ancestors("anteroseptal_mi") == ("anterior_mi", "mi")
    assert ancestors("lbbb") == ("bundle_branch_block", "conduction_disturbance")
    assert all(term(a) in terms for t in terms for a in ancestors(t.id))


def test_findings_follow_codes_then_the_nearest_wider_term():
    assert findings_of("anterolateral_mi") == {"anterior_mi", "lateral_mi"}
    assert findings_of("prolonged_pr") == {"av_block_1"}
    assert findings_of("multifocal_atrial_tachycardia") == {"supraventricular_tachycardia"}
    assert findings_of("pericarditis") == findings_of("local:anything") == frozenset()


def test_relation_of_a_class_text():
    kept = [term("inferior_mi"), term("lbbb"), term("mobitz_1")]
    assert relation("inferior infarct", kept) == "seen"
    assert relation("myocardial infarction", kept) == "related"  # wider
    assert relation("complete AV block", kept) == "unseen"  # of a wider term two steps up only
    assert relation("second degree AV block", kept) == relation("AV block", kept) == "related"
    assert relation("right bundle branch block", kept) == "related"  # sibling
    assert relation("inferoposterior infarct", kept) == "related"  # narrower
    assert relation("U wave", kept) == relation("no such thing", kept) == "unseen"
    local = terminology.Term("local:odd beat", "odd beat", ("strange beat",), "local")
    assert relation("strange beats", [local]) == "seen"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"a": {"preferred": "one", "parent": "b"}}, "no parent 'b'"),
        ({"a": {"preferred": "one", "colour": "red"}}, "a: {'colour'}"),
        ({"a": {"preferred": "odd beat"}, "b": {"preferred": "odd beats"}}, "claimed by a and by b"),
        ({"a": {"preferred": "one", "parent": "b"}, "b": {"preferred": "two", "parent": "a"}}, "ancestor of itself"),
    ],
)
def test_a_broken_table_is_refused(monkeypatch, terms, message):
    table = {"terms": {"other": terms}, "words": {}, "drop": []}
    monkeypatch.setattr(terminology, "_raw", lambda: table)
    key.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            terminology._table.__wrapped__()
    finally:
        key.cache_clear()
