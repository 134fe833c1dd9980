"""Augmentations: shapes, what they leave alone, their ranges, their seeds."""

import pytest
import torch

from supreme import augment

B, T = 6, 400


@pytest.fixture
def ecg():
    return torch.randn(B, 12, T, generator=torch.Generator().manual_seed(0)) + 0.5


DRAWN = {
    "crop_resize": lambda x, g: augment.crop_resize(x, 0.5, g),
    "time_out": lambda x, g: augment.time_out(x, 0.5, g),
    "noise": lambda x, g: augment.noise(x, 0.3, g),
    "wander": lambda x, g: augment.wander(x, 0.3, generator=g),
    "scale": lambda x, g: augment.scale(x, 0.5, g),
    "permute": lambda x, g: augment.permute(x, 8, g),
}


def drawn(name, ecg, seed=1):
    return DRAWN[name](ecg, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", DRAWN)
def test_shape_seed_and_the_input_stays(name, ecg):
    before = ecg.clone()
    first, again, other = drawn(name, ecg), drawn(name, ecg), drawn(name, ecg, seed=2)
    assert first.shape == ecg.shape and first.dtype == ecg.dtype and first.isfinite().all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(ecg, before)
    torch.manual_seed(7)  # without a generator, torch's own
    a = DRAWN[name](ecg, None)
    torch.manual_seed(7)
    assert torch.equal(a, DRAWN[name](ecg, None))


@pytest.mark.parametrize("name", ["crop_resize", "time_out", "noise", "wander", "scale", "permute"])
def test_records_are_drawn_one_by_one(name, ecg):
    same = ecg[:1].expand(B, -1, -1)
    out = drawn(name, same)
    assert any(not torch.equal(out[0], other) for other in out[1:])


def test_crop_of_a_ramp_is_a_slower_ramp():
    ramp = torch.linspace(0, 1, T).expand(200, 12, T)
    out = augment.crop_resize(ramp, 0.5, torch.Generator().manual_seed(0))
    step = out.diff(dim=-1)
    assert torch.allclose(step, step.mean(-1, keepdim=True).expand_as(step), atol=1e-5)
    share = out[:, 0, -1] - out[:, 0, 0]
    assert 0.5 <= share.min() < 0.6 and 0.9 < share.max() <= 1.0
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(out[:, 0], out[:, 11])  # all leads alike


def test_resample_at_whole_samples_and_between_and_outside(ecg):
    at = torch.tensor([[0.0, 3.0, 10.25, -5.0, T + 7.0]]).expand(B, -1)
    out = augment.resample(ecg, at)
    expected = [ecg[..., 0], ecg[..., 3], 0.75 * ecg[..., 10] + 0.25 * ecg[..., 11], ecg[..., 0], ecg[..., -1]]
    assert torch.allclose(out, torch.stack(expected, -1), atol=1e-6)


def test_time_out_zeroes_one_window_of_all_leads(ecg):
    out = augment.time_out(ecg.expand(B, 12, T), 0.5, torch.Generator().manual_seed(3))
    for before, after in zip(ecg, out, strict=True):
        hidden = (after == 0).all(0)
        assert torch.equal(after[:, ~hidden], before[:, ~hidden])
        assert hidden.float().mean() <= 0.5 + 1 / T
        assert (hidden.int().diff().abs().sum() <= 2).item()  # one window


def test_noise_is_measured_in_the_records_own_deviations(ecg):
    loud = ecg * torch.tensor([1.0, 10.0]).repeat(B // 2)[:, None, None]
    added = (drawn("noise", loud) - loud).std((1, 2)) / loud.std((1, 2))
    assert torch.allclose(added, torch.full((B,), 0.3), rtol=0.1)


def test_wander_is_slow_and_bounded(ecg):
    added = drawn("wander", ecg) - ecg
    assert (added.abs().amax((1, 2)) <= 0.3 * ecg.std((1, 2)) + 1e-5).all()
    spectrum = torch.fft.rfft(added).abs().square().sum((0, 1))
    assert spectrum[:8].sum() > 0.98 * spectrum.sum()


def test_scale_is_one_factor_per_lead(ecg):
    factor = drawn("scale", ecg) / ecg
    assert torch.allclose(factor, factor[..., :1].expand_as(factor), rtol=1e-3)
    assert len(factor[..., 0].unique()) == B * 12


def test_permute_only_moves_samples_and_keeps_pieces():
    ramp = torch.arange(T).float().expand(50, 12, T)
    out = augment.permute(ramp, 8, torch.Generator().manual_seed(0))
    assert torch.equal(out.sort(-1).values, ramp)
    breaks = (out[:, 0].diff(dim=-1) != 1).sum(-1)
    assert breaks.max() <= 7 and breaks.max() > 3 and breaks.min() == 0
    assert torch.equal(augment.permute(ramp, 1), ramp)


def test_denoise_removes_offset_and_noise(ecg):
    flat = torch.full((2, 12, T), 3.0)
    assert torch.allclose(augment.denoise(flat, 5, 81), torch.zeros_like(flat), atol=1e-5)
    beat = torch.zeros(2, 12, T)
    beat[..., 200] = 1
    assert torch.allclose(augment.smooth(beat, 5)[0, 0, 198:203], torch.full((5,), 0.2))
    noisy = beat + ecg[:2] - 0.5
    assert augment.denoise(noisy, 5, 81).std() < 0.6 * noisy.std()
