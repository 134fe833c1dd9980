"""A small tree in the PTB-XL layout, and the files of a packed store, for the tests of shared/ecg/store.py."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

from shared.ecg.record import LEADS

REPOSITORY = Path(__file__).parents[2]
FILES = ("signals.npy", "records.parquet", "manifest.json")
N_RECORDS = 30


def write_tree(root: Path, lengths: list[int], fs_hz: int = 500) -> Path:
    """PTB-XL layout at fs_hz: record i is lengths[i] samples of a random walk."""
    folder = root / f"records{fs_hz}" / "00000"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, length in enumerate(lengths, 1):
        walk_mv = np.clip(0.02 * rng.standard_normal((length, 12)).cumsum(axis=0), -30, 30)
        wfdb.wrsamp(
            f"{i:05d}_hr",
            fs=fs_hz,
            units=["mV"] * 12,
            sig_name=[lead.upper() for lead in LEADS],
            p_signal=walk_mv,
            fmt=["16"] * 12,
            adc_gain=[1000.0] * 12,
            baseline=[0] * 12,
            write_dir=str(folder),
        )
    number = np.arange(1, len(lengths) + 1)
    table = pd.DataFrame({"ecg_id": number, "patient_id": number // 2 + 1.0, "age": 60.0, "sex": number % 2})
    table["report"], table["strat_fold"] = [f"Rhythmus {i} µV" for i in number], number % 10 + 1
    table["scp_codes"] = ["{'NORM': 100.0, 'SR': 0.0}" if i % 2 else "{}" for i in number]
    for column in ("filename_hr", "filename_lr"):
        table[column] = [f"records{fs_hz}/00000/{i:05d}_hr" for i in number]
    table.to_csv(root / "ptbxl_database.csv", index=False)
    return root


def digest(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]
