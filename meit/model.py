"""MEIT (reference: "Method"): a 1-D ResNet-50 squeezes a 12-lead ECG into one unit vector as wide as an attention head;
the vector enters every attention layer of a decoder-only LLM as one more key/value pair; LoRA and encoder are trained.

    model = MeitModel.build(ModelConfig(backbone="huggyllama/llama-7b"), tokenizer)
    model(input_ids, attention_mask, labels, ecg).loss            # ecg [B, 12, T], already normalised
    model.eval().generate(input_ids, attention_mask, ecg)         # new token ids only
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from meit.backbones import call_llm, family_of, head_size, load_llm, positions_of
from meit.baselines.flamingo import FlamingoFusion
from meit.baselines.llava import LlavaFusion
from meit.encoder import EcgEncoder, EncoderForWords
from meit.fusion import KvPrefixFusion

FUSIONS = ("meit", "llava", "flamingo", "none")


@dataclass
class ModelConfig:
    """Section `model:` of a YAML.

    Args:
        backbone: hub name or local folder of a causal LM, or "scratch:<family>" for a small random one.
        fusion: how the LLM sees the ECG: meit | llava | flamingo | none; "words" pre-trains an encoder without an LLM.
        n_ecg_tokens: ECG vectors per record; the published model has 1.
        encoder_width: stem channels of the 1-D ResNet; 64 is the published one (2,048 features).
        encoder_blocks: bottlenecks per stage; (3, 4, 6, 3) is ResNet-50.
        encoder: checkpoint of a "words" run whose ResNet the encoder starts from; null = random, as published.
        lora_r: LoRA rank; 0 trains all weights of the LLM instead.
        lora_alpha: LoRA scale; 64/128 in the public code, 128/64 relayed.
        lora_dropout: dropout before the LoRA matrices.
        ecg_layers: LLM layers that see the ECG (meit fusion); null = all.
        llm: sizes of a scratch backbone: hidden_size, layers, heads, kv_heads, dropout.
        dtype: of the loaded backbone weights; float32 as published (with bf16 autocast), bfloat16 halves the memory.
    """

    backbone: str = "scratch:llama"
    fusion: str = "meit"
    n_ecg_tokens: int = 1
    encoder_width: int = 64
    encoder_blocks: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    encoder: str | None = None
    lora_r: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.1
    ecg_layers: list[int] | None = None
    llm: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    def __post_init__(self):
        if self.fusion not in (*FUSIONS, "words"):
            raise ValueError(f"model.fusion: '{self.fusion}' is none of {', '.join(FUSIONS)}, words")
        if self.n_ecg_tokens < 1:
            raise ValueError("model.n_ecg_tokens must be at least 1; use fusion 'none' for an LLM without ECG")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype: '{self.dtype}' is neither float32 nor bfloat16")


def is_meit_checkpoint(backbone: str) -> bool:
    file = Path(backbone) / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("model_type") == MeitConfig.model_type


class MeitConfig(PretrainedConfig):
    """All that `from_pretrained` needs, without the hub: ModelConfig's fields, and the LLM's own config in `llm`."""

    model_type = "meit"
    llm: dict | None = None
    fusion: str = "meit"
    n_ecg_tokens: int = 1
    encoder_width: int = 64
    encoder_blocks: list | tuple = (3, 4, 6, 3)
    lora_r: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.1
    ecg_layers: list | None = None
    backbone: str = ""
    hidden_size: int = 0  # DeepSpeed sizes its "auto" buckets by it
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class TextOnlyFusion(nn.Module):
    """The LLM without ECG: the control that shows what the text prior alone scores."""

    def run(self, llm, input_ids, attention_mask, ecg=None, cache=None):
        return call_llm(
            llm, attention_mask, positions_of(attention_mask, input_ids.shape[1]), cache, input_ids=input_ids
        )


class MeitModel(PreTrainedModel):
    config_class = MeitConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is the mean over a micro-batch, as in the public code
    _supports_sdpa = True

    def __init__(self, config: MeitConfig, llm: PreTrainedModel | None = None):
        """llm: the loaded backbone; None builds it empty from config.llm (what `from_pretrained` does)."""
        super().__init__(config)
        if llm is None:
            llm_config = CONFIG_MAPPING[config.llm["model_type"]].from_dict(config.llm)
            llm = AutoModelForCausalLM.from_config(llm_config)
        self.llm = llm
        self._add_lora()
        self.encoder, self.fusion = self._make_fusion()
        if self.device.type != "meta":  # else post_init draws the LoRA matrices anew, B included
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()

    @classmethod
    def build(cls, cfg: ModelConfig, tokenizer) -> MeitModel:
        """Loads (or draws) the backbone, makes room for an added pad token, adds encoder and LoRA, freezes the rest.

        cfg.backbone may also be a text-only checkpoint of this class (fusion none, lora_r 0): a pre-trained small LM.
        """
        if is_meit_checkpoint(cfg.backbone):
            text_only = cls.from_pretrained(cfg.backbone, dtype=getattr(torch, cfg.dtype))
            if text_only.config.fusion != "none" or text_only.config.lora_r > 0:
                raise ValueError(
                    f"model.backbone: {cfg.backbone} already has an ECG or LoRA; use train.init to go on from it"
                )
            llm = text_only.llm
        else:
            llm = load_llm(cfg.backbone, cfg.llm, tokenizer, cfg.dtype)
        settings = {k: v for k, v in asdict(cfg).items() if k not in ("llm", "dtype", "encoder")}
        config = MeitConfig(
            llm=llm.config.to_dict(),
            hidden_size=llm.config.hidden_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        model = cls(config, llm)
        if cfg.encoder and model.encoder is not None:
            trained = EncoderForWords.from_pretrained(cfg.encoder).encoder
            model.encoder.stem.load_state_dict(trained.stem.state_dict())
            model.encoder.stages.load_state_dict(trained.stages.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> MeitModel:
        """A checkpoint of this class, in eval mode; loading forgets what is frozen, so that is set again."""
        model = super().from_pretrained(*args, **kwargs)
        model._freeze()
        return model

    def _add_lora(self) -> None:
        config, model_type = self.config, self.llm.config.model_type
        family = family_of(model_type)
        if config.lora_r == 0:
            return
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(family.lora_targets),
            fan_in_fan_out=model_type == "gpt2",  # its Conv1D keeps the weight transposed
        )
        inject_adapter_in_model(lora, self.llm)
        self._freeze()

    def _freeze(self) -> None:
        """Of the LLM only LoRA is trained (all of it where there is none)."""
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad = self.config.lora_r == 0 or "lora_" in name

    def _make_fusion(self) -> tuple[EcgEncoder | None, nn.Module]:
        config, llm = self.config, self.llm
        if config.fusion == "none":
            return None, TextOnlyFusion()
        d_out = head_size(llm.config) if config.fusion == "meit" else None
        encoder = EcgEncoder(
            config.encoder_width,
            list(config.encoder_blocks),
            config.n_ecg_tokens,
            d_out,
            projector_norm=llm.config.model_type != "gpt_neox",
        )
        if config.fusion == "meit":
            return encoder, KvPrefixFusion(llm, config.ecg_layers)
        compared = {"llava": LlavaFusion, "flamingo": FlamingoFusion}[config.fusion]
        return encoder, compared(llm, encoder.n_features)

    def _init_weights(self, module: nn.Module) -> None:
        """Encoder and baselines start from their constructors' draws; the LLM has its own rule."""

    def encode(self, ecg: torch.Tensor) -> torch.Tensor:
        """ecg [B, 12, T] -> unit vectors e [B, n, d_h] (meit), or pooled features [B, n, n_features] (baselines)."""
        return self.encoder(ecg.to(next(self.encoder.parameters()).dtype))

    def _context(self, ecg: torch.Tensor | None):
        """What the fusion needs of the ECG, once per record. None (or fusion "none"): the LLM runs without."""
        if ecg is None or self.encoder is None:
            return None
        return self.fusion.context(self.llm, self.encode(ecg))

    def forward(self, input_ids, attention_mask, labels=None, ecg=None) -> CausalLMOutput:
        """input_ids, attention_mask, labels [B, T] (-100 where no loss), ecg [B, 12, S] -> loss, logits [B, T, V]."""
        logits = self.fusion.run(self.llm, input_ids, attention_mask, self._context(ecg)).logits
        loss = None
        if labels is not None:
            target = labels[:, 1:].flatten()
            total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target, ignore_index=-100, reduction="sum")
            loss = total / (target != -100).sum().clamp(min=1)
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(self, input_ids, attention_mask, ecg=None, max_new_tokens: int = 128) -> torch.Tensor:
        """Greedy decoding with a key/value cache, for all families and fusions alike. Prompts are padded on the left.

        Returns the new tokens only, [B, <= max_new_tokens], filled with the pad token after the end token.
        """
        self._require_eval("generate")
        if not attention_mask[:, -1].all():
            raise ValueError(
                "generate() needs prompts padded on the left; the last column of attention_mask holds zeros"
            )
        eos, pad = self.config.eos_token_id, self.config.pad_token_id
        pad = eos if pad is None else pad
        context, cache = self._context(ecg), DynamicCache(config=self.llm.config)
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new: list[torch.Tensor] = []
        while len(new) < max_new_tokens and not done.all():
            logits = self.fusion.run(self.llm, input_ids, attention_mask, context, cache).logits[:, -1]
            token = logits.argmax(-1)
            if eos is not None:
                token = token.masked_fill(done, pad)
                done |= token == eos
            new.append(token)
            input_ids = token[:, None]
            attention_mask = F.pad(attention_mask, (0, 1), value=1)
        return torch.stack(new, dim=1)

    @torch.no_grad()
    def attention_to_ecg(self, batch: dict[str, torch.Tensor]) -> dict[str, list[float | None]]:
        """How much each layer looks at the ECG, averaged over heads and unpadded tokens of the batch.

        batch: input_ids, attention_mask, ecg. `mass` = softmax weight on the ECG columns; `k_norm`, `v_norm` = mean
        |k_e|, |v_e| per head; None for a layer that does not see the ECG.
        """
        if not isinstance(self.fusion, KvPrefixFusion):
            raise ValueError(f"attention_to_ecg is defined for fusion 'meit', not '{self.config.fusion}'")
        self._require_eval("attention_to_ecg")
        prefix = self._context(batch["ecg"])
        prefix.mass = [None] * len(prefix.kv)
        self.fusion.run(self.llm, batch["input_ids"], batch["attention_mask"], prefix)
        real = batch["attention_mask"].bool()  # [B, T]
        return {
            "mass": [None if m is None else m.mean(1)[real].mean().item() for m in prefix.mass],
            "k_norm": [None if kv is None else kv[0].float().norm(dim=-1).mean().item() for kv in prefix.kv],
            "v_norm": [None if kv is None else kv[1].float().norm(dim=-1).mean().item() for kv in prefix.kv],
        }

    def _require_eval(self, method: str) -> None:
        if self.training:
            raise RuntimeError(f"{method}() in training mode would move BatchNorm statistics: call model.eval() first")

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **kwargs) -> None:
        """Gradient checkpointing of the LLM's layers, always non-reentrant: the reentrant kind would drop the gradient
        through the ECG pairs, which are not positional arguments of a layer."""
        if self.config.fusion == "meit" and self.fusion.family.route == "cache":
            raise ValueError(
                f"gradient checkpointing is not available for {self.llm.config.model_type}: its ECG prefix is a "
                "key/value cache, which checkpointing drops. Set train.gradient_checkpointing: false, and use ZeRO-3 "
                "or a smaller train.micro_batch instead."
            )
        options = dict(activation_checkpointing_kwargs or {})
        if options.setdefault("use_reentrant", False):
            raise ValueError("gradient_checkpointing_kwargs.use_reentrant must be false: true loses the ECG's gradient")
        super().activation_checkpointing_enable(activation_checkpointing_kwargs=options, **kwargs)
