"""MoCo v3: Chen, Xie, He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, algorithm 1.
Queries of the trained network against keys of the slow one. Its frozen random patch projection, a remedy for
instability at scale, is not used: all baselines train the same encoder."""

import torch
from torch.nn import functional as F

from shared.losses import unit
from shared.runs.processes import gather, rank
from supreme.baselines.common import SslModel, Target, rising


class MoCoV3(SslModel):
    temperature, momentum = 0.2, 0.99  # as published for ViTs; momentum along half a cosine to 1

    def parts(self):
        hidden, width = self.ssl.projection_hidden, self.ssl.projection_width
        projector = self.mlp(self.width, hidden, hidden, width, last_norm=True)
        predictor = self.mlp(width, hidden, width, last_norm=True)
        target = Target(encoder=self.encoder, projector=projector)
        return {"projector": projector, "predictor": predictor, "target": target}

    def terms(self, ecg, patient):
        views, parts = self.two_views(ecg), self.objective
        queries = parts["predictor"](parts["projector"](self.pooled(views))).chunk(2)
        keys = parts["target"].project(self.pooled, views).chunk(2)
        loss = momentum_contrast(queries[0], keys[1], self.temperature)
        return {"contrastive": loss + momentum_contrast(queries[1], keys[0], self.temperature)}

    def after_step(self, progress):
        target, projector = self.objective["target"], self.objective["projector"]
        target.follow(rising(self.momentum, progress), encoder=self.encoder, projector=projector)


def momentum_contrast(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    """2 * temperature * InfoNCE of queries [B, d] among the keys of all processes; no gradient to the keys."""
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = unit(queries), gather(unit(keys).detach())
        target = torch.arange(len(queries), device=queries.device) + len(queries) * rank()
        return 2 * temperature * F.cross_entropy(queries @ keys.T / temperature, target)
