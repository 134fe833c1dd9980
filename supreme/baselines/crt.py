"""CRT: Zhang, Yang, Geng, Hong, Self-Supervised Time Series Representation Learning via Cross Reconstruction
Transformer, IEEE TNNLS 2023 (arXiv 2205.09928). Patches of the signal, of its Fourier magnitude and of its phase pass
one transformer together; most are dropped, not masked, and a decoder reconstructs all of them.

As published (abstract, public code): half spectrum, magnitude and phase dropped at the same places, error over all
patches, a drop share that grows with training from 0.3 to 0.8, plus an instance discrimination that keeps records
apart, and a representation that is the mean over the three domains. Our reading, as all baselines share one encoder:
its blocks are the transformer, its patch embedding that of the signal, and the two spectral embeddings belong to the
objective; patches are cut per lead; the magnitude is compressed to log(1 + m), the phase divided by pi.
"""

import math

import torch
from torch import nn

from shared.losses import unit
from shared.runs.processes import gather
from supreme.baselines.common import SslModel, needs_lead_tokens
from supreme.baselines.st_mem import complete, patches
from supreme.encoder import keep_tokens
from supreme.layers import Block


class Crt(SslModel):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("progress", torch.zeros(()))  # in checkpoints, so that a resumed run drops as much

    def parts(self):
        needs_lead_tokens(self.cfg, "crt")
        ssl, patch, m = self.ssl, self.cfg.patch, self.encoder.n_segments(self.config.n_samples)
        sizes = ssl.decoder_width, ssl.decoder_depth, ssl.decoder_heads
        return {
            "spectrum": SpectrumEmbedding(self.width, patch, m // 2),
            "decoder": CrossDecoder(self.width, *sizes, m, patch),
            "before": nn.Linear(self.width, self.width),
            "after": nn.Linear(self.width, self.width),
        }

    def terms(self, ecg, patient):
        x = self.normalise(ecg)
        b, m, ssl = len(x), self.encoder.n_segments(x.shape[-1]), self.ssl
        drop = min(max(float(self.progress), ssl.crt_drop_low), ssl.crt_drop_high)
        at_time = keep_tokens(b, 12 * m, drop, x.device)
        at_frequency = keep_tokens(b, 12 * (m // 2), drop, x.device)
        domains = [patches(x, m), *spectrum(x, m)]
        tokens = self.embed(x, domains[1:], at_time, at_frequency)
        encoded = self.transform(tokens)
        n = at_time.shape[1], at_frequency.shape[1], at_frequency.shape[1]
        index = at_time, at_frequency, at_frequency
        predicted = self.objective["decoder"](encoded.split(n, 1), index, m)
        error = sum((p.float() - t).square().sum() for p, t in zip(predicted, domains, strict=True))
        before = self.objective["before"](tokens.mean(1))
        apart = instance_discrimination(before, self.objective["after"](encoded.mean(1)))
        return {
            "reconstruction": error / sum(t.numel() for t in domains),
            "instance": ssl.crt_instance * apart,
        }

    def embed(self, x, spectra, at_time=None, at_frequency=None) -> torch.Tensor:
        """Tokens of all three domains at the numbers given [B, n], all where None: [B, n_t + 2 n_f, width]."""
        return torch.cat([self.encoder.embed(x, at_time), *self.objective["spectrum"](spectra, at_frequency)], dim=1)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """The encoder without its patch embedding."""
        tokens = self.encoder.dropout(tokens)
        for block in self.encoder.blocks:
            tokens = block(tokens)
        return self.encoder.norm(tokens)

    def features(self, ecg):
        """Mean over the tokens of all three domains [B, width]."""
        x = self.normalise(ecg.float())
        return self.transform(self.embed(x, spectrum(x, self.encoder.n_segments(x.shape[-1])))).mean(1)

    def after_step(self, progress):
        self.progress.fill_(progress)


class SpectrumEmbedding(nn.Module):
    """Patches of magnitude and phase [B, 12 F, patch] -> tokens [B, n, width] of each; own linear layers and positions
    per domain, one vector per lead."""

    def __init__(self, width: int, patch: int, max_segments: int):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(patch, width) for _ in range(2))
        self.position = nn.Parameter(0.02 * torch.randn(2, max_segments, width))
        self.lead = nn.Parameter(0.02 * torch.randn(12, width))

    def forward(self, spectra: list[torch.Tensor], index: torch.Tensor | None) -> list[torch.Tensor]:
        f = spectra[0].shape[1] // 12
        if index is None:
            index = torch.arange(12 * f, device=spectra[0].device).expand(len(spectra[0]), -1)
        rows = torch.arange(len(index), device=index.device)[:, None]
        place = self.lead[index // f]
        return [
            linear(patch[rows, index].to(linear.weight.dtype)) + place + position[index % f]
            for linear, patch, position in zip(self.linear, spectra, self.position, strict=True)
        ]


class CrossDecoder(nn.Module):
    """Encoded tokens of the three domains with their numbers -> patches of each, [B, 12 M, p], [B, 12 F, p] twice."""

    def __init__(self, d_in: int, width: int, depth: int, heads: int, max_segments: int, patch: int):
        super().__init__()
        self.linear = nn.Linear(d_in, width)
        self.dropped = nn.Parameter(0.02 * torch.randn(3, width))
        self.position = nn.Parameter(0.02 * torch.randn(3, max_segments, width))
        self.lead = nn.Parameter(0.02 * torch.randn(12, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.ModuleList(nn.Linear(width, patch) for _ in range(3))

    def forward(self, tokens, index, m: int) -> list[torch.Tensor]:
        segments = m, m // 2, m // 2
        parts = []
        for domain, (seen, at, n) in enumerate(zip(tokens, index, segments, strict=True)):
            place = (self.lead + self.position[domain, :n]).flatten(0, 1)  # [12 n, width]
            parts.append(complete(self.linear(seen), at, self.dropped[domain], 12 * n) + place)
        x = torch.cat(parts, dim=1)
        for block in self.blocks:
            x = block(x)
        parts = self.norm(x).split([12 * n for n in segments], 1)
        return [out(part) for out, part in zip(self.out, parts, strict=True)]


def spectrum(x: torch.Tensor, m: int) -> list[torch.Tensor]:
    """Patches of log(1 + magnitude) and phase / pi of the lower half of the spectrum, [B, 12 (m // 2), p] each."""
    with torch.autocast(x.device.type, enabled=False):
        bins = torch.fft.rfft(x.float(), norm="ortho")[..., : m // 2 * (x.shape[-1] // m)]
        return [patches(part, m // 2) for part in (bins.abs().log1p(), bins.angle() / math.pi)]


def instance_discrimination(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """log of the summed exp(cosine) of a record before the transformer and another one after it, all processes'."""
    with torch.autocast(before.device.type, enabled=False):
        cosine = gather(unit(before)) @ gather(unit(after)).T
        return cosine[~torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)].logsumexp(0)
