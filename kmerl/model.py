"""K-MERL (reference: M2 to M7): tokens cut per lead, most leads hidden in training, entity names as queries.

    model = KmerlModel.build(ModelConfig(), n_samples=5000, d_text=768)
    model(ecg, text, entities, queries).loss                    # ecg [B, 12, T] in mV; masking happens inside
    model.eval().scores(ecg, queries, leads)                    # zero-shot, from whichever leads exist

Signals are normalised here, after what is hidden has been hidden; min-max of a signal that is in [0, 1] already changes
nothing but its range.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from kmerl.encoder import LeadEncoder
from kmerl.heads import CardiacQueryNetwork, ecg_projection, text_projection
from kmerl.losses import entity_bce
from kmerl.masking import Visible, all_tokens, draw_tokens, masked_not_dropped
from shared.losses import info_nce, unit

METHODS = {"kmerl": ("lead-vit",), "merl": ("resnet", "vit"), "supervised": ("lead-vit", "resnet", "vit")}
NORMALISATIONS = ("available_minmax", "joint_minmax", "available_zscore", "none")


@dataclass
class ModelConfig:
    """Section `model:` of a YAML, for K-MERL and its baselines.

    Args:
        method: kmerl | merl | supervised (a linear head on labels, from scratch).
        encoder: lead-vit | resnet | vit; null = the method's own: lead-vit, for MERL resnet.
        normalise: min-max of each record to [0, 1] over the leads that a model sees (available_minmax), over all 12 as
            published, by which hidden leads leak their range (joint_minmax); zero mean and unit variance over the leads
            that a model sees (available_zscore), with which small models learn several times faster; or none (mV).
        patch: samples per segment; 50 = 100 ms at 500 Hz (M2, default; the paper's value is unknown).
        width, depth, heads, mlp: of the ViTs; MERL's ViT-tiny (M3).
        tokens: lead | joint (ablation: segments of all leads in one token, missing leads zero).
        lead_embedding: learnable vector per lead (ablation: false).
        masked_leads: number of leads hidden in a step, drawn uniformly (M4); [0] hides none.
        segment_masking: share of the segments hidden in each kept lead (M4).
        p_full_leads: probability that a batch keeps all 12 leads.
        drop_tokens: hidden tokens are not computed; false computes and masks them: the same result, slower.
        width_joint: of the projections and their contrast (M5).
        projection_norm: batch (as MERL) | layer, which has no statistics over the batch.
        temperature: of the contrast, constant (M7).
        query_width, query_layers, query_heads, query_mlp, query_dropout: of the cardiac query network (M6).
        query_self_attention: queries attend to each other, as in KAD; then a score depends on the other queries.
        entity_loss, contrastive_loss: weights, both 1 as published; 0 leaves the branch out (ablations). Zero-shot
            scores come from the query network, or from cosines where there is none.
        resnet_width: channels of the first stage of MERL's ResNet18; 64 is the published one.
        uni_loss: weight of MERL's uni-modal alignment (M9).
        uni_dropout: dropout of its two views.
        lead_masking: none | random | kmerl: leads that resnet and vit do not see in a training step (Controls); see
            `masking.draw_leads`. The lead-vit masks by masked_leads and segment_masking instead.
        lead_fill: zero | record_mean, in mV, in place of them.
        entity_head: MERL with the cardiac query network on its feature map (Controls); zero-shot scores come from it.
    """

    method: str = "kmerl"
    encoder: str | None = None
    normalise: str = "available_minmax"
    patch: int = 50
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp: int = 768
    tokens: str = "lead"
    lead_embedding: bool = True
    masked_leads: list[int] = field(default_factory=lambda: [9, 10, 11])
    segment_masking: float = 0.25
    p_full_leads: float = 0.0
    drop_tokens: bool = True
    width_joint: int = 256
    projection_norm: str = "batch"
    temperature: float = 0.07
    query_width: int = 256
    query_layers: int = 4
    query_heads: int = 4
    query_mlp: int = 1024
    query_dropout: float = 0.1
    query_self_attention: bool = False
    entity_loss: float = 1.0
    contrastive_loss: float = 1.0
    resnet_width: int = 64
    uni_loss: float = 1.0
    uni_dropout: float = 0.1
    lead_masking: str = "none"
    lead_fill: str = "zero"
    entity_head: bool = False

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"model.method: '{self.method}' is none of {', '.join(METHODS)}")
        if self.encoder is not None and self.encoder not in METHODS[self.method]:
            raise ValueError(
                f"model.encoder: '{self.encoder}' does not go with method {self.method}: "
                f"use {' or '.join(METHODS[self.method])}"
            )
        choices = {"tokens": ("lead", "joint"), "normalise": NORMALISATIONS, "lead_fill": ("zero", "record_mean")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}: '{getattr(self, name)}' is none of {', '.join(allowed)}")
        if not 0 <= self.segment_masking < 1 or not 0 <= self.p_full_leads <= 1:
            raise ValueError("model.segment_masking must be in [0, 1) and model.p_full_leads in [0, 1]")
        if not self.has_contrast and not self.has_queries and self.method != "supervised":
            raise ValueError(f"model: {self.method} has nothing to train: entity and contrastive branch are both off")

    @property
    def encoder_name(self) -> str:
        return self.encoder or METHODS[self.method][0]

    @property
    def has_contrast(self) -> bool:
        return self.contrastive_loss > 0

    @property
    def trains_pooled(self) -> bool:
        """A loss stands on the pooled ECG, not only on the tokens."""
        return self.has_contrast or self.method == "supervised"

    @property
    def has_queries(self) -> bool:
        return self.entity_loss > 0 and (self.method == "kmerl" or self.entity_head)


class EcgConfig(PretrainedConfig):
    """All that `from_pretrained` needs: `model` holds the fields of ModelConfig."""

    model: dict | None = None
    n_samples: int = 5000  # longest input, in samples
    d_text: int = 768
    n_classes: int = 0  # of a supervised head
    hidden_size: int = 0  # DeepSpeed sizes its "auto" buckets by it


class KmerlConfig(EcgConfig):
    model_type = "kmerl"


@dataclass
class EcgOutput(ModelOutput):
    """Weighted sum and its terms (unweighted); None where a model does not have the term."""

    loss: torch.Tensor | None = None
    contrastive: torch.Tensor | None = None
    entity: torch.Tensor | None = None
    uni: torch.Tensor | None = None


class EcgModel(PreTrainedModel):
    """What K-MERL and its baselines share. An encoder maps normalised ecg [B, 12, T] to tokens and pooled features."""

    main_input_name = "ecg"
    accepts_loss_kwargs = False
    _supports_sdpa = True
    accepts_partial_leads = False  # true where `leads` alone hides leads; else missing ones are filled beforehand

    def __init__(self, config: EcgConfig):
        super().__init__(config)
        self.cfg = ModelConfig(**config.model)

    @classmethod
    def build(cls, cfg: ModelConfig, n_samples: int, d_text: int = 768, n_classes: int = 0):
        """A new model for ECGs of up to n_samples and text vectors of width d_text, weights drawn from torch's seed."""
        sizes = {"n_samples": n_samples, "d_text": d_text, "n_classes": n_classes, "hidden_size": cfg.width}
        return cls(cls.config_class(model=asdict(cfg), **sizes))

    def _init_weights(self, module: nn.Module) -> None:
        """The constructors' draws stay."""

    def add_heads(self, d_features: int, d_tokens: int, projection: nn.Module | None = None) -> None:
        """The branches of both methods that have a loss; each has parameters only where it is trained.

        d_features, d_tokens: widths of the pooled ECG and of the tokens; projection: in place of the MLP of M5.
        """
        cfg, d_text = self.cfg, self.config.d_text
        self.text_projection = self.ecg_projection = self.query_network = None
        if cfg.has_contrast:
            self.text_projection = text_projection(d_text, cfg.width_joint)
            self.ecg_projection = projection or ecg_projection(d_features, cfg.width_joint, cfg.projection_norm)
        if cfg.has_queries:
            sizes = cfg.query_width, cfg.query_layers, cfg.query_heads, cfg.query_mlp, cfg.query_dropout
            self.query_network = CardiacQueryNetwork(d_text, d_tokens, *sizes, cfg.query_self_attention)

    def normalise(self, ecg: torch.Tensor, leads: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T] in mV -> float32 by cfg.normalise; leads: bool [12] or [B, 12], those available.

        A flat record becomes 0. Rows of leads that are not available may leave [0, 1].
        """
        ecg = ecg.float()
        if self.cfg.normalise == "none":
            return ecg
        seen = torch.ones(1, 12, dtype=torch.bool, device=ecg.device)
        if leads is not None and self.cfg.normalise != "joint_minmax":
            seen = leads.to(ecg.device).view(-1, 12)
        seen = seen.expand(len(ecg), -1)[:, :, None]  # [B, 12, 1]
        if self.cfg.normalise == "available_zscore":
            n = seen.sum((1, 2), keepdim=True) * ecg.shape[-1]
            centred = ecg - (ecg * seen).sum((1, 2), keepdim=True) / n
            return centred / (((centred**2 * seen).sum((1, 2), keepdim=True) / n).sqrt() + 1e-4)
        low = ecg.masked_fill(~seen, torch.inf).amin((1, 2), keepdim=True)
        high = ecg.masked_fill(~seen, -torch.inf).amax((1, 2), keepdim=True)
        return (ecg - low) / (high - low + 1e-8)

    def contrast(self, projected: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of ECGs projected [B, width_joint] and report vectors text [B, d_text]."""
        return info_nce(unit(projected), unit(self.text_projection(text)), self.cfg.temperature)

    def cosines(self, projected: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        a, b = unit(projected), unit(self.text_projection(queries))
        with torch.autocast(a.device.type, enabled=False):  # as the loss computes them
            return a @ b.T

    def total(self, **terms: torch.Tensor) -> EcgOutput:
        """L = sum of the losses by their weights (M7: plain sum)."""
        loss = sum(getattr(self.cfg, f"{name}_loss") * term for name, term in terms.items())
        return EcgOutput(loss=loss, **terms)


class KmerlModel(EcgModel):
    config_class = KmerlConfig
    accepts_partial_leads = True

    def __init__(self, config: KmerlConfig):
        super().__init__(config)
        self.encoder = lead_encoder(self.cfg, config.n_samples)
        self.add_heads(self.cfg.width, self.cfg.width)
        self.post_init()

    @property
    def step_samples(self) -> int:
        """Records must be whole multiples of this length."""
        return self.cfg.patch

    def forward(self, ecg, text=None, entities=None, queries=None) -> EcgOutput:
        """A training step: ecg [B, 12, T] in mV, text [B, d_text], entities [B, E] of 1 / 0 / -1 (ignored), queries
        [E, d_text], the vectors of the entity names. What is hidden is drawn anew in every call."""
        tokens, visible = encode_masked(self, ecg)
        terms = {}
        if self.cfg.has_contrast:
            terms["contrastive"] = self.contrast(self.ecg_projection(self.encoder.pool(tokens, visible)), text)
        if self.cfg.has_queries:
            terms["entity"] = entity_bce(self.query_network(queries, tokens, visible.mask), entities)
        return self.total(**terms)

    def features(self, ecg, leads: torch.Tensor | None = None) -> torch.Tensor:
        """ecg [B, 12, T] in mV, leads bool [12] (None = all) -> pooled encoder output [B, width], for probing."""
        return self.encoder.pool(*encode_all(self, ecg, leads))

    def scores(self, ecg, queries, leads: torch.Tensor | None = None) -> torch.Tensor:
        """Zero-shot scores [B, Q] of queries [Q, d_text]: logits of the query network (cosines without one)."""
        tokens, visible = encode_all(self, ecg, leads)
        if self.query_network is None:
            return self.cosines(self.ecg_projection(self.encoder.pool(tokens, visible)), queries)
        return self.query_network(queries, tokens)

    def attention(self, ecg, queries, leads: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """What each query looks at: weights [B, Q, n] (rows sum to 1), lead [n] (row of LEADS; -1 for joint tokens) and
        segment [n] of each token. ValueError for a model without a query network."""
        if self.query_network is None:
            raise ValueError("attention needs the cardiac query network: this model was trained with entity_loss 0")
        tokens, visible = encode_all(self, ecg, leads)
        m, index = ecg.shape[-1] // self.cfg.patch, visible.index[0]
        lead = torch.full_like(index, -1) if self.encoder.tokens.joint else index // m
        return self.query_network.attention(queries, tokens), lead, index % m


def lead_encoder(cfg: ModelConfig, n_samples: int) -> LeadEncoder:
    tokens = {"patch": cfg.patch, "max_segments": n_samples // cfg.patch, "joint": cfg.tokens == "joint"}
    tokens["lead_embedding"] = cfg.lead_embedding
    return LeadEncoder(cfg.width, cfg.depth, cfg.heads, cfg.mlp, cfg.trains_pooled, **tokens)


def encode_masked(model: EcgModel, ecg: torch.Tensor) -> tuple[torch.Tensor, Visible]:
    """Final tokens of what a training step shows (reference: M4), and which tokens those are."""
    cfg, tokens = model.cfg, model.encoder.tokens
    m = tokens.n_segments(ecg.shape[-1])
    visible = draw_tokens(len(ecg), m, tokens.joint, cfg.masked_leads, cfg.segment_masking, cfg.p_full_leads)
    if not cfg.drop_tokens:
        visible = masked_not_dropped(visible, m if tokens.joint else 12 * m)
    visible = visible.to(ecg.device)
    return model.encoder(model.normalise(ecg, visible.leads), visible), visible


def encode_all(model: EcgModel, ecg: torch.Tensor, leads: torch.Tensor | None) -> tuple[torch.Tensor, Visible]:
    """Final tokens of all segments of the leads that exist."""
    tokens = model.encoder.tokens
    visible = all_tokens(len(ecg), tokens.n_segments(ecg.shape[-1]), tokens.joint, leads).to(ecg.device)
    return model.encoder(model.normalise(ecg, visible.leads), visible), visible
