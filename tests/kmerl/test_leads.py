"""Lead sets, fills and normalisation against brute force and against simulated ECGs without noise."""

from itertools import combinations

import numpy as np
import pytest
import torch

from kmerl.leads import (
    CLINICAL_SETS,
    FILLS,
    LIMB,
    derivable,
    fill,
    lead_mask,
    lead_means,
    random_sets,
)
from kmerl.model import KmerlModel, ModelConfig
from shared.ecg.record import LEADS
from shared.ecg.simulate import simulate_findings

ALL = np.ones(12, dtype=bool)


@pytest.fixture(scope="module")
def clean():
    """Three ECGs whose limb leads obey Einthoven exactly: [3, 12, 1000] in mV."""
    wanted = [["sinus_rhythm", "normal"], ["atrial_fibrillation"], ["sinus_rhythm", "lbbb"]]
    return simulate_findings(wanted, seed=1, fs_hz=100, noisy=False)[0]


@pytest.fixture
def signal():
    return np.random.default_rng(0).normal(0.3, 1.0, size=(4, 12, 50)).astype(np.float32)


def test_clinical_sets_are_the_reference_s():
    sizes = {name: len(leads) for name, leads in CLINICAL_SETS.items()}
    assert list(sizes.values()) == [1, 1, 2, 3, 4, 6, 8, 12]
    for leads in CLINICAL_SETS.values():
        assert [LEADS[i] for i in np.flatnonzero(lead_mask(leads))] == list(leads)
    assert lead_mask(CLINICAL_SETS["12 leads"]).all()
    assert not lead_mask(CLINICAL_SETS["limb"])[6:].any() and lead_mask(CLINICAL_SETS["limb"])[:6].all()


def test_lead_mask_reads_any_case_and_names_what_is_wrong():
    np.testing.assert_array_equal(np.flatnonzero(lead_mask(["V2", "avr", "AVL"])), [3, 4, 7])
    with pytest.raises(ValueError, match="V7 given; choose among I, II"):
        lead_mask(["I", "V7"])
    with pytest.raises(ValueError, match="none given"):
        lead_mask([])
    with pytest.raises(ValueError, match="twice"):
        lead_mask(["I", "i"])


def test_random_sets_are_different_seeded_and_of_the_right_size():
    sets = random_sets(10, seed=3)
    assert len(sets) == 110 and sets == random_sets(10, seed=3) != random_sets(10, seed=4)
    for count in range(1, 12):
        members = [leads for name, leads in sets.items() if name.startswith(f"{count}-random-")]
        assert len(members) == len(set(members)) == 10
        assert all(len(leads) == count and list(leads) == sorted(leads, key=LEADS.index) for leads in members)
    few = random_sets(2, seed=3, counts=[5])
    assert few == {name: sets[name] for name in few}
    with pytest.raises(ValueError, match="13 different sets of 1 leads"):
        random_sets(13, counts=[1])


@pytest.mark.parametrize("how", [*FILLS, *(f"einthoven+{name}" for name in FILLS)])
def test_fills_never_touch_available_leads_and_leave_nothing_of_the_others(signal, how):
    mean = np.arange(12.0)
    for names in (*CLINICAL_SETS.values(), *random_sets(1).values()):
        leads, before = lead_mask(names), signal.copy()
        filled = fill(signal, leads, how, mean)
        assert filled.dtype == np.float32 and filled.shape == signal.shape
        np.testing.assert_array_equal(signal, before)
        np.testing.assert_array_equal(filled[:, leads], signal[:, leads])
        changed = signal.copy()
        changed[:, ~leads] = 1e6  # whatever the hidden leads hold
        np.testing.assert_array_equal(fill(changed, leads, how, mean), filled)


def test_fills_against_brute_force(signal):
    leads = lead_mask(["II", "V2", "V5"])
    mean = lead_means(signal)
    for b, lead in ((b, lead) for b in range(4) for lead in range(12)):
        seen = [float(v) for row in (1, 7, 10) for v in signal[b, row]]
        assert mean[lead] == pytest.approx(np.mean([signal[i, lead].mean() for i in range(4)]), abs=1e-6)
        expected = {
            "zero": 0.0,
            "minimum": min(seen),
            "record_mean": sum(seen) / len(seen),
            "median": sorted(seen)[74] / 2 + sorted(seen)[75] / 2,
            "lead_mean": mean[lead],
        }
        assert expected.keys() == set(FILLS)
        if not leads[lead]:
            for how, value in expected.items():
                np.testing.assert_allclose(fill(signal, leads, how, mean)[b, lead], np.full(50, value), atol=1e-6)


def test_any_two_limb_leads_give_the_other_four_of_a_clean_ecg(clean):
    assert np.abs(clean[:, :6]).max() > 0.3  # there is something to reconstruct
    for pair in combinations(LIMB, 2):
        leads = lead_mask([*pair, "V4"])
        filled = fill(clean, leads, "einthoven+zero")
        np.testing.assert_allclose(filled[:, :6], clean[:, :6], atol=2e-5)
        assert (filled[:, ~leads & (np.arange(12) >= 6)] == 0).all()
        assert derivable(leads).sum() == 4
    for k in (3, 4, 5):
        leads = lead_mask(LIMB[-k:])
        np.testing.assert_allclose(fill(clean, leads, "einthoven+median")[:, :6], clean[:, :6], atol=2e-5)


def test_einthoven_and_goldberger_equations(signal):
    """The textbook equations, written out, from I and II of arbitrary signals."""
    i, ii = signal[:, 0], signal[:, 1]
    filled = fill(signal, lead_mask(["I", "II"]), "einthoven+zero")
    np.testing.assert_allclose(filled[:, 2], ii - i, atol=1e-6)
    np.testing.assert_allclose(filled[:, 3], -(i + ii) / 2, atol=1e-6)
    np.testing.assert_allclose(filled[:, 4], i - ii / 2, atol=1e-6)
    np.testing.assert_allclose(filled[:, 5], ii - i / 2, atol=1e-6)


def test_one_limb_lead_determines_nothing(signal):
    for names in (["II", "V1"], ["V1", "V2"], ["aVF"]):
        leads = lead_mask(names)
        assert not derivable(leads).any()
        np.testing.assert_array_equal(fill(signal, leads, "einthoven+median"), fill(signal, leads, "median"))


@pytest.mark.parametrize("how", ["available_minmax", "joint_minmax", "available_zscore", "none"])
def test_the_model_normalises_each_record_by_what_it_may_see(signal, how):
    """Against a loop over records; `joint_minmax`, as published, lets hidden leads set the range."""
    cfg = ModelConfig(normalise=how, width=8, depth=1, heads=1, mlp=8, query_width=8, query_layers=1, query_mlp=8)
    model, leads = KmerlModel.build(cfg, n_samples=50, d_text=4), lead_mask(["I", "II", "V2"])
    found = model.normalise(torch.from_numpy(signal), torch.from_numpy(leads)).numpy()
    for record, result in zip(signal, found, strict=True):
        seen = record if how == "joint_minmax" else record[leads]
        expected = {"none": record, "available_zscore": (record - seen.mean()) / (seen.std() + 1e-4)}.get(
            how, (record - seen.min()) / (seen.max() - seen.min())
        )
        np.testing.assert_allclose(result[leads], expected[leads], atol=1e-5)
    loud = signal.copy()
    loud[:, 10] *= 20  # V5 is hidden
    again = model.normalise(torch.from_numpy(loud), torch.from_numpy(leads)).numpy()
    assert np.array_equal(again[:, leads], found[:, leads]) == (how != "joint_minmax")


def test_bad_arguments_are_named(signal):
    leads = lead_mask(["I"])
    with pytest.raises(ValueError, match="fill 'mean': use one of zero"):
        fill(signal, leads, "mean")
    with pytest.raises(ValueError, match="fill 'median\\+zero'"):
        fill(signal, leads, "median+zero")
    with pytest.raises(ValueError, match="training_mean"):
        fill(signal, leads, "lead_mean")
    with pytest.raises(ValueError, match=r"\[B, 12, T\]"):
        fill(signal[0], leads, "zero")
    with pytest.raises(ValueError, match=r"bool \[12\]"):
        fill(signal, leads.astype(int), "zero")
    with pytest.raises(ValueError, match="at least one"):
        fill(signal, ~ALL, "zero")
