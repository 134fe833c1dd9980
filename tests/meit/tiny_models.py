"""Tiny random MEIT models of every backbone family, with weights large enough that attention is far from uniform."""

import torch

from meit.model import MeitModel, ModelConfig

VOCAB, D, HEADS, D_H, WINDOW, LORA_R, LORA_ALPHA = 61, 32, 4, 8, 4, 2, 8
FAMILIES = {
    "gpt2": {},
    "gpt_neo": {"window_size": WINDOW},
    "gpt_neox": {},
    "gptj": {},
    "bloom": {},
    "opt": {},
    "llama": {},
    "llama-gqa": {"kv_heads": 2},
    "mistral": {},
    "mistral-gqa-window": {"kv_heads": 2, "sliding_window": WINDOW},
}
CACHE_ROUTE = ("bloom", "gpt_neo", "gptj")


class Tokenizer:
    """What MeitModel asks of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self):
        return VOCAB


def config(name, fusion="meit", **overrides):
    llm = {"hidden_size": D, "layers": 2, "heads": HEADS} | FAMILIES[name] | overrides.pop("llm", {})
    small = {"encoder_width": 2, "encoder_blocks": [1, 1, 1, 1], "lora_r": LORA_R, "lora_alpha": LORA_ALPHA}
    backbone = f"scratch:{name.split('-')[0]}"
    return ModelConfig(backbone=backbone, fusion=fusion, llm=llm, **(small | {"lora_dropout": 0.0} | overrides))


def build(name, fusion="meit", seed=0, **overrides):
    """A model in eval mode whose LLM weights, biases and LoRA matrices (B too) are all drawn anew."""
    torch.manual_seed(seed)
    model = MeitModel.build(config(name, fusion, **overrides), Tokenizer())
    with torch.no_grad():
        for p in model.llm.parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.15)
            else:
                p.add_(torch.randn_like(p) * 0.1)
        if (
            model.encoder is not None
        ):  # as if trained: with fresh BatchNorm statistics all records give nearly one vector
            for module in model.encoder.modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.momentum = None  # statistics = those of the one batch below
            model.encoder.train()(torch.randn(8, 12, 80))
    return model.eval()


def batch(padding, n_tokens=11, seed=0):
    """3 rows: input_ids, attention_mask [3, T], ecg [3, 12, 80]; padded rows have 11, 8 and 4 tokens."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, n_tokens), generator=rng)
    mask = torch.ones_like(ids)
    for row, n_pads in enumerate({"none": (0, 0, 0)}.get(padding, (0, 3, 7))):
        if n_pads:
            pads = slice(0, n_pads) if padding == "left" else slice(-n_pads, None)
            mask[row, pads], ids[row, pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "ecg": torch.randn(3, 12, 80, generator=rng)}
