"""shared/ecg/store.py: values, skips, determinism, damage; on a small tree in the PTB-XL layout."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store_files import FILES, N_RECORDS, REPOSITORY, digest, write_tree

from shared.ecg import decode, ptbxl, store
from shared.ecg.record import INDEX_COLUMNS, EcgReadError
from shared.ecg.store import EcgStore, StoreError, pack
from shared.ecg.wfdb_io import read_signal
from shared.store import HEADER_BYTES


def test_signals_and_rows_are_those_of_the_files(tree, packed):
    ecg = EcgStore(packed)
    index = ptbxl.read_index(tree).set_index("record_id")
    assert len(ecg) == len(ecg.records) == N_RECORDS - 2
    assert list(ecg.records.columns) == [*INDEX_COLUMNS, "offset", "n_samples", "fs_hz", "n_interpolated"]
    for i, row in ecg.records.iterrows():
        signal_mv, _, _ = read_signal(tree / row.path)
        stored_mv = ecg.signal_mv(i)
        assert stored_mv.dtype == np.float32 and stored_mv.shape == (12, row.n_samples) == signal_mv.shape
        np.testing.assert_allclose(stored_mv, signal_mv, atol=2e-6)  # files with 1 µV steps: lossless up to float32
        assert row.fs_hz == 500 and row.report == index.report[row.record_id]
        assert row.labels == index.labels[row.record_id] and isinstance(row.labels, list)
    np.testing.assert_array_equal(ecg.signal_mv(-1), ecg.signal_mv(len(ecg) - 1))
    for i in (len(ecg), -len(ecg) - 1):
        with pytest.raises(IndexError, match=str(i)):
            ecg.signal_mv(i)
    ecg.verify()


def test_signals_are_a_plain_npy_file(packed):
    with open(packed / "signals.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        assert file.tell() == HEADER_BYTES and file.tell() % 64 == 0
    values = np.load(packed / "signals.npy", mmap_mode="r", allow_pickle=False)
    assert values.dtype == np.int16 == dtype and not fortran and values.shape == shape
    records = EcgStore(packed).records
    assert values.size == 12 * records.n_samples.sum()
    assert records.offset.tolist() == (12 * (records.n_samples.cumsum() - records.n_samples)).tolist()


def test_skips_are_listed_and_counted(packed):
    manifest = EcgStore(packed).manifest
    counts = manifest["counts"]
    assert (counts["found"], counts["packed"], counts["skipped"]) == (N_RECORDS, N_RECORDS - 2, 2)
    assert [(skip["record_id"], skip["reason"]) for skip in manifest["skips"]] == [
        ("7", "truncated"),
        ("12", "missing file"),
    ]
    assert counts["skipped_by_reason"] == {"truncated": 1, "missing file": 1}
    assert manifest["skips"][0]["path"] == "records500/00000/00007_hr" and manifest["skips"][0]["detail"]
    assert (manifest["dataset"], manifest["source_fs_hz"], manifest["fs_hz"]) == ("ptb-xl", 500, 500)
    assert manifest["sha256"]["signals.npy"] == digest(packed)[0]
    assert {"numpy", "wfdb", "scipy"} <= set(manifest["versions"])


def test_short_gaps_are_counted(tree, tmp_path):
    root = write_tree(tmp_path / "ptb-xl", [500] * 3)
    values = np.fromfile(root / "records500/00000/00002_hr.dat", "<i2").reshape(-1, 12)
    values[100:110, 3] = -32768  # WFDB's code for a missing sample
    values.tofile(root / "records500/00000/00002_hr.dat")
    header = root / "records500/00000/00002_hr.hea"
    lines = [line.split() for line in header.read_text().splitlines()]
    header.write_text("\n".join(" ".join([*line[:6], "0", *line[7:]]) for line in lines) + "\n")  # checksum
    counts = pack("ptb-xl", root, tmp_path / "store", workers=1)["counts"]
    assert (counts["packed"], counts["interpolated_samples"], counts["interpolated_records"]) == (3, 10, 1)
    assert EcgStore(tmp_path / "store").records.n_interpolated.tolist() == [0, 10, 0]


def test_bytes_depend_neither_on_workers_nor_on_chunks(tree, packed, tmp_path, small_chunks):
    pack("ptb-xl", tree, tmp_path / "one", workers=1)
    pack("ptb-xl", tree, tmp_path / "three", workers=3)
    assert digest(packed) == digest(tmp_path / "one") == digest(tmp_path / "three")


def test_finished_pack_is_recognised_and_a_changed_source_is_packed_anew(tree, tmp_path, monkeypatch):
    root, out = tmp_path / "ptb-xl", tmp_path / "store"
    shutil.copytree(tree, root)
    first = pack("ptb-xl", root, out, workers=1)
    stamps = [(out / name).stat().st_mtime_ns for name in FILES]
    with monkeypatch.context() as patch:
        patch.setattr(store, "decoded_chunks", None)
        assert pack("ptb-xl", root, out) == first
    assert stamps == [(out / name).stat().st_mtime_ns for name in FILES]
    shutil.copy(root / "records500/00000/00010_hr.dat", root / "records500/00000/00007_hr.dat")  # repaired
    assert pack("ptb-xl", root, out, workers=1)["counts"]["packed"] == N_RECORDS - 1
    assert pack("ptb-xl", root, out, fs_hz=250, workers=1)["fs_hz"] == 250
    os.truncate(out / "signals.npy", 500)
    assert pack("ptb-xl", root, out, fs_hz=250, workers=1)["counts"]["packed"] == N_RECORDS - 1
    EcgStore(out).verify()


def test_resampling_keeps_the_band_and_removes_what_would_alias(tmp_path):
    root = write_tree(tmp_path / "ptb-xl", [5000])
    t = np.arange(5000) / 500
    low_mv, high_mv = np.sin(2 * np.pi * 10 * t), np.sin(2 * np.pi * 90 * t)  # 90 Hz would alias to 10 Hz at 100 Hz
    path = root / "records500/00000/00001_hr"
    for wave_mv, name in ((low_mv, "low"), (high_mv, "high")):
        np.rint(1000 * np.repeat(wave_mv[:, None] + 2, 12, axis=1)).astype("<i2").tofile(f"{path}.dat")
        pack("ptb-xl", root, tmp_path / name, fs_hz=100, workers=1)
    low, high = EcgStore(tmp_path / "low"), EcgStore(tmp_path / "high")
    assert low.signal_mv(0).shape == (12, 1000) and low.records.fs_hz[0] == 100
    np.testing.assert_allclose(low.signal_mv(0)[:, 20:-20], (low_mv + 2)[None, ::5][:, 20:-20].repeat(12, 0), atol=0.01)
    assert np.abs(high.signal_mv(0)[:, 20:-20] - 2).max() < 0.02
    assert np.abs(low.signal_mv(0) - (low_mv + 2)[None, ::5]).max() < 0.5  # no drop to zero at the edges


def test_source_rate_is_enforced(tmp_path):
    root = write_tree(tmp_path / "ptb-xl", [1000] * 2, fs_hz=100)
    with pytest.raises(StoreError, match=r"none of 2 records.*wrong rate"):
        pack("ptb-xl", root, tmp_path / "store", workers=1)
    manifest = pack("ptb-xl", root, tmp_path / "store", source_fs_hz=100, workers=1)
    assert manifest["fs_hz"] == 100 and EcgStore(tmp_path / "store").signal_mv(1).shape == (12, 1000)


def test_batches_need_one_length(packed):
    ecg = EcgStore(packed)
    same = np.flatnonzero(ecg.records.n_samples == 510)[[3, 0, 1]]
    batch_mv = ecg.batch_mv(same)
    assert batch_mv.shape == (3, 12, 510) and batch_mv.dtype == np.float32
    np.testing.assert_array_equal(batch_mv, np.stack([ecg.signal_mv(i) for i in same]))
    with pytest.raises(ValueError, match=r"lengths \[500, 510, 520\]"):
        ecg.batch_mv(range(6))


def test_pickles_small_and_reopens(packed):
    ecg = EcgStore(packed)
    ecg.signal_mv(0), ecg.records
    state = pickle.dumps(ecg)
    assert len(state) < 10_000
    np.testing.assert_array_equal(pickle.loads(state).signal_mv(3), ecg.signal_mv(3))  # noqa: S301 (our own bytes)


@pytest.mark.parametrize("name", ["signals.npy", "records.parquet"])
def test_damaged_store_says_so(packed, tmp_path, name):
    out = shutil.copytree(packed, tmp_path / "store")
    size = (out / name).stat().st_size
    with open(out / name, "r+b") as file:
        file.seek(size - 3)
        byte = file.read(1)
        file.seek(size - 3)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(StoreError, match=rf"{name}: SHA-256 differs.*pack it again"):
        EcgStore(out).verify()
    os.truncate(out / name, size - 2)
    with pytest.raises(StoreError, match=rf"{name}: {size - 2} bytes instead of {size}: damaged"):
        EcgStore(out)
    (out / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        EcgStore(out)


def test_store_of_another_format_is_refused(packed, tmp_path):
    out = shutil.copytree(packed, tmp_path / "store")
    manifest = json.loads((out / "manifest.json").read_text()) | {"format_version": 99}
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="format 99"):
        EcgStore(out)


def test_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'ptbxl'.*ptb-xl"):
        pack("ptbxl", tmp_path, tmp_path / "store")


def test_anything_but_a_bad_record_raises_and_names_the_record(tree, tmp_path, monkeypatch):
    from shared.ecg import wfdb_io

    def broken(root, row, dataset, fs_hz):
        raise ZeroDivisionError("a bug") if row["record_id"] == "5" else EcgReadError(row["path"], "truncated")

    monkeypatch.setattr(wfdb_io, "read_record", broken)
    with pytest.raises(RuntimeError, match=r"ptb-xl: record 5 .*00005_hr.*a bug"):
        pack("ptb-xl", tree, tmp_path / "store", workers=1)


def test_amplitude_beyond_int16_is_an_error_not_a_clip():
    signal_mv = np.ones((12, 10), np.float32)
    signal_mv[3, 4] = -32.8
    with pytest.raises(EcgReadError, match=r"amplitude \(32\.8 mV"):
        decode._to_microvolts(signal_mv, "x")
    signal_mv[3, 4] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode._to_microvolts(signal_mv, "x")


def test_benchmark_measures_both_sides(tmp_path):
    code = (
        "from tests.benchmarks import bench_store as b\n"
        "b.N_FILES, b.N_SHORT, b.N_LONG, b.N_ROUNDS = 8, 64, 768, 2\n"
        "print([[r.name, r.value, r.ratio, r.goal] for r in b.run()])\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    rows = ast.literal_eval(result.stdout)
    assert len(rows) == 4 and all(value > 0 and ratio > 0 for _, value, ratio, _ in rows)
    disk = next(row for row in rows if "disk" in row[0])
    assert disk[1:3] == [pytest.approx(96.004, abs=0.1), pytest.approx(2, abs=0.01)], "GB, of those in float32"
    assert rows[1][2] > 5  # the goal is 20; a busy machine and 768 records leave room for noise
    assert not list(tmp_path.iterdir())


@pytest.mark.realdata
def test_real_ptb_xl_is_packed_without_loss(tmp_path):
    root = Path(os.environ.get("DATA_ROOT", "data/official")) / "ptb-xl"
    if not (root / "ptbxl_database.csv").exists():
        pytest.skip(f"{root} is not there: set DATA_ROOT")
    counts = pack("ptb-xl", root, tmp_path / "store", workers=2)["counts"]
    assert counts["packed"] == counts["found"] >= 350 and counts["skipped"] == 0
    ecg = EcgStore(tmp_path / "store")
    for i in range(0, len(ecg), 50):
        np.testing.assert_allclose(ecg.signal_mv(i), read_signal(root / ecg.records.path[i])[0], atol=1e-6)
    assert ecg.records.offset.iloc[-1] == 12 * 5000 * (len(ecg) - 1)
