"""Pairs on disk, stage A1 on a simulated training hospital, and where a release lies."""

import json

import numpy as np
import pandas as pd
import pytest

from synth_medvlp.pairs import COLUMNS, read_pairs, verify, write_pairs
from synth_medvlp.real import frontal_pairs
from synth_medvlp.trees import CxrSimulateConfig, tree


def _table(n: int) -> pd.DataFrame:
    return pd.DataFrame({c: [f"{c}{i}" for i in range(n)] for c in COLUMNS})


def test_pairs_come_back_as_they_were(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    written = write_pairs(tmp_path / "p", images, _table(5), {"stage": "test"})
    read = read_pairs(tmp_path / "p")
    np.testing.assert_array_equal(read.images, images)
    pd.testing.assert_frame_equal(read.table, _table(5))
    assert read.sha256 == written.sha256 and len(read) == 5 and read.meta["made_from"] == {"stage": "test"}
    verify(tmp_path / "p")
    other = write_pairs(tmp_path / "q", images, _table(5).assign(findings="x"), {})
    assert other.sha256 != written.sha256


def test_what_is_no_set_of_pairs_is_an_error_that_says_what_to_do(tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="findings"):
        write_pairs(tmp_path / "a", images, _table(3).drop(columns="findings"), {})
    with pytest.raises(ValueError, match="uint8"):
        write_pairs(tmp_path / "a", images.astype(float), _table(3), {})
    with pytest.raises(FileNotFoundError, match=r"meta\.json"):
        read_pairs(tmp_path / "a")
    write_pairs(tmp_path / "b", images, _table(3), {})
    meta = json.loads((tmp_path / "b" / "meta.json").read_text())
    (tmp_path / "b" / "meta.json").write_text(json.dumps(meta | {"n": 4}))
    with pytest.raises(ValueError, match="remove it"):
        read_pairs(tmp_path / "b")
    write_pairs(tmp_path / "c", images, _table(3), {})
    _table(3).assign(findings="other").to_parquet(tmp_path / "c" / "pairs.parquet")
    with pytest.raises(ValueError, match=r"pairs.parquet differs"):
        verify(tmp_path / "c")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        root, source = tree("mimic-cxr-jpg", CxrSimulateConfig(40, 3, 32))
        assert source == "simulated" and tree("mimic-cxr-jpg", CxrSimulateConfig(40, 3, 32))[0] == root
        yield root


def test_a1_keeps_frontal_training_images_with_a_report_and_counts_the_rest(hospital, tmp_path):
    pairs = frontal_pairs(hospital, tmp_path / "a1", 32, "squash")
    truth = pd.read_parquet(hospital / "truth.parquet").set_index("image_id")
    stats = pairs.meta["made_from"]["stats"]
    assert stats["images"] == len(truth) == len(pairs) + sum(stats["dropped"].values())
    assert set(pairs.table["view"]) == {"AP", "PA"} and (truth.loc[pairs.table.id, "view"] != "LATERAL").all()
    assert stats["dropped"]["view"] == (truth["view"] == "LATERAL").sum() > 0
    assert stats["dropped"]["other part"] > 0 and pairs.table.patient.nunique() < truth.patient.nunique()
    assert pairs.images.shape[1:] == (32, 32) and pairs.table.id.is_unique


def test_a1_lists_images_that_cannot_be_read(hospital, tmp_path):
    import shutil

    copy = tmp_path / "tree"
    shutil.copytree(hospital, copy)
    whole = frontal_pairs(hospital, tmp_path / "a", 32, "squash")
    broken = next(copy.glob(f"files/*/*/*/{whole.table.id[0]}.jpg"))
    broken.write_bytes(broken.read_bytes()[:100])
    pairs = frontal_pairs(copy, tmp_path / "b", 32, "squash")
    stats = pairs.meta["made_from"]["stats"]
    assert len(pairs) == len(whole) - 1 and stats["dropped"]["unreadable"] == 1
    assert whole.table.id[0] in stats["unreadable"][0]


def test_an_absent_release_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data-chexpert"):
        tree("chexpert", None)
