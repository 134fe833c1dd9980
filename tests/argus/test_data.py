"""Text and volumes as the models get them: exact loss masks, windows, padding, inputs of the controls."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from argus.config import DataConfig
from argus.data import (
    PROMPTS,
    Collator,
    PretrainCollator,
    PretrainDataset,
    ReportDataset,
    load_tokenizer,
    mean_volume,
    model_input,
    partners,
    prompt_batch,
    prompt_text,
    read_volumes,
    train_tokenizer,
)
from argus.manifest import SECTIONS
from shared.tokens import IGNORE

REPORTS = [
    "Nodule of 6 mm in the left upper lobe.",
    "No acute cardiopulmonary abnormality is seen.",
    "Derrame pleural: small right pleural effusion. " * 12,
    "Normal chest CT without nodules.",
    "Emphysema in both upper lobes.",
    "No pulmonary embolism to segmental level.",
]
SOURCES = ["ct-rate", "ct-rate", "bimcv-r", "ct-rate", "bimcv-r", "inspect"]


class Prepared:
    """Six volumes of distinct noise, one patient twice."""

    def __init__(self):
        self.values = np.random.default_rng(0).uniform(-1, 1, (6, 1, 4, 6, 6)).astype(np.float32)
        labels = [np.eye(18)[i] if s == "ct-rate" else None for i, s in enumerate(SOURCES)]
        labels[3][17] = np.nan
        self.table = pd.DataFrame(
            {
                "id": [f"{s}/v{i}" for i, s in enumerate(SOURCES)],
                "patient": ["ct-rate/a", "ct-rate/a", "bimcv-r/c", "ct-rate/d", "bimcv-r/e", "inspect/f"],
                "study": ["ct-rate/s1", "ct-rate/s1", "bimcv-r/s3", "ct-rate/s4", "bimcv-r/s5", "inspect/s1"],
                "source": SOURCES,
                "section": [SECTIONS[s] for s in SOURCES],
                "target": REPORTS,
                "labels": labels,
                "row": range(6),
            }
        )

    def records(self, part):
        return self.table if part == "train" else self.table[:0]

    def batch(self, rows):
        return self.values[np.asarray(rows)]


@pytest.fixture
def prepared():
    return Prepared()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(REPORTS, 500)


def without_bos(tokenizer):
    """Qwen's tokenizers have none."""
    view = {k: getattr(tokenizer, k) for k in ("pad_token_id", "eos_token_id", "decode")}
    return type("NoBos", (SimpleNamespace,), {"__call__": lambda self, *a, **k: tokenizer(*a, **k)})(
        **view, bos_token_id=None
    )


def test_loss_is_on_report_and_end_token_only(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(), tokenizer)
    for i, source in enumerate(SOURCES):
        item = dataset[i]
        n_prompt = item["labels"].count(IGNORE)
        prompt = item["input_ids"][:n_prompt]
        assert prompt[0] == tokenizer.bos_token_id
        assert tokenizer.decode(prompt[1:]) == prompt_text(SECTIONS[source])
        learned = [t for t in item["labels"] if t != IGNORE]
        assert learned == item["input_ids"][n_prompt:] and learned[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(learned[:-1]) == REPORTS[i], "case and punctuation stay"
    assert dataset.n_truncated == 0 and dataset.reports == REPORTS


def test_tokens_hold_words_of_one_sentence_and_give_back_every_text(tokenizer):
    for text in (*REPORTS, "Nódulo de 6 mm;\nnew <line>  é", *map(prompt_text, PROMPTS)):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
    words = [tokenizer.decode([i]) for i in range(3, len(tokenizer))]
    assert not [w for w in words if re.search(r"[.;]\s", w)], "no token goes on after the end of a sentence"
    known = tokenizer(REPORTS[1], add_special_tokens=False).input_ids
    assert len(known) == 1, "a sentence of the training texts is one token where the vocabulary has room"


def test_each_section_has_its_own_prompt():
    assert set(SECTIONS.values()) == set(PROMPTS) and len(set(PROMPTS.values())) == 3


def test_a_tokenizer_without_bos_starts_with_the_prompt(prepared, tokenizer):
    with_bos = ReportDataset(prepared, "train", DataConfig(), tokenizer)[0]
    without = ReportDataset(prepared, "train", DataConfig(), without_bos(tokenizer))[0]
    assert without["input_ids"] == with_bos["input_ids"][1:] and without["labels"] == with_bos["labels"][1:]


def test_long_reports_keep_their_end_token_and_are_counted(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(max_tokens=12), tokenizer)
    assert dataset.n_truncated == 1
    assert len(dataset[2]["input_ids"]) == 12 and dataset[2]["input_ids"][-1] == tokenizer.eos_token_id
    assert dataset.reports[2] == REPORTS[2], "the reference of a score is the whole report"
    with pytest.raises(ValueError, match=r"data\.max_tokens"):
        ReportDataset(prepared, "train", DataConfig(max_tokens=3), tokenizer)


def test_limit_and_empty_part(prepared, tokenizer):
    assert len(ReportDataset(prepared, "train", DataConfig(), tokenizer, limit=2)) == 2
    with pytest.raises(ValueError, match="part 'val' holds no record"):
        ReportDataset(prepared, "val", DataConfig(), tokenizer)


def test_batches_are_padded_on_the_right_with_masks(prepared, tokenizer):
    dataset = ReportDataset(prepared, "train", DataConfig(), tokenizer)
    batch = Collator(prepared, tokenizer.pad_token_id)([dataset[0], dataset[2]])
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len(dataset[0]["input_ids"]), len(dataset[2]["input_ids"])]
    assert (batch["labels"][0, lengths[0] :] == IGNORE).all()
    assert (batch["input_ids"][0, lengths[0] :] == tokenizer.pad_token_id).all()
    np.testing.assert_array_equal(batch["volume"], prepared.values[[0, 2]])
    text_only = Collator(None, tokenizer.pad_token_id)([dataset[0]])
    assert sorted(text_only) == ["attention_mask", "input_ids", "labels"]


def test_prompts_for_generation_are_padded_on_the_left(prepared, tokenizer):
    batch = prompt_batch(["findings", "impression"], tokenizer)
    dataset = ReportDataset(prepared, "train", DataConfig(), tokenizer)
    for row, i in enumerate((0, 5)):
        real = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        assert real == dataset[i]["input_ids"][: dataset[i]["labels"].count(IGNORE)]
    assert batch["attention_mask"][:, -1].all()


def test_slice_only_repeats_the_middle_slice(prepared):
    whole, flat = read_volumes(prepared, [1, 4]), read_volumes(prepared, [1, 4], slice_only=True)
    assert flat.shape == whole.shape
    for z in range(4):
        assert torch.equal(flat[:, :, z], whole[:, :, 2])


def test_pretraining_sees_labelled_records_only(prepared, tokenizer):
    dataset = PretrainDataset(prepared, "train", tokenizer)
    assert dataset.records.source.tolist() == ["ct-rate"] * 3
    batch = PretrainCollator(prepared, tokenizer.pad_token_id)([dataset[i] for i in range(3)])
    np.testing.assert_array_equal(batch["volume"], prepared.values[[0, 1, 3]])
    np.testing.assert_array_equal(batch["findings"][:2], np.eye(18)[:2])
    assert batch["findings_mask"].sum() == 53 and not batch["findings_mask"][2, 17]
    assert batch["findings"].isfinite().all() and batch["findings"].dtype == torch.float32
    assert batch["study"][0] == batch["study"][1] != batch["study"][2]
    assert batch["text_ids"].shape == batch["text_mask"].shape
    for row, i in enumerate((0, 1, 3)):
        ids = batch["text_ids"][row][batch["text_mask"][row] == 1].tolist()
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == REPORTS[i]
    assert "text_ids" not in PretrainDataset(prepared, "train")[0]
    prepared.table["labels"] = None
    with pytest.raises(ValueError, match="ct-rate"):
        PretrainDataset(prepared, "train")


def test_text_of_the_contrast_is_cut_with_its_end_token(prepared):
    tokenizer = train_tokenizer(REPORTS, 270)  # few merges, so many tokens
    dataset = PretrainDataset(prepared, "train", tokenizer, text_tokens=8)
    assert dataset.n_truncated == 3
    whole = tokenizer(REPORTS[0]).input_ids
    assert dataset[0]["text_ids"] == [*whole[:7], whole[-1]] and len(dataset[0]["text_ids"]) == 8


def test_inputs_of_the_controls(prepared, tokenizer):
    data = DataConfig()
    dataset = ReportDataset(prepared, "train", data, tokenizer)
    everyone = list(range(6))
    true = model_input(dataset, data, everyone, "volume", 0)
    assert true.shape == (6, 1, 4, 6, 6) and torch.equal(true, torch.from_numpy(prepared.values))
    assert not model_input(dataset, data, everyone, "zero", 0).any()
    mean = model_input(dataset, data, [3, 1], "mean", 0)
    assert mean.shape == (2, 1, 4, 6, 6) and torch.equal(mean[0], mean[1])
    assert torch.allclose(mean[:1], true.mean(0, keepdim=True), atol=1e-6)
    assert torch.equal(mean_volume(prepared, n=1), true[:1]), "of the first n"
    shuffled = model_input(dataset, data, everyone, "shuffle", 0)
    half = model_input(dataset, data, [3, 1], "shuffle", 0)
    assert torch.equal(half, shuffled[[3, 1]]), "a batch does not decide whose volume a record gets"
    assert sorted(shuffled[:, 0, 0, 0, 0].tolist()) == sorted(true[:, 0, 0, 0, 0].tolist())
    with pytest.raises(ValueError, match=r"eval\.inputs"):
        model_input(dataset, data, everyone, "noise", 0)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_volumes_are_of_another_patient(seed):
    rng = np.random.default_rng(seed)
    source = rng.choice(["a", "b", "c"], 60, p=[0.7, 0.25, 0.05])
    records = pd.DataFrame({"source": source, "patient": [f"{s}/{rng.integers(9)}" for s in source]})
    found = partners(records, seed)
    assert sorted(found) == list(range(60))
    assert (records.patient.to_numpy()[found] != records.patient.to_numpy()).all()
    n_most = records.patient.value_counts().max()
    assert (records.source.to_numpy()[found] != source).sum() <= 3 * n_most
    assert not np.array_equal(found, partners(records, seed + 100))
    with pytest.raises(ValueError, match="shuffle"):
        partners(pd.DataFrame({"source": "a", "patient": ["p", "p", "q"]}), 0)


def test_tokenizer_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    text = "Nodule of 12 mm, µ-CT: naïve."
    assert again.decode(again(text, add_special_tokens=False).input_ids) == text
    assert again(text).input_ids == tokenizer(text).input_ids
    ids = again(text).input_ids
    assert (ids[0], ids[-1]) == (again.bos_token_id, again.eos_token_id)
    assert len({again.pad_token_id, again.bos_token_id, again.eos_token_id}) == 3
