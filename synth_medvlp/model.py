"""Vision-language pre-training (reference: ConVIRT, GLoRIA; Zero-shot classification, Zero-shot grounding).

model = VlpModel.build(ModelConfig(), tokeniser)
model(**batch).loss                                              # a batch of data.Collator
model = load("runs/../checkpoint")                               # eval mode
model.scores(model.pixels(images), (["there is edema"], ["no edema"]))  # images uint8 [B, H, W] -> [B, 1]
model.maps(model.pixels(images), "there is edema")                      # [B, h, w]
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from shared.losses import unit
from shared.runs.checkpoint import fetched
from synth_medvlp import convirt, gloria
from synth_medvlp.data import NORMALISE, normalise
from synth_medvlp.encoders import ImageEncoder, ImageTowerConfig, TextEncoder, TextTowerConfig, load_weights
from synth_medvlp.text import Prompts, TokenBatch, Tokeniser

# Settings that a profile fixes and a config may override.
PROFILES = {
    "convirt": {"resize": 0, "frozen_layers": 6, "head": "mlp", "projection": 512, "pool": "mean", "tau": 0.1,
                "weight_image": 0.75, "weight_text": 0.25},
    "convirt_mgca": {"resize": 299, "frozen_layers": 0, "head": "bn", "projection": 128, "pool": "cls", "tau": 0.07,
                     "weight_image": 1.0, "weight_text": 1.0},
    "gloria": {"resize": 299, "frozen_layers": 0},
}  # fmt: skip
SCORERS = ("cos", "pair", "gloria", "gloria_published", "global", "local")
OF_METHOD = {"convirt": SCORERS[:2], "gloria": SCORERS}
MAPS = ("attention", "cosine")  # of GLoRIA; ConVIRT has the second


@dataclass
class ModelConfig:
    """Section `model:`. null = by profile (PROFILES).

    Args:
        profile: convirt | convirt_mgca | gloria.
        image, text: the towers.
        head, projection, head_hidden: of ConVIRT: mlp | bn, width of the common space, hidden width of bn.
        pool: of ConVIRT's text: mean | max | cls.
        tau: ConVIRT's temperature. weight_image, weight_text: of the cross-entropies of images and of texts.
        temp1, temp2, temp3: of GLoRIA's attention, of its words, of its similarities.
        last_layers: of BERT, that GLoRIA sums.
        agg: GLoRIA's words: sum | mean.
        gather: negatives from all processes; false = of the own process only, as MGCA.
    """

    profile: str = "convirt"
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    head: str | None = None
    projection: int | None = None
    head_hidden: int = 2048
    pool: str | None = None
    tau: float | None = None
    weight_image: float | None = None
    weight_text: float | None = None
    temp1: float = 4.0
    temp2: float = 5.0
    temp3: float = 10.0
    last_layers: int = 4
    agg: str = "sum"
    gather: bool = True

    def __post_init__(self):
        allowed = {"profile": PROFILES, "head": ("mlp", "bn", None), "pool": ("mean", "max", "cls", None),
                   "agg": ("sum", "mean")}  # fmt: skip
        for key, some in allowed.items():
            _check(f"model.{key}", getattr(self, key), some)
        if isinstance(self.image, dict):  # from a checkpoint
            self.image, self.text = ImageTowerConfig(**self.image), TextTowerConfig(**self.text)
        _check("model.image.arch", self.image.arch, ("resnet", "vit"))
        _check("model.image.normalise", self.image.normalise, NORMALISE)

    @property
    def method(self) -> str:
        return "gloria" if self.profile == "gloria" else "convirt"

    def resolved(self) -> "ModelConfig":
        """A copy with what the profile decides filled in."""
        found = ModelConfig(**asdict(self))
        for key, value in PROFILES[self.profile].items():
            part = {"resize": found.image, "frozen_layers": found.text}.get(key, found)
            if getattr(part, key) is None:
                setattr(part, key, value)
        return found


def _check(key: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{key}: '{value}' is none of {', '.join(map(str, allowed))}")


class VlpConfig(PreTrainedConfig):
    """All that `from_pretrained` needs: the resolved ModelConfig and the architectures of the towers."""

    model_type = "synth_medvlp"
    model: dict | None = None
    image: dict | None = None
    text: dict | None = None
    hidden_size: int = 0  # DeepSpeed sizes its "auto" buckets by it


@dataclass
class VlpOutput(ModelOutput):
    """The loss and the terms it is the sum of (detached)."""

    loss: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None


class VlpModel(PreTrainedModel):
    """Image tower, text tower, and the method on top of them."""

    config_class = VlpConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: VlpConfig):
        super().__init__(config)
        cfg = self.cfg = ModelConfig(**config.model)
        image, text = (AutoConfig.for_model(**part) for part in (config.image, config.text))
        self.image = ImageEncoder(image, cfg.image.resize)
        self.text = TextEncoder(text, cfg.text.frozen, cfg.text.frozen_layers)
        if cfg.method == "gloria":
            if not 1 <= cfg.last_layers <= text.num_hidden_layers + 1:
                raise ValueError(f"model.last_layers: {cfg.last_layers} of a BERT of {text.num_hidden_layers} layers")
            self.on_top = gloria.Gloria(cfg, (*self.image.widths, text.hidden_size))
        else:
            self.on_top = convirt.Convirt(cfg, (self.image.widths[1], text.hidden_size))
        self.tokeniser: Tokeniser | None = None
        self.loaded: dict[str, int] = {}  # tower -> tensors that came from `name`
        self.post_init()

    @classmethod
    def build(cls, cfg: ModelConfig, tokeniser: Tokeniser) -> "VlpModel":
        """A new model, weights drawn from torch's seed or read from the hub, as cfg says."""
        cfg = cfg.resolved()
        image, text = cfg.image.architecture(), cfg.text.architecture(len(tokeniser))
        if len(tokeniser) > text.vocab_size:
            raise ValueError(f"a tokenizer of {len(tokeniser)} pieces for a BERT of {text.vocab_size}")
        parts = {"model": asdict(cfg), "image": image.to_dict(), "text": text.to_dict()}
        model = cls(VlpConfig(**parts, hidden_size=text.hidden_size))
        for tower, part in (("image", cfg.image), ("text", cfg.text)):
            if part.name and part.pretrained:
                model.loaded[tower] = load_weights(getattr(model, tower).backbone, part.name)
        model.tokeniser = tokeniser
        return model

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The constructors' draws stay."""

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs) -> "VlpModel":
        """A checkpoint with its tokenizer, in eval mode. name: a folder, or `owner/name` on the hub."""
        folder = fetched(name)
        model = super().from_pretrained(folder, *args, **kwargs)
        model.tokeniser = Tokeniser.load(folder)
        return model

    def save_pretrained(self, folder, **kwargs) -> None:
        super().save_pretrained(folder, **kwargs)
        if self.tokeniser is not None and kwargs.get("is_main_process", True):
            self.tokeniser.save(folder)

    # --- training ---

    def forward(self, pixel_values, input_ids, attention_mask, word_ids, **_) -> VlpOutput:
        """pixel_values [B, 1 or 3, H, W], normalised; texts int64 [B, L] (see text.TokenBatch)."""
        maps, hidden = self.image(pixel_values), self.text(input_ids, attention_mask)
        terms = self.on_top.loss(maps, hidden, attention_mask, word_ids)
        return VlpOutput(loss=sum(terms.values()), terms={k: v.detach() for k, v in terms.items()})

    # --- inference ---

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W] -> float32 [B, 1 or 3, H, W], normalised as in training."""
        return normalise(images, self.cfg.image.normalise)

    def image_maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Maps of the backbone from the widest to the deepest; a ResNet's first one is its stem before pooling."""
        return self.image.maps(pixels)

    def image_features(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(global [B, d], local [B, d, h, w], mean of the last map [B, w], for probes)."""
        maps = self.image(pixels)
        return self.on_top.image(maps), self.on_top.cells(maps), maps[1].mean((2, 3))

    def text_features(self, tokens: TokenBatch) -> torch.Tensor | gloria.Words:
        """Of a ConVIRT model unit rows [P, d], of a GLoRIA model its Words."""
        hidden = self.text(tokens.input_ids, tokens.attention_mask)
        if self.cfg.method == "gloria":
            return self.on_top.text(hidden, tokens.word_ids)
        return self.on_top.text(hidden, tokens.attention_mask)

    def scores(
        self,
        pixels: torch.Tensor,
        prompts: tuple[Sequence[str | Sequence[str]], Sequence[str | Sequence[str]]],
        scorer: str | None = None,
    ) -> torch.Tensor:
        """Scores float32 [B, C] of C classes; prompts: (positive, negative) texts, for each class one or a list.

        cos: cosine of the global vectors, mean over a list. pair: softmax over the positive and the negative text,
        which are means of unit vectors, without temperature (CheXzero). gloria: (cosine + local) / 2, maximum over a
        list; gloria_published: with the characters of a prompt as the number of its words; global, local: the
        two parts. null = cos of ConVIRT, gloria of GLoRIA. ValueError for a scorer that the method does not have.
        """
        scorer = scorer or OF_METHOD[self.cfg.method][0 if self.cfg.method == "convirt" else 2]
        _check(f"eval.scorer ({self.cfg.method})", scorer, OF_METHOD[self.cfg.method])
        positive, negative = prompts
        if scorer == "pair" and not negative:
            raise ValueError("eval.scorer pair needs the negative prompts of all classes")
        asked = self.tokeniser.prompts(positive, negative if scorer == "pair" else ())
        asked = Prompts(*(part.to(self.device) for part in asked))
        texts, maps = self.text_features(asked.tokens), self.image(pixels)
        v, u = self.on_top.image(maps), texts if self.cfg.method == "convirt" else texts.total
        if scorer == "pair":
            return _pair(v, u, asked)
        cos, local = gloria.cosine(v, u), None
        if scorer in ("gloria", "gloria_published", "local"):
            characters = asked.characters if scorer == "gloria_published" else None
            words = gloria.prompt_words(texts, characters)
            V = gloria.regions(self.on_top.cells(maps))
            local = gloria.prompt_scores(V, *words, self.cfg.temp1, self.cfg.temp2)
        per_prompt = {"cos": cos, "global": cos, "local": local}.get(scorer, None)
        per_prompt = (cos + local) / 2 if per_prompt is None else per_prompt
        return _per_class(per_prompt, asked.of_class, "mean" if scorer == "cos" else "amax")

    def maps(self, pixels: torch.Tensor, prompt: str, kind: str | None = None) -> torch.Tensor:
        """Where a prompt points, float32 [B, h, w]. Of ConVIRT the cosine of each cell of the last map; of GLoRIA the
        mean over the words of their attention, or, kind cosine, of their cosine with each cell."""
        asked = self.tokeniser.prompts([prompt]).tokens.to(self.device)
        cells, texts = self.on_top.cells(self.image(pixels)), self.text_features(asked)
        if self.cfg.method == "convirt":
            _check("kind of map (convirt)", kind or "cosine", MAPS[1:])
            return torch.einsum("bdhw,d->bhw", cells, texts[0])
        _check("kind of map (gloria)", kind or "attention", MAPS)
        words, mask = gloria.prompt_words(texts)
        words, mask, V = words[:, : int(texts.n)], mask[:, : int(texts.n)], gloria.regions(cells)
        if kind == "cosine":
            found = gloria.cosine(V.flatten(0, 1), words[0]).mean(1)
        else:
            found = gloria.attend(V, words, mask, self.cfg.temp1).attention[:, 0].mean(1)
        return found.reshape(-1, *cells.shape[2:])


def _pair(v: torch.Tensor, u: torch.Tensor, asked: Prompts) -> torch.Tensor:
    """[B, C]: e^s+ / (e^s+ + e^s-) over cosines."""
    u, sides = unit(u), []
    for negative in (False, True):
        of_class = asked.of_class[asked.negative == negative]
        mean = torch.zeros(int(of_class.max()) + 1, u.shape[1], device=u.device)
        mean.index_add_(0, of_class, u[asked.negative == negative])
        sides.append(gloria.cosine(v, mean))
    return torch.sigmoid(sides[0] - sides[1])


def _per_class(scores: torch.Tensor, of_class: torch.Tensor, how: str) -> torch.Tensor:
    """[B, P] of prompts -> [B, C] of classes: mean | amax over the prompts of a class."""
    found = scores.new_zeros(len(scores), int(of_class.max()) + 1)
    return found.scatter_reduce(1, of_class.expand_as(scores), scores, how, include_self=False)


def tokeniser_of(cfg: TextTowerConfig, texts: Iterable[str]) -> Tokeniser:
    """The tokenizer that comes with the tower's name; without one, trained on the texts."""
    if cfg.name:
        return Tokeniser.load(cfg.name, cfg.max_tokens)
    return Tokeniser.train(texts, cfg.vocabulary, cfg.max_tokens)


def load(checkpoint: str | Path) -> VlpModel:
    """`VlpModel.from_pretrained`, which says what to do where there is no checkpoint: FileNotFoundError."""
    file = fetched(checkpoint) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no checkpoint there; train one with `python -m synth_medvlp.train`")
    return VlpModel.from_pretrained(file.parent)
