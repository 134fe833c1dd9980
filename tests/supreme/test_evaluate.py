"""Train and evaluate in this process: every kind of input, controls, probes, what is refused, and one ECG."""

import json

import numpy as np
import pandas as pd
import pytest

from shared.metrics.six_tasks import items_of
from supreme import evaluate, predict, train
from supreme.config import parse
from supreme.data import Collator
from supreme.prep import prepare
from supreme.queries import class_texts

TASKS = '["ptb-xl-superclass", "ptb-xl-rhythm", "cpsc2018"]'
CONTROLS = ["zeroed", "shuffled", "permuted", "texts", "prior", "val"]


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    """Options of a run in folders of its own; CACHE_ROOT is set for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        runs = tmp_path_factory.mktemp("runs")
        yield ["--config=supreme/configs/smoke.yaml", f"--runs={runs}", f"--eval.tasks={TASKS}", "--eval.n_boot=20"]


@pytest.fixture(scope="module")
def trained(args):
    return train.main(args)


def run(args, *options, inputs):
    folder = evaluate.main([*args, *options, f"--eval.inputs={json.dumps(inputs)}"])
    table = pd.read_parquet(folder / "predictions.parquet")
    return table, json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "labels.parquet")


def scores_of(table, name, dataset="ptb-xl"):
    rows = table[(table.input == name) & (table.dataset == dataset)].sort_values("id")
    return rows.id.tolist(), np.stack(rows.prediction).astype(float)


def test_zero_shot_inputs_and_controls(args, trained):
    names = ["ecg", *(f"ecg~{c}" for c in CONTROLS)]
    table, metrics, labels = run(args, inputs=names)
    assert set(metrics["metrics"]) == set(names)
    ids, true = scores_of(table, "ecg")
    assert true.shape[1] == 5 + 12 and len(ids) == len(set(ids))
    _, shuffled = scores_of(table, "ecg~shuffled")
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, true)) and (shuffled != true).any(1).all()
    assert np.ptp(scores_of(table, "ecg~zeroed")[1], axis=0).max() < 1e-2
    assert (scores_of(table, "ecg~permuted")[1] != true).any()
    _, texts = scores_of(table, "ecg~texts")
    assert not np.array_equal(texts, true)
    for mixed, row in zip(texts, true, strict=True):
        np.testing.assert_allclose(np.sort(mixed), np.sort(row), atol=2e-3)  # the same queries in other places
    assert metrics["metrics"]["ecg~prior"]["auroc"]["value"] == 0.5
    part = labels[labels.task == "ptb-xl-superclass"].set_index("id").part
    assert set(part[part.index.isin(scores_of(table, "ecg~val")[0])]) == {"val"}
    _, _, parts = items_of(table[table.input == "ecg"], labels)
    assert [p[1].shape[1] for p in parts.values()] == [5, 12, 9]
    kinds = metrics["kinds"]
    assert set(kinds) == {"ptb-xl-superclass", "ptb-xl-rhythm", "cpsc2018"}
    assert {k for classes in kinds.values() for k in classes} <= {"seen", "related", "unseen"}


def test_probes_score_test_and_validation_and_out_of_fold_all_records(args, trained):
    one = '--eval.tasks=["ptb-xl-superclass"]'
    table, metrics, labels = run(args, one, inputs=["probe:ecg~val", "oof:ecg"])
    parts = labels.set_index("id").part
    assert set(metrics["metrics"]) == {f"probe:ecg{v} {r} #0" for v in ("", "~val") for r in ("0.1", "1")} | {"oof:ecg"}
    for name, part in (("probe:ecg 1 #0", "test"), ("probe:ecg~val 1 #0", "val")):
        assert set(scores_of(table, name)[0]) == set(parts[parts == part].index)
        assert set(table[table.input == name].split) == {part}
    assert set(scores_of(table, "oof:ecg")[0]) == set(parts.index)


def test_supervised_answers_from_its_own_head(args):
    options = ("--model.method=supervised", "--experiment=sup")
    folder = train.main([*args, *options])
    facts = json.loads((folder / "run.json").read_text())
    assert facts["n_train"] > 100, "the training parts of two releases"
    table, _, _ = run(args, *options, inputs=["ecg"])
    assert scores_of(table, "ecg")[1].shape[1] == 17 and scores_of(table, "ecg", "cpsc2018")[1].shape[1] == 9
    data = prepare(parse([*args, *options]))
    assert len(data.stores) == 2 and data.mask.any(1).all()
    batch = Collator(data, 1000)([0, len(data.rows) - 1])  # one record of each release
    assert batch["ecg"].shape == (2, 12, 1000) and batch["ecg"].abs().sum((1, 2)).min() > 0
    assert not batch["mask"][0, 17:].any() and not batch["mask"][1, :17].any()
    with pytest.raises(ValueError, match=r"data\.share 0\.0001: no record .* raise it"):
        prepare(parse([*args, *options, "--data.share=0.0001"]))


def test_fewer_patients_and_other_labels(args):
    whole, part = (prepare(parse([*args, f"--data.share={s}"])) for s in (1.0, 0.5))
    assert 0 < len(part.rows) < len(whole.rows) and set(part.rows) < set(whole.rows)
    assert whole.data_hash != part.data_hash
    permuted = prepare(parse([*args, "--data.permute_labels=true"]))
    assert sorted(map(tuple, permuted.y)) == sorted(map(tuple, whole.y)) and not np.array_equal(permuted.y, whole.y)
    truth = prepare(parse([*args, "--data.labels=truth"]))
    assert truth.mask.all() and {t.id for t in truth.terms} & {t.id for t in whole.terms}
    held = prepare(parse([*args, '--extract.hold_out=["sinus_rhythm"]']))
    assert "sinus_rhythm" in {t.id for t in whole.terms} - {t.id for t in held.terms}


def test_weights_of_another_config_are_refused(args, trained):
    with pytest.raises(ValueError, match="another config"):
        run(args, "--train.lr=0.5", inputs=["ecg"])
    with pytest.raises(ValueError, match=r"eval\.inputs: 'ecg~upside-down'"):
        run(args, inputs=["ecg~upside-down"])


def test_class_texts(args):
    tasks = next(iter(evaluate.prepare_tasks(parse([*args, '--eval.tasks=["ptb-xl-superclass"]'])).values())).tasks
    task = tasks["ptb-xl-superclass"]
    texts = {kind: class_texts("ptb-xl-superclass", task, kind) for kind in ("short", "figure", "code", "long")}
    assert texts["short"][1] == "normal ECG" and texts["figure"][1] == "normal" and texts["code"][1] == "NORM"
    assert min(map(len, texts["long"])) > max(map(len, texts["short"]))
    with pytest.raises(ValueError, match=r"eval\.texts='brief'"):
        class_texts("ptb-xl-superclass", task, "brief")


def test_one_ecg(args, trained, tmp_path, capsys):
    t = np.arange(1000) / 100
    names = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
    pd.DataFrame({n: np.sin((7 + i) * t) for i, n in enumerate(names)}).to_csv(tmp_path / "ecg.csv", index=False)
    options = ["--checkpoint", str(trained / "checkpoint"), "--fs-hz", "100", "--out", str(tmp_path / "p.png")]
    found = predict.main([str(tmp_path / "ecg.csv"), "--vocabulary", "csn", "--top", "3", *options])
    assert len(found) > 30 and all(0 < s < 1 for s in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert capsys.readouterr().out.count("\n") == 4 and (tmp_path / "p.png").stat().st_size > 10_000
    alone = predict.main([str(tmp_path / "ecg.csv"), "--vocabulary", "atrial flutter", *options])
    assert alone["atrial flutter"] == pytest.approx(found["atrial flutter"], abs=1e-5), "whatever else is asked"
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "none.csv"), *options])
