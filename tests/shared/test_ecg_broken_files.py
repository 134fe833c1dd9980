"""Broken records, tables and folders: every one a named error (`EcgReadError`) that says what is wrong and where."""

from pathlib import Path

import numpy as np
import pytest
from ecg_files import N_SAMPLES, edit_header, make_signal, with_nan, write_mimic, write_ptbxl, write_wfdb

from shared.ecg import cpsc2018, mimic_iv_ecg, ptbxl
from shared.ecg.record import LEADS, EcgReadError
from shared.ecg.wfdb_io import read_record, read_signal

# ---------------------------------------------------------------------------------------------------- records


def _cut(path: Path, n_bytes: int) -> None:
    data = Path(f"{path}.dat")
    data.write_bytes(data.read_bytes()[:n_bytes])


FLAT = np.vstack([make_signal()[:10], np.full((1, N_SAMPLES), 0.25), make_signal()[11:]])
SPIKE = np.where(np.arange(N_SAMPLES) == 500, 40.0, make_signal())
BROKEN = {
    # name: (arguments of write_wfdb, edit of the written files, expected reason, expected in the message)
    "truncated": ({}, lambda p: _cut(p, 12 * 2 * 900), "truncated", "21600 of 24000 bytes"),
    "truncated within a frame": ({}, lambda p: _cut(p, 12 * 2 * 900 + 3), "truncated", "of 24000 bytes"),
    "empty data file": ({}, lambda p: _cut(p, 0), "truncated", "0 of 24000 bytes"),
    "empty, length not announced": (
        {},
        lambda p: (_cut(p, 0), edit_header(p, "^(r 12 500) 1000", r"\1")),
        "no samples",
        "",
    ),
    "long gap": ({"signal": with_nan(4, 100, 121)}, None, "long gap", "aVL: 42 ms"),
    "long gap at the end": ({"signal": with_nan(0, N_SAMPLES - 21, N_SAMPLES)}, None, "long gap", "I: 42 ms"),
    "flat": ({"signal": FLAT}, None, "flat lead", "V5"),
    "all zero": ({"signal": np.zeros((12, N_SAMPLES))}, None, "flat lead", "I, II, III, aVR"),
    "missing lead": ({"signal": make_signal()[:11], "names": LEADS[:11]}, None, "missing lead", "V6"),
    "no lead names": ({}, lambda p: edit_header(p, r"^(r\.dat.*) \S+$", r"\1"), "missing lead", "I, II"),
    "duplicate lead": ({}, lambda p: edit_header(p, "V6$", "v5"), "duplicate lead", "V5"),
    "wrong unit": ({"unit": "mmHg"}, None, "wrong unit", "'mmHg'"),
    "volts": ({"unit": "V"}, None, "wrong unit", "'V'"),
    "wrong rate": ({"fs_hz": 250}, None, "wrong rate", "250 Hz in the header, 500 Hz expected"),
    "rate zero": ({}, lambda p: edit_header(p, "^r 12 500", "r 12 0"), "bad header", "sampling rate 0"),
    "bad header": ({}, lambda p: Path(f"{p}.hea").write_text("not a header\n"), "bad header", ""),
    "empty header": ({}, lambda p: Path(f"{p}.hea").write_text(""), "bad header", ""),
    "binary header": ({}, lambda p: Path(f"{p}.hea").write_bytes(b"\x00\xff\x01" * 9), "bad header", ""),
    "more signals announced": ({}, lambda p: edit_header(p, "^r 12", "r 13"), "bad header", ""),
    "header leaves the folder": ({}, lambda p: edit_header(p, r"^r\.dat", "../r.dat"), "bad header", ""),
    "no samples": ({}, lambda p: edit_header(p, "^(r 12 500) 1000", r"\1 0"), "no samples", ""),
    "unknown format": ({}, lambda p: edit_header(p, r"\.dat 16 ", ".dat 999 "), "unreadable", "999"),
    "no data file": ({}, lambda p: Path(f"{p}.dat").unlink(), "missing file", "r.dat"),
    "no header": ({}, lambda p: Path(f"{p}.hea").unlink(), "missing file", "r.hea"),
    "amplitude": ({"signal": SPIKE, "gain": 500.0}, None, "amplitude", "40.0 mV"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_record_is_a_named_error(tmp_path, name):
    arguments, edit, reason, message = BROKEN[name]
    path = write_wfdb(tmp_path / "r", **arguments)
    if edit:
        edit(path)
    with pytest.raises(EcgReadError) as error:
        read_signal(path, 500)
    assert error.value.reason == reason, str(error.value)
    assert message in error.value.detail
    assert error.value.path == str(path)


@pytest.mark.parametrize("path", ["../r", "/etc/r", "a/../../r", "..\\r", "s3://bucket/r", ""])
def test_path_outside_the_root(tmp_path, path):
    write_wfdb(tmp_path / "r")
    (tmp_path / "root").mkdir()
    with pytest.raises(EcgReadError) as error:
        read_record(tmp_path / "root", {"path": path, "record_id": "1"}, "x")
    assert error.value.reason == "path outside the root"


# ----------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"scp_codes": {1: "{'NORM': 100.0"}}, "malformed scp_codes", "ecg_id 2"),
        ({"scp_codes": {1: "['NORM']"}}, "malformed scp_codes", "ecg_id 2"),
        ({"scp_codes": {0: "__import__('os').getcwd()"}}, "malformed scp_codes", "ecg_id 1"),
        ({"scp_codes": {0: ""}}, "malformed scp_codes", "ecg_id 1"),
        ({"strat_fold": {2: 11}}, "malformed strat_fold", "'11'"),
        ({"strat_fold": {2: ""}}, "malformed strat_fold", "ecg_id 3"),
        ({"ecg_id": {2: 1}}, "duplicate id", "first 1: records500/00000/00001_hr"),
    ],
)
def test_ptbxl_broken_table(tmp_path, changes, reason, message):
    with pytest.raises(EcgReadError) as error:
        ptbxl.read_index(write_ptbxl(tmp_path, **changes))
    assert error.value.reason == reason
    assert message in error.value.detail


def test_tables_that_are_missing_or_without_a_column(tmp_path):
    for loader in (ptbxl, mimic_iv_ecg):
        with pytest.raises(EcgReadError) as error:
            loader.read_index(tmp_path)
        assert error.value.reason == "missing file"
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,report\n1,x\n")
    with pytest.raises(EcgReadError, match=r"bad csv \(no column patient_id"):
        ptbxl.read_index(tmp_path)
    (tmp_path / "ptbxl_database.csv").write_text("")
    with pytest.raises(EcgReadError, match="bad csv"):
        ptbxl.read_index(tmp_path)
    with pytest.raises(EcgReadError, match="no column report_en"):
        ptbxl.read_index(write_ptbxl(tmp_path), report_column="report_en")


@pytest.mark.parametrize(
    ("studies", "measurements", "reason", "file"),
    [
        ([("1000", "7"), ("1000", "7")], [("1000", "7", ["x"])], "duplicate id", "record_list.csv"),
        ([("1000", "7")], [("1000", "7", ["x"]), ("1000", "7", ["y"])], "duplicate id", "machine_measurements.csv"),
        ([("1000", "7")], [("2000", "7", ["x"])], "mismatched subject_id", "machine_measurements.csv"),
    ],
)
def test_mimic_broken_tables(tmp_path, studies, measurements, reason, file):
    with pytest.raises(EcgReadError) as error:
        mimic_iv_ecg.read_index(write_mimic(tmp_path, studies, measurements))
    assert error.value.reason == reason
    assert error.value.path.endswith(file)


# ---------------------------------------------------------------------------------------------------- folders


def test_cinc_broken_trees(tmp_path):
    for root, reason in ((tmp_path / "nowhere", "missing file"), (tmp_path, "no records")):
        with pytest.raises(EcgReadError) as error:
            cpsc2018.read_index(root)
        assert error.value.reason == reason
    write_wfdb(tmp_path / "g1/A0001")
    write_wfdb(tmp_path / "g2/A0001")
    with pytest.raises(EcgReadError, match=r"duplicate id .*g1/A0001, g2/A0001"):
        cpsc2018.read_index(tmp_path)
