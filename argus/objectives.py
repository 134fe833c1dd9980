"""What an encoder is pre-trained with (reference: Encoder-pretraining arms): mae, clip or supervised.

Each is a module over `encoder`, a VitEncoder, that takes a batch of the collator by keyword and ignores what it does
not need: MaeModel(encoder)(**batch).loss
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import ModelOutput

from argus.encoder import VitEncoder, blocks, draw_weights, patchify, run, weight_std
from shared.metrics.ct_findings import CT_RATE_LABELS
from shared.runs.processes import gather, rank

log = logging.getLogger(__name__)

# negatives / positives that CT-CLIP hard-codes, in the order of CT_RATE_LABELS [code: scripts/ct_lipro_train.py]
CT_CLIP_WEIGHTS = (9.211, 2.384, 8.295, 32.863, 2.992, 6.065, 3.176, 4.187, 3.022, 1.216, 1.678, 3.153, 7.123, 18.166,
                   13.848, 6.335, 10.817, 13.407)  # fmt: skip


@dataclass
class ObjectiveOutput(ModelOutput):
    """loss: a scalar. logits: [B, 18] of supervised, [B, W * B] of clip (image to text), none of mae."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


# --- masked autoencoder ---


def sincos_3d(grid: Sequence[int], width: int) -> torch.Tensor:
    """Fixed positions [N, width]: a sixth of the width each for sine and cosine along D, H and W, the rest zero."""
    n = width // 6
    if n == 0:
        raise ValueError(f"model.mae_width: {width} is too narrow for 3-D positions; give at least 6")
    rate = 10000.0 ** -(torch.arange(n, dtype=torch.float64) / n)
    parts = []
    for place in torch.meshgrid(*(torch.arange(g, dtype=torch.float64) for g in grid), indexing="ij"):
        angle = place.flatten()[:, None] * rate
        parts += [angle.sin(), angle.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, width - 6 * n)).float()


def draw_keep(batch: int, n_tokens: int, mask: float, device=None) -> torch.Tensor:
    """int64 [B, K], ascending: per sample a uniform draw of the int(N * (1 - mask)) tokens that stay visible."""
    k = int(round(n_tokens * (1 - mask), 6))  # 1 - 0.9 is not 0.1
    if not 0 < k < n_tokens:
        raise ValueError(f"model.mae_mask: {mask} leaves {k} of {n_tokens} tokens; some must be seen and some masked")
    return torch.rand(batch, n_tokens, device=device).argsort(dim=1)[:, :k].sort(dim=1).values


def normalised_patches(volume: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Targets [B, N, voxels] of mean 0 and variance 1 per patch (eps 1e-6), in float32."""
    target = patchify(volume.float(), patch)
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


class MaeModel(nn.Module):
    """Masked autoencoder: the encoder sees the visible tokens, a light decoder fills in the voxels of the others."""

    def __init__(self, encoder: VitEncoder, mask: float = 0.75, width: int = 512, depth: int = 8, heads: int = 16):
        super().__init__()
        self.encoder, self.mask = encoder, mask
        self.enter = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", F.pad(sincos_3d(encoder.grid, width), (0, 0, 1, 0)))  # zero for CLS
        self.blocks = blocks(width, depth, heads, 4 * width)
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, math.prod(encoder.patch))
        self.gradient_checkpointing = False
        for part in (self.enter, self.blocks, self.leave):
            draw_weights(part, width)
        nn.init.normal_(self.mask_token, std=weight_std(width))

    def reconstruct(self, volume: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """volume [B, 1, D, H, W], keep [B, K] -> normalised voxels [B, N, pD * pH * pW] of every patch."""
        cls, seen = self.encoder(volume, keep)
        cls, seen = self.enter(cls), self.enter(seen)
        every = self.mask_token.to(seen.dtype).repeat(len(seen), self.encoder.n_tokens, 1)
        every = every.scatter(1, keep.unsqueeze(-1).expand_as(seen), seen)  # back in the order of the grid
        x = torch.cat([cls.unsqueeze(1), every], dim=1) + self.positions
        for block in self.blocks:
            x = run(block, x, self.gradient_checkpointing)
        return self.leave(self.norm(x))[:, 1:]

    def forward(self, volume: torch.Tensor, **_) -> ObjectiveOutput:
        """Mean squared error over the masked patches."""
        keep = draw_keep(len(volume), self.encoder.n_tokens, self.mask, volume.device)
        error = self.reconstruct(volume, keep).float() - normalised_patches(volume, self.encoder.patch)
        masked = torch.ones(error.shape[:2], device=error.device).scatter(1, keep, 0.0)
        return ObjectiveOutput(loss=(error.square().mean(-1) * masked).sum() / masked.sum())


# --- contrast of volumes and reports ---


def text_tower(vocab_size: int, width: int, depth: int, heads: int, max_tokens: int, pad_id: int = 0) -> BertModel:
    """A BERT with random weights, whose first position is the summary; width 768, depth and heads 12 is BERT-base."""
    return BertModel(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_tokens,
            pad_token_id=pad_id,
        ),
        add_pooling_layer=False,
    )


def published_tower(name: str) -> nn.Module:
    """The BERT of a hub name or folder, with its weights."""
    return AutoModel.from_pretrained(name, add_pooling_layer=False)


def fingerprints(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """int64 [B] that agree where token sequences do, whatever the padding on the right (a polynomial modulo 2^64)."""
    powers = torch.full((ids.shape[1],), 6364136223846793005, device=ids.device).cumprod(0)
    return ((ids + 1) * mask.long() * powers).sum(1)


class UnitLinear(nn.Linear):
    """Linear, then unit length, in float32: bf16's 8 bits are too few for cosines over a temperature."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(F.linear(x.float(), self.weight.float(), self.bias.float()), dim=-1)


class ClipModel(nn.Module):
    """CLIP over volumes and reports. tower: a BERT-like model with `last_hidden_state`, its first position read.

    The temperature is learnt as t, from log(1 / 0.07) and at most log(100), and exponentiated.
    """

    def __init__(self, encoder: VitEncoder, tower: nn.Module):
        super().__init__()
        self.encoder, self.tower = encoder, tower
        self.image_head = UnitLinear(encoder.summary_width, encoder.width)
        self.text_head = UnitLinear(tower.config.hidden_size, encoder.width)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def image(self, volume: torch.Tensor) -> torch.Tensor:
        """volume [B, 1, D, H, W] -> float32 unit rows [B, C]."""
        return self.image_head(self.encoder.summary(volume))

    def text(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask [B, L] -> float32 unit rows [B, C]."""
        return self.text_head(self.tower(input_ids=text_ids, attention_mask=text_mask).last_hidden_state[:, 0])

    def scale(self) -> torch.Tensor:
        """exp(t); at the bound the gradient goes on, so that t can come back."""
        t = self.log_scale.float()
        return (t + (t.clamp(max=math.log(100)) - t).detach()).exp()

    def forward(self, volume, text_ids, text_mask, study, **_) -> ObjectiveOutput:
        """volume [B, 1, D, H, W]; text_ids, text_mask [B, L]; study int64 [B]: one number per report.

        Rows of one study (several reconstructions) or of the same text are no negatives of each other. In
        several processes the negatives are those of all, and each needs the same B.
        """
        v, u = self.image(volume), self.text(text_ids, text_mask)
        every_v, every_u = gather(v), gather(u)
        own = torch.arange(len(v), device=v.device) + len(v) * rank()
        key = fingerprints(text_ids, text_mask)
        same = (study[:, None] == gather(study)) | (key[:, None] == gather(key))
        same[torch.arange(len(v)), own] = False
        with torch.autocast(v.device.type, enabled=False):
            to_text = (self.scale() * v @ every_u.T).masked_fill(same, float("-inf"))
            to_image = (self.scale() * u @ every_v.T).masked_fill(same, float("-inf"))
            loss = (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2
        return ObjectiveOutput(loss=loss, logits=to_text)


# --- supervision by extracted labels ---


def pos_weights(labels: np.ndarray) -> torch.Tensor:
    """labels [n, 18] of training examinations (nan = unknown) -> negatives / positives float32 [18].

    A label without positives counts as having one. Warns of labels that are more than three times rarer or more
    frequent than in CT-RATE: these would be no CT-RATE labels.
    """
    labels = np.asarray(labels, dtype=np.float64)
    positive, negative = (labels == 1).sum(0), (labels == 0).sum(0)
    weights = negative / positive.clip(min=1)
    if labels.shape[1] == len(CT_RATE_LABELS):
        ratio = weights.clip(min=1e-9) / np.array(CT_CLIP_WEIGHTS)
        far = [f"{CT_RATE_LABELS[i]} {weights[i]:.1f}" for i in np.flatnonzero(np.abs(np.log(ratio)) > math.log(3))]
        if far:
            log.warning("pos_weight far from CT-CLIP's: %s", ", ".join(far))
    return torch.tensor(weights, dtype=torch.float32)


class SupervisedModel(nn.Module):
    """Abnormality logits from the ViT's summary: ReLU, dropout 0.3, linear.

    weights: `pos_weights` of the training labels [18].
    """

    def __init__(self, encoder: VitEncoder, weights: torch.Tensor, dropout: float = 0.3):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(encoder.summary_width, len(weights)))
        self.register_buffer("weights", weights.clone())

    def forward(self, volume, findings=None, findings_mask=None, **_) -> ObjectiveOutput:
        """volume [B, 1, D, H, W]; findings [B, 18] of 0 and 1, findings_mask bool [B, 18]: which are known.

        loss: weighted binary cross-entropy, the mean over what is known; None without findings.
        """
        logits = self.head(self.encoder.summary(volume)).float()
        if findings is None:
            return ObjectiveOutput(logits=logits)
        known = torch.ones_like(logits) if findings_mask is None else findings_mask.to(logits.dtype)
        target = torch.where(known > 0, findings.to(logits.dtype), torch.zeros_like(logits))  # unknown may be nan
        each = F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights, reduction="none")
        return ObjectiveOutput(loss=(each * known).sum() / known.sum().clamp(min=1), logits=logits)
