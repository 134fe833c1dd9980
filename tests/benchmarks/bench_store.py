"""The packed store against reading each record with `wfdb`: packing on all cores, random reads, and what MIMIC costs.

Records are 12 x 5000 at 500 Hz (the shape of MIMIC-IV-ECG and PTB-XL), random walks written by `wfdb.wrsamp` in the
PTB-XL layout; its table names each file many times, so that the timings are long enough without gigabytes of input.
Everything is read from the page cache, on both sides. Process start-up is left out on both sides: the pool that decodes
with bare `wfdb` is warmed up, and the packing rate is the slope between a short and a long pack. The two alternate and
the fastest of each counts, because what else runs on the machine only ever slows them down. Packing counts as bound by
decoding from a ratio of 0.75: at least three quarters of its time is what bare decoding takes.
"""

import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.decode import CHUNK_RECORDS, init_worker, process_context
from shared.ecg.record import LEADS
from shared.ecg.store import EcgStore, pack
from shared.metrics.benchmark import Row

N_FILES = 128
N_SHORT, N_LONG = 256, 1792  # records of the two packs
N_ROUNDS = 5
N_SAMPLES, FS_HZ = 5000, 500
MIMIC_RECORDS = 800_035  # MIMIC-IV-ECG 1.0


def run() -> list[Row]:
    """All rows; takes about half a minute on two cores and 0.3 GB of temporary disk."""
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    try:
        root = folder / "ptb-xl"
        write_walks(root, N_FILES)
        cores = os.cpu_count() or 1
        rounds = [(_pack_rate(root, folder, cores), _decode_rate(root, cores)) for _ in range(N_ROUNDS)]
        pack_rate, decode_rate = np.max(rounds, axis=0).tolist()
        store = EcgStore(folder / "long")
        order = np.random.default_rng(0).permutation(len(store))
        paths = [root / path for path in store.records.path[order[:256]]]
        wfdb_rate = max(_rate(read_with_wfdb, paths) for _ in range(N_ROUNDS))
        read_rate = max(_rate(store.signal_mv, order) for _ in range(N_ROUNDS))
        batches = order[: len(order) // 64 * 64].reshape(-1, 64)
        batch_rate = 64 * max(_rate(store.batch_mv, batches) for _ in range(N_ROUNDS))
        bytes_per_record = store.manifest["bytes"]["signals.npy"] / len(store)
    finally:
        shutil.rmtree(folder)
    disk_gb, float_gb = (MIMIC_RECORDS * n / 1e9 for n in (bytes_per_record, 4 * len(LEADS) * N_SAMPLES))
    bare = f"{decode_rate:,.0f}/s bare wfdb.rdrecord, {cores} cores"
    loader = f"{wfdb_rate:,.0f}/s wfdb.rdrecord, 1 core"
    return [
        Row(f"store: packing, {cores} cores", pack_rate, "records/s", bare, pack_rate / decode_rate, 0.75),
        Row("store: random reads, 1 core", read_rate, "records/s", loader, read_rate / wfdb_rate, 20.0),
        Row("store: random batches of 64, 1 core", batch_rate, "records/s", loader, batch_rate / wfdb_rate, 20.0),
        Row("store: MIMIC-IV-ECG on disk", disk_gb, "GB", f"{float_gb:,.0f} GB as float32", float_gb / disk_gb),
    ]


def write_walks(root: Path, n_files: int, n_rows: int | None = None, n_samples: int = N_SAMPLES, seed: int = 0):
    """n_files random walks of 12 leads in mV as PTB-XL's records500/, and a table of n_rows rows that cycle through."""
    import wfdb

    folder = root / "records500" / "00000"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n_files):
        walk = rng.standard_normal((n_samples, len(LEADS))).cumsum(axis=0)
        walk_mv = np.clip(0.02 * (walk - walk.mean(axis=0)), -20, 20)
        wfdb.wrsamp(
            f"{i:05d}_hr",
            fs=FS_HZ,
            units=["mV"] * 12,
            sig_name=[lead.upper() for lead in LEADS],
            p_signal=walk_mv,
            fmt=["16"] * 12,
            adc_gain=[1000.0] * 12,
            baseline=[0] * 12,
            write_dir=str(folder),
        )
    write_table(root, n_files, n_rows or n_files)


def write_table(root: Path, n_files: int, n_rows: int):
    """ptbxl_database.csv with n_rows records, record i being file i modulo n_files."""
    number = np.arange(n_rows)
    table = pd.DataFrame({"ecg_id": number + 1, "patient_id": number + 1, "age": 60.0, "sex": 0, "report": "walk"})
    table["scp_codes"], table["strat_fold"] = "{'NORM': 100.0}", number % 10 + 1
    for column, suffix in (("filename_hr", "500/00000/{:05d}_hr"), ("filename_lr", "100/00000/{:05d}_lr")):
        table[column] = ["records" + suffix.format(i % n_files) for i in number]
    table.to_csv(root / "ptbxl_database.csv", index=False)


def read_with_wfdb(path: Path) -> np.ndarray:
    """What a data loader without a store does for each record: float32 [12, n_samples] in mV."""
    import wfdb

    return np.ascontiguousarray(wfdb.rdrecord(str(path)).p_signal.T, dtype=np.float32)


def _pack_rate(root: Path, folder: Path, cores: int) -> float:
    seconds = {}
    for name, n_rows in (("short", N_SHORT), ("long", N_LONG)):
        write_table(root, N_FILES, n_rows)
        shutil.rmtree(folder / name, ignore_errors=True)
        start = time.perf_counter()
        pack("ptb-xl", root, folder / name, workers=cores)
        seconds[name] = time.perf_counter() - start
    return (N_LONG - N_SHORT) / (seconds["long"] - seconds["short"])


def _decode_rate(root: Path, cores: int) -> float:
    """Records/s of bare wfdb.rdrecord, results thrown away, in as many processes as packing uses."""
    chunk = [i % N_FILES for i in range(CHUNK_RECORDS)]
    decode = partial(_decode_many, root)
    with ProcessPoolExecutor(cores, mp_context=process_context(), initializer=init_worker) as pool:
        list(pool.map(decode, [chunk] * cores))
        start = time.perf_counter()
        n_records = sum(pool.map(decode, [chunk] * ((N_LONG - N_SHORT) // CHUNK_RECORDS)))
        return n_records / (time.perf_counter() - start)


def _decode_many(root: Path, numbers: list[int]) -> int:
    import wfdb

    for number in numbers:
        wfdb.rdrecord(str(root / "records500" / "00000" / f"{number:05d}_hr"))
    return len(numbers)


def _rate(read, items) -> float:
    """Calls/s of read(item), after one call that opens the files."""
    read(items[0])
    start = time.perf_counter()
    for item in items:
        read(item)
    return len(items) / (time.perf_counter() - start)
