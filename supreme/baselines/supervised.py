"""Supervised from scratch (reference: Controls, ceiling): the encoder, its mean token, one linear layer on labels."""

from supreme.baselines.common import SslModel
from supreme.layers import LogitLinear
from supreme.losses import bce
from supreme.model import EcgOutput


class Supervised(SslModel):
    def parts(self):
        if self.config.n_classes < 1:
            raise ValueError("a supervised model needs the number of its classes: build(..., n_classes=...)")
        return {"head": LogitLinear(self.width, self.config.n_classes)}

    def forward(self, ecg, y, mask=None, **_) -> EcgOutput:
        """ecg [B, 12, T] in mV, y [B, n_classes], mask bool [B, n_classes] (False: not in the loss)."""
        logits = self.objective["head"](self.pooled(self.normalise(ecg)))
        loss = bce(logits, y, y == y if mask is None else mask)
        return EcgOutput(loss=loss, terms={"labels": loss.detach()})

    def scores(self, ecg, queries=None):
        """Logits [B, n_classes]; queries are not used: the head knows its classes by position."""
        return self.objective["head"](self.features(ecg))
