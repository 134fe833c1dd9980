"""ECG encoders (reference: M3): a ViT over tokens cut per lead; for comparison a 1-D ResNet over all leads at once."""

import torch
from torch import nn
from torch.nn import functional as F

from supreme.layers import Block

N_LEADS = 12


def keep_tokens(batch: int, n_tokens: int, drop: float, device) -> torch.Tensor | None:
    """Token numbers int64 [batch, n] in rising order, drawn anew for each record; the share `drop` is left out.

    None for drop 0: all tokens. At least one token stays.
    """
    if not drop:
        return None
    n = max(1, round((1 - drop) * n_tokens))
    return torch.rand(batch, n_tokens, device=device).argsort(1)[:, :n].sort(1).values


class Tokens(nn.Module):
    """Segments of p samples -> tokens: token[l, m] = W x[l, segment m] + c + lead_emb[l] + time_emb[m].

    W is shared by the leads, the table of positions too (default; the authors' may be one per lead).
    """

    def __init__(self, width: int, patch: int, max_segments: int, lead_embedding: bool):
        super().__init__()
        self.patch, self.max_segments = patch, max_segments
        self.linear = nn.Linear(patch, width)
        self.time_emb = nn.Parameter(0.02 * torch.randn(max_segments, width))
        self.lead_emb = nn.Parameter(0.02 * torch.randn(N_LEADS, width)) if lead_embedding else None

    def n_segments(self, n_samples: int) -> int:
        """M of a record; ValueError where it is no whole number of segments or more than there are positions."""
        n, rest = divmod(n_samples, self.patch)
        if rest or not 1 <= n <= self.max_segments:
            raise ValueError(
                f"ECGs of {n_samples} samples: the model takes 1 to {self.max_segments} segments of {self.patch}. "
                "Cut the records, or set model.patch and data.seconds accordingly"
            )
        return n

    def forward(self, ecg: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T], index int64 [B, n] or None -> tokens [B, n or 12 M, width], in the order of index."""
        m = self.n_segments(ecg.shape[-1])
        segments = ecg.unflatten(-1, (m, self.patch)).flatten(1, 2)  # lead-major: [B, 12 M, p]
        if index is None:
            index = torch.arange(N_LEADS * m, device=ecg.device)[None]  # [1, 12 M]
        else:
            segments = segments.gather(1, index[:, :, None].expand(-1, -1, self.patch))
        tokens = self.linear(segments.to(self.linear.weight.dtype)) + self.time_emb[index % m]
        return tokens if self.lead_emb is None else tokens + self.lead_emb[index // m]


class LeadEncoder(nn.Module):
    """ViT over lead-wise tokens, pre-norm, no CLS token.

    width, depth, heads, mlp: MERL's ViT-tiny is 192, 12, 3, 768; patch: samples per segment; max_segments: of the
    longest record; lead_embedding: a learned vector per lead.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        patch: int,
        max_segments: int,
        lead_embedding: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embed = Tokens(width, patch, max_segments, lead_embedding)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def n_segments(self, n_samples: int) -> int:
        """M, segments per lead of a record; ValueError for a length that the model does not take."""
        return self.embed.n_segments(n_samples)

    def forward(self, ecg: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T] normalised -> tokens [B, n, width] after the final LayerNorm.

        index: int64 [B, n], numbers (lead * M + segment) of the tokens that are computed; None = all 12 M.
        """
        x = self.dropout(self.embed(ecg, index))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BasicBlock(nn.Module):
    """Two convolutions of kernel 3 with BatchNorm, the stride on the first."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm1d(c_out)
        self.conv2, self.bn2 = nn.Conv1d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm1d(c_out)
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv1d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm1d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetEncoder(nn.Module):
    """1-D ResNet18 over 12 leads without max-pool, as MERL's; its time steps, mapped to `width`, are the tokens.

    channels: of the first of four stages, which double them; 64 is the published one.
    """

    def __init__(self, width: int, channels: int = 64):
        super().__init__()
        stem = nn.Conv1d(N_LEADS, channels, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm1d(channels), nn.ReLU())
        blocks = []
        for i in range(4):
            c_in, c_out = channels * 2 ** max(0, i - 1), channels * 2**i
            blocks += [BasicBlock(c_in, c_out, 2 if i else 1), BasicBlock(c_out, c_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.linear, self.norm = nn.Linear(8 * channels, width), nn.LayerNorm(width)

    def forward(self, ecg: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T] normalised -> tokens [B, ceil(T / 16), width]; index is not used: all are computed."""
        x = self.blocks(self.stem(ecg.to(self.linear.weight.dtype)))  # [B, 8 channels, ceil(T / 16)]
        return self.norm(self.linear(x.mT))
