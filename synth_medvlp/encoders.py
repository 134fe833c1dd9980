"""The two towers of VLP, from `transformers`: ResNet or ViT for images, BERT for texts (reference: ConVIRT, GLoRIA).

Sizes come from the config; with a hub name, or a folder, they and the weights come from there. What is loaded is
counted and nothing may be missing.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from synth_medvlp.data import NORMALISE


@dataclass
class ImageTowerConfig:
    """Section `model.image:`. The sizes are read where `name` is null.

    Args:
        arch: resnet | vit.
        name: hub name or folder of weights (microsoft/resnet-50, ImageNet; or a backbone of our own).
        pretrained: false = the sizes of `name`, new weights.
        resize: side to which the encoder resizes its input, bilinear with aligned corners; 0 = as it comes, null = by
            profile (299 in gloria and convirt_mgca).
        normalise: half (mean and standard deviation 0.5) | imagenet (of data.NORMALISE).
        stem, stages, depths, layer: of a ResNet: channels of the stem and of each stage, blocks of each stage, basic |
            bottleneck. Stem and pooling take a quarter of the side; each stage but the first halves it.
        width, depth, heads, mlp, patch, size: of a ViT; size = side of the images in pixels.
    """

    arch: str = "resnet"
    name: str | None = "microsoft/resnet-50"
    pretrained: bool = True
    resize: int | None = None
    normalise: str = "half"
    stem: int = 64
    stages: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    depths: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    layer: str = "bottleneck"
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: int = 16
    size: int = 224

    def architecture(self) -> PreTrainedConfig:
        if self.name:
            config = AutoConfig.from_pretrained(self.name)
            if config.model_type != self.arch:
                raise ValueError(f"model.image.name: {self.name} is a {config.model_type}, not a {self.arch}")
            return config
        channels = len(NORMALISE[self.normalise][0])
        if self.arch == "resnet":
            return ResNetConfig(
                num_channels=channels, embedding_size=self.stem, hidden_sizes=self.stages, depths=self.depths,
                layer_type=self.layer,
            )  # fmt: skip
        return ViTConfig(
            num_channels=channels, hidden_size=self.width, num_hidden_layers=self.depth, num_attention_heads=self.heads,
            intermediate_size=self.mlp, patch_size=self.patch, image_size=self.size,
        )  # fmt: skip


@dataclass
class TextTowerConfig:
    """Section `model.text:`. The sizes are read where `name` is null.

    Args:
        name: hub name or folder of a BERT with its tokenizer; null = new, WordPiece trained on the real texts.
        pretrained: false = the sizes and the tokenizer of `name`, new weights.
        frozen: nothing of the tower is trained (with new weights: the control of a random text tower).
        frozen_layers: first layers that keep their weights; null = by profile (6 in convirt). Embeddings are trained,
            as in the published code.
        max_tokens: texts are cut there, [CLS] and [SEP] included.
        vocabulary, width, depth, heads, mlp, dropout: of a new BERT.
    """

    name: str | None = "emilyalsentzer/Bio_ClinicalBERT"
    pretrained: bool = True
    frozen: bool = False
    frozen_layers: int | None = None
    max_tokens: int = 128
    vocabulary: int = 30000
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1

    def architecture(self, n_tokens: int) -> BertConfig:
        """n_tokens: of the tokenizer."""
        if self.name:
            config = AutoConfig.from_pretrained(self.name)
            if config.model_type != "bert":
                raise ValueError(f"model.text.name: {self.name} is a {config.model_type}, not a bert")
            if config.max_position_embeddings < self.max_tokens:
                raise ValueError(f"model.text.max_tokens: {self.name} reads {config.max_position_embeddings} at most")
            return config
        return BertConfig(
            vocab_size=n_tokens, hidden_size=self.width, num_hidden_layers=self.depth, num_attention_heads=self.heads,
            intermediate_size=self.mlp, max_position_embeddings=self.max_tokens, hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )  # fmt: skip


def load_weights(model: PreTrainedModel, name: str) -> int:
    """Replace all weights of a tower by those of a hub name or folder; number of tensors. ValueError names tensors that
    are not there; heads that the file has beyond the tower are left."""
    options = {"add_pooling_layer": False} if not isinstance(model, ResNetModel) else {}
    source, found = type(model).from_pretrained(name, config=model.config, output_loading_info=True, **options)
    absent = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if absent:
        raise ValueError(f"{name} has no weights for {len(absent)} tensors of {type(model).__name__}: {absent[:5]}")
    model.load_state_dict(source.state_dict())
    return len(source.state_dict())


class ImageEncoder(nn.Module):
    """Pixels [B, 1 or 3, H, W] -> maps of the backbone."""

    def __init__(self, config: PreTrainedConfig, resize: int):
        super().__init__()
        self.resize, self.arch, self.channels = resize, config.model_type, config.num_channels
        if self.arch == "resnet":
            self.backbone = ResNetModel(config)
            self.widths = config.hidden_sizes[-2], config.hidden_sizes[-1]
        else:
            self.backbone = ViTModel(config, add_pooling_layer=False)
            self.widths = config.hidden_size, config.hidden_size

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """From the widest to the deepest: of a ResNet the stem before pooling and each stage; of a ViT the patches
        after each block, [B, width, h, w], the last one after the final LayerNorm."""
        x = pixels.expand(-1, self.channels, -1, -1)
        if self.resize:
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear", align_corners=True)
        if self.arch == "resnet":
            x = x.contiguous(memory_format=torch.channels_last)  # faster on a CPU; weights stay as DeepSpeed wants
            stem = self.backbone.embedder.embedder(x)
            pooled = self.backbone.embedder.pooler(stem)
            return [stem, *self.backbone.encoder(pooled, output_hidden_states=True).hidden_states[1:]]
        out = self.backbone(x, output_hidden_states=True, interpolate_pos_encoding=True)
        tokens = [*out.hidden_states[1:-1], out.last_hidden_state]
        rows = x.shape[-2] // self.backbone.config.patch_size
        return [t[:, 1:].unflatten(1, (rows, -1)).permute(0, 3, 1, 2) for t in tokens]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(map of the last stage but one, of the last): ResNet-50's layer3 [B, 1024, ..] and layer4 [B, 2048, ..]."""
        maps = self.maps(pixels)
        return maps[-2], maps[-1]


class TextEncoder(nn.Module):
    """BERT without pooler. Frozen layers get no gradient; a tower that is frozen as a whole also has no dropout."""

    def __init__(self, config: BertConfig, frozen: bool, frozen_layers: int):
        super().__init__()
        self.backbone, self.frozen = BertModel(config, add_pooling_layer=False), frozen
        layers = self.backbone.encoder.layer
        if not 0 <= frozen_layers <= len(layers):
            raise ValueError(f"model.text.frozen_layers: {frozen_layers} of {len(layers)} layers")
        for part in [self.backbone] if frozen else layers[:frozen_layers]:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "TextEncoder":
        return super().train(mode and not self.frozen)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states [B, L, d]: of the embeddings and after each layer."""
        return self.backbone(input_ids, attention_mask, output_hidden_states=True).hidden_states
