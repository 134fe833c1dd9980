"""Datasets and collators: every choice about text and volume of this paper (reference: Data, "Splice", Text rules)."""

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from argus.config import DataConfig
from argus.prep import Prepared
from shared.tokens import Examples, examples_of, mask_of, pad_right, padded

SENTENCE_END = r"(?<=[.;])\s"
VOLUMES = ("volume", "zero", "mean", "shuffle")  # what a model is tested on: the true one, and three controls
# One fixed prompt per target section (reference), of our own wording; a section belongs to one source and its style.
PROMPTS = {
    "findings": "Write the findings of this chest CT.",
    "report": "Write the whole report of this chest CT.",
    "impression": "Write the impression of this chest CT.",
}


def prompt_text(section: str) -> str:
    """Plain text, no chat template: the paper's prompt is not established."""
    return f"{PROMPTS[section]}\n"


def train_tokenizer(texts: list[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Byte-level BPE on training texts and prompts, for models that start from scratch. Merges cross the words of a
    sentence, never its end, so that what every report says becomes few tokens.
    <bos> and <eos> stand around a text that is tokenised with special tokens (the text tower of `clip` reads its
    summary at <bos>)."""
    bpe, special = Tokenizer(BPE()), ["<pad>", "<bos>", "<eos>"]
    sentences = Split(Regex(SENTENCE_END), "merged_with_next")
    bpe.pre_tokenizer = Sequence([sentences, ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *map(prompt_text, PROMPTS)], trainer)
    ids = [(token, bpe.token_to_id(token)) for token in special[1:]]
    bpe.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer; a pad token is added where it has none (the embeddings are resized by the model)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def prompt_ids(section: str, tokenizer) -> list[int]:
    """BOS (where the tokenizer has one) and the prompt; the model puts the visual tokens between the two."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer(prompt_text(section), add_special_tokens=False).input_ids


def prompt_batch(sections: list[str], tokenizer) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, L], padded on the left: what `generate` takes."""
    ids = [prompt_ids(section, tokenizer) for section in sections]
    longest = max(map(len, ids))
    padded = [[tokenizer.pad_token_id] * (longest - len(i)) + i for i in ids]
    mask = [[0] * (longest - len(i)) + [1] * len(i) for i in ids]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def read_volumes(prepared: Prepared, rows, slice_only: bool = False) -> torch.Tensor:
    """Volumes of these rows, float32 [B, 1, D, H, W] in [-1, 1]. slice_only: the middle slice in place of every slice,
    the 2-D control."""
    volume = torch.as_tensor(prepared.batch(rows))
    if slice_only:
        middle = volume.shape[2] // 2
        volume = volume[:, :, middle : middle + 1].expand_as(volume).contiguous()
    return volume


class ReportDataset(Examples):
    """Volume-report pairs of one part of the split, tokenised once; `n_truncated` counts the reports that were cut,
    `reports` stay whole."""

    def __init__(self, prepared: Prepared, part: str, data: DataConfig, tokenizer, limit: int = 0):
        self.records: pd.DataFrame = prepared.records(part).head(limit or None)
        if self.records.empty:
            raise ValueError(f"data: the part '{part}' holds no record; ask for more patients or another data.share")
        self.reports = self.records.target.tolist()
        self.prepared, self.part = prepared, part
        prompts = {section: prompt_ids(section, tokenizer) for section in self.records.section.unique()}
        of_row = [prompts[section] for section in self.records.section]
        self.examples, self.n_truncated = examples_of(of_row, self.reports, data.max_tokens, tokenizer)

    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i) | {"row": int(self.records.row.iloc[i])}


class Collator:
    """input_ids, attention_mask, labels [B, L], padded on the right, and volume [B, 1, D, H, W] from the store.

    prepared: null for a model that sees no volume."""

    def __init__(self, prepared: Prepared | None, pad_id: int, slice_only: bool = False):
        self.prepared, self.pad_id, self.slice_only = prepared, pad_id, slice_only

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = padded(items, self.pad_id)
        if self.prepared is not None:
            batch["volume"] = read_volumes(self.prepared, [item["row"] for item in items], self.slice_only)
        return batch


class PretrainDataset(Dataset):
    """Volumes with labels and report, for the objectives of an encoder.

    All objectives see the same records: those with labels, which only CT-RATE has (reference). tokenizer: of clip;
    null for the others. text_tokens: longer reports are cut there.
    """

    def __init__(self, prepared: Prepared, part: str, tokenizer=None, text_tokens: int = 512, limit: int = 0):
        records = prepared.records(part)
        self.records = records[records.labels.notna()].head(limit or None)
        if self.records.empty:
            raise ValueError(f"data.sources: no record of the part '{part}' has labels; pre-training needs ct-rate")
        self.prepared, self.part, self.n_truncated = prepared, part, 0
        self.labels = np.stack(self.records.labels.to_list()).astype(np.float32)  # [n, 18], nan = unknown
        self.study = pd.factorize(self.records.study)[0]
        self.text_ids = None
        if tokenizer is not None:
            whole = tokenizer(self.records.target.tolist()).input_ids
            self.n_truncated = sum(len(ids) > text_tokens for ids in whole)
            self.text_ids = [[*ids[: text_tokens - 1], ids[-1]] if len(ids) > text_tokens else ids for ids in whole]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        item = {"row": int(self.records.row.iloc[i]), "findings": self.labels[i], "study": int(self.study[i])}
        return item if self.text_ids is None else item | {"text_ids": self.text_ids[i]}


class PretrainCollator:
    """volume [B, 1, D, H, W]; findings float32 and findings_mask bool [B, 18]; study int64 [B]; text_ids and text_mask
    [B, L] where the dataset has text."""

    def __init__(self, prepared: Prepared, pad_id: int = 0, slice_only: bool = False):
        self.prepared, self.pad_id, self.slice_only = prepared, pad_id, slice_only

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        findings = torch.from_numpy(np.stack([item["findings"] for item in items]))
        batch = {
            "volume": read_volumes(self.prepared, [item["row"] for item in items], self.slice_only),
            "findings": findings.nan_to_num(),
            "findings_mask": ~findings.isnan(),
            "study": torch.tensor([item["study"] for item in items]),
        }
        if "text_ids" in items[0]:
            batch["text_ids"] = pad_right(items, "text_ids", self.pad_id)
            batch["text_mask"] = mask_of(items, "text_ids")
        return batch


def partners(records: pd.DataFrame, seed: int) -> np.ndarray:
    """For each record the position of another one, never of the same patient, of the same source where it can be.

    Patients stand source by source in seeded order, and each record gets the one that stands as many places further on
    as the largest patient has records; so every volume is used once.
    """
    patient = pd.factorize(records.patient)[0]
    n_most = int(np.bincount(patient).max())
    if len(records) < 2 * n_most:
        raise ValueError("eval.inputs: 'shuffle' needs records of more patients; raise data.n_test")
    draw = np.random.default_rng(seed).permutation(patient.max() + 1)[patient]
    order = np.lexsort((draw, records.source.to_numpy()))
    found = np.empty(len(records), dtype=np.int64)
    found[order] = np.roll(order, -n_most)
    return found


def mean_volume(prepared: Prepared, slice_only: bool = False, n: int = 256) -> torch.Tensor:
    """[1, 1, D, H, W] voxel by voxel, the mean of the first n training volumes: a chest, but nobody's."""
    rows = prepared.records("train").row.to_numpy()[:n]
    total = sum(
        read_volumes(prepared, rows[i : i + 16], slice_only).sum(0, keepdim=True) for i in range(0, len(rows), 16)
    )
    return total / len(rows)


def model_input(dataset: ReportDataset, data: DataConfig, items: list[int], kind: str, seed: int) -> torch.Tensor:
    """[B, 1, D, H, W] volumes as the model is tested on them: `volume`, the true one; `zero` (every voxel 0, which is
    water, and far from any chest where `model.standardise`); `mean` (`mean_volume`); `shuffle` (another patient's,
    seeded)."""
    if kind not in VOLUMES:
        raise ValueError(f"eval.inputs: {kind!r} is not one of {', '.join(VOLUMES)}")
    if kind == "mean":
        return mean_volume(dataset.prepared, data.slice_only).expand(len(items), -1, -1, -1, -1)
    if kind == "shuffle":
        items = partners(dataset.records, seed)[items]
    volume = read_volumes(dataset.prepared, dataset.records.row.to_numpy()[items], data.slice_only)
    return torch.zeros_like(volume) if kind == "zero" else volume
