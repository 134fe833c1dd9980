"""TS-TCC: Eldele et al., Time-Series Representation Learning via Temporal and Contextual Contrasting, IJCAI 2021,
sections 3.1 to 3.3. A weakly and a strongly changed view; each one's past, summed up by a small transformer, is to
predict the other's future (temporal), and the two summaries of a record are to agree (contextual).

As published: weak = a factor per channel, strong = cut, permuted, jittered; horizon 6, weights 1 and 0.7, temperature
0.2 (its public settings for HAR). The common part of the factors is lost in the normalisation. A time step is the
mean of its tokens over the leads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from shared.losses import unit
from shared.runs.processes import gather, rank
from supreme.augment import noise, permute, scale
from supreme.baselines.common import SslModel
from supreme.baselines.simclr import nt_xent
from supreme.layers import Block

SCALE_SD = 0.55  # published: factors from N(2, 1.1), of which the common 2 would be lost


class TsTcc(SslModel):
    temperature = 0.2

    def parts(self):
        ssl = self.ssl
        context = Context(self.width, ssl.context_width, ssl.context_depth, ssl.context_heads, ssl.context_mlp)
        return {
            "context": context,
            "future": nn.Linear(ssl.context_width, ssl.horizon * self.width),
            "projector": self.mlp(ssl.context_width, max(2, self.width // 2), max(2, self.width // 4)),
        }

    def terms(self, ecg, patient):
        weak = self.normalise(scale(ecg, SCALE_SD))
        strong = self.normalise(noise(permute(ecg, self.ssl.max_segments), self.ssl.jitter))
        steps = unit(self.grid(torch.cat([weak, strong]))[0])  # [2 B, M, width]
        m, horizon = steps.shape[1], self.ssl.horizon
        if m <= horizon:
            raise ValueError(f"ssl.horizon {horizon} must be below the {m} time steps of a record: lower it")
        now = int(torch.randint(m - horizon, ()))  # one draw on the CPU: the same in every process
        context = self.objective["context"](steps[:, : now + 1])
        predicted = self.objective["future"](context).unflatten(-1, (horizon, -1)).chunk(2)
        future = steps[:, now + 1 : now + 1 + horizon].chunk(2)
        temporal = predict_other(predicted[0], future[1]) + predict_other(predicted[1], future[0])
        contextual = nt_xent(*self.objective["projector"](context).chunk(2), self.temperature)
        return {"temporal": temporal, "contextual": self.ssl.contextual_weight * contextual}


class Context(nn.Module):
    """Steps [B, n, d_in] -> one vector [B, width]: what a learned token has gathered after `depth` pre-norm layers."""

    def __init__(self, d_in: int, width: int, depth: int, heads: int, mlp: int):
        super().__init__()
        self.linear, self.token = nn.Linear(d_in, width), nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        x = self.linear(steps.to(self.linear.weight.dtype))
        x = torch.cat([self.token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


def predict_other(predicted: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """Temporal contrasting: mean over K steps and B records of -log softmax of predicted . future, among the same step
    of all records of all processes; predicted, future: [B, K, d]."""
    with torch.autocast(predicted.device.type, enabled=False):
        b, k, d = future.shape
        others = gather(future.float().flatten(1)).view(-1, k, d)
        logits = torch.einsum("bkd,nkd->kbn", predicted.float(), others)
        target = (torch.arange(b, device=logits.device) + b * rank()).expand(k, -1)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())
