"""The lead-wise encoder (reference: M2, M3): tokens cut per lead, a ViT over those that are visible, their mean."""

import torch
from torch import nn

from kmerl.layers import Block
from kmerl.masking import N_LEADS, Visible


class Tokens(nn.Module):
    """Segments of p samples -> tokens. Only the visible ones pass the linear layer.

    Per lead (reference: M2): token[l, m] = W x[l, segment m] + lead_emb[l] + time_emb[m], W shared by all leads.
    joint (ablation "spatial positional embedding without lead-specific tokens"): token[m] = sum of W_l x[l, segment m]
    over the leads that are there + time_emb[m]; the rows of missing leads are zeros, so they add nothing.
    """

    def __init__(self, width: int, patch: int, max_segments: int, joint: bool, lead_embedding: bool):
        super().__init__()
        self.patch, self.max_segments, self.joint = patch, max_segments, joint
        self.linear = nn.Linear(N_LEADS * patch if joint else patch, width)
        self.time_emb = nn.Parameter(0.02 * torch.randn(max_segments, width))
        self.lead_emb = None
        if lead_embedding and not joint:
            self.lead_emb = nn.Parameter(0.02 * torch.randn(N_LEADS, width))

    def n_segments(self, n_samples: int) -> int:
        """M of a record; ValueError where it is no whole number of segments or more than there are time embeddings."""
        n, rest = divmod(n_samples, self.patch)
        if rest or not 1 <= n <= self.max_segments:
            raise ValueError(
                f"ECGs of {n_samples} samples: the model takes 1 to {self.max_segments} segments of {self.patch}. "
                "Cut the records, or set model.patch and data.seconds accordingly"
            )
        return n

    def forward(self, ecg: torch.Tensor, visible: Visible) -> torch.Tensor:
        """ecg [B, 12, T] -> tokens [B, n, width], in the order of visible.index."""
        m = self.n_segments(ecg.shape[-1])
        segments = ecg.unflatten(-1, (m, self.patch))  # [B, 12, M, p]
        if self.joint:
            segments = (segments * visible.leads[:, :, None, None]).transpose(1, 2).flatten(2)  # [B, M, 12 p]
        else:
            segments = segments.flatten(1, 2)  # lead-major: [B, 12 M, p]
        rows = torch.arange(len(ecg), device=ecg.device)[:, None]
        tokens = self.linear(segments[rows, visible.index]) + self.time_emb[visible.index % m]
        return tokens if self.lead_emb is None else tokens + self.lead_emb[visible.index // m]


class LeadEncoder(nn.Module):
    """Tokens and ViT. `pool` is the mean over the visible tokens, then LayerNorm (reference: M3).

    affine: of that norm; False where no loss stands on the pooled vector, which would leave its weights untrained.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp: int, affine: bool = True, **tokens):
        super().__init__()
        self.tokens = Tokens(width, **tokens)
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)

    def forward(self, ecg: torch.Tensor, visible: Visible) -> torch.Tensor:
        """ecg [B, 12, T], normalised -> final tokens [B, n, width]; rows that visible.mask hides mean nothing."""
        x = self.tokens(ecg, visible)
        for block in self.blocks:
            x = block(x, visible.mask)
        return x

    def pool(self, tokens: torch.Tensor, visible: Visible) -> torch.Tensor:
        """tokens [B, n, width] -> [B, width]."""
        if visible.mask is None:
            return self.norm(tokens.mean(1))
        share = visible.mask / visible.mask.sum(1, keepdim=True)
        return self.norm((share[:, :, None] * tokens).sum(1))
