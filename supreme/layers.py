"""Transformer parts that the encoder, the fusion network and baselines share (reference: M3, M4)."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of x over memory (self-attention without one), all projections with bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be divided into {heads} heads: change the one or the other")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, n, width / heads]

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        """x [B or 1, Q, width], memory [B, n, width] -> [B, Q, width]."""
        k, v = (self._split(part) for part in self.kv(x if memory is None else memory).chunk(2, dim=-1))
        q = self._split(self.q(x)).expand(len(k), -1, -1, -1)
        if q.device.type == "cpu":  # the backward of its fused bf16 kernel takes 5 to 10 times as long as float32
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.to(v.dtype).transpose(1, 2).flatten(2))

    def weights(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The attention weights [B, Q, n] behind `forward`, averaged over heads; rows sum to 1."""
        q, k = self._split(self.q(x)), self._split(self.kv(memory).chunk(2, dim=-1)[0])
        return (q @ k.mT / k.shape[-1] ** 0.5).float().softmax(-1).mean(1)


class Block(nn.Module):
    """Pre-norm transformer layer: self-attention, then an MLP with GELU; dropout on what each adds."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, n, width] -> [B, n, width]."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class LogitLinear(nn.Linear):
    """A linear layer in float32 whatever surrounds it: logits of 8 bits would tie, and ties cost ranks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())
