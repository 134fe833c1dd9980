"""argus/compress.py and hilt.py: each arm against a second implementation; sizes as in the reference."""

import itertools
import math

import pytest
import torch
from torch import nn

from argus.compress import (
    BUILD,
    AttentionPool,
    Grouped,
    Perceiver,
    PerceiverLayer,
    build_compressor,
    mlp2,
    pixel_shuffle_3d,
    small_grid,
)
from argus.hilt import Hilt, HiltLayer, low_resolution

GRID, FACTORS, WIDTH, OUT = (4, 4, 6), (2, 2, 3), 24, 10
N, S, M = 96, 12, 8
REGROUPED = ("avgpool", "avgpool_matched", "avgpool_seq", "pixel_shuffle_3d", "concat_1d")
CASES = [((2, 2, 2), (2, 2, 2)), ((8, 6, 6), (2, 2, 2)), ((4, 8, 8), (2, 4, 4)), ((3, 5, 2), (1, 1, 1)),
         ((4, 6, 9), (4, 2, 3)), ((2, 3, 8), (1, 1, 4)), ((6, 1, 4), (3, 1, 2))]  # fmt: skip


def tokens(grid=GRID, width=WIDTH, n=2, seed=0) -> torch.Tensor:
    return torch.randn(n, math.prod(grid), width, generator=torch.Generator().manual_seed(seed))


def build(name: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "grid": GRID, "factors": FACTORS, "queries": 0, "out": OUT} | changes
    return build_compressor(name, **sizes).eval()


def members(grid, factors) -> list[list[int]]:
    """For each group, in order, the numbers of its tokens, in order: D, then H, then W fastest, counted by hand."""
    small = [g // f for g, f in zip(grid, factors, strict=True)]
    groups = []
    for cell in itertools.product(*map(range, small)):
        places = itertools.product(*(range(c * f, c * f + f) for c, f in zip(cell, factors, strict=True)))
        groups.append([(d * grid[1] + h) * grid[2] + w for d, h, w in places])
    return groups


# --- pixel shuffle ---


def pixel_unshuffle_3d(groups: torch.Tensor, grid, factors) -> torch.Tensor:
    """The exact inverse of `pixel_shuffle_3d`: [B, N / S, S * C] -> [B, N, C] on `grid`."""
    small = small_grid(grid, factors)
    x = groups.unflatten(2, (*factors, -1)).unflatten(1, small)  # [B, gD/sD, gH/sH, gW/sW, sD, sH, sW, C]
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 6)


@pytest.mark.parametrize("grid, factors", CASES)
def test_pixel_shuffle_has_an_exact_inverse(grid, factors):
    x = tokens(grid, width=5)
    shuffled = pixel_shuffle_3d(x, grid, factors)
    s = math.prod(factors)
    assert shuffled.shape == (2, math.prod(grid) // s, s * 5)
    assert torch.equal(pixel_unshuffle_3d(shuffled, grid, factors), x)


def test_pixel_shuffle_has_an_exact_inverse_for_many_grids():
    draw = torch.Generator().manual_seed(7)
    for _ in range(60):
        factors, small = (torch.randint(1, 5, (3,), generator=draw).tolist() for _ in range(2))
        grid = [f * g for f, g in zip(factors, small, strict=True)]
        x = torch.arange(math.prod(grid) * 3.0).view(1, -1, 3)
        assert torch.equal(pixel_unshuffle_3d(pixel_shuffle_3d(x, grid, factors), grid, factors), x)


@pytest.mark.parametrize("grid, factors", CASES)
def test_a_group_holds_the_tokens_of_one_block_in_order(grid, factors):
    x = tokens(grid, width=5)
    shuffled = pixel_shuffle_3d(x, grid, factors)
    for m, group in enumerate(members(grid, factors)):
        assert torch.equal(shuffled[:, m], x[:, group].flatten(1))  # C fastest


@pytest.mark.parametrize("grid, factors", CASES)
def test_the_mean_over_a_group_is_average_pooling(grid, factors):
    x = tokens(grid)
    mean = pixel_shuffle_3d(x, grid, factors).unflatten(2, (math.prod(factors), -1)).mean(2)
    pooled = build("avgpool", grid=grid, factors=factors).regroup(x)
    assert torch.allclose(mean, pooled, atol=1e-6)


def test_pixel_shuffle_is_concat_1d_only_along_w():
    x = tokens()
    for factors in ((1, 1, 3), (1, 1, 2), (1, 1, 6)):
        assert torch.equal(pixel_shuffle_3d(x, GRID, factors), build("concat_1d", factors=factors).regroup(x))
    for factors in ((2, 2, 3), (1, 2, 3), (2, 1, 1), (1, 2, 1)):
        assert not torch.equal(pixel_shuffle_3d(x, GRID, factors), build("concat_1d", factors=factors).regroup(x))


def test_sequence_arms_ignore_the_geometry():
    x = tokens()
    for m in range(M):
        own = x[:, m * S : (m + 1) * S]
        assert torch.allclose(build("avgpool_seq").regroup(x)[:, m], own.mean(1), atol=1e-6)
        assert torch.equal(build("concat_1d").regroup(x)[:, m], own.flatten(1))
    assert not torch.allclose(build("avgpool_seq").regroup(x), build("avgpool").regroup(x), atol=1e-2)


# --- sizes ---


@pytest.mark.parametrize("name", BUILD)
def test_every_arm_gives_its_tokens_at_the_same_width(name):
    grid = (4, 4, 6)
    arm = build(name, factors=(2, 2, 3))
    x, low = tokens(grid), tokens((2, 2, 2), seed=1)
    y = arm(x, low) if name == "hilt" else arm(x)
    expected = {"none": N, "radfm_perceiver": 32}.get(name, M)
    assert arm.n_tokens == expected and y.shape == (2, expected, OUT)
    y.square().sum().backward()
    assert [n for n, p in arm.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_parameters_are_those_of_the_reference():
    """At C = 768, Hllm = 4096, 16 x 16 x 16 tokens to M = 512; in millions."""
    sizes = {"width": 768, "grid": (16, 16, 16), "factors": (2, 2, 2), "queries": 0, "out": 4096}
    expected = {"none": 3.1, "avgpool": 19.9, "avgpool_seq": 19.9, "attn_pool": 22.7, "perceiver": 58.1,
                "pixel_shuffle_3d": 42.0, "avgpool_matched": 42.0}  # fmt: skip
    with torch.device("meta"):
        arms = {name: build_compressor(name, **sizes) for name in expected}
        wide = {f: build_compressor("pixel_shuffle_3d", **sizes | {"factors": f}) for f in ((2, 4, 4), (4, 4, 4))}
        linear = Perceiver(768, 512, nn.Linear(768, 4096))
        spp = build_compressor("avgpool", **sizes | {"grid": (8, 16, 16)})
    count = {name: sum(p.numel() for p in arm.parameters()) / 1e6 for name, arm in arms.items()}
    assert count == pytest.approx(expected, abs=0.06)
    assert {a.n_tokens for name, a in arms.items() if name != "none"} == {512}
    assert [sum(p.numel() for p in wide[f].parameters()) / 1e6 for f in wide] == pytest.approx([117.4, 218.1], abs=0.06)
    assert sum(p.numel() for p in linear.parameters()) / 1e6 == pytest.approx(41.3, abs=0.06)
    assert spp.n_tokens == 256  # M3D: 2,048 -> 256


def test_the_matched_arm_has_as_many_parameters_as_pixel_shuffle():
    for width, out, factors in ((96, 128, (2, 2, 2)), (64, 200, (2, 4, 4)), (768, 3072, (2, 2, 2))):
        with torch.device("meta"):
            a, b = (build_compressor(name, width, (8, 8, 8), factors, 0, out)
                    for name in ("avgpool_matched", "pixel_shuffle_3d"))  # fmt: skip
        counts = [sum(p.numel() for p in arm.parameters()) for arm in (a, b)]
        assert counts[0] == pytest.approx(counts[1], rel=5e-3)


def test_queries_can_be_chosen():
    assert build("attn_pool", queries=5)(tokens()).shape == (2, 5, OUT)
    assert build("perceiver", queries=3)(tokens()).shape == (2, 3, OUT)
    assert build("radfm_perceiver", queries=3)(tokens()).shape == (2, 32, OUT)  # as published


# --- attention arms ---


def attention(q, k, v, heads):
    """Softmax attention one head at a time."""
    parts = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        parts.append((a @ b.mT / math.sqrt(a.shape[-1])).softmax(-1) @ c)
    return torch.cat(parts, dim=-1)


def test_attention_pool_written_out():
    arm, x = build("attn_pool"), tokens()
    assert isinstance(arm, AttentionPool) and arm.attention.heads == 8
    q = arm.attention.q(arm.norm_queries(arm.queries)).expand(2, -1, -1)
    k, v = arm.attention.kv(arm.norm_tokens(x)).chunk(2, dim=-1)
    assert torch.allclose(arm(x), arm.head(arm.norm(arm.attention.out(attention(q, k, v, 8)))), atol=1e-5)


def test_perceiver_layer_written_out():
    torch.manual_seed(0)
    layer, latents, x = PerceiverLayer(WIDTH), tokens((1, 1, 5), seed=3), tokens()
    a = layer.norm_latents(latents)
    k, v = layer.attention.kv(torch.cat([layer.norm_tokens(x), a], dim=1)).chunk(2, dim=-1)
    y = latents + layer.attention.out(attention(layer.attention.q(a), k, v, 8))
    assert torch.allclose(layer(latents, x), y + layer.feed(y), atol=1e-5)
    with torch.device("meta"):
        assert PerceiverLayer(768).attention.q.weight.shape == (8 * 64, 768)


def test_learned_queries_do_not_care_for_the_order_and_groups_do():
    x = tokens()
    moved = x[:, torch.randperm(N, generator=torch.Generator().manual_seed(1))]
    for name in ("attn_pool", "perceiver"):
        assert torch.allclose(build(name)(x), build(name)(moved), atol=1e-5)
    for name in REGROUPED:
        assert not torch.allclose(build(name)(x), build(name)(moved), atol=1e-3)


def test_hilt_layer_written_out():
    """The residual of the cross-attention is the projected query, and self-attention has none."""
    torch.manual_seed(0)
    layer, low, high = HiltLayer(WIDTH, 12), tokens((2, 2, 2), seed=1), tokens()

    def itself(x):
        q, k, v = (layer.norm_attention(x) @ layer.attention.qkv.weight.T).chunk(3, dim=-1)
        return layer.attention.out_proj(attention(q, k, v, 12))

    a, b = itself(low), itself(high)
    w_q, w_k, w_v = layer.qkv.weight.chunk(3)
    q = a @ w_q.T
    a = layer.out(q + attention(q, b @ w_k.T, b @ w_v.T, 12))
    expected = [x + layer.feed(layer.norm_feed(x)) for x in (a, b)]
    for found, x in zip(layer(low, high), expected, strict=True):
        assert torch.allclose(found, x, atol=1e-5)


def test_hilt_asks_the_high_resolution_and_wants_the_fitting_low_one():
    arm, x, low = build("hilt"), tokens(), tokens((2, 2, 2), seed=1)
    assert isinstance(arm, Hilt) and len(arm.layers) == 2
    assert not torch.allclose(arm(x, low), arm(tokens(seed=5), low), atol=1e-3)
    assert not torch.allclose(arm(x, low), arm(x, tokens((2, 2, 2), seed=6)), atol=1e-3)
    with pytest.raises(ValueError, match="low_resolution"):
        arm(x, x)
    with torch.device("meta"):
        assert Hilt(768, (1, 1, 1), nn.Identity()).layers[0].heads == 12


def test_low_resolution_is_the_mean_of_blocks():
    volume = torch.randn(1, 1, 4, 4, 6)
    low = low_resolution(volume, (2, 2, 3))
    assert low.shape == (1, 1, 2, 2, 2)
    assert low[0, 0, 1, 0, 1] == pytest.approx(float(volume[0, 0, 2:4, 0:2, 3:6].mean()), abs=1e-6)


# --- what does not fit ---


@pytest.mark.parametrize("name", [n for n in BUILD if n not in ("none", "radfm_perceiver")])
def test_factors_that_do_not_divide_the_grid_are_refused(name):
    with pytest.raises(ValueError, match=r"model\.factors \[2, 3, 3\] do not divide the token grid \[4, 4, 6\]"):
        build(name, factors=[2, 3, 3])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"model\.factors"):
        small_grid((4, 4, 4), (2, 2))
    with pytest.raises(ValueError, match=r"model\.factors"):
        small_grid((4, 4, 4), (0, 2, 2))
    with pytest.raises(ValueError, match=r"model\.compressor: 'pca' is none of"):
        build("pca")
    with pytest.raises(ValueError, match=r"model\.queries: -1"):
        build("attn_pool", queries=-1)
    with pytest.raises(ValueError, match="95 tokens do not fill the grid"):
        build("concat_1d")(tokens()[:, 1:])


def test_the_head_is_m3ds_projector():
    head = mlp2(3, 5)
    assert [type(layer) for layer in head] == [nn.Linear, nn.GELU, nn.Linear]
    assert head[0].weight.shape == (5, 3) and head[2].weight.shape == (5, 5)
    assert isinstance(build("none").head, nn.Linear) and isinstance(build("radfm_perceiver").head, nn.Linear)
    assert all(isinstance(build(name), Grouped) for name in REGROUPED)
