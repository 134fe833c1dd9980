"""Supervised from scratch (reference: Controls): an encoder of either kind and one linear layer on the labels."""

import torch
from torch import nn

from kmerl.baselines.merl import TwelveLeadEncoder, hide_leads
from kmerl.losses import entity_bce
from kmerl.model import EcgConfig, EcgModel, EcgOutput, encode_all, encode_masked, lead_encoder


class SupervisedConfig(EcgConfig):
    model_type = "ecg-supervised"


class SupervisedModel(EcgModel):
    """n_classes logits from the pooled features. Leads are hidden in training as the encoder's own method hides them:
    masked_leads [0] and segment_masking 0 (lead-vit) or lead_masking "none" (resnet, vit) show everything."""

    config_class = SupervisedConfig

    def __init__(self, config: SupervisedConfig):
        super().__init__(config)
        if config.n_classes < 1:
            raise ValueError("a supervised model needs the number of its classes: build(..., n_classes=...)")
        self.by_lead = self.cfg.encoder_name == "lead-vit"
        make = lead_encoder if self.by_lead else TwelveLeadEncoder
        self.encoder = make(self.cfg, config.n_samples)
        self.head = nn.Linear(self.cfg.width if self.by_lead else self.encoder.d_tokens, config.n_classes)
        self.post_init()

    @property
    def accepts_partial_leads(self) -> bool:
        return self.by_lead

    @property
    def step_samples(self) -> int:
        return self.cfg.patch if self.by_lead else self.encoder.step_samples

    def forward(self, ecg, entities, text=None, queries=None) -> EcgOutput:
        """ecg [B, 12, T] in mV, entities: labels [B, n_classes], 1 / 0 / -1 (ignored); text, queries: not used."""
        if self.by_lead:
            features = self.encoder.pool(*encode_masked(self, ecg))
        else:
            features = self.encoder.pool(self.encoder(hide_leads(self, ecg)))
        loss = entity_bce(self.head(features), entities)
        return EcgOutput(loss=loss, entity=loss)

    def features(self, ecg, leads: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled encoder output [B, d]; leads as in K-MERL (lead-vit) or MERL."""
        if self.by_lead:
            return self.encoder.pool(*encode_all(self, ecg, leads))
        return self.encoder.pool(self.encoder(self.normalise(ecg, leads)))

    def scores(self, ecg, queries=None, leads: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the classes [B, n_classes]; queries are not used: the head knows its classes by position."""
        return self.head(self.features(ecg, leads))
