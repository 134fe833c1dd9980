"""`supreme.statements`: what is one statement, what is the same statement, and how often it is said."""

import hashlib

import pytest

from shared.ecg.mimic_iv_ecg import join_statements
from supreme.statements import collect, normalise, split, statement_id


@pytest.mark.parametrize(
    ("raw", "norm"),
    [
        ("*** Poor data  quality ***", "poor data quality"),
        ("--- Abnormal EKG ---", "abnormal ecg"),
        ("= Sinus rhythm. =", "sinus rhythm"),
        ("QRS 120 ms, rate 95bpm", "qrs <num>, rate <num>"),
        ("ST elevation 0,2 mV / 1.5 mm", "st elevation <num> / <num>"),
        ("pauses of 100-120 ms", "pauses of <num>"),
        ("agreement 95 %", "agreement <num>"),
        ("ST in V1-V6, 1st degree, 2:1 block", "st in v1-v6, 1st degree, 2:1 block"),
        ("rate above 100", "rate above 100"),
        ("t inverted in v5-6 mm scale", "t inverted in v5-6 mm scale"),
        ("AV-Block I. Grades", "av-block i. grades"),
        ("ekg-VerÄnderung", "ecg-veränderung"),
        (" *=- ", ""),
    ],
)
def test_normalisation(raw, norm):
    assert normalise(raw) == norm
    assert normalise(norm) == norm


def test_a_report_is_cut_where_the_loader_joined_it_and_nowhere_else():
    lines = ["Sinus rhythm", "", "  ", "*** Consider ACUTE infarct ***", "---", "QRS 120 ms, V4.5", "Abnormal EKG."]
    cells = ["Sinus rhythm", "Consider ACUTE infarct", "QRS 120 ms, V4.5", "Abnormal ECG"]
    assert list(split(join_statements(lines))) == cells
    assert list(split(". . Sinus rhythm. . ***. LVH. ")) == ["Sinus rhythm", "LVH"]
    assert split("") == split(" . ") == ()


def test_abbreviations_do_not_end_a_statement():
    report = "v.a. vorderwandinfarkt, mÖgl. akut. av-block i. grades. intraventr. leitungsstoerung"
    expected = ["v.a. vorderwandinfarkt, mÖgl. akut", "av-block i. grades", "intraventr. leitungsstoerung"]
    assert list(split(report)) == expected


def test_codes_typed_after_a_report_are_no_statement():
    assert list(split("sinus rhythm. normal ecg. Edit: NORM 80, (NORM 100)")) == ["sinus rhythm", "normal ecg"]


def test_counts_agree_with_counting_by_hand():
    reports = [
        "Sinus rhythm. Possible LVH. Abnormal ECG",
        "",
        "sinus  rhythm. *Sinus rhythm*. Abnormal EKG",
        "Atrial fibrillation. QRS 110 ms",
        "QRS 130 ms",
        ". ".join(f"pause {i}" for i in range(25)) + ". LVH",
    ]
    s = collect(reports)
    assert s.norm[:5] == ["sinus rhythm", "possible lvh", "abnormal ecg", "atrial fibrillation", "qrs <num>"]
    assert s.of_report[:5] == [[0, 1, 2], [], [0, 0, 2], [3, 4], [4]] and len(s.of_report[5]) == 26
    assert s.ids == [hashlib.sha256(n.encode()).hexdigest()[:12] for n in s.norm] == list(map(statement_id, s.norm))
    assert list(s.table.columns) == ["id", "norm", "raw", "n_records", "n_occurrences", "positions"]
    for i, row in s.table.iterrows():
        places = [(r, p) for r, said in enumerate(s.of_report) for p, k in enumerate(said) if k == i]
        assert row.n_occurrences == len(places) == row.positions.sum()
        assert row.n_records == len({r for r, _ in places})
        for _, p in places:
            assert row.positions[min(p, 17)] > 0
    assert s.table.raw[0] == ["Sinus rhythm", "sinus  rhythm", "*Sinus rhythm*"]
    assert s.table.raw[4] == ["QRS 110 ms", "QRS 130 ms"]
    assert s.table[s.table.norm == "lvh"].positions.iloc[0][17] == 1  # all behind the last cell of a MIMIC row


def test_the_table_survives_parquet(tmp_path):
    import pandas as pd

    table = collect(["Sinus rhythm. LVH", "LVH"]).table
    table.to_parquet(tmp_path / "statements.parquet")
    again = pd.read_parquet(tmp_path / "statements.parquet")
    assert again.norm.tolist() == table.norm.tolist() and again.positions[1].tolist() == table.positions[1].tolist()


def test_a_report_can_be_the_unit():
    s = collect(["Sinus rhythm. LVH", "sinus rhythm. . LVH.", "LVH. Sinus rhythm", ""], unit="report")
    assert s.norm == ["sinus rhythm. lvh", "lvh. sinus rhythm"] and s.of_report == [[0], [0], [1], []]
    with pytest.raises(ValueError, match=r"extract.unit='word': one of statement, report"):
        collect([], unit="word")


def test_too_many_unique_statements_are_an_error_that_says_so():
    reports = [f"Patient number {i} was here. Sinus rhythm" for i in range(30)]
    with pytest.raises(ValueError, match=r"more than 20 unique statements.*normalisation has failed.*unit=report"):
        collect(reports, max_unique=20)
    assert len(collect(reports, max_unique=31).norm) == 31
    assert len(collect(reports, unit="report", max_unique=20).norm) == 30
