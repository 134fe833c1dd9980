"""The ECG simulator: its numbers, which findings it draws, and what it writes (reports, official files, paper)."""

import hashlib
import itertools
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.ecg import plot, simulate_reports
from shared.ecg.codes import FINDINGS
from shared.ecg.record import LEADS
from shared.ecg.simulate import (
    NAMES,
    PROFILES,
    conditions,
    contact_sheet,
    main,
    make_compatible,
    simulate,
    simulate_findings,
    write,
)

INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]
RHYTHMS = {name for name, finding in FINDINGS.items() if finding.group == "rhythm"}
CONDITIONS = conditions()


def outside_rank_3(signals_mv) -> np.ndarray:
    """Share of the energy of the 8 independent leads outside the best three spatial components, [n]."""
    eight = signals_mv[:, INDEPENDENT].astype(float)
    eight -= eight.mean(-1, keepdims=True)
    energy = np.linalg.svd(eight, compute_uv=False) ** 2
    return energy[:, 3:].sum(1) / energy.sum(1)


# --- the numbers themselves -------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_a_record_does_not_depend_on_how_many():
    few, many = simulate(3, "ptb-xl", 7, 100.0), simulate(70, "ptb-xl", 7, 100.0)
    assert few.signal_mv.tobytes() == many.signal_mv[:3].tobytes()
    assert few.findings == many.findings[:3]
    assert simulate(3, "ptb-xl", 8, 100.0).signal_mv.tobytes() != few.signal_mv.tobytes()
    assert simulate(3, "ptb-xl", 7, 500.0).findings == few.findings


@pytest.mark.parametrize(("fs_hz", "samples"), [(100.0, 1000), (500.0, 5000)])
def test_shape_and_range(fs_hz, samples):
    signal_mv = simulate(64, "mimic-iv-ecg", 1, fs_hz).signal_mv
    assert signal_mv.shape == (64, 12, samples) and signal_mv.dtype == np.float32
    assert np.isfinite(signal_mv).all() and np.abs(signal_mv).max() < 12
    assert (signal_mv.std(-1) > 0.005).all()  # no lead is flat, whichever electrode lost contact


def test_einthoven_and_goldberger_hold_with_noise():
    s = simulate(64, "cpsc2018", 3, 100.0).signal_mv
    one, two, three, avr, avl, avf = s[:, :6].transpose(1, 0, 2)
    for wrong in (one + three - two, avr + avl + avf, avr + (one + two) / 2, avl - (one - three) / 2):
        assert np.abs(wrong).max() < 1e-5


def test_energy_outside_rank_3_is_that_of_real_ecgs():
    share = outside_rank_3(simulate(384, "ptb-xl", 2, 100.0).signal_mv)
    low, median, high = np.percentile(share, [10, 50, 90])
    assert 0.015 < median < 0.035
    assert 0.005 < low < 0.015 and 0.035 < high < 0.08  # PTB-XL: 0.010 and 0.052


@pytest.mark.realdata
def test_energy_outside_rank_3_of_ptb_xl():
    import wfdb

    root = Path(os.environ.get("DATA_ROOT", "data/official")) / "ptb-xl" / "records100"
    headers = sorted(root.rglob("*.hea"))[:100]
    if not headers:
        pytest.skip(f"no PTB-XL records under {root}: set DATA_ROOT")
    real = np.stack([wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T for path in headers])
    assert 0.015 < np.median(outside_rank_3(real)) < 0.035


@pytest.mark.slow
def test_speed():
    simulate(64, "ptb-xl", 0)
    start = time.process_time()
    simulate(256, "ptb-xl", 1)
    assert 256 / (time.process_time() - start) > 200  # records per second of one core at 12 x 5000


# --- findings ---------------------------------------------------------------------------------------------------------


def test_every_finding_can_be_drawn_and_at_least_40_of_them():
    assert len(NAMES) >= 40
    assert [name for name, row in CONDITIONS.items() if name not in row] == []


def test_every_abnormal_finding_changes_the_signal():
    names = [name for name in NAMES if name not in ("normal", "sinus_rhythm")]
    for seed in (1, 2):
        plain, _ = simulate_findings([["normal", "sinus_rhythm"]] * len(names), seed, noisy=False)
        changed, _ = simulate_findings([CONDITIONS[name] for name in names], seed, noisy=False)
        difference = np.abs(changed - plain).max((1, 2))
        assert difference.min() > 0.08, names[difference.argmin()]


@pytest.mark.parametrize("profile", PROFILES)
def test_drawn_findings_can_coexist(profile):
    findings = simulate(640, profile, 5, 100.0).findings
    present = np.array([[name in row for name in NAMES] for row in findings])
    assert (make_compatible(present) == present).all()
    for row in map(set, findings):
        assert 1 <= len(row & RHYTHMS) <= 2
        assert len(row & RHYTHMS) == 1 or row & RHYTHMS == {"sinus_arrhythmia", "sinus_bradycardia"}
        assert "normal" not in row or row <= {"normal", "sinus_rhythm", "sinus_arrhythmia"}
        assert len(row & {"lbbb", "rbbb", "incomplete_rbbb", "incomplete_lbbb", "ivcd", "wpw", "paced_rhythm"}) <= 1
        assert not ("atrial_fibrillation" in row and row & {"av_block_1", "left_atrial_enlargement", "pac"})
        assert "lafb" not in row or "left_axis_deviation" in row
    share = present.mean(0)
    assert 0.1 < share[NAMES.index("normal")] < 0.6
    assert (np.sort(share) < 0.03).sum() >= 15  # a long tail


def test_rules_hold_for_any_wish():
    wish = np.random.default_rng(0).random((2000, len(NAMES))) < 0.2
    once = make_compatible(wish)
    assert (make_compatible(once) == once).all()
    assert once[:, [NAMES.index(name) for name in RHYTHMS]].any(1).all()


def test_hospitals_differ_and_together_show_everything():
    drawn_by = {p: simulate(1280, p, 1, 100.0).findings for p in PROFILES}
    assert {name for rows in drawn_by.values() for row in rows for name in row} == set(NAMES)
    rbbb = {p: np.mean(["rbbb" in row for row in rows]) for p, rows in drawn_by.items()}
    assert rbbb["cpsc2018"] > 2 * rbbb["ptb-xl"]


def test_impossible_wishes_and_unknown_names_are_errors():
    with pytest.raises(ValueError, match="cannot draw"):
        simulate_findings([["atrial_fibrillation", "sinus_rhythm"]], 0)
    with pytest.raises(ValueError, match="cannot draw"):
        simulate_findings([["sinus_rhythm", "no_such_finding"]], 0)
    with pytest.raises(KeyError, match="unknown profile"):
        simulate(1, "ptbxl", 0)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_reports_name_what_was_drawn_and_deny_only_what_was_not():
    batch = simulate(640, "mimic-iv-ecg", 4, 100.0)
    denied = 0
    for i, findings in enumerate(batch.findings):
        strength = dict(zip(NAMES, batch.strength[i], strict=True))
        lines = simulate_reports.mimic_report(findings, strength, np.random.default_rng(i))
        text = " | ".join(lines).lower()
        for name in set(findings) - {"normal"}:
            assert any(words.lower() in text for words in simulate_reports.ENGLISH[name]), (name, text)
        assert (lines[-1] == "Normal ECG") == ("normal" in findings) and "ECG" in lines[-1]
        for line in lines:
            for denial, absent in simulate_reports._NEGATIONS.items():
                if line == denial:
                    denied += 1
                    assert not set(absent) & set(findings)
    assert denied > 50


def test_weak_findings_are_hedged_more_often():
    rng = np.random.default_rng(0)
    weak = np.mean([simulate_reports.is_hedged("inferior_mi", 0.7, rng) for _ in range(400)])
    strong = np.mean([simulate_reports.is_hedged("inferior_mi", 1.2, rng) for _ in range(400)])
    assert weak > 0.5 and strong < 0.12
    assert not any(simulate_reports.is_hedged("sinus_rhythm", 0.7, rng) for _ in range(50))


def test_every_finding_has_words_in_three_languages():
    for words in (simulate_reports.ENGLISH, simulate_reports.GERMAN, simulate_reports.SWEDISH):
        assert set(words) == set(NAMES) and all(words.values())
    texts = [simulate_reports.ptbxl_report(["sinus_rhythm", "lvh"], {"sinus_rhythm": 1, "lvh": 1},
                                           np.random.default_rng(k)) for k in range(300)]  # fmt: skip
    assert 0.5 < np.mean(["sinusrhythmus" in text for text in texts]) < 0.8
    assert np.mean(["sinus rhythm" in text for text in texts]) > 0.15
    assert any("sinusrytm" in text for text in texts)


# --- files ------------------------------------------------------------------------------------------------------------


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".parquet":
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    base = tmp_path_factory.mktemp("official")
    return {profile: write(profile, base / profile, 70, 3, 100.0) for profile in PROFILES}


LEAD_NAMES = {
    "mimic-iv-ecg": ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"],
    "ptb-xl": ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"],
    "cpsc2018": list(LEADS),
    "chapman-shaoxing-ningbo": list(LEADS),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_wfdb_reads_back_what_was_drawn(trees, profile):
    import wfdb

    batch = simulate(70, profile, 3, 100.0)
    truth = pd.read_parquet(trees[profile] / "truth.parquet")
    assert len(truth) == 70 and truth.record_id.is_unique
    assert [list(row) for row in truth.findings] == batch.findings
    paths = {re.sub("_lr$", "", path.stem): path for path in trees[profile].rglob("*.hea")}
    assert len(paths) == 70
    for i in (0, 13, 69):
        key = truth.record_id[i].zfill(5) if profile == "ptb-xl" else truth.record_id[i]
        record = wfdb.rdrecord(str(paths[key].with_suffix("")))
        stored = wfdb.rdrecord(str(paths[key].with_suffix("")), physical=False)
        assert record.sig_name == LEAD_NAMES[profile] and record.fs == 100 and set(record.units) == {"mV"}
        assert stored.calc_checksum() == [c % 65536 for c in record.checksum]
        gain = 200 if profile == "mimic-iv-ecg" else 1000
        wanted = batch.signal_mv[i][[[n.upper() for n in LEADS].index(n.upper()) for n in record.sig_name]].T
        assert np.abs(record.p_signal - wanted[: record.sig_len]).max() <= 0.5 / gain + 1e-6


def test_tables_of_the_official_layouts(trees):
    mimic = pd.read_csv(trees["mimic-iv-ecg"] / "machine_measurements.csv")
    listing = pd.read_csv(trees["mimic-iv-ecg"] / "record_list.csv")
    assert set(mimic.study_id) == set(listing.study_id) and mimic.subject_id.nunique() < 60
    for row in listing.itertuples():
        assert row.path == f"files/p{row.subject_id // 10000}/p{row.subject_id}/s{row.study_id}/{row.study_id}"
        assert (trees["mimic-iv-ecg"] / f"{row.path}.dat").exists()
    assert (mimic.qrs_end > mimic.qrs_onset).all() and (mimic.t_end > mimic.qrs_end).all()
    table = pd.read_csv(trees["ptb-xl"] / "ptbxl_database.csv")
    assert (table.groupby("patient_id").strat_fold.nunique() == 1).all()
    assert table.strat_fold.between(1, 10).all() and table.strat_fold.nunique() >= 8
    codes = set(pd.read_csv(trees["ptb-xl"] / "scp_statements.csv", index_col=0).index)
    for row in table.itertuples():
        assert set(re.findall(r"'([^']+)':", row.scp_codes)) <= codes
        assert (trees["ptb-xl"] / f"{row.filename_lr}.dat").exists()
    for profile in ("cpsc2018", "chapman-shaoxing-ningbo"):
        header = next(trees[profile].rglob("*.hea")).read_text()
        assert re.search(r"^# Dx: \d+(,\d+)*$", header, re.M) and "16x1+24" in header
        assert re.search(r"^# Age: \d+$", header, re.M) and re.search(r"^# Sex: (Male|Female)$", header, re.M)
    assert next(trees["chapman-shaoxing-ningbo"].rglob("*.hea")).parent.parent.parent.name == "WFDBRecords"


@pytest.mark.realdata
def test_columns_are_the_official_ones(trees):
    root = Path(os.environ.get("DATA_ROOT", "data/official"))
    files = [("mimic-iv-ecg", "machine_measurements.csv"), ("mimic-iv-ecg", "record_list.csv"),
             ("ptb-xl", "ptbxl_database.csv"), ("ptb-xl", "scp_statements.csv")]  # fmt: skip
    missing = [name for dataset, name in files if not (root / dataset / name).exists()]
    if missing:
        pytest.skip(f"{missing} not under {root}: set DATA_ROOT")
    for dataset, name in files:
        wanted = pd.read_csv(root / dataset / name, nrows=1).columns.tolist()
        assert pd.read_csv(trees[dataset] / name, nrows=1).columns.tolist() == wanted


def test_writing_is_reproducible_parallel_or_not_and_never_overwrites(trees, tmp_path):
    leftover = tmp_path / "again.tmp"
    leftover.mkdir()
    (leftover / "half.dat").write_bytes(b"cut off")
    again = write("mimic-iv-ecg", tmp_path / "again", 70, 3, 100.0, workers=2)
    assert tree_hash(again) == tree_hash(trees["mimic-iv-ecg"])
    assert not leftover.exists() and not (again / "half.dat").exists()
    with pytest.raises(FileExistsError, match="remove it"):
        write("mimic-iv-ecg", again, 5, 3, 100.0)
    with pytest.raises(ValueError, match="100 and 500 Hz"):
        write("ptb-xl", tmp_path / "odd", 1, 0, 250.0)
    assert not (tmp_path / "odd").exists()


def test_full_rate_and_command_line(tmp_path, capsys):
    import wfdb

    main(["ptb-xl", str(tmp_path / "ptb-xl"), "--n", "2", "--seed", "1", "--fs-hz", "500"])
    assert str(tmp_path / "ptb-xl") in capsys.readouterr().out
    record = wfdb.rdrecord(str(tmp_path / "ptb-xl/records500/00000/00001_hr"))
    assert record.p_signal.shape == (5000, 12) and record.fs == 500
    with pytest.raises(SystemExit):
        main([])


# --- paper ------------------------------------------------------------------------------------------------------------


def test_draw_ecg_on_paper(tmp_path):
    from matplotlib.figure import Figure

    signals_mv, _ = simulate_findings([CONDITIONS["lbbb"]], 0)
    ax = plot.draw_ecg(Figure(), signals_mv[0], 500.0, "LBBB")
    traces = [line for line in ax.lines if len(line.get_xdata()) > 10]
    assert len(traces) == 13  # twelve leads and the rhythm strip
    assert ax.get_aspect() == pytest.approx(0.4)  # 25 mm/s and 10 mm/mV
    with pytest.raises(ValueError, match=r"\[12, n\]"):
        plot.draw_ecg(Figure(), signals_mv[0].T, 500.0)
    page = plot.draw_page(tmp_path / "page.png", signals_mv, 500.0, ["lbbb"], columns=1, dpi=40)
    assert page.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_contact_sheet_shows_every_finding(tmp_path):
    assert contact_sheet(tmp_path / "sheet.png").stat().st_size > 1_000_000


def test_hospitals_share_no_random_numbers():
    """Equal seeds, another hospital: neither the same waveforms nor the same strengths at the same place."""
    drawn = {name: simulate(64, name, seed=2, fs_hz=100) for name in PROFILES}
    for a, b in itertools.combinations(drawn, 2):
        x, y = (drawn[name].signal_mv[:, 1] for name in (a, b))
        same = np.array([np.corrcoef(p, q)[0, 1] for p, q in zip(x, y, strict=True)])
        assert (same > 0.9).sum() <= 1, (a, b)  # two regular rhythms may fall together by chance
        assert not np.allclose(drawn[a].strength, drawn[b].strength)
        assert not set(drawn[a].wording) & set(drawn[b].wording)
