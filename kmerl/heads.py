"""What stands on the encoder: the projections of the contrast (reference: M5) and the cardiac query network (M6)."""

import torch
from torch import nn

from kmerl.layers import Attention

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def text_projection(d_text: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_text, width), nn.GELU(), nn.Linear(width, width))


def ecg_projection(d_in: int, width: int, norm: str) -> nn.Sequential:
    """norm: "batch" as in MERL; "layer" has no statistics over the batch."""
    if norm not in NORMS:
        raise ValueError(f"model.projection_norm: '{norm}' is none of {', '.join(NORMS)}")
    layers = nn.Linear(d_in, width), NORMS[norm](width), nn.ReLU(), nn.Linear(width, width), NORMS[norm](width)
    return nn.Sequential(*layers)


class QueryLayer(nn.Module):
    """Pre-norm decoder layer: queries look at each other (optional), at the ECG tokens, then an MLP with ReLU."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, self_attention: bool):
        super().__init__()
        self.self_norm = self.self_attention = None
        if self_attention:
            self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.cross_norm, self.cross_attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, memory, mask=None, seen: list | None = None) -> torch.Tensor:
        """x [B or 1, Q, width], memory [B, n, width], mask [B, n] -> [B, Q, width]; appends attention to `seen`."""
        if self.self_attention is not None:
            x = x + self.dropout(self.self_attention(self.self_norm(x)))
        if seen is not None:
            seen.append(self.cross_attention.weights(self.cross_norm(x), memory))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class CardiacQueryNetwork(nn.Module):
    """Names of entities or classes, as vectors, ask the ECG tokens: one logit per name (reference: M6).

    Without self-attention (default) the score of a name does not depend on which other names are asked, which zero-shot
    classification presupposes; KAD's decoder, which the paper is said to mirror, has it.
    """

    def __init__(
        self, d_text: int, d_memory: int, width: int, layers: int, heads: int, mlp: int, dropout: float,
        self_attention: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.query_linear, self.query_norm = nn.Linear(d_text, width), nn.LayerNorm(width)
        self.memory_linear, self.memory_norm = nn.Linear(d_memory, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(QueryLayer(width, heads, mlp, dropout, self_attention) for _ in range(layers))
        self.norm, self.dropout, self.classifier = nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, 1)

    def forward(self, queries, memory, mask=None, seen: list | None = None) -> torch.Tensor:
        """queries [Q, d_text], memory [B, n, d_memory], mask bool [B, n] or None -> logits [B, Q]."""
        # One row for all records until the first look at an ECG: the first layer's query side is computed once.
        x = self.query_norm(self.query_linear(queries))[None]
        memory = self.memory_norm(self.memory_linear(memory))
        for layer in self.layers:
            x = layer(x, memory, mask, seen)
        x = self.dropout(self.norm(x))
        with torch.autocast(x.device.type, enabled=False):  # logits of 8 bits would tie, and ties cost ranks
            return self.classifier(x.float()).squeeze(-1)

    def attention(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """[B, Q, n]: how much a query looks at each token, averaged over heads and layers; rows sum to 1."""
        seen: list[torch.Tensor] = []
        self(queries, memory, seen=seen)
        return torch.stack(seen).mean(0)
