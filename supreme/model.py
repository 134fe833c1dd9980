"""SuPreME (reference: M3 to M6): lead-wise encoder, Cardiac Fusion Network, supervision by labels from reports.

    model = SupremeModel.build(ModelConfig(), None, n_samples=5000, d_text=768, n_classes=len(terms))
    model(ecg, y, mask, queries).loss           # ecg [B, 12, T] in mV; y, mask [B, L]; queries [L, d_text]: the terms
    model.eval().scores(ecg, class_vectors)     # zero-shot: other texts in place of the terms

`EcgModel` is what SuPreME shares with its baselines, which are in `supreme/baselines/`.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from shared.losses import unit
from supreme.cfn import CardiacFusionNetwork
from supreme.encoder import N_LEADS, LeadEncoder, ResNetEncoder, keep_tokens
from supreme.layers import LogitLinear
from supreme.losses import asymmetric, bce, count_labels, pos_weight
from supreme.ssl import SslConfig

CHOICES = {
    "method": ("supreme", "supervised", "merl", "simclr", "byol", "barlow_twins", "moco_v3", "simsiam", "ts_tcc",
               "clocs", "astcl", "crt", "st_mem"),
    "encoder": ("vit", "resnet"),
    "normalise": ("joint_minmax", "zscore", "none"),
    "head": ("cfn", "linear"),
    "queries": ("text", "learned", "onehot", "random", "permuted"),
    "loss": ("bce", "asymmetric"),
}  # fmt: skip


@dataclass
class ModelConfig:
    """Section `model:` of a YAML, for SuPreME and its baselines. Sizes of the ViT are MERL's ViT-tiny, those of the
    fusion network KAD's (defaults; the paper's are unknown).

    Args:
        method: supreme | supervised (a linear head on labels, from scratch) | merl | the name of a self-supervised
            objective; see `supreme/baselines/`.
        encoder: vit (tokens per lead) | resnet (ablation).
        normalise: min-max of each record to [0, 1] over its 12 leads (joint_minmax, as MERL), zero mean and unit
            variance over them (zscore), with which small models learn several times faster, or none (mV).
        patch: samples per segment; 50 = 100 ms at 500 Hz.
        width, depth, heads, mlp, dropout: of the ViT; width also of the ResNet's tokens.
        lead_embedding: a learned vector per lead (ablation: false).
        resnet_width: channels of the ResNet's first stage; 64 is the published one.
        token_drop: share of the ECG tokens left out of a training step, in every method; evaluation uses all.
        head: cfn | linear (ablation: mean token -> one logit per training term; a class is answered by the training
            term whose text is nearest to its own).
        queries: text | learned (a vector per training term) | onehot | random (fixed vectors) | permuted (each term
            asks with another term's text). In all but text a class is asked by the query of its nearest training term.
        cfn_layers, cfn_heads, cfn_width, cfn_mlp, cfn_dropout: of the fusion network.
        query_positions, query_self_attention: controls, with which a score depends on the list of queries.
        loss: bce | asymmetric (Ridnik et al., 2021).
        pos_weight: bce weighs positives by min(sqrt(negatives / positives), 20) of the records trained on so far.
    """

    method: str = "supreme"
    encoder: str = "vit"
    normalise: str = "joint_minmax"
    patch: int = 50
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp: int = 768
    dropout: float = 0.0
    lead_embedding: bool = True
    resnet_width: int = 64
    token_drop: float = 0.0
    head: str = "cfn"
    queries: str = "text"
    cfn_layers: int = 4
    cfn_heads: int = 4
    cfn_width: int = 768
    cfn_mlp: int = 1024
    cfn_dropout: float = 0.1
    query_positions: bool = False
    query_self_attention: bool = False
    loss: str = "bce"
    pos_weight: bool = False

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}: '{getattr(self, name)}' is none of {', '.join(allowed)}")
        if not 0 <= self.token_drop < 1:
            raise ValueError(f"model.token_drop: {self.token_drop} must be in [0, 1)")
        if self.head == "linear" and self.queries != "text":
            raise ValueError(f"model.queries: '{self.queries}' needs model.head cfn: a linear head asks no queries")
        if self.pos_weight and self.loss != "bce":
            raise ValueError("model.pos_weight goes with model.loss bce only")

    @property
    def by_nearest_term(self) -> bool:
        """A class is answered by the training term whose text is nearest, not by its own text."""
        return self.head == "linear" or self.queries != "text"


class EcgConfig(PretrainedConfig):
    """All that `from_pretrained` needs: `model` and `ssl` hold the fields of ModelConfig and SslConfig."""

    model_type = "supreme"
    model: dict | None = None
    ssl: dict | None = None
    n_samples: int = 5000  # longest input, in samples
    d_text: int = 768
    n_classes: int = 0  # labels of a record: training terms, or classes of a supervised head
    hidden_size: int = 0  # DeepSpeed sizes its "auto" buckets by it


@dataclass
class EcgOutput(ModelOutput):
    """The loss and the terms it is the sum of (detached)."""

    loss: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None


class EcgModel(PreTrainedModel):
    """What SuPreME and its baselines share: an encoder from normalised ecg [B, 12, T] to tokens. Subclasses add what is
    trained on top and `forward(**batch) -> EcgOutput`, which ignores what it does not need."""

    config_class = EcgConfig
    main_input_name = "ecg"
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: EcgConfig):
        super().__init__(config)
        cfg = self.cfg = ModelConfig(**config.model)
        self.ssl = None if config.ssl is None else SslConfig(**config.ssl)
        if cfg.encoder == "resnet":
            self.encoder = ResNetEncoder(cfg.width, cfg.resnet_width)
        else:
            segments = config.n_samples // cfg.patch
            sizes = cfg.width, cfg.depth, cfg.heads, cfg.mlp, cfg.patch, segments
            self.encoder = LeadEncoder(*sizes, cfg.lead_embedding, cfg.dropout)

    @classmethod
    def build(
        cls, cfg: ModelConfig, ssl: SslConfig | None, n_samples: int, d_text: int = 768, n_classes: int = 0
    ) -> "EcgModel":
        """A new model for ECGs of up to n_samples and text vectors of width d_text, weights drawn from torch's seed.

        The encoder is drawn first: with one seed all methods start from the same one.
        """
        sections = {"model": asdict(cfg), "ssl": None if ssl is None else asdict(ssl)}
        sizes = {"n_samples": n_samples, "d_text": d_text, "n_classes": n_classes, "hidden_size": cfg.width}
        return cls(cls.config_class(**sections, **sizes))

    def _init_weights(self, module: nn.Module) -> None:
        """The constructors' draws stay."""

    @property
    def step_samples(self) -> int:
        """Records must be whole multiples of this length."""
        return self.cfg.patch if self.cfg.encoder == "vit" else 1

    def normalise(self, ecg: torch.Tensor) -> torch.Tensor:
        """ecg [B, 12, T] in mV -> float32 by cfg.normalise. A flat record becomes 0."""
        ecg = ecg.float()
        if self.cfg.normalise == "none":
            return ecg
        if self.cfg.normalise == "zscore":
            centred = ecg - ecg.mean((1, 2), keepdim=True)
            return centred / (ecg.std((1, 2), correction=0, keepdim=True) + 1e-4)
        low, high = ecg.amin((1, 2), keepdim=True), ecg.amax((1, 2), keepdim=True)
        return (ecg - low) / (high - low + 1e-8)

    def visible(self, x: torch.Tensor) -> torch.Tensor | None:
        """Numbers of the tokens of x [B, 12, T] that this step computes, int64 [B, n]; None = all.

        In training the share cfg.token_drop is left out; a ResNet has no single tokens.
        """
        if not self.training or self.cfg.encoder != "vit":
            return None
        return keep_tokens(len(x), N_LEADS * self.encoder.n_segments(x.shape[-1]), self.cfg.token_drop, x.device)

    def features(self, ecg: torch.Tensor) -> torch.Tensor:
        """ecg [B, 12, T] in mV -> mean over all tokens after the final LayerNorm [B, width], for probing."""
        return self.encoder(self.normalise(ecg)).mean(1)


class Terms(nn.Module):
    """Text vectors of the training terms, kept with the weights: which of them is nearest to a class text?"""

    def __init__(self, n: int, d_text: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n, d_text))

    @torch.no_grad()
    def remember(self, vectors: torch.Tensor) -> None:
        """vectors [n, d_text]; ValueError where they are not as many as labels."""
        if len(vectors) != len(self.vectors):
            raise ValueError(f"{len(vectors)} queries for a model of {len(self.vectors)} training terms")
        self.vectors.copy_(vectors)

    def nearest(self, texts: torch.Tensor) -> torch.Tensor:
        """Number of the term of highest cosine with each of the texts [Q, d_text]: int64 [Q].

        ValueError for a model that was never trained, and so has no terms.
        """
        if not self.vectors.any():
            raise ValueError("this model was never trained: it knows no terms that could stand for a class")
        with torch.autocast(texts.device.type, enabled=False):
            return (unit(texts) @ unit(self.vectors).T).argmax(1)


class SupremeModel(EcgModel):
    """Encoder and Cardiac Fusion Network, trained by labels only; also its controls (`head`, `queries`)."""

    def __init__(self, config: EcgConfig):
        super().__init__(config)
        cfg, n, d_text = self.cfg, config.n_classes, config.d_text
        if n < 1 and (cfg.by_nearest_term or cfg.pos_weight):
            raise ValueError("this head needs the number of training terms: build(..., n_classes=...)")
        if cfg.head == "linear":
            self.linear = LogitLinear(cfg.width, n)
        else:
            sizes = cfg.cfn_width, cfg.cfn_layers, cfg.cfn_heads, cfg.cfn_mlp, cfg.cfn_dropout
            d_query = n if cfg.queries == "onehot" else d_text
            controls = cfg.query_positions, cfg.query_self_attention
            self.cfn = CardiacFusionNetwork(d_query, cfg.width, *sizes, *controls)
        if cfg.by_nearest_term:
            self.terms = Terms(n, d_text)
        if cfg.queries == "learned":
            self.own_queries = nn.Parameter(torch.randn(n, d_text))
        elif cfg.queries == "random":
            self.register_buffer("own_queries", torch.randn(n, d_text))
        elif cfg.queries == "permuted":
            order = torch.randperm(n)
            self.register_buffer("order", torch.empty_like(order).scatter_(0, order, order.roll(1)))  # one cycle
        if cfg.pos_weight:
            self.register_buffer("label_counts", torch.zeros(2, n, dtype=torch.int64))
        self.post_init()

    def forward(self, ecg, y, mask, queries, **_) -> EcgOutput:
        """A training step: ecg [B, 12, T] in mV, y [B, L] in [0, 1], mask bool [B, L] (False = not in the loss),
        queries [L, d_text], the text vectors of the L training terms."""
        if self.training and self.cfg.by_nearest_term:
            self.terms.remember(queries)
        x = self.normalise(ecg)
        logits = self.logits(self.encoder(x, self.visible(x)), self.term_queries(queries))
        loss = self.label_loss(logits, y, mask)
        return EcgOutput(loss=loss, terms={"labels": loss.detach()})

    def label_loss(self, logits: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """By cfg.loss, over the unmasked labels of all processes (reference: M5)."""
        if self.cfg.loss == "asymmetric":
            return asymmetric(logits, y, mask)
        if not self.cfg.pos_weight:
            return bce(logits, y, mask)
        if self.training:
            self.label_counts += count_labels(y, mask)
        return bce(logits, y, mask, pos_weight(self.label_counts))

    def term_queries(self, texts: torch.Tensor) -> torch.Tensor:
        """What each training term asks with, [L, d_query]; texts [L, d_text]: its own vectors."""
        if self.cfg.queries in ("learned", "random"):
            return self.own_queries
        if self.cfg.queries == "onehot":
            return torch.eye(self.config.n_classes, device=texts.device)
        return texts[self.order] if self.cfg.queries == "permuted" else texts

    def class_queries(self, texts: torch.Tensor) -> torch.Tensor:
        """What classes of any text [Q, d_text] ask with, [Q, d_query]."""
        if self.cfg.queries == "text":
            return texts
        return self.term_queries(self.terms.vectors)[self.terms.nearest(texts)]

    def logits(self, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """tokens [B, n, width], queries [Q, d_query] -> float32 [B, Q]; of a linear head [B, L], without queries."""
        return self.linear(tokens.mean(1)) if self.cfg.head == "linear" else self.cfn(queries, tokens)

    def scores(self, ecg: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Zero-shot: ecg [B, 12, T] in mV, text vectors of any classes [Q, d_text] -> logits [B, Q]."""
        logits = self.logits(self.encoder(self.normalise(ecg)), self.class_queries(queries))
        return logits[:, self.terms.nearest(queries)] if self.cfg.head == "linear" else logits

    def attention(self, ecg: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """What each query looks at: weights [B, Q, 12, M] over leads and segments, which sum to 1 for each query.

        Averaged over heads and blocks. ValueError for a model without lead-wise tokens or without fusion network.
        """
        if self.cfg.encoder != "vit" or self.cfg.head != "cfn":
            raise ValueError("attention needs model.encoder vit and model.head cfn")
        tokens = self.encoder(self.normalise(ecg))
        return self.cfn.attention(self.class_queries(queries), tokens).unflatten(-1, (N_LEADS, -1))
