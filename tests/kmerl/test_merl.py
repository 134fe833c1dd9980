"""MERL and the supervised control: sizes of the public code, heads, hidden leads, gradients, save and load."""

import pytest
import torch
from small_models import D_TEXT, N_ENTITIES, PATCH, T, batch, leads, small

from kmerl.baselines import build, load
from kmerl.baselines.merl import hide_leads
from kmerl.baselines.resnet1d import AttentionPool, ResNet18, map_length
from kmerl.baselines.supervised import SupervisedModel
from kmerl.baselines.vit1d import ViT1d
from kmerl.model import ModelConfig
from shared.losses import info_nce, unit

KINDS = {
    "resnet": {"method": "merl"},
    "vit": {"method": "merl", "encoder": "vit"},
    "resnet-entities": {"method": "merl", "entity_head": True},
    "vit-entities": {"method": "merl", "encoder": "vit", "entity_head": True},
    "only-entities": {"method": "merl", "encoder": "vit", "entity_head": True, "contrastive_loss": 0.0},
    "no-uni": {"method": "merl", "uni_loss": 0.0},
    "supervised-lead-vit": {"method": "supervised", "masked_leads": [0], "segment_masking": 0.0},
    "supervised-resnet": {"method": "supervised", "encoder": "resnet"},
    "supervised-vit": {"method": "supervised", "encoder": "vit"},
}


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------- published sizes (reference: M9)


def test_resnet18_at_5000_samples():
    with torch.device("meta"):
        net = ResNet18(64)
        assert net(torch.empty(2, 12, 5000)).shape == (2, 512, 313)
    w = 64
    stem = 12 * w * 7 + 2 * w
    blocks, c_in = 0, w
    for c in (w, 2 * w, 4 * w, 8 * w):
        blocks += 3 * c_in * c + 3 * 3 * c * c + 4 * 2 * c + (0 if c == c_in else c_in * c + 2 * c)
        c_in = c
    assert n_parameters(net) == stem + blocks == 3_848_832
    assert [map_length(n) for n in (5000, 1000, 17)] == [313, 63, 2]


def test_merl_heads():
    with torch.device("meta"):
        model = build(ModelConfig(method="merl"), 5000)
    d = 256
    assert model.ecg_projection.pool.position.shape == (1, 314, d)
    assert n_parameters(model.ecg_projection.down) == 512 * d + d
    assert n_parameters(model.ecg_projection.pool.attention) == 4 * (d * d + d)
    assert n_parameters(model.text_projection) == 768 * d + d + d * d + d
    assert [tuple(v.weight.shape) for v in model.views] == [(d, d)] * 2 and all(v.bias is None for v in model.views)


def test_vit_tiny_over_joint_patches():
    d = 192
    with torch.device("meta"):
        net = ViT1d(d, 12, 3, 768, 50, 100)
        assert net(torch.empty(2, 12, 5000)).shape == (2, 100, d)
    assert n_parameters(net) == 12 * 50 * d + 100 * d + 12 * (12 * d * d + 13 * d) + 2 * d


def test_the_class_token_gets_position_0_twice():
    """With equal attention everywhere and projections that pass values through, the pool is a plain mean over map and
    class token, and the latter shows position 0 twice."""
    torch.manual_seed(0)
    pool, x = AttentionPool(8, 5, heads=2), torch.randn(3, 5, 8)
    with torch.no_grad():
        for p in (*pool.attention.parameters(), *pool.linear.parameters()):
            p.zero_()
        pool.attention.kv.weight[8:] = torch.eye(8)
        pool.attention.out.weight.copy_(torch.eye(8))
        pool.linear.weight.copy_(torch.eye(8))
    token = pool.class_token[0] + 2 * pool.position[0, :1]
    expected = (token.sum(0) + (x + pool.position[:, 1:]).sum(1)) / 6
    assert torch.allclose(pool(x), expected, atol=1e-6)
    assert pool(x[:, :3]).shape == (3, 8)


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything(kind):
    model = small(**KINDS[kind])
    out = model(**batch())
    out.loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    terms = {k for k in out if k != "loss"}
    contrast = {"contrastive", "uni"} if kind != "no-uni" else {"contrastive"}
    expected = {"entity"} if kind.startswith(("supervised", "only")) else contrast
    assert terms == expected | ({"entity"} if kind.endswith("entities") else set())
    assert torch.allclose(out.loss, sum(out[t] for t in terms))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
    model, inputs = small(**KINDS[kind]), batch()
    model(**inputs)  # moves BatchNorm statistics
    model.eval().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(model) and loaded.cfg == model.cfg
    scores = model.scores(inputs["ecg"], inputs["queries"])
    assert scores.shape == (6, N_ENTITIES)
    assert torch.equal(loaded.scores(inputs["ecg"], inputs["queries"]), scores)
    features = model.features(inputs["ecg"])
    assert torch.equal(loaded.features(inputs["ecg"]), features)
    assert features.shape == (6, 32 if "resnet" in kind or kind == "no-uni" else 16)
    assert model.scores(inputs["ecg"][:1], inputs["queries"][:1] if kind[0] != "s" else None).ndim == 2


@pytest.mark.parametrize("kind", KINDS)
def test_length(kind):
    model = small(**KINDS[kind]).eval()
    shorter = T - model.step_samples
    assert model.features(torch.randn(2, 12, shorter)).isfinite().all()
    with pytest.raises(ValueError, match=f"ECGs of {T + PATCH} samples"):
        model.features(torch.randn(2, 12, T + PATCH))


def test_merl_scores_are_cosines():
    model, inputs = small(method="merl").eval(), batch()
    scores = model.scores(inputs["ecg"], inputs["queries"])
    assert scores.min() < 0 and scores.abs().max() <= 1 + 1e-6
    scaled = model.scores(inputs["ecg"], inputs["queries"], None) - scores
    assert scaled.abs().max() == 0
    entity = small(method="merl", entity_head=True).eval().scores(inputs["ecg"], inputs["queries"])
    assert torch.isfinite(entity).all() and entity.std() > 0


def test_uma_compares_two_views_of_one_embedding():
    model, inputs = small(method="merl", encoder="vit").eval(), batch()
    pooled = model.features(inputs["ecg"])
    views = [unit(pooled @ v.weight.T) for v in model.views]
    assert torch.allclose(model(**inputs).uni, info_nce(*views, 0.07), atol=1e-5)
    dropped = small(method="merl", encoder="vit", uni_dropout=0.5).train()
    assert not torch.equal(dropped(**inputs).uni, dropped(**inputs).uni)


# ---------------------------------------------------------------- hidden leads


def test_no_masking_is_the_default():
    model, ecg = small(method="merl"), batch()["ecg"]
    assert torch.equal(hide_leads(model, ecg), model.normalise(ecg))


@pytest.mark.parametrize("rule", ["random", "kmerl"])
@pytest.mark.parametrize("fill", ["zero", "record_mean"])
@pytest.mark.parametrize("normalise", ["available_minmax", "joint_minmax"])
def test_hidden_leads_are_filled_in_mv_before_normalisation(rule, fill, normalise):
    model = small(method="merl", lead_masking=rule, lead_fill=fill, normalise=normalise)
    ecg = 3 + torch.randn(40, 12, T)
    torch.manual_seed(5)
    seen = hide_leads(model, ecg)
    hidden = (seen.amax(-1) - seen.amin(-1)) < 1e-6  # constant in time
    counts = set((~hidden).sum(1).tolist())
    assert counts <= {1, 2, 3} if rule == "kmerl" else len(counts) > 6
    for i in range(40):
        kept = ecg[i, ~hidden[i]]
        value = kept.mean() if fill == "record_mean" else torch.tensor(0.0)
        filled = torch.where(hidden[i][:, None], value, ecg[i])
        ranged = kept if normalise == "available_minmax" else filled
        expected = (filled - ranged.min()) / (ranged.max() - ranged.min() + 1e-8)
        assert torch.allclose(seen[i], expected, atol=1e-4)


def test_hidden_leads_carry_nothing():
    model, inputs = small(method="merl", encoder="vit", lead_masking="kmerl", masked_leads=[11]), batch(40)
    other = inputs["ecg"].clone()
    other[:, 1:] *= 7  # only records that keep lead I alone are as before
    torch.manual_seed(5)
    first = hide_leads(model, inputs["ecg"])
    torch.manual_seed(5)
    second = hide_leads(model, other)
    same = torch.isclose(first, second, atol=1e-5).all(-1).all(-1)
    keeps_first = (first[:, 0].amax(-1) - first[:, 0].amin(-1)) > 1e-6
    assert keeps_first.any() and torch.equal(same[keeps_first], torch.ones_like(same[keeps_first]))


def test_given_leads_set_the_range_at_test_time():
    model, inputs = small(method="merl").eval(), batch()
    filled = inputs["ecg"] * leads(0, 1)[None, :, None]
    outlier = filled.clone()
    outlier[:, 5] = 50.0
    normed = model.normalise(outlier, leads(0, 1))
    assert torch.allclose(normed[:, :2], model.normalise(filled, leads(0, 1))[:, :2], atol=1e-6)
    assert not torch.allclose(model.normalise(outlier)[:, :2], normed[:, :2], atol=1e-2)


# ---------------------------------------------------------------- supervised


def test_supervised_needs_its_classes():
    with pytest.raises(ValueError, match="number of its classes"):
        build(ModelConfig(method="supervised"), T, D_TEXT)


@pytest.mark.parametrize(("encoder", "partial"), [("lead-vit", True), ("resnet", False)])
def test_supervised_with_hidden_leads(encoder, partial):
    model, inputs = small(method="supervised", encoder=encoder, lead_masking="random"), batch()
    assert isinstance(model, SupervisedModel) and model.accepts_partial_leads is partial
    assert model(inputs["ecg"], inputs["entities"]).loss.isfinite()
    model.eval()
    other = inputs["ecg"].clone()
    other[:, 3:] += 10
    same = torch.allclose(model.scores(inputs["ecg"], None, leads(0)), model.scores(other, None, leads(0)), atol=1e-5)
    assert same is partial
