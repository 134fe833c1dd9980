"""ECG augmentations for the self-supervised baselines (reference: Published numbers, eSSL).

Every function takes ecg [B, 12, T] in mV and returns a new tensor of that shape. They come before the normalisation,
where 0 is the isoelectric line. Chance differs per record and comes from torch's generator of ecg's device, or from
`generator`; a resumed run, whose generators are restored, draws the same.
"""

import torch
from torch.nn import functional as F


def crop_resize(ecg: torch.Tensor, low: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A random window of a share in [low, 1] of the record, stretched to T samples (random resized crop)."""
    share = low + (1 - low) * _rand(ecg, len(ecg), 1, generator=generator)
    start = (1 - share) * _rand(ecg, len(ecg), 1, generator=generator)
    n = ecg.shape[-1]
    return resample(ecg, (start + share * torch.linspace(0, 1, n, device=ecg.device)) * (n - 1))


def time_out(ecg: torch.Tensor, high: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A random window of a share in [0, high] of the record is 0 mV in all leads."""
    n = ecg.shape[-1]
    share = high * _rand(ecg, len(ecg), 1, generator=generator)
    start = (1 - share) * _rand(ecg, len(ecg), 1, generator=generator)
    at = torch.arange(n, device=ecg.device) / n
    return ecg.masked_fill(((at >= start) & (at < start + share))[:, None], 0)


def noise(ecg: torch.Tensor, sd: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """White noise of `sd` standard deviations of the record (jitter)."""
    return ecg + sd * _sd(ecg) * _randn(ecg, *ecg.shape, generator=generator)


def wander(ecg: torch.Tensor, sd: float, cycles: float = 4.0, generator: torch.Generator | None = None) -> torch.Tensor:
    """A slow sine of 1 to `cycles` periods per record on each lead, of `sd` standard deviations of the record at most.

    Baseline wander: 4 periods in 10 s are 0.4 Hz, breathing and electrodes.
    """
    period, phase, size = _rand(ecg, 3, len(ecg), 12, 1, generator=generator)
    at = torch.linspace(0, 1, ecg.shape[-1], device=ecg.device)
    return ecg + sd * _sd(ecg) * size * torch.sin(2 * torch.pi * ((1 + (cycles - 1) * period) * at + phase))


def scale(ecg: torch.Tensor, sd: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Each lead times its own factor from N(1, sd)."""
    return ecg * (1 + sd * _randn(ecg, len(ecg), 12, 1, generator=generator))


def permute(ecg: torch.Tensor, max_segments: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """The record cut at random places into 1 to max_segments pieces, put together in random order, all leads alike."""
    b, _, n = ecg.shape
    cuts = 1 + (_rand(ecg, b, max_segments - 1, generator=generator) * (n - 1)).long()
    pieces = torch.randint(1, max_segments + 1, (b, 1), generator=generator, device=ecg.device)
    cuts = cuts.masked_fill(torch.arange(max_segments - 1, device=ecg.device) >= pieces - 1, n)
    at = torch.arange(n, device=ecg.device)
    piece = torch.searchsorted(cuts.sort(-1).values, at.expand(b, -1).contiguous(), right=True)
    rank = _rand(ecg, b, max_segments, generator=generator).argsort(-1)
    order = (rank.gather(1, piece) * n + at).argsort(-1)
    return ecg.gather(2, order[:, None].expand_as(ecg))


def denoise(ecg: torch.Tensor, short: int, long: int) -> torch.Tensor:
    """Band-pass by two moving means over time: one of `short` samples, less one of `long` samples; both odd."""
    return smooth(ecg, short) - smooth(ecg, long)


def smooth(ecg: torch.Tensor, width: int) -> torch.Tensor:
    """Moving mean over `width` samples (odd); at the ends over those that exist."""
    return F.avg_pool1d(ecg, width, stride=1, padding=width // 2, count_include_pad=False)


def resample(ecg: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The signal at positions [B, T'] in samples, linear between samples, the end values outside -> [B, 12, T']."""
    position = position.clamp(0, ecg.shape[-1] - 1)
    left = position.floor().long().clamp(max=max(0, ecg.shape[-1] - 2))
    weight = (position - left)[:, None]
    left = left[:, None].expand(-1, ecg.shape[1], -1)
    right = (left + 1).clamp(max=ecg.shape[-1] - 1)
    return torch.lerp(ecg.gather(2, left), ecg.gather(2, right), weight)


def _sd(ecg: torch.Tensor) -> torch.Tensor:
    return ecg.std((1, 2), keepdim=True)


def _rand(ecg: torch.Tensor, *shape: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, device=ecg.device)


def _randn(ecg: torch.Tensor, *shape: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, device=ecg.device)
