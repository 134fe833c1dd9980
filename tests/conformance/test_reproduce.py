"""`make reproduce-<paper>` through the real entry point: what it writes, and that scoring again gives the same."""

import importlib
import json
import re
import shutil

import pandas as pd
import pytest
from packages import ROOT, run

from shared.metrics import scorecard
from shared.metrics.report import render
from shared.runs import engine


def test_smoke_writes_valid_evidence(package, smoke):
    results = smoke / "results" / package.name / "smoke"
    card = scorecard.read(results / "scorecard.json")  # validates against the schema
    claims = scorecard.load_claims(ROOT / package.name / "claims.yaml")
    assert [c["id"] for c in card["claims"]] == [c["id"] for c in claims]
    tested = [c for c in card["claims"] if "ours" in c]
    assert tested, "the smoke tier measures at least one claim"
    assert {c["verdict"] for c in tested} == {"inconclusive"}, "one seed is never decisive"
    assert card["controls"], "controls are part of every scorecard"
    for file in results.glob("predictions/*-seed*.parquet"):
        columns = set(pd.read_parquet(file).columns)
        assert {"id", "patient"} <= columns and {"prediction"} <= columns, file
    page = (smoke / "results" / package.name / "REPRODUCTION.md").read_text()
    assert page.startswith("<!-- GENERATED") and f"# Reproduction of `{package.name}`" in page


def test_run_folder_holds_what_the_design_asks(package, smoke):
    folders = [p.parent for p in (smoke / "runs").glob("**/run.json")]
    assert folders
    for folder in folders:
        facts = json.loads((folder / "run.json").read_text())
        assert {"commit", "versions", "data_hash", "config_hash", "batch", "wall_s", "peak_rss_mb"} <= set(facts)
        total, micro, accumulation, world = map(int, re.findall(r"\d+", facts["batch"]))
        assert total == micro * accumulation * world
        assert (folder / "config.yaml").exists() and (folder / "checkpoint").is_dir()
        assert not list(folder.glob("checkpoint/*.bin")), "safetensors only"


def test_rescoring_reproduces_every_number(package, smoke, cache):
    file = smoke / "results" / package.name / "smoke" / "scorecard.json"
    before = file.read_text()
    options = ("--config", package.config, f"--runs={smoke / 'none'}", f"--results={smoke / 'results'}", "--rescore")
    run(f"{package.name}.reproduce", *options, cache=cache)
    assert file.read_text() == before


def test_a_second_call_runs_nothing_again_and_leaves_out_seeds_of_other_data(package, smoke, cache):
    stamps = {p: p.stat().st_mtime_ns for p in (smoke / "runs").glob("**/*.json")}
    results = smoke / "with-more-seeds"
    shutil.copytree(smoke / "results", results)
    file = results / package.name / "smoke" / "runs.json"
    facts = json.loads(file.read_text())
    name = importlib.import_module(f"{package.name}.config").parse(["--config", package.config]).reproduce.headline[0]
    run0 = facts["runs"][f"{name}/seed0"]
    assert run0["trained_on"]
    facts["runs"] |= {f"{name}/seed8": run0, f"{name}/seed9": run0 | {"trained_on": "other data"}}
    file.write_text(json.dumps(facts))
    predictions = file.parent / "predictions"
    shutil.copy(predictions / f"{name}-seed0.parquet", predictions / f"{name}-seed8.parquet")
    options = ("--config", package.config, f"--runs={smoke / 'runs'}", f"--results={results}")
    printed = run(f"{package.name}.reproduce", *options, cache=cache)
    assert {p: p.stat().st_mtime_ns for p in (smoke / "runs").glob("**/*.json")} == stamps
    assert f"{name}: seed 9 under" in printed and f"{name}: seed 8" not in printed
    assert {f"{name}/seed0", f"{name}/seed8"} == {
        r for r in json.loads(file.read_text())["runs"] if r.startswith(f"{name}/")
    }


def test_only_the_tiers_own_headline_from_nothing_is_timed(package, tmp_path, monkeypatch):
    paper = importlib.import_module(f"{package.name}.reproduce")
    one = importlib.import_module(f"{package.name}.config").parse(["--config", package.config]).reproduce.headline[0]
    timed = []
    monkeypatch.setattr(engine, "run_all", lambda *_: None)
    monkeypatch.setattr(engine.evidence, "collect", lambda *_: None)
    monkeypatch.setattr(engine.evidence, "score", lambda *args: timed.append(args[-1]))
    fresh = ["--config", package.config, f"--results={tmp_path / 'results'}"]
    for number, other in enumerate(([], ["--all"], ["--claim", one], [f'--reproduce.headline=["{one}"]'])):
        paper.main([*fresh, f"--runs={tmp_path / str(number)}", *other])
    (tmp_path / "0" / package.name / "smoke" / one / "seed0").mkdir(parents=True)
    paper.main([*fresh, f"--runs={tmp_path / '0'}"])
    assert [started is not None for started in timed] == [True, False, False, False, False]


def test_more_seeds_run_with_all_and_with_a_claim(package, tmp_path, monkeypatch):
    paper = importlib.import_module(f"{package.name}.reproduce")
    ran = {"run": [], "collected": []}
    monkeypatch.setattr(engine, "run_all", lambda *args: ran["run"].append(args[3]))
    monkeypatch.setattr(engine.evidence, "collect", lambda *args: ran["collected"].append(args[3]))
    monkeypatch.setattr(engine.evidence, "score", lambda *_: None)
    cfg = importlib.import_module(f"{package.name}.config").parse(["--config", package.config])
    more = ["--config", package.config, "--reproduce.more_seeds=[7, 8]"]
    for other in ([], ["--all"], ["--claim", cfg.reproduce.headline[0]]):
        paper.main([*more, f"--runs={tmp_path}", f"--results={tmp_path}", *other])
    assert ran["run"] == ran["collected"] == [cfg.reproduce.seeds, *[[*cfg.reproduce.seeds, 7, 8]] * 2]


def test_only_experiments_on_real_records_need_real_records(package, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    paper = getattr(importlib.import_module(f"{package.name}.reproduce"), package.name.upper())
    cfg = importlib.import_module(f"{package.name}.config").parse(["--config", f"{package.name}/configs/laptop.yaml"])
    reasons = {name: paper.cannot_run(cfg, name) for name in paper.experiments}
    missing = {name for name, why in reasons.items() if why and "is missing" in why}
    on_records = package.name in ("meit", "kmerl", "supreme")
    assert missing == {name for name in reasons if name.startswith("real-") and on_records}


def test_an_unknown_experiment_is_named(package):
    paper = importlib.import_module(f"{package.name}.reproduce")
    with pytest.raises(SystemExit, match=r"reproduce\.headline: nothing is no experiment"):
        paper.main(["--config", package.config, '--reproduce.headline=["nothing"]'])


def test_reproduction_page_equals_committed_scorecards(package):
    claims = scorecard.load_claims(ROOT / package.name / "claims.yaml")
    files = {t: ROOT / "results" / package.name / t / "scorecard.json" for t in scorecard.TIERS if t != "smoke"}
    cards = {t: scorecard.read(f) for t, f in files.items() if f.exists()}
    page = ROOT / package.name / "REPRODUCTION.md"
    if not cards:
        pytest.skip(f"no scorecard of {package.name} is committed yet")
    assert page.read_text() == render(package.name, claims, cards)
    for tier, card in cards.items():
        for figure in card["figures"]:
            assert (files[tier].parent / figure["file"]).is_file(), figure["file"]
            assert f"../results/{package.name}/{tier}/{figure['file']}" in page.read_text()


def test_every_tier_parses(package):
    parse = importlib.import_module(f"{package.name}.config").parse
    for tier in scorecard.TIERS:
        assert parse(["--config", str(ROOT / package.name / "configs" / f"{tier}.yaml")]).tier == tier


def test_every_run_waits_for_the_checkpoints_it_names(package):
    parse = importlib.import_module(f"{package.name}.config").parse
    paper = getattr(importlib.import_module(f"{package.name}.reproduce"), package.name.upper())
    for tier in scorecard.TIERS:
        cfg = parse(["--config", str(ROOT / package.name / "configs" / f"{tier}.yaml")])
        names = [name for name in paper.experiments if not paper.cannot_run(cfg, name)]
        plan, done = engine.planned(paper, cfg, names, cfg.reproduce.seeds), set()
        assert {each[0] for each in plan} >= set(names)
        for name, seed, fold in (each for each in plan if each[1] == cfg.reproduce.seeds[0]):
            words = " ".join(engine.run_arguments(paper, cfg, name, seed, fold))
            for other in plan:
                if str(cfg.dir_of(*other[:2]) / "checkpoint") in words:
                    assert other in plan[name, seed, fold], f"{name} starts from {other[0]}"
        while ready := {each for each, needs in plan.items() if needs <= done} - done:
            done |= ready
        assert done == set(plan), "runs that wait for each other"


def test_unknown_key_is_an_error_that_names_it(package, tmp_path, capsys):
    parse = importlib.import_module(f"{package.name}.config").parse
    bad = tmp_path / "bad.yaml"
    bad.write_text("train:\n  learning_rat: 1\n")
    for args in (["--config", str(bad)], ["--train.learning_rat=1"]):
        with pytest.raises(SystemExit):
            parse(args)
        assert "learning_rat" in capsys.readouterr().err
