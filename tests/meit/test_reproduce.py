"""Which runs an experiment needs, in which order, with which options; scoring of predictions."""

import json

import numpy as np
import pandas as pd
import pytest

from meit.config import parse
from meit.reproduce import EXPERIMENTS, MEIT
from shared.metrics.scorecard import load_claims
from shared.runs.engine import claim_experiments, experiments_for, planned, run_arguments
from shared.runs.evidence import folder, score

LAPTOP = "meit/configs/laptop.yaml"


@pytest.fixture
def cfg(tmp_path):
    return parse(["--config", LAPTOP, f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"])


@pytest.fixture
def without_java(monkeypatch):
    """METEOR of NLTK: starting Java takes longer than such a test."""
    monkeypatch.setattr("shared.metrics.text.meteor_jar", lambda: None)


@pytest.fixture(scope="module")
def claims():
    return load_claims("meit/claims.yaml")


def test_claims_name_runs_that_exist(cfg, claims):
    """Every claim can be run at the paper tier, and those of the laptop tier at that."""
    paper = parse(["--config", "meit/configs/paper.yaml"]).reproduce.backbones
    for claim in claims:
        assert claim_experiments(MEIT, claim) <= set(EXPERIMENTS), claim["id"]
        assert {EXPERIMENTS[n].family for n in claim_experiments(MEIT, claim)} <= set(paper), claim["id"]
    for claim in claims:
        if "laptop" in claim["tiers"]:
            assert claim_experiments(MEIT, claim) <= set(EXPERIMENTS), claim["id"]
            assert all(EXPERIMENTS[n].family in cfg.reproduce.backbones for n in claim_experiments(MEIT, claim))


def test_a_claim_brings_what_it_starts_from(cfg, claims, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert experiments_for(MEIT, cfg, claims, None, everything=False) == cfg.reproduce.headline
    assert experiments_for(MEIT, cfg, claims, "robustness", False) == ["meit", "noise"]
    everything = experiments_for(MEIT, cfg, claims, None, everything=True)
    here = {n for n in EXPERIMENTS if EXPERIMENTS[n].family in cfg.reproduce.backbones}
    assert set(everything) == here - {"real-ptb-xl"}, "real records are left out where they are missing"
    (tmp_path / "ptb-xl").mkdir()
    assert experiments_for(MEIT, cfg, claims, "real-ptb-xl", False) == ["ptb-xl", "real-ptb-xl"]
    with pytest.raises(SystemExit, match="known: "):
        experiments_for(MEIT, cfg, claims, "scaling", False)


def test_out_of_fold_predictions_take_a_run_for_each_official_fold(cfg):
    plan = planned(MEIT, cfg, ["real-ptb-xl"], cfg.reproduce.seeds)
    assert len([run for run in plan if run[0] == "real-ptb-xl"]) == 10 * len(cfg.reproduce.seeds)


def test_run_options_parse_and_say_what_they_should(cfg):
    for name in (n for n in EXPERIMENTS if EXPERIMENTS[n].family in cfg.reproduce.backbones):
        run = parse(run_arguments(MEIT, cfg, name, seed=1, fold=2 if EXPERIMENTS[name].folds else 0))
        assert run.seed == 1 and run.tier == "laptop" and run.runs == cfg.runs
        assert (run.model.fusion == "none") == (name == "no-ecg")
    run = parse(run_arguments(MEIT, cfg, "real-ptb-xl", seed=0, fold=3))
    assert run.data.simulate is None and run.data.split == "fold-3" and run.data.dataset == "ptb-xl"
    assert run.train.init.endswith("ptb-xl/seed0/checkpoint")
    run = parse(run_arguments(MEIT, cfg, "zero-shot", seed=2))
    assert run.eval.checkpoint.endswith("meit/seed2/checkpoint") and run.data.split == "official_folds"
    assert parse(run_arguments(MEIT, cfg, "random-encoder", seed=0)).model.encoder is None
    lm = parse(run_arguments(MEIT, cfg, "lm-mimic-gpt2", seed=0))
    assert (lm.model.backbone, lm.model.fusion, lm.model.lora_r) == ("scratch:gpt2", "none", 0)


GOOD = ["sinus rhythm. left axis deviation.", "atrial fibrillation.", "sinus bradycardia. pvcs."] * 20
BAD = ["sinus rhythm."] * 60


def write_predictions(cfg, name: str, inputs: dict[str, list[str]], seeds=(0, 1, 2)) -> None:
    out = folder(cfg) / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    ids = [f"r{i}" for i in range(60)]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        parts = []
        for kind, texts in inputs.items():
            texts = [t if rng.random() < 0.9 else BAD[0] for t in texts]
            parts.append(
                pd.DataFrame(
                    {"id": ids, "patient": ids, "input": kind, "reference": GOOD, "prediction": texts, "fold": 0}
                )
            )
        pd.concat(parts, ignore_index=True).to_parquet(out / f"{name}-seed{seed}.parquet")
    pd.DataFrame({"report": GOOD, "fold": 0}).to_parquet(out / f"{name}-train-reports.parquet")
    file = folder(cfg) / "runs.json"
    facts = {
        "runs": {},
        "commit": "unknown",
        "wall_s": 1.0,
        "peak_rss_mb": 1,
        "seeds": [0, 1, 2],
        "environment": {"python": "3"},
    }
    facts = json.loads(file.read_text()) if file.exists() else facts
    facts["runs"] |= {f"{name}/seed{s}": {"source": "simulated", "commit": "c", "data_hash": "d"} for s in seeds}
    file.write_text(json.dumps(facts))


def test_scores_tell_a_reader_from_a_parrot(cfg, claims):
    write_predictions(cfg, "meit", {"ecg": GOOD, "shuffle": BAD, "zero": BAD, "majority": BAD})
    write_predictions(cfg, "llava", {"ecg": BAD})
    card = score(MEIT, cfg, claims)
    rows = {c["id"]: c for c in card["claims"]}
    assert rows["fusion-llava"]["ours"]["difference"] > 0.3 and rows["fusion-llava"]["verdict"] == "holds"
    assert rows["fusion-flamingo"]["verdict"] == "not tested at this tier"
    for control in card["controls"]:
        assert control["difference"] > 0.3 and control["difference_ci"][0] > 0
    tables = {t["id"]: t for t in card["tables"]}
    assert tables["protocols"]["rows"][3][0] == "BLEU-4"
    assert (folder(cfg) / "claims.png").stat().st_size > 10_000
    assert (folder(cfg).parent / "REPRODUCTION.md").exists()


def test_results_of_earlier_data_are_never_compared_with_new_ones(cfg, claims, without_java):
    """Part of the table run again after the data changed: the rest says what has to be run again."""
    write_predictions(cfg, "meit", {"ecg": GOOD, "zero": BAD})
    write_predictions(cfg, "llava", {"ecg": BAD})
    write_predictions(cfg, "no-ecg", {"ecg": BAD})
    file = folder(cfg) / "runs.json"
    facts = json.loads(file.read_text())
    for seed in (0, 1, 2):
        facts["runs"][f"llava/seed{seed}"]["data_hash"] = facts["runs"][f"no-ecg/seed{seed}"]["data_hash"] = "older"
    file.write_text(json.dumps(facts))
    card = score(MEIT, cfg, claims)
    row = next(c for c in card["claims"] if c["id"] == "fusion-llava")
    assert row["verdict"] == "not tested at this tier" and "CLAIM=fusion-llava` runs them again" in row["reason"]
    controls = {c["id"]: c for c in card["controls"]}
    assert "difference" in controls["meit-zero"] and "difference" not in controls["llm-without-ecg"]


def test_seeds_on_other_records_are_refused(cfg, claims, without_java):
    write_predictions(cfg, "meit", {"ecg": GOOD})
    write_predictions(cfg, "llava", {"ecg": BAD})
    file = folder(cfg) / "predictions" / "llava-seed1.parquet"
    table = pd.read_parquet(file)
    table["id"] = "x" + table.id
    table.to_parquet(file)
    with pytest.raises(ValueError, match="different records"):
        score(MEIT, cfg, claims)
