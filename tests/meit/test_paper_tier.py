"""The path of the paper tier, with tiny random checkpoints saved in each family's own format instead of the hub's."""

import json

import pandas as pd
import pytest
from transformers import AutoTokenizer

from meit import evaluate, train
from meit.backbones import FAMILIES, load_llm
from meit.data import UNUSABLE, clean_report, prompt_text, train_tokenizer
from meit.instructions import instruction_pool


def hub_folder(family: str, folder) -> str:
    """What the hub would give: config, weights, tokenizer without a pad token."""
    tokenizer = train_tokenizer([prompt_text(i) for i in instruction_pool()], 600)
    llm = load_llm(f"scratch:{family}", {"hidden_size": 32, "layers": 2, "heads": 4}, tokenizer, "float32")
    llm.save_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None, "as LLaMA's, GPT-2's and others'"
    return str(folder)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_evaluate_from_a_hub_folder(family, caches, tmp_path):
    folder = hub_folder(family, tmp_path / "hub")
    args = [
        "--config=meit/configs/paper.yaml",
        f"--runs={tmp_path}",
        f"--model.backbone={folder}",
        "--data.simulate={n_records: 60, seed: 0, fs_hz: 100}",
        "--data.fs_hz=100",
        "--data.workers=0",
        "--model.encoder_width=4",
        "--model.encoder_blocks=[1,1,1,1]",
        "--train.epochs=1",
        "--train.global_batch=16",
        "--train.micro_batch=8",
        "--train.log_steps=1",
        "--eval.max_new_tokens=4",
        "--eval.bertscore=null",
        '--eval.metrics=["bleu"]',
        "--eval.n_boot=20",
    ]
    run = train.main(args)
    facts = json.loads((run / "run.json").read_text())
    assert facts["batch"] == "16 = 8 x 2 x 1" and facts["trainable"] < facts["parameters"]
    assert len(facts["loss_log"]) >= 2
    table = pd.read_parquet(evaluate.main(args) / "predictions.parquet")
    assert len(table) and not table.prediction.isna().any()
    assert (table.reference == table.reference.map(clean_report)).all() and UNUSABLE not in set(table.reference)
