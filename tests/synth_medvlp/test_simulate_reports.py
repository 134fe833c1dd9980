"""Simulated reports say exactly what was drawn: checked with words of our own, not with the simulator's tables."""

import re

import numpy as np
import pytest

from synth_medvlp.findings import KINDS, NAMES, Finding, conditional_rates, draw_finding, draw_findings
from synth_medvlp.simulate_reports import NEGATIVE, POSITIVE, UNCERTAIN, write_report

WORDS = {
    "cardiomegaly": r"cardiomegaly|enlarge", "pleural_effusion": r"effusion", "pneumothorax": r"pneumothorax",
    "consolidation": r"consolidation|pneumonia|infiltrat",
    "edema": r"edema", "atelectasis": r"atelectasis", "nodule": r"nodule",
    "mass": r"\bmass\b", "granuloma": r"granuloma", "rib_fracture": r"fracture", "hiatal_hernia": r"hernia",
    "emphysema": r"emphysem", "fibrosis": r"fibrosis", "pleural_thickening": r"thickening", "scoliosis": r"scoliosis",
    "tortuous_aorta": r"tortuous", "pacemaker": r"pacemaker", "central_line": r"central venous",
    "endotracheal_tube": r"endotracheal", "feeding_tube": r"enteric tube|nasogastric", "sternal_wires": r"wires",
}  # fmt: skip
DENIES = re.compile(r"^(No |There is no )")
HEDGES = re.compile(r"possible|cannot be excluded|may be|questionable", re.IGNORECASE)
CLEAR = re.compile(r"lungs are (well expanded and )?clear")


def sentences(text: str) -> list[str]:
    """Sentences, decimals and list numbers left alone."""
    return [s for s in re.split(r"(?<=[a-z)]\.)\s+|(?<!\d)\d\.\s", text) if s.strip()]


def reports(n: int, prevalence: float = 0.12):
    rates = conditional_rates(dict.fromkeys(NAMES, prevalence), 0.5)
    for k in range(n):
        rng = np.random.default_rng(k)
        findings = draw_findings(rates, "AP" if k % 2 else "PA", rng)
        yield {f.name: f for f in findings}, write_report(findings, rng)


def test_words_cover_every_finding():
    assert set(WORDS) == set(NAMES)


def test_each_sentence_is_true():
    for drawn, report in reports(1500):
        for sentence in sentences(f"{report.findings} {report.impression}"):
            named = {name for name, words in WORDS.items() if re.search(words, sentence, re.IGNORECASE)}
            if DENIES.match(sentence):
                assert not named & set(drawn), sentence
                assert all(report.mentions[name] == NEGATIVE for name in named), sentence
            else:
                assert named <= set(drawn), (sentence, list(drawn))
                hedged = bool(HEDGES.search(sentence))
                assert all((report.mentions[name] == UNCERTAIN) == hedged for name in named), sentence
            if CLEAR.search(sentence):
                assert not {"consolidation", "edema", "atelectasis", "nodule", "mass", "fibrosis"} & set(drawn)
            if "heart size is normal" in sentence.lower() or "within normal limits" in sentence:
                assert "cardiomegaly" not in drawn


def test_everything_drawn_is_in_the_findings_and_what_is_acute_in_the_impression():
    for drawn, report in reports(800):
        told = " ".join(s for s in sentences(report.findings) if not DENIES.match(s))
        for name in drawn:
            assert re.search(WORDS[name], told, re.IGNORECASE), (name, report.findings)
        if "pneumothorax" in drawn:
            assert "pneumothorax" in report.impression.lower()
        if not drawn:
            assert "no acute" in report.impression.lower() or "Normal" in report.impression


def test_mentions_are_complete_and_match_what_was_drawn():
    for drawn, report in reports(800):
        said = {name for name, status in report.mentions.items() if status in (POSITIVE, UNCERTAIN)}
        assert said == set(drawn)
        assert all(name not in drawn for name, status in report.mentions.items() if status == NEGATIVE)


@pytest.mark.parametrize("name", [n for n in NAMES if set(KINDS[n].sides[0]) >= {"left", "right"} and n != "scoliosis"])
def test_side_and_place_are_told(name):
    rng = np.random.default_rng(0)
    for k in range(40):
        finding = draw_finding(name, rng, side=("left", "right")[k % 2], extent=0.6)
        report = write_report([finding], rng)
        told = [s for s in sentences(report.findings) if re.search(WORDS[name], s, re.IGNORECASE)]
        told = [s for s in told if not DENIES.match(s)]
        assert all(finding.side in s.lower() for s in told), told
        assert not any(("left", "right")[(k + 1) % 2] in s.lower() for s in told), told
        if name in ("consolidation", "nodule", "mass", "granuloma") and "upper" in finding.place:
            assert all("upper lobe" in s for s in told)


def test_faint_findings_are_hedged_and_devices_never():
    rng = np.random.default_rng(1)
    faint = [write_report([Finding("consolidation", "left", "lower", 0.1)], rng) for _ in range(300)]
    share = np.mean([r.mentions["consolidation"] == UNCERTAIN for r in faint])
    assert 0.4 < share < 0.7
    plain = [write_report([Finding("consolidation", "left", "lower", 0.6)], rng) for _ in range(100)]
    assert all(r.mentions["consolidation"] == POSITIVE for r in plain)
    device = [write_report([Finding("pacemaker", "left", "", 0.1)], rng) for _ in range(50)]
    assert all(r.mentions["pacemaker"] == POSITIVE for r in device)


@pytest.mark.parametrize("side", ["left", "bilateral"])
@pytest.mark.parametrize(("extent", "also"), [(0.2, "infiltrat"), (0.5, None), (0.8, "pneumonia")])
def test_a_faint_consolidation_is_also_called_infiltrate_and_a_dense_one_pneumonia(extent, also, side):
    rng = np.random.default_rng(2)
    told = [write_report([Finding("consolidation", side, "lower", extent)], rng) for _ in range(200)]
    texts = [f"{r.findings} {r.impression}".lower() for r in told]
    share = {word: np.mean([word in text for text in texts]) for word in ("consolidation", "infiltrat", "pneumonia")}
    for word in ("infiltrat", "pneumonia"):
        assert 0.35 < share[word] < 0.9 if word == also else share[word] == 0, share
    assert share["consolidation"] > 0.6, share


def test_wording_varies_and_is_repeatable():
    finding = Finding("pleural_effusion", "left", "lower", 0.6)
    texts = {write_report([finding], np.random.default_rng(k)).findings for k in range(200)}
    assert len(texts) > 120
    one, two = (write_report([finding], np.random.default_rng(3)) for _ in range(2))
    assert one == two


def test_sentences_are_well_formed():
    for _, report in reports(600):
        for text in (report.findings, report.impression):
            assert text[0].isupper() or text[0].isdigit()
            assert not re.search(r"\{|\}|  | \.|\bNone\b|\+| a [aeiou]| an [bcdfgst]|\ba a\b|possible an? ", text), text
            assert text.endswith(".")


def test_text_has_the_headings_of_a_report():
    text = write_report([], np.random.default_rng(0)).text("AP")
    assert re.search(r"\n FINDINGS:\n.*\n IMPRESSION:\n", text, re.DOTALL) and "AP" in text
