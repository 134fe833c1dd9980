"""Sections of MIMIC-CXR reports."""

import pytest
from cxr_trees import REPORT

from synth_medvlp.datasets.reports import findings_and_impression, sections


def test_sections_of_a_usual_report():
    assert findings_and_impression(REPORT) == (
        "The lungs are clear. There is no pleural effusion.",
        "No acute process.",
    )
    assert list(sections(REPORT)) == ["examination", "indication", "findings", "impression"]
    assert sections(REPORT)["indication"] == "History: ___F with cough."  # a colon within a line opens nothing
    assert findings_and_impression(REPORT.replace("\n", "\r\n")) == findings_and_impression(REPORT)


CASES = {
    "impression only": (" IMPRESSION: Normal.\n", ("", "Normal.")),
    "findings only": ("FINDINGS:\nClear lungs.\n", ("Clear lungs.", "")),
    "conclusion": (" CONCLUSION:  Normal.", ("", "Normal.")),
    "mixed case": ("Findings: clear.\nImpression: normal.", ("clear.", "normal.")),
    "joint heading": (" FINDINGS AND IMPRESSION:\n Clear.", ("", "Clear.")),
    "joint heading with a stroke": (" FINDINGS/IMPRESSION:\n Clear.", ("", "Clear.")),
    "described study": (" PORTABLE CHEST RADIOGRAPH:\n Clear.\n IMPRESSION: Normal.", ("Clear.", "Normal.")),
    "views described, findings below": (
        " CHEST, PA AND LATERAL:\n\n INDICATION: cough.\n\n FINDINGS: Clear.\n",
        ("Clear.", ""),
    ),
    "examination is no finding": (" EXAMINATION:  CHEST (PORTABLE AP)\n IMPRESSION: Normal.", ("", "Normal.")),
    "repeated, first empty": (" FINDINGS:\n\n FINDINGS: Clear.", ("Clear.", "")),
    "repeated, last empty": (" FINDINGS: Clear.\n IMPRESSION: Old.\n IMPRESSION:\n", ("Clear.", "Old.")),
    "addendum": (" IMPRESSION: Old.\n ADDENDUM: See below.\n IMPRESSION: New.", ("", "New.")),
    "time of day": (" IMPRESSION: Seen at 10:30 by Dr. ___.", ("", "Seen at 10:30 by Dr. ___.")),
    "sentence with a colon": (" FINDINGS: Lines: PICC in place.", ("Lines: PICC in place.", "")),
    "no heading": ("The lungs are clear.", ("", "")),
    "empty": ("", ("", "")),
    "white space": (" \n\t\n", ("", "")),
    "headings without text": (" FINDINGS:\n\n IMPRESSION:\n", ("", "")),
}


@pytest.mark.parametrize("name", CASES)
def test_sections_of_odd_reports(name):
    report, expected = CASES[name]
    assert findings_and_impression(report) == expected
