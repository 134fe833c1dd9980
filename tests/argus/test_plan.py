"""argus.plan and argus.costs: the reference's token arithmetic, and formulas against torch's counters."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from argus import costs, plan
from argus.costs import LLMS, RUNGS, Rung
from argus.data import train_tokenizer
from argus.encoder import VitEncoder
from argus.model import ArgusModel, ModelConfig
from argus.plan import PlanConfig, StageConfig

VIT_B = ModelConfig()
# reference, the ladder: grid, N, M; token arithmetic: TFLOP of a forward pass; patch embedding: parameters in M
LADDER = {
    "lr32": ((8, 16, 16), 2048, 256, 0.50, 0.79),
    "nr": ((16, 16, 16), 4096, 512, 1.31, 0.79),
    "hr": ((16, 32, 32), 16_384, 512, 12.7, 3.1),
    "hr_2k": ((16, 32, 32), 16_384, 2048, 12.7, 3.1),
    "hr_cheap": ((16, 16, 16), 4096, 512, 1.31, 12.6),
    "hr_tiled": ((64, 32, 32), 65_536, 1024, 21.0, 0.79),
    "hr_hilt": ((16, 32, 32), 16_384, 512, 12.7, 3.1),
}
SMALL = ModelConfig(
    patch=[4, 8, 8], width=48, depth=2, heads=4, mlp=192, lora_r=4, lora_dropout=0.0,
    llm={"hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2},
)  # fmt: skip
SMALL_RUNG = Rung((16, 32, 32), (4, 8, 8))


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_of_the_reference(name):
    rung, (grid, tokens, visual, tflop, embedding) = RUNGS[name], LADDER[name]
    assert (rung.grid, rung.tokens, rung.visual_tokens(rung.factors)) == (grid, tokens, visual)
    row = plan.plan_encoder(PlanConfig(rungs=[name]))[0]
    assert row["tflop"] == pytest.approx(tflop, rel=0.01)
    # 12 layers of 12 C^2 + 10 C (no qkv bias), CLS, last norm; positions; patch embedding with its bias
    layers = 12 * (12 * 768**2 + 10 * 768) + 3 * 768
    assert row["parameters"] - layers - tokens * 768 == pytest.approx(embedding * 1e6, rel=0.02)


def test_attention_of_whole_high_resolution():
    """Patches of 4,16,16 at 512x512x256 (reference): 169 TFLOP, 93 % of it attention, 103 GB of scores a layer."""
    flop = costs.vit_flop(65_536, 768, 12, 3072)
    assert flop / 1e12 == pytest.approx(169, abs=0.5)
    assert 12 * 4 * 65_536**2 * 768 / flop == pytest.approx(0.93, abs=0.005)
    assert 2 * 12 * 65_536**2 / 1e9 == pytest.approx(103, abs=0.5)


@pytest.mark.parametrize(("factors", "millions"), [((2, 2, 2), 42.0), ((2, 4, 4), 117.4), ((4, 4, 4), 218.1)])
def test_heads_of_pixel_shuffle(factors, millions):
    n = costs.n_parameters(lambda: costs.compressor_of(RUNGS["nr"], factors, VIT_B, 4096))
    assert round(n / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("size", "llm", "lora"), [("3B", 3212.7, 24.3), ("8B", 8030.3, 41.9), ("70B", 70_553.7, 207.1)]
)
def test_llms(size, llm, lora):
    """Sizes of the released checkpoints; LoRA of rank 16 on all linear layers."""
    found = costs.llm_of(LLMS[size][1](), VIT_B)
    assert (round(found.total / 1e6, 1), round(found.lora / 1e6, 1)) == (llm, lora)
    assert costs.llm_of(LLMS["3B"][1](), replace(VIT_B, lora_r=0)).lora == 0


def counted(forward) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward()
    return counter.get_total_flops()


def test_encoder_operations_against_the_counter():
    model = VitEncoder((16, 32, 32), (4, 8, 8), 48, 2, 4, 192)
    found = counted(lambda: model(torch.zeros(1, 1, 16, 32, 32)))
    assert costs.encoder_flop(SMALL_RUNG, (2, 2, 2), SMALL) == found
    tokens, embedding = 64, 2 * 64 * 256 * 48
    assert costs.vit_flop(tokens + 1, 48, 2, 192) == found - embedding == 2 * (24 * 65 * 48**2 + 4 * 65**2 * 48)


@pytest.mark.parametrize("stage", ["align", "tune", "whole"])
def test_a_training_step_against_the_counter(stage):
    n_text, frozen = 40, {"train_vit": False, "train_llm": False} if stage == "align" else {}
    cfg = replace(SMALL, **frozen, **({"lora_r": 0} if stage == "whole" else {}))
    model = ArgusModel.build(cfg, list(SMALL_RUNG.shape), train_tokenizer(["no nodule"], 300)).train()
    ids = torch.randint(3, 250, (1, n_text))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    inputs["volume"] = torch.zeros(1, 1, *SMALL_RUNG.shape)
    found = counted(lambda: model(**inputs).loss.backward())
    llm = costs.llm_of(model.llm.config, cfg)
    forward = costs.encoder_flop(SMALL_RUNG, (2, 2, 2), cfg), costs.compressor_flop(SMALL_RUNG, (2, 2, 2), cfg, 64)
    named = "align" if stage == "align" else "tune"
    expected = costs.step_flop(*forward, llm, 8, n_text, named)
    # what needs no gradient of its input: the first layer of the compressor, or the patch embedding
    expected -= 2 * 8 * (8 * 48) * 64 if stage == "align" else 2 * 64 * 256 * 48
    assert found == pytest.approx(expected, rel=0.005)
    more = costs.step_flop(*forward, llm, 8, n_text, named, recompute=True) - expected
    assert 0.2 < more / expected < 0.5


def test_activations_against_real_tensors():
    """32 bytes a channel and token in a ViT block (bf16), as by hand: two inputs of norms, qkv, attention, the MLP."""
    found = costs.vit_layer_bytes(256, 64, 4, 256)
    assert found == pytest.approx(257 * 32 * 64, rel=0.03)
    real = []
    for depth in (1, 2):
        model = VitEncoder((256, 1, 1), (1, 1, 1), 64, depth, 4, 256).to(torch.bfloat16)
        real.append(costs.kept_bytes(model, lambda m=model: m(torch.zeros(1, 1, 256, 1, 1))))
    assert found == real[1] - real[0]


def test_recomputing_saves_activations():
    llm = costs.llm_of(LLMS["3B"][1](), VIT_B)
    rung, sizes = RUNGS["nr"], {}
    for tune in (False, True):
        for recompute in (False, True):
            sizes[tune, recompute] = costs.activation_bytes(rung, VIT_B, llm, 512, 1024, tune, recompute)
    assert sizes[True, True] < sizes[True, False] / 3 and sizes[False, True] < sizes[False, False] / 3
    vit = 12 * costs.vit_layer_bytes(4096, 768, 12, 3072)
    assert sizes[True, False] - sizes[False, False] == vit
    logits = 1024 * 128_256 * 10
    assert sizes[False, True] > logits + 28 * 1536 * 3072 * 2


def test_steps_and_shuffles():
    assert plan.steps(48_322, StageConfig(3, 128)) == 1132 and plan.steps(48_322, StageConfig(3, 64)) == 2265
    found = plan.cases(PlanConfig())
    assert len({(rung.shape, rung.patch, rung.tiles, rung.compressor, factors) for _, rung, factors in found}) == len(
        found
    )
    assert [(name, factors) for name, _, factors in found][:3] == [
        ("lr32", f) for f in ((2, 2, 2), (2, 4, 4), (4, 4, 4))
    ]
    for name, rung in RUNGS.items():
        assert (name, rung, rung.factors) in found


def test_command_line(capsys):
    plan.main(["--llms", "[3B]", "--rungs", "[nr, hr_hilt]", "--factors", "[]", "--volumes", "{ct-rate: 6400}"])
    out = capsys.readouterr().out
    assert "6,400 ct-rate = 6,400" in out and "tune: 3 epochs / global batch 64 = 300 optimiser steps" in out
    assert "3,212.7M parameters, LoRA 24.3M" in out and "16x32x32" in out and "8B" not in out
    nr = next(line for line in out.splitlines() if "nr" in line and "2x2x2" in line)
    assert [cell.strip() for cell in nr.split("│")][2:6] == ["2x2x2", "512", "1,536", "28.3M"]


def test_settings_of_a_run_are_planned(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("train: {global_batch: 32, epochs: 2}\nmodel: {lora_r: 8}\ndata: {max_tokens: 512}\n")
    plan.main(["--config", str(file), "--llms", "[3B]", "--rungs", "[nr]", "--factors", "[]"])
    out = capsys.readouterr().out
    assert "tune: 2 epochs / global batch 32" in out and "LoRA 12.2M" in out and "1,024" in out


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"rungs: unknown.*known: lr32"):
        PlanConfig(rungs=["hr9"])
    with pytest.raises(ValueError, match=r"llms: unknown.*known: 3B"):
        PlanConfig(llms=["1B"])
