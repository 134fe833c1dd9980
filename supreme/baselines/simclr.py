"""SimCLR: Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations, ICML
2020, eq. 1 (NT-Xent). Two views of a record against all other views of the batch, its own view's neighbours included.
"""

import torch
from torch.nn import functional as F

from shared.losses import unit
from shared.runs.processes import gather, rank
from supreme.baselines.common import SslModel


class SimClr(SslModel):
    temperature = 0.1  # table 5

    def parts(self):
        return {"projector": self.mlp(self.width, self.ssl.projection_hidden, self.ssl.projection_width)}

    def terms(self, ecg, patient):
        first, second = self.objective["projector"](self.pooled(self.two_views(ecg))).chunk(2)
        return {"contrastive": nt_xent(first, second, self.temperature)}


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the 2 B views of -log softmax(cosine / temperature) of their partner among all other views, of all
    processes; first, second [B, d], rows of equal number are partners. Each process needs the same B."""
    with torch.autocast(first.device.type, enabled=False):
        first, second = unit(first), unit(second)
        keys = torch.cat([gather(first), gather(second)])
        own = torch.arange(len(first), device=first.device) + len(first) * rank()
        own = torch.cat([own, own + len(keys) // 2])
        logits = torch.cat([first, second]) @ keys.T / temperature
        logits = logits.scatter(1, own[:, None], -torch.inf)
        return F.cross_entropy(logits, own.roll(len(first)))
