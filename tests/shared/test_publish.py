"""Publishing a run written by hand: what is refused, and what the card says of other data, tiers and base models."""

import json
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard

from shared.runs import publish
from shared.runs.card import ROOT
from shared.runs.checkpoint import fetched, run_file, trained

CONFIG = {
    "tier": "laptop",
    "experiment": "meit",
    "seed": 0,
    "data": {"dataset": "ptb-xl", "fs_hz": 500},
    "model": {"backbone": "scratch:llama", "fusion": "meit"},
    "eval": {"inputs": ["ecg", "zero"]},
}
FACTS = {
    "commit": "abc",
    "config_hash": "c",
    "data_hash": "d",
    "source": "simulated",
    "parameters": 10,
    "steps": 3,
    "n_train": 1200,
}
FOUND = {"value": 0.25, "ci": [0.125, None], "n": 40, "version": 1}


def finished_run(root, config=None, facts=None, metrics=True, kind="MeitModel"):
    """runs/meit/laptop/meit/seed0 below root, with weights that are none."""
    config = CONFIG | {"runs": str(root / "runs"), "results": str(root / "results")} | (config or {})
    folder = root / "runs" / "meit" / config["tier"] / config["experiment"] / "seed0"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(FACTS | (facts or {})))
    (folder / "checkpoint" / "config.json").write_text(json.dumps({"architectures": [kind], "from": config["runs"]}))
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    if metrics:
        found = {"ecg": {"bleu_4": FOUND, "other": FOUND}, "zero": {"bleu_4": FOUND | {"value": None}}}
        evaluation = {"source": "simulated", "data_hash": "e", "metrics": found}
        (folder / "metrics.json").write_text(json.dumps(evaluation | ({"source": facts["source"]} if facts else {})))
    return folder


def published(folder, out) -> ModelCard:
    return ModelCard.load(publish.main([str(folder), str(out)]) / "README.md")


def test_folder_is_written_again_and_names_no_place_of_the_machine(tmp_path):
    folder = finished_run(tmp_path / "home")
    for _ in range(2):
        card = published(folder, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "config.yaml", "model.safetensors", "run.json",
    ]  # fmt: skip
    assert not [p for p in (tmp_path / "out").iterdir() if str(tmp_path).encode() in p.read_bytes()]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["from"] == "runs"
    assert run_file(tmp_path / "out", "run.json").parent == tmp_path / "out"
    assert run_file(folder / "checkpoint", "run.json").parent == folder
    assert "| `ecg` | `bleu_4` | 0.250 [0.125, –] | 40 |" in card.text and "`other`" not in card.text
    assert "1,200 records simulated" in card.text and [r.metric_value for r in card.data.eval_results] == [0.25]


def test_real_data_and_a_base_model_bring_their_terms(tmp_path):
    config = {"model": {"backbone": "huggyllama/llama-7b", "fusion": "meit"}, "tier": "paper"}
    card = published(finished_run(tmp_path, config, {"source": "ptb-xl"}), tmp_path / "out")
    assert card.data.license == "other" and card.data.base_model == ["huggyllama/llama-7b"]
    assert card.data.datasets == ["ptb-xl"] and "simulated-data" not in card.data.tags
    assert "ptb-xl: CC BY 4.0" in card.text and "huggyllama/llama-7b: its licence" in card.text
    assert "simulated" not in card.text.lower()


def test_commands_of_the_readme(tmp_path, monkeypatch):
    finished_run(tmp_path, {"runs": "runs", "results": "results"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    pushed = []
    monkeypatch.setattr(publish, "push", lambda folder, repo: pushed.append((str(folder), repo)))
    commands = re.findall(r"python -m shared.runs.publish (.*?)  #", (ROOT / "README.md").read_text())
    assert len(commands) == 2
    for command in commands:
        publish.main(shlex.split(command))
        assert (tmp_path / "published" / "meit" / "README.md").is_file()
    assert pushed == [("published/meit", "OWNER/NAME")]


def test_a_run_that_was_not_evaluated_has_no_numbers(tmp_path):
    card = published(finished_run(tmp_path, metrics=False), tmp_path / "out")
    assert card.data.eval_results is None and "not evaluated on its own" in card.text


def test_a_run_that_predict_refuses_shows_no_command_of_it(tmp_path):
    config = {"model": {"backbone": "scratch:llama", "fusion": "none"}}
    refused = published(finished_run(tmp_path / "no-ecg", config), tmp_path / "out").text
    assert "meit.predict" not in refused and "MeitModel.from_pretrained" in refused
    assert "python -m meit.predict" in published(finished_run(tmp_path / "ecg"), tmp_path / "other").text


def test_a_scorecard_of_other_settings_is_not_shown(tmp_path):
    folder = finished_run(tmp_path)
    results = tmp_path / "results" / "meit" / "laptop"
    results.mkdir(parents=True)
    (results / "scorecard.json").write_text("{}")
    known = {"meit/seed0": {"config_hash": "another", "data_hash": "e"}}
    (results / "runs.json").write_text(json.dumps({"runs": known}))
    assert "other settings or data than this run" in published(folder, tmp_path / "out").text


def broken(folder, what: str) -> None:
    if what == "no run.json":
        (folder / "run.json").unlink()
    elif what == "pickle":
        (folder / "checkpoint" / "training_args.bin").write_bytes(b"")
    elif what == "other paper":
        folder.parents[2].rename(folder.parents[3] / "somebody")


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("no run.json", (), "run.json is missing: give the folder of a finished training run"),
        ("pickle", (), "training_args.bin: only .safetensors"),
        ("other paper", (), "'somebody' is no paper of this repository"),
        ("encoder", (), "a EncoderForWords, trained on the way to others; publish one of MeitModel"),
        ("full out", (), "holds thesis.tex, which this run does not"),
        ("", ("--push", "name-without-owner"), "give OWNER/NAME"),
    ],
)
def test_what_cannot_be_published_is_refused(what, options, said, tmp_path, capsys):
    folder, out = finished_run(tmp_path, kind="EncoderForWords" if what == "encoder" else "MeitModel"), tmp_path / "out"
    broken(folder, what)
    out.mkdir()
    if what == "full out":
        (out / "thesis.tex").write_text("")
    place = next((tmp_path / "runs").glob("*/laptop/meit/seed0"))
    with pytest.raises(SystemExit):
        publish.main([str(place), str(out), *options])
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="nobody/nothing: no trained run here, and none on the hub"):
        fetched("nobody/nothing")
    with pytest.raises(Exception, match="no trained run; train one with `make reproduce-meit`"):
        trained("meit")(str(tmp_path / "none" / "checkpoint"))
