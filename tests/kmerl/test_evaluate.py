"""Train and evaluate in this process: every kind of input, controls, what is refused, and one ECG with two leads."""

import json

import numpy as np
import pandas as pd
import pytest

from kmerl import evaluate, predict, train
from kmerl.config import parse
from shared.ecg.record import LEADS
from shared.metrics.six_tasks import items_of
from shared.runs.tasks import cycle

TASKS = '["ptb-xl-superclass", "ptb-xl-rhythm", "cpsc2018"]'
INPUTS = ["12 leads", "I", "12 leads~zeroed", "12 leads~shuffled", "12 leads~permuted", "12 leads~val"]


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    """Options of a run in folders of its own; CACHE_ROOT is set for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        runs = tmp_path_factory.mktemp("runs")
        yield ["--config=kmerl/configs/smoke.yaml", f"--runs={runs}", f"--eval.tasks={TASKS}", "--eval.n_boot=20"]


@pytest.fixture(scope="module")
def trained(args):
    return train.main(args)


def run(args, *options, inputs):
    folder = evaluate.main([*args, *options, f"--eval.inputs={json.dumps(inputs)}"])
    table = pd.read_parquet(folder / "predictions.parquet")
    return table, json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "labels.parquet")


def scores_of(table, name):
    rows = table[(table.input == name) & (table.dataset == "ptb-xl")].sort_values("id")
    return rows.id.tolist(), np.stack(rows.prediction).astype(float)


def test_zero_shot_inputs_and_controls(args, trained):
    table, metrics, labels = run(args, inputs=INPUTS)
    assert set(metrics["metrics"]) == set(INPUTS)
    ids, true = scores_of(table, "12 leads")
    _, shuffled = scores_of(table, "12 leads~shuffled")
    assert true.shape[1] == 5 + 12 and len(ids) == len(set(ids))
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, true)) and (shuffled != true).any(1).all()
    assert np.ptp(scores_of(table, "12 leads~zeroed")[1], axis=0).max() < 1e-2
    assert (scores_of(table, "12 leads~permuted")[1] != true).any()
    part = labels[(labels.task == "ptb-xl-superclass")].set_index("id").part
    assert set(part[part.index.isin(scores_of(table, "12 leads~val")[0])]) == {"val"}
    _, _, parts = items_of(table[table.input == "12 leads"], labels)
    assert [p[1].shape[1] for p in parts.values()] == [5, 12, 9]


def test_probes_score_the_test_part_and_out_of_fold_all_records(args, trained):
    one = '--eval.tasks=["ptb-xl-superclass"]'
    table, metrics, labels = run(args, one, inputs=["probe:I", "oof:12 leads"])
    labels = labels.set_index("id").part
    assert set(metrics["metrics"]) == {"probe:I 0.5 #0", "probe:I 1 #0", "oof:12 leads"}
    assert set(scores_of(table, "probe:I 1 #0")[0]) == set(labels[labels == "test"].index)
    ids, scores = scores_of(table, "oof:12 leads")
    assert set(ids) == set(labels.index) and np.isfinite(scores).any(0).sum() >= 3
    few, all_ = (scores_of(table, f"probe:I {ratio} #0")[1] for ratio in ("0.5", "1"))
    assert not np.array_equal(few, all_, equal_nan=True)


def test_twelve_lead_models_ask_for_a_fill(args):
    merl = ("--model.method=merl", "--experiment=merl")
    train.main([*args, *merl])
    with pytest.raises(ValueError, match="needs a fill"):
        run(args, *merl, inputs=["I"])
    table, _, _ = run(args, *merl, inputs=["I/zero", "I/einthoven+zero"])
    np.testing.assert_array_equal(scores_of(table, "I/zero")[1], scores_of(table, "I/einthoven+zero")[1])


def test_weights_of_another_config_are_refused(args, trained):
    with pytest.raises(ValueError, match="another config"):
        run(args, "--train.lr=0.5", inputs=["12 leads"])


def test_supervised_from_scratch(args):
    options = ("--model.method=supervised", "--experiment=sup", '--eval.tasks=["ptb-xl-superclass"]')
    folder = train.main([*args, *options])
    assert json.loads((folder / "run.json").read_text())["n_train"] > 50
    table, metrics, _ = run(args, *options, inputs=["12 leads", "I"])
    assert scores_of(table, "I")[1].shape[1] == 5 and metrics["metrics"]["I"]["auroc"]["n"] > 0
    with pytest.raises(ValueError, match="one task"):
        train.main([*args, *options, f"--eval.tasks={TASKS}", "--seed=1"])


def test_a_file_with_two_leads_is_enough(args, trained, tmp_path):
    t = np.arange(1000) / 100
    table = pd.DataFrame({"I": np.sin(7 * t), "II": np.cos(7 * t)})
    table.to_csv(tmp_path / "ecg.csv", index=False)
    options = ["--checkpoint", str(trained / "checkpoint"), "--fs-hz", "100", "--out", str(tmp_path / "p.png")]
    classes = ["--classes", "atrial fibrillation,left bundle branch block"]
    found = predict.main([str(tmp_path / "ecg.csv"), "--leads", "I,II", *classes, *options])
    assert list(found) == ["atrial fibrillation", "left bundle branch block"] and all(0 < s < 1 for s in found.values())
    assert (tmp_path / "p.png").stat().st_size > 10_000
    for leads in ("I,V1", "I,Q"):  # not in the file; no such lead
        with pytest.raises(SystemExit):
            predict.main([str(tmp_path / "ecg.csv"), "--leads", leads, *classes, *options])


def test_nobody_keeps_its_place():
    for seed in range(20):
        assert (cycle(len(LEADS), seed) != np.arange(len(LEADS))).all()


def test_config_names_what_is_unknown(capsys):
    with pytest.raises(SystemExit):
        parse(["--eval.task=[]"])
    assert "task" in capsys.readouterr().err
