"""The causal LMs that MEIT is built on (reference: "Backbones"): how each family is laid out, loaded, and made small.

Adding a backbone family = one entry of FAMILIES; fusion, LoRA, generation and baselines all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QKV = ("q_proj", "k_proj", "v_proj")
MAX_POSITIONS = 512  # of scratch models; reports and prompts fit in 128 tokens


@dataclass(frozen=True)
class Family:
    """Where a family keeps its layers and projections.

    packing: how keys and values come out of the projection(s): "separate" (k_proj, v_proj), "blocks" (GPT-2's c_attn:
        q | k | v), "per_head" (query_key_value of BLOOM, GPT-NeoX: [q, k, v] of every head in turn).
    route: "registry" = the library's attention function is replaced; "cache" = the family ignores the registry, so the
        ECG enters as a pre-filled key/value cache (no gradient checkpointing there: it drops the cache).
    lora_targets: as in the reference code, by module name.
    sizes, dropouts: names of these settings in the family's config, for scratch models.
    """

    layers: str
    attention: str
    packing: str
    route: str
    lora_targets: tuple[str, ...]
    sizes: tuple[str | None, ...]
    dropouts: tuple[str, ...]


# names of (width, layers, heads, key/value heads, inner width, positions) in a family's config
_HF = ("hidden_size", "num_hidden_layers", "num_attention_heads", None, "intermediate_size", "max_position_embeddings")
_LLAMA = (*_HF[:3], "num_key_value_heads", *_HF[4:])
_GPT2 = ("n_embd", "n_layer", "n_head", None, "n_inner", "n_positions")
_OPT = (*_HF[:4], "ffn_dim", _HF[5])
_BLOOM = ("hidden_size", "n_layer", "n_head", None, None, "seq_length")
_NEO = ("hidden_size", "num_layers", "num_heads", None, "intermediate_size", "max_position_embeddings")
_GPT2_DROP = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_NEO_DROP = ("resid_dropout", "embed_dropout", "attention_dropout")
_BLOOM_DROP = ("hidden_dropout", "attention_dropout")
_OPT_DROP = ("dropout", "attention_dropout")
_FUSED = ("query_key_value",)

FAMILIES = {
    "llama": Family("model.layers", "self_attn", "separate", "registry", LLAMA_LINEAR, _LLAMA, ("attention_dropout",)),
    "mistral": Family(
        "model.layers", "self_attn", "separate", "registry", LLAMA_LINEAR, _LLAMA, ("attention_dropout",)
    ),
    "gpt2": Family("transformer.h", "attn", "blocks", "registry", ("c_attn",), _GPT2, _GPT2_DROP),
    "opt": Family("model.decoder.layers", "self_attn", "separate", "registry", QKV, _OPT, _OPT_DROP),
    "gpt_neox": Family("gpt_neox.layers", "attention", "per_head", "registry", _FUSED, _HF, _BLOOM_DROP),
    "bloom": Family("transformer.h", "self_attention", "per_head", "cache", _FUSED, _BLOOM, _BLOOM_DROP),
    "gpt_neo": Family("transformer.h", "attn.attention", "separate", "cache", QKV, _NEO, _NEO_DROP),
    "gptj": Family("transformer.h", "attn", "separate", "cache", QKV, _GPT2, _GPT2_DROP),
}


def family_of(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ValueError(
            f"backbone family '{model_type}' is not supported; known: {', '.join(FAMILIES)}. "
            "Add an entry to FAMILIES in meit/backbones.py (and a row to tests/meit/test_fusion.py)."
        )
    return FAMILIES[model_type]


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head = size of the ECG vector; the fusion tiles that vector H times to the LLM's width."""
    heads = config.num_attention_heads
    d_h = getattr(config, "head_dim", None) or config.hidden_size // heads
    if d_h * heads != config.hidden_size:
        raise ValueError(
            f"{config.model_type}: head size {d_h} x {heads} heads is not the hidden size {config.hidden_size}; "
            "the ECG vector, tiled over heads, could not enter the key and value projections. Choose another backbone."
        )
    return d_h


def decoder_layers(llm: nn.Module) -> nn.ModuleList:
    return llm.get_submodule(family_of(llm.config.model_type).layers)


def attention_modules(llm: nn.Module) -> list[nn.Module]:
    name = family_of(llm.config.model_type).attention
    return [layer.get_submodule(name) for layer in decoder_layers(llm)]


def scratch_config(family: str, sizes: dict[str, Any], tokenizer) -> PretrainedConfig:
    """Config of a small random LLM with the tokenizer's vocabulary.

    sizes: hidden_size, layers, heads, kv_heads, intermediate_size, dropout, or any key of the family's own config.
    """
    spec, sizes = family_of(family), dict(sizes)
    width, layers, heads, kv_heads, inner, positions = spec.sizes
    d, n_layers = sizes.pop("hidden_size", 128), sizes.pop("layers", 2)
    n_heads = sizes.pop("heads", 4)
    n_kv, d_inner = sizes.pop("kv_heads", n_heads), sizes.pop("intermediate_size", None)
    values = {width: d, layers: n_layers, heads: n_heads, positions: MAX_POSITIONS, "vocab_size": len(tokenizer)}
    if kv_heads:
        values[kv_heads] = n_kv
    elif n_kv != n_heads:
        raise ValueError(f"model.llm.kv_heads: {family} has no grouped key/value heads; leave kv_heads out")
    if inner:  # SwiGLU families have three matrices, so 8/3 d keeps their size near the usual 4 d
        values[inner] = d_inner or (8 * d // 3 // 8 * 8 if "gate_proj" in spec.lora_targets else 4 * d)
    elif d_inner:
        raise ValueError(f"model.llm.intermediate_size: fixed to 4 x hidden_size in {family}; leave it out")
    if family == "gpt_neo":  # alternating global and local layers, as in the published checkpoints
        values["attention_types"] = [[["global", "local"], n_layers // 2]] + [[["global"], 1]] * (n_layers % 2)
    if family == "opt":
        values["word_embed_proj_dim"] = d
    if family == "gptj":
        values["rotary_dim"] = max(2, d // n_heads // 4)  # 64 of 256 in the published model
    if family == "mistral":
        values["sliding_window"] = None
    dropout = sizes.pop("dropout", 0.0)
    values |= {name: dropout for name in spec.dropouts}
    values |= {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = CONFIG_MAPPING[family]().to_dict()
    if unknown := sorted(set(sizes) - set(known)):
        raise ValueError(f"model.llm: unknown key(s) {unknown} for a scratch {family}")
    return CONFIG_MAPPING[family](**(values | sizes))


def load_llm(backbone: str, sizes: dict[str, Any], tokenizer, dtype: str) -> PreTrainedModel:
    """A causal LM by hub name, local folder or "scratch:<family>".

    Embeddings grow where the tokenizer has tokens that the LLM lacks (the added pad token), and never shrink.
    """
    if backbone.startswith("scratch:"):
        return AutoModelForCausalLM.from_config(scratch_config(backbone.removeprefix("scratch:"), sizes, tokenizer))
    if backbone.count("/") > 1 and not Path(backbone).is_dir():  # no hub name
        raise FileNotFoundError(f"model.backbone: no folder {backbone}; `make reproduce-meit` trains small backbones")
    if sizes:
        raise ValueError(f"model.llm is for scratch backbones only; {backbone} brings its own sizes: {sorted(sizes)}")
    llm = AutoModelForCausalLM.from_pretrained(backbone, dtype=getattr(torch, dtype))
    if len(tokenizer) > llm.get_input_embeddings().num_embeddings:
        # the pad row is never read: pads are masked as keys and carry no loss
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return llm


def call_llm(llm, attention_mask: torch.Tensor, position_ids: torch.Tensor, cache=None, **inputs):
    """One forward of any family. BLOOM knows no position ids: its ALiBi is made from the attention mask."""
    if llm.config.model_type != "bloom":
        inputs["position_ids"] = position_ids
    return llm(attention_mask=attention_mask, past_key_values=cache, use_cache=cache is not None, **inputs)


def positions_of(attention_mask: torch.Tensor, n_new: int) -> torch.Tensor:
    """[B, S] mask -> [B, n_new] positions of its last n_new tokens, counted from each row's first unmasked token."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -n_new:]
