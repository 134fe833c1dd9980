"""Barlow Twins: Zbontar, Jing, Misra, LeCun, Deny, Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
ICML 2021, eq. 1 and 2. The cross-correlation of two views' projections is to be the identity."""

import torch

from shared.runs.processes import gather
from supreme.baselines.common import SslModel


class BarlowTwins(SslModel):
    def parts(self):
        wide = self.ssl.barlow_width
        return {"projector": self.mlp(self.width, wide, wide, wide)}

    def terms(self, ecg, patient):
        first, second = self.objective["projector"](self.pooled(self.two_views(ecg))).chunk(2)
        invariance, redundancy = barlow(first, second)
        return {"invariance": invariance, "redundancy": self.ssl.barlow_lambda * redundancy}


def barlow(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of squares, of 1 - diagonal and of the rest, of the cross-correlation over the batch of all processes.

    first, second: [B, d]. A dimension that is constant over the batch correlates with nothing, which costs 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (standardised(gather(z.float())) for z in (first, second))
        c = first.T @ second / len(first)
        diagonal = c.diagonal()
        return (1 - diagonal).square().sum(), c.square().sum() - diagonal.square().sum()


def standardised(z: torch.Tensor) -> torch.Tensor:
    """Columns of mean 0 and variance 1."""
    z = z - z.mean(0)
    return z / (z.square().mean(0) + 1e-5).sqrt()
