"""kmerl.plan counts what the reference lists and what the models really compute."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kmerl import plan
from kmerl.baselines import build
from kmerl.model import ModelConfig
from kmerl.plan import PlanConfig, computed_tokens, extraction, hours, parameters, steps, training_flops, variants

MED_CPT = 109_482_240  # parameters of a BERT-base with its pooler
SMALL = ModelConfig(patch=50, width=32, depth=2, heads=2, mlp=64, query_width=32, query_layers=2, query_mlp=64)


def test_parameters_against_hand_counts_and_the_quoted_total():
    """Reference M3 (ViT-tiny: 12 layers of width 192) by hand; MERL with its text encoder: 114.27 M (TAMER)."""
    layer = 4 * (192 * 192 + 192) + 2 * 192 * 768 + 768 + 192 + 4 * 192
    encoder = 12 * layer + (50 * 192 + 192) + 12 * 192 + 100 * 192 + 2 * 192
    sizes = parameters(ModelConfig())
    assert sizes["encoder"] == encoder and sizes["views"] == 0
    assert sizes["total"] == sum(n for part, n in sizes.items() if part != "total")
    merl = parameters(variants(ModelConfig())["MERL, ResNet18"])
    assert merl["query network"] == 0 and merl["total"] == sum(n for part, n in merl.items() if part != "total")
    assert (MED_CPT + merl["total"]) / 1e6 == pytest.approx(114.27, abs=0.02)


def test_tokens_are_the_reference_s():
    """M4: 75 to 225 of 1,200 visible tokens at p = 50; M9: 313 positions of the ResNet's map, 100 tokens of the ViT."""
    models = variants(ModelConfig())
    assert computed_tokens(models["K-MERL"]) == [225, 150, 75]
    assert computed_tokens(models["K-MERL, hidden tokens computed"]) == [1200]
    assert computed_tokens(models["MERL, ResNet18"]) == [313]
    assert computed_tokens(models["MERL, ViT"]) == [100]
    assert computed_tokens(replace(models["K-MERL"], p_full_leads=0.5)) == [225, 150, 75, 900]


@pytest.mark.parametrize("name", ["K-MERL", "K-MERL, hidden tokens computed", "MERL, ResNet18", "MERL, ViT"])
def test_operations_equal_those_of_a_real_training_step(name):
    cfg = replace(variants(SMALL)[name], masked_leads=[10], resnet_width=8)
    model, counter = build(cfg, 1000), FlopCounterMode(display=False)
    batch = {"ecg": torch.randn(4, 12, 1000), "text": torch.randn(4, 768), "queries": torch.randn(9, 768)}
    batch["entities"] = torch.randint(0, 2, (4, 9))
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch).loss.backward()
    assert counter.get_total_flops() / 4 == training_flops(cfg, 1000, 9) > 0


def test_operations_are_the_mean_over_what_the_masking_draws():
    cases = [training_flops(replace(SMALL, depth=1, masked_leads=[k]), 500, 9) for k in (9, 10, 11, 0)]
    assert cases[2] < cases[1] < cases[0] < cases[3]
    mixed = training_flops(replace(SMALL, depth=1, masked_leads=[9, 10, 11], p_full_leads=0.4), 500, 9)
    assert mixed == pytest.approx(0.2 * sum(cases[:3]) + 0.4 * cases[3])


def test_steps_hours_and_bytes_by_hand():
    cfg = PlanConfig(global_batch=1024, epochs=20, gpus=4, peak_tflops={"X": 100.0}, utilisation=0.5, read_gb_s=2.0)
    assert steps(cfg) == 738 * 20  # reference M9: 738 steps an epoch at batch 1,024
    computing, reading = hours(1e12, cfg, "X")
    records = 738 * 20 * 1024
    assert computing == pytest.approx(records * 1e12 / (4 * 100e12 * 0.5) / 3600)
    assert reading == pytest.approx(records * 12 * 5000 * 2 / 2e9 / 3600)
    assert plan.disk_gb(cfg.n_samples)["packed pre-training signals"] == pytest.approx(
        93, abs=0.5
    )  # reference D1: about 93 GB


def test_extraction_grows_with_unique_statements_only():
    few, many = (extraction(PlanConfig(unique_statements=n, llm_calls=2, llm_tokens=500)) for n in (100, 1000))
    assert few["calls_by_statement"] == 200 and few["mtokens_by_statement"] == pytest.approx(0.1)
    assert many["gpu_hours_by_statement"] == pytest.approx(10 * few["gpu_hours_by_statement"])
    assert few["calls_by_report"] == many["calls_by_report"] == 2 * 771_693


def test_command_line(capsys):
    small = ["--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.mlp", "64"]
    plan.main([*small, "--n_samples", "500", "--epochs", "2", "--global_batch", "256", "--unique_statements", "12"])
    out = capsys.readouterr().out
    assert "756,259 of 771,693 reports / batch 256 x 2 epochs = 5,908 optimiser steps of 32 pairs" in out
    assert "MERL, ResNet18" in out and "12 unique statements = 24 calls" in out and "h, H100" in out
    with pytest.raises(SystemExit):
        plan.main(["--model.depht", "2"])
    assert "depht" in capsys.readouterr().err
