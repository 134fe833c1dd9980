"""Decoding for the packed store (store.py): WFDB records to int16 microvolts, on all cores, in index order."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.record import LEADS, EcgReadError
from shared.store import StoreError

CHUNK_RECORDS = 64  # records a worker decodes at once: 7.7 MB at 12 x 5000
UNITS_PER_MV = 1000


def decoded_chunks(index: pd.DataFrame, root: Path, job: dict, start: int, workers: int, scratch: Path) -> Iterator:
    """Decode index[start:] chunk by chunk, in order; yields what decode_chunk returns.

    Samples come back as files in the folder `scratch`, not through the pipe of the pool, which would cost as much as a
    third of decoding. At most workers + 2 chunks exist at a time; the caller deletes each.
    """
    starts = range(start, len(index), CHUNK_RECORDS)
    rates = (job["dataset"], job["source_fs_hz"], job["fs_hz"])
    tasks = (
        (index.iloc[first : first + CHUNK_RECORDS], root, *rates, scratch / f"chunk-{os.getpid()}-{first}.part")
        for first in starts
    )
    workers = min(workers, len(starts))
    if workers <= 1:  # a pool costs a second to start
        yield from (decode_chunk(*task) for task in tasks)
        return
    pending = deque()
    with ProcessPoolExecutor(workers, mp_context=process_context(), initializer=init_worker) as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(decode_chunk, *task))
                if len(pending) >= workers + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            message = f"{root}: a decoding process died (out of memory?); run again to continue, with fewer workers"
            raise StoreError(message) from error
        finally:
            for future in pending:
                future.cancel()


def process_context():
    """Processes that do not inherit this one's threads (progress bar, torch): a fork of those can deadlock."""
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shared.ecg.wfdb_io", "shared.ecg.store"])  # imports once, not once per worker
    return context


def init_worker():
    """Leave Ctrl-C to the parent, and end with it: after a kill -9 of the parent a worker would wait for ever."""
    import multiprocessing
    import signal
    import threading
    from multiprocessing.connection import wait

    def end_with_parent():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def decode_chunk(
    rows: pd.DataFrame, root: Path, dataset: str, source_fs_hz: float, fs_hz: float, file: Path
) -> tuple[Path, list, list]:
    """Decode rows (a slice of the index, labels = positions) and write their samples, int16, into `file`.

    Returns file, records [(position, n_samples, n_interpolated)], skips [(position, reason, detail)].
    """
    from shared.ecg.wfdb_io import read_record

    records, skips = [], []
    with open(file, "wb") as out:
        for position, row in zip(rows.index.tolist(), rows.to_dict("records"), strict=True):
            try:
                record = read_record(root, row, dataset, source_fs_hz)
                microvolts = _to_microvolts(resampled(record.signal_mv, source_fs_hz, fs_hz), row["path"])
            except EcgReadError as error:
                skips.append((position, error.reason, error.detail))
                continue
            except Exception as error:
                raise RuntimeError(f"{dataset}: record {row['record_id']} ({root / row['path']}): {error!r}") from error
            out.write(microvolts.data)
            records.append((position, microvolts.shape[1], int(record.n_interpolated)))
    return file, records, skips


def resampled(signal_mv: np.ndarray, source_fs_hz: float, fs_hz: float) -> np.ndarray:
    """[12, n] at source_fs_hz -> [12, ceil(n * fs_hz / source_fs_hz)], polyphase FIR low-pass (Kaiser window)."""
    if fs_hz == source_fs_hz:
        return signal_mv
    from scipy.signal import resample_poly

    ratio = Fraction(fs_hz / source_fs_hz).limit_denominator(1000)
    # The line through both ends is resampled exactly: zero padding would bend a wandering baseline at the edges.
    return resample_poly(signal_mv, ratio.numerator, ratio.denominator, axis=1, padtype="line")


def whole_patches(signal_mv: np.ndarray, source_fs_hz: float, fs_hz: float, n_samples: int, step: int) -> np.ndarray:
    """signal_mv [12, n] at the rate of a model, the first n_samples of it, cut to whole patches of `step` samples.
    ValueError where it is shorter than one."""
    signal_mv = resampled(signal_mv, source_fs_hz, fs_hz)[:, :n_samples]
    if signal_mv.shape[1] < step:
        raise ValueError(f"{signal_mv.shape[1] / fs_hz:.2f} s of ECG; the model needs {step / fs_hz:.2f} s, one patch")
    return np.ascontiguousarray(signal_mv[:, : signal_mv.shape[1] // step * step])


def _to_microvolts(signal_mv: np.ndarray, path: str) -> np.ndarray:
    """[12, n] mV -> int16 µV.

    Raises EcgReadError where int16 cannot hold it (overshoot of resampling), ValueError on what no loader may return.
    """
    if signal_mv.shape[0] != len(LEADS) or signal_mv.shape[1] == 0:
        raise ValueError(f"signal of shape {signal_mv.shape} is not [{len(LEADS)}, n_samples]")
    microvolts = np.multiply(signal_mv, UNITS_PER_MV, dtype=np.float32)
    np.rint(microvolts, out=microvolts)
    peak = max(float(microvolts.max()), -float(microvolts.min()))
    if not np.isfinite(peak):
        raise ValueError("signal holds values that are not finite")
    if peak > np.iinfo(np.int16).max:
        raise EcgReadError(path, "amplitude", f"{peak / UNITS_PER_MV:.1f} mV; the store holds up to 32.767 mV")
    return microvolts.astype("<i2")
