"""The baselines as a whole: losses, gradients, slow targets, checkpoints, two processes."""

import copy
import math

import pytest
import torch
from small_baselines import (
    BASELINES,
    D_TEXT,
    N_CLASSES,
    SLOW,
    SMALL,
    M,
    T,
    batch,
    optimiser,
    small,
    steps,
    unit_rows,
)
from torch import nn
from torch.nn import functional as F
from two_ranks import parallel_step, two_ranks

from supreme.baselines import build, load
from supreme.baselines.astcl import same_patient
from supreme.baselines.common import Target, rising
from supreme.baselines.ts_tcc import predict_other
from supreme.model import ModelConfig
from supreme.ssl import SslConfig

# --- every method


@pytest.mark.parametrize("method", BASELINES)
def test_loss_falls(method):
    model = small(method, token_drop=0.25)
    losses = steps(model, optimiser(model), batch(), 0, 36, 36)
    first, last = sum(losses[:6]) / 6, sum(losses[-6:]) / 6
    assert all(map(math.isfinite, losses)) and last < first - 0.05 * abs(first)


VARIANTS = [(m, {}) for m in BASELINES] + [("clocs", {"clocs": "cmlc"}), ("clocs", {"clocs": "cmsmlc"})]


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("method,ssl", VARIANTS)
def test_every_trained_parameter_gets_a_gradient(method, ssl, drop):
    model = small(method, ssl=ssl, token_drop=drop)
    model(**batch()).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad.any() for name, p in trained.items() if name.startswith("encoder."))


@pytest.mark.parametrize("method", BASELINES)
def test_all_methods_start_from_the_same_encoder(method):
    mine, simclr = small(method).encoder.state_dict(), small("simclr").encoder.state_dict()
    assert mine.keys() == simclr.keys() and all(torch.equal(mine[k], simclr[k]) for k in mine)


@pytest.mark.parametrize("method", BASELINES)
def test_saved_and_loaded_again(method, tmp_path):
    model, data = small(method), batch(4)
    steps(model, optimiser(model), batch(), 0, 2, 4)
    model.eval().save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(model) and not again.training
    with torch.no_grad():
        assert torch.equal(again.features(data["ecg"]), model.features(data["ecg"]))
        assert model.features(data["ecg"]).shape == (4, SMALL["width"])
        if method in ("merl", "supervised"):
            assert torch.equal(again.scores(data["ecg"], data["queries"]), model.scores(data["ecg"], data["queries"]))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert list(tmp_path.glob("*.bin")) == []


@pytest.mark.parametrize("method", ["byol", "moco_v3", "crt", "clocs"])
def test_a_resumed_run_has_the_same_losses(method, tmp_path):
    data, model = batch(), small(method)
    opt = optimiser(model)
    steps(model, opt, data, 0, 3, 6)
    model.save_pretrained(tmp_path)
    state, rng = copy.deepcopy(opt.state_dict()), torch.get_rng_state()
    expected = steps(model, opt, data, 3, 6, 6)
    again = load(tmp_path).train()
    opt = optimiser(again)
    opt.load_state_dict(state)
    torch.set_rng_state(rng)
    assert steps(again, opt, data, 3, 6, 6) == expected


@pytest.mark.parametrize("method", ["simclr", "byol", "barlow_twins", "ts_tcc", "clocs", "st_mem", "supervised"])
def test_token_drop_leaves_tokens_out(method, monkeypatch):
    model = small(method, token_drop=0.75)
    seen, forward = [], type(model.encoder).forward

    def spy(encoder, ecg, index=None):
        seen.append((len(ecg), 12 * M if index is None else index.shape[1]))
        return forward(encoder, ecg, index)

    monkeypatch.setattr(type(model.encoder), "forward", spy)
    model(**batch())
    expected = {"clocs": 12 * M // 8, "st_mem": 12 * M // 4}.get(method, 12 * M // 4)  # a half, and its quarter
    assert seen and {n for _, n in seen} == {expected}
    assert seen[0][0] == (16 if method in ("st_mem", "supervised") else 32)
    seen.clear()
    model.eval().features(batch()["ecg"])
    assert seen == [(16, 12 * M)]


def test_two_views_differ_and_are_normalised():
    model, data = small("simclr", normalise="joint_minmax"), batch()
    first, second = model.two_views(data["ecg"]).chunk(2)
    assert first.shape == data["ecg"].shape and not torch.allclose(first, second, atol=0.1)
    assert first.amin((1, 2)).abs().max() < 1e-6 and (first.amax((1, 2)) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["simclr", "byol", "clocs", "ts_tcc", "supervised", "merl"])
def test_resnet_encoder(method):
    model = small(method, encoder="resnet")
    model(**batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(small(method, encoder="resnet")) is not None


def test_bfloat16_autocast_stays_finite():
    for method in BASELINES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert small(method, token_drop=0.5)(**batch()).loss.isfinite(), method


# --- slow targets


@pytest.mark.parametrize("method", SLOW)
def test_the_target_follows_by_the_formula_and_is_not_trained(method):
    model = small(method, ssl={"momentum": 0.9})
    target = model.objective["target"]
    assert not any(p.requires_grad for p in target.parameters())
    steps(model, optimiser(model), batch(), 0, 1, 10**9)
    before = {name: t.clone() for name, t in target.copies.state_dict().items()}
    opt = optimiser(model)
    model(**batch()).loss.backward()
    opt.step()
    for name, t in target.copies.named_buffers():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(t, before[name]), name  # the optimiser does not move it
    model.after_step(0.25)
    m = 1 - 0.1 * (math.cos(math.pi * 0.25) + 1) / 2
    fast = {"encoder": model.encoder, "projector": model.objective["projector"]}
    moved, after = 0, target.copies.state_dict()
    for part, module in fast.items():
        for name, p in module.named_parameters():
            expected = m * before[f"{part}.{name}"] + (1 - m) * p.detach()
            assert torch.allclose(after[f"{part}.{name}"], expected, atol=1e-7), name
            moved += not torch.equal(after[f"{part}.{name}"], before[f"{part}.{name}"])
    assert moved > 10
    model.after_step(1.0)  # momentum 1: the target stands still
    assert all(torch.equal(t, after[name]) for name, t in target.copies.state_dict().items())


def test_momentum_rises_from_its_start_to_one():
    assert [rising(0.9, p) for p in (0, 0.5, 1, 2)] == pytest.approx([0.9, 0.95, 1.0, 1.0])


def test_the_target_stays_float32_and_moves_in_small_steps():
    layer = nn.Linear(4, 4)
    both = nn.ModuleDict({"layer": layer, "target": Target(layer=layer)}).bfloat16()
    slow = both["target"].copies["layer"].weight
    assert layer.weight.dtype == torch.bfloat16 and slow.dtype == torch.float32
    with torch.no_grad():
        layer.weight.fill_(1.0)
        slow.fill_(0.0)
    for _ in range(1000):
        both["target"].follow(0.999, layer=layer)
    assert slow.mean().item() == pytest.approx(1 - 0.999**1000, rel=1e-3)


def test_targets_of_a_resnet_survive_the_conversion_of_batch_norm():
    model = small("byol", encoder="resnet")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.after_step(0.1)
    assert not any(p.requires_grad for p in model.objective["target"].parameters())


# --- MERL, supervised, errors


def test_merl_scores_are_cosines():
    model, data = small("merl").eval(), batch(3)
    with torch.no_grad():
        a, b = model.objective["ecg"](model.features(data["ecg"])), model.objective["text"](data["queries"])
        scores = model.scores(data["ecg"], data["queries"])
    assert scores.shape == (3, N_CLASSES)
    for i in range(3):
        for j in range(N_CLASSES):
            assert scores[i, j].item() == pytest.approx(F.cosine_similarity(a[i], b[j], 0).item(), abs=1e-5)


def test_merl_finds_the_text_that_belongs_to_an_ecg():
    model, data = small("merl", normalise="none", ssl={"uni_dropout": 0.0}), batch(12)
    steps(model, optimiser(model), data, 0, 60, 60)
    with torch.no_grad():
        found = model.eval().scores(data["ecg"], data["text"]).argmax(1)
    assert (found == torch.arange(12)).float().mean() > 0.7


def test_supervised_ignores_masked_labels():
    model, data = small("supervised"), batch()
    flipped = data | {"y": torch.where(data["mask"], data["y"], 1 - data["y"])}
    assert not torch.equal(flipped["y"], data["y"]) and model(**flipped).loss == model(**data).loss
    logits = model.scores(data["ecg"])
    expected = F.binary_cross_entropy_with_logits(logits[data["mask"]], data["y"][data["mask"]])
    assert model(**data).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_errors_name_the_key(tmp_path):
    for method in ("st_mem", "crt", "astcl"):
        with pytest.raises(ValueError, match=r"model\.encoder"):
            small(method, encoder="resnet")
    with pytest.raises(ValueError, match=r"ssl\.horizon"):
        small("ts_tcc", ssl={"horizon": M})(**batch())
    with pytest.raises(ValueError, match="n_classes"):
        build(ModelConfig(**SMALL, method="supervised"), None, T, D_TEXT, 0)
    for key, value in {"clocs": "x", "projection_norm": "x", "temperature": 0, "momentum": 2, "mask_ratio": 1.0,
                       "time_out": 1.0, "crt_drop_low": 0.9}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"ssl.{key}"):
            SslConfig(**{key: value})
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ValueError, match=r"model\.method"):
        load(tmp_path)


# --- two processes


JOINT = ["simclr", "byol", "moco_v3", "barlow_twins", "simsiam", "clocs", "merl"]


def fixed(method):
    """A model without chance and without statistics over the batch."""
    model = small(method, ssl={"projection_norm": "layer", "uni_dropout": 0.0})
    model.two_views = lambda ecg: model.normalise(torch.cat([ecg, 0.5 * ecg.flip(-1)]))
    return model


def values(rows):
    """Losses that look at the whole batch, of this process's rows of a fixed set of 6."""
    a, b, patient = unit_rows(6), unit_rows(6, seed=1), torch.tensor([0, 1, 2, 0, 4, 1])
    p, z = (torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    joint = [torch.cat([a[rows], b[rows]]), torch.cat([b[rows], a[rows]])]
    return torch.stack([predict_other(p[rows], z[rows]), same_patient(*joint, patient[rows])])


def work(rank):
    rows = slice(3 * rank, 3 * rank + 3)
    found = {"losses": values(rows)}
    data = {k: v[rows] for k, v in batch(6).items() if k != "queries"}
    for method in JOINT:
        out, gradients = parallel_step(fixed(method), data)
        found[method] = out.loss.detach(), gradients
    return found


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    first, second = two_ranks(work, tmp_path)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, values(slice(None)), rtol=1e-5, atol=0)
    data = {k: v for k, v in batch(6).items() if k != "queries"}
    for method in JOINT:
        model = fixed(method)
        loss = model(**data).loss
        loss.backward()
        assert (first[method][0] + second[method][0]).item() / 2 == pytest.approx(loss.item(), rel=1e-4), method
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        size = max(g.abs().max().item() for g in grads.values())
        for name, g in grads.items():
            assert torch.allclose(first[method][1][name], g, rtol=1e-3, atol=1e-5 * size), (method, name)
