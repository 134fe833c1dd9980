"""The objectives of the baselines against plain formulas; what masks and parts hide."""

import math

import pytest
import torch
from small_baselines import PATCH, M, T, batch, optimiser, small, steps, unit_rows
from torch.nn import functional as F

from shared.losses import unit
from supreme.baselines.astcl import same_patient
from supreme.baselines.barlow_twins import barlow
from supreme.baselines.clocs import contrast, part_tokens
from supreme.baselines.common import group_mean
from supreme.baselines.crt import instance_discrimination, spectrum
from supreme.baselines.moco_v3 import momentum_contrast
from supreme.baselines.simclr import nt_xent
from supreme.baselines.st_mem import LeadDecoder, masked_mse, patches, standard_patches
from supreme.baselines.ts_tcc import predict_other

# --- plain formulas


def test_nt_xent_is_the_formula():
    a, b, t = unit_rows(5), unit_rows(5, seed=1), 0.1
    views, n, total = torch.cat([a, b]), 10, 0.0
    for i in range(n):
        partner = (i + 5) % n
        rest = sum(math.exp(views[i] @ views[k] / t) for k in range(n) if k != i)
        total -= math.log(math.exp(views[i] @ views[partner] / t) / rest)
    assert nt_xent(3 * a, b, t).item() == pytest.approx(total / n, rel=1e-5)


def test_momentum_contrast_is_the_formula():
    q, k, t = unit_rows(5), unit_rows(5, seed=1), 0.2
    total = sum(
        -math.log(math.exp(q[i] @ k[i] / t) / sum(math.exp(q[i] @ k[j] / t) for j in range(5))) for i in range(5)
    )
    k.requires_grad_()
    loss = momentum_contrast(q.clone().requires_grad_(), k, t)
    assert loss.item() == pytest.approx(2 * t * total / 5, rel=1e-5)
    loss.backward()
    assert k.grad is None


def test_clocs_contrast_is_the_formula():
    a, b, t, patient = unit_rows(5), unit_rows(5, seed=1), 0.1, torch.tensor([3, 1, 3, 2, 3])
    e = torch.exp(a @ b.T / t)
    both = torch.stack([e / e.sum(1, keepdim=True), e / e.sum(0, keepdim=True)]).log()
    diagonal = [both[way, i, i] for way in range(2) for i in range(5)]
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j and patient[i] == patient[j]]
    off = [both[way, i, j] for way in range(2) for i, j in pairs]
    assert len(pairs) == 6
    expected = -2 * (sum(diagonal) / len(diagonal) + sum(off) / len(off))
    assert contrast(a, b, patient, t).item() == pytest.approx(expected.item(), rel=1e-5)
    alone = contrast(a, b, torch.arange(5), t).item()
    assert alone == pytest.approx(-2 * (sum(diagonal) / len(diagonal)).item(), rel=1e-5)


def test_temporal_contrast_is_the_formula():
    p = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for i in range(4):
        for k in range(3):
            total -= math.log(math.exp(p[i, k] @ z[i, k]) / sum(math.exp(p[i, k] @ z[n, k]) for n in range(4)))
    assert predict_other(p, z).item() == pytest.approx(total / 12, rel=1e-5)


def test_barlow_is_the_cross_correlation():
    a = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    b = a + 0.5 * torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:5, 5:]
    off = sum(c[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    invariance, redundancy = barlow(a, b)
    assert invariance.item() == pytest.approx(((1 - c.diagonal()) ** 2).sum().item(), rel=1e-3)
    assert redundancy.item() == pytest.approx(off.item(), rel=1e-3)


def test_same_patient_is_the_mean_cosine_of_a_patients_records():
    p, t = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), unit_rows(6, 4, 1).requires_grad_()
    patient, total = torch.tensor([0, 1, 0]), 0.0
    for view in (0, 3):
        for i in range(3):
            mates = [j for j in range(3) if patient[i] == patient[j]]
            total -= sum(F.cosine_similarity(p[view + i], t[view + j], 0) for j in mates) / len(mates)
    loss = same_patient(p.clone().requires_grad_(), t, patient)
    assert loss.item() == pytest.approx((total / 6).item(), rel=1e-5)
    loss.backward()
    assert t.grad is None


def test_instance_discrimination_is_the_formula():
    a, b = unit_rows(4), unit_rows(4, seed=1)
    total = sum(math.exp(a[i] @ b[j]) for i in range(4) for j in range(4) if i != j)
    assert instance_discrimination(2 * a, b).item() == pytest.approx(math.log(total), rel=1e-5)


def test_byol_is_the_squared_distance_of_unit_vectors(monkeypatch):
    model, data = small("byol"), batch()
    views = model.normalise(data["ecg"]).repeat(2, 1, 1)
    monkeypatch.setattr(model, "two_views", lambda ecg: views)
    parts = model.objective
    with torch.no_grad():
        predicted = unit(parts["predictor"](parts["projector"](model.encoder(views).mean(1))))
        target = unit(parts["target"].project(model.pooled, views)).roll(16, 0)
        expected = ((predicted - target) ** 2).sum(1)
    assert model(**data).loss.item() == pytest.approx((expected[:16].mean() + expected[16:].mean()).item(), rel=1e-4)


def test_constant_features_fool_no_contrast():
    n, d = 6, 8
    same, good = torch.ones(n, d), unit_rows(n, d)
    steps_same, steps_good = torch.ones(n, 3, d), 9 * torch.stack([unit_rows(n, d, s) for s in range(3)], 1)
    values = {
        "nt_xent": (nt_xent(same, same, 0.1), math.log(2 * n - 1), nt_xent(good, good, 0.1)),
        "moco": (momentum_contrast(same, same, 0.2), 0.4 * math.log(n), momentum_contrast(good, good, 0.2)),
        "clocs": (contrast(unit(same), unit(same), torch.arange(n), 0.1), 2 * math.log(n),
                  contrast(good, good, torch.arange(n), 0.1)),
        "ts_tcc": (predict_other(steps_same, steps_same), math.log(n), predict_other(steps_good, steps_good)),
        "barlow": (barlow(same, same)[0], d, barlow(good, good)[0]),
    }  # fmt: skip
    for name, (constant, chance, informed) in values.items():
        assert constant.item() == pytest.approx(chance, rel=1e-4), name
        assert informed < 0.8 * constant, name


@pytest.mark.parametrize("method", ["byol", "simsiam", "astcl"])
def test_without_negatives_the_projections_do_not_collapse(method):
    model, data = small(method), batch(32)
    steps(model, optimiser(model), data, 0, 50, 50)
    with torch.no_grad():
        z = unit(model.objective["projector"](model.pooled(model.normalise(data["ecg"]))))
    between = (z @ z.T)[~torch.eye(32, dtype=torch.bool)].mean()
    assert between < 0.7  # 1 = all records alike


# --- masks and parts


def test_st_mem_hides_patches_from_the_encoder():
    model, data = small("st_mem", normalise="none"), batch()
    x, seen = data["ecg"], {}

    def remember(module, inputs, output):
        seen["index"], seen["tokens"] = inputs[1], output

    model.encoder.register_forward_hook(remember)
    torch.manual_seed(5)
    loss = model(x).loss
    index, tokens = seen["index"], seen["tokens"]
    assert index.shape == (16, 12 * M // 4)
    hidden = torch.ones(16, 12 * M, dtype=torch.bool).scatter(1, index, False)
    changed = x + 3 * hidden.view(16, 12, M).repeat_interleave(PATCH, 2) * torch.randn_like(x)
    torch.manual_seed(5)
    loss_changed = model(changed).loss
    assert torch.equal(seen["index"], index) and torch.equal(seen["tokens"], tokens)
    assert loss_changed != loss  # what is hidden is the target
    torch.manual_seed(5)
    model(x + 3 * ~hidden.view(16, 12, M).repeat_interleave(PATCH, 2) * torch.randn_like(x))
    assert not torch.equal(seen["tokens"], tokens)


def test_st_mem_counts_hidden_patches_only():
    target, predicted = torch.randn(3, 10, 4), torch.randn(3, 10, 4)
    visible = torch.tensor([[0, 1], [4, 9], [2, 3]])
    errors = [
        (predicted[b, i] - target[b, i]).square().mean() for b in range(3) for i in range(10) if i not in visible[b]
    ]
    assert masked_mse(predicted, target, visible).item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    loss = masked_mse(predicted.scatter(1, visible[..., None].expand(-1, -1, 4), 99.0), target, visible)
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_patches_are_lead_by_lead_and_standardised():
    x = batch(3)["ecg"]
    p = patches(x, M)
    assert torch.equal(p[1, 2 * M + 3], x[1, 2, 3 * PATCH : 4 * PATCH])
    s = standard_patches(x, M)
    assert s.mean(-1).abs().max() < 1e-3 and (s.var(-1) - 1).abs().max() < 0.05


def test_the_decoder_of_st_mem_works_lead_by_lead():
    torch.manual_seed(0)
    decoder = LeadDecoder(16, 16, 1, 2, M, PATCH)
    index = torch.arange(0, 12 * M, 3).expand(2, -1)
    tokens = torch.randn(2, index.shape[1], 16)
    other = torch.where((index // M == 4)[..., None], tokens + 1, tokens)
    a, b = (decoder(t, index, M).unflatten(1, (12, M)) for t in (tokens, other))
    changed = (a - b).abs().amax((0, 2, 3)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [4]


def test_crt_drops_more_and_more_and_hides_time_patches():
    model, data = small("crt", normalise="none"), batch()
    counts = []
    for progress in (0.0, 0.5, 1.0):
        model.after_step(progress)
        seen = []
        handle = model.encoder.norm.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.shape[1]))
        model(**data)
        handle.remove()
        counts += seen
    assert counts == [round(0.7 * 96) + 2 * round(0.7 * 48), 48 + 2 * 24, round(0.2 * 96) + 2 * round(0.2 * 48)]
    x, at = data["ecg"], torch.arange(5).expand(16, -1)
    spectra = spectrum(x, M)
    changed = x.clone()
    changed[:, 0, 5 * PATCH :] += 1  # patches 5, 6, 7 of lead I
    changed[:, 1:] += 1
    assert torch.equal(model.embed(x, spectra, at, at), model.embed(changed, spectra, at, at))


def test_crt_spectrum_is_that_of_the_signal():
    t = torch.arange(T) / T
    x = torch.zeros(1, 12, T)
    x[0, 3] = torch.cos(2 * torch.pi * 5 * t + 0.5)
    magnitude, phase = (part.unflatten(1, (12, -1)).flatten(2) for part in spectrum(x, M))
    assert magnitude.shape == (1, 12, T // 2)
    assert magnitude[0, 3].argmax() == 5 and magnitude[0, 3, 5].item() == pytest.approx(
        math.log1p(T**0.5 / 2), rel=1e-4
    )
    assert phase[0, 3, 5].item() == pytest.approx(0.5 / math.pi, rel=1e-3) and phase.abs().max() <= 1


def test_parts_of_clocs():
    halves, leads, both = (part_tokens(M, views) for views in ("cmsc", "cmlc", "cmsmlc"))
    assert (halves.shape, leads.shape, both.shape) == ((2, 12 * M // 2), (12, M), (24, M // 2))
    for parts in (halves, leads, both):
        assert parts.flatten().sort().values.equal(torch.arange(12 * M))
    assert (halves[0] % M < M // 2).all() and (halves[1] % M >= M // 2).all()
    assert all((row // M == lead).all() for lead, row in enumerate(leads))
    model, x = small("clocs", normalise="none"), batch()["ecg"]
    changed = x.clone()
    changed[..., T // 2 :] += 1
    before, after = model.part_features(x).chunk(2), model.part_features(changed).chunk(2)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_time_steps_and_leads_are_means_of_their_tokens():
    tokens = torch.randn(2, 5, 3)
    group = torch.tensor([[0, 0, 2, 2, 2], [1, 1, 1, 1, 1]])
    means = group_mean(tokens, group, 3)
    assert torch.allclose(means[0, 0], tokens[0, :2].mean(0)) and torch.allclose(means[0, 2], tokens[0, 2:].mean(0))
    assert torch.equal(means[0, 1], torch.zeros(3)) and torch.allclose(means[1, 1], tokens[1].mean(0))
    model, x = small("ts_tcc"), batch()["ecg"]
    by_time, by_lead = model.grid(x)
    full = model.encoder(x).unflatten(1, (12, M))
    assert torch.allclose(by_time, full.mean(1), atol=1e-6) and torch.allclose(by_lead, full.mean(2), atol=1e-6)
