"""The losses of K-MERL and MERL (reference: M7, M9), each the same on W processes as on one with the joined batch.

Under data parallelism a process contributes its share so that the MEAN over processes of the returned losses, and of
their gradients (what DDP and DeepSpeed take), equal one process with all records. MERL's public code lets the gradient
through the local shard of the gathered features only; here it flows through all of them.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F

from shared.runs.processes import gather, rank, world


def info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """SUM of the two directions (as published, not their mean) of InfoNCE between unit rows a and b, both [B, d].

    Positives are rows of equal number, negatives all other rows of all processes; each process needs the same B.
    """
    with torch.autocast(a.device.type, enabled=False):  # 8 bits of mantissa are too few for cosines / 0.07
        a, b = a.float(), b.float()
        target = torch.arange(len(a), device=a.device) + len(a) * rank()
        from_a = F.cross_entropy(a @ gather(b).T / temperature, target)
        return from_a + F.cross_entropy(b @ gather(a).T / temperature, target)


def entity_bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over labels 0 and 1 of all processes; -1 is left out. logits, labels [B, E].

    Processes may hold different numbers of ignored labels: each divides its sum by the mean number per process.
    """
    with torch.autocast(logits.device.type, enabled=False):
        known = labels >= 0
        target = labels.clamp(min=0).float()
        total = (F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none") * known).sum()
        count = known.sum().float()
        if world() > 1:
            dist.all_reduce(count)
        return total * world() / count.clamp(min=1)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, in float32."""
    return F.normalize(x.float(), dim=-1)
