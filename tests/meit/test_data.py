"""Instruction data: exact loss masks, windows, instructions, inputs of the controls."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from meit.config import DataConfig
from meit.data import (
    Collator,
    ReportDataset,
    clean_report,
    instruction_for,
    model_input,
    normalise,
    prompt_instruction,
    prompt_text,
    train_tokenizer,
)
from meit.instructions import FIXED_INSTRUCTION, instruction_pool
from shared.tokens import IGNORE

REPORTS = ["Sinus rhythm. Normal EKG", "Atrial  fibrillation", "", "Something wrong with the data", "LBBB. " * 60]


class Store:
    """Six records of distinct constant-free signals."""

    def __init__(self):
        self.signal_mv = np.random.default_rng(0).normal(size=(6, 12, 50)).astype(np.float32)

    def batch_mv(self, rows):
        return self.signal_mv[np.asarray(rows)]


@pytest.fixture
def prepared():
    n = len(REPORTS)
    records = pd.DataFrame(
        {"record_id": [f"r{i}" for i in range(n)], "patient_id": "p", "report": REPORTS, "row": range(n)}
    )
    return SimpleNamespace(records=lambda part: records, store=Store())


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([clean_report(r) for r in REPORTS] + [prompt_text(i) for i in instruction_pool()], 600)


def test_loss_is_on_report_and_end_token_only(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(), tokenizer)
    assert dataset.n_dropped == 2 and len(dataset) == 3
    item = dataset[0]
    n_prompt = item["labels"].count(IGNORE)
    assert tokenizer.decode(item["input_ids"][:n_prompt]).endswith("<|assistant|>\n")
    learned = [t for t in item["labels"] if t != IGNORE]
    assert learned == item["input_ids"][n_prompt:] and learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]) == "sinus rhythm. normal ecg"


def test_long_reports_keep_their_end_token_and_are_counted(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(max_tokens=64), tokenizer)
    assert dataset.n_truncated == 1
    assert len(dataset[2]["input_ids"]) == 64 and dataset[2]["input_ids"][-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"data\.max_tokens"):
        ReportDataset(prepared, "train", DataConfig(max_tokens=8), tokenizer)


def test_batches_are_padded_on_the_right_with_masks(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(), tokenizer)
    batch = Collator(dataset.store, "joint_minmax", tokenizer.pad_token_id)([dataset[0], dataset[2]])
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len(dataset[0]["input_ids"]), len(dataset[2]["input_ids"])]
    assert (batch["labels"][0, lengths[0] :] == IGNORE).all()
    assert (batch["input_ids"][0, lengths[0] :] == tokenizer.pad_token_id).all()
    assert batch["ecg"].shape == (2, 12, 50)
    assert torch.equal(batch["ecg"].amin((1, 2)), torch.zeros(2)) and torch.allclose(
        batch["ecg"].amax((1, 2)), torch.ones(2)
    )


def test_instructions_by_mode():
    pool = set(instruction_pool())
    drawn = {instruction_for(f"r{i}", "pool", 0) for i in range(3000)}
    assert drawn == pool
    assert instruction_for("r1", "pool", 0) == instruction_for("r1", "pool", 0)
    assert any(instruction_for(f"r{i}", "pool", 0) != instruction_for(f"r{i}", "pool", 1) for i in range(5))
    empty = np.mean([instruction_for(f"r{i}", "mixed", 0) == "" for i in range(2000)])
    assert 0.45 < empty < 0.55
    assert instruction_for("r1", "none", 0) == prompt_instruction("none") == ""
    assert prompt_instruction("pool") == instruction_for("r1", "fixed", 0) == FIXED_INSTRUCTION
    with pytest.raises(ValueError, match=r"data\.instructions"):
        prompt_instruction("some")


def test_normalisation_is_joint_over_leads():
    signal = np.random.default_rng(1).normal(size=(3, 12, 40)).astype(np.float32)
    scaled = normalise(signal, "joint_minmax")
    for raw, out in zip(signal, scaled, strict=True):
        np.testing.assert_allclose(out, (raw - raw.min()) / (raw.max() - raw.min() + 1e-8), rtol=1e-6)
    assert normalise(signal, "none") is signal
    assert np.isfinite(normalise(np.zeros((1, 12, 4), np.float32), "joint_minmax")).all()
    with pytest.raises(ValueError, match=r"data\.normalise"):
        normalise(signal, "z-score")


def test_control_inputs(prepared, tokenizer):
    dataset = ReportDataset(prepared, "test", DataConfig(), tokenizer)
    items, data = [0, 1, 2], DataConfig()
    ecg = {k: model_input(dataset, data, items, k, seed=3) for k in ("ecg", "shuffle", "zero", "noise-0.20", "snr-10")}
    assert torch.equal(ecg["ecg"], torch.from_numpy(normalise(dataset.store.batch_mv([0, 1, 4]), "joint_minmax")))
    assert not ecg["zero"].any()
    for i in items:
        assert not torch.equal(ecg["shuffle"][i], ecg["ecg"][i]), "nobody keeps its own ECG"
        assert any(torch.equal(ecg["shuffle"][i], other) for other in ecg["ecg"])
    assert not torch.equal(ecg["snr-10"], ecg["ecg"])
    one_by_one = torch.cat([model_input(dataset, data, [i], "snr-10", seed=3) for i in items])
    assert torch.equal(one_by_one, ecg["snr-10"]), "noise does not depend on the batch"
    with pytest.raises(ValueError, match=r"eval\.inputs"):
        model_input(dataset, data, items, "upside-down", 0)
