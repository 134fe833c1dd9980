"""Section `ssl:` of a YAML: the hyper-parameters of the self-supervised baselines, all in one place.

null = the method's own published value, which its class in `supreme/baselines/` states. Published widths belong to
2048-wide ResNet-50 features; ours (default) are smaller, as the encoder is.
"""

from dataclasses import dataclass

PROJECTION_NORMS = ("batch", "layer")
CLOCS_VIEWS = ("cmsc", "cmlc", "cmsmlc")


@dataclass
class SslConfig:
    """Hyper-parameters of all objectives; each method reads only its own.

    Args:
        crop: lowest share of a record that a view shows, stretched to full length; two-view methods. 0.5 as in Mehari
            and Strodthoff 2022 (random resized crop), who compared views for 12-lead ECGs.
        time_out: highest share of a view that is set to 0 mV; two-view methods. 0.5, same source.
        temperature: of the contrasts; null = SimCLR 0.1, MoCo-v3 0.2, TS-TCC 0.2, CLOCS 0.1, MERL 0.07.
        momentum: of the target network at the start, rising to 1 by a cosine; null = BYOL 0.996, MoCo-v3 0.99.
        projection_width: of the vectors on which a loss stands; 256 as in BYOL and MoCo-v3.
        projection_hidden: of the projections' hidden layers; published 4096 (BYOL, MoCo-v3), 2048 (SimCLR, SimSiam).
        projection_norm: batch, as published | layer, which has no statistics over the batch.
        barlow_width: of Barlow Twins' projection and its hidden layers, published 8192.
        barlow_lambda: weight of the redundancy term; 0.0051 as published.
        mask_ratio: share of the patches that ST-MEM hides; 0.75 as published.
        crt_drop_low, crt_drop_high: share of the patches that CRT drops: the share of the training that is over, kept
            in this range; 0.3 and 0.8 as in its public code.
        crt_instance: weight of CRT's instance discrimination; 1e-4 as in its public code.
        decoder_width, decoder_depth, decoder_heads: of the light decoders; 256, 4 and 4 as in ST-MEM (CRT's has 2
            layers and 8 heads).
        jitter: white noise of TS-TCC's strong view, in standard deviations of the record; its paper tunes it per data
            set (0.001 to 0.8), not for ECGs (default).
        max_segments: most pieces into which TS-TCC's strong view cuts a record; 8 as in its settings for HAR.
        horizon: time steps that TS-TCC predicts, fewer than a record has; 6 as in its settings for HAR.
        context_width, context_depth, context_heads, context_mlp: of TS-TCC's context model; 100, 4, 4, 64 as published.
        contextual_weight: of TS-TCC's contextual contrast; 0.7 as published (1 for the temporal one).
        clocs: cmsc | cmlc | cmsmlc: views of CLOCS are halves of a record, leads, or both.
        adversarial_weight: of ASTCL's adversarial term (default; not established).
        noise: of ASTCL's noisy view, in standard deviations of the record (default; not established).
        uni_weight, uni_dropout: of MERL's uni-modal alignment; 1 and 0.1 as published.
    """

    crop: float = 0.5
    time_out: float = 0.5
    temperature: float | None = None
    momentum: float | None = None
    projection_width: int = 256
    projection_hidden: int = 1024
    projection_norm: str = "batch"
    barlow_width: int = 1024
    barlow_lambda: float = 0.0051
    mask_ratio: float = 0.75
    crt_drop_low: float = 0.3
    crt_drop_high: float = 0.8
    crt_instance: float = 1e-4
    decoder_width: int = 256
    decoder_depth: int = 4
    decoder_heads: int = 4
    jitter: float = 0.1
    max_segments: int = 8
    horizon: int = 6
    context_width: int = 100
    context_depth: int = 4
    context_heads: int = 4
    context_mlp: int = 64
    contextual_weight: float = 0.7
    clocs: str = "cmsc"
    adversarial_weight: float = 0.1
    noise: float = 0.3
    uni_weight: float = 1.0
    uni_dropout: float = 0.1

    def __post_init__(self):
        for name, allowed in {"projection_norm": PROJECTION_NORMS, "clocs": CLOCS_VIEWS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"ssl.{name}: '{getattr(self, name)}' is none of {', '.join(allowed)}")
        for name in ("mask_ratio", "crt_drop_low", "crt_drop_high"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"ssl.{name}: {getattr(self, name)} must be in (0, 1)")
        if not 0 < self.crop <= 1 or not 0 <= self.time_out < 1:
            raise ValueError(f"ssl.crop {self.crop} must be in (0, 1] and ssl.time_out {self.time_out} in [0, 1)")
        if self.crt_drop_low > self.crt_drop_high:
            raise ValueError(f"ssl.crt_drop_low {self.crt_drop_low} is above ssl.crt_drop_high {self.crt_drop_high}")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"ssl.temperature: {self.temperature} must be positive, or null")
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"ssl.momentum: {self.momentum} must be in [0, 1], or null")
        if self.max_segments < 1 or self.horizon < 1:
            raise ValueError("ssl.max_segments and ssl.horizon must be at least 1")
