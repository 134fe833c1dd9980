"""supreme.plan counts what the reference lists and what the models really compute."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supreme import plan
from supreme.baselines import METHODS, build
from supreme.model import ModelConfig
from supreme.plan import PlanConfig, extraction, hours, parameters, steps, training_step, variants
from supreme.ssl import SslConfig

T, PATCH, B, L = 400, 20, 4, 9
M = T // PATCH
SMALL = ModelConfig(
    patch=PATCH, width=24, depth=2, heads=2, mlp=48, resnet_width=4, cfn_width=32, cfn_layers=2, cfn_mlp=40
)  # fmt: skip
SSL = SslConfig(
    projection_width=16, projection_hidden=32, barlow_width=32, decoder_width=16, decoder_depth=1, decoder_heads=2,
    context_width=16, context_heads=2, context_depth=1, context_mlp=16, horizon=M - 1,
)  # fmt: skip  # horizon: leaves TS-TCC a single time step to draw
CFG = PlanConfig(model=SMALL, ssl=SSL, n_samples=T, n_terms=L, global_batch=2 * B, gpus=2)


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, float]]:
    """What is counted of every variant."""
    return {name: training_step(model, CFG) for name, model in variants(SMALL).items()}


def real(model: ModelConfig):
    torch.manual_seed(0)
    n_classes = plan.N_CLASSES if model.method == "supervised" else L
    return build(model, SSL, T, plan.D_TEXT, n_classes).train()


def batch(net) -> dict[str, torch.Tensor]:
    n, rng = net.config.n_classes, torch.Generator().manual_seed(0)
    signals = {"ecg": torch.randn(B, 12, T, generator=rng), "patient": torch.arange(B)}
    texts = {name: torch.randn(k, plan.D_TEXT, generator=rng) for name, k in (("text", B), ("queries", n))}
    return signals | texts | {"y": torch.ones(B, n), "mask": torch.ones(B, n, dtype=torch.bool)}


def real_step(net) -> float:
    """FLOP of a record in a true training step."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(**batch(net)).loss.backward()
    return counter.get_total_flops() / B


def test_parameters_at_the_default_sizes_are_the_reference_s():
    """Reference M4, derived there by hand."""
    sizes = parameters(ModelConfig(), PlanConfig())
    assert (sizes["encoder"], sizes["fusion network"], sizes["total"]) == (5_370_048, 16_499_969, 21_870_017)
    assert sizes["heads"] == sizes["untrained"] == 0


@pytest.mark.parametrize("name", variants(SMALL))
def test_parameters_equal_those_of_a_real_model(name):
    model = variants(SMALL)[name]
    net, sizes = real(model), parameters(model, CFG)
    assert sizes["encoder"] == sum(p.numel() for p in net.encoder.parameters())
    assert sizes["fusion network"] == (sum(p.numel() for p in net.cfn.parameters()) if "SuPreME" in name else 0)
    net(**batch(net)).loss.backward()
    assert sizes["total"] == sum(p.numel() for p in net.parameters() if p.grad is not None)
    state = sum(x.numel() for x in net.state_dict().values())
    assert sizes["untrained"] == state - sizes["total"]
    if name in ("byol", "moco_v3"):
        assert sizes["untrained"] > sizes["encoder"]


def test_operations_of_supreme_by_hand(counted):
    """A linear layer of n rows costs 2 n d_in d_out, twice that backward, half where its input needs no gradient."""
    d, n, w, q = SMALL.width, 12 * M, SMALL.cfn_width, L
    linear = lambda rows, d_in, d_out: 6 * rows * d_in * d_out  # noqa: E731
    attention = lambda queries, keys, width: 6 * 2 * queries * keys * width  # noqa: E731
    embed = linear(n, PATCH, d) * 2 / 3
    block = linear(n, d, d) + linear(n, d, 2 * d) + attention(n, n, d) + linear(n, d, d) + 2 * linear(n, d, SMALL.mlp)
    queries = linear(q / B, plan.D_TEXT, w) * 2 / 3  # once a batch, as is what the first block asks with
    asked = linear(q / B, w, w) + linear(q, w, w)
    fusion = linear(n, w, 2 * w) + attention(q, n, w) + linear(q, w, w) + 2 * linear(q, w, SMALL.cfn_mlp)
    by_hand = embed + 2 * block + queries + linear(n, d, w) + asked + 2 * fusion + linear(q, w, 1)
    assert counted["SuPreME"]["flop"] == by_hand


@pytest.mark.parametrize("name", [name for name in variants(SMALL) if name != "crt"])
def test_operations_equal_those_of_a_real_training_step(counted, name):
    assert counted[name]["flop"] == real_step(real(variants(SMALL)[name])) > 0


def test_operations_of_crt_are_the_mean_over_the_training(counted):
    """Its drop share rises with the progress."""
    net, found = real(replace(SMALL, method="crt")), []
    for i in range(10):
        net.after_step((i + 0.5) / 10)
        found.append(real_step(net))
    assert min(found) < 0.7 * max(found)
    assert counted["crt"]["flop"] == pytest.approx(sum(found) / 10, rel=2e-3)


def test_tokens_by_hand(counted):
    """Reference M3: 12 x M; two views are two records, a slow target sees both too, CLOCS two halves."""
    n = 12 * M
    expected = dict.fromkeys(counted, 2 * n) | dict.fromkeys(("SuPreME", "supervised", "merl", "clocs"), n)
    expected |= {"SuPreME, token_drop 0.5": n / 2, "SuPreME, ResNet18": T / 16, "st_mem": n / 4}
    expected["crt"] = (0.3 * 0.7 + 0.5 * 0.45 + 0.2 * 0.2) * 2 * n  # signal, half of two spectra
    assert {name: step["tokens"] for name, step in counted.items()} == pytest.approx(expected)
    slow = {name for name, step in counted.items() if step["slow tokens"]}
    assert slow == {"byol", "moco_v3"} and counted["byol"]["slow tokens"] == 2 * n
    assert set(counted) >= set(METHODS) - {"supreme"}
    assert "SuPreME, token_drop 0" in variants(replace(SMALL, token_drop=0.5))


def test_steps_hours_and_bytes_by_hand():
    cfg = PlanConfig(gpus=4, peak_tflops={"X": 100.0}, utilisation=0.5, read_gb_s=2.0)
    assert steps(cfg) == 602 * 20  # whole batches of 1,024 in 80 % of 771,693 reports
    assert steps(cfg, "supervised") == 37 * 20 and steps(replace(cfg, steps=600)) == 600
    computing, reading = hours(1e12, cfg, "X")
    records = 602 * 20 * 1024
    assert computing == pytest.approx(records * 1e12 / (4 * 100e12 * 0.5) / 3600)
    assert reading == pytest.approx(records * 12 * 5000 * 2 / 2e9 / 3600)
    assert plan.disk_gb(cfg.n_samples)["packed pre-training signals"] == pytest.approx(
        92.6, abs=0.05
    )  # reference, Data


def test_extraction_grows_with_unique_statements_only():
    few, many = (extraction(PlanConfig(unique_statements=n)) for n in (100, 1000))
    assert few["calls_by_statement"] == 100 and 0.1 < few["mtokens_by_statement"] < 0.3
    assert many["gpu_hours_by_statement"] == pytest.approx(10 * few["gpu_hours_by_statement"])
    assert few["calls_by_report"] == many["calls_by_report"] == 771_693
    twice = extraction(PlanConfig(unique_statements=100, verify=True))
    assert twice["calls_by_statement"] == 200 and twice["mtokens_by_statement"] > few["mtokens_by_statement"]


def test_the_paper_config_is_planned(capsys, monkeypatch):
    settings = plan.from_run_config("supreme/configs/paper.yaml")
    assert settings["n_samples"] == 5000 and settings["global_batch"] == 1024 and settings["model.depth"] == 12
    monkeypatch.setattr(plan, "variants", lambda model: {"SuPreME": replace(model, depth=1, cfn_layers=1)})
    plan.main(["--config", "supreme/configs/paper.yaml"])
    assert "/ batch 1024 = 12,000 optimiser steps of 128 records on each of 8 GPUs" in capsys.readouterr().out


def test_command_line(capsys, monkeypatch):
    monkeypatch.setattr(plan, "METHODS", ["supreme", "moco_v3"])
    small = ["--model.width=24", "--model.depth=1", "--model.heads=2", "--model.mlp=48", "--n_samples=500"]
    plan.main([*small, "--epochs", "2", "--global_batch", "256", "--unique_statements", "12"])
    out = capsys.readouterr().out
    assert "617,354 of 771,693 reports / batch 256 = 4,822 optimiser steps of 32 records" in out
    assert "moco_v3" in out and "240 + 240" in out and "h, H100" in out and "12 unique statements = 12 calls" in out
    with pytest.raises(SystemExit):
        plan.main(["--model.depht", "2"])
    assert "depht" in capsys.readouterr().err
