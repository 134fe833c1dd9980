"""What stands in the tables beside the claims: frequent classes, differences, constant maps, means over sets."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from shared.metrics.classification import macro_auroc
from shared.metrics.segmentation import counts, dice_per_image, pixel_auprc
from shared.runs.evidence import Scored, comparable
from synth_medvlp import classes, figures, tables
from synth_medvlp.classes import correlations, finding_behind, frequent_headline, kept, share_of_finding
from synth_medvlp.config import Config, DataConfig
from synth_medvlp.pairs import Pairs
from synth_medvlp.scoring import WHOLE_IMAGE, mask_statistics, whole_image
from synth_medvlp.trees import CxrSimulateConfig

SHARES = {
    "Consolidation": 0.12, "Infiltration": 0.0, "pneumonia": 0.0, "catheter": 0.0, "central venous catheter": 0.07,
    "normal": 0.0, "Pleural_Thickening": 0.02, "suture material": 0.0, "COVID-19": 0.0,
}  # fmt: skip


# --- classes ---


def test_the_share_of_a_class_is_that_of_the_finding_behind_it():
    behind = finding_behind()
    assert {behind[c] for c in ("Pneumonia", "Infiltration", "pneumonia", "Consolidation")} == {"consolidation"}
    assert behind["bullas"] == "emphysema" and behind["apical pleural thickening"] == "pleural_thickening"
    found = share_of_finding(SHARES)
    assert found["Infiltration"] == found["pneumonia"] == 0.12 and found["catheter"] == 0.07
    assert found["suture material"] == 0.0 and "normal" not in found  # no class of that finding; no finding


def test_the_headline_of_frequent_classes_leaves_others_and_sets_outside_the_headline_out():
    rng = np.random.default_rng(0)
    y = {"a": rng.integers(0, 2, (60, 3)), "b": rng.integers(0, 2, (60, 1)), "c": rng.integers(0, 2, (60, 1))}
    y["a"][:, 1] = np.arange(60) < 5  # too few for MIN10
    s = {task: rng.normal(size=of.shape).astype(np.float32) for task, of in y.items()}
    ids = [f"i{k}" for k in range(60)]
    rows = pd.concat(pd.DataFrame({"dataset": t, "id": ids, "patient": ids, "prediction": list(s[t])}) for t in y)
    labels = pd.concat(pd.DataFrame({"dataset": t, "task": t, "id": ids, "reference": list(y[t])}) for t in y)
    kinds = {"a": ["headline"] * 3, "b": ["headline"], "c": ["extra"]}
    found = frequent_headline(rows, labels, {"kinds": kinds})
    auroc = {t: [roc_auc_score(y[t][:, c], s[t][:, c]) for c in range(y[t].shape[1])] for t in y}
    assert found.value == pytest.approx((np.mean([auroc["a"][0], auroc["a"][2]]) + auroc["b"][0]) / 2)
    assert found.n_items == 180
    assert frequent_headline(rows, labels, {"kinds": {task: ["extra"] for task in kinds}}) is None


def test_a_tier_without_generation_has_no_frequency(tmp_path):
    cfg = SimpleNamespace(results=str(tmp_path), PAPER="synth_medvlp", tier="test")
    assert kept(cfg, "frequency") == {}
    (tmp_path / "synth_medvlp/test").mkdir(parents=True)
    (tmp_path / "synth_medvlp/test/frequency.json").write_text(json.dumps(SHARES))
    assert kept(cfg, "frequency") == SHARES


def test_images_are_scored_against_what_their_texts_affirm(monkeypatch):
    said = ["Mild pulmonary edema.", "No edema.", "Consolidation.", "Faint infiltrate."] * 10
    images = np.zeros((40, 4, 4), np.uint8)
    images[::4] = 200  # edema is drawn, consolidation is not
    pairs = Pairs(images, pd.DataFrame({"impression": said}), {})
    model = SimpleNamespace(pixels=lambda x: x.float(), scores=lambda x, texts: x.mean((1, 2))[:, None].expand(-1, 4))
    monkeypatch.setattr(classes, "synthetic", lambda cfg: pairs)
    monkeypatch.setattr(classes, "load", lambda checkpoint: model)
    by_simulator = np.zeros((40, 4, 4), np.uint8)
    by_simulator[2::4] = 200  # here consolidation is drawn, edema is not
    monkeypatch.setattr(classes, "generator", lambda image, size: lambda prompts, seeds: (by_simulator, {}))
    cfg = Config(data=DataConfig(simulate=CxrSimulateConfig()))
    found = classes.drawn(cfg, Path("-"), ["Edema", "Consolidation", "Infiltration", "Hernia"])
    assert found["Edema"]["shown"] == 1.0 and "Hernia" not in found, "no text affirms one"
    truth = [text.startswith("Cons") for text in said]
    assert found["Consolidation"]["shown"] == pytest.approx(roc_auc_score(truth, images.mean((1, 2))))
    assert found["Consolidation"]["possible"] == 1.0 and found["Edema"]["possible"] < 0.5
    assert found["Edema"]["said"] == found["Consolidation"]["said"] == 0.25
    assert "possible" not in classes.drawn(Config(), Path("-"), ["Edema"])["Edema"], "nobody can draw real patients"


def test_correlations_are_over_findings_that_have_both_scores():
    table = pd.DataFrame({"class": ["Mass", "mass", "Nodule", "normal", "Edema"],
                          "share": [0.1, 0.1, 0.2, None, 0.3], "said": [0.1, 0.1, 0.0, 0.0, None],
                          "shown": [0.5, 0.6, 0.7, 0.8, 0.9], "synthetic": [0.9, 0.1, 0.7, 0.1, 0.8],
                          "real": [0.5, 0.5, 0.5, 0.9, 0.5]})  # fmt: skip
    found = correlations(table)
    assert found["share"][::2] == (pytest.approx(1.0), 3), "two classes of one finding count once, by their mean"
    table.loc[4, "real"] = np.nan
    assert correlations(table)["share"][2] == 2


def test_classes_of_the_table_have_their_positives_and_what_was_drawn(tmp_path, monkeypatch):
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
    monkeypatch.setattr(classes, "items_of", lambda rows, _: (None, None, {"a": (None, labels, labels * 0.5)}))
    monkeypatch.setattr(classes, "read_predictions", lambda *_: pd.DataFrame({"input": ["image"]}))
    monkeypatch.setattr(classes, "read_labels", lambda *_: None)
    monkeypatch.setattr(classes, "seeds_of", lambda *_: [0])
    of = {"frequency": {"Edema": 0.1, "Mass": 0.2}, "drawn": {"Edema": {"said": 0.3, "shown": 0.6, "possible": 0.9}}}
    monkeypatch.setattr(classes, "kept", lambda cfg, name: of[name])
    run = {"data_hash": "d", "kinds": {"a": ["headline"]}, "classes": {"a": ["Edema", "Mass"]}}
    found = classes.per_class(Config(), {"runs": {"real/seed0": run}}, ["real"])
    assert found.positives.tolist() == [2, 3] and found.real.tolist() == [1.0, 1.0]
    assert found.loc[0, ["said", "said_synthetic", "shown", "possible"]].tolist() == [0.1, 0.3, 0.6, 0.9]
    assert found.loc[1, ["shown", "possible"]].isna().all()


def test_the_figure_of_classes_takes_unknown_shares(tmp_path):
    table = pd.DataFrame({"task": ["a"] * 3, "class": ["x", "normal", "y"], "share": [0.1, None, 0.2],
                          "positives": [3, 9, 1], "real": [0.7, 0.6, 0.5], "mix": [0.6, 0.6, 0.6]})  # fmt: skip
    figures.draw_classes(tmp_path / "classes.png", table, {"real pairs": "real", "both": "mix"})
    assert (tmp_path / "classes.png").stat().st_size > 5_000


# --- tables ---


def entry(level: float, metrics=("auroc_headline", "auroc", "auroc:a", "auroc:x"), seeds: int = 3) -> Scored:
    """Scores of 200 items, better with `level`; every metric the same but `auroc`, which is half of chance worse."""
    rng, patients = np.random.default_rng(0), np.array([f"p{k}" for k in range(200)])
    y, noise = rng.integers(0, 2, (200, 1)), rng.normal(size=(seeds, 200, 1))
    scores = {m: [macro_auroc(y, (-level if m == "auroc" else level) * y + e) for e in noise] for m in metrics}
    return Scored(scores, patients, patients, "simulated", "hash")


def test_differences_are_absolute_and_relative_for_each_set_and_the_means():
    scored = {"real@image": entry(1.0), "synthetic@image": entry(0.5), "mix@image": entry(2.0)}
    facts = {"runs": {"real/seed0": {"kinds": {"a": ["headline"], "x": ["extra"], "p": ["headline"]}}}}
    table = tables.difference_table(scored, facts)
    rows = {tuple(row[:2]): row[2:] for row in table["rows"]}
    assert list(rows) == [(d, s) for d in tables.DIFFERENCES for s in ("headline mean", "a")]
    for label, (ours, theirs) in tables.DIFFERENCES.items():
        a, b = ([m.value for m in scored[f"{n}@image"].scores["auroc:a"]] for n in (ours, theirs))
        absolute, relative = rows[label, "a"]
        assert absolute[0] == pytest.approx(np.mean(np.subtract(a, b)))
        assert relative[0] == pytest.approx(100 * np.mean(np.subtract(a, b)) / np.mean(b))
        assert relative[1] < relative[0] < relative[2] and np.sign(absolute[0]) == np.sign(relative[0])
    assert tables.difference_table({"real@image": entry(1.0)}, facts)["rows"] == []


def test_unequal_seeds_are_compared_over_those_that_both_have():
    facts = {"runs": {"real/seed0": {"kinds": {"a": ["headline"]}}}}
    scored = {
        f"{name}@image": entry(level, seeds=5) for name, level in (("real", 1.0), ("synthetic", 0.5), ("mix", 2.0))
    }
    for of in scored.values():
        of.seeds = [0, 1, 2, 3, 4]
    whole = {row[0]: row[1:] for row in tables.regime_table(scored)["rows"]}["zero-shot, ConVIRT"]
    scored["mix@image"].seeds = [0, 1, 2]
    scored["mix@image"].scores = {m: of[:3] for m, of in scored["mix@image"].scores.items()}
    table = tables.regime_table(scored)
    some = {row[0]: row[1:] for row in table["rows"]}["zero-shot, ConVIRT"]
    assert table["columns"][1] == "seeds" and some.pop(0) == "3 to 5"
    assert some[0] == whole[0] and some[1] != whole[1]
    values = {n: [m.value for m in scored[f"{n}@image"].scores["auroc_headline"]][:3] for n in ("real", "mix")}
    assert some[1][0] == pytest.approx(np.mean(np.subtract(values["mix"], values["real"])))
    rows = {tuple(row[:2]): row[2] for row in tables.difference_table(scored, facts)["rows"]}
    assert rows["mix − real", "headline mean"][0] == pytest.approx(some[1][0])
    scored["mix@image"].seeds = [5, 6, 7]
    assert not comparable(scored, "mix@image", "real@image")


def test_half_real_pairs_stand_beside_the_real_pairs_of_the_same_records():
    scored = {f"{name}@image": entry(level) for name, level in (("real-image", 0.5), ("real-of-image", 1.0))}
    table = tables.stage_table(scored)
    rows = {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["rows"]}
    values = {
        n: [m.value for m in scored[f"{n}@image"].scores["auroc_headline"]] for n in ("real-image", "real-of-image")
    }
    mine, own = "real images, synthetic texts", "minus the real pairs of the same records"
    assert rows[mine][own][0] == pytest.approx(np.mean(np.subtract(*values.values())))
    assert rows["these real images, real texts"][own] is None


def test_regimes_are_subtracted_pair_by_pair_under_every_protocol():
    levels = {"real": 1.0, "synthetic": 0.5, "mix": 2.0}
    kinds = ("{}@image", "gloria-{}@image", "strong-{}@image", "finetune-{}@finetune:image 0.1")
    scored = {key.format(name): entry(level) for key in kinds for name, level in levels.items()}
    del scored["strong-mix@image"]
    scored["redrawn@image"], scored["gloria-mix@image"].data_hash = entry(0.7), "other records"
    table = tables.regime_table(scored)
    assert table["columns"] == ["model", *tables.DIFFERENCES]
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert len(rows) == 4 and [c is None for c in rows["zero-shot, GLoRIA"]] == [False, True, True]
    assert [c is None for c in rows[f"zero-shot, ConVIRT, {tables.WORLDS['strong']}"]] == [False, True, True]
    values = {n: np.array([m.value for m in scored[f"{n}@image"].scores["auroc_headline"]]) for n in levels}
    for cell, (ours, theirs) in zip(rows["fine-tuned, 10 % of the labels"], tables.DIFFERENCES.values(), strict=True):
        assert cell[0] == pytest.approx(np.mean(values[ours] - values[theirs])) and cell[1] < cell[0] < cell[2]
    stages = {row[0]: dict(zip(tables.stage_table(scored)["columns"][1:], row[1:], strict=True))
              for row in tables.stage_table(scored)["rows"]}  # fmt: skip
    assert stages["synthetic pairs"]["minus synthetic pairs"] is None
    assert stages["synthetic pairs, drawn anew"]["minus synthetic pairs"][0] > 0
    assert stages["synthetic pairs, drawn anew"]["minus real pairs"][0] < 0


def test_few_label_tables_are_means_over_the_headline_sets_only():
    scored = {f"linear-real@linear:image {r}": entry(1.0) for r in ("0.1", "1")}
    facts = {"runs": {"linear-real/seed0": {"kinds": {"a": ["headline"], "x": ["extra"], "p": ["headline"]}}}}
    table = tables.tuned_table(scored, facts, "linear", "Linear")
    assert table["columns"] == ["model", "10 % of the labels", "100 % of the labels"]
    one = scored["linear-real@linear:image 0.1"]
    assert table["rows"][0][1] == list(one.level("auroc_headline")) != list(one.level("auroc"))
    assert "mean over 1 headline sets (a)" in table["note"]  # p was not fitted


def test_the_whole_image_and_a_random_pixel_are_scored_as_constant_maps():
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 8, 8), bool)
    for k in range(4):  # two images without a mask
        truth[k, : k + 1, : 2 + k] = True
    n = truth.sum((1, 2))
    rows = pd.DataFrame({"dataset": "d", "task": "t", "id": list("abcdef"), "patient": list("abcdef"), "n_pixels": 64,
                         "tp": n // 2,
                         "fp": rng.integers(0, 9, 6), "fn": n - n // 2, "hit": 1.0, "tp_oracle": n})  # fmt: skip
    found = mask_statistics(whole_image(rows))
    full = np.ones_like(truth)
    assert found["dice"].value == pytest.approx(dice_per_image(counts(truth, full))[:4].mean())
    constant = [pixel_auprc(np.zeros((8, 8)), mask) for mask in truth[:4]]
    assert found["pixel_auprc"].value == pytest.approx(np.mean(constant))
    hits = [mask.ravel()[rng.integers(64, size=20_000)].mean() for mask in truth[:4]]  # pointing at random pixels
    assert found["pointing"].value == pytest.approx(np.mean(hits), abs=0.01)
    scored = Scored({m: [s] * 3 for m, s in found.items()}, rows.id.to_numpy(), rows.id.to_numpy(), "simulated", "h")
    key = f"{WHOLE_IMAGE}@grounding:image"
    table = tables.mask_table({key: scored}, "grounding", "Grounding", {WHOLE_IMAGE: key})
    cells = {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["rows"]}
    assert cells["whole image"]["pointing game"] is None and cells["a random pixel"]["Dice"] is None
    assert cells["a random pixel"]["pointing game"][0] == pytest.approx(found["pointing"].value)
