"""MERL: Liu et al., Zero-Shot ECG Classification with Multimodal Learning and Test-time Clinical Knowledge
Enhancement, ICML 2024, section 3: contrast of ECG and report (CMA) and of two dropped-out views of the ECG (UMA), on
the encoder that all share. Zero-shot scores are cosines with the vectors of the class texts."""

import torch
from torch import nn

from shared.losses import info_nce, unit
from supreme.baselines.common import SslModel
from supreme.model import EcgOutput


class Merl(SslModel):
    temperature = 0.07  # of its public code, constant

    def parts(self):
        width, d_text = self.ssl.projection_width, self.config.d_text
        parts = {
            "ecg": self.mlp(self.width, width, width, last_norm=True),
            "text": nn.Sequential(nn.Linear(d_text, width), nn.GELU(), nn.Linear(width, width)),
        }
        if self.ssl.uni_weight:
            parts["views"] = nn.ModuleList(nn.Linear(self.width, width, bias=False) for _ in range(2))
        return parts

    def forward(self, ecg, text, **_) -> EcgOutput:
        """ecg [B, 12, T] in mV, text [B, d_text]: the vectors of the whole reports."""
        pooled = self.pooled(self.normalise(ecg))
        a, b = unit(self.objective["ecg"](pooled)), unit(self.objective["text"](text))
        terms = {"cross_modal": info_nce(a, b, self.temperature)}
        if self.ssl.uni_weight:
            views = (view(nn.functional.dropout(pooled, self.ssl.uni_dropout)) for view in self.objective["views"])
            terms["uni_modal"] = self.ssl.uni_weight * info_nce(*map(unit, views), self.temperature)
        return EcgOutput(loss=sum(terms.values()), terms={name: term.detach() for name, term in terms.items()})

    def scores(self, ecg, queries):
        """Cosines [B, Q] of records [B, 12, T] and text vectors [Q, d_text]."""
        a, b = unit(self.objective["ecg"](self.features(ecg))), unit(self.objective["text"](queries))
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.T
