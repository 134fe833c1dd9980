"""Which runs a claim needs, with which options; what an evaluation is given."""

import pytest

from shared.metrics.scorecard import load_claims
from shared.runs.engine import claim_experiments, experiments_for, run_arguments
from shared.runs.evidence import claim_pairs, entry_name
from supreme.config import parse
from supreme.evaluate import kind_of
from supreme.inputs import expand
from supreme.reproduce import EXPERIMENTS, HELD_OUT, SUPREME
from supreme.scoring import BEST, ESSL
from supreme.tables import ABLATIONS, METHODS, PROTOCOLS, TEXTS
from supreme.terminology import ancestors, terminology

LAPTOP = "supreme/configs/laptop.yaml"


@pytest.fixture
def cfg(tmp_path):
    return parse(["--config", LAPTOP, f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"])


@pytest.fixture(scope="module")
def claims():
    return load_claims("supreme/claims.yaml")


def provided(cfg, name: str) -> set[str]:
    """Keys of `score_all` that an experiment's inputs lead to, means over draws included."""
    keys = set()
    for one in expand(list(EXPERIMENTS[name].inputs)):
        ratios = [f" {r:g}" for r in cfg.eval.probe.ratios] if one.kind == "probe" else [""]
        keys |= {f"{name}@{n}{r}" for r in ratios for n in (one.name, one.name.removesuffix("~val"))}
    return keys


def test_claims_compare_what_is_run(cfg, claims):
    """Both sides of every claim that some tier tests exist, with the input that the claim names."""
    for claim in claims:
        for side in (s for pair in claim_pairs(claim) for s in pair) if claim["tiers"] else ():
            for name in SUPREME.stands_for(side.split("@")[0]):
                key = entry_name(SUPREME, side).replace(BEST, name)
                assert key in provided(cfg, name), (claim["id"], key)


def test_a_claim_brings_what_it_starts_from(cfg, claims, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert experiments_for(SUPREME, cfg, claims, None, everything=False) == cfg.reproduce.headline
    assert set(experiments_for(SUPREME, cfg, claims, "beats-essl", False)) == {"supreme", *ESSL}
    assert experiments_for(SUPREME, cfg, claims, "simplified-prompts", False) == ["supreme", "texts-long"]
    everything = experiments_for(SUPREME, cfg, claims, None, everything=True)
    assert set(everything) == {n for n in EXPERIMENTS if not n.startswith("real-")}, "real records are not here"
    (tmp_path / "ptb-xl").mkdir()
    assert experiments_for(SUPREME, cfg, claims, "real-supreme", False) == ["supreme", "real-supreme"]
    for claim in claims:
        if "laptop" in claim["tiers"]:
            assert claim_experiments(SUPREME, claim) <= set(everything)


def test_run_options_parse_and_say_what_they_should(cfg):
    for name in EXPERIMENTS:
        run = parse(run_arguments(SUPREME, cfg, name, seed=1))
        assert run.seed == 1 and run.tier == "laptop" and expand(run.eval.inputs)
        assert bool(run.eval.checkpoint) == (not EXPERIMENTS[name].train)
    for name in ESSL:
        run = parse(run_arguments(SUPREME, cfg, name, 0))
        assert run.model.method == name.replace("-", "_") and run.train.steps == cfg.train.steps, "the same updates"
    assert parse(run_arguments(SUPREME, cfg, "random-init", 0)).train.epochs == 0
    assert parse(run_arguments(SUPREME, cfg, "held-out", 0)).extract.hold_out == HELD_OUT
    real = parse(run_arguments(SUPREME, cfg, "real-probe-simclr", 2))
    assert real.eval.simulate is None and real.eval.checkpoint.endswith("simclr/seed2/checkpoint")


def test_what_is_held_out_is_a_kind_of_its_own():
    kept = [t for t in terminology() if not {t.id, *ancestors(t.id)} & set(HELD_OUT)]
    texts = ("prolonged QT interval", "ventricular bigeminy", "sinus rhythm", "a name of nobody")
    assert [kind_of(text, kept, HELD_OUT) for text in texts] == ["held_out", "held_out", "seen", "unseen"]
    assert kind_of("left bundle branch block", kept, []) == "related", "a sibling stays"


def test_every_experiment_is_shown_and_every_row_is_an_experiment():
    rows = {*METHODS.values(), *ABLATIONS.values(), *TEXTS.values(), *PROTOCOLS.values()}
    assert rows <= set(EXPERIMENTS)
    elsewhere = ("real-", "probe-", "all-labels-")  # columns of the tables of methods and of real records
    assert {n for n in EXPERIMENTS if not n.startswith(elsewhere)} == rows


def test_weights_do_not_depend_on_how_they_are_tested(cfg):
    assert parse(["--config", LAPTOP, "--eval.texts=long", "--eval.n_boot=7"]).digest() == cfg.digest()
    assert parse(["--config", LAPTOP, "--model.patch=25"]).digest() != cfg.digest()
    assert parse(["--config", LAPTOP, "--extract.protocol=as_published"]).digest() != cfg.digest()
