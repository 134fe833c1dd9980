"""Compression arms (reference: Compression arms): fewer tokens for the LLM, each arm with its head.

Tokens [B, N, C] lie on a grid (gD, gH, gW), W fastest; every arm gives [B, M, out]. S = sD * sH * sW.

| arm | M | operation, then the head |
|---|---|---|
| none | N | a linear layer per token |
| avgpool | N / S | mean of sD x sH x sW blocks; with 2 x 2 x 2 what M3D published |
| avgpool_matched | N / S | the same, head widened to as many parameters as pixel shuffle has |
| avgpool_seq | N / S | mean of S consecutive tokens |
| attn_pool | queries | learned queries, one attention layer |
| perceiver | queries | learned latents, six layers of attention and feed-forward |
| pixel_shuffle_3d | N / S | a block's tokens side by side |
| concat_1d | N / S | S consecutive tokens side by side |
| hilt | N / S | low-resolution tokens ask high-resolution ones (hilt.py) |
| radfm_perceiver | 32 | as published by RadFM: perceiver with a linear head |
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from argus.hilt import Hilt

Grid = Sequence[int]


def small_grid(grid: Grid, factors: Grid) -> tuple[int, int, int]:
    """The grid after compression. ValueError: factors do not divide it."""
    if len(factors) != 3 or any(f < 1 or g % f for g, f in zip(grid, factors, strict=True)):
        raise ValueError(f"model.factors {list(factors)} do not divide the token grid {list(grid)} (shape / patch)")
    return tuple(g // f for g, f in zip(grid, factors, strict=True))


def pixel_shuffle_3d(tokens: torch.Tensor, grid: Grid, factors: Grid) -> torch.Tensor:
    """Space to depth: [B, N, C] -> [B, N / S, S * C]; in a group W runs faster than H and D, and C fastest."""
    (d, h, w), (sd, sh, sw) = small_grid(grid, factors), factors
    x = tokens.unflatten(1, (d, sd, h, sh, w, sw)).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.flatten(4).flatten(1, 3)


def mlp2(width: int, out: int, hidden: int | None = None) -> nn.Sequential:
    """The head that the arms share (M3D's projector)."""
    hidden = hidden or out
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def matched_hidden(width: int, out: int, wide: int) -> int:
    """Hidden width with which mlp2(width, out, hidden) has about as many parameters as mlp2(wide, out)."""
    parameters = (wide + 1) * out + (out + 1) * out
    return round((parameters - out) / (width + 1 + out))


class Grouped(nn.Module):
    """An arm without attention: a fixed regrouping of the tokens, then the head.

    how: none | avgpool | avgpool_seq | pixel_shuffle_3d | concat_1d.
    """

    def __init__(self, how: str, grid: Grid, factors: Grid, head: nn.Module):
        super().__init__()
        self.how, self.grid, self.factors, self.head = how, tuple(grid), tuple(factors), head
        self.n_tokens = math.prod(grid) if how == "none" else math.prod(small_grid(grid, factors))

    def regroup(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, C] -> [B, M, C or S * C]."""
        if tokens.shape[1] != math.prod(self.grid):
            grid = f"the grid {list(self.grid)}"
            raise ValueError(f"{tokens.shape[1]} tokens do not fill {grid}: data.shape / model.patch must give it")
        if self.how == "none":
            return tokens
        if self.how == "avgpool":
            pooled = F.avg_pool3d(tokens.mT.unflatten(2, self.grid), self.factors)
            return pooled.flatten(2).mT
        if self.how == "pixel_shuffle_3d":
            return pixel_shuffle_3d(tokens, self.grid, self.factors)
        groups = tokens.unflatten(1, (-1, math.prod(self.factors)))  # [B, M, S, C]
        return groups.mean(2) if self.how == "avgpool_seq" else groups.flatten(2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.regroup(tokens))


class CrossAttention(nn.Module):
    """Bias-free attention of queries to tokens. inner: width of all heads together; null = width."""

    def __init__(self, width: int, heads: int, inner: int | None = None):
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, M, C], [B, N, C] -> [B, M, C]."""
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in
                   (self.q(queries), *self.kv(tokens).chunk(2, dim=-1)))  # fmt: skip
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Learned queries, one attention layer without residual or feed-forward (CT-CHAT)."""

    def __init__(self, width: int, queries: int, head: nn.Module):
        super().__init__()
        self.n_tokens = queries
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.norm_queries, self.norm_tokens, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = CrossAttention(width, heads=math.gcd(8, width))
        self.head = head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        queries = self.norm_queries(self.queries).expand(len(tokens), -1, -1)
        return self.head(self.norm(self.attention(queries, self.norm_tokens(tokens))))


class PerceiverLayer(nn.Module):
    """Latents ask tokens and latents, then a feed-forward layer, each with residual; heads of 64 where C allows."""

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.norm_latents, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, inner=heads * max(1, min(64, width // heads)))
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        asking = self.norm_latents(latents)
        latents = latents + self.attention(asking, torch.cat([self.norm_tokens(tokens), asking], dim=1))
        return latents + self.feed(latents)


class Perceiver(nn.Module):
    """Perceiver resampler (RadFM): learned latents through `depth` layers."""

    def __init__(self, width: int, queries: int, head: nn.Module, depth: int = 6):
        super().__init__()
        self.n_tokens = queries
        self.latents = nn.Parameter(torch.randn(1, queries, width))
        self.layers = nn.ModuleList(PerceiverLayer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.head(self.norm(latents))


def _grouped(how: str):
    def build(width: int, grid: Grid, factors: Grid, queries: int, out: int) -> nn.Module:
        wide = width * math.prod(factors) if how in ("pixel_shuffle_3d", "concat_1d") else width
        return Grouped(how, grid, factors, mlp2(wide, out))

    return build


def _matched(width: int, grid: Grid, factors: Grid, queries: int, out: int) -> nn.Module:
    hidden = matched_hidden(width, out, width * math.prod(factors))
    return Grouped("avgpool", grid, factors, mlp2(width, out, hidden))


def _n_queries(queries: int, grid: Grid, factors: Grid) -> int:
    return queries or math.prod(small_grid(grid, factors))


BUILD = {
    "pixel_shuffle_3d": _grouped("pixel_shuffle_3d"),
    "avgpool": _grouped("avgpool"),
    "avgpool_matched": _matched,
    "avgpool_seq": _grouped("avgpool_seq"),
    "concat_1d": _grouped("concat_1d"),
    "none": lambda width, grid, factors, queries, out: Grouped("none", grid, factors, nn.Linear(width, out)),
    "attn_pool": lambda width, grid, factors, queries, out: AttentionPool(
        width, _n_queries(queries, grid, factors), mlp2(width, out)
    ),
    "perceiver": lambda width, grid, factors, queries, out: Perceiver(
        width, _n_queries(queries, grid, factors), mlp2(width, out)
    ),
    "hilt": lambda width, grid, factors, queries, out: Hilt(width, small_grid(grid, factors), mlp2(width, out)),
    "radfm_perceiver": lambda width, grid, factors, queries, out: Perceiver(width, 32, nn.Linear(width, out)),
}


def build_compressor(name: str, width: int, grid: Grid, factors: Grid, queries: int, out: int) -> nn.Module:
    """The arm `name` with its head; it has `.n_tokens` = M, and turns [B, N, width] into [B, M, out].

    grid, factors: D, H, W. queries: M of attn_pool and perceiver; 0 = as many as pixel shuffle would leave. hilt takes
    the tokens of the low-resolution volume as second argument. ValueError names the key that does not fit.
    """
    if name not in BUILD:
        raise ValueError(f"model.compressor: '{name}' is none of {', '.join(BUILD)}")
    if queries < 0:
        raise ValueError(f"model.queries: {queries}; give a positive number, or 0 for as many as pixel shuffle leaves")
    return BUILD[name](width, grid, factors, queries, out)
