"""ST-MEM: Na, Park, Tae, Joo, Guiding Masked Representation Learning to Capture Spatio-Temporal Relationship of
Electrocardiogram, ICLR 2024, section 3. A masked autoencoder over patches per lead: the encoder sees those that are not
hidden, a light decoder, the same for all leads, completes each lead on its own.

As published: 75 % hidden at random over leads and time, targets standardised per patch, error on hidden patches only.
Left out, because all baselines share one encoder: the separation tokens at both ends of a lead. As in the paper the
whole record is normalised before patches are hidden, so its range or deviation may be known.
"""

import torch
from torch import nn

from supreme.baselines.common import SslModel, needs_lead_tokens
from supreme.encoder import keep_tokens
from supreme.layers import Block


class StMem(SslModel):
    def parts(self):
        needs_lead_tokens(self.cfg, "st_mem")
        ssl, patch = self.ssl, self.cfg.patch
        m = self.encoder.n_segments(self.config.n_samples)
        return {"decoder": LeadDecoder(self.width, ssl.decoder_width, ssl.decoder_depth, ssl.decoder_heads, m, patch)}

    def terms(self, ecg, patient):
        x = self.normalise(ecg)
        m = self.encoder.n_segments(x.shape[-1])
        index = keep_tokens(len(x), 12 * m, self.ssl.mask_ratio, x.device)
        predicted = self.objective["decoder"](self.encoder(x, index), index, m)
        return {"reconstruction": masked_mse(predicted, standard_patches(x, m), index)}


class LeadDecoder(nn.Module):
    """Visible tokens [B, n, d_in] with their numbers [B, n] -> patches [B, 12 M, patch]; each lead by itself."""

    def __init__(self, d_in: int, width: int, depth: int, heads: int, max_segments: int, patch: int):
        super().__init__()
        self.linear = nn.Linear(d_in, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(max_segments, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, patch)

    def forward(self, tokens: torch.Tensor, index: torch.Tensor, m: int) -> torch.Tensor:
        x = complete(self.linear(tokens), index, self.hidden, 12 * m).unflatten(1, (12, m)) + self.position[:m]
        x = x.flatten(0, 1)  # [12 B, M, width]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x)).unflatten(0, (-1, 12)).flatten(1, 2)


def complete(tokens: torch.Tensor, index: torch.Tensor, hidden: torch.Tensor, n: int) -> torch.Tensor:
    """Tokens [B, v, d] put at their numbers [B, v] among n, `hidden` [d] everywhere else -> [B, n, d]."""
    full = hidden.to(tokens.dtype).expand(len(tokens), n, -1)
    return full.scatter(1, index[..., None].expand_as(tokens), tokens)


def patches(x: torch.Tensor, m: int) -> torch.Tensor:
    """x [B, 12, m * p] -> [B, 12 m, p], lead by lead."""
    return x.unflatten(-1, (m, -1)).flatten(1, 2)


def standard_patches(x: torch.Tensor, m: int) -> torch.Tensor:
    """Patches of mean 0 and variance 1 each."""
    p = patches(x, m)
    return (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True) + 1e-6).sqrt()


def masked_mse(predicted: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Mean squared error over patches [B, n, p] whose numbers are not in visible [B, v]."""
    error = (predicted.float() - target).square().mean(-1)
    hidden = torch.ones_like(error).scatter(1, visible, 0)
    return (error * hidden).sum() / hidden.sum()
