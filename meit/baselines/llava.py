"""LLaVA-style input concatenation, a compared fusion of MEIT's ablation (reference: "Training").

The ECG feature map is pooled to n tokens; a two-layer MLP brings them to the LLM's embedding width, and they are read
before the text like n words: they have positions, issue queries and pass through every layer. The paper gives neither
size nor token count (Unknown; default n = 1 and 16).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from meit.backbones import call_llm, positions_of


class LlavaFusion(nn.Module):
    def __init__(self, llm: nn.Module, n_features: int):
        super().__init__()
        width = llm.get_input_embeddings().embedding_dim
        self.mlp = nn.Sequential(nn.Linear(n_features, width), nn.GELU(), nn.Linear(width, width))

    def context(self, llm: nn.Module, e: torch.Tensor) -> torch.Tensor:
        """e [B, n, features] -> input embeddings [B, n, width]."""
        return self.mlp(e)

    def run(self, llm, input_ids, attention_mask, ecg: torch.Tensor | None, cache=None):
        """Same contract as the other fusions: logits of the T text tokens only.

        A row is [left pads | ECG | text | right pads]: next to its text, so that padding never pushes the ECG out of a
        sliding window. Positions count ECG and text and skip the pads.
        """
        n_text = input_ids.shape[1]
        if ecg is None:
            return call_llm(llm, attention_mask, positions_of(attention_mask, n_text), cache, input_ids=input_ids)
        order = behind_left_pads(attention_mask, ecg.shape[1])
        mask = F.pad(attention_mask, (ecg.shape[1], 0), value=1).gather(1, order)  # [B, n + S]
        if cache is not None and cache.get_seq_length() > 0:
            return call_llm(llm, mask, positions_of(mask, n_text), cache, input_ids=input_ids)
        words = llm.get_input_embeddings()(input_ids)
        inputs = torch.cat([ecg.to(words.dtype), words], dim=1)  # [B, n + T, width]
        inputs = inputs.gather(1, order[..., None].expand_as(inputs))
        out = call_llm(llm, mask, positions_of(mask, inputs.shape[1]), cache, inputs_embeds=inputs)
        out.logits = out.logits[:, -n_text:]
        return out


def behind_left_pads(attention_mask: torch.Tensor, n: int) -> torch.Tensor:
    """[B, S] mask -> [B, n + S] indices that turn [n ECG | p pads | text] into [p pads | n ECG | text] in every row."""
    n_pads = (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)  # [B, 1]
    j = torch.arange(n + attention_mask.shape[1], device=attention_mask.device)[None]
    return torch.where(j < n_pads, j + n, torch.where(j < n_pads + n, j - n_pads, j))
