"""What the self-supervised baselines share: encoder + objective, heads, views, slow targets (reference: eSSL).

All of them train the encoder of SuPreME on the same records for the same number of updates; only the objective differs.
"""

import contextlib
import copy
import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from supreme.augment import crop_resize, time_out
from supreme.model import EcgModel, EcgOutput, ModelConfig
from supreme.ssl import SslConfig

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class SslModel(EcgModel):
    """An encoder and an `objective` (heads, targets) that trains it; subclasses add it and state `terms`."""

    temperature = momentum = 0.0  # of the method as published; ssl.temperature and ssl.momentum replace them

    def __init__(self, config):
        super().__init__(config)
        self.ssl = self.ssl or SslConfig()
        for name in ("temperature", "momentum"):
            if getattr(self.ssl, name) is not None:
                setattr(self, name, getattr(self.ssl, name))
        self.objective = nn.ModuleDict(self.parts())
        self.post_init()

    def parts(self) -> dict[str, nn.Module]:
        """Heads and targets of the objective."""
        raise NotImplementedError

    def terms(self, ecg: torch.Tensor, patient: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The terms of the loss, weighted; ecg float32 [B, 12, T] in mV."""
        raise NotImplementedError

    def forward(self, ecg, patient=None, **_) -> EcgOutput:
        """A training step: ecg [B, 12, T] in mV, patient int64 [B] (CLOCS, ASTCL); the loss is the sum of the terms."""
        terms = self.terms(ecg.float(), patient)
        return EcgOutput(loss=sum(terms.values()), terms={name: term.detach() for name, term in terms.items()})

    def after_step(self, progress: float) -> None:
        """Call after each step of the optimiser, in every process; progress: share of all steps that are done."""

    def two_views(self, ecg: torch.Tensor) -> torch.Tensor:
        """Two random views of each record, normalised: [2 B, 12, T], the first of all records, then the second."""
        views = time_out(crop_resize(ecg.repeat(2, 1, 1), self.ssl.crop), self.ssl.time_out)
        return self.normalise(views)

    def pooled(self, x: torch.Tensor, encoder: nn.Module | None = None) -> torch.Tensor:
        """Normalised x [B, 12, T] -> mean of the tokens that are computed [B, width]; `encoder`: a target's."""
        return (encoder or self.encoder)(x, self.visible(x)).mean(1)

    def grid(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised x [B, 12, T] -> means of its tokens over the leads [B, M, width] and over time [B, 12, width].

        Only tokens that this step computes count; a time step or lead without any is a zero vector. A ResNet's map has
        no leads: [B, n, width] and its mean [B, 1, width].
        """
        index = self.visible(x)
        tokens = self.encoder(x, index)
        if self.cfg.encoder != "vit":
            return tokens, tokens.mean(1, keepdim=True)
        m = self.encoder.n_segments(x.shape[-1])
        if index is None:
            tokens = tokens.unflatten(1, (12, m))
            return tokens.mean(1), tokens.mean(2)
        return group_mean(tokens, index % m, m), group_mean(tokens, index // m, 12)

    @property
    def width(self) -> int:
        """Of the encoder's tokens."""
        return self.cfg.width

    def mlp(self, *widths: int, last_norm: bool = False) -> nn.Sequential:
        """Linear layers of these widths, norm and ReLU between them, `last_norm`: one without weights at the end."""
        return mlp(*widths, norm=self.ssl.projection_norm, last_norm=last_norm)


def mlp(*widths: int, norm: str, last_norm: bool = False) -> nn.Sequential:
    """norm: batch | layer (no statistics over the batch)."""
    layers = []
    for i, (d_in, d_out) in enumerate(pairwise(widths)):
        if i < len(widths) - 2:
            layers += [nn.Linear(d_in, d_out, bias=False), NORMS[norm](d_out), nn.ReLU()]
        else:
            layers.append(nn.Linear(d_in, d_out, bias=not last_norm))
    if last_norm:
        layers.append(standardise(widths[-1], norm))
    return nn.Sequential(*layers)


def needs_lead_tokens(cfg: ModelConfig, what: str) -> None:
    """ValueError for an encoder without one token per lead and segment."""
    if cfg.encoder != "vit":
        raise ValueError(f"model.encoder: {what} needs tokens per lead, which '{cfg.encoder}' has not: use vit")


def standardise(width: int, norm: str) -> nn.Module:
    """A norm without weights."""
    return nn.BatchNorm1d(width, affine=False) if norm == "batch" else nn.LayerNorm(width, elementwise_affine=False)


def group_mean(tokens: torch.Tensor, group: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Means of tokens [B, n, d] by their group [B, n], numbers below n_groups -> [B, n_groups, d]; 0 for empty ones."""
    member = F.one_hot(group, n_groups).to(tokens.dtype)  # [B, n, G]
    return member.mT @ tokens / member.sum(1).clamp(min=1)[..., None]


def cosine_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean negative cosine of rows; no gradient to the target."""
    with torch.autocast(prediction.device.type, enabled=False):
        return -F.cosine_similarity(prediction.float(), target.detach().float(), dim=-1).mean()


class Target(nn.Module):
    """A slow copy of modules: an exponential moving average of their weights, float32, never trained.

    Its weights are buffers, so that optimisers, gradients and ZeRO's partitioning leave them alone while checkpoints
    hold them. They stay float32 where the rest is cast to bfloat16, whose 8 bits would swallow steps of 1 - m. Weights
    of BatchNorm stay parameters without gradient, for the conversion to SyncBatchNorm needs them.
    """

    def __init__(self, **modules: nn.Module):
        super().__init__()
        self.copies = nn.ModuleDict(copy.deepcopy(modules)).requires_grad_(False)
        for module in self.copies.modules():
            if not isinstance(module, _BatchNorm):
                for name, weight in list(module.named_parameters(recurse=False)):
                    delattr(module, name)
                    module.register_buffer(name, weight.detach())

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)

    def train(self, mode: bool = True):
        return super().train(mode).requires_grad_(False)  # from_pretrained has turned it on, and calls this at its end

    @torch.no_grad()
    def project(self, pool, x: torch.Tensor) -> torch.Tensor:
        """What the slow encoder and projector make of normalised x; pool: `SslModel.pooled`."""
        return self.copies["projector"](pool(x, self.copies["encoder"]))

    @torch.no_grad()
    def follow(self, momentum: float, **modules: nn.Module) -> None:
        """target = momentum * target + (1 - momentum) * weights of the modules; statistics of norms are its own."""
        slow = dict(self.copies.named_parameters()) | dict(self.copies.named_buffers())
        fast = dict(nn.ModuleDict(modules).named_parameters())
        with whole(list(fast.values()) + [slow[name] for name in fast]):
            for name, weight in fast.items():
                slow[name].lerp_(weight.to(slow[name].dtype), 1 - momentum)


def whole(weights: list[torch.Tensor]):
    """A context in which weights that ZeRO-3 has partitioned are there as a whole, changes being kept."""
    partitioned = [w for w in weights if hasattr(w, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)


def rising(momentum: float, progress: float) -> float:
    """From `momentum` at progress 0 to 1 at progress 1 along half a cosine (BYOL section 3.3, MoCo-v3)."""
    return 1 - (1 - momentum) * (math.cos(math.pi * min(max(progress, 0.0), 1.0)) + 1) / 2
