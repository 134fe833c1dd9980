"""Cardiac Fusion Network (reference: M4): text queries look at the ECG tokens; one logit per query."""

import torch
from torch import nn
from torch.nn import functional as F

from supreme.layers import Attention, LogitLinear


class FusionBlock(nn.Module):
    """Post-norm: h = LN(h + drop(MHA(h, ECG, ECG))), then h = LN(h + drop(FFN(h))); FFN with ReLU.

    self_attention (a control): queries look at each other first.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, self_attention: bool):
        super().__init__()
        self.self_attention = self.self_norm = None
        if self_attention:
            self.self_attention, self.self_norm = Attention(width, heads), nn.LayerNorm(width)
        self.cross_attention, self.cross_norm = Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.ReLU(), nn.Linear(mlp, width))
        self.mlp_norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, h: torch.Tensor, memory: torch.Tensor, seen: list | None = None) -> torch.Tensor:
        """h [B or 1, Q, width], memory [B, n, width] -> [B, Q, width]; appends attention [B, Q, n] to `seen`."""
        if self.self_attention is not None:
            h = self.self_norm(h + self.dropout(self.self_attention(h)))
        if seen is not None:
            seen.append(self.cross_attention.weights(h, memory))
        h = self.cross_norm(h + self.dropout(self.cross_attention(h, memory)))
        return self.mlp_norm(h + self.dropout(self.mlp(h)))


class CardiacFusionNetwork(nn.Module):
    """Text vectors ask the ECG tokens, N blocks deep; one linear layer, shared by all queries, gives each its logit.

    A query never sees the others, so its score does not depend on what else is asked, which zero-shot classification
    presupposes. Two controls give that up: positions (sinusoids added to the queries in the order of their list) and
    self_attention. Text vectors are first brought to a mean square of 1 (default): text encoders differ in the length
    of what they return, and a short vector starts drowned in what attention adds to it.
    """

    def __init__(
        self,
        d_query: int,
        d_memory: int,
        width: int,
        layers: int,
        heads: int,
        mlp: int,
        dropout: float,
        positions: bool = False,
        self_attention: bool = False,
    ):
        super().__init__()
        self.positions = positions
        self.query_linear, self.memory_linear = nn.Linear(d_query, width), nn.Linear(d_memory, width)
        self.blocks = nn.ModuleList(FusionBlock(width, heads, mlp, dropout, self_attention) for _ in range(layers))
        self.dropout, self.head = nn.Dropout(dropout), LogitLinear(width, 1)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, seen: list | None = None) -> torch.Tensor:
        """queries [Q, d_query], tokens [B, n, d_memory] -> logits float32 [B, Q]."""
        scaled = F.rms_norm(queries.float(), queries.shape[-1:])
        h = self.query_linear(scaled.to(self.query_linear.weight.dtype))
        if self.positions:
            h = h + sinusoids(*h.shape, h.device).to(h.dtype)
        h, memory = h[None], self.memory_linear(tokens)  # one row for all records until the first look at an ECG
        for block in self.blocks:
            h = block(h, memory, seen)
        return self.head(self.dropout(h)).squeeze(-1)

    def attention(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, Q, n]: how much a query looks at each token, averaged over heads and blocks; rows sum to 1."""
        seen: list[torch.Tensor] = []
        self(queries, tokens, seen)
        return torch.stack(seen).mean(0)


def sinusoids(n: int, width: int, device=None) -> torch.Tensor:
    """Positional encoding [n, width] of Vaswani et al., 2017, section 3.5: sines, then cosines."""
    half = (width + 1) // 2
    frequency = 10_000 ** (-torch.arange(half, device=device) / half)
    angle = torch.arange(n, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
