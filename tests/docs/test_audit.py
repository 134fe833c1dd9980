"""AUDIT.md against results/audit.json, and some of the demonstrations against what they are made of."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from docs.audit.__main__ import FINDINGS, MARKS, PAGE, RESULTS, cell, main, renewed, table
from docs.audit.row import compare, minus, need, over_draws, task_mean
from docs.audit.text import batch_means, min_max
from shared.metrics.interval import difference, interval, mean_scores
from shared.metrics.six_tasks import restrict
from shared.metrics.text import DocumentFrequencies, score_texts

RNG = np.random.default_rng(7)
PATIENTS = np.repeat(np.arange(20), 2)


def metrics(k: int) -> list:
    return [mean_scores("m", 1, RNG.random(len(PATIENTS))) for _ in range(k)]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_table_of_the_page_is_what_results_hold():
    page, results = PAGE.read_text("utf-8"), json.loads(RESULTS.read_text())
    assert [m[1] for m in MARKS.findall(page)] == list(FINDINGS) == list(results)
    assert renewed(page, results) == page
    assert all(f"`make audit ARGS={name}`" in page for name in FINDINGS)


def test_a_changed_number_would_be_seen():
    page, results = PAGE.read_text("utf-8"), json.loads(RESULTS.read_text())
    results["empty-masks"][0]["published"][0] += 0.01
    assert renewed(page, results) != page


@pytest.mark.parametrize("name", ["constant-df-cider", "per-batch-means", "empty-masks"])
def test_committed_predictions_give_the_committed_numbers(name):
    stored = json.loads(RESULTS.read_text())[name]
    now = json.loads(json.dumps([asdict(row) for row in FINDINGS[name]()]))
    assert [r["what"] for r in now] == [r["what"] for r in stored]
    for a, b in zip(now, stored, strict=True):
        for side in ("published", "corrected", "difference"):
            assert a[side] == pytest.approx(b[side], abs=1e-6), a["what"]


def test_cells():
    assert cell((1281.0, None, None), 0) == "1,281"
    assert cell((0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]" and cell((1.0, None, None)) == "1.000"
    row = {"what": "w", "published": (2, None, None), "corrected": (0, None, None), "difference": (2, None, None)}
    assert table([row | {"data": "d"}]).splitlines()[-1] == "| w | 2 | 0 | 2 | d |"


def test_a_finding_without_its_files_names_them_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert main(["column-order"]) == 1
    assert "make data-merl-splits" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="make data-nih-cxr"):
        need(tmp_path / "nih-cxr", "`make data-nih-cxr`")
    with pytest.raises(SystemExit):
        main(["no-such-finding"])


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_have_the_intervals_of_the_scorecards():
    a, b = metrics(3), metrics(3)
    row, known = compare("w", a, b, PATIENTS, "d"), difference(a, b, PATIENTS)
    assert row.difference == pytest.approx((known.mean, *known.interval()))
    assert row.published == pytest.approx((known.level, *difference(a, None, PATIENTS).interval()))
    single = compare("w", a[:1], b[:1], PATIENTS, "d")
    assert single.published == pytest.approx(interval(a[0], PATIENTS))
    assert single.difference == pytest.approx(interval(minus(a[0], b[0]), PATIENTS))
    with pytest.raises(ValueError, match="3 seeds against 2"):
        compare("w", a, b[:2], PATIENTS, "d")


def test_a_task_mean_weighs_tasks_alike():
    first, second = mean_scores("m", 1, [1.0, 0.0, 1.0]), mean_scores("m", 1, [0.5])
    mean = task_mean([(np.arange(3), first), (np.array([3]), second)], 4)
    assert mean.value == pytest.approx((2 / 3 + 0.5) / 2)
    assert restrict(mean, np.arange(4), 4).value == pytest.approx(mean.value)


# --- public rules -----------------------------------------------------------------------------------------------------


def test_batch_means_are_means_of_corpus_values():
    references = [
        "sinus rhythm normal ecg today",
        "atrial fibrillation with rapid response",
        "paced rhythm no more said",
    ]
    written = [references[0], "atrial flutter with rapid response", "paced rhythm no more said"]
    scored = score_texts(references, written, DocumentFrequencies(2, {}), ("bleu",))["bleu_1"]
    halves = [score_texts(references[i], written[i], DocumentFrequencies(2, {}), ("bleu",))["bleu_1"].value
              for i in (slice(0, 2), slice(2, 3))]  # fmt: skip
    assert batch_means(scored, 2, np.arange(3)) == pytest.approx(np.mean(halves))
    assert batch_means(scored, 3, np.arange(3)) == pytest.approx(scored.value)


def test_one_lost_sample_empties_a_record():
    signal = RNG.normal(size=(12, 50))
    assert min_max(signal).max() == pytest.approx(1.0, abs=1e-6)
    signal[3, 7] = np.nan
    assert not min_max(signal).any()


def test_draws_have_their_central_range():
    assert over_draws(np.arange(1001)) == pytest.approx((500.0, 25.0, 975.0))
