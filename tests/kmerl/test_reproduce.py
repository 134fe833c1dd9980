"""Which runs a claim needs, with which options; what an evaluation is given."""

import pytest

from kmerl.config import parse
from kmerl.inputs import expand
from kmerl.reproduce import EXPERIMENTS, KMERL
from shared.metrics.scorecard import load_claims
from shared.runs.engine import claim_experiments, experiments_for, run_arguments
from shared.runs.evidence import claim_pairs, entry_name

LAPTOP = "kmerl/configs/laptop.yaml"


@pytest.fixture
def cfg(tmp_path):
    return parse(["--config", LAPTOP, f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"])


@pytest.fixture(scope="module")
def claims():
    return load_claims("kmerl/claims.yaml")


def provided(cfg, name: str) -> set[str]:
    """Keys of `score_all` that an experiment's inputs lead to, means over lead sets and draws included."""
    probe = cfg.eval.probe
    keys = set()
    for spec in EXPERIMENTS[name].inputs:
        if spec.split("/")[0] == "partial":
            keys.add(f"{name}@{spec}")
        for one in expand([spec], 1):
            keys |= (
                {f"{name}@{one.name} {r:g}" for r in probe.ratios} if one.kind == "probe" else {f"{name}@{one.name}"}
            )
    return keys


def test_claims_compare_what_is_run(cfg, claims):
    """Both sides of every claim that some tier tests exist, with the input that the claim names."""
    for claim in claims:
        if claim["tiers"]:
            sides = [entry_name(KMERL, side) for pair in claim_pairs(claim) for side in pair]
            for side in sides:
                assert side in provided(cfg, side.split("@")[0]), (claim["id"], side)


def test_a_claim_brings_what_it_starts_from(cfg, claims, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert experiments_for(KMERL, cfg, claims, None, everything=False) == cfg.reproduce.headline
    assert experiments_for(KMERL, cfg, claims, "linear-probe-12lead", False) == [
        "kmerl", "merl", "probe-kmerl", "probe-merl",
    ]  # fmt: skip
    everything = experiments_for(KMERL, cfg, claims, None, everything=True)
    assert set(everything) == {n for n in EXPERIMENTS if not n.startswith("real-")}, "real records are not here"
    (tmp_path / "ptb-xl").mkdir()
    assert experiments_for(KMERL, cfg, claims, "real-kmerl", False) == ["kmerl", "real-kmerl"]
    for claim in claims:
        if "laptop" in claim["tiers"]:
            assert claim_experiments(KMERL, claim) <= set(everything)


def test_run_options_parse_and_say_what_they_should(cfg):
    for name in EXPERIMENTS:
        run = parse(run_arguments(KMERL, cfg, name, seed=1))
        assert run.seed == 1 and run.tier == "laptop" and expand(run.eval.inputs, 1)
        assert bool(run.eval.checkpoint) == (not EXPERIMENTS[name].train)
    assert parse(run_arguments(KMERL, cfg, "merl-masked", 0)).model.lead_masking == "random"
    real = parse(run_arguments(KMERL, cfg, "real-probe-merl", 2))
    assert real.eval.simulate is None and real.eval.checkpoint.endswith("merl/seed2/checkpoint")
    assert real.eval.inputs[-1] == "oof:I/zero" and real.eval.tasks == ["ptb-xl-superclass"]


def test_weights_do_not_depend_on_how_they_are_tested(cfg):
    other = parse(["--config", LAPTOP, "--eval.prompts=engineered", "--eval.n_boot=7"])
    assert other.digest() == cfg.digest()
    assert parse(["--config", LAPTOP, "--model.patch=25"]).digest() != cfg.digest()
