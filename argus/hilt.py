"""Low-to-high-resolution cross-attention (reference: arm `hilt`), the idea of v1 of the paper.

Not the authors' code: equation 3 as a third party reads it. Low-resolution tokens (LR) ask the high-resolution ones
(HR); only as many as LR are reach the LLM. Both come from one encoder; LR are those of the volume shrunk by the factors
of the other arms, so that M is the same.
"""

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import nn
from torch.nn import functional as F


def low_resolution(volume: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """The volume [B, 1, D, H, W] shrunk by factors along D, H, W (means of blocks)."""
    return F.avg_pool3d(volume, tuple(factors))


class HiltLayer(nn.Module):
    """Self-attention of each stream (without residual), LR asks HR, a feed-forward layer of each; weights shared.

    The residual of the cross-attention is the projected query, not LR itself, as in the source.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SABlock(width, heads, use_flash_attention=True)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def ask(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """out(q + softmax(q k^T / sqrt(d)) v), q of LR, k and v of HR."""
        q, k, v = self.qkv(low).chunk(3, dim=-1)[0], *self.qkv(high).chunk(3, dim=-1)[1:]
        heads = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.out(q + F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (self.attention(self.norm_attention(x)) for x in (low, high))
        low = self.ask(low, high)
        return tuple(x + self.feed(self.norm_feed(x)) for x in (low, high))


class Hilt(nn.Module):
    """Two layers of 12 heads (fewer where the width asks for it), LayerNorm, head. grid: of the LR tokens."""

    def __init__(self, width: int, grid: Sequence[int], head: nn.Module, depth: int = 2):
        super().__init__()
        self.n_tokens = math.prod(grid)
        self.layers = nn.ModuleList(HiltLayer(width, math.gcd(12, width)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = head

    def forward(self, tokens: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """tokens: HR [B, N, C]; low: LR [B, M, C] -> [B, M, out]."""
        if low.shape[1] != self.n_tokens:
            raise ValueError(f"hilt: {low.shape[1]} low-resolution tokens, {self.n_tokens} expected: shrink the volume "
                             "by model.factors (argus.hilt.low_resolution)")  # fmt: skip
        for layer in self.layers:
            low, tokens = layer(low, tokens)
        return self.head(self.norm(low))
