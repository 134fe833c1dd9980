"""ASTCL: Wang, Feng, Ge, Zhou, Zhou, Wang, Adversarial Spatiotemporal Contrastive Learning for Electrocardiogram
Signals, IEEE TNNLS 35(10), 2024, pp. 13845-13859.

Known, from its abstract only: two augmentations, noise enhancement and noise denoising; an adversarial module, a game
of a discriminator and the encoder that pulls positive pairs into one distribution; a spatiotemporal contrastive
module of spatiotemporal prediction and patient discrimination; positive pairs at the level of patients only, no
negatives; predictor and stop-gradient used alternately against collapse. No public code is known to us.

Our reading (default): noisy view = white noise and baseline wander, clean view = a band-pass by moving means.
Prediction in time: each time step is to predict the other view's next one; in space: each lead is to predict the mean
of the other view's other leads; patient discrimination: the projection is to predict those of the other view of all
records of its patient. All are SimSiam's loss on projections, predictor here, stop-gradient there, both ways. The
discriminator tells noisy from clean; the encoder gets its gradient with the sign turned.
"""

import torch
from torch.nn import functional as F

from shared.losses import unit
from shared.runs.processes import gather, rank
from supreme.augment import denoise, noise, wander
from supreme.baselines.common import SslModel, cosine_loss, needs_lead_tokens

SHORT, LONG = 0.002, 0.08  # widths of the two means as shares of a record: 20 ms and 0.8 s of 10 s


class Astcl(SslModel):
    def parts(self):
        needs_lead_tokens(self.cfg, "astcl")
        d, hidden, width = self.width, self.ssl.projection_hidden, self.ssl.projection_width
        return {
            "projector": self.mlp(d, hidden, width, last_norm=True),
            "patient": self.mlp(width, hidden, width),
            "time": self.mlp(width, hidden, width),
            "space": self.mlp(width, hidden, width),
            "discriminator": self.mlp(d, hidden, 1),
        }

    def terms(self, ecg, patient):
        n, parts = len(ecg), self.objective
        if patient is None:
            patient = torch.arange(n, device=ecg.device) + n * rank()
        steps, leads = self.grid(self.normalise(torch.cat(noisy_and_clean(ecg, self.ssl.noise))))
        pooled = steps.mean(1)
        steps, leads = rows(parts["projector"], steps), rows(parts["projector"], leads)
        projected = parts["projector"](pooled)
        # Rolled by the batch, each view stands where the other one was
        next_step, leads_there = steps.roll(n, 0)[:, 1:], leads.roll(n, 0)
        other_leads = (leads_there.sum(1, keepdim=True) - leads_there) / 11
        side = torch.arange(2, device=ecg.device).repeat_interleave(n)[:, None].float()
        told = parts["discriminator"](2 * pooled.detach() - pooled)  # the value of pooled, its gradient turned
        return {
            "patient": same_patient(parts["patient"](projected), projected.roll(n, 0), patient),
            "time": cosine_loss(rows(parts["time"], steps[:, :-1]), next_step),
            "space": cosine_loss(rows(parts["space"], leads), other_leads),
            "adversarial": self.ssl.adversarial_weight * F.binary_cross_entropy_with_logits(told.float(), side),
        }


def noisy_and_clean(ecg: torch.Tensor, sd: float) -> tuple[torch.Tensor, torch.Tensor]:
    """ecg [B, 12, T] in mV -> with more noise, `sd` of its deviation, and with less."""
    odd = [2 * round(share * ecg.shape[-1] / 2) + 1 for share in (SHORT, LONG)]
    return wander(noise(ecg, sd), sd), denoise(ecg, *odd)


def rows(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """net on each row of x [B, n, d] -> [B, n, d']."""
    return net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def same_patient(predicted: torch.Tensor, target: torch.Tensor, patient: torch.Tensor) -> torch.Tensor:
    """Mean negative cosine of predicted rows [2 B, d] and target rows [2 B, d], without gradient, of the same half and
    the same patient [B], targets from all processes."""
    with torch.autocast(predicted.device.type, enabled=False):
        everyone = gather(patient)
        same = (patient[:, None] == everyone).float()
        same = same / same.sum(1, keepdim=True)
        pairs = zip(predicted.chunk(2), target.detach().chunk(2), strict=True)
        return -sum((unit(p) @ gather(unit(t)).T * same).sum(1).mean() for p, t in pairs) / 2
