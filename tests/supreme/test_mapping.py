"""`supreme.mapping` and `supreme.thresholds`: words before vectors, thresholds and margin, guards, local terms."""

from types import SimpleNamespace

import numpy as np
import pytest

from supreme import thresholds
from supreme.mapping import Names, accepted, known, map_terms
from supreme.merge import Merged, merge, signature, unit
from supreme.terminology import find, terminology
from supreme.thresholds import Scored, pairs


def hashed(texts):
    """Bags of character 4-grams, hashed: alike where the letters are."""
    out = np.zeros((len(texts), 512))
    for row, text in enumerate(texts):
        padded = f"  {text.lower()}  "
        for i in range(len(padded) - 3):
            out[row, sum(ord(c) * 31**k for k, c in enumerate(padded[i : i + 4])) % 512] += 1
    return out


def config(**options):
    defaults = {"tau_map": 0.8, "map_margin": 0.02, "min_records": 20, "protocol": "corrected"}
    return SimpleNamespace(**(defaults | options))


def decide(names, encode=hashed, n=None, subtypes=True, **options):
    cfg = config(**options)
    alone = Merged(list(names), np.arange(len(names)), list(range(len(names))), [])
    decisions = map_terms(alone, n or [0] * len(names), encode, cfg, subtypes)
    return [(d.term.id if d.term else None, d.how) for d in decisions]


@pytest.mark.parametrize("encode", [hashed, lambda t: np.zeros((len(t), 4)), lambda t: np.ones((len(t), 4)),
                                    lambda t: np.random.default_rng(0).normal(size=(len(t), 8))])  # fmt: skip
def test_exact_synonyms_do_not_depend_on_the_embedding(encode):
    names = [name for t in terminology() for name in t.names][::7]
    assert decide(names, encode) == [(find(name).id, "exact") for name in names]


def test_a_name_with_a_place_is_narrower_in_corrected_and_the_wider_term_else():
    assert decide(["lateral ST depression"], n=[20]) == [("local:lateral ST depression", "place")]
    assert decide(["lateral ST depression"], n=[19]) == [("st_depression", "place")]
    assert decide(["lateral ST depression"], n=[20], subtypes=False) == [("st_depression", "place")]
    cfg = config()
    alone = Merged(["lateral ST depression"], np.zeros(1, int), [0], [])
    assert map_terms(alone, [20], hashed, cfg, True)[0].term.parent == "st_depression"
    assert known("inferior infarct", True)[0].id == "inferior_mi"
    assert known("odd thing", True) == known("odd thing", False) == (None, None)


def test_the_nearest_term_is_taken_at_the_threshold_and_ahead_of_the_second():
    assert decide(["atrial fibrillations rhythm"], tau_map=0.5) == [("atrial_fibrillation", "embedding")]
    assert decide(["atrial fibrillations rhythm"], tau_map=0.99) == [(None, "unmapped")]
    near = (("a", 0.90), ("b", 0.88), ("c", 0.1))
    assert accepted(near, 0.9, 0.01) == "a" and accepted(near, 0.9, 0.03) is None and accepted(near, 0.91, 0) is None
    assert accepted(near[:1], 0.5, 0.5) == "a" and accepted((), 0.0, 0.0) is None


def test_a_guard_keeps_the_nearest_name_away_and_says_so():
    names = Names(hashed, "corrected")
    vector = unit(hashed(["odd prolonged short QT interval"]))[0]
    candidates, blocked = names.nearest(
        "odd right bundle branch blockade", unit(hashed(["left bundle branch block"]))[0]
    )
    assert blocked[0] in ("left bundle branch block", "LBBB") and blocked[1] > 0.99 and blocked[2] == "side"
    assert all(signature(t.preferred)[0] == {"right"} for t in terminology() if t.id in dict(candidates))
    assert decide(["odd incomplete AV blockade"], lambda t: np.ones((len(t), 2)), tau_map=0.5)[0][0] != "av_block_1"
    assert names.nearest("odd prolonged short QT interval", vector)[0] == ()


@pytest.mark.parametrize("protocol", ["corrected", "as_published"])
def test_candidates_are_those_of_a_search_over_all_names(protocol):
    from supreme.merge import guards

    names, n_guards = Names(hashed, protocol), len(guards(protocol))
    for query in ("atrial fibrillations rhythm", "old scar of the front", "slow beats of the sinus", "ST going down"):
        vector, best = unit(hashed([query]))[0], {}
        for t in terminology():
            for name in t.names:
                if signature(name)[:n_guards] == signature(query)[:n_guards]:
                    best[t.id] = max(best.get(t.id, -1), float(unit(hashed([name]))[0] @ vector))
        expected = sorted(best.items(), key=lambda item: -item[1])[:3]
        ours = names.nearest(query, vector)[0]
        assert [round(c, 9) for _, c in ours] == [round(c, 9) for _, c in expected]
        assert not expected or ours[0][0] == expected[0][0] or expected[0][1] == pytest.approx(expected[1][1])


def test_what_is_frequent_becomes_a_local_term_with_its_synonyms():
    merged = merge(["zzyx", "zzyy"], [30, 3], lambda t: np.ones((len(t), 2)), 0.9, "corrected")
    cfg = config(tau_map=1.1)
    (decision,) = map_terms(merged, [20], hashed, cfg, True)
    assert decision.how == "local" and decision.term.id == "local:zzyx" and decision.term.synonyms == ("zzyy",)
    (decision,) = map_terms(merged, [19], hashed, cfg, True)
    assert decision.how == "unmapped" and decision.term is None
    assert decide([]) == []


# --- thresholds ---


def test_the_calibration_set_holds_what_it_must():
    table = pairs()
    assert len(table) >= 200 and set(table.relation) == set(thresholds.RELATIONS)
    assert table.groupby("relation").size().min() >= 50
    assert not table.duplicated(["a", "b"]).any()
    halves = table.groupby(["relation", "half"]).size().unstack()
    assert (halves[0] - halves[1]).between(0, 2).all()
    told = table[table.b != ""]
    both = [(find(r.a), find(r.b), r.relation) for r in told.itertuples() if find(r.a) and find(r.b)]
    assert all((a == b) == (relation == "synonym") for a, b, relation in both)  # pairs and terminology agree
    assert all(find(name) is None for name in table.a[table.b == ""])


def test_a_threshold_is_the_best_of_all_on_its_half_and_measured_on_the_other():
    rng = np.random.default_rng(1)
    right = rng.random(300) < 0.5
    score = np.clip(0.5 * right + rng.normal(0.3, 0.25, 300), 0.01, 1)
    half = np.arange(300) % 2
    scored = Scored(score, right, half, (int(right[half == 0].sum()), int(right[half == 1].sum())))
    tau = scored.choose()
    best = max(
        (yes & right)[half == 0].sum() / right[half == 0].sum()
        for t in score[half == 0]
        if (yes := score >= t)[half == 0].any() and (yes & right)[half == 0].sum() / yes[half == 0].sum() >= 0.95
    )
    precision, recall = scored.at(tau, 0)
    assert precision >= 0.95 and recall == pytest.approx(best)
    yes, positives = (score >= tau) & (half == 1), right[half == 1].sum()
    assert scored.at(tau, 1) == pytest.approx(((yes & right).sum() / yes.sum(), (yes & right).sum() / positives))
    nothing = Scored(np.full(4, 0.5), np.zeros(4, bool), np.array([0, 1, 0, 1]), (0, 0))
    assert nothing.choose() == 1.0 and nothing.at(1.0, 0) == (1.0, 0.0)


def test_guards_are_what_makes_a_threshold_possible():
    guarded, bare = thresholds.merge_scores(hashed), thresholds.merge_scores(hashed, guarded=False)
    recall = lambda scored: scored.at(scored.choose(), 0)[1]  # noqa: E731
    assert recall(guarded) > recall(bare)
    table = thresholds.calibrate(hashed)
    assert table.stage.tolist() == ["merge", "merge, no guards", "map"]
    assert (table.precision >= 0.95).all() and table[["recall", "other_recall"]].max().max() <= 1
