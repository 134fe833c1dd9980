"""`synth_medvlp.screening`, `quality`, `audit`: rules, the taught classifier, near-bad images, resuming, workers."""

import json
import threading

import numpy as np
import pytest
from image_models import Judge

from synth_medvlp.audit import max_similarity, near_bad, threshold_for
from synth_medvlp.journal import Journal
from synth_medvlp.quality import NO_TO, annotate, annotated_sample, taught
from synth_medvlp.screening import (
    NO,
    UNREAD,
    YES,
    AuditConfig,
    SampleConfig,
    answer_stats,
    features,
    is_bad,
    screen,
    screener,
)  # fmt: skip

ANSWERS = np.array([[1] * 6, [0] * 6, [1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1], [-1] * 6, [0, -1, 1, 1, 1, 1]], np.int8)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("any_no", [0, 1, 1, 1, 0, 1]), ("all_no", [0, 1, 0, 0, 0, 0]), ("at_least_1", [0, 1, 1, 1, 0, 1]),
        ("at_least_2", [0, 1, 0, 1, 0, 0]), ("at_least_3", [0, 1, 0, 1, 0, 0]), ("at_least_4", [0, 1, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_rules(rule, expected):
    assert is_bad(ANSWERS, rule).tolist() == [bool(x) for x in expected]


def test_a_wrong_rule_or_backend_is_named(tmp_path):
    for rule in ("some_no", "at_least_7", "at_least_0", ""):
        with pytest.raises(ValueError, match="one of all_no, any_no, at_least_1"):
            is_bad(ANSWERS, rule)
    with pytest.raises(ValueError, match=r"audit\.screener='oracle'"):
        screener(AuditConfig(screener="oracle"), 64)
    with pytest.raises(ValueError, match=r"needs audit\.model"):
        screener(AuditConfig(screener="mllm"), 64)


def test_statistics_of_answers_by_hand():
    stats = answer_stats(ANSWERS)
    assert stats["yes_rate"]["is_cxr"] == 2 / 5 and list(stats["unread"].values()) == [1, 2, 1, 1, 1, 1]
    assert stats["bad_by_rule"] == {
        "any_no": 4, "all_no": 1, "at_least_2": 2, "at_least_3": 2, "at_least_4": 1, "at_least_5": 1,
    }  # fmt: skip
    brute = [[np.mean([a[i] == a[j] for a in ANSWERS if a[i] != UNREAD and a[j] != UNREAD]) for j in range(6)]
             for i in range(6)]  # fmt: skip
    assert np.allclose(stats["agreement"], brute)
    assert answer_stats(ANSWERS[:0])["yes_rate"]["human"] is None


# --- the laptop screener ---


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return taught(SampleConfig(patients=150, epochs=16), 32, folder), folder


def test_annotators_know_every_defect():
    from synth_medvlp import defects

    kinds = {f"unreadable:{kind}" for kind in defects.UNREADABLE}
    kinds |= {"non_frontal", "wrong_body_part", "", "mismatched_report"}
    assert set(NO_TO) == kinds
    assert annotate("wrong_body_part:hand") == [NO, YES, NO, YES, YES, NO]
    assert annotate("", "LATERAL") == [YES, YES, NO, YES, YES, YES] and annotate("unreadable:blank") == [NO] * 6
    with pytest.raises(KeyError):
        annotate("unreadable:upside_down")


def test_the_classifier_finds_defects_of_patients_it_has_not_seen(classifier):
    images, truth = annotated_sample(SampleConfig(patients=70, seed=4), 32)
    answers = classifier[0].answers(images)
    bad, really = is_bad(answers, "any_no"), is_bad(truth, "any_no")
    assert really.sum() > 20 and bad[really].mean() > 0.75 and bad[~really].mean() < 0.05
    found = classifier[0].features(images)
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    alike = found @ found.T
    lateral, frontal = truth[:, 2] == NO, ~really
    assert alike[np.ix_(lateral, lateral)].mean() > alike[np.ix_(lateral, frontal)].mean() + 0.3


def test_the_classifier_is_read_back_and_measured(classifier):
    again = taught(SampleConfig(patients=150, epochs=16), 32, classifier[1])
    assert again.identity == classifier[0].identity and again.told == classifier[0].told
    assert again.told["held_out"] == (again.told["images"] + again.told["held_out"]) // 5
    assert again.told["accuracy"]["frontal"] > 0.85 and 0.1 < again.told["no_rate"]["frontal"] < 0.4
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
    assert (again.features(noise) == classifier[0].features(noise)).all()


# --- A2: resuming ---


def _images(n, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), np.uint8)
    images[:, 0, 0] = np.arange(n) % 5
    return images


def test_screening_goes_on_after_a_kill_and_asks_nothing_twice(tmp_path):
    images = _images(200)
    whole = screen(images, Judge(), "any_no", tmp_path / "whole")
    killed = Judge(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        screen(images, killed, "any_no", tmp_path / "cut")
    with (tmp_path / "cut" / "answers-0.jsonl").open("a") as stream:
        stream.write('{"item": 128, "answ')  # the line that the kill cut off
    judge = Judge()
    bad, answers, stats = screen(images, judge, "any_no", tmp_path / "cut")
    assert (bad == whole[0]).all() and (answers == whole[1]).all() and stats["dropped"] == 80
    assert judge.counts["replies"] == stats["asked_now"] == 200 - 128
    other = screen(images, Judge(), "all_no", tmp_path / "cut")
    assert other[0].sum() == 40 and other[2]["asked_now"] == 0
    with pytest.raises(ValueError, match="other settings"):
        screen(_images(200, seed=1), Judge(), "any_no", tmp_path / "cut")


def test_features_are_kept(tmp_path):
    images, judge = _images(2100), Judge()
    found = features(images, judge, tmp_path)
    assert (found == judge.features(images)).all()
    judge.features = None
    assert (features(images, judge, tmp_path) == found).all()


def test_workers_share_the_items_and_each_gets_all(tmp_path, monkeypatch):
    from synth_medvlp import journal

    images, place, results = _images(130), threading.local(), {}
    monkeypatch.setattr(journal, "worker", lambda: (place.rank, 3))
    monkeypatch.setattr(journal, "POLL_S", 0.01)

    def run(rank):
        place.rank = rank
        judge = Judge()
        results[rank] = (*screen(images, judge, "any_no", tmp_path), judge.counts["replies"])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    [t.start() for t in threads]
    [t.join(20) for t in threads]
    alone = Judge().answers(images)
    assert all((results[rank][1] == alone).all() for rank in range(3))
    assert sorted(results[rank][3] for rank in range(3)) == [43, 43, 44]


def test_a_journal_keeps_the_last_line_of_an_item(tmp_path):
    one = Journal(tmp_path, "x", {"a": 1})
    one.add([{"item": 0, "v": 1}, {"item": 1, "v": 2}])
    one.add([{"item": 0, "v": 3}])
    again = Journal(tmp_path, "x", {"a": 1})
    assert again.done() == {0: {"item": 0, "v": 3}, 1: {"item": 1, "v": 2}} and again.wait(2)[1]["v"] == 2
    assert json.loads((tmp_path / "x-0.jsonl").read_text().splitlines()[0])["identity"]["a"] == 1
    with pytest.raises(ValueError, match="remove the folder"):
        Journal(tmp_path, "x", {"a": 2})


# --- A3 ---


def _unit(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_similarity_to_bad_images_against_brute_force():
    found, bad = _unit(50, 6, 0), np.arange(50) % 7 == 0
    drop, max_sim, stats = near_bad(found, bad, 0.5)
    for i in range(50):
        brute = max(float(found[i] @ found[j]) for j in range(50) if bad[j])
        assert max_sim[i] == pytest.approx(1.0 if bad[i] else brute, abs=1e-6)
        assert drop[i] == (not bad[i] and brute > 0.5)
    assert stats["dropped"] == drop.sum() == stats["dropped_at"]["0.50"] and stats["images"] == (~bad).sum()
    assert stats["dropped_at"]["1.00"] == 0 and stats["dropped_at"]["0.00"] >= stats["dropped_at"]["0.95"]
    in_batches = max_similarity(found, found[bad], batch=7)  # equal but for rounding, which depends on the processor
    np.testing.assert_allclose(in_batches, max_similarity(found, found[bad]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.026, 0.5, 1.0])
def test_the_calibrated_threshold_drops_its_share(share):
    found, bad = _unit(1000, 6, 1), np.arange(1000) < 20
    drop, _, stats = near_bad(found, bad, None, share)
    assert drop.sum() == int(share * 980) and stats["threshold"] == stats["calibrated_threshold"]
    assert threshold_for(np.array([0.1, 0.4, 0.2, 0.3]), 0.5) == 0.2
    with pytest.raises(ValueError, match=r"0\.\.1"):
        near_bad(found, bad, None, 1.2)


def test_without_a_bad_image_nothing_is_near_one():
    drop, max_sim, stats = near_bad(_unit(10, 4, 0), np.zeros(10, bool), 0.5)
    assert not drop.any() and (max_sim == -1).all() and stats["bad"] == 0
    every = near_bad(_unit(10, 4, 0), np.ones(10, bool), None)
    assert not every[0].any() and every[2]["images"] == 0
