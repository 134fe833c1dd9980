"""SimSiam: Chen, He, Exploring Simple Siamese Representation Learning, CVPR 2021, eq. 1 to 4. BYOL without the slow
target: the other view's projection, without gradient."""

from supreme.baselines.common import SslModel, cosine_loss


class SimSiam(SslModel):
    def parts(self):
        hidden, width = self.ssl.projection_hidden, self.ssl.projection_width
        projector = self.mlp(self.width, hidden, hidden, width, last_norm=True)
        predictor = self.mlp(width, max(1, width // 4), width)  # a bottleneck, published 512 of 2048
        return {"projector": projector, "predictor": predictor}

    def terms(self, ecg, patient):
        projected = self.objective["projector"](self.pooled(self.two_views(ecg)))
        first, second = self.objective["predictor"](projected).chunk(2)
        to_second, to_first = projected.chunk(2)
        return {"similarity": (cosine_loss(first, to_first) + cosine_loss(second, to_second)) / 2}
