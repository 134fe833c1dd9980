"""The four ECG loaders: small trees in the official layouts and real files (`realdata`)."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from ecg_files import N_SAMPLES, edit_header, make_signal, with_nan, write_mimic, write_ptbxl, write_wfdb

from shared.ecg import LOADERS, cpsc2018, csn, mimic_iv_ecg, ptbxl
from shared.ecg.record import INDEX_COLUMNS, LEADS, EcgReadError
from shared.ecg.wfdb_io import age_years, read_record, read_signal

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "data/official"))


def real(name: str) -> Path:
    """Folder of a real data set, or a skip that says which one is missing."""
    if not (DATA_ROOT / name).is_dir():
        pytest.skip(f"{DATA_ROOT / name} is not there; set DATA_ROOT to a folder with the official release")
    return DATA_ROOT / name


# ------------------------------------------------------------------------------------------- reading signals


def test_leads_are_ordered_by_name_units_are_mv_and_extra_leads_left_out(tmp_path):
    signal = make_signal()
    shuffled = [7, 3, 11, 0, 5, 4, 1, 2, 6, 10, 9, 8]
    names = ["vx"] + [LEADS[i].upper() if i % 2 else LEADS[i].lower() for i in shuffled]
    rows = np.vstack([np.zeros(N_SAMPLES), signal[shuffled]])
    read_mv, fs_hz, n_interpolated = read_signal(write_wfdb(tmp_path / "r", rows, names))
    assert (read_mv.dtype, read_mv.shape, fs_hz, n_interpolated) == (np.float32, (12, N_SAMPLES), 500.0, 0)
    np.testing.assert_allclose(read_mv, signal, atol=0.51e-3)  # half a 1 µV step and float32


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("unit", ["mV", "mv", "uV", "µV"])
def test_millivolts_and_microvolts_in_either_spelling(tmp_path, unit, encoding):
    factor = 1000.0 if unit in ("uV", "µV") else 1.0
    path = write_wfdb(tmp_path / "r", make_signal() * factor, unit="mV" if unit == "µV" else unit, gain=1000 / factor)
    if unit == "µV":  # wfdb itself reads this header as volts
        edit_header(path, "/mV", "/µV", encoding)
        assert wfdb.rdheader(str(path)).units[0] == "V"
    np.testing.assert_allclose(read_signal(path)[0], make_signal(), atol=0.51e-3)


def test_gaps_up_to_40_ms_are_filled_by_a_line_and_counted(tmp_path):
    ramp = np.tile(np.linspace(-1, 1, N_SAMPLES), (12, 1))
    holes = ramp.copy()
    holes[3, 100:120] = np.nan  # 20 samples = 40 ms
    holes[3, 300:301] = np.nan
    holes[7, :5] = np.nan  # at an end: the nearest sample
    read_mv, _, n_interpolated = read_signal(write_wfdb(tmp_path / "r", holes))
    assert n_interpolated == 26
    np.testing.assert_allclose(read_mv[3], ramp[3], atol=1e-3)
    np.testing.assert_allclose(read_mv[7, :5], ramp[7, 5], atol=1e-3)
    assert np.isfinite(read_mv).all()


def test_the_limit_of_a_gap_is_a_time_not_a_number_of_samples(tmp_path):
    assert read_signal(write_wfdb(tmp_path / "r", with_nan(0, 50, 54), fs_hz=100))[2] == 4
    with pytest.raises(EcgReadError, match="I: 50 ms missing"):
        read_signal(write_wfdb(tmp_path / "r", with_nan(0, 50, 55), fs_hz=100))


def test_mat_files_of_the_cinc_form(tmp_path):
    """`16x1+24`: samples after a 24-byte Matlab header, -32768 = missing."""
    samples = np.round(make_signal() * 1000).astype("<i2")  # [12, n] in µV
    samples[2, 10:13] = -32768
    (tmp_path / "A0001.mat").write_bytes(b"\x07" * 24 + samples.T.tobytes())
    lines = [f"A0001.mat 16x1+24 1000.0(0)/mV 16 0 0 0 0 {name}" for name in LEADS]
    (tmp_path / "A0001.hea").write_text("\n".join([f"A0001 12 500 {N_SAMPLES}", *lines, "#Dx: 426783006"]) + "\n")
    read_mv, _, n_interpolated = read_signal(tmp_path / "A0001", 500)
    assert n_interpolated == 3
    np.testing.assert_allclose(read_mv[4], samples[4] / 1000, atol=1e-6)


# ---------------------------------------------------------------------------------------------- PTB-XL layout


def test_ptbxl_layout(tmp_path):
    root = write_ptbxl(tmp_path / "ptb-xl")
    write_wfdb(root / "records500/00000/00002_hr", names=[name.upper() for name in LEADS])
    write_wfdb(root / "records100/00000/00002_lr", make_signal(200), fs_hz=100)
    index = ptbxl.read_index(root)
    assert tuple(index.columns) == INDEX_COLUMNS
    assert index.record_id.tolist() == ["1", "2", "3"]
    assert index.patient_id.tolist() == ["15709", "15709", "22"]
    assert index.labels.tolist() == [["NORM", "SR"], ["SBRAD"], []]
    assert index.sex.tolist() == ["F", "M", "M"]
    assert index.age.tolist()[:2] == [56.0, 90.0] and np.isnan(index.age[2])
    assert index.fold.tolist() == [3, 3, 10]
    assert index.report[0] == "sinusrhythmus normales ekg"
    record = read_record(root, index.iloc[1], ptbxl.NAME, 500)
    assert (record.record_id, record.labels, record.fold, record.dataset) == ("2", ("SBRAD",), 3, "ptb-xl")
    np.testing.assert_allclose(record.signal_mv, make_signal(), atol=0.51e-3)
    assert read_record(root, ptbxl.read_index(root, 100).iloc[1], ptbxl.NAME, 100).signal_mv.shape == (12, 200)
    with pytest.raises(EcgReadError) as error:  # in the table, not on the disk
        read_record(root, index.iloc[0], ptbxl.NAME, 500)
    assert error.value.reason == "missing file"
    with pytest.raises(ValueError, match="choose 500 or 100"):
        ptbxl.read_index(root, 250)


def test_ptbxl_empty_report_is_counted_and_another_text_column_can_be_chosen(tmp_path):
    index = ptbxl.read_index(write_ptbxl(tmp_path, report={1: "", 2: "  "}, report_en={0: "sinus rhythm"}))
    assert index.report.tolist()[1:] == ["", ""]
    assert index.attrs["warnings"] == {"empty report": 2}
    assert ptbxl.read_index(tmp_path, report_column="report_en").report[0] == "sinus rhythm"


# --------------------------------------------------------------------------------------- MIMIC-IV-ECG layout


def test_mimic_tables_are_joined_on_study_id_and_leads_ordered_by_name(tmp_path):
    studies = [("10000032", "44444444"), ("10000032", "22222222"), ("10000980", "33333333")]
    measurements = [  # in another order than the record list
        (
            "10000980",
            "33333333",
            ["--- Warning: Data quality may affect interpretation ---", "", "Atrial fibrillation."],
        ),
        ("10000032", "22222222", ["Sinus  rhythm", None, " Abnormal EKG ", "*** Poor data quality ***"]),
        ("10000032", "44444444", [None, " ", "==="]),
    ]
    root = write_mimic(tmp_path / "mimic-iv-ecg", studies, measurements, with_signals=("22222222",))
    index = mimic_iv_ecg.read_index(root)
    assert tuple(index.columns) == INDEX_COLUMNS
    assert index.record_id.tolist() == ["44444444", "22222222", "33333333"]
    assert index.patient_id.tolist() == ["10000032", "10000032", "10000980"]
    assert index.report.tolist() == [
        "",
        "Sinus rhythm. Abnormal ECG. Poor data quality",
        "Warning: Data quality may affect interpretation. Atrial fibrillation",
    ]
    assert index.attrs["warnings"] == {"empty report": 1}
    path = root / index.path[1]
    assert wfdb.rdheader(str(path)).sig_name[4:6] == ["aVF", "aVL"]
    signal_mv = read_record(root, index.iloc[1], mimic_iv_ecg.NAME, 500).signal_mv
    np.testing.assert_allclose(signal_mv, make_signal(), atol=2.51e-3)  # half of the 5 µV step at 200 per mV
    with pytest.raises(EcgReadError, match="missing file"):
        read_record(root, index.iloc[0], mimic_iv_ecg.NAME, 500)


def test_mimic_unmatched_rows_are_counted_and_never_paired_by_number(tmp_path):
    studies = [("10000032", "11111111"), ("10000032", "22222222")]
    measurements = [("10000032", "22222222", ["Sinus rhythm"]), ("10000032", "99999999", ["Atrial flutter"])]
    with pytest.warns(UserWarning, match="1 records without measurements, 1 measurements without record"):
        index = mimic_iv_ecg.read_index(write_mimic(tmp_path, studies, measurements))
    assert index.report.tolist() == ["", "Sinus rhythm"]
    assert index.attrs["warnings"] == {
        "unmatched study_id in record_list.csv": 1,
        "unmatched study_id in machine_measurements.csv": 1,
        "empty report": 1,
    }


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("*** Report made without knowledge of sex ***", "Report made without knowledge of sex"),
        ("- Borderline   EKG -", "Borderline ECG"),
        ("Sinus rhythm.", "Sinus rhythm"),
        ("Left axis deviation (QRS axis -45)", "Left axis deviation (QRS axis -45)"),
        ("Non-specific ST-T changes *.", "Non-specific ST-T changes"),
        (" = ", ""),
    ],
)
def test_clean_statement(raw, clean):
    assert mimic_iv_ecg.clean_statement(raw) == clean


# ------------------------------------------------------------------------------------------ CinC 2020/2021 form


def test_cinc_records_are_found_in_any_folders(tmp_path):
    write_wfdb(tmp_path / "g2/A0002", comments=["Age: 74", "Sex: Male", "Dx: 59118001,426783006,59118001"])
    write_wfdb(tmp_path / "g1/A0003", comments=["Age: NaN", "Sex: Unknown", "Dx: Unknown"])
    write_wfdb(tmp_path / "A0001", comments=["Age: 300", "Sex: Female", "Dx: 164889003, LBBB"])
    (tmp_path / "g1/A0004.hea").write_text("")  # as the empty header in the CSN release: fails when it is read
    edit_header(tmp_path / "g2/A0002", "^# ", "#")  # the 2020 spelling
    for loader in (cpsc2018, csn):
        index = loader.read_index(tmp_path)
        assert tuple(index.columns) == INDEX_COLUMNS
        assert index.record_id.tolist() == index.patient_id.tolist() == ["A0001", "A0002", "A0003", "A0004"]
        assert index.path.tolist() == ["A0001", "g2/A0002", "g1/A0003", "g1/A0004"]
        assert index.labels.tolist() == [["164889003"], ["59118001", "426783006"], [], []]
        assert index.sex.tolist() == ["F", "M", "", ""]
        np.testing.assert_array_equal(index.age, [90.0, 74.0, np.nan, np.nan])
        assert set(index.report) == {""} and set(index.fold) == {0}
        assert index.attrs["warnings"] == {"no Dx": 2, "malformed Dx": 1}
    assert read_record(tmp_path, index.iloc[1], csn.NAME, 500).labels == ("59118001", "426783006")
    with pytest.raises(EcgReadError, match="bad header"):
        read_record(tmp_path, index.iloc[3], csn.NAME, 500)


@pytest.mark.parametrize(("text", "age"), [("84", 84.0), ("300", 90.0), ("-1", np.nan), ("", np.nan), ("NaN", np.nan)])
def test_age_years(text, age):
    np.testing.assert_equal(age_years(text), age)


def test_loaders_are_listed_by_folder_name():
    assert set(LOADERS) == {"ptb-xl", "mimic-iv-ecg", "cpsc2018", "chapman-shaoxing-ningbo"}
    assert all(loader.FS_HZ == 500.0 for loader in LOADERS.values())


# ------------------------------------------------------------------------------------------------- real files


def read_by_hand(path: Path) -> tuple[np.ndarray, dict[str, int]]:
    """A second reading without wfdb: [12, n] mV in the order of LEADS, and the checksums of the header by lead."""
    lines = [line.split() for line in Path(f"{path}.hea").read_text().splitlines() if line and line[0] != "#"]
    n_signals, n_samples = int(lines[0][1]), int(lines[0][3])
    file_of = {}
    for fields in lines[1:]:
        file_of.setdefault(fields[0], []).append(fields)
    rows = {}
    for name, signals in file_of.items():
        offset = int(signals[0][1].partition("+")[2] or 0)
        raw = np.frombuffer((path.parent / name).read_bytes()[offset:], dtype="<i2").reshape(n_samples, len(signals))
        for column, fields in enumerate(signals):
            gain = float(re.match(r"[\d.]+", fields[2]).group())
            checksum_ok = (int(raw[:, column].sum()) - int(fields[6])) % 65536 == 0
            rows[fields[8].lower()] = (raw[:, column] / gain, checksum_ok)
    assert len(rows) == n_signals
    return np.stack([rows[name.lower()][0] for name in LEADS]), {name: ok for name, (_, ok) in rows.items()}


def check_real(root: Path, index: pd.DataFrame, name: str, fs_hz: float, n_samples: int) -> dict[str, str]:
    """Read every record and compare it with the second reading; returns the skips as record id -> reason."""
    skips = {}
    for _, row in index.iterrows():
        expected_mv, checksum_ok = read_by_hand(root / row.path)
        assert all(checksum_ok.values()), row.path
        try:
            record = read_record(root, row, name, fs_hz)
        except EcgReadError as error:
            skips[row.record_id] = error.reason
            continue
        assert record.signal_mv.shape == (12, n_samples) and record.fs_hz == fs_hz and record.n_interpolated == 0
        np.testing.assert_allclose(record.signal_mv, expected_mv, atol=1e-6)
    return skips


@pytest.mark.realdata
@pytest.mark.parametrize(("fs_hz", "n_samples"), [(500, 5000), (100, 1000)])
def test_real_ptbxl(fs_hz, n_samples):
    root = real("ptb-xl")
    index = ptbxl.read_index(root, fs_hz).head(350)
    assert index.record_id.tolist() == [str(i) for i in range(1, 351)]
    assert index.iloc[0].to_dict() == {
        "record_id": "1",
        "patient_id": "15709",
        "path": {500: "records500/00000/00001_hr", 100: "records100/00000/00001_lr"}[fs_hz],
        "report": "sinusrhythmus periphere niederspannung",
        "labels": ["NORM", "LVOLT", "SR"],
        "fold": 3,
        "age": 56.0,
        "sex": "F",
    }
    assert index.patient_id.nunique() == 320 and set(index.fold) == set(range(1, 11))
    assert check_real(root, index, ptbxl.NAME, fs_hz, n_samples) == {}


@pytest.mark.realdata
def test_real_ptbxl_leads_obey_einthoven_and_goldberger():
    """II = I + III and the augmented leads follow from I and II, to the 1 µV rounding of the files: the order is right.

    One record (162) carries a 2.6 mV spike of 20 ms in AVR and AVF alone, in the release itself.
    """
    root = real("ptb-xl")
    broken = []
    for _, row in ptbxl.read_index(root).head(350).iterrows():
        i, ii, iii, avr, avl, avf = read_record(root, row, ptbxl.NAME, 500).signal_mv[:6].astype(float)
        residuals = np.abs([ii - i - iii, avr + (i + ii) / 2, avl - (i - iii) / 2, avf - (ii + iii) / 2])
        if residuals.max() > 2.1e-3:
            broken.append((row.record_id, int((residuals > 2.1e-3).any(axis=0).sum())))
    assert broken == [("162", 11)]


@pytest.mark.realdata
def test_real_csn():
    """Two of these twelve records have leads that are zero throughout (V2, V4, V6): skips, with that reason."""
    root = real("chapman-shaoxing-ningbo")
    index = csn.read_index(root)
    index = index[index.record_id.isin([f"JS{i}" for i in range(20000, 20012)])]
    assert len(index) == 12 and index.record_id.is_monotonic_increasing
    first = index.iloc[0]
    assert (first.record_id, first.age, first.sex) == ("JS20000", 84.0, "F")
    assert first.labels == ["284470004", "427084000", "698252002", "55930002"]
    assert check_real(root, index, csn.NAME, 500, 5000) == {"JS20004": "flat lead", "JS20008": "flat lead"}
    with pytest.raises(EcgReadError, match=r"flat lead \(V2, V4, V6\)"):
        read_record(root, index.iloc[4], csn.NAME, 500)


@pytest.mark.realdata
def test_real_cinc_form_of_ptbxl():
    """HR06000 .. HR06009: units written `mv`; read by the CPSC2018 loader, whose release has the same form."""
    root = real("ptb-xl-cinc2021")
    index = cpsc2018.read_index(root)
    assert index.record_id.tolist() == [f"HR{i:05d}" for i in range(6000, 6010)]
    assert index.labels[0] == ["164934002", "426783006"] and index.sex[0] == "F" and index.age[0] == 59.0
    assert check_real(root, index, cpsc2018.NAME, 500, 5000) == {}


@pytest.mark.realdata
def test_real_ptbdb_has_lower_case_names_two_files_and_three_more_leads():
    path = real("ptbdb") / "s0010_re"
    signal_mv, fs_hz, n_interpolated = read_signal(path)
    assert (signal_mv.shape, fs_hz, n_interpolated) == ((12, 38400), 1000.0, 0)
    np.testing.assert_allclose(signal_mv, read_by_hand(path)[0], atol=1e-6)
    assert 0.5 < np.ptp(signal_mv[1]) < 5  # lead II, mV
    with pytest.raises(EcgReadError, match="1000 Hz in the header, 500 Hz expected"):
        read_signal(path, 500)


@pytest.mark.realdata
def test_real_mimic_row():
    root = real("mimic-iv-ecg")
    row = mimic_iv_ecg.read_index(root).set_index("record_id", drop=False).loc["40689238"]
    assert (row.patient_id, row.path) == ("10000032", "files/p1000/p10000032/s40689238/40689238")
    assert row.report == "Sinus rhythm. Possible right atrial abnormality. Borderline ECG"
    assert row.labels == [] and row.fold == 0
