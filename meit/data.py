"""Dataset and collator: every choice about text and signal of this paper (reference: Data, Instruction text)."""

import hashlib
import logging
import re

import numpy as np
import pandas as pd
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from meit import noise
from meit.config import DataConfig
from meit.instructions import FIXED_INSTRUCTION, instruction_pool
from shared.ecg.prepare import Prepared
from shared.tokens import Examples, examples_of, padded

log = logging.getLogger(__name__)
USER, ASSISTANT = "<|user|>\n", "<|assistant|>\n"  # plain text, not special tokens (public code)
UNUSABLE = "something wrong with the data"  # PTB-XL reports with this note are left out (public code)


def clean_report(text: str) -> str:
    """Report text as the public code trains on it: EKG -> ECG, lower case, blanks collapsed."""
    return re.sub(r"\s+", " ", text.replace("EKG", "ECG")).strip().lower()


def normalise(signal_mv: np.ndarray, how: str) -> np.ndarray:
    """[B, 12, T] mV -> model input. `joint_minmax`: (x - min) / (max - min) over all leads (public code)."""
    if how == "none":
        return signal_mv
    if how != "joint_minmax":
        raise ValueError(f"data.normalise: {how!r} is neither 'joint_minmax' nor 'none'")
    low = signal_mv.min(axis=(1, 2), keepdims=True)
    return (signal_mv - low) / (signal_mv.max(axis=(1, 2), keepdims=True) - low + 1e-8)


def train_tokenizer(texts: list[str], vocab_size: int = 1500) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training reports, for backbones that start from scratch."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<pad>", "<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer; a pad token is added where it has none (the embeddings are resized by the model)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def instruction_for(record_id: str, mode: str, seed: int) -> str:
    """The instruction a record trains with: a seeded draw from the 256, the fixed one, or none."""
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{record_id}".encode()).digest()[:4], "big")
    if mode == "mixed":  # language-model pre-training: half with, half without, so that neither form is favoured
        mode = "pool" if draw >> 31 else "none"
    if mode == "pool":
        pool = instruction_pool()
        return pool[draw % len(pool)]
    return prompt_instruction(mode)


def prompt_instruction(mode: str) -> str:
    """The one instruction of test time: inference uses a single instruction in the paper too."""
    if mode not in ("pool", "fixed", "none", "mixed"):
        raise ValueError(f"data.instructions: {mode!r} is not one of pool, fixed, none, mixed")
    return "" if mode == "none" else FIXED_INSTRUCTION


def prompt_text(instruction: str) -> str:
    return f"{USER}{instruction}\n{ASSISTANT}"


class ReportDataset(Examples):
    """ECG-report pairs of one part of a split, tokenised once; `n_truncated` counts the reports that were cut,
    `n_dropped` those left out; `reports` stay whole."""

    def __init__(self, prepared: Prepared, part: str, data: DataConfig, tokenizer, seed: int = 0, limit: int = 0):
        records = prepared.records(part)
        reports = records.report.map(clean_report)
        usable = (reports != "") & ~reports.str.contains(UNUSABLE, regex=False)
        self.n_dropped = int((~usable).sum())
        if self.n_dropped:
            log.warning("%s: %d records without a usable report left out", part, self.n_dropped)
        self.records: pd.DataFrame = records[usable].head(limit or None)
        self.reports = reports[usable].head(limit or None).tolist()
        self.store, self.part = prepared.store, part
        prompts = [prompt_text(instruction_for(r, data.instructions, seed)) for r in self.records.record_id]
        prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
        self.examples, self.n_truncated = examples_of(prompt_ids, self.reports, data.max_tokens, tokenizer)

    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i) | {"row": int(self.records.row.iloc[i])}


class Collator:
    """Pads a batch on the right and reads its ECGs from the memory-mapped store."""

    def __init__(self, store, how: str, pad_id: int, with_ecg: bool = True):
        self.store, self.how, self.pad_id, self.with_ecg = store, how, pad_id, with_ecg

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = padded(items, self.pad_id)
        if self.with_ecg:
            batch["ecg"] = torch.from_numpy(normalise(self.store.batch_mv([i["row"] for i in items]), self.how))
        return batch


def model_input(dataset: ReportDataset, data: DataConfig, items: list[int], kind: str, seed: int) -> torch.Tensor:
    """[B, 12, T] ECGs as the model is tested on them.

    kind: `ecg`, the true one; `zero` (all samples 0 after normalisation); `shuffle` (another record's ECG, seeded);
    `noise-P` (published perturbation, window up to the fraction P); `snr-D` (white noise per lead at D dB).
    """
    if kind == "shuffle":
        order = np.random.default_rng(seed).permutation(len(dataset))
        partner = np.roll(order, 1)[np.argsort(order)]  # a cycle: nobody keeps its own ECG
        items = partner[items]
    rows = dataset.records.row.to_numpy()[items]
    ids = dataset.records.record_id.to_numpy()[items].tolist()
    signal_mv = dataset.store.batch_mv(rows)
    if kind.startswith("snr-"):
        signal_mv = noise.at_snr(signal_mv, ids, float(kind.removeprefix("snr-")), seed)
    ecg = normalise(signal_mv, data.normalise)
    if kind == "zero":
        ecg = np.zeros_like(ecg)
    elif kind.startswith("noise-"):
        ecg = noise.published(ecg, ids, float(kind.removeprefix("noise-")), seed)
    elif kind not in ("ecg", "shuffle") and not kind.startswith("snr-"):
        raise ValueError(f"eval.inputs: {kind!r} is not one of ecg, zero, shuffle, noise-P, snr-D")
    return torch.from_numpy(ecg)
