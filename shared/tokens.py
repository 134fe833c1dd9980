"""Prompts and reports as tokens, as a causal language model is trained on them: windows, loss masks, padding."""

import torch
from torch.utils.data import Dataset

IGNORE = -100  # label of tokens without loss


def examples_of(prompts: list[list[int]], reports: list[str], max_tokens: int, tokenizer) -> tuple[list, int]:
    """[(input_ids, labels)], one per report, and how many reports had to be cut.

    Prompt and report are tokenised apart and the ids joined, so the loss mask is exact: loss on report and end token
    only. Reports longer than the window of max_tokens keep their end token.
    """
    examples, n_truncated = [], 0
    for prompt, report in zip(prompts, tokenizer(reports, add_special_tokens=False).input_ids, strict=True):
        room = max_tokens - len(prompt) - 1
        if room < 1:
            raise ValueError(f"data.max_tokens: {max_tokens} leaves no room after a prompt of {len(prompt)}")
        n_truncated += len(report) > room
        report = [*report[:room], tokenizer.eos_token_id]
        examples.append((prompt + report, [IGNORE] * len(prompt) + report))
    return examples, n_truncated


class Examples(Dataset):
    """Tokenised texts: `examples` of `examples_of`, without what they describe."""

    examples: list[tuple[list[int], list[int]]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict:
        input_ids, labels = self.examples[i]
        return {"input_ids": input_ids, "labels": labels}


def pad_right(items: list[dict], key: str, value: int) -> torch.Tensor:
    """[B, longest]"""
    longest = max(len(item[key]) for item in items)
    return torch.tensor([item[key] + [value] * (longest - len(item[key])) for item in items])


def mask_of(items: list[dict], key: str) -> torch.Tensor:
    """int64 [B, longest], 1 where there is a token."""
    lengths = torch.tensor([len(item[key]) for item in items])
    return (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()


def padded(items: list[dict], pad_id: int) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask [B, longest] of items of `Examples`, padded on the right."""
    batch = {"input_ids": pad_right(items, "input_ids", pad_id), "labels": pad_right(items, "labels", IGNORE)}
    return batch | {"attention_mask": mask_of(items, "input_ids")}
