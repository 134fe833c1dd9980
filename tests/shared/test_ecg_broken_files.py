"""Broken records, tables and folders: every one a named error (`EcgReadError`) that says what is wrong and where."""

from pathlib import Path

import numpy as np
import pytest
from ecg_files import N_SAMPLES, edit_header, make_signal, with_nan, write_mimic, write_ptbxl, write_wfdb

from shared.ecg import LOADERS, cpsc2018, csn, mimic_iv_ecg, ptbxl
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


OUTSIDE = ["../r", "/etc/r", "a/../../r", "..\\r", "s3://bucket/r", ""]


@pytest.mark.parametrize("path", OUTSIDE)
def test_path_outside_the_root(tmp_path, path):
    write_wfdb(tmp_path / "r")
    (tmp_path / "root").mkdir()
    with pytest.raises(EcgReadError) as error:
        read_record(tmp_path / "root", {"path": path, "record_id": "1"}, "x")
    assert error.value.reason == "path outside the root"


# ------------------------------------------------------------------------------------------ tables and folders


def _cinc_twice(root: Path) -> None:
    write_wfdb(root / "g1/A0001")
    write_wfdb(root / "g2/A0001")


def _table(text: str):
    return lambda root: (root / "ptbxl_database.csv").write_text(text)


TREES = {
    # name: (loader, what writes the broken tree into a folder that is there, expected reason, expected in the message)
    "ptb-xl: codes cut": (
        ptbxl,
        lambda r: write_ptbxl(r, scp_codes={1: "{'NORM': 100.0"}),
        "malformed scp_codes",
        "ecg_id 2",
    ),
    "ptb-xl: codes in a list": (
        ptbxl,
        lambda r: write_ptbxl(r, scp_codes={1: "['NORM']"}),
        "malformed scp_codes",
        "ecg_id 2",
    ),
    "ptb-xl: codes are code": (
        ptbxl,
        lambda r: write_ptbxl(r, scp_codes={0: "__import__('os').getcwd()"}),
        "malformed scp_codes",
        "ecg_id 1",
    ),
    "ptb-xl: no codes": (ptbxl, lambda r: write_ptbxl(r, scp_codes={0: ""}), "malformed scp_codes", "ecg_id 1"),
    "ptb-xl: fold 11": (ptbxl, lambda r: write_ptbxl(r, strat_fold={2: 11}), "malformed strat_fold", "'11'"),
    "ptb-xl: no fold": (ptbxl, lambda r: write_ptbxl(r, strat_fold={2: ""}), "malformed strat_fold", "ecg_id 3"),
    "ptb-xl: id twice": (
        ptbxl,
        lambda r: write_ptbxl(r, ecg_id={2: 1}),
        "duplicate id",
        "first 1: records500/00000/00001_hr",
    ),
    "ptb-xl: no column": (ptbxl, _table("ecg_id,report\n1,x\n"), "bad csv", "no column patient_id"),
    "ptb-xl: empty table": (ptbxl, _table(""), "bad csv", ""),
    "ptb-xl: no table": (ptbxl, lambda r: None, "missing file", "ptbxl_database.csv"),
    "mimic: no table": (mimic_iv_ecg, lambda r: None, "missing file", "record_list.csv"),
    "mimic: study listed twice": (
        mimic_iv_ecg,
        lambda r: write_mimic(r, [("1000", "7"), ("1000", "7")], [("1000", "7", ["x"])]),
        "duplicate id",
        "record_list.csv",
    ),
    "mimic: study measured twice": (
        mimic_iv_ecg,
        lambda r: write_mimic(r, [("1000", "7")], [("1000", "7", ["x"]), ("1000", "7", ["y"])]),
        "duplicate id",
        "machine_measurements.csv",
    ),
    "mimic: two subjects of a study": (
        mimic_iv_ecg,
        lambda r: write_mimic(r, [("1000", "7")], [("2000", "7", ["x"])]),
        "mismatched subject_id",
        "machine_measurements.csv",
    ),
    "cpsc2018: no header": (cpsc2018, lambda r: None, "no records", ""),
    "csn: no header": (csn, lambda r: None, "no records", ""),
    "cpsc2018: record in two folders": (cpsc2018, _cinc_twice, "duplicate id", "g1/A0001, g2/A0001"),
    "csn: record in two folders": (csn, _cinc_twice, "duplicate id", "g1/A0001, g2/A0001"),
}


@pytest.mark.parametrize("name", TREES)
def test_broken_tree_is_a_named_error(tmp_path, name):
    loader, write, reason, message = TREES[name]
    write(tmp_path)
    with pytest.raises(EcgReadError) as error:
        loader.read_index(tmp_path)
    assert error.value.reason == reason
    assert message in str(error.value)


@pytest.mark.parametrize("name", LOADERS)
def test_folder_that_is_not_there(tmp_path, name):
    with pytest.raises(EcgReadError, match=r"missing file .*DATA_ROOT"):
        LOADERS[name].read_index(tmp_path / "nowhere")


def test_report_column_that_is_not_there(tmp_path):
    with pytest.raises(EcgReadError, match=r"no column report_en"):
        ptbxl.read_index(write_ptbxl(tmp_path), report_column="report_en")
