"""Argus (reference: "Method"): a 3-D ViT, a compressor of its tokens, and a causal LLM that writes the report.

    model = ArgusModel.build(ModelConfig(backbone="meta-llama/Llama-3.2-3B-Instruct"), (64, 256, 256), tokenizer)
    model(input_ids, attention_mask, labels, volume).loss         # volume [B, 1, D, H, W] in [-1, 1]
    model.eval().generate(input_ids, attention_mask, volume)      # new token ids only

The sequence is [BOS][M visual][prompt][report][EOS]; the loss is on report and EOS only. Stages are separate runs:
`EncoderPretraining` (argus/pretrain.py), `ArgusModel` with ViT and LLM frozen, then `ArgusModel.next_stage` of that.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from argus.compress import BUILD, build_compressor
from argus.encoder import VitEncoder, resize_weights
from argus.hilt import Hilt, low_resolution
from argus.llm import add_lora, attention_modules, load_llm

PRETRAIN = ("mae", "clip", "supervised")
OBJECTIVES = ("report", "language", *PRETRAIN)
ENCODER_PREFIXES = ("encoder.", "objective.encoder.")  # of ArgusModel, of EncoderPretraining
ARCHITECTURE = ("patch", "width", "depth", "heads", "mlp", "pool", "standardise", "compressor", "factors", "queries")


@dataclass
class ModelConfig:
    """Section `model:` of a YAML.

    Args:
        objective: report (volume -> report), language (text only), or what an encoder is pre-trained with: mae | clip |
            supervised.
        patch: D, H, W of a patch in voxels.
        width, depth, heads, mlp: of the ViT; ViT-B by default.
        pool: what the ViT's pre-training reads of it: cls, or the flattened map of tokens, map.
        standardise: the ViT sees voxels less their mean over the training volumes, by their spread (laptop tier).
        encoder: checkpoint of any earlier run whose ViT this one starts from, resized where input or patch differ; null
            = random.
        compressor: an arm of argus/compress.py, or no_image for an LLM that sees no volume.
        factors: D, H, W by which the compressor shrinks the token grid.
        queries: visual tokens of attn_pool and perceiver; 0 = as many as pixel shuffle would leave.
        backbone: hub name or local folder of a causal LM, "scratch:llama" for a small random one, or the checkpoint of
            a language run.
        llm: sizes of a scratch backbone: hidden_size, layers, heads, kv_heads, intermediate_size, dropout.
        lora_r: LoRA rank; 0 trains all weights of the LLM instead.
        lora_alpha: LoRA scale.
        lora_dropout: dropout before the LoRA matrices.
        dtype: of the loaded backbone weights: float32 or bfloat16.
        train_vit, train_llm: whether this stage trains the ViT and the LLM (its LoRA); the compressor it always does.
        gradient_checkpointing: recompute activations of ViT and LLM in the backward pass.
        mae_mask: share of masked patches. mae_width, mae_depth, mae_heads: of the decoder.
        text: text tower of clip: "scratch" or a hub name. text_width, text_depth, text_heads: of a scratch tower.
        text_tokens: tokens of the report that the text tower reads.
    """

    objective: str = "report"
    patch: list[int] = field(default_factory=lambda: [4, 16, 16])
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    pool: str = "cls"
    standardise: bool = False
    encoder: str | None = None
    compressor: str = "pixel_shuffle_3d"
    factors: list[int] = field(default_factory=lambda: [2, 2, 2])
    queries: int = 0
    backbone: str = "scratch:llama"
    llm: dict[str, Any] = field(default_factory=dict)
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    dtype: str = "float32"
    train_vit: bool = True
    train_llm: bool = True
    gradient_checkpointing: bool = False
    mae_mask: float = 0.75
    mae_width: int = 512
    mae_depth: int = 8
    mae_heads: int = 16
    text: str = "scratch"
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_tokens: int = 512

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"model.objective: '{self.objective}' is none of {', '.join(OBJECTIVES)}")
        if self.compressor not in (*BUILD, "no_image"):
            raise ValueError(f"model.compressor: '{self.compressor}' is none of {', '.join(BUILD)}, no_image")
        if self.pool not in ("cls", "map"):
            raise ValueError(f"model.pool: '{self.pool}' is neither cls nor map")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype: '{self.dtype}' is neither float32 nor bfloat16")
        if self.compressor == "no_image" and not self.train_llm:
            raise ValueError("model.train_llm: false leaves nothing to train with compressor 'no_image'")


class ArgusConfig(PretrainedConfig):
    """All that `from_pretrained` needs, without the hub.

    settings: the fields of ModelConfig. shape: D, H, W of the input. lora_r: of the adapters that are there, 0 = none.
    llm: the LLM's own config. ids: of the tokenizer; a null bos_token_id puts the visual tokens first.
    """

    model_type = "argus"
    settings: dict | None = None
    shape: list | tuple = ()
    lora_r: int = 0
    llm: dict | None = None
    hidden_size: int = 0  # DeepSpeed sizes its "auto" buckets by it
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """[B, S] mask -> positions counted from each row's first unmasked column."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def is_argus_checkpoint(folder: str) -> bool:
    file = Path(folder) / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("model_type") == ArgusConfig.model_type


def make_encoder(cfg: ModelConfig, shape) -> VitEncoder:
    return VitEncoder(shape, cfg.patch, cfg.width, cfg.depth, cfg.heads, cfg.mlp,
                      standardise=cfg.standardise, pool=cfg.pool)  # fmt: skip


def shape_of(checkpoint: str) -> tuple[int, ...]:
    """D, H, W of the volumes that a checkpoint's ViT reads."""
    return tuple(json.loads((Path(checkpoint) / "config.json").read_text())["shape"])


def start_encoder(encoder: VitEncoder, checkpoint: str) -> None:
    """Give the encoder the ViT of an earlier run, of whatever stage; only its tensors are read."""
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.encoder: no checkpoint in {folder}; train it first, or set null for random")
    config, state = json.loads((folder / "config.json").read_text()), {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                if key.startswith(ENCODER_PREFIXES):
                    state[key.split("encoder.", 1)[1]] = tensors.get_tensor(key)
    if not state:
        raise ValueError(f"model.encoder: {folder} holds no ViT")
    settings = config["settings"]
    state = resize_weights(state, config["shape"], settings["patch"], encoder.shape, encoder.patch)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        sizes = {k: settings[k] for k in ("width", "depth", "heads", "mlp")}
        raise ValueError(f"model.encoder: the ViT of {folder} has other sizes, {sizes}") from error
    if encoder.blocks[0].attn.num_heads != settings["heads"]:
        raise ValueError(f"model.encoder: the ViT of {folder} has {settings['heads']} heads: set model.heads so")


class ArgusModel(PreTrainedModel):
    config_class = ArgusConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is the mean over a micro-batch, as in public code
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ("encoder", "compressor", "lora_A", "lora_B")  # beside a bfloat16 backbone

    def __init__(self, config: ArgusConfig, llm: PreTrainedModel | None = None):
        """llm: the loaded backbone; None builds it empty from config.llm (what `from_pretrained` does)."""
        super().__init__(config)
        cfg = ModelConfig(**config.settings)
        if llm is None:
            llm_config = CONFIG_MAPPING[config.llm["model_type"]].from_dict(config.llm)
            llm = AutoModelForCausalLM.from_config(llm_config)
        self.llm = llm
        if config.lora_r:
            add_lora(llm, config.lora_r, cfg.lora_alpha, cfg.lora_dropout)
        self.encoder = self.compressor = None
        if cfg.compressor != "no_image":
            self.encoder = make_encoder(cfg, config.shape)
            self.compressor = build_compressor(
                cfg.compressor, cfg.width, self.encoder.grid, cfg.factors, cfg.queries, llm.config.hidden_size
            )
        if self.device.type != "meta":  # else post_init draws the LoRA matrices anew, B included
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()
        self._freeze()

    @classmethod
    def build(cls, cfg: ModelConfig, shape: list[int], tokenizer) -> ArgusModel:
        """Loads (or draws) the backbone, makes room for an added pad token, adds ViT, compressor and LoRA, freezes the
        rest. shape: D, H, W of the input. cfg.backbone may also be the checkpoint of a language run."""
        if cfg.objective == "language":
            cfg = replace(cfg, compressor="no_image", lora_r=0, train_llm=True)
        if is_argus_checkpoint(cfg.backbone):
            text_only = cls.from_pretrained(cfg.backbone, dtype=getattr(torch, cfg.dtype))
            if text_only.encoder is not None or text_only.config.lora_r:
                raise ValueError(f"model.backbone: {cfg.backbone} has a ViT or LoRA; go on from it with train.init")
            llm = text_only.llm
        else:
            llm = load_llm(cfg.backbone, cfg.llm, tokenizer, cfg.dtype)
        config = ArgusConfig(
            settings=asdict(cfg),
            shape=list(shape),
            lora_r=cfg.lora_r if cfg.train_llm else 0,
            llm=llm.config.to_dict(),
            hidden_size=llm.config.hidden_size,
            **{k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
        model = cls(config, llm)
        if cfg.encoder and model.encoder is not None:
            start_encoder(model.encoder, cfg.encoder)
        return model

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> ArgusModel:
        """A checkpoint of this class, in eval mode; loading forgets what is frozen, so that is set again."""
        model = super().from_pretrained(*args, **kwargs)
        model._freeze()
        return model

    @classmethod
    def next_stage(cls, checkpoint: str, cfg: ModelConfig, shape: list[int]) -> ArgusModel:
        """The weights of an earlier stage, frozen and trained as cfg says; LoRA is added where it comes in now."""
        model = cls.from_pretrained(checkpoint)
        config, before = model.config, ModelConfig(**model.config.settings)
        differs = [k for k in ARCHITECTURE if getattr(before, k) != getattr(cfg, k)]
        differs += ["shape"] if list(config.shape) != list(shape) else []
        if differs:
            raise ValueError(
                f"train.init: {checkpoint} has another {', '.join(differs)} than this run; start from its ViT "
                "alone with model.encoder, or give the stages the same values"
            )
        rank = cfg.lora_r if cfg.train_llm else config.lora_r
        if config.lora_r and rank != config.lora_r:
            raise ValueError(f"train.init: {checkpoint} has LoRA of rank {config.lora_r}, model.lora_r is {cfg.lora_r}")
        if rank and not config.lora_r:
            add_lora(model.llm, rank, cfg.lora_alpha, cfg.lora_dropout)
        config.lora_r, config.settings = rank, asdict(cfg)
        model._freeze()
        return model

    def _freeze(self) -> None:
        """The compressor is always trained, ViT and LLM where their settings say so; of an LLM with LoRA, only that."""
        cfg = ModelConfig(**self.config.settings)
        self.trains_vit = cfg.train_vit
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad = cfg.train_llm and (self.config.lora_r == 0 or "lora_" in name)
        if self.encoder is not None:
            self.encoder.requires_grad_(cfg.train_vit)

    def _init_weights(self, module: nn.Module) -> None:
        """ViT and compressor start from their constructors' draws; the LLM has its own rule."""

    def look(self, volume: torch.Tensor | None) -> torch.Tensor | None:
        """volume [B, 1, D, H, W] in [-1, 1] -> visual embeddings [B, M, H_llm]; None where the model sees no volume."""
        if volume is None or self.encoder is None:
            return None
        seen = [volume]
        if isinstance(self.compressor, Hilt):
            seen.append(low_resolution(volume, self.config.settings["factors"]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_vit):
            tokens = [self.encoder(v, other_shape=v is not volume)[1] for v in seen]
        return self.compressor(*tokens)

    def _splice(self, input_ids, attention_mask, visual) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Visual embeddings after BOS, whichever side the padding is on.

        Returns embeddings [B, S, H_llm], mask [B, S] and, for each column, its place in [text | visual] (None without
        visual tokens); S = L + M.
        """
        text = self.llm.get_input_embeddings()(input_ids)
        if visual is None:
            return text, attention_mask, None
        n_text, n_visual = input_ids.shape[1], visual.shape[1]
        start = self._first_visual(attention_mask)[:, None]
        column = torch.arange(n_text + n_visual, device=input_ids.device)[None]
        place = torch.where(column < start, column, column - n_visual)
        place = torch.where((column >= start) & (column < start + n_visual), n_text + column - start, place)
        both = torch.cat([text, visual.to(text.dtype)], dim=1)
        mask = torch.cat([attention_mask, attention_mask.new_ones(visual.shape[:2])], dim=1)
        return both.gather(1, place[..., None].expand(-1, -1, both.shape[-1])), mask.gather(1, place), place

    def _first_visual(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B] column of the first visual token: after BOS, or first where the tokenizer has none."""
        return attention_mask.argmax(1) + int(self.config.bos_token_id is not None)

    def forward(self, input_ids, attention_mask, labels=None, volume=None) -> CausalLMOutput:
        """input_ids, attention_mask, labels [B, L] (-100 where no loss), volume [B, 1, D, H, W].

        Without labels: logits [B, S, V], S = L + M. With labels: the loss, and logits [n, V] of the n positions that
        predict a label, row after row, since a large vocabulary makes logits the largest tensor of the step.
        """
        embeds, mask, place = self._splice(input_ids, attention_mask, self.look(volume))
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions_of(mask)}
        if labels is None:
            return CausalLMOutput(logits=self.llm(**inputs, use_cache=False).logits)
        if place is not None:
            n_visual = mask.shape[1] - labels.shape[1]
            labels = F.pad(labels, (0, n_visual), value=-100).gather(1, place)
        target = F.pad(labels[:, 1:], (0, 1), value=-100)
        predicts = target != -100
        # Whatever a family does behind its head, the head itself is given only what is asked for.
        head = self.llm.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][predicts],))
        try:
            logits = self.llm(**inputs, use_cache=False).logits
        finally:
            hook.remove()
        total = F.cross_entropy(logits.float(), target[predicts], reduction="sum")
        return CausalLMOutput(loss=total / predicts.sum().clamp(min=1), logits=logits)

    @torch.no_grad()
    def generate(self, input_ids, attention_mask, volume=None, max_new_tokens: int = 1024) -> torch.Tensor:
        """Greedy decoding with a key/value cache. Prompts [B, L] are padded on the left.

        Returns the new tokens only, [B, <= max_new_tokens], filled with the pad token after the end token.
        """
        if self.training:
            raise RuntimeError("generate() in training mode would apply dropout: call model.eval() first")
        if not attention_mask[:, -1].all():
            raise ValueError("generate() needs prompts padded on the left; attention_mask ends in zeros")
        eos, pad = self.config.eos_token_id, self.config.pad_token_id
        embeds, mask, _ = self._splice(input_ids, attention_mask, self.look(volume))
        inputs, cache = {"inputs_embeds": embeds}, DynamicCache(config=self.llm.config)
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new: list[torch.Tensor] = []
        while len(new) < max_new_tokens and not done.all():
            n = next(iter(inputs.values())).shape[1]
            places = {"attention_mask": mask, "position_ids": positions_of(mask)[:, -n:], "past_key_values": cache}
            token = self.llm(**inputs, **places, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
            token = token.masked_fill(done, pad)
            done |= token == eos
            new.append(token)
            inputs, mask = {"input_ids": token[:, None]}, F.pad(mask, (0, 1), value=1)
        return torch.stack(new, dim=1)

    @torch.no_grad()
    def attend(self, input_ids, attention_mask, new_ids, volume) -> torch.Tensor:
        """Where the model looked while it wrote: prompts [B, L] padded on the left, new_ids [B, T] -> [B, T, M].

        The softmax weights on the visual tokens, mean over layers and heads, of the positions that predict new_ids.
        """
        if self.training:
            raise RuntimeError("attend() in training mode would apply dropout: call model.eval() first")
        visual = self.look(volume)
        if visual is None:
            raise ValueError("attend() needs a model that sees a volume, not compressor 'no_image'")
        n_new, n_visual = new_ids.shape[1], visual.shape[1]
        ids = torch.cat([input_ids, new_ids], dim=1)
        seen = F.pad(attention_mask, (0, n_new), value=1)
        embeds, mask, _ = self._splice(ids, seen, visual)
        columns = self._first_visual(seen)[:, None] + torch.arange(n_visual, device=ids.device)  # [B, M]
        found: list[torch.Tensor] = []

        def keep(module, args, output):
            rows = output[1][:, :, -n_new - 1 : -1].float().mean(1)  # [B, T, S]
            found.append(rows.gather(2, columns[:, None].expand(-1, n_new, -1)))

        hooks = [module.register_forward_hook(keep) for module in attention_modules(self.llm)]
        before = self.llm.config._attn_implementation
        self.llm.set_attn_implementation("eager")  # fused attention keeps no weights
        try:
            places = {"attention_mask": mask, "position_ids": positions_of(mask)}
            self.llm(inputs_embeds=embeds, **places, use_cache=False, logits_to_keep=1)
        finally:
            self.llm.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()
        return torch.stack(found).mean(0)
