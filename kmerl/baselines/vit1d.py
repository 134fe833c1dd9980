"""MERL's 1-D ViT: segments of all leads in one token (reference: M9, sizes in M3)."""

import torch
from torch import nn

from kmerl.layers import Block
from kmerl.masking import N_LEADS


class ViT1d(nn.Module):
    """Patch embedding over all 12 leads jointly, without bias, learned positions, pre-norm blocks.

    affine: of the last norm; False where no loss stands on the pooled vector.
    """

    def __init__(
        self, width: int, depth: int, heads: int, mlp: int, patch: int, max_segments: int, affine: bool = True
    ):
        super().__init__()
        self.embed = nn.Conv1d(N_LEADS, width, patch, patch, bias=False)
        self.position = nn.Parameter(torch.randn(1, max_segments, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        """ecg [B, 12, T] -> tokens [B, T // patch, width]."""
        x = self.embed(ecg).mT
        x = x + self.position[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens.mean(1))
