"""Scores of hand-made prediction tables: per source, mean over sources, by size; checked against the long way."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from argus.config import Config
from argus.scoring import (
    LEFT_OUT,
    MEAN,
    SIZES,
    mean_of_blocks,
    r2gen,
    score_all,
    score_table,
    size_scores,
    source_scores,
)  # fmt: skip
from shared.metrics.ct_findings import asserted, finding_scores
from shared.metrics.ct_findings_validation import validated_findings
from shared.metrics.interval import bootstrap_values, difference, mean_scores
from shared.metrics.text import document_frequencies, score_texts
from shared.runs.config import RunReproduceConfig
from shared.runs.evidence import Scored, folder
from shared.runs.reports import select

TEXTS = [
    "There is a 9 mm nodule in the right upper lobe. No pleural effusion.",
    "Bilateral pleural effusion with atelectasis in both lower lobes.",
    "Ground-glass opacities in the left lower lobe. Emphysematous changes in both lungs.",
    "No pulmonary embolism. No acute abnormality.",
    "Filling defect in the right main pulmonary artery: pulmonary embolism. 5 mm nodule in the left lung.",
    "Bronchiectasis in the middle lobe. Cardiomegaly. A small pneumothorax on the left side.",
]
SOURCES = ("ct-rate", "bimcv-r", "inspect")


def table_of(n: int = 60, seed: int = 0, keep: float = 0.6) -> pd.DataFrame:
    """Predictions that are right for a share `keep` of the records, else another record's text."""
    rng = np.random.default_rng(seed)
    references = [TEXTS[k] for k in np.random.default_rng(99).integers(len(TEXTS), size=n)]
    predictions = [r if rng.random() < keep else TEXTS[rng.integers(len(TEXTS))] for r in references]
    sizes = [json.dumps({name: 3.0 + i % 17 for (name,) in asserted(r)}) for i, r in enumerate(references)]
    source = [SOURCES[i % 3] for i in range(n)]
    ids = [f"{s}/v{i}" for i, s in enumerate(source)]
    patients = [f"{s}/p{i // 2}" for i, s in enumerate(source)]
    values = {"id": ids, "patient": patients, "source": source, "input": "volume", "section": "report"}
    return pd.DataFrame(values | {"reference": references, "prediction": predictions, "sizes": sizes})


def test_each_distinct_pair_counts_for_all_rows_that_have_it():
    table = table_of()
    scores = score_table(table, TEXTS, metrics=["bleu", "rouge", "cider_d"])
    texts = table.reference.tolist(), table.prediction.tolist()
    direct = finding_scores(*texts, validated_findings())
    direct |= score_texts(*texts, document_frequencies(TEXTS), ["bleu", "rouge", "cider_d"])
    for name, metric in direct.items():
        np.testing.assert_allclose(scores[name].stats, metric.stats, err_msg=name)
        assert scores[name].value == pytest.approx(metric.value, nan_ok=True)
    assert scores["place_finding_f1"].value <= scores["finding_f1"].value
    assert "label_f1" in scores and "all_finding_macro_f1" in scores


def test_what_the_left_out_findings_say_does_not_count():
    table = table_of()
    found = score_table(table, TEXTS, ["bleu"])
    rest = [name for name in validated_findings() if name not in LEFT_OUT]
    alone = finding_scores(table.reference.tolist(), table.prediction.tolist(), rest)["finding_f1"]
    assert len(rest) == len(validated_findings()) - len(LEFT_OUT)
    assert found["rest_finding_f1"].value == pytest.approx(alone.value)
    assert found["rest_finding_f1"].value != pytest.approx(found["finding_f1"].value, abs=1e-4)


def test_r2gen_cleaning_is_another_bleu():
    assert r2gen("1. Nodule of 3.5 mm, right.  2. No effusion.\nHeart: normal") == (
        "nodule of 35 mm right . no effusion . heart normal ."
    )
    assert r2gen("") == r2gen(" . ") == ""
    table = table_of(6).assign(reference="1. A small nodule, in the right lung.")
    same = table.assign(prediction="a small nodule in the right lung.")
    scores = score_table(same, TEXTS, ["bleu"])
    assert scores["bleu_4_r2gen"].value == pytest.approx(1) and scores["bleu_4"].value < 0.8
    assert "bleu_4_r2gen" not in score_table(same, TEXTS, ["rouge"])


PRIORS = {
    "Unchanged nodule in the right lung.": 1,
    "Compared with the previous CT the effusion has grown.": 1,
    "No change to the prior chest examination.": 1,
    "Seen on 12.03.2019 too.": 1,
    "A 9 mm nodule in the right upper lobe. Earlier surgery of the spine.": 0,
    "The left lung is smaller compared to the right. 3.5.": 0,
}


def test_reports_that_cite_what_no_volume_shows_are_counted():
    table = table_of(len(PRIORS)).assign(prediction=list(PRIORS))
    scores = score_table(table, TEXTS, ["bleu"])["hallucinated_priors"]
    assert scores.stats[:, 0].tolist() == list(PRIORS.values()) and scores.value == pytest.approx(4 / 6)


def test_reports_that_were_cut_are_counted():
    texts = ["No nodule is seen.", "No nodule is seen. No vertebral", "", "Clear? "]
    scores = score_table(table_of(4).assign(prediction=texts), TEXTS, ["bleu"])["unfinished"]
    assert scores.stats[:, 0].tolist() == [0, 1, 1, 0]


def test_a_source_is_scored_as_if_it_stood_alone():
    table = table_of()
    scores = score_table(table, TEXTS, metrics=["bleu", "rouge"])
    alone = {}
    for source in SOURCES:
        rows = table[table.source == source]
        found = finding_scores(rows.reference.tolist(), rows.prediction.tolist(), validated_findings())
        bleu = score_texts(rows.reference.tolist(), rows.prediction.tolist(), metrics=["bleu"])["bleu_4"]
        alone[source] = (found["finding_f1"].value, bleu.value)
        assert scores[f"finding_f1:{source}"].value == pytest.approx(alone[source][0])
        assert scores[f"bleu_4:{source}"].value == pytest.approx(alone[source][1])
    for k, name in enumerate(("finding_f1", "bleu_4")):
        mean = np.mean([values[k] for values in alone.values()])
        assert scores[f"{name}:{MEAN}"].value == pytest.approx(mean)
        assert scores[f"{name}:{MEAN}"].value != pytest.approx(scores[name].value, abs=1e-4), "pooled is another number"


def test_mean_over_sources_under_the_bootstrap_is_the_mean_of_its_parts():
    table = table_of(200)
    scores = score_table(table, TEXTS, metrics=["bleu"])
    wanted = [scores[f"finding_f1:{s}"] for s in SOURCES] + [scores[f"finding_f1:{MEAN}"]]
    values = bootstrap_values(wanted, table.patient, n_boot=50)
    np.testing.assert_allclose(values[:, :3].mean(1), values[:, 3])
    sums = np.arange(12.0).reshape(2, 6) + 1
    by_hand = [np.mean([row[2 * k] / row[2 * k + 1] for k in range(3)]) for row in sums]
    np.testing.assert_allclose(mean_of_blocks(sums, lambda s: s[..., 0] / s[..., 1], 3), by_hand)


def test_one_source_alone_has_a_mean_that_is_itself():
    table = table_of().assign(source="inspect")
    scores = score_table(table, TEXTS, metrics=["bleu"])
    assert scores[f"finding_f1:{MEAN}"].value == scores["finding_f1:inspect"].value == scores["finding_f1"].value


def test_findings_by_size_against_the_long_way():
    table = table_of(120, seed=3)
    scores = size_scores(table)
    names = set(validated_findings())
    drawn = {i: json.loads(s) for i, s in zip(table.id, table.sizes, strict=True)}
    counts = {size: [0, 0, 0] for size in SIZES}
    for row in table.itertuples():
        there = {n for (n,) in asserted(row.reference)} & names
        said = {n for (n,) in asserted(row.prediction)} & names
        for k, size in enumerate(SIZES):
            counts[size][1] += len(said - there)
            for name in there:
                of_kind = [d[name] for d in drawn.values() if name in d]
                low, high = np.quantile(of_kind, [1 / 3, 2 / 3])
                mm = drawn[row.id][name]
                if k == (0 if mm <= low else 1 if mm <= high else 2):
                    counts[size][0 if name in said else 2] += 1
    for size, (tp, fp, fn) in counts.items():
        assert tp + fn > 0
        assert scores[f"finding_f1_{size}"].value == pytest.approx(2 * tp / (2 * tp + fp + fn)), size


def test_a_model_that_misses_small_findings_is_told_apart():
    table = table_of(120, keep=1.0)
    small = [max(json.loads(s).values(), default=99) < 9 for s in table.sizes]
    blind = table.assign(prediction=np.where(small, "No acute abnormality.", table.reference))
    scores = size_scores(blind)
    assert scores["finding_f1_small"].value < 0.3 and scores["finding_f1_large"].value == 1.0
    assert size_scores(table)["finding_f1_small"].value == 1.0


def test_real_data_have_no_sizes():
    assert size_scores(table_of().assign(sizes="")) == {}


def test_sources_of_a_plain_mean():
    sources = np.array(["a", "b", "a", "b"])
    metric = mean_scores("cider_d", 1, [1.0, 2.0, 3.0, 6.0])
    scores = source_scores({"cider_d": metric}, sources)
    assert [scores[f"cider_d:{s}"].value for s in ("a", "b", MEAN)] == [2.0, 4.0, 3.0]
    assert select(metric, [1, 3]).value == 4.0


# --- over runs ---


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr("argus.scoring.DEFAULT_METRICS", ("bleu", "cider_d", "meteor_exact_stem"))  # no Java to start
    cfg = Config(tier="smoke", results=str(tmp_path))
    return replace(cfg, reproduce=RunReproduceConfig(seeds=[0, 1, 2]))


def write(cfg, name: str, facts: dict, keep: float, records_hash="r", inputs=("volume",), edit=lambda t: t) -> None:
    out = folder(cfg) / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    for seed in cfg.reproduce.seeds:
        parts = [table_of(seed=seed, keep=keep if k == "volume" else 0).assign(input=k) for k in inputs]
        edit(pd.concat([table_of()[:0], *parts], ignore_index=True)).to_parquet(out / f"{name}-seed{seed}.parquet")
        facts["runs"][f"{name}/seed{seed}"] = {"source": "simulated", "records_hash": records_hash, "data_hash": name}
    pd.DataFrame({"report": TEXTS}).to_parquet(out / f"train-reports-{records_hash}.parquet")


def test_entries_of_all_runs_and_a_paired_difference(cfg):
    facts = {"runs": {}}
    write(cfg, "argus", facts, 0.9, inputs=("volume", "shuffle"))
    write(cfg, "avgpool", facts, 0.3)
    write(cfg, "align-argus", facts, 0.9, inputs=())
    scored = score_all(cfg, facts)
    assert sorted(scored) == ["argus@shuffle", "argus@volume", "avgpool@volume"], "what predicts nothing is no entry"
    ours, theirs = scored["argus@volume"], scored["avgpool@volume"]
    assert isinstance(ours, Scored) and len(ours.scores["finding_f1"]) == 3 and len(ours.ids) == 60
    assert ours.data_hash == theirs.data_hash, "one set of test records, though the inputs differ"
    for metric in ("finding_f1", f"finding_f1:{MEAN}", "finding_f1:inspect", "bleu_4", "finding_f1_small"):
        d = difference(ours.scores[metric], theirs.scores[metric], ours.patients)
        assert d.mean > 0.1 and len(d.per_seed) == 3, metric
    for k, seed in enumerate(cfg.reproduce.seeds):
        table = table_of(seed=seed, keep=0.9)
        alone = score_table(table, TEXTS, ["bleu"])
        assert ours.scores["finding_f1"][k].value == alone["finding_f1"].value
    assert ours.level("meteor")[0] > 0, "`meteor` stands for the variant that ran"


def test_seeds_on_other_records_are_refused(cfg):
    facts = {"runs": {}}
    write(cfg, "argus", facts, 0.9)
    file = folder(cfg) / "predictions" / "argus-seed1.parquet"
    table = pd.read_parquet(file)
    table.assign(id="x" + table.id).to_parquet(file)
    with pytest.raises(ValueError, match="different records"):
        score_all(cfg, facts)


def test_clinical_columns_become_scores_only_where_they_are(cfg):
    facts = {"runs": {}}
    write(cfg, "argus", facts, 0.9, edit=lambda t: t.assign(ratescore=0.25, ratescore_undecided=0.0))
    write(cfg, "avgpool", facts, 0.3)
    scored = score_all(cfg, facts)
    assert scored["argus@volume"].level("ratescore")[0] == pytest.approx(0.25)
    assert "ratescore" not in scored["avgpool@volume"].scores, "not computed is not 0"


def test_nothing_to_score_says_what_to_run(cfg):
    facts = {"runs": {}}
    write(cfg, "align-argus", facts, 0.9, inputs=())
    with pytest.raises(SystemExit, match="make reproduce-argus TIER=smoke"):
        score_all(cfg, facts)
