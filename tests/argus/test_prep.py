"""argus/prep.py: what training and evaluation are given, what is cached, what is done again."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from ct_files import bimcv_r, inspect

from argus import manifest, prep
from argus.config import Config, DataConfig, SimulateCt
from argus.prep import prepare, share_of_patients
from shared.ct import LOADERS, simulate_layouts, store
from shared.ct.geometry import Geometry
from shared.ct.geometry import prepare as to_geometry
from shared.ct.simulate_findings import LABELS

N = {"ct-rate": 8, "bimcv-r": 4, "inspect": 10}
SHAPE = [12, 20, 20]


def config(**changes) -> Config:
    simulate = SimulateCt(n_patients=dict(N), seed=5, shape=[24, 40, 40])
    return Config(data=DataConfig(**{"simulate": simulate, "shape": SHAPE, "rules": {"min_slices": 16}} | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def prepared(cache):
    return prepare(config())


@pytest.fixture
def nothing_is_done(monkeypatch):
    """Whatever draws, chooses or packs fails, in a process that remembers nothing."""
    monkeypatch.setattr(prep, "_MADE", {})
    for module, name in ((prep, "write"), (manifest, "build"), (store, "_pack")):
        monkeypatch.setattr(module, name, lambda *_, _name=name, **__: pytest.fail(f"{_name} was called"))


def test_clip_after_resampling_is_another_store_and_another_run(prepared):
    after = prepare(config(clip="after"))
    assert after.data_hash != prepared.data_hash and after.store.path != prepared.store.path
    source, root = "ct-rate", prepared.roots["ct-rate"]
    row = next(after.table[after.table.source == source].itertuples())
    _, file = next((i := LOADERS[source].read_index(root))[i.volume_id == row.volume_id].iterrows())
    expected = to_geometry(LOADERS[source].read_volume(root, file), Geometry(tuple(SHAPE), clip="after")).hu
    np.testing.assert_allclose(after.batch([row.row])[0, 0] * 1000, expected, atol=0.51)
    assert Config(data=DataConfig(clip="after")).digest() != Config().digest()
    with pytest.raises(ValueError, match=r"data\.clip: 'never'"):
        config(clip="never")


def test_every_volume_is_its_file_in_the_geometry(prepared):
    assert len(prepared.table) == len(prepared.store) >= sum(N.values())
    for source in N:
        root, index = prepared.roots[source], LOADERS[source].read_index(prepared.roots[source])
        for row in prepared.table[prepared.table.source == source].head(3).itertuples():
            _, file = next(index[index.volume_id == row.volume_id].iterrows())
            expected = to_geometry(LOADERS[source].read_volume(root, file), Geometry(tuple(SHAPE))).hu
            batch = prepared.batch([row.row])
            assert batch.dtype == np.float32 and batch.shape == (1, 1, *SHAPE)
            np.testing.assert_allclose(batch[0, 0] * 1000, expected, atol=0.51)
    everything = prepared.batch(prepared.table.row)
    assert -1 <= everything.min() < -0.9 and 0.3 < everything.max() <= 1


def test_table(prepared):
    table = prepared.table
    assert table.id.is_unique and (table.id == table.source + "/" + table.volume_id).all()
    assert table.row.tolist() == list(range(len(table))) and set(table.source) == set(N)
    assert (table.groupby("patient").part.nunique() == 1).all() and set(table.part) == {"train", "val", "test"}
    assert table.patient.str.startswith(tuple(N)).all() and table.study.nunique() >= table.patient.nunique()
    assert table.section.groupby(table.source).first().to_dict() == manifest.SECTIONS
    for row in table.itertuples():
        text = row.impression if row.source == "inspect" else row.findings
        assert row.target == " ".join(text.split())
    assert prepared.source == "simulated" and prepared.report["store"]["skipped"] == 0
    assert prepared.report["kept"] == len(table)


def test_labels_are_those_of_the_release_in_its_order(prepared):
    truth = pd.read_parquet(prepared.roots["ct-rate"] / "truth.parquet").set_index("volume_id")
    for row in prepared.table.itertuples():
        if row.source != "ct-rate":
            assert row.labels is None
            continue
        assert row.labels.dtype == np.float32 and row.labels.shape == (18,)
        drawn = set(truth.names[row.volume_id])
        assert row.labels[LABELS.index("Lung nodule")] == bool(drawn & {"nodule", "mass"})
        assert row.labels[LABELS.index("Emphysema")] == ("emphysema" in drawn)
    assert np.isnan(prep._label_array({"Emphysema": 1})).sum() == 17 and prep._label_array({}) is None


def test_second_call_does_nothing(prepared, nothing_is_done):
    again = prepare(config(clip_hu=[-1000.0, 1000.0]))  # as a config file is read
    assert (again.data_hash, again.split_sha256) == (prepared.data_hash, prepared.split_sha256)
    assert again.table.id.tolist() == prepared.table.id.tolist()


def test_a_process_remembers_what_it_made(prepared, monkeypatch):
    monkeypatch.setattr(prep, "_MADE", {})
    first = prepare(config())
    assert first is not prepared
    monkeypatch.setattr(prep, "simulated_tree", lambda *_: pytest.fail("a tree was looked at again"))
    assert prepare(config()) is first
    with pytest.raises(pytest.fail.Exception, match="looked at again"):
        prepare(config(share=0.5))


def test_another_shape_draws_nothing_and_keeps_the_split(prepared, monkeypatch):
    monkeypatch.setattr(prep, "write", lambda *_, **__: pytest.fail("a tree was drawn again"))
    monkeypatch.setattr(manifest, "build", lambda *_, **__: pytest.fail("the manifest was built again"))
    other = prepare(config(shape=[6, 10, 10]))
    assert other.batch([0, 1]).shape == (2, 1, 6, 10, 10)
    assert other.data_hash != prepared.data_hash and other.split_sha256 == prepared.split_sha256
    assert other.records("test").id.tolist() == prepared.records("test").id.tolist()
    spaced = prepare(config(shape=[6, 10, 10], spacing_mm=[20.0, 20.0, 20.0]))
    assert (spaced.batch([0]) != other.batch([0])).any() and prepare(config()).data_hash == prepared.data_hash


def test_fewer_sources_use_the_same_trees(prepared, monkeypatch):
    monkeypatch.setattr(prep, "write", lambda *_, **__: pytest.fail("a tree was drawn again"))
    two = prepare(config(sources=["ct-rate", "inspect"]))
    assert set(two.table.source) == {"ct-rate", "inspect"}
    kept = prepared.table[prepared.table.source != "bimcv-r"].set_index("id").part
    assert two.table.set_index("id").part.equals(kept)


def test_share_is_of_patients_nested_and_leaves_test_alone(prepared, nothing_is_done):
    whole, kept = prepared.records("train"), []
    for share in (0.25, 0.5, 1.0):
        part = prepare(config(share=share))
        rows = part.records("train")
        assert part.records("test").id.tolist() == prepared.records("test").id.tolist()
        for source in N:
            n = whole[whole.source == source].patient.nunique()
            assert rows[rows.source == source].patient.nunique() == max(1, round(share * n))
        assert set(rows.id) == set(whole.id[whole.patient.isin(rows.patient)])  # a patient comes with all volumes
        kept.append(set(rows.id))
        assert part.data_hash == prepared.data_hash
    assert kept[0] < kept[1] < kept[2] == set(whole.id)


def test_seed_of_the_share():
    train = pd.DataFrame({"id": [f"s/{k}" for k in range(40)], "source": "s", "patient": [f"p{k}" for k in range(40)]})
    draws = {share_of_patients(train, 0.5, seed) for seed in range(4)}
    assert len(draws) == 4 and {len(d) for d in draws} == {20}
    assert share_of_patients(train.iloc[::-1], 0.5, 1) == share_of_patients(train, 0.5, 1)


def test_first_rows_hold_each_source_in_its_proportion(prepared):
    rows = prepared.records("train")
    shares = rows.source.value_counts(normalize=True)
    for n in range(3, len(rows) + 1):
        counts = rows.source.head(n).value_counts().reindex(shares.index, fill_value=0)
        assert ((counts - n * shares).abs() <= 1).all()
    assert sorted(rows.row) == sorted(prepared.table.row[prepared.table.part == "train"])


def test_killed_simulation_goes_on_where_it_stopped(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_layouts, "CHUNK", 1)
    arguments = ("inspect", tmp_path / "inspect", 5, 1, (16, 24, 24))
    drawn, render = [], simulate_layouts.render

    def counted(patient, *rest):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(patient)
        return render(patient, *rest)

    monkeypatch.setattr(simulate_layouts, "render", counted)
    with pytest.raises(KeyboardInterrupt):
        simulate_layouts.write(*arguments)
    assert not (tmp_path / "inspect").exists() and len(drawn) == 3
    again = []
    monkeypatch.setattr(simulate_layouts, "render", lambda *a: again.append(a[0]) or render(*a))
    root = simulate_layouts.write(*arguments)
    whole = simulate_layouts.write("inspect", tmp_path / "whole", *arguments[2:])
    n_studies = len(pd.read_parquet(root / "truth.parquet"))
    assert len(again) < n_studies + n_studies - 1  # the second tree all, the first only what was left
    names = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert all((root / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_leftovers_of_another_job_are_not_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_layouts, "_write_tables", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate_layouts.write("inspect", tmp_path / "inspect", 2, 1, (16, 24, 24))
    monkeypatch.undo()
    root = simulate_layouts.write("inspect", tmp_path / "inspect", 1, 2, (16, 24, 24))
    assert len(list(root.rglob("*.nii.gz"))) == len(pd.read_parquet(root / "truth.parquet"))


def official(**changes) -> Config:
    return Config(data=DataConfig(**{"sources": ["bimcv-r", "inspect"], "shape": [8, 12, 12]} | changes))


@pytest.fixture
def releases(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    bimcv_r(tmp_path / "bimcv-r", 10)
    inspect(tmp_path / "inspect", 6)
    return tmp_path


def test_official_trees_and_what_cannot_be_read(releases, capsys):
    torn = sorted((releases / "inspect/CTPA").glob("*.gz"))[0]
    os.truncate(torn, torn.stat().st_size - 2000)  # the header can be read, the voxels cannot
    prepared = prepare(official())
    assert prepared.source == "bimcv-r + inspect" and prepared.report["kept"] == 16
    assert prepared.report["store"]["skipped_by_reason"] == {"truncated": 1}
    assert len(prepared.table) == len(prepared.store) == 15 and prepared.table.labels.isna().all()
    assert f"inspect/{torn.name.removesuffix('.nii.gz')}" not in set(prepared.table.id)
    config = "{sources: [bimcv-r, inspect], shape: [8, 12, 12]}"
    assert prep.main(["--data", config, "--check"]).data_hash == prepared.data_hash
    printed = capsys.readouterr().out
    assert "could not be read: inspect" in printed and torn.name in printed
    counts = json.loads(printed.splitlines()[-1])
    assert counts["volumes"] == 15 == counts["train"] + counts["val"] + counts["test"]


def test_a_tree_that_grows_gets_another_manifest(releases):
    first = prepare(official())
    for path in releases.glob("inspect/CTPA/*.gz"):
        path.rename(path.with_name(path.name + ".part"))
        break
    second = prepare(official())
    assert len(second.table) == len(first.table) - 1 and second.split_sha256 != first.split_sha256
    assert second.report["sources"]["inspect"]["left_out"] == {"missing file": 1}


def test_damaged_store_is_found_by_check(releases):
    prepared = prepare(official())
    file = prepared.store.path / "volumes.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(store.StoreError, match=r"volumes\.npy: SHA-256 differs"):
        prep.main(["--data.sources", '["bimcv-r", "inspect"]', "--data.shape", "[8, 12, 12]", "--check"])


def test_errors_name_what_to_do(releases):
    with pytest.raises(FileNotFoundError, match=r"ct-rate: no such folder. Fetch it with `make data-ct-rate`"):
        prepare(official(sources=["ct-rate"]))
    with pytest.raises(ValueError, match=r"n_patients: no number of patients for bimcv-r"):
        prepare(config(simulate=SimulateCt(n_patients={"inspect": 3}), sources=["bimcv-r"]))
    with pytest.raises(ValueError, match=r"(?s)bimcv-r: no volume is left; change data\.rules.*10 too few slices"):
        prepare(official(rules={"min_slices": 1000}))
