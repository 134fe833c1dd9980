"""Tokens, parameters, operations and memory of every size, for `argus.plan` (reference: "Reaching 512x512x256", LLM).

Parameters are counted on the classes that train, built without memory. Operations follow formulas (forward, a volume):
    ViT, N tokens, width C, depth L:  24 N C^2 L + 4 N^2 C L  (where the MLP is 4 C; the patch embedding apart)
    LLM, T = M + text tokens:         2 T P + 4 T^2 C L + 2 text P_head  (P: of its linear layers, LoRA included)
A training step takes forward x 3 for what is trained and for attention, x 2 for frozen linear layers that a gradient
passes through, x 1 for a frozen ViT; recomputed activations add a forward pass.

Activations are the bytes that a layer keeps for the backward pass (bf16, fused attention), counted on tensors without
memory; with recomputation only each layer's input is kept, and one layer whole. Logits take 10 bytes each (bf16,
float32, log-softmax).

Memory per GPU of weights, gradients and Adam states: `memory_bytes` in shared/runs/plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from argus.compress import build_compressor, small_grid
from argus.encoder import VitEncoder, grid_of
from argus.llm import add_lora
from argus.model import ModelConfig, make_encoder
from shared.runs.plan import kept_bytes

Axes = tuple[int, int, int]  # D, H, W
LOGIT_BYTES = 10


@dataclass(frozen=True)
class Rung:
    """A resolution of the ladder. tiles: encoded one by one, with attention inside a tile only."""

    shape: Axes
    patch: Axes
    factors: Axes = (2, 2, 2)
    tiles: int = 1
    compressor: str = ""  # "" = of the config

    @property
    def grid(self) -> Axes:
        return grid_of(self.shape, self.patch)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def visual_tokens(self, factors: Axes) -> int:
        return math.prod(small_grid(self.grid, factors))


_HIGH = (256, 512, 512)
RUNGS = {  # reference: the ladder
    "lr32": Rung((32, 256, 256), (4, 16, 16)),
    "nr": Rung((64, 256, 256), (4, 16, 16)),
    "hr": Rung(_HIGH, (16, 16, 16), (2, 4, 4)),
    "hr_2k": Rung(_HIGH, (16, 16, 16)),
    "hr_cheap": Rung(_HIGH, (16, 32, 32)),
    "hr_tiled": Rung(_HIGH, (4, 16, 16), (4, 4, 4), tiles=16),  # arithmetic only: the model here does not tile
    "hr_hilt": Rung(_HIGH, (16, 16, 16), (2, 4, 4), compressor="hilt"),
}


def _llama(width: int, layers: int, heads: int, inner: int, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
        intermediate_size=inner, vocab_size=128_256, tie_word_embeddings=tied, max_position_embeddings=131_072,
    )  # fmt: skip


LLMS: dict[str, tuple[str, Callable[[], LlamaConfig]]] = {  # size -> (hub name, architecture)
    "3B": ("meta-llama/Llama-3.2-3B-Instruct", lambda: _llama(3072, 28, 24, 8192, tied=True)),
    "8B": ("meta-llama/Llama-3.1-8B-Instruct", lambda: _llama(4096, 32, 32, 14_336)),
    "70B": ("meta-llama/Llama-3.1-70B-Instruct", lambda: _llama(8192, 80, 64, 28_672)),
}


def settings_of(rung: Rung, factors: Axes, m: ModelConfig) -> ModelConfig:
    """`m` on this rung."""
    named = rung.compressor or m.compressor
    return replace(m, patch=list(rung.patch), factors=list(factors), compressor=named)


def n_parameters(make: Callable[[], nn.Module]) -> int:
    """Of a module, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def encoder_parameters(rung: Rung, m: ModelConfig) -> int:
    return n_parameters(lambda: make_encoder(settings_of(rung, rung.factors, m), rung.shape))


def compressor_of(rung: Rung, factors: Axes, m: ModelConfig, out: int) -> nn.Module:
    m = settings_of(rung, factors, m)
    return build_compressor(m.compressor, m.width, rung.grid, factors, m.queries, out)


@dataclass(frozen=True)
class Llm:
    """What a plan needs of an LLM. linear, head, lora: parameters of its linear layers, of its output layer (not among
    them) and of LoRA (0: all of the LLM is trained); heads_width: width of all heads together; layer_bytes,
    other_bytes: activations per token of one layer, and of the rest but the logits."""

    width: int
    layers: int
    heads_width: int
    vocabulary: int
    total: int
    linear: int
    head: int
    lora: int
    layer_bytes: float
    other_bytes: float


def llm_of(config: PretrainedConfig, m: ModelConfig) -> Llm:
    """Counted on the LLM of this config with the LoRA of `m`."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in llm.parameters())  # tied embeddings count once
    head = llm.get_output_embeddings().weight.numel()
    linear = sum(p.weight.numel() for p in llm.modules() if isinstance(p, nn.Linear)) - head
    lora = 0
    if m.lora_r:
        add_lora(llm, m.lora_r, m.lora_alpha, m.lora_dropout)
        lora = sum(p.numel() for name, p in llm.named_parameters() if "lora_" in name)
    one, two = (_llm_bytes(config, m, layers) for layers in (1, 2))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads * head_dim, config.vocab_size
    return Llm(*sizes, total, linear, head, lora, layer_bytes=two - one, other_bytes=2 * one - two)


def _llm_bytes(config: PretrainedConfig, m: ModelConfig, layers: int, tokens: int = 256) -> float:
    """Bytes per token that an LLM of so many layers, without its output layer, keeps for the backward pass."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(
            type(config).from_dict(config.to_dict() | {"num_hidden_layers": layers})
        ).base_model
    if m.lora_r:
        add_lora(llm, m.lora_r, m.lora_alpha, m.lora_dropout)
        for name, parameter in llm.named_parameters():
            parameter.requires_grad = "lora_" in name
    llm = llm.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        llm = llm.to_empty(device="cpu").train()
        embedded = torch.zeros(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        return kept_bytes(llm, lambda: llm(inputs_embeds=embedded, use_cache=False)) / tokens


@lru_cache
def vit_layer_bytes(tokens: int, width: int, heads: int, mlp: int) -> int:
    """Bytes that one ViT block keeps for `tokens` patch tokens and CLS."""
    sizes = []
    for depth in (1, 2):
        with torch.device("meta"):
            encoder = VitEncoder((tokens, 1, 1), (1, 1, 1), width, depth, heads, mlp).to(torch.bfloat16)
        with FakeTensorMode(allow_non_fake_inputs=True):
            encoder, volume = encoder.to_empty(device="cpu"), torch.zeros(1, 1, tokens, 1, 1)
            sizes.append(kept_bytes(encoder, lambda e=encoder, v=volume: e(v)))
    return sizes[1] - sizes[0]


def vit_flop(tokens: int, width: int, depth: int, mlp: int) -> float:
    """Forward, without the patch embedding (reference: token arithmetic; 24 N C^2 L + 4 N^2 C L where mlp = 4 C)."""
    return depth * (8 * tokens * width**2 + 4 * tokens * width * mlp + 4 * tokens**2 * width)


def encoder_flop(rung: Rung, factors: Axes, m: ModelConfig) -> float:
    """Forward of one volume with CLS and patch embedding; hilt encodes the shrunk volume too."""
    embedding = 2 * math.prod(rung.patch) * m.width  # of a token
    flop = rung.tiles * vit_flop(rung.tokens // rung.tiles + 1, m.width, m.depth, m.mlp) + rung.tokens * embedding
    if settings_of(rung, factors, m).compressor == "hilt":
        low = rung.visual_tokens(factors)
        flop += vit_flop(low + 1, m.width, m.depth, m.mlp) + low * embedding
    return flop


def compressor_flop(rung: Rung, factors: Axes, m: ModelConfig, out: int) -> float:
    """Forward of one volume, counted."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        arm = compressor_of(rung, factors, m, out)
        inputs = [torch.empty(1, rung.tokens, m.width)]
        if settings_of(rung, factors, m).compressor == "hilt":
            inputs.append(torch.empty(1, arm.n_tokens, m.width))
        arm(*inputs)
    return counter.get_total_flops()


def step_flop(
    encoder: float, arm: float, llm: Llm, visual: int, text: int, stage: str, recompute: bool = False
) -> float:
    """A training step of one volume in stage `align` or `tune`; the module docstring has the rule.

    encoder, arm: forward operations of ViT and compressor; visual, text: tokens. The output layer reads `text` tokens.
    """
    tokens, tune = visual + text, stage == "tune"
    linear, head, lora = 2 * tokens * llm.linear, 2 * text * llm.head, 2 * tokens * llm.lora * tune
    attention = 4 * tokens**2 * llm.heads_width * llm.layers
    passes = 3 if tune and not llm.lora else 2
    flop = encoder * (3 if tune else 1) + 3 * arm + passes * (linear + head) + 3 * (attention + lora)
    return flop + (linear + attention + lora + encoder * tune) * recompute


def activation_bytes(
    rung: Rung, m: ModelConfig, llm: Llm, visual: int, text: int, tune: bool, recompute: bool
) -> float:
    """Of one volume: LLM and, where it is trained (tune), ViT; the compressor's are small beside them."""
    tokens = visual + text
    layer, inputs = tokens * llm.layer_bytes, 2 * tokens * llm.width
    kept = text * llm.vocabulary * LOGIT_BYTES + tokens * llm.other_bytes
    kept += llm.layers * inputs + layer if recompute else llm.layers * layer
    if tune:
        n = rung.tokens // rung.tiles
        layer, inputs = vit_layer_bytes(n, m.width, m.heads, m.mlp), 2 * (n + 1) * m.width
        kept += rung.tiles * m.depth * inputs + layer if recompute else rung.tiles * m.depth * layer
    return kept
