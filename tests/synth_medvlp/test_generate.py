"""The generation pipeline from reports to pairs, with the template writer and the simulator as generator."""

import dataclasses
import json

import numpy as np
import pytest

from synth_medvlp import generate
from synth_medvlp.config import parse
from synth_medvlp.pairs import verify
from synth_medvlp.prep import prepare

OPTIONS = ("--config", "synth_medvlp/configs/smoke.yaml", "--writer.backend=template", "--image.checkpoint=oracle",
           "--data.n_synthetic=12", "--data.simulate.n_patients=40")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


def config(**data):
    cfg = parse(list(OPTIONS))
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **data))


def test_synthetic_pairs_name_what_was_asked_and_are_packed_with_checksums():
    cfg = config(regime="synthetic")
    pairs, (records, stats) = generate.synthetic(cfg), generate.reports(cfg)
    verify(generate.stage_folder_of(pairs))
    accepted = [r for r in records if r["status"] == "accepted"]
    assert stats["accepted"] == len(accepted) == 12 and 0 < len(pairs) <= 12
    by_id = {f"syn{r['id']}": r for r in accepted}
    for row in pairs.table.itertuples():
        record = by_id[row.id]
        assert (row.findings, row.impression) == (record["findings"], record["impression"])
        assert json.loads(row.clinical) == [list(e) for e in record["clinical"]]
    assert set(pairs.table.source) == {"synthetic"} and pairs.images.std() > 10


def test_a_second_call_generates_nothing(monkeypatch):
    cfg = config(regime="synthetic")
    first = generate.synthetic(cfg)

    def never(*_):
        raise AssertionError("generated again")

    class Idle:  # what is finished asks its generator for a name only
        name, identity = "oracle", None
        __call__ = never

    monkeypatch.setattr(generate, "generator", lambda *_: Idle())
    assert generate.synthetic(cfg).sha256 == first.sha256


def test_regimes_take_images_and_texts_from_where_they_say():
    real = generate.real(config())
    truth = {i: n for n, i in enumerate(real.table.id)}
    texts = generate.synthetic(config(regime="real_text"))
    for row, image in zip(texts.table.itertuples(), texts.images, strict=True):
        n = truth[row.id.removeprefix("txt")]
        assert row.findings == real.table.findings[n] and (image != real.images[n]).any()
    images = generate.synthetic(config(regime="real_image"))
    assert len(images) > 5
    for row, image in zip(images.table.itertuples(), images.images, strict=True):
        n = truth[row.id.removeprefix("img")]
        np.testing.assert_array_equal(image, real.images[n])
    assert (images.table.findings.to_numpy() != real.table.set_index("id").findings.reindex(
        images.table.id.str.removeprefix("img")).to_numpy()).mean() > 0.5  # fmt: skip


def test_prepare_gives_each_regime_its_folders_and_its_own_hash():
    found = {regime: prepare(config(regime=regime)) for regime in ("real", "clean", "synthetic", "mix")}
    assert [[p.table.source.iloc[0] for p in data.pairs] for data in found.values()] == [
        ["real"], ["real"], ["synthetic"], ["real", "synthetic"]
    ]  # fmt: skip
    assert len({data.data_hash for data in found.values()}) == 4
    assert {data.source for data in found.values()} == {"simulated"}
    (mask,) = found["clean"].keep
    assert mask.dtype == bool and len(mask) == len(found["real"].pairs[0])


def test_stages_left_out_and_other_filters_are_other_results_of_the_same_texts():
    cfg = config(regime="synthetic")
    base = generate.stage_folder_of(generate.synthetic(cfg))
    unchecked = dataclasses.replace(cfg, image=dataclasses.replace(cfg.image, check=False))
    prompts = [r["impression"] for r in generate.reports(cfg)[0] if r["status"] == "accepted"]
    other, texts = generate.synthetic(unchecked), {p.name for p in (base.parent).glob("reports-*")}
    generate.synthetic(dataclasses.replace(cfg, sampler=dataclasses.replace(cfg.sampler, balanced=False)))
    drawn, checks, _ = generate.images(cfg, prompts)
    first, kept, stats = generate.images(unchecked, prompts)
    assert stats["S6"]["answers"]["images"] == 0 and {k["image_attempts"] for k in kept} == {1}
    assert other.table.impression.tolist() == prompts and np.array_equal(other.images, first)  # none is rejected
    again = np.array([c["image_attempts"] > 1 for c in checks])  # only these differ from what the check saw first
    assert ((drawn != first).any((1, 2)) == again).all()
    assert {p.name for p in base.parent.glob("reports-*")} - texts, "another sampler asks for other reports"


def test_the_funnel_counts_what_the_stages_counted():
    cfg = config(regime="synthetic")
    rows = {(stage, what): number for stage, what, number in generate.funnel(cfg)}
    assert rows["A1", "frontal pairs kept"] == len(generate.real(cfg))
    assert rows["S4", "reports accepted"] == 12 and rows["S7", "pairs"] == len(generate.synthetic(cfg))
    assert 0 <= rows["S7", "cosine to the nearest real training image, 95th percentile, synthetic"] <= 1
    assert {stage for stage, _ in rows} == {"A1", "A2", "A3", "A4", "S1", "S3", "S4", "S5", "S6", "S7"}
