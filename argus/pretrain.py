"""Before the LLM comes in (reference: Encoder-pretraining arms): a ViT and its objective, as a model that is saved."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from argus.encoder import VitEncoder
from argus.model import ModelConfig, make_encoder, start_encoder
from argus.objectives import (
    ClipModel,
    MaeModel,
    ObjectiveOutput,
    SupervisedModel,
    pos_weights,
    published_tower,
    text_tower,
)


class EncoderConfig(PretrainedConfig):
    """settings: the fields of ModelConfig. tower: config of clip's text tower. n_labels: of supervised."""

    model_type = "argus-encoder"
    settings: dict | None = None
    shape: list | tuple = ()
    tower: dict | None = None
    n_labels: int = 0
    hidden_size: int = 0


class EncoderPretraining(PreTrainedModel):
    """A ViT and what it is pre-trained with, cfg.objective: forward(**batch) of argus/objectives.py."""

    config_class = EncoderConfig
    main_input_name = "volume"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: EncoderConfig, tower: nn.Module | None = None, weights: torch.Tensor | None = None):
        """tower, weights: of clip and supervised; None makes them empty (what `from_pretrained` does)."""
        super().__init__(config)
        cfg = ModelConfig(**config.settings)
        encoder = make_encoder(cfg, config.shape)
        if cfg.objective == "mae":
            self.objective = MaeModel(encoder, cfg.mae_mask, cfg.mae_width, cfg.mae_depth, cfg.mae_heads)
        elif cfg.objective == "clip":
            if tower is None:
                tower_config = CONFIG_MAPPING[config.tower["model_type"]].from_dict(config.tower)
                tower = AutoModel.from_config(tower_config, add_pooling_layer=False)
            self.objective = ClipModel(encoder, tower)
        else:
            self.objective = SupervisedModel(encoder, torch.ones(config.n_labels) if weights is None else weights)
        if self.device.type != "meta":
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()

    @classmethod
    def build(cls, cfg: ModelConfig, shape: list[int], tokenizer=None, labels=None) -> EncoderPretraining:
        """shape: D, H, W of the input. tokenizer: of clip. labels: [n, 18] of the training records, of supervised."""
        tower = weights = None
        if cfg.objective == "clip" and cfg.text == "scratch":
            sizes = cfg.text_width, cfg.text_depth, cfg.text_heads, cfg.text_tokens
            tower = text_tower(len(tokenizer), *sizes, tokenizer.pad_token_id)
        elif cfg.objective == "clip":
            tower = published_tower(cfg.text)
        elif cfg.objective == "supervised":
            weights = pos_weights(labels)
        config = EncoderConfig(
            settings=asdict(cfg),
            shape=list(shape),
            tower=tower.config.to_dict() if tower else None,
            n_labels=0 if weights is None else len(weights),
            hidden_size=cfg.width,
        )
        model = cls(config, tower, weights)
        if cfg.encoder:
            start_encoder(model.encoder, cfg.encoder)
        return model

    @property
    def encoder(self) -> VitEncoder:
        return self.objective.encoder

    def _init_weights(self, module: nn.Module) -> None:
        """The constructors' draws stay."""

    def forward(self, **batch) -> ObjectiveOutput:
        """A batch of `data.PretrainCollator` -> loss and, but for mae, logits."""
        return self.objective(**batch)
