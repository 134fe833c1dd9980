"""BYOL: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, section 3.1. A predictor maps one view's projection to
the slow target's projection of the other; no negatives."""

from supreme.baselines.common import SslModel, Target, cosine_loss, rising


class Byol(SslModel):
    momentum = 0.996  # section 3.3: from there to 1 along half a cosine

    def parts(self):
        hidden, width = self.ssl.projection_hidden, self.ssl.projection_width
        projector = self.mlp(self.width, hidden, width)
        target = Target(encoder=self.encoder, projector=projector)
        return {"projector": projector, "predictor": self.mlp(width, hidden, width), "target": target}

    def terms(self, ecg, patient):
        views, parts = self.two_views(ecg), self.objective
        first, second = parts["predictor"](parts["projector"](self.pooled(views))).chunk(2)
        to_second, to_first = parts["target"].project(self.pooled, views).chunk(2)
        # Eq. 2 and its mirror: |a - b|^2 of unit vectors is 2 - 2 cosine
        return {"similarity": 4 + 2 * cosine_loss(first, to_first) + 2 * cosine_loss(second, to_second)}

    def after_step(self, progress):
        target, projector = self.objective["target"], self.objective["projector"]
        target.follow(rising(self.momentum, progress), encoder=self.encoder, projector=projector)
