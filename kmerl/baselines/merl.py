"""MERL (reference: M9): one encoder over 12 leads, cross-modal (CMA) and uni-modal alignment (UMA).

The controls that the paper lacks are options of it: training with hidden leads (`lead_masking`) and the entity loss on
the feature map (`entity_head`).
"""

import torch
from torch import nn

from kmerl.baselines.resnet1d import AttentionPool, ResNet18, map_length
from kmerl.baselines.vit1d import ViT1d
from kmerl.losses import entity_bce
from kmerl.masking import draw_leads
from kmerl.model import EcgConfig, EcgModel, EcgOutput, ModelConfig
from shared.losses import info_nce, unit


class MerlConfig(EcgConfig):
    model_type = "merl"


class TwelveLeadEncoder(nn.Module):
    """MERL's ResNet18 or ViT behind one face: ecg [B, 12, T] in [0, 1] -> tokens [B, n, d_tokens] and a mean."""

    def __init__(self, cfg: ModelConfig, n_samples: int):
        super().__init__()
        self.n_samples, self.is_resnet = n_samples, cfg.encoder_name == "resnet"
        if self.is_resnet:
            self.net, self.step_samples = ResNet18(cfg.resnet_width), 1
            self.d_tokens = self.net.n_channels
        else:
            sizes = cfg.width, cfg.depth, cfg.heads, cfg.mlp, cfg.patch
            self.net, self.step_samples = ViT1d(*sizes, n_samples // cfg.patch, cfg.trains_pooled), cfg.patch
            self.d_tokens = cfg.width

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        if not self.step_samples <= ecg.shape[-1] <= self.n_samples or ecg.shape[-1] % self.step_samples:
            raise ValueError(
                f"ECGs of {ecg.shape[-1]} samples: the model takes up to {self.n_samples} in steps of "
                f"{self.step_samples}; cut the records, or set data.seconds accordingly"
            )
        return self.net(ecg).mT if self.is_resnet else self.net(ecg)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features for probing [B, d_tokens]: the mean (ResNet), the normalised mean (ViT)."""
        return tokens.mean(1) if self.is_resnet else self.net.pool(tokens)


class AttentionProjection(nn.Module):
    """MERL's head on the ResNet map: 1x1 convolution to width_joint (here on tokens), then attention pooling."""

    def __init__(self, d_tokens: int, width_joint: int, length: int):
        super().__init__()
        self.down, self.pool = nn.Linear(d_tokens, width_joint), AttentionPool(width_joint, length)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens [B, n, d_tokens] -> embedding of the contrast, average-pooled map for UMA; both [B, width_joint]."""
        small = self.down(tokens)
        return self.pool(small), small.mean(1)


class MerlModel(EcgModel):
    config_class = MerlConfig

    def __init__(self, config: MerlConfig):
        super().__init__(config)
        cfg = self.cfg
        self.encoder = TwelveLeadEncoder(cfg, config.n_samples)
        d, projection = self.encoder.d_tokens, None
        if self.encoder.is_resnet and cfg.has_contrast:
            projection = AttentionProjection(d, cfg.width_joint, map_length(config.n_samples))
        self.add_heads(d, d, projection)
        self.views = None
        if cfg.uni_loss > 0 and cfg.has_contrast:  # UMA stands on the branch of the contrast
            d_view = cfg.width_joint if self.encoder.is_resnet else d
            self.views = nn.ModuleList(nn.Linear(d_view, cfg.width_joint, bias=False) for _ in range(2))
            self.view_dropout = nn.Dropout(cfg.uni_dropout)
        self.post_init()

    @property
    def step_samples(self) -> int:
        return self.encoder.step_samples

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding of the contrast [B, width_joint] and the vector from which UMA takes its two views."""
        if self.encoder.is_resnet:
            return self.ecg_projection(tokens)
        pooled = self.encoder.pool(tokens)
        return self.ecg_projection(pooled), pooled

    def forward(self, ecg, text=None, entities=None, queries=None) -> EcgOutput:
        """A training step; arguments as in K-MERL. Leads hidden by `lead_masking` are drawn anew in every call."""
        tokens, terms = self.encoder(hide_leads(self, ecg)), {}
        if self.cfg.has_contrast:
            projected, view = self.project(tokens)
            terms["contrastive"] = self.contrast(projected, text)
            if self.views is not None:
                views = [unit(self.view_dropout(linear(view))) for linear in self.views]
                terms["uni"] = info_nce(*views, self.cfg.temperature)
        if self.cfg.has_queries:
            terms["entity"] = entity_bce(self.query_network(queries, tokens), entities)
        return self.total(**terms)

    def features(self, ecg, leads: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T] in mV, missing leads filled; leads bool [12]: those that set the range (available_minmax)."""
        return self.encoder.pool(self.encoder(self.normalise(ecg, leads)))

    def scores(self, ecg, queries, leads: torch.Tensor | None = None) -> torch.Tensor:
        """Zero-shot scores [B, Q] of queries [Q, d_text]: cosines; logits where there is an entity head."""
        tokens = self.encoder(self.normalise(ecg, leads))
        if self.query_network is not None:
            return self.query_network(queries, tokens)
        return self.cosines(self.project(tokens)[0], queries)


def hide_leads(model: EcgModel, ecg: torch.Tensor) -> torch.Tensor:
    """A training input [B, 12, T] of encoders that need 12 rows: leads hidden by cfg.lead_masking, filled in mV, and
    only then normalised."""
    cfg = model.cfg
    if cfg.lead_masking == "none":
        return model.normalise(ecg)
    kept = draw_leads(len(ecg), cfg.lead_masking, cfg.masked_leads, cfg.p_full_leads).to(ecg.device)
    fill = 0.0
    if cfg.lead_fill == "record_mean":  # of the leads that are kept, one number per record
        fill = ((ecg.mean(-1) * kept).sum(1) / kept.sum(1))[:, None, None]
    return model.normalise(torch.where(kept[:, :, None], ecg, fill), kept)
