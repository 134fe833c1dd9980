"""K-MERL's own loss, of the entities (reference: M7); the contrast beside it, which is MERL's (M9), is
`shared.losses.info_nce`."""

import torch
from torch.nn import functional as F

from shared.losses import masked_mean


def entity_bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over labels 0 and 1 of all processes; -1 is left out. logits, labels [B, E]."""
    with torch.autocast(logits.device.type, enabled=False):
        target = labels.clamp(min=0).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return masked_mean(loss, labels >= 0)
