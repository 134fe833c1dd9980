"""Small WFDB records and tables in the official layouts, written for the tests of the loaders."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

from shared.ecg.record import LEADS

MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # as the release writes them
FS_HZ, N_SAMPLES = 500, 1000


def make_signal(n_samples: int = N_SAMPLES, seed: int = 0) -> np.ndarray:
    """[12, n_samples] mV in the order of LEADS; every lead has its own amplitude, so that a swap shows."""
    noise = np.random.default_rng(seed).normal(size=(12, n_samples))
    return noise / np.abs(noise).max(axis=1, keepdims=True) * np.linspace(0.5, 2.0, 12)[:, None]


def write_wfdb(path: Path, signal=None, names=LEADS, fs_hz=FS_HZ, unit="mV", comments=(), gain=1000.0) -> Path:
    """Write a WFDB record: rows of `signal` [n, n_samples] belong to `names`; 1 µV steps as in PTB-XL."""
    signal = make_signal() if signal is None else signal
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(names)
    wfdb.wrsamp(
        path.name,
        fs=fs_hz,
        units=[unit] * n,
        sig_name=list(names),
        p_signal=signal.T,
        fmt=["16"] * n,
        adc_gain=[gain] * n,
        baseline=[0] * n,
        comments=list(comments),
        write_dir=str(path.parent),
    )
    return path


def edit_header(path: Path, pattern: str, replacement: str, encoding: str = "utf-8") -> None:
    header = Path(f"{path}.hea")
    edited, n = re.subn(pattern, replacement, header.read_text(), flags=re.MULTILINE)
    assert n, f"{pattern} not in {header}"
    header.write_bytes(edited.encode(encoding))


def with_nan(row: int, start: int, stop: int) -> np.ndarray:
    signal = make_signal()
    signal[row, start:stop] = np.nan
    return signal


def write_ptbxl(root: Path, **changes) -> Path:
    """Three records in the layout of PTB-XL; `changes` replace cells, as column -> {row: value}."""
    table = pd.DataFrame(
        {
            "ecg_id": [1, 2, 3],
            "patient_id": [15709.0, 15709.0, 22.0],
            "age": [56.0, 300.0, np.nan],
            "sex": [1, 0, 0],
            "report": ["sinusrhythmus  normales ekg", "sinus rhythm", "trace only requested."],
            "scp_codes": ["{'NORM': 100.0, 'SR': 0.0}", "{'SBRAD': 0.0}", "{}"],
            "strat_fold": [3, 3, 10],
            "filename_lr": [f"records100/00000/{i:05d}_lr" for i in (1, 2, 3)],
            "filename_hr": [f"records500/00000/{i:05d}_hr" for i in (1, 2, 3)],
        }
    ).astype(object)
    for column, cells in changes.items():
        for row, value in cells.items():
            table.loc[row, column] = value
    root.mkdir(parents=True, exist_ok=True)
    table.to_csv(root / "ptbxl_database.csv", index=False)
    return root


def write_mimic(root: Path, studies, measurements, with_signals=()) -> Path:
    """studies: [(subject, study)]; measurements: [(subject, study, [statements])], in the columns of the release."""
    root.mkdir(parents=True, exist_ok=True)
    paths = [f"files/p{subject[:4]}/p{subject}/s{study}/{study}" for subject, study in studies]
    pd.DataFrame(
        {
            "subject_id": [subject for subject, _ in studies],
            "study_id": [study for _, study in studies],
            "file_name": [study for _, study in studies],
            "ecg_time": "2180-07-23 08:44:00",
            "path": paths,
        }
    ).to_csv(root / "record_list.csv", index=False)
    rows = [
        {"subject_id": subject, "study_id": study, "cart_id": 1}
        | {f"report_{i}": statements[i] if i < len(statements) else None for i in range(18)}
        | {"bandwidth": "0.005-150 Hz", "rr_interval": 659}
        for subject, study, statements in measurements
    ]
    pd.DataFrame(rows).to_csv(root / "machine_measurements.csv", index=False)
    for (_, study), path in zip(studies, paths, strict=True):
        if study in with_signals:
            order = [LEADS.index(name) for name in MIMIC_LEADS]
            write_wfdb(root / path, make_signal()[order], MIMIC_LEADS, gain=200.0)
    return root
