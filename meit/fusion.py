"""MEIT's "concatenated fusion" (reference: "Fusion"): the ECG as one extra, always visible key/value pair per layer.

    u        = concat([e] * H)              # [B, n, d]: the ECG vector tiled over the heads, the same in each layer
    k_e, v_e = Wk_l u, Wv_l u               # the layer's own projections with their LoRA; no norm, rotary or ALiBi
    out      = softmax([q k_e | q k + mask] c) [v_e ; v]

`ecg_kv` is the only per-family part. The pairs then take one of two routes into attention that leave the library's
modelling files alone: through its attention registry, or as a pre-filled cache for the three families that ignore it.
Text positions are counted as if no prefix existed, in training and in cached generation.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from meit.backbones import attention_modules, call_llm, decoder_layers, family_of, head_size, positions_of

REGISTRY_NAME = "meit_sdpa"


@dataclass
class EcgPrefix:
    """The ECG as every layer sees it; computed once per record.

    kv: per layer ([B, H_kv, n, d_h], [B, H_kv, n, d_h]), or None where the layer does not see the ECG.
    visible: False puts the ECG columns at -inf (a control: must equal the LLM without ECG).
    mass: where a list, attention appends the softmax mass on the ECG columns, [B, H, T] per layer.
    """

    kv: list[tuple[torch.Tensor, torch.Tensor] | None]
    n: int
    visible: bool = True
    mass: list[torch.Tensor | None] | None = None


def ecg_kv(attention: nn.Module, u: torch.Tensor, packing: str, d_h: int) -> tuple[torch.Tensor, torch.Tensor]:
    """u [B, n, d] -> keys and values [B, H_kv, n, d_h] by the layer's own projection MODULE, so that LoRA (and its
    dropout) and biases are part of it."""
    if packing == "separate":
        k, v = attention.k_proj(u), attention.v_proj(u)
    elif packing == "blocks":
        _, k, v = attention.c_attn(u).chunk(3, dim=-1)
    else:  # per head: [q, k, v] of head 0, then of head 1, ...
        _, k, v = attention.query_key_value(u).unflatten(-1, (-1, 3, d_h)).unbind(-2)
        return k.transpose(1, 2), v.transpose(1, 2)
    return tuple(x.unflatten(-1, (-1, d_h)).transpose(1, 2) for x in (k, v))


def prefix_attention(module, query, key, value, attention_mask, ecg_prefix: EcgPrefix | None = None, **kwargs):
    """Attention function of the registry route: SDPA over [ECG | text].

    query [B, H, T, d_h]; key, value [B, H_kv, S, d_h] post-rotary; attention_mask boolean [B, 1, T, S], with causality,
    padding and sliding window. The ECG columns stand in front, outside of all three.
    """
    kv = ecg_prefix.kv[module.layer_idx] if ecg_prefix is not None else None
    if kv is not None:
        key = torch.cat([kv[0].to(key.dtype), key], dim=2)
        value = torch.cat([kv[1].to(value.dtype), value], dim=2)
        attention_mask = F.pad(attention_mask, (ecg_prefix.n, 0), value=ecg_prefix.visible)
        if ecg_prefix.mass is not None:
            keys = repeat_kv(key, getattr(module, "num_key_value_groups", 1))
            scores = (query @ keys.mT * kwargs["scaling"]).float().masked_fill(~attention_mask, float("-inf"))
            ecg_prefix.mass[module.layer_idx] = scores.softmax(-1)[..., : ecg_prefix.n].sum(-1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def explicit_mask(*args, **kwargs) -> torch.Tensor:
    """The library's SDPA mask, always written out: its is_causal shortcut has no room for the ECG column."""
    return sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False}))


class KvPrefixFusion(nn.Module):
    """MEIT's fusion over a loaded LLM. Has no parameters: it lives on the LLM's own projections."""

    def __init__(self, llm: nn.Module, ecg_layers: list[int] | None):
        super().__init__()
        config = llm.config
        self.family, self.d_h, self.heads = family_of(config.model_type), head_size(config), config.num_attention_heads
        n_layers = config.num_hidden_layers
        self.ecg_layers = set(range(n_layers) if ecg_layers is None else ecg_layers)
        if not self.ecg_layers:
            raise ValueError("model.ecg_layers is empty: use fusion 'none' for an LLM without ECG")
        if not self.ecg_layers <= set(range(n_layers)):
            raise ValueError(
                f"model.ecg_layers: {sorted(self.ecg_layers)} not within the LLM's layers 0..{n_layers - 1}"
            )
        if self.family.route == "registry":
            AttentionInterface.register(REGISTRY_NAME, prefix_attention)
            AttentionMaskInterface.register(REGISTRY_NAME, explicit_mask)
            llm.set_attn_implementation(REGISTRY_NAME)
            if llm.config._attn_implementation != REGISTRY_NAME:
                raise RuntimeError(
                    f"{config.model_type} ignores the attention registry of this transformers version: the ECG would "
                    "be dropped without a word. Set its route to 'cache' in meit/backbones.py."
                )

    def context(self, llm: nn.Module, e: torch.Tensor) -> EcgPrefix:
        """e [B, n, d_h] -> what every layer sees of the ECG."""
        u = e.to(llm.dtype).repeat(1, 1, self.heads)  # [B, n, d]
        kv = [
            ecg_kv(attention, u, self.family.packing, self.d_h) if i in self.ecg_layers else None
            for i, attention in enumerate(attention_modules(llm))
        ]
        return EcgPrefix(kv, n=e.shape[1])

    def run(self, llm, input_ids, attention_mask, prefix: EcgPrefix | None, cache: DynamicCache | None = None):
        """One pass of the LLM over input_ids [B, T]; attention_mask [B, S] covers the S - T cached tokens too."""
        positions = positions_of(attention_mask, input_ids.shape[1])
        if prefix is None:
            return call_llm(llm, attention_mask, positions, cache, input_ids=input_ids)
        if self.family.route == "registry":
            return call_llm(llm, attention_mask, positions, cache, input_ids=input_ids, ecg_prefix=prefix)
        if cache is None:  # a fresh one for each pass: caches change in place
            cache = DynamicCache(config=llm.config)
        if cache.get_seq_length() == 0:
            fill_cache(cache, prefix)
        mask = F.pad(attention_mask, (prefix.n, 0), value=1)
        with prefix_positions(llm, prefix):
            out = call_llm(llm, mask, positions, cache, input_ids=input_ids, output_attentions=prefix.mass is not None)
        if prefix.mass is not None:
            prefix.mass = [
                a[..., : prefix.n].float().sum(-1) if kv else None
                for a, kv in zip(out.attentions, prefix.kv, strict=True)
            ]
        return out


def fill_cache(cache: DynamicCache, prefix: EcgPrefix) -> None:
    """Puts the ECG pairs into the (empty) cache, in front of the text.

    Cached keys are post-rotary, so an unrotated key is what MEIT asks for. Layers without ECG get zeros, which
    `prefix_positions` masks.
    """
    blank = next(torch.zeros_like(kv[0]) for kv in prefix.kv if kv is not None)
    for i, kv in enumerate(prefix.kv):
        cache.update(*(kv or (blank, blank)), i)


@contextmanager
def prefix_positions(llm: nn.Module, prefix: EcgPrefix):
    """Cache route: for one pass, keeps the prefix outside of ALiBi, local windows and (where asked) sight."""
    model_type, n = llm.config.model_type, prefix.n
    with ExitStack() as undo:
        if model_type == "bloom":
            # The published bias is slope * text position per key column and 0 for the ECG. The stock code would count
            # the prefix as n tokens and push every text column by slope * n.
            def text_alibi(mask, num_heads, dtype):
                return F.pad(build_alibi_tensor(mask[:, n:], num_heads, dtype), (n, 0))

            llm.transformer.build_alibi_tensor = text_alibi
            undo.callback(lambda: delattr(llm.transformer, "build_alibi_tensor"))
        if model_type == "gpt_neo":
            # The causal/local table grows by n rows and columns: text sees text as before, and the ECG at any distance.
            for attention in attention_modules(llm):
                table = attention.bias
                attention.bias = F.pad(table, (n, 0, n, 0), value=True)
                undo.callback(setattr, attention, "bias", table)
        for layer, kv in zip(decoder_layers(llm), prefix.kv, strict=True):
            if kv is None or not prefix.visible:
                hook = layer.register_forward_pre_hook(
                    lambda _, args, kw: (args, hide_columns(kw, n)), with_kwargs=True
                )
                undo.callback(hook.remove)
        yield


def hide_columns(kwargs: dict, n: int) -> dict:
    """The additive mask [B, 1, T, n + S] of a layer that is not to see the ECG."""
    mask = kwargs["attention_mask"].clone()
    mask[..., :n] = torch.finfo(mask.dtype).min
    return kwargs | {"attention_mask": mask}
