"""Perturbation: the published burst leaves the rest bit-equal, the SNR is the one asked for, batches do not matter."""

import numpy as np
import pytest

from meit.noise import at_snr, published

IDS = [f"rec{i}" for i in range(200)]


@pytest.fixture(scope="module")
def unit_ecg():
    return np.random.default_rng(0).uniform(0, 1, (200, 12, 1000)).astype(np.float32)


@pytest.fixture(scope="module")
def ecg_mv():
    t = np.arange(1000) / 100
    gain = np.linspace(0.1, 2, 12)[:, None]
    offset = np.linspace(-3, 3, 12)[:, None]  # large: only the power about the mean may count
    waves = np.stack([np.sin(2 * np.pi * f * t) for f in np.linspace(1, 3, 8)])
    return (gain * waves[:, None] + offset).astype(np.float32)  # [8, 12, 1000]


def test_published_adds_one_trace_to_all_leads_and_leaves_the_rest_bit_equal(unit_ecg):
    before = unit_ecg.copy()
    noisy = published(unit_ecg, IDS, p=0.2, seed=1)
    assert np.array_equal(unit_ecg, before) and noisy.dtype == np.float32
    lengths, starts, sigmas = [], [], []
    for clean, row in zip(unit_ecg, noisy, strict=True):
        touched = np.flatnonzero((row != clean).any(0))
        if len(touched) == 0:
            lengths.append(0)
            continue
        window = slice(touched[0], touched[-1] + 1)
        trace = row[:, window] - clean[:, window]
        np.testing.assert_allclose(trace, trace[:1].repeat(12, 0), atol=3e-7)  # float32 rounding of the sum
        assert row[:, : window.start].tobytes() == clean[:, : window.start].tobytes()
        assert row[:, window.stop :].tobytes() == clean[:, window.stop :].tobytes()
        lengths.append(window.stop - window.start)
        starts.append(window.start / (1000 - lengths[-1]))
        sigmas.append(trace[0].std())
    assert max(lengths) <= 200 and abs(np.mean(lengths) - 100) < 15  # U(0, 0.2) * 1000: mean 100, s.e. 4
    assert max(sigmas) < 0.16 and abs(np.mean(sigmas) - 0.05) < 0.01  # U(0, 0.1): mean 0.05, s.e. 0.002
    assert abs(np.mean(starts) - 0.5) < 0.1  # s.e. 0.02


def test_published_at_zero_changes_nothing_and_a_larger_p_means_a_longer_window(unit_ecg):
    assert published(unit_ecg, IDS, p=0.0).tobytes() == unit_ecg.tobytes()
    touched = [(published(unit_ecg, IDS, p, seed=3) != unit_ecg).any(1).sum(-1) for p in (0.05, 0.1, 0.2)]
    assert (touched[0] <= touched[1]).all() and (touched[1] <= touched[2]).all()
    assert touched[2].sum() > 1.8 * touched[1].sum() > 3 * touched[0].sum()


@pytest.mark.parametrize("snr_db", [30.0, 10.0, 0.0, -10.0])
def test_the_realised_snr_is_the_one_asked_for_in_every_lead(ecg_mv, snr_db):
    noise = at_snr(ecg_mv, IDS[:8], snr_db, seed=2).astype(np.float64) - ecg_mv
    realised = 10 * np.log10(ecg_mv.var(-1, dtype=np.float64) / (noise**2).mean(-1))
    np.testing.assert_allclose(realised, snr_db, atol=0.01)


def test_snr_noise_is_independent_between_leads_white_and_gaussian(ecg_mv):
    noise = at_snr(ecg_mv, IDS[:8], 0.0, seed=2) - ecg_mv
    for record in noise:
        between = np.corrcoef(record)[np.triu_indices(12, 1)]
        assert np.abs(between).max() < 0.15 and abs(between.mean()) < 0.02  # 1000 samples: s.d. 0.03
    z = noise / noise.std(-1, keepdims=True)
    assert abs((z**4).mean() - 3) < 0.1  # kurtosis of a Gaussian; s.e. 0.016
    assert abs((z[..., 1:] * z[..., :-1]).mean()) < 0.02


def test_a_flat_lead_stays_as_it_is(ecg_mv):
    flat = ecg_mv.copy()
    flat[:, 4] = 0.5
    noisy = at_snr(flat, IDS[:8], 10.0)
    assert np.array_equal(noisy[:, 4], flat[:, 4]) and np.isfinite(noisy).all()


@pytest.mark.parametrize("perturb, level", [(published, 0.2), (at_snr, 10.0)])
def test_noise_belongs_to_the_record_and_the_seed(unit_ecg, perturb, level):
    together = perturb(unit_ecg[:8], IDS[:8], level, seed=5)
    order = [6, 2, 7]
    apart = perturb(unit_ecg[order], [IDS[i] for i in order], level, seed=5)
    assert np.array_equal(apart, together[order])
    assert not np.array_equal(perturb(unit_ecg[:8], IDS[:8], level, seed=6), together)
    same_signal = perturb(unit_ecg[[0, 0]], IDS[:2], level, seed=5)
    assert not np.array_equal(same_signal[0], same_signal[1])


def test_bad_arguments_are_named(unit_ecg):
    with pytest.raises(ValueError, match="one record id each"):
        published(unit_ecg, IDS[:3], 0.1)
    with pytest.raises(ValueError, match="fraction"):
        published(unit_ecg[:3], IDS[:3], 15)
    with pytest.raises(ValueError, match=r"\[B, leads, T\]"):
        at_snr(unit_ecg[0], IDS[:12], 10.0)
