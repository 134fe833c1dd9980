"""The path of the paper tier, with tiny random checkpoints saved in each family's own format instead of the hub's."""

import json
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from argus import evaluate, train
from argus.config import parse
from argus.data import PROMPTS, prompt_text, train_tokenizer
from argus.encoder import grid_of

CONFIG = "argus/configs/paper.yaml"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def save_tokenizer(folder, family: str) -> int:
    """A tokenizer as the hub would give it: without a pad token, Qwen's also without BOS. Its size."""
    tokenizer = train_tokenizer(["No nodule is seen.", *map(prompt_text, PROMPTS)], 400)
    if family != "bert":
        tokenizer.pad_token = None
    if family == "qwen2":
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder)
    assert (read.pad_token is None) == (family != "bert") and (read.bos_token is None) == (family == "qwen2")
    return len(tokenizer)


def hub_folder(family: str, folder) -> str:
    """What the hub would give of an LLM: config, weights, tokenizer."""
    config, kind = FAMILIES[family]
    n = save_tokenizer(folder, family)
    kind(config(**SIZES, num_key_value_heads=2, vocab_size=n - 1)).save_pretrained(folder)  # the pad token is added
    return str(folder)


def bert_folder(folder) -> str:
    n = save_tokenizer(folder, "bert")
    BertModel(BertConfig(**SIZES, vocab_size=n)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Options that make the tier small; the settings under test stay those of paper.yaml."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield [
            f"--config={CONFIG}",
            f"--runs={tmp_path_factory.mktemp('runs')}",
            "--data.simulate={n_patients: {ct-rate: 16, bimcv-r: 12, inspect: 10}, seed: 0, shape: [32, 48, 48]}",
            "--data.shape=[16, 32, 32]",
            "--data.max_tokens=64",
            "--data.n_train=16",
            "--data.n_test=3",
            "--data.workers=0",
            "--model.patch=[4, 8, 8]",
            "--model.width=24",
            "--model.depth=1",
            "--model.heads=2",
            "--model.mlp=48",
            "--train.epochs=1",
            "--train.steps=2",
            "--train.global_batch=8",
            "--train.micro_batch=4",
            "--train.log_steps=1",
            "--eval.max_new_tokens=4",
            "--eval.bertscore=null",
            "--eval.green=null",
            "--eval.ratescore=null",
            '--eval.metrics=["bleu"]',
            "--eval.n_boot=20",
        ]


@pytest.fixture(scope="module")
def encoder(common, tmp_path_factory):
    """A ViT pre-trained with reports, its text tower from a hub folder."""
    text = bert_folder(tmp_path_factory.mktemp("bert"))
    options = ["--experiment=encoder-clip", "--model.objective=clip", f"--model.text={text}", "--model.text_tokens=32"]
    return train.main([*common, *options]) / "checkpoint"


def trained_parts(checkpoint) -> set[str]:
    found = set()
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {key.split(".")[0] for key in tensors.keys()} | {
                "lora" for key in tensors.keys() if "lora_A" in key
            }
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_two_stages_and_evaluation_from_a_hub_folder(family, common, encoder, tmp_path):
    backbone = f"--model.backbone={hub_folder(family, tmp_path / 'hub')}"
    first = [f"--experiment=align-{family}", "--model.train_vit=false", "--model.train_llm=false"]
    align = train.main([*common, backbone, *first, f"--model.encoder={encoder}"])
    facts = json.loads((align / "run.json").read_text())
    assert facts["batch"] == "8 = 4 x 2 x 1" and facts["n_visual"] == 8 and len(facts["loss_log"]) == 2
    out, width = 32, 24 * 8
    assert facts["trainable"] == (width + 1) * out + (out + 1) * out, "the compressor alone"
    assert trained_parts(align / "checkpoint") == {"llm", "encoder", "compressor"}

    second = [*common, backbone, f"--experiment={family}", f"--train.init={align / 'checkpoint'}"]
    tune = train.main(second)
    more = json.loads((tune / "run.json").read_text())
    assert facts["trainable"] < more["trainable"] < more["parameters"]
    assert "lora" in trained_parts(tune / "checkpoint")
    table = pd.read_parquet(evaluate.main(second) / "predictions.parquet")
    assert len(table) == 3 and not table.prediction.isna().any()


@pytest.mark.parametrize("tier", ["paper", "gpu"])
def test_every_size_of_a_tier_fits_also_those_of_its_experiments(tier):
    base = parse([f"--config=argus/configs/{tier}.yaml"])
    overrides = base.reproduce.overrides
    for name in ("", *overrides):
        cfg = deepcopy(base)
        for prefix, keys in overrides.items():
            for key, value in keys.items() if name.startswith(prefix) else ():
                section, field = key.split(".")
                assert hasattr(getattr(cfg, section), field), key
                setattr(getattr(cfg, section), field, value)
        grid = grid_of(cfg.data.shape, cfg.model.patch)
        assert all(g % f == 0 for g, f in zip(grid, cfg.model.factors, strict=True)), name
        assert cfg.train.global_batch % cfg.train.micro_batch == 0, name
        assert cfg.model.width % cfg.model.heads == 0 and cfg.eval.max_new_tokens <= cfg.data.max_tokens
        assert cfg.train.deepspeed is None or Path(cfg.train.deepspeed).is_file()
