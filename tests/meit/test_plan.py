"""meit.plan counts what the reference lists: LoRA sizes, steps, ZeRO memory."""

import pytest

from meit import plan
from meit.plan import BACKBONES, PlanConfig, count, llm_config, steps

# LLM parameters in M: sizes of the released checkpoints. LoRA in M at r 64: reference, "Training".
PUBLISHED = {
    "GPT2-Medium": (354.8, 6.3),
    "GPT2-Large": (774.0, 11.8),
    "GPT-Neo 1.3B": (1315.6, 18.9),
    "GPT-NeoX": (20_554.6, 69.2),
    "GPT-J": (6050.9, 44.0),
    "BLOOM": (7069.0, 31.5),
    "OPT": (6658.5, 50.3),
    "LLaMA-1": (6738.4, 159.9),
    "Mistral": (7241.7, 167.8),
    "LLaMA-3-Instruct": (8030.3, 167.8),
    "LLaMA-2 13B": (13_015.9, 250.3),
}
ENCODER = {"gpt2": 20_290_880, "gptj": 20_684_672, "gpt_neox": 20_352_224}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_match_the_reference(name):
    sizes = count(llm_config(name))
    llm_millions, lora_millions = PUBLISHED[name]
    assert round(sizes["llm"] / 1e6, 1) == llm_millions
    assert round(sizes["lora"] / 1e6, 1) == lora_millions
    family = BACKBONES[name][1]
    assert sizes["encoder"] == ENCODER.get(family, 20_422_144)
    assert sizes["trained"] == sizes["lora"] + sizes["encoder"]
    assert sizes["total"] == sizes["llm"] + sizes["trained"]


def test_training_the_whole_llm():
    sizes = count(llm_config("GPT2-Medium"), lora_r=0)
    assert sizes["lora"] == 0 and sizes["trained"] == sizes["total"]


def test_steps():
    assert steps(plan.N_TRAIN["mimic"]) == 56_252
    assert steps(plan.N_TRAIN["ptb-xl"]) == 1360
    assert steps(plan.N_TRAIN["mimic"], epochs=3, global_batch=16) == 135_005


def test_command_line(capsys, tmp_path):
    plan.main(["--backbones", "[GPT2-Medium]", "--gpus", "[1,4]"])
    out = capsys.readouterr().out
    assert "56,252 optimiser steps" in out and "GPT2-Medium" in out and "354.8M" in out and "6.3M" in out
    config = tmp_path / "run.yaml"
    config.write_text("train: {global_batch: 32, epochs: 1}\nmodel: {lora_r: 8}\n")
    plan.main(["--config", str(config), "--backbones", "[GPT2-Medium]", "--epochs", "2"])
    out = capsys.readouterr().out
    assert "720,031 records x 2 epochs / global batch 32 = 45,001" in out
    assert "LoRA r 8" in out and "fp32 weights" in out


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="'GPT-5' is not in the paper's table"):
        plan.plan(PlanConfig(backbones=["GPT-5"]))
