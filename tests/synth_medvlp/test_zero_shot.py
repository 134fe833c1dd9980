"""Zero-shot scores, controls and protocols on small hospitals, and the whole evaluation through its entry point."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import vlp_models
from hospitals import release, task
from PIL import Image
from sklearn.metrics import roc_auc_score

from shared.metrics.scorecard import dumps
from shared.runs.tasks import labels_table
from synth_medvlp import evaluate, predict
from synth_medvlp.config import Config
from synth_medvlp.datasets.images import read_pixels
from synth_medvlp.downstream import HEADLINE
from synth_medvlp.evaluate import Evaluation, class_kinds, prevalence, summary_of
from synth_medvlp.inputs import CONTROLS, Input, expand
from synth_medvlp.model import SCORERS
from synth_medvlp.prompts import class_texts, other_names
from synth_medvlp.train import main as train
from synth_medvlp.trees import CxrSimulateConfig, tree


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Two hospitals, three tasks, a small model that is not trained."""
    five = ("Cardiomegaly", "Edema", "Consolidation")
    chexpert = release(72, dataset="chexpert", name="chexpert-5", classes=five, seed=1)
    chexpert.tasks["more"] = task(chexpert, "more", ("Mass",), chexpert.tasks["chexpert-5"].labels[:, [1]])
    downstream = {"chexpert": chexpert, "rsna-pneumonia": release(40, seed=2)}
    cfg = Config()
    cfg.train.bf16, cfg.eval.batch, cfg.eval.n_boot = False, 7, 20
    prior = {name: prevalence(r) for name, r in downstream.items()}
    other = other_names([c for r in downstream.values() for c in r.class_names()])
    folder = tmp_path_factory.mktemp("parts")
    return Evaluation(cfg, vlp_models.small().eval(), downstream, {}, prior, other, folder)


def predictions(evaluation, name: str, dataset: str = "chexpert") -> pd.DataFrame:
    (spec,) = expand([name], SCORERS)
    return next(t for t in evaluation.tables(spec) if t.dataset.iloc[0] == dataset)


def values(table: pd.DataFrame) -> np.ndarray:
    return np.stack(table.prediction).astype(float)


def test_scores_are_the_models_for_each_class_slot(evaluation):
    table, hospital = predictions(evaluation, "image"), evaluation.downstream["chexpert"]
    texts = class_texts(["Cardiomegaly", "Edema", "Consolidation", "Mass"])
    rows = hospital.tasks["chexpert-5"].part_rows("test")
    pixels = evaluation.model.pixels(torch.from_numpy(hospital.images[rows]))
    with torch.no_grad():
        expected = evaluation.model.scores(pixels, texts).numpy()
    np.testing.assert_allclose(values(table), expected, atol=1e-3)  # float16
    assert table.id.tolist() == [f"chexpert-5{i:03d}" for i in rows] and set(table.split) == {"test"}
    assert set(predictions(evaluation, "image~val").split) == {"val"}


def test_controls_take_the_input_away(evaluation):
    plain = values(predictions(evaluation, "image"))
    assert np.ptp(values(predictions(evaluation, "image~zeroed")), axis=0).max() < 2e-3
    shuffled = values(predictions(evaluation, "image~shuffled"))
    assert (shuffled != plain).any(1).all() and sorted(map(tuple, shuffled)) == sorted(map(tuple, plain))
    asked = [evaluation.other[c] for c in evaluation.downstream["chexpert"].class_names()]
    prompts = values(predictions(evaluation, "image~prompts"))
    for i, name in enumerate(asked):  # the scores are those of the class in whose name it is asked
        names = evaluation.downstream["chexpert"].class_names()
        if name in names:
            np.testing.assert_allclose(prompts[:, i], plain[:, names.index(name)], atol=2e-3)
        assert np.abs(prompts[:, i] - plain[:, i]).max() > 1e-3
    prior = values(predictions(evaluation, "image~prior"))
    train_rows = evaluation.downstream["chexpert"].tasks["chexpert-5"].part_rows("train")
    share = evaluation.downstream["chexpert"].tasks["chexpert-5"].labels[train_rows].mean(0)
    np.testing.assert_allclose(prior[0, :3], share, atol=1e-3)
    assert np.ptp(prior, axis=0).max() == 0


def test_prompt_sets_and_scorers_change_the_scores(evaluation):
    names = ["image", "image+name", "image+description", "image+findings", "image+pair"]
    found = [values(predictions(evaluation, name)) for name in names]
    for i in range(len(found)):
        for j in range(i):
            assert np.abs(found[i] - found[j]).max() > 1e-3
    assert np.array_equal(found[0], values(predictions(evaluation, "image+there_is")))
    with pytest.raises(ValueError, match=r"eval\.scorer \(convirt\)"):
        predictions(evaluation, "image+gloria")


def test_the_summary_is_the_mean_over_headline_tasks(evaluation):
    specs = expand(["image", "image~val", "image~prior"], SCORERS)
    table = pd.concat([t for s in specs for t in evaluation.tables(s)], ignore_index=True)
    labels, kinds = labels_table(evaluation.downstream), class_kinds(evaluation.downstream)
    assert kinds["chexpert-5"] == [HEADLINE] * 3 and kinds["more"] == ["extra"]
    found = summary_of(table, labels, kinds, 20)
    by_task = {}
    for dataset, slots in (("chexpert", {"chexpert-5": slice(0, 3), "more": slice(3, 4)}),
                           ("rsna-pneumonia", {"rsna": slice(0, 1)})):  # fmt: skip
        s = values(predictions(evaluation, "image", dataset))
        for name, slot in slots.items():
            of_task = evaluation.downstream[dataset].tasks[name]
            y = of_task.labels[of_task.part_rows("test")]
            by_task[name] = np.mean([roc_auc_score(y[:, c], s[:, slot][:, c]) for c in range(y.shape[1])])
    image = found["image"]
    assert image["auroc_headline"]["value"] == pytest.approx((by_task["chexpert-5"] + by_task["rsna"]) / 2)
    assert image["auroc_extra"]["value"] == pytest.approx(by_task["more"])
    assert all(image[f"auroc:{name}"]["value"] == pytest.approx(v) for name, v in by_task.items())
    low, high = image["auroc_headline"]["ci"]
    assert low <= image["auroc_headline"]["value"] <= high
    assert found["image~prior"]["auroc_headline"]["value"] == 0.5


def test_unknown_inputs_are_refused_by_name():
    names = [f"{k}:image" if k else "image" for k in CONTROLS]
    assert [s.kind for s in expand(names, SCORERS)] == list(CONTROLS)
    assert expand(["image+pair~val"], SCORERS)[0] == Input("image+pair~val", "val", "", "pair")
    for wrong in ("ecg", "image~flipped", "segment:image~zeroed", "image+long", "probe:image", "linear:image+name"):
        with pytest.raises(ValueError, match=r"eval\.inputs") as error:
            expand([wrong], SCORERS)
        assert repr(wrong) in str(error.value)
    with pytest.raises(ValueError, match="scores the test part too"):
        expand(["linear:image", "linear:image~val"], SCORERS)


# --- through the entry points ---

OPTIONS = [
    "--tier=test", "--data.simulate.n_patients=24", "--data.simulate.size_px=32", "--data.simulate.level=none",
    "--data.size_px=32", "--data.geometry=squash", "--model.image.name=null", "--model.text.name=null",
    "--model.image.stem=4", "--model.image.stages=[4,8]", "--model.image.depths=[1,1]", "--model.image.layer=basic",
    "--model.text.width=16", "--model.text.depth=1", "--model.text.heads=2", "--model.text.mlp=16",
    "--model.text.vocabulary=300", "--model.text.frozen_layers=0", "--model.projection=8", "--train.steps=3",
    "--train.global_batch=8", "--train.micro_batch=8", "--train.bf16=false", "--eval.n_boot=10",
    '--eval.tasks=["rsna","siim"]', "--eval.simulate.n_patients=24", "--eval.simulate.size_px=32",
    '--eval.grounding.tasks=["siim"]', '--eval.segment.tasks=["siim"]', "--eval.segment.epochs=1",
    "--eval.segment.width=4", '--eval.finetune.tasks=["siim"]', "--eval.finetune.epochs=1",
    "--eval.finetune.ratios=[0.2,1.0]", "--eval.finetune.draws=2",
]  # fmt: skip
INPUTS = ["image", "image~val", "linear:image~val", "finetune:image~val", "grounding:image", "segment:image"]


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield [*OPTIONS, f"--runs={tmp_path_factory.mktemp('runs')}", f"--eval.inputs={json.dumps(INPUTS)}"]


@pytest.fixture(scope="module")
def scored(args):
    train(args)
    return evaluate.main(args)


def test_one_call_writes_predictions_masks_labels_and_metrics(args, scored):
    table, masks = (pd.read_parquet(scored / f"{n}.parquet") for n in ("predictions", "masks"))
    labels, metrics = pd.read_parquet(scored / "labels.parquet"), json.loads((scored / "metrics.json").read_text())
    ratios, kinds = ("0.2 #0", "0.2 #1", "1 #0"), ("linear", "finetune")
    few = [f"{k}:image{v} {r}" for k in kinds for v in ("", "~val") for r in ratios]
    assert set(table.input) == {"image", "image~val", *few}
    assert set(masks.input) == {"grounding:image", "segment:image 1 #0"}
    assert set(metrics["metrics"]) == set(table.input) | set(masks.input)
    assert metrics["source"] == "simulated" and metrics["masks_hash"] != metrics["data_hash"]
    again = summary_of(table, labels, metrics["kinds"], 10)
    assert json.loads(dumps(again["image"])) == metrics["metrics"]["image"]  # rescored from the files alone
    prompts = json.loads((scored / "prompts.json").read_text())
    assert prompts["Pneumonia"]["there_is"] == ["there is pneumonia"] and len(prompts["Pneumonia"]) == 6
    assert metrics["left_out"]["siim-acr"]["images"]["unreadable"] == 0 and metrics["absent"] == {}


def test_a_finished_evaluation_is_not_run_again_and_a_killed_one_goes_on(args, scored, monkeypatch):
    written = (scored / "metrics.json").read_text()
    monkeypatch.setattr(evaluate, "predict_all", lambda *_: pytest.fail("run again"))
    evaluate.main(args)
    monkeypatch.undo()
    (scored / "metrics.json").unlink()  # killed before the end, with one input missing
    parts = next(scored.glob("parts-*"))
    kept = {f: f.stat().st_mtime_ns for f in sorted(parts.glob("*.parquet"))}
    missing = next(iter(kept))
    missing.unlink()
    monkeypatch.setattr(evaluate.finetune, "fine_tuned", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr(evaluate.segment, "segmented", lambda *_: pytest.fail("trained again"))
    evaluate.main(args)
    assert {f.stat().st_mtime_ns for f in kept if f != missing} == {t for f, t in kept.items() if f != missing}
    new, old = json.loads((scored / "metrics.json").read_text()), json.loads(written)
    assert new["metrics"] == old["metrics"]


def test_weights_of_another_config_are_refused(args, scored):
    with pytest.raises(ValueError, match="another config"):
        evaluate.main([*args, "--train.lr=0.5"])
    with pytest.raises(FileNotFoundError, match="train it first"):
        evaluate.main([*args, "--seed=7"])


def test_predict_scores_and_draws_png_and_dicom(args, scored, tmp_path, capsys, monkeypatch):
    root, _ = tree("rsna-pneumonia", CxrSimulateConfig(24, 0, 32))
    dicom = str(sorted(root.rglob("*.dcm"))[0])
    out = tmp_path / "heat.png"
    options = [dicom, "left pleural effusion", f"--checkpoint={scored / 'checkpoint'}", f"--out={out}"]
    found = predict.main(options)
    printed = capsys.readouterr().out
    assert f"{found['score']:.3f}" in printed and out.stat().st_size > 5_000 and 0 <= found["higher_than"] <= 1
    png = sorted((tree("siim-acr", CxrSimulateConfig(24, 0, 32))[0]).rglob("*.dcm"))[0]
    picture = tmp_path / "film.png"
    Image.fromarray(read_pixels(png)[0]).save(picture)
    alone = predict.main([str(picture), "edema", "--compare=0", *options[2:]])
    assert alone["higher_than"] is None and alone["score"] != found["score"]
    with monkeypatch.context() as elsewhere:  # no training images there: none are simulated for one score
        elsewhere.setenv("CACHE_ROOT", str(tmp_path / "empty"))
        assert predict.main(options) == {"score": found["score"], "higher_than": None}
        assert not (tmp_path / "empty").exists()
    for wrong, said in (
        ([str(tmp_path / "none.png"), "edema", options[2]], "missing file"),
        ([dicom, " , ", options[2]], "no word"),
        ([dicom, "edema", "--checkpoint=nowhere/checkpoint"], "no trained run"),
    ):
        with pytest.raises(SystemExit):
            predict.main(wrong)
        assert said in capsys.readouterr().err
