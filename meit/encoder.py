"""The ECG encoder (reference: Method, ECG encoder): 1-D ResNet-50 and, for MEIT, the projector to unit vectors.

`EncoderForWords` is ours: the small tiers cannot afford the millions of ECGs from which the published encoder learns
end to end, so they let its ResNet first learn which words the report holds (Deviations). The paper tier does not.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class Bottleneck(nn.Module):
    """ResNet bottleneck in 1-D: kernels 1-3-1, expansion 4, the stride on the middle one."""

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        c_out = 4 * width
        self.conv1, self.bn1 = nn.Conv1d(c_in, width, 1, bias=False), nn.BatchNorm1d(width)
        self.conv2, self.bn2 = nn.Conv1d(width, width, 3, stride, 1, bias=False), nn.BatchNorm1d(width)
        self.conv3, self.bn3 = nn.Conv1d(width, c_out, 1, bias=False), nn.BatchNorm1d(c_out)
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv1d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm1d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class EcgEncoder(nn.Module):
    """1-D ResNet, leads as channels, no max-pool, no positional code; then, for MEIT, the projector to unit vectors.

    d_out: head size of the LLM; None leaves the projector out (the compared fusions bring their own) and gives
        `n_features`-wide tokens.
    projector_norm: False for GPT-NeoX, whose projector has no BatchNorm in the public code.
    """

    def __init__(self, width: int, blocks: list[int], n_tokens: int, d_out: int | None, projector_norm: bool = True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(12, width, 7, 2, 3, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        stages, c_in = [], width
        for i, n_blocks in enumerate(blocks):
            w = width * 2**i
            for j in range(n_blocks):
                stages.append(Bottleneck(c_in, w, stride=2 if i > 0 and j == 0 else 1))
                c_in = 4 * w
        self.stages = nn.Sequential(*stages)
        self.n_features = c_in  # 2048 at width 64
        self.pool = nn.AdaptiveAvgPool1d(n_tokens)
        self.projector = None
        if d_out is not None:
            norms = [nn.BatchNorm1d(c_in), nn.BatchNorm1d(d_out)] if projector_norm else [nn.Identity(), nn.Identity()]
            self.projector = nn.Sequential(nn.Linear(c_in, c_in), norms[0], nn.ReLU(), nn.Linear(c_in, d_out), norms[1])

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        """ecg [B, 12, T] -> [B, n, d_out] of unit length, or [B, n, n_features] without projector."""
        x = self.stages(self.stem(ecg))  # [B, 2048, T / 16]
        x = self.pool(x).mT  # [B, n, 2048]
        if self.projector is None:
            return x
        e = self.projector(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return F.normalize(e.float(), dim=-1)  # unit length after the last BatchNorm


class EncoderConfig(PretrainedConfig):
    model_type = "meit-encoder"
    width: int = 64
    blocks: list | tuple = (3, 4, 6, 3)
    vocab_size: int = 0


class EncoderForWords(PreTrainedModel):
    """ResNet + linear head: which tokens does the report of this ECG hold? A bag-of-words loss without any label."""

    config_class = EncoderConfig
    main_input_name = "ecg"

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.encoder = EcgEncoder(config.width, list(config.blocks), n_tokens=1, d_out=None)
        self.head = nn.Linear(self.encoder.n_features, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The constructors' draws stay."""

    def forward(self, ecg, labels, input_ids=None, attention_mask=None) -> SequenceClassifierOutput:
        """ecg [B, 12, S], labels [B, T] token ids or -100 -> loss (sum over words, mean over records), logits."""
        logits = self.head(self.encoder(ecg)[:, 0])  # [B, V]
        present = torch.zeros_like(logits)
        rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[labels >= 0]
        present[rows, labels[labels >= 0]] = 1
        loss = F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="sum") / len(ecg)
        return SequenceClassifierOutput(loss=loss, logits=logits)
