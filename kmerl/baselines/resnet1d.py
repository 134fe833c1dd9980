"""MERL's ResNet18-1D and the attention pooling on it (reference: M9)."""

import torch
from torch import nn
from torch.nn import functional as F

from kmerl.layers import Attention
from kmerl.masking import N_LEADS


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


class ResNet18(nn.Module):
    """ecg [B, 12, T] -> [B, 8 * width, ceil(T / 16)]; no max-pool. width 64 is the published one."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(N_LEADS, width, 7, 2, 3, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        blocks = []
        for i in range(4):
            c_in, c_out = width * 2 ** max(0, i - 1), width * 2**i
            blocks += [BasicBlock(c_in, c_out, 2 if i else 1), BasicBlock(c_out, c_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.n_channels = 8 * width

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(ecg))


class AttentionPool(nn.Module):
    """A class token looks at itself and the map; learned positions fix the longest map. As in the public code the class
    token is given position 0 twice: before it is joined to the map, and with all the others."""

    def __init__(self, width: int, length: int, heads: int = 4):
        super().__init__()
        self.length = length
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, length + 1, width) / width)
        self.attention, self.linear = Attention(width, heads), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, n, width], n <= length -> [B, width]."""
        token = (self.class_token + self.position[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([token, x], dim=1) + self.position[:, : x.shape[1] + 1]
        return self.linear(self.attention(x[:, :1], x))[:, 0]


def map_length(n_samples: int) -> int:
    """Columns of ResNet18's map: four halvings, each rounded up; 5,000 -> 313."""
    for _ in range(4):
        n_samples = -(-n_samples // 2)
    return n_samples
