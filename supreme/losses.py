"""Losses of SuPreME's labels (reference: M5), each the same on W processes as on one with the joined batch."""

import torch
import torch.distributed as dist
from torch.nn import functional as F

from shared.losses import masked_mean
from shared.runs.processes import world

MAX_POS_WEIGHT = 20.0


def bce(
    logits: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """sum(mask * BCE) / sum(mask) over the records of all processes; logits, y in [0, 1] and mask (bool): [B, L].

    pos_weight [L] multiplies the positive part of a label. What y holds where mask is False does not matter.
    """
    with torch.autocast(logits.device.type, enabled=False):
        target = y.float().masked_fill(~mask, 0)
        weight = None if pos_weight is None else pos_weight.float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none", pos_weight=weight)
        return masked_mean(loss, mask)


def asymmetric(
    logits: torch.Tensor,
    y: torch.Tensor,
    mask: torch.Tensor,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    shift: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss (Ridnik et al., ICCV 2021, eq. 7), its mean over unmasked labels; values as theirs for MS-COCO.

    Positives: -(1 - p)^gamma_pos log p. Negatives: -q^gamma_neg log(1 - q) with q = max(p - shift, 0), so that those
    which are already below the shift add nothing.
    """
    with torch.autocast(logits.device.type, enabled=False):
        x, target = logits.float(), y.float().masked_fill(~mask, 0)
        p = x.sigmoid()
        q = (p - shift).clamp(min=0)
        positive = -((1 - p) ** gamma_pos) * F.logsigmoid(x)
        negative = -(q**gamma_neg) * torch.log1p(-q)
        return masked_mean(target * positive + (1 - target) * negative, mask)


def pos_weight(counts: torch.Tensor) -> torch.Tensor:
    """min(sqrt(negatives / positives), 20) per label; counts int64 [2, L]: positives, negatives."""
    positive, negative = counts.float()
    return (negative / positive.clamp(min=1)).sqrt().clamp(max=MAX_POS_WEIGHT)


def count_labels(y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Positives and negatives among the unmasked labels y [B, L] of all processes: int64 [2, L]; 0.5 is neither."""
    counts = torch.stack([((y > 0.5) & mask).sum(0), ((y < 0.5) & mask).sum(0)])
    if world() > 1:
        dist.all_reduce(counts)
    return counts
