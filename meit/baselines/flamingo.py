"""Flamingo-style gated cross-attention, a compared fusion of MEIT's ablation (reference: "Training").

Before every 4th LLM layer (every layer where the LLM has fewer than 8) the text attends to the n ECG tokens:
    x <- x + tanh(a) * cross_attention(x, ECG);  x <- x + tanh(b) * ffw(x);  a = b = 0 at the start,
so training starts from the unchanged LLM. Forward hooks put the blocks in front of the layers, whatever the family.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from meit.backbones import call_llm, decoder_layers, positions_of

EVERY = 4
SHALLOW = 8  # LLMs with fewer layers get a block before each


class GatedCrossAttention(nn.Module):
    """x [B, T, d] attends to tokens [B, n, f]; two tanh gates, both 0 at the start."""

    def __init__(self, d: int, n_features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_ecg = nn.LayerNorm(d), nn.LayerNorm(n_features)
        self.query, self.key_value = nn.Linear(d, d, bias=False), nn.Linear(n_features, 2 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.ffw = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.attention_gate, self.ffw_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        def split(t):
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, ., d_h]

        k, v = self.key_value(self.norm_ecg(tokens)).chunk(2, dim=-1)
        seen = F.scaled_dot_product_attention(split(self.query(self.norm_x(x))), split(k), split(v))
        x = x + self.attention_gate.tanh() * self.out(seen.transpose(1, 2).flatten(2))
        return x + self.ffw_gate.tanh() * self.ffw(x)


class FlamingoFusion(nn.Module):
    def __init__(self, llm: nn.Module, n_features: int):
        super().__init__()
        config, layers = llm.config, decoder_layers(llm)
        step = 1 if len(layers) < SHALLOW else EVERY
        at = range(step - 1, len(layers), step)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(config.hidden_size, n_features, config.num_attention_heads) for _ in at
        )
        self.tokens: torch.Tensor | None = None  # [B, n, f] during a pass of the LLM
        for block, i in zip(self.blocks, at, strict=True):
            layers[i].register_forward_pre_hook(self._hook(block), with_kwargs=True)

    def _hook(self, block: GatedCrossAttention):
        def attend(hidden):  # the block may be wider than a bf16 backbone
            return block(hidden.to(block.out.weight.dtype), self.tokens).to(hidden.dtype)

        def look_at_ecg(_, args, kwargs):
            if self.tokens is None:
                return args, kwargs
            if args:
                return (attend(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": attend(kwargs["hidden_states"])}

        return look_at_ecg

    def context(self, llm: nn.Module, e: torch.Tensor) -> torch.Tensor:
        """e [B, n, features]: used as they are (each block has its own norm)."""
        return e

    def run(self, llm, input_ids, attention_mask, ecg: torch.Tensor | None, cache=None):
        """Same contract as the other fusions. Text positions are untouched."""
        self.tokens = ecg
        try:
            positions = positions_of(attention_mask, input_ids.shape[1])
            return call_llm(llm, attention_mask, positions, cache, input_ids=input_ids)
        finally:  # safe under gradient checkpointing: the library checkpoints a layer's forward, not its hooks
            self.tokens = None
