"""`python -m shared.runs.publish`: a run of each package as a folder, as a model card and on a hub."""

import importlib
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from packages import ROOT

from shared.metrics.report import ci_text
from shared.runs import publish

REPO = "tests/published"


@pytest.fixture
def run(package, smoke, cache, monkeypatch):
    """Folder of a finished run; predictions find what it was prepared from."""
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    return smoke / "runs" / package.name / "smoke" / package.published / "seed0"


def model_of(package, name: str):
    """The model that the Python lines of the card load."""
    names = {}
    exec(yaml.safe_load((ROOT / package.name / "card.yaml").read_text())["usage"].replace("{name}", name), names)
    return names["model"]


def test_pushed_and_fetched_run_is_the_same_to_the_bit(package, run, cache, hub, tmp_path):
    out = publish.main([str(run), str(tmp_path / "out"), "--push", REPO])
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert hub.repos == {REPO: files} and hub.private == {REPO}
    assert {"README.md", "config.json", "config.yaml", "run.json", "model.safetensors"} <= set(files)
    assert all(name.endswith((".safetensors", ".json", ".yaml", ".md")) for name in files), "no pickles"
    assert not [name for name, content in files.items() if str(run).encode().split(b"/runs/")[0] in content]

    weights = model_of(package, str(run / "checkpoint")).state_dict()
    for name in (str(out), REPO):
        model = model_of(package, name)
        assert not model.training and weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())

    pattern, *options = package.predict
    predict = importlib.import_module(f"{package.name}.predict").main
    arguments = [str(sorted(cache.glob(pattern))[0]), *options, f"--out={tmp_path / 'picture.png'}"]
    found = [predict([*arguments, f"--checkpoint={checkpoint}"]) for checkpoint in (run / "checkpoint", REPO)]
    assert found[0] == found[1] and found[0]


def test_card_says_what_was_measured_on_what(package, run, smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = ModelCard.load(publish.main([str(run), "out"]) / "README.md")
    assert {package.name, "tier-smoke", "simulated-data"} <= set(card.data.tags)
    assert card.data.license == "apache-2.0" and card.data.datasets == ["simulated"]
    assert card.data.eval_results
    for result in card.data.eval_results:
        low, high = result.metric_args["confidence_interval_95"]
        assert result.dataset_type == "simulated" and result.metric_type in card.data.metrics
        assert ci_text((low, high)) in card.text and result.metric_args["n"] > 0
    for part in (
        "not for clinical use",
        "tier `smoke`",
        "numbers mean nothing",
        "## Limits",
        "simulated, in the layout",
    ):
        assert part in card.text
    scorecard = yaml.safe_load((smoke / "results" / package.name / "smoke" / "scorecard.json").read_text())
    for claim in (c for c in scorecard["claims"] if c.get("ours") and c["experiment"] == package.published):
        assert f"`{claim['id']}`" in card.text and ci_text(claim["ours"]["ci"], True) in card.text
    parse = importlib.import_module(f"{package.name}.config").parse
    for module in ("train", "evaluate"):
        options = re.search(rf"python -m {package.name}\.{module} (.*?)(?:  #|\n)", card.text)[1]
        monkeypatch.chdir(tmp_path / "out")
        assert parse(options.split()).experiment == package.published
        monkeypatch.chdir(tmp_path)


def test_card_shows_no_command_that_predict_refuses(package, run, cache, tmp_path, capsys):
    said = f"python -m {package.name}.predict"
    assert said in (publish.main([str(run), str(tmp_path / "served")]) / "README.md").read_text()
    if not package.unserved:
        pytest.skip(f"{package.name}: `predict` takes every run that is published")
    out = publish.main([str(run.parents[1] / package.unserved / "seed0"), str(tmp_path / "out")])
    assert said not in (out / "README.md").read_text()
    assert model_of(package, str(out)) is not None
    pattern, *options = package.predict
    with pytest.raises(SystemExit):
        predict = importlib.import_module(f"{package.name}.predict").main
        predict([str(sorted(cache.glob(pattern))[0]), *options, f"--checkpoint={out}"])
    assert f"{out}: " in capsys.readouterr().err, "the error names the run that it refuses"


def test_push_without_token_or_hub_says_what_to_do(run, hub, tmp_path, monkeypatch, capsys):
    push = [str(run), str(tmp_path / "out"), "--push", REPO]
    hub.shutdown(), hub.server_close()
    with pytest.raises(SystemExit):
        publish.main(push)
    assert "did not take it" in capsys.readouterr().err and (tmp_path / "out" / "README.md").is_file()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        publish.main(push)
    assert "set HF_TOKEN" in capsys.readouterr().err
