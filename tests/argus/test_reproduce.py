"""Which runs an experiment needs, in which order, with which options; what is shown of hand-made predictions."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from argus.cases import spot
from argus.compress import build_compressor
from argus.config import Config, parse
from argus.evaluate import NORMAL, typical_report
from argus.figures import draw_case, draw_levels, plane
from argus.reproduce import ARGUS, BY_TIER, ENCODER, EXPERIMENTS
from argus.scoring import score_all
from argus.tables import ARMS
from argus.train import arguments as train_options
from shared.metrics.ct_findings import asserted
from shared.metrics.scorecard import load_claims
from shared.runs.engine import claim_experiments, experiments_for, run_arguments
from shared.runs.evidence import compare, folder, score, seeds_of
from shared.runs.reports import majority_report
from shared.runs.tables import NOT_COMPUTED

TEACHING = ("smoke", "gpu")  # tiers that train their language model in the run

OVERRIDES = {
    "align-": {"train.steps": 60, "train.lr": 0.003},
    "encoder-": {"train.steps": 500},
    "hr": {"data.shape": [32, 64, 64], "model.patch": [8, 16, 16]},
    "geometry-b": {"data.spacing_mm": [10.0, 8.0, 8.0], "model.patch": [2, 4, 4]},
}


def tier(out):
    """A tier with a small language model of its own that names what a tier has to name."""
    cfg = parse(["--tier=laptop", f"--runs={out / 'runs'}", f"--results={out / 'results'}", "--train.steps=200",
                 "--reproduce.pretrain_lm=true", "--reproduce.backbones={small: 'scratch:llama'}",
                 "--reproduce.headline=[argus, avgpool, attn-pool, no-image]"])  # fmt: skip
    return replace(cfg, reproduce=replace(cfg.reproduce, overrides=OVERRIDES))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return tier(tmp_path_factory.mktemp("tier"))


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The same with a results folder of its own."""
    monkeypatch.setattr("argus.scoring.DEFAULT_METRICS", ("bleu", "rouge", "cider_d", "meteor_exact_stem"))
    return tier(tmp_path)


@pytest.fixture(scope="module")
def claims():
    return load_claims("argus/claims.yaml")


PARSED: dict = {}  # parsing takes a tenth of a second


def arguments(cfg, name: str, seed: int = 0):
    key = (id(cfg), name, seed)
    if key not in PARSED:
        PARSED[key] = (cfg, parse(run_arguments(ARGUS, cfg, name, seed)))
    return PARSED[key][1]


# --- runs ---


def test_claims_name_runs_that_exist(claims):
    for claim in claims:
        if claim["tiers"]:
            assert claim_experiments(ARGUS, claim) <= set(EXPERIMENTS), claim["id"]
        assert claim["paper"]["value"] is None, "no value of the paper is known"
    tested = {c["id"] for c in claims if "laptop" in c["tiers"]}
    assert not tested & {"scale-llm", "small-beats-large-baselines", "sota-family"}
    assert [c["id"] for c in claims if "smoke" in c["tiers"]] == ["pixel-shuffle-best"]


def test_every_experiment_has_options_that_parse(cfg):
    here = [n for n in EXPERIMENTS if not ARGUS.cannot_run(cfg, n)]
    assert {n for n in EXPERIMENTS if n not in here} == {
        f"{stage}{name}" for stage in ("", "align-") for name in ("llm-medium", "llm-large", f"from-{ENCODER}")
    }
    for name in here:
        run = arguments(cfg, name)
        assert run.experiment == name and run.seed == 0 and run.runs == cfg.runs
        assert not run.eval.metrics, "n-grams are counted when all runs are scored"
        for started in ARGUS.starts_from(cfg, name).values():
            pretrained = arguments(cfg, started)
            assert pretrained.model.objective in ("language", "clip", "mae", "supervised")
            if pretrained.model.objective != "language":
                assert pretrained.data.share == run.data.share
                assert pretrained.data.slice_only == run.data.slice_only


def test_the_two_stages_differ_in_what_they_train_alone(cfg):
    first, second = arguments(cfg, "align-argus"), arguments(cfg, "argus", seed=2)
    assert (first.model.train_vit, first.model.train_llm, first.eval.inputs) == (False, False, [])
    assert (second.model.train_vit, second.model.train_llm) == (True, True)
    assert first.model.encoder.endswith(f"encoder-{ENCODER}/seed0/checkpoint")
    assert first.model.backbone.endswith("lm/seed0/checkpoint")
    assert second.train.init.endswith("align-argus/seed2/checkpoint") and second.model.encoder is None
    assert (first.train.steps, second.train.steps) == (60, 200)
    for name in EXPERIMENTS:  # stages of one model must agree in what the weights are made for
        if name.startswith("align-") and not ARGUS.cannot_run(cfg, name):
            a, b = arguments(cfg, name), arguments(cfg, name.removeprefix("align-"))
            same = ("compressor", "patch", "factors", "queries", "width")
            assert [getattr(a.model, k) for k in same] == [getattr(b.model, k) for k in same], name
            assert a.data == b.data, name


def test_arms_are_what_they_are_called(cfg):
    assert arguments(cfg, "avgpool").model.compressor == "avgpool"
    assert arguments(cfg, "radfm-perceiver").model.compressor == "radfm_perceiver"
    assert not arguments(cfg, "frozen-vit").model.train_vit
    assert arguments(cfg, "frozen-vit").train.init.endswith("align-argus/seed0/checkpoint")
    assert arguments(cfg, "full-llm").model.lora_r == 0
    assert arguments(cfg, "align-vit-both-stages").model.train_vit
    one = arguments(cfg, "one-stage")
    assert one.train.init is None and one.model.train_vit and one.train.steps == 260, "as many updates as two stages"
    blind = arguments(cfg, "no-image")
    assert blind.model.compressor == "no_image" and blind.model.encoder is None and blind.train.steps == 200
    assert arguments(cfg, "align-from-random").model.encoder is None
    assert "encoder-mae/" in arguments(cfg, "align-from-mae").model.encoder
    assert "recipe itself" in ARGUS.cannot_run(cfg, f"from-{ENCODER}")


@pytest.mark.parametrize("name", ["lm", "encoder"])
def test_shipped_weights_are_what_their_config_makes(name):
    made = yaml.safe_load(Path(f"argus/weights/{name}/config.yaml").read_text())
    asked = asdict(parse([f"--config=argus/configs/{name}.yaml"]))
    for section in Config.TRAINED:  # keys that came later stand at their default
        assert {k: asked[section][k] for k in made[section]} == made[section], section
    run = json.loads(Path(f"argus/weights/{name}/run.json").read_text())
    assert run["steps"] == asked["train"]["steps"] and run["processes"] == 1
    laptop = parse(["--config=argus/configs/laptop.yaml"])
    assert f"argus/weights/{name}/checkpoint" in (
        *laptop.reproduce.backbones.values(),
        *laptop.reproduce.encoders.values(),
    )


def test_the_shipped_vit_saw_none_of_the_patients():
    drawn = [parse([f"--config=argus/configs/{name}.yaml"]).data.simulate.seed for name in ("encoder", "laptop")]
    assert len({*drawn, 100}) == 3, "nor those of the development seed"


def test_a_tier_may_name_a_vit_that_was_made_before(cfg):
    given = replace(cfg, reproduce=replace(cfg.reproduce, encoders={ENCODER: "made/before"}))
    for name in ("align-argus", "align-avgpool", "align-hr", "align-data-10", "one-stage"):
        assert arguments(given, name).model.encoder == "made/before", name
        assert "model.encoder" not in ARGUS.starts_from(given, name), "nothing is pre-trained"
    assert arguments(given, "argus").model.encoder is None, "it goes on from its first stage"
    assert arguments(given, "no-image").model.encoder is None
    for name in (f"from-{ENCODER}", "from-mae", "single-slice", "geometry-b"):  # arms, and other inputs, have their own
        assert not ARGUS.cannot_run(given, name)
        own = arguments(given, f"align-{name}").model.encoder
        assert own.endswith(f"{ARGUS.starts_from(given, f'align-{name}')['model.encoder']}/seed0/checkpoint"), name
    assert given.decisive() != cfg.decisive()


@pytest.mark.parametrize("name", ["smoke", "laptop", "gpu", "paper"])
def test_one_stage_has_as_many_updates_as_two(name):
    cfg = parse([f"--config=argus/configs/{name}.yaml"])

    def updates(run: str, volumes: int = 12_800) -> float:
        t = arguments(cfg, run).train
        return t.steps or t.epochs * volumes / t.global_batch

    both = updates("align-argus") + updates("argus")
    assert updates("one-stage") == updates("held-out") == pytest.approx(both)
    mixed = replace(cfg, train=replace(cfg.train, steps=0), reproduce=replace(cfg.reproduce, overrides=OVERRIDES))
    with pytest.raises(ValueError, match=r"one-stage needs steps, or epochs, of both stages"):
        run_arguments(ARGUS, mixed, "one-stage", 0)


def test_fewer_patients_hold_for_every_stage_with_as_many_updates(cfg):
    for name in (f"encoder-{ENCODER}-data-10", "align-data-10", "data-10"):
        assert arguments(cfg, name).data.share == 0.1, name
    assert arguments(cfg, "align-data-10").model.encoder.endswith(f"encoder-{ENCODER}-data-10/seed0/checkpoint")
    assert arguments(cfg, "data-10").train.steps == arguments(cfg, "argus").train.steps == 200
    assert arguments(cfg, "align-data-10").train.steps == 60


@pytest.mark.parametrize("tier", ["laptop", "gpu", "paper"])
def test_fewer_patients_are_seen_as_often_more_in_every_stage(tier):
    cfg = parse([f"--config=argus/configs/{tier}.yaml"])
    stages = {"align-data-10": "align-argus", "data-10": "argus"}
    if tier != "laptop":  # which is given its ViT
        stages[f"encoder-{ENCODER}-data-10"] = f"encoder-{ENCODER}"
    for few, every in stages.items():
        few, every = (train_options(arguments(cfg, name), "") for name in (few, every))
        assert few.max_steps == every.max_steps
        assert few.num_train_epochs == pytest.approx(10 * every.num_train_epochs)


def test_what_a_tier_names_holds_for_the_stages_before(cfg):
    for name in ("align-hr", "hr", "align-hr-cheap", "hr-avgpool", "align-hr-avgpool"):
        assert arguments(cfg, name).data.shape == [32, 64, 64] and arguments(cfg, name).model.patch == [8, 16, 16]
    assert arguments(cfg, "align-hr-avgpool").model.compressor == "avgpool"
    assert arguments(cfg, "align-hr").model.encoder.endswith(f"encoder-{ENCODER}/seed0/checkpoint"), "carried from nr"
    for name in (f"encoder-{ENCODER}-geometry-b", "align-geometry-b", "geometry-b"):
        assert arguments(cfg, name).data.spacing_mm == [10, 8, 8] and arguments(cfg, name).model.patch == [2, 4, 4]
    bare = replace(cfg, reproduce=replace(cfg.reproduce, overrides={}))
    for name in EXPERIMENTS:
        why = ARGUS.cannot_run(bare, name)
        assert bool(why) == (name.removeprefix("align-").startswith((*BY_TIER, "llm-", f"from-{ENCODER}"))), name


@pytest.mark.parametrize("tier", ["smoke", "laptop", "gpu", "paper"])
def test_published_connectors_fit_the_grid_of_every_tier(tier, claims):
    cfg = parse([f"--config=argus/configs/{tier}.yaml"])
    claim = next(c for c in claims if c["id"] == "published-connectors")
    assert claim["comparator"] == "radfm-perceiver"
    left = {}
    for name in ("avgpool", "radfm-perceiver"):
        run = arguments(cfg, name)
        assert run.model.factors == [2, 2, 2], "average pooling is M3D's at every tier"
        grid = [n // p for n, p in zip(run.data.shape, run.model.patch, strict=True)]
        left[name] = build_compressor(run.model.compressor, 16, grid, run.model.factors, 0, 16).n_tokens
        assert name in ARMS
    assert left == {"avgpool": math.prod(grid) // 8, "radfm-perceiver": 32}


def test_the_held_out_source_is_trained_on_by_nobody_and_scored_alike(cfg):
    held, scored = arguments(cfg, "held-out"), arguments(cfg, "held-out-scored", seed=1)
    assert scored.data.sources == ["inspect"] and "inspect" not in held.data.sources
    tiers = {t: parse(["--config", f"argus/configs/{t}.yaml"]) for t in (*TEACHING, "laptop")}
    read = {t: tiers[t].reproduce.overrides["lm"]["data.texts"] for t in TEACHING}
    read["laptop"] = yaml.safe_load(Path("argus/weights/lm/config.yaml").read_text())["data"]["texts"]
    for t, texts in read.items():
        assert texts
        left_out = [bool(ARGUS.cannot_run(tiers[t], name)) for name in ("held-out", "held-out-scored")]
        assert left_out == ["inspect" in texts] * 2, "nor has the language model read such reports"
    assert scored.eval.checkpoint.endswith("held-out/seed1/checkpoint")
    assert arguments(cfg, "one-stage-scored").data == scored.data
    assert held.train.steps == arguments(cfg, "one-stage").train.steps


def test_a_claim_brings_what_it_starts_from(cfg, claims):
    headline = experiments_for(ARGUS, cfg, claims, None, everything=False)
    assert headline == ["align-argus", "argus", "align-avgpool", "avgpool", "align-attn-pool", "attn-pool", "no-image"]
    stages = experiments_for(ARGUS, cfg, claims, "two-stage-unfrozen-vit", False)
    assert stages == ["align-argus", "argus", "frozen-vit", "one-stage"]
    with pytest.raises(SystemExit, match="known: "):
        experiments_for(ARGUS, cfg, claims, "scale-llm", False)
    away = replace(cfg, reproduce=replace(cfg.reproduce, not_here={"hilt": "too slow"}))
    assert not {"hilt", "align-hilt"} & set(experiments_for(ARGUS, away, claims, None, True))


# --- controls without a language model ---


def test_constant_reports():
    assert majority_report(["a", "b", "b"]) == "b"
    reports = ["A 5 mm nodule in the left lung.", "Pleural effusion.", "A nodule and a pleural effusion.", "Normal."]
    assert typical_report(reports) == reports[2]
    by_hand = []
    for one in reports:
        tp = sum(len(asserted(one) & asserted(other)) for other in reports)
        both = sum(len(asserted(one)) + len(asserted(other)) for other in reports)
        by_hand.append(2 * tp / both)
    assert typical_report(reports) == reports[int(np.argmax(by_hand))]
    for text in NORMAL.values():
        assert not asserted(text), "a normal report asserts nothing"


# --- what is shown ---

GOOD = ["There is a 9 mm nodule in the left lung.", "Pulmonary embolism in the right main pulmonary artery.",
        "Pleural effusion on both sides with atelectasis in the lower lobes."] * 20  # fmt: skip
BAD = ["No acute abnormality."] * 60


def write_predictions(cfg, name: str, inputs: dict[str, list[str]], records_hash: str = "r", tokens: int = 36) -> None:
    out = folder(cfg) / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    source = [("ct-rate", "bimcv-r", "inspect")[i // 20] for i in range(60)]
    ids = [f"{s}/v{i}" for i, s in enumerate(source)]
    sizes = [json.dumps({name: 2.0 + i for (name,) in asserted(text)}) for i, text in enumerate(GOOD)]
    file = folder(cfg) / "runs.json"
    facts = {"runs": {}, "commit": "unknown", "wall_s": 1.0, "peak_rss_mb": 1, "seeds": [0, 1, 2], "environment": {}}
    facts = json.loads(file.read_text()) if file.exists() else facts
    for seed in cfg.reproduce.seeds:
        rng = np.random.default_rng(seed)
        parts = [pd.DataFrame({"id": ids, "patient": ids, "source": source, "section": "report", "input": kind,
                               "reference": GOOD, "sizes": sizes, "fold": 0,
                               "prediction": [t if rng.random() < 0.9 else BAD[0] for t in texts]})
                 for kind, texts in inputs.items()]  # fmt: skip
        pd.concat(parts, ignore_index=True).to_parquet(out / f"{name}-seed{seed}.parquet")
        run = {"source": "simulated", "data_hash": name, "records_hash": records_hash, "commit": "c",
               "visual_tokens": tokens, "trainable": 1000, "loss": [[10, 3.0], [20, 2.5 - seed / 10]]}  # fmt: skip
        facts["runs"][f"{name}/seed{seed}"] = run
    pd.DataFrame({"report": GOOD}).to_parquet(out / f"train-reports-{records_hash}.parquet")
    file.write_text(json.dumps(facts))


def test_scores_tell_a_reader_from_a_parrot(empty, claims):
    kinds = ("shuffle", "zero", "majority", "typical", "constant", "every", "nearest")
    write_predictions(empty, "argus", {"volume": GOOD} | dict.fromkeys(kinds, BAD))
    write_predictions(empty, "avgpool", {"volume": BAD})
    write_predictions(empty, "attn-pool", {"volume": BAD})
    write_predictions(empty, "no-image", {"volume": BAD}, tokens=0)
    write_predictions(empty, "hr", {"volume": GOOD})
    card = score(ARGUS, empty, claims)
    rows = {c["id"]: c for c in card["claims"]}
    best = rows["pixel-shuffle-best"]
    assert best["verdict"] == "holds" and [s["comparator"] for s in best["ours"]["steps"]] == [
        "argus > avgpool",
        "argus > attn-pool",
    ]
    assert rows["resolution-small-findings"]["verdict"] == "inconclusive", "compared across resolutions"
    for claim in ("scale-data", "scale-llm", "small-beats-large-baselines", "sota-family"):
        assert rows[claim]["verdict"] == "not tested at this tier", claim
    assert {c["id"] for c in card["controls"]} == {*(f"argus-{k}" for k in kinds), "llm-without-image"}
    for control in card["controls"]:
        assert control["difference"] > 0.3 and control["difference_ci"][0] > 0
    tables = {t["id"]: t for t in card["tables"]}
    sources = dict(zip(tables["sources"]["columns"], tables["sources"]["rows"][0], strict=True))
    assert {"finding_f1:ct-rate", "finding_f1:inspect", "finding_f1:mean", "bleu_4:mean"} <= set(sources)
    assert tables["compression"]["rows"][0][:4] == ["pixel shuffle", 3, 36, 1000]
    quality = [dict(zip(tables["quality"]["columns"], row, strict=True)) for row in tables["quality"]["rows"]]
    assert [quality[k]["distinct reports"] for k in (0, 1)] == [4, 1], "three reports and the empty one; one for all"
    assert quality[0]["all_finding_f1"][0] > 0.5 and quality[0]["hallucinated_priors"][0] == 0
    ngrams = dict(zip(tables["ngrams"]["columns"], tables["ngrams"]["rows"][0], strict=True))
    assert ngrams["bertscore_f1"] == NOT_COMPUTED and ngrams["bleu_4_r2gen"][0] > 0.5
    clinical = tables["clinical"]["rows"][0]
    assert set(clinical[1:]) == {NOT_COMPUTED}, "never 0"
    names = {f["file"] for f in card["figures"]}
    assert {"claims.png", "compression.png", "sizes.png", "loss-2.png"} <= names and "data.png" not in names
    page = (folder(empty).parent / "REPRODUCTION.md").read_text()
    assert NOT_COMPUTED in page and "pixel-shuffle-best" in page


def test_what_has_more_seeds_is_compared_over_those_of_both(empty, claims):
    more = replace(empty, reproduce=replace(empty.reproduce, seeds=[0, 1, 2, 5, 6]))
    write_predictions(more, "argus", {"volume": GOOD})
    write_predictions(empty, "avgpool", {"volume": BAD})
    write_predictions(replace(empty, reproduce=replace(empty.reproduce, seeds=[1, 2, 6])), "attn-pool", {"volume": BAD})
    score(ARGUS, empty, claims)
    facts = json.loads((folder(empty) / "runs.json").read_text())
    scored = score_all(empty, facts)
    assert scored["argus@volume"].seeds == [0, 1, 2, 5, 6] and seeds_of(facts, "attn-pool") == [1, 2, 6]
    whole = [m.value for m in scored["argus@volume"].metric("finding_f1")]
    assert whole[:3] != [whole[i] for i in (1, 2, 4)], "else the first three would do as well"
    for rival, places in (("avgpool", [0, 1, 2]), ("attn-pool", [1, 2, 4])):
        their = [m.value for m in scored[f"{rival}@volume"].metric("finding_f1")]
        found = compare(ARGUS, scored, "finding_f1", "argus", rival)
        assert found.per_seed == pytest.approx([whole[i] - v for i, v in zip(places, their, strict=True)])
    write_predictions(replace(empty, reproduce=replace(empty.reproduce, seeds=[9])), "no-image", {"volume": BAD})
    scored = score_all(empty, json.loads((folder(empty) / "runs.json").read_text()))
    with pytest.raises(ValueError, match="argus and no-image have no seed in common"):
        compare(ARGUS, scored, "finding_f1", "argus", "no-image")


def test_runs_on_other_records_are_never_compared(empty, claims):
    write_predictions(empty, "argus", {"volume": GOOD, "zero": BAD})
    write_predictions(empty, "avgpool", {"volume": BAD}, records_hash="older")
    write_predictions(empty, "attn-pool", {"volume": BAD}, records_hash="older")
    card = score(ARGUS, empty, claims)
    row = next(c for c in card["claims"] if c["id"] == "pixel-shuffle-best")
    assert row["verdict"] == "not tested at this tier" and "runs them again" in row["reason"]


# --- pictures ---


def test_planes_are_shown_head_up_and_front_up():
    volume = np.zeros((4, 5, 6))
    volume[3], volume[0] = 1, 2  # head, feet
    assert (plane(volume, "coronal", (1, 2, 3))[0] == 1).all() and (plane(volume, "coronal", (1, 2, 3))[-1] == 2).all()
    assert plane(volume, "sagittal", (1, 2, 3)).shape == (4, 5) and plane(volume, "axial", (3, 0, 0)).mean() == 1


def test_the_cross_stands_on_the_finding():
    finding = {"name": "nodule", "side": "left", "place": "upper_lobe", "size_mm": 7.4, "volume_mm3": 200.0}
    large = {**finding, "name": "mass", "volume_mm3": 9e4, "box": [0, 0, 0, 10, 10, 10]}
    outside = {**finding, "volume_mm3": 0.0, "box": []}
    at, words = spot([large, outside, {**finding, "box": [40, 20, 60, 44, 24, 64]}], (64, 96, 96), (32, 48, 48))
    assert at == (21, 11, 31) and words == "left upper lobe nodule, 7 mm"
    both = {**finding, "side": "bilateral", "volume_mm3": 9.0, "box": [0, 0, 0, 64, 96, 96]}
    assert spot([both, large], (64, 96, 96), (32, 48, 48))[1].endswith("mass, 7 mm")  # its middle is the mediastinum
    assert spot([outside], (64, 96, 96), (32, 48, 48)) == ((16, 24, 24), "")


def test_a_case_and_levels_are_drawn(tmp_path):
    hu = np.random.default_rng(0).normal(-300, 400, (16, 24, 24)).astype(np.float32)
    reports = {"Argus": "A nodule. " * 30, "another patient's volume": ""}
    draw_case(tmp_path / "case.png", hu, (8.0, 6.0, 6.0), (5, 12, 20), GOOD[0], reports, "test record", mark=True)
    assert (tmp_path / "case.png").stat().st_size > 50_000
    levels = {"small": (0.2, 0.1, 0.3), "large": (0.5, None, None)}
    draw_levels(tmp_path / "levels.png", ["small", "large"], {"nr": levels, "hr": levels}, "finding F1")
    assert (tmp_path / "levels.png").stat().st_size > 5_000
