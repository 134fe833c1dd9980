"""The causal LM that writes the report (reference: "LLM"): from the hub, from a folder, or small and random.

Names of the paper's LLMs are not established; Llama 3.x 3B / 8B / 70B is the default, Qwen2.5 the open stand-in. Any
causal LM of the library that takes embeddings and rotary positions will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

MAX_POSITIONS = 4096  # of a scratch model: visual tokens, prompt and report


def scratch_config(sizes: dict[str, Any], tokenizer) -> LlamaConfig:
    """Config of a small random Llama with the tokenizer's vocabulary.

    sizes: hidden_size, layers, heads, kv_heads, intermediate_size, dropout, or any key of LlamaConfig.
    """
    sizes = dict(sizes)
    width, heads = sizes.pop("hidden_size", 128), sizes.pop("heads", 4)
    values = {
        "hidden_size": width,
        "num_hidden_layers": sizes.pop("layers", 2),
        "num_attention_heads": heads,
        "num_key_value_heads": sizes.pop("kv_heads", heads),
        # SwiGLU has three matrices, so 8/3 of the width keeps their size near the usual 4
        "intermediate_size": sizes.pop("intermediate_size", 8 * width // 3 // 8 * 8),
        "attention_dropout": sizes.pop("dropout", 0.0),
        "max_position_embeddings": MAX_POSITIONS,
        "vocab_size": len(tokenizer),
    }
    values |= {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if unknown := sorted(set(sizes) - set(LlamaConfig().to_dict())):
        raise ValueError(f"model.llm: unknown key(s) {unknown} for a scratch llama")
    return LlamaConfig(**(values | sizes))


def load_llm(backbone: str, sizes: dict[str, Any], tokenizer, dtype: str) -> PreTrainedModel:
    """A causal LM by hub name, local folder or "scratch:llama".

    Embeddings grow where the tokenizer has tokens that the LLM lacks (the added pad token), and never shrink.
    """
    if backbone.startswith("scratch:"):
        if backbone != "scratch:llama":
            raise ValueError(f"model.backbone: {backbone}; the only family made from scratch is scratch:llama")
        return AutoModelForCausalLM.from_config(scratch_config(sizes, tokenizer))
    if backbone.count("/") > 1 and not Path(backbone).is_dir():  # no hub name
        raise FileNotFoundError(f"model.backbone: no folder {backbone}; `make reproduce-argus` trains small backbones")
    if sizes:
        raise ValueError(f"model.llm is for scratch backbones only; {backbone} brings its own sizes: {sorted(sizes)}")
    llm = AutoModelForCausalLM.from_pretrained(backbone, dtype=getattr(torch, dtype))
    if len(tokenizer) > llm.get_input_embeddings().num_embeddings:
        # the pad row is never read: pads are masked as keys and carry no loss
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return llm


def add_lora(llm: PreTrainedModel, rank: int, alpha: int, dropout: float) -> None:
    """LoRA on all linear layers of the LLM but its head, in float32 whatever the backbone's type."""
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(lora, llm)
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def attention_modules(llm: PreTrainedModel) -> list[nn.Module]:
    """The self-attention of every layer, in order."""
    found = [m for m in llm.modules() if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")]
    return sorted(found, key=lambda m: m.layer_idx)
