"""Every stage through the real entry point on simulated volumes: resume, ZeRO, two learning rates, frozen parts."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from packages import run as start
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from transformers import TrainerCallback

from argus import evaluate
from argus import train as entry
from argus.config import Config, parse
from argus.data import PretrainDataset, read_volumes
from argus.model import ModelConfig, make_encoder, shape_of
from argus.prep import prepare
from argus.pretrain import EncoderPretraining

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "argus" / "configs" / "smoke.yaml"
SMALL = (
    "--data.simulate.n_patients={ct-rate: 8, bimcv-r: 4}",
    "--data.sources=[ct-rate, bimcv-r]",
    "--data.rules={min_words: 1}",
    "--model.llm={hidden_size: 32, layers: 2, heads: 2, kv_heads: 1}",
    "--train.global_batch=2",
    "--train.micro_batch=2",
    "--train.steps=4",
    "--train.log_steps=1",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """CACHE_ROOT of the module: simulated and packed once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(folder))
        yield folder


def options(runs: Path, *more: str) -> list[str]:
    return ["--config", str(SMOKE), f"--runs={runs}", *SMALL, *more]


def run(runs: Path, *more: str) -> Path:
    return entry.main(options(runs, *more))


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in facts(folder)["loss_log"]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_the_stages_of_the_recipe_are_a_chain_of_runs(cache, tmp_path):
    encoder = run(tmp_path, "--experiment=encoder-clip", "--model.objective=clip")
    language = run(tmp_path, "--experiment=lm", "--model.objective=language", "--train.steps=8",
                   "--data.texts={ct-rate: 40, bimcv-r: 16}")  # fmt: skip
    starts = (f"--model.encoder={encoder / 'checkpoint'}", f"--model.backbone={language / 'checkpoint'}")
    frozen = ("--model.train_vit=false", "--model.train_llm=false", "--model.llm={}")
    align = run(tmp_path, "--experiment=align-argus", *starts, *frozen)
    argus = run(tmp_path, "--experiment=argus", f"--train.init={align / 'checkpoint'}", "--model.llm={}")

    of = {name: weights(folder) for name, folder in
          {"encoder": encoder, "lm": language, "align": align, "argus": argus}.items()}  # fmt: skip
    vit = {n.removeprefix("objective."): w for n, w in of["encoder"].items() if n.startswith("objective.encoder.")}
    assert vit and all(torch.equal(w, of["align"][n]) for n, w in vit.items()), "the ViT is frozen in stage 1"
    for name, weight in of["lm"].items():
        assert torch.equal(weight, of["align"][name]), "so is the LLM"
        wrapped = re.sub(r"(_proj)\.", r"\1.base_layer.", name)
        assert torch.equal(weight, of["argus"][wrapped]), "and in stage 2 but for its LoRA"
    moved = {n.split(".")[0] for n, w in of["align"].items() if n in of["argus"] and not torch.equal(w, of["argus"][n])}
    assert moved == {"encoder", "compressor"}
    assert all(w.abs().max() > 0 for n, w in of["argus"].items() if "lora_B" in n)

    last = facts(argus)
    assert last["steps"] == 4 and last["batch"] == "2 = 2 x 1 x 1" and last["n_visual"] == 8
    assert last["trainable"] < last["parameters"] and facts(align)["trainable"] < last["trainable"]
    assert losses(language)[-1] < losses(language)[0]
    assert not list(tmp_path.glob("**/*.bin")) and not list(tmp_path.glob("**/work-*"))
    before = (argus / "run.json").stat().st_mtime_ns
    run(tmp_path, "--experiment=argus", f"--train.init={align / 'checkpoint'}", "--model.llm={}")
    assert (argus / "run.json").stat().st_mtime_ns == before, "a finished run is not run again"


@pytest.mark.parametrize("objective", ["mae", "supervised"])
def test_other_objectives_train(objective, cache, tmp_path):
    folder = run(tmp_path, f"--model.objective={objective}", "--train.steps=2")
    assert len(losses(folder)) == 2 and {"config.json", "model.safetensors"} == {
        f.name for f in (folder / "checkpoint").iterdir()
    }


def test_a_supervised_vit_is_scored_by_its_labels(cache, tmp_path):
    more = ("--model.objective=supervised", "--train.steps=2", "--data.simulate.n_patients={ct-rate: 40, bimcv-r: 4}")
    folder = run(tmp_path, *more)
    evaluate.main(options(tmp_path, *more))
    found = json.loads((folder / "metrics.json").read_text())["label_auroc"]
    cfg = parse(options(tmp_path, *more))
    test = PretrainDataset(prepare(cfg), "test")
    model = EncoderPretraining.from_pretrained(folder / "checkpoint").eval()
    with torch.inference_mode():
        scores = model(volume=read_volumes(test.prepared, test.records.row.to_numpy())).logits
    both = [k for k in range(18) if len(set(test.labels[:, k])) == 2]
    assert len(both) > 2
    by_library = np.mean([roc_auc_score(test.labels[:, k], scores[:, k]) for k in both])
    assert found["test"] == pytest.approx(by_library, abs=1e-4) and 0 <= found["train"] <= 1
    (folder / "run.json").write_text(json.dumps(facts(folder) | {"data_hash": "x"}))
    with pytest.raises(ValueError, match="other records, labels or texts; train again"):
        evaluate.main(options(tmp_path, *more))


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise Killed


@pytest.mark.parametrize("extra", [("--model.lora_dropout=0.1",), ("--model.objective=mae",)])
def test_a_killed_run_resumes_to_the_same_weights(extra, cache, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", *extra)
    make = entry.ArgusTrainer.__init__
    monkeypatch.setattr(
        entry.ArgusTrainer,
        "__init__",
        lambda self, *a, **k: (make(self, *a, **k), self.add_callback(Kill()))[0],
    )
    with pytest.raises(Killed):
        run(tmp_path / "killed", *extra, "--train.save_steps=2")
    monkeypatch.undo()
    assert not list(tmp_path.glob("killed/**/run.json"))
    again = run(tmp_path / "killed", *extra, "--train.save_steps=2")
    assert losses(again) == losses(whole)
    assert all(torch.equal(w, weights(again)[n]) for n, w in weights(whole).items())


def test_two_learning_rates_and_accumulation(cache, tmp_path):
    cfg = parse(options(tmp_path, "--train.encoder_lr=1e-6", "--train.global_batch=4", "--train.adam_beta2=0.95"))
    model, _, train_set, collator = entry.build(cfg, prepare(cfg))
    args = entry.arguments(cfg, "")
    trainer = entry.ArgusTrainer(
        model=model, args=args, train_dataset=train_set, data_collator=collator, encoder_lr=cfg.train.encoder_lr
    )
    groups = trainer.create_optimizer().param_groups
    assert [g["lr"] for g in groups] == [1e-3, 1e-6] and groups[0]["betas"] == (0.9, 0.95)
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.encoder.parameters()}
    listed = sorted(id(p) for g in groups for p in g["params"])
    assert listed == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert args.gradient_accumulation_steps == 2
    cfg.train.global_batch = 5
    with pytest.raises(ValueError, match=r"train\.global_batch 5"):
        entry.arguments(cfg, "")


def test_a_loss_that_is_not_finite_stops_the_run(cache, tmp_path):
    blow_up = ("--train.lr=1e30", "--train.warmup_ratio=0")
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf)"):
        run(tmp_path, *blow_up)
    assert not list(tmp_path.glob("**/run.json"))


def test_two_processes_under_zero3_train_as_one_does(cache, tmp_path):
    """Frozen weights whole in the checkpoint, activations recomputed; the other stages: tests/conformance."""
    options_of_both = ("--train.global_batch=4", "--train.micro_batch=2", "--train.steps=2", "--model.train_vit=false")
    one = run(tmp_path / "one", *options_of_both)
    zero3 = f"--train.deepspeed={ROOT / 'shared' / 'runs' / 'zero3.json'}"
    more = options(tmp_path / "two", *options_of_both, "--model.gradient_checkpointing=true", zero3)
    start("argus.train", *more, processes=2, cache=cache)
    two = next((tmp_path / "two").glob("**/run.json")).parent
    assert facts(two)["batch"] == "4 = 2 x 1 x 2"
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=2e-3, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_a_vit_learns_anew_what_is_usual_at_another_resolution(tmp_path, monkeypatch):
    sizes = {"patch": [4, 4, 4], "width": 16, "depth": 1, "heads": 2, "mlp": 16, "standardise": True}
    EncoderPretraining.build(ModelConfig("supervised", **sizes), [8, 8, 8], labels=np.eye(18)).save_pretrained(tmp_path)
    assert shape_of(tmp_path) == (8, 8, 8)
    drawn = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        entry, "read_volumes", lambda prepared, rows, _: torch.rand(len(rows), 1, *prepared, generator=drawn)
    )
    for made, shape, learns in ((None, (8, 8, 8), True), (tmp_path, (8, 8, 8), False), (tmp_path, (8, 12, 12), True)):
        cfg = Config(model=ModelConfig(encoder=made and str(made), **sizes))
        encoder, records = make_encoder(cfg.model, shape), pd.DataFrame({"row": range(100)})
        entry.fit_input(cfg, encoder, SimpleNamespace(records=records), shape)
        assert bool(encoder.input_mean.any()) == learns
        assert not learns or 0.45 < encoder.input_mean.mean() < 0.55
