"""The verdict rule on simulated nulls, the bootstrap against brute force, Holm against its definition.

The bootstrap is checked once against brute force and once for its variance; the nulls are then simulated on
`Difference` objects drawn from the model that the interval assumes, thousands at a time.
"""

import numpy as np
import pytest
from draws import bootstrap_weights

from shared.metrics import interval as iv
from shared.metrics.interval import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    Difference,
    Hypothesis,
    Scores,
    Statistic,
    difference,
    holm,
    mean_scores,
    p_value,
    verdict,
)


def make(mean=0.0, v_items=1e-4, s2_seeds=1e-4, n_seeds=3) -> Difference:
    return Difference(mean, v_items, s2_seeds, (mean,) * n_seeds, 0.5 + mean, 0.5, 100, 100)


def f1_scores(rng, patients: np.ndarray) -> Scores:
    """Micro F1 from tp, fp, fn per item: a ratio of sums, not a mean."""
    counts = rng.integers(0, 4, size=(len(patients), 3))
    return Scores("f1", 1, counts, lambda s: 2 * s[..., 0] / (2 * s[..., 0] + s[..., 1] + s[..., 2]))


# --- bootstrap ---


def test_bootstrap_draws_whole_patients():
    patients = np.array(["b", "a", "b", "c", "c", "c"])
    weights = bootstrap_weights(patients, 200, seed=1)
    assert weights.shape == (200, 6)
    assert np.array_equal(weights[:, 0], weights[:, 2]) and np.array_equal(weights[:, 3], weights[:, 5])
    assert np.all(weights[:, [0, 1, 3]].sum(axis=1) == 3)  # three patients drawn every time
    assert not np.array_equal(weights[:, 0], weights[:, 1])
    assert not np.array_equal(weights, bootstrap_weights(patients, 200, seed=2))


def test_sums_equal_brute_force_resampling():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 30, size=100)
    scores = f1_scores(rng, patients)
    weights = bootstrap_weights(patients, 50, seed=3)
    brute = [float(scores.reduce(np.repeat(scores.stats, w.astype(int), axis=0).sum(axis=0))) for w in weights]
    assert iv.bootstrap_values([scores], patients, 50, seed=3)[:, 0] == pytest.approx(brute)


def test_statistic_and_scores_agree_on_the_same_draws():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 3)
    x = rng.normal(size=120)
    as_statistic = Statistic("m", 1, 120, lambda w: (w @ x) / w.sum(axis=1))
    values = iv.bootstrap_values([mean_scores("m", 1, x), as_statistic], patients, 100)
    assert values[:, 0] == pytest.approx(values[:, 1])
    assert as_statistic.value == pytest.approx(x.mean())


def test_draws_do_not_depend_on_block_size(monkeypatch):
    patients = np.arange(101)
    whole = bootstrap_weights(patients, 40, seed=0)
    monkeypatch.setattr(iv, "CHUNK_CELLS", 7 * 101)
    assert np.array_equal(whole, bootstrap_weights(patients, 40, seed=0))


def test_v_items_is_the_clustered_variance():
    rng = np.random.default_rng(0)
    n_patients, per_patient = 400, 4
    patients = np.repeat(np.arange(n_patients), per_patient)
    x = np.repeat(rng.normal(size=n_patients), per_patient)  # records of one patient are copies
    d = difference([mean_scores("m", 1, x)], None, patients, n_boot=4000)
    clustered = x.var() / n_patients
    assert d.v_items == pytest.approx(clustered, rel=0.1)
    as_if_independent = difference([mean_scores("m", 1, x)], None, np.arange(len(x)), n_boot=4000)
    assert as_if_independent.v_items == pytest.approx(clustered / per_patient, rel=0.1)


def test_percentile_interval_covers():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 2)
    hits = 0
    for _ in range(300):
        x = np.repeat(rng.normal(size=100), 2) + rng.normal(size=200)
        value, lo, hi = iv.interval(mean_scores("m", 1, x), patients, n_boot=400)
        assert lo < value < hi
        hits += lo <= 0 <= hi
    assert 0.90 <= hits / 300 <= 0.985


def test_undefined_replicates_and_one_patient_give_no_interval():
    half_undefined = Statistic("auroc", 1, 4, lambda w: np.where(w[:, 0] > 0, w[:, 0], np.nan))
    assert np.isnan(iv.interval(half_undefined, np.arange(4))[1])
    assert np.isnan(iv.interval(mean_scores("m", 1, np.arange(4.0)), ["p"] * 4)[1])
    d = difference([mean_scores("m", 1, np.arange(4.0) + k) for k in range(3)], None, ["p"] * 4)
    assert holm([Hypothesis("superiority", (d,))])[0].verdict == INCONCLUSIVE


# --- differences ---


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=500)  # how hard an item is, shared by both methods
    a = [mean_scores("m", 1, hard + 0.1 + 0.01 * rng.normal(size=500)) for _ in range(3)]
    b = [mean_scores("m", 1, hard + 0.01 * rng.normal(size=500)) for _ in range(3)]
    d = difference(a, b, np.arange(500))
    assert d.mean == pytest.approx(0.1, abs=0.002) and d.v_items < 1e-6
    assert d.level - d.comparator_level == pytest.approx(d.mean)
    assert d.per_seed == pytest.approx([x.value - y.value for x, y in zip(a, b, strict=True)])
    assert d.s2_seeds == pytest.approx(np.var(d.per_seed, ddof=1))


def test_interval_is_the_formula():
    lo, hi = make(0.2, v_items=3e-4, s2_seeds=6e-4, n_seeds=3).interval()
    half = 4.302653 * np.sqrt(3e-4 + 6e-4 / 3)  # t(0.975, 2) from a printed table
    assert (lo, hi) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)


def test_comparator_without_seeds_and_level():
    patients = np.arange(50)
    a = [mean_scores("m", 1, np.full(50, 0.5 + 0.1 * k)) for k in range(3)]
    majority = mean_scores("m", 1, np.full(50, 0.2))
    assert difference(a, majority, patients).per_seed == pytest.approx([0.3, 0.4, 0.5])
    alone = difference(a, None, patients)
    assert (alone.mean, alone.level, alone.comparator_level) == pytest.approx((0.6, 0.6, 0.0))


def test_what_cannot_be_compared_is_an_error():
    a = [mean_scores("m", 1, np.ones(4))] * 3
    with pytest.raises(ValueError, match="3 seeds against 2"):
        difference(a, a[:2], range(4))
    with pytest.raises(ValueError, match="versions"):
        difference(a, mean_scores("m", 2, np.ones(4)), range(4))
    with pytest.raises(ValueError, match="4 items, but 5 patient ids"):
        difference(a, a, range(5))
    with pytest.raises(ValueError, match="finite"):
        mean_scores("m", 1, [0.0, np.nan])


# --- the verdict on one interval ---


@pytest.mark.parametrize(
    ("kind", "lo", "hi", "expected"),
    [
        ("superiority", 0.11, 0.2, HOLDS),
        ("superiority", 0.05, 0.2, INCONCLUSIVE),
        ("superiority", -0.2, 0.09, FAILS),
        ("superiority", 0.1, 0.1, INCONCLUSIVE),
        ("non-inferiority", -0.09, 0.0, HOLDS),
        ("non-inferiority", -0.2, 0.0, INCONCLUSIVE),
        ("non-inferiority", -0.3, -0.11, FAILS),
        ("equivalence", -0.09, 0.09, HOLDS),
        ("equivalence", 0.0, 0.0, HOLDS),
        ("equivalence", 0.05, 0.15, INCONCLUSIVE),
        ("equivalence", -0.3, 0.3, INCONCLUSIVE),
        ("equivalence", 0.11, 0.3, FAILS),
        ("equivalence", -0.3, -0.11, FAILS),
        ("difference", 0.11, 0.3, HOLDS),
        ("difference", -0.3, -0.11, HOLDS),
        ("difference", -0.09, 0.09, FAILS),
        ("difference", -0.3, 0.3, INCONCLUSIVE),
        ("difference", float("nan"), float("nan"), INCONCLUSIVE),
    ],
)
def test_verdict_of_an_interval(kind, lo, hi, expected):
    assert verdict(kind, lo, hi, margin=0.1) == expected
    assert verdict(kind, -hi, -lo, margin=0.1, direction="lower") == expected


@pytest.mark.parametrize("n_seeds", [1, 2])
@pytest.mark.parametrize("kind", iv.KINDS)
def test_fewer_than_three_seeds_are_inconclusive(kind, n_seeds):
    d = make(5.0, 0.0, 0.0 if n_seeds > 1 else np.nan, n_seeds)
    assert holm([Hypothesis(kind, (d,), margin=0.1)])[0].verdict == INCONCLUSIVE
    assert p_value(kind, d, 0.1) == 1.0


def test_hypotheses_that_make_no_sense_are_errors():
    for kind in ("equivalence", "non-inferiority"):
        with pytest.raises(ValueError, match="positive margin"):
            Hypothesis(kind, (make(),))
    with pytest.raises(ValueError, match="only an ordering"):
        Hypothesis("superiority", (make(), make()))
    with pytest.raises(ValueError, match="kind 'better'"):
        Hypothesis("better", (make(),))


# --- simulated nulls ---


def simulate(rng, truth, sd_items, sd_seeds, n_seeds, n) -> list[Difference]:
    """n repetitions: the items' error is shared by the seeds, each seed adds its own."""
    seeds = truth + sd_items * rng.normal(size=(n, 1)) + sd_seeds * rng.normal(size=(n, n_seeds))
    variances = seeds.var(axis=1, ddof=1)
    return [
        Difference(float(s.mean()), sd_items**2, float(v), tuple(s), 0.0, 0.0, 100, 100)
        for s, v in zip(seeds, variances, strict=True)
    ]


def count(decisions, *wanted) -> float:
    return float(np.mean([d.verdict in wanted for d in decisions]))


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize(("sd_items", "sd_seeds"), [(0.01, 0.0), (0.0, 0.02), (0.01, 0.01)])
@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("superiority", 0.05),
        ("non-inferiority", -0.05),
        ("equivalence", 0.05),
        ("equivalence", -0.05),
        ("difference", 0.05),
    ],
)
def test_false_decisive_verdicts_at_the_boundary(kind, truth, sd_items, sd_seeds, n_seeds):
    """On the boundary either decisive verdict is wrong: at most 5 %, plus three Monte Carlo standard errors."""
    rng = np.random.default_rng([n_seeds, iv.KINDS.index(kind)])
    decisions = [
        holm([Hypothesis(kind, (d,), margin=0.05)])[0] for d in simulate(rng, truth, sd_items, sd_seeds, n_seeds, 1000)
    ]
    assert count(decisions, HOLDS, FAILS) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_interval_reaches_its_nominal_coverage_where_seeds_dominate():
    """Exact t interval, so the test above is not passed by intervals that are merely too wide."""
    rng = np.random.default_rng(0)
    covered = [lo <= 0 <= hi for lo, hi in (d.interval() for d in simulate(rng, 0.0, 0.0, 1.0, 3, 4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.011)


def test_power():
    """An effect of ten standard errors is found with 3 seeds most of the time, with 5 nearly always."""
    rng = np.random.default_rng(0)
    shares = {}
    for n_seeds in (3, 5):
        found = simulate(rng, 0.1, 0.005, 0.01, n_seeds, 500)
        shares[n_seeds] = count([holm([Hypothesis("superiority", (d,))])[0] for d in found], HOLDS)
        assert count([holm([Hypothesis("equivalence", (d,), margin=0.03)])[0] for d in found], HOLDS) == 0
    assert shares[3] > 0.9 and shares[5] > 0.99
    none = simulate(rng, 0.0, 0.002, 0.002, 5, 500)
    assert count([holm([Hypothesis("equivalence", (d,), margin=0.03)])[0] for d in none], HOLDS) > 0.99
    assert count([holm([Hypothesis("difference", (d,), margin=0.03)])[0] for d in none], FAILS) > 0.99


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_null_through_the_whole_path(n_seeds):
    """Items, patients with several records, seeds with variance, bootstrap: no false claims above nominal."""
    rng = np.random.default_rng(n_seeds)
    patients = np.repeat(np.arange(60), 3)
    wrong = 0
    for _ in range(200):
        patient_effect = np.repeat(rng.normal(size=60), 3)
        runs = [patient_effect + rng.normal(size=180) + 0.1 * rng.normal() for _ in range(n_seeds)]
        d = difference([mean_scores("m", 1, x) for x in runs], None, patients, n_boot=200)
        wrong += holm([Hypothesis("superiority", (d,))])[0].verdict != INCONCLUSIVE
    assert wrong / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_holm_bounds_the_whole_family(n_seeds):
    """Eight claims, half of them true by far: a wrong decisive verdict anywhere in at most 5 % of families.

    Seed variance alone, where the interval is exact: any variance of the items makes it wider, and the test blunter.
    """
    rng = np.random.default_rng(n_seeds)
    nulls = [simulate(rng, 0.0, 0.0, 0.01, n_seeds, 600) for _ in range(4)]
    clear = [simulate(rng, 3.0, 0.0, 0.01, n_seeds, 600) for _ in range(4)]
    wrong, uncorrected = 0, 0
    for family in zip(*nulls, *clear, strict=True):
        decisions = holm([Hypothesis("superiority", (d,)) for d in family])
        wrong += any(d.verdict != INCONCLUSIVE for d in decisions[:4]) or any(d.verdict == FAILS for d in decisions[4:])
        uncorrected += any(verdict("superiority", *d.interval()) != INCONCLUSIVE for d in family[:4])
    assert wrong / 600 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert uncorrected / 600 > 0.12  # the correction is what keeps it there


# --- Holm ---


def test_holm_equals_its_definition_on_p_values():
    """The interval route gives what textbook Holm on the p-values gives, and stated confidences are its levels."""
    rng = np.random.default_rng(0)
    kinds = [k for k in iv.KINDS if k != "ordering"]
    for _ in range(200):
        hypotheses = [
            Hypothesis(kinds[rng.integers(4)], (make(rng.normal() * 0.3, 1e-3, 1e-3, 4),), 0.05) for _ in range(6)
        ]
        decisions = holm(hypotheses)
        p = np.array([d.p_value for d in decisions])
        rejected = np.zeros(6, bool)
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (6 - rank):
                break
            rejected[i] = True
        assert [d.verdict != INCONCLUSIVE for d in decisions] == rejected.tolist()
        for h, d in zip(hypotheses, decisions, strict=True):
            assert d.verdict == verdict(h.kind, *d.intervals[0], h.margin)
            assert d.intervals[0] == h.differences[0].interval(d.confidences[0])


def test_p_value_is_where_the_interval_touches_the_boundary():
    d = make(0.3, 1e-3, 4e-3, 5)
    lo, _ = d.interval(1 - p_value("superiority", d, 0.1))
    assert lo == pytest.approx(0.1)
    _, hi = d.interval(1 - p_value("equivalence", d, 0.4))
    assert hi == pytest.approx(0.4)


def test_claims_that_were_not_run_count_in_the_family():
    hypothesis = Hypothesis("superiority", (make(0.1, 1e-4, 1e-4, 3),))
    alone, declared = holm([hypothesis])[0], holm([hypothesis], family_size=10)[0]
    assert (alone.verdict, declared.verdict) == (HOLDS, INCONCLUSIVE)
    assert alone.confidences[0] == pytest.approx(0.95) and declared.confidences[0] == pytest.approx(0.995)


def test_ordering_needs_every_step():
    up, down, flat = make(1.0), make(-1.0), make(0.0)

    def ordering(*steps):
        return iv.decide(Hypothesis("ordering", steps)).verdict

    assert ordering(up, up) == HOLDS
    assert ordering(up, flat) == INCONCLUSIVE
    assert ordering(up, flat, down) == FAILS
    assert ordering(up, make(1.0, n_seeds=2)) == INCONCLUSIVE
    assert iv.decide(Hypothesis("ordering", (down, down), direction="lower")).verdict == HOLDS


def test_ordering_is_decisive_exactly_at_its_p_value():
    rng = np.random.default_rng(0)
    for _ in range(200):
        h = Hypothesis("ordering", tuple(make(m, 1e-3, 1e-3, 4) for m in rng.normal(0.1, 0.2, size=3)))
        p = iv.hypothesis_p_value(h)
        assert iv.decide(h, p * 1.001).verdict != INCONCLUSIVE or p == 1
        assert iv.decide(h, p * 0.999).verdict == INCONCLUSIVE


@pytest.mark.parametrize("others", [0.0, 3.0])
def test_false_decisive_orderings(others):
    """Five steps, the first on its boundary, the others there too or true by far: either verdict is wrong."""
    rng = np.random.default_rng(0)
    steps = [simulate(rng, truth, 0.0, 0.01, 3, 1000) for truth in (0.0, others, others, others, others)]
    decisions = [iv.decide(Hypothesis("ordering", s)) for s in zip(*steps, strict=True)]
    assert count(decisions, HOLDS, FAILS) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
