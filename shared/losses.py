"""Losses that several papers share, each the same on W processes as on one with the joined batch.

How: `shared.runs.processes`. MERL's public code lets the gradient through the local shard of the gathered features
only; here it flows through all of them.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F

from shared.runs.processes import gather, rank, world


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, in float32."""
    return F.normalize(x.float(), dim=-1)


def info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """SUM of the two directions (as MERL published it, not their mean) of InfoNCE between unit rows a and b, [B, d].

    Positives are rows of equal number, negatives all other rows of all processes; each process needs the same B.
    """
    with torch.autocast(a.device.type, enabled=False):  # 8 bits of mantissa are too few for cosines / 0.07
        a, b = a.float(), b.float()
        target = torch.arange(len(a), device=a.device) + len(a) * rank()
        from_a = F.cross_entropy(a @ gather(b).T / temperature, target)
        return from_a + F.cross_entropy(b @ gather(a).T / temperature, target)


def masked_mean(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """sum(mask * loss) / sum(mask) over all processes; mask: bool, of the shape of loss.

    Processes may hold different numbers of masked labels: each divides its sum by the mean number per process.
    """
    count = mask.sum().float()
    if world() > 1:
        dist.all_reduce(count)
    return (loss * mask).sum() * world() / count.clamp(min=1)
