"""One ECG in, report and picture out: WFDB and CSV, and what cannot be read."""

import numpy as np
import pandas as pd
import pytest
import wfdb

from meit import predict, train
from shared.ecg.record import LEADS, EcgReadError
from shared.ecg.wfdb_io import read_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        llm = "--model.llm={hidden_size: 32, layers: 2, heads: 2}"
        return train.main(["--config=meit/configs/smoke.yaml", f"--runs={runs}", llm]) / "checkpoint"


@pytest.fixture
def signal_mv():
    return np.random.default_rng(0).normal(0, 0.2, (12, 1000)).astype(np.float32)


def test_wfdb_and_csv_give_the_same_report(checkpoint, signal_mv, tmp_path, capsys):
    signal_mv = np.round(signal_mv, 3)  # what 1000 units per mV can hold
    options = {"fmt": ["16"] * 12, "adc_gain": [1000.0] * 12, "baseline": [0] * 12, "write_dir": str(tmp_path)}
    wfdb.wrsamp("rec", fs=100, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signal_mv.T.astype(float), **options)
    order = np.random.default_rng(1).permutation(12)  # columns in any order, found by name
    pd.DataFrame({LEADS[i].upper(): signal_mv[i] for i in order}).to_csv(tmp_path / "rec.csv", index=False)
    common = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out.png")]
    reports = {predict.main([str(tmp_path / name), *common]) for name in ("rec", "rec.hea")}
    reports.add(predict.main([str(tmp_path / "rec.csv"), "--fs-hz", "100", *common]))
    assert len(reports) == 1
    assert (tmp_path / "out.png").stat().st_size > 20_000
    assert "picture:" in capsys.readouterr().out


def test_another_rate_is_resampled(checkpoint, signal_mv):
    assert isinstance(predict.report(np.repeat(signal_mv, 5, axis=1), 500, checkpoint), str)


def test_what_cannot_be_read_is_named(checkpoint, signal_mv, tmp_path, capsys):
    table = pd.DataFrame(signal_mv.T, columns=LEADS)
    table.drop(columns="V3").to_csv(tmp_path / "eleven.csv", index=False)
    table.loc[7:30, "V2"] = np.nan
    table.to_csv(tmp_path / "holes.csv", index=False)
    for name, fs_hz, reason in (
        ("eleven.csv", 100, "V3"),
        ("holes.csv", 100, "long gap"),
        ("holes.csv", None, "--fs-hz"),
    ):
        with pytest.raises(EcgReadError, match=reason):
            read_file(tmp_path / name, fs_hz)
    with pytest.raises(EcgReadError, match="missing file"):
        read_file(tmp_path / "nothing", None)
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "x"), "--checkpoint", str(tmp_path / "none" / "checkpoint")])
    assert "no trained run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "nothing.csv"), "--fs-hz=100", "--checkpoint", str(checkpoint)])
    assert "nothing.csv" in capsys.readouterr().err
