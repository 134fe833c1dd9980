"""argus/encoder.py: the ViT against plain torch, visible tokens only, and weights carried between resolutions."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from argus import encoder as e
from argus.encoder import VitEncoder, grid_of, patchify, resize_kernel, resize_positions, resize_weights

SHAPE, PATCH, GRID = (8, 12, 16), (4, 4, 8), (2, 3, 2)


def small(shape=SHAPE, patch=PATCH, depth=2, seed=0) -> VitEncoder:
    """With weights large enough that every part of it shows in the output."""
    torch.manual_seed(seed)
    model = VitEncoder(shape, patch, width=24, depth=depth, heads=3, mlp=40)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def volumes(n=2, shape=SHAPE, seed=1) -> torch.Tensor:
    return torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_hand(model: VitEncoder, volume: torch.Tensor, heads: int = 3) -> torch.Tensor:
    """The ViT with a stock convolution and attention matrices written out: [B, 1 + N, C], CLS first."""
    x = F.conv3d(volume, model.embed.weight, model.embed.bias, stride=model.patch).flatten(2).mT + model.positions
    x = torch.cat([model.cls.expand(len(x), -1, -1), x], dim=1)
    for block in model.blocks:
        y = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias)
        q, k, v = (part.unflatten(2, (heads, -1)) for part in (y @ block.attn.qkv.weight.T).chunk(3, dim=-1))
        share = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + block.attn.out_proj(torch.einsum("bhqk,bkhd->bqhd", share, v).flatten(2))
        y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias)
        x = x + block.mlp.linear2(F.gelu(block.mlp.linear1(y)))
    return F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias)


def test_patches_lie_on_the_grid_with_w_fastest():
    volume = volumes()
    patches = patchify(volume, PATCH)
    assert patches.shape == (2, math.prod(GRID), math.prod(PATCH))
    for n, (d, h, w) in enumerate(itertools.product(*map(range, GRID))):
        block = volume[:, 0, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 8 * w : 8 * w + 8]
        assert torch.equal(patches[:, n], block.flatten(1))


def test_forward_equals_a_vit_written_out():
    model, volume = small(), volumes()
    cls, tokens = model(volume)
    assert model.grid == GRID and tokens.shape == (2, model.n_tokens, 24) and cls.shape == (2, 24)
    assert torch.allclose(torch.cat([cls.unsqueeze(1), tokens], dim=1), by_hand(model, volume), atol=1e-5)


def test_dropped_tokens_are_neither_computed_nor_seen():
    model, volume = small(), volumes()
    keep = torch.tensor([[1, 4, 9], [0, 2, 11]])
    cls, tokens = model(volume, keep)
    assert tokens.shape == (2, 3, 24)
    changed = patchify(volume, PATCH).clone()
    hidden = torch.ones(changed.shape[:2], dtype=torch.bool).scatter(1, keep, False)
    changed[hidden] = 0.7
    rebuilt = changed.unflatten(1, GRID).unflatten(4, PATCH).permute(0, 1, 4, 2, 5, 3, 6).reshape(volume.shape)
    assert not torch.equal(rebuilt, volume)
    for a, b in zip(model(rebuilt, keep), (cls, tokens), strict=True):
        assert torch.equal(a, b)
    order = torch.randperm(12).expand(2, -1)  # all tokens in another order: the same ones, moved
    assert torch.allclose(model(volume, order)[1], model(volume)[1][:, order[0]], atol=1e-5)
    assert not torch.allclose(model(rebuilt)[0], model(volume)[0], atol=1e-3)


def test_vit_b_has_the_parameters_and_tokens_of_the_reference():
    ladder = {  # rung -> shape, patch, tokens, patch embedding in millions
        "lr32": ((32, 256, 256), (4, 16, 16), 2048, 0.79),
        "nr": ((64, 256, 256), (4, 16, 16), 4096, 0.79),
        "hr": ((256, 512, 512), (16, 16, 16), 16384, 3.1),
        "hr_cheap": ((256, 512, 512), (16, 32, 32), 4096, 12.6),
    }
    for shape, patch, n_tokens, millions in ladder.values():
        with torch.device("meta"):
            model = VitEncoder(shape, patch, 768, 12, 12, 3072)
        assert model.n_tokens == n_tokens
        assert sum(p.numel() for p in model.embed.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
        per_block = 2 * 2 * 768 + 4 * 768**2 + 768 + 2 * 768 * 3072 + 3072 + 768  # no qkv bias
        rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.embed.parameters())
        assert rest == 12 * per_block + (n_tokens + 1) * 768 + 2 * 768


@pytest.mark.parametrize("width, std", [(768, 0.02), (192, 0.04)])
def test_weights_are_drawn_as_the_random_arm_says(width, std):
    """0.02 at ViT-B; four times narrower, twice as large, for the same gain."""
    model = VitEncoder((16, 32, 32), (4, 8, 8), width, 1, 4, 2 * width)
    assert not model.cls.any()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif name != "cls":
            assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_every_parameter_gets_a_gradient():
    model = small().train()
    cls, tokens = model(volumes())
    (cls.square().sum() + tokens.pow(3).sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_recomputes_and_changes_nothing(monkeypatch):
    found, calls = [], []
    original = e.TransformerBlock.forward
    monkeypatch.setattr(e.TransformerBlock, "forward", lambda *a, **k: calls.append(1) or original(*a, **k))
    for recompute in (False, True):
        model = small().train()
        model.gradient_checkpointing = recompute
        calls.clear()
        loss = model(volumes())[1].pow(3).sum()
        loss.backward()
        found.append((len(calls), loss.item(), [p.grad for p in model.parameters()]))
    assert [n for n, *_ in found] == [2, 4]
    assert found[0][1] == found[1][1]
    assert all(torch.allclose(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


def test_another_shape_is_refused_unless_asked_for():
    model = small()
    low = volumes(shape=(4, 8, 8))
    with pytest.raises(ValueError, match=r"data\.shape"):
        model(low)
    with pytest.raises(ValueError, match=r"\[B, 1, 8, 12, 16\]"):
        model(volumes()[:, 0])
    _, tokens = model(low, other_shape=True)
    twin = small(shape=(4, 8, 8))
    twin.load_state_dict(resize_weights(model.state_dict(), SHAPE, PATCH, (4, 8, 8), PATCH))
    assert torch.allclose(tokens, twin(low)[1], atol=1e-6)


@pytest.mark.parametrize("shape, patch", [((8, 12, 16), (4, 5, 8)), ((8, 12), (4, 4)), ((2, 12, 16), (4, 4, 8))])
def test_a_patch_that_does_not_divide_is_refused(shape, patch):
    with pytest.raises(ValueError, match=r"model\.patch .* does not divide data\.shape"):
        grid_of(shape, patch)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"model\.width 24 is no multiple of model\.heads 5"):
        VitEncoder(SHAPE, PATCH, 24, 1, 5, 40)


@pytest.mark.parametrize("patch", [(16, 16, 16), (16, 32, 32), (4, 16, 16), (2, 8, 8), (1, 4, 4), (6, 20, 18)])
def test_a_constant_volume_embeds_the_same_after_a_resize(patch):
    kernel = torch.randn(5, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    resized = resize_kernel(kernel, patch)
    assert resized.shape == (5, 1, *patch)
    before = patchify(torch.full((1, 1, 4, 16, 16), -0.6), (4, 16, 16)) @ kernel.flatten(1).T
    after = patchify(torch.full((1, 1, *patch), -0.6), patch) @ resized.flatten(1).T
    assert torch.allclose(before, after, atol=1e-4)


def test_a_kernel_that_grows_by_whole_factors_is_only_scaled():
    """Nothing has to be spread: the interpolation keeps the sum, and a linear kernel stays linear inside."""
    kernel = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    resized = resize_kernel(kernel, (16, 4, 4))[0, 0, :, 1, 1] * (16 * 16) / (4 * 4)
    inside = torch.arange(2, 14)
    assert torch.allclose(resized[inside], (inside + 0.5) / 4 - 0.5, atol=1e-5)
    assert torch.allclose(resized[:2], torch.zeros(2), atol=1e-5)


def interpolated(table, place):
    """Trilinear value of table [D, H, W] at a place in its voxels, edges held."""
    total = 0.0
    place = [min(max(p, 0.0), n - 1.0) for p, n in zip(place, table.shape, strict=True)]
    for corner in itertools.product((0, 1), repeat=3):
        at = [min(math.floor(p) + c, n - 1) for p, c, n in zip(place, corner, table.shape, strict=True)]
        weight = math.prod((p % 1) if c else 1 - (p % 1) for p, c in zip(place, corner, strict=True))
        total += weight * float(table[tuple(at)])
    return total


def test_positions_are_interpolated_at_the_centres_of_the_new_cells():
    positions = torch.randn(1, math.prod(GRID), 3, generator=torch.Generator().manual_seed(2))
    to = (4, 2, 5)
    resized = resize_positions(positions, GRID, to)[0].unflatten(0, to)
    table = positions[0].unflatten(0, GRID)
    for cell in itertools.product(*map(range, to)):
        place = [(c + 0.5) * g / t - 0.5 for c, g, t in zip(cell, GRID, to, strict=True)]
        for channel in range(3):
            assert float(resized[(*cell, channel)]) == pytest.approx(interpolated(table[..., channel], place), abs=1e-5)


def test_weights_go_from_rung_to_rung():
    model = small()
    state = model.state_dict()
    same = resize_weights(state, SHAPE, PATCH, SHAPE, PATCH)
    assert all(same[k] is state[k] for k in state)
    finer = resize_weights(state, SHAPE, PATCH, (16, 24, 32), (8, 8, 16))  # the grid of before: hr_cheap
    assert torch.equal(finer["positions"], state["positions"])
    high = small((16, 24, 32), (8, 8, 16), seed=3)
    high.load_state_dict(finer)
    flat = torch.full((1, 1, *SHAPE), 0.3), torch.full((1, 1, 16, 24, 32), 0.3)
    assert torch.allclose(model(flat[0])[0], high(flat[1])[0], atol=1e-4)
    more = small((16, 24, 32), PATCH, seed=3)  # the patch of before, more tokens
    more.load_state_dict(resize_weights(state, SHAPE, PATCH, (16, 24, 32), PATCH))
    assert torch.equal(more.embed.weight, model.embed.weight) and more.positions.shape == (1, 8 * 12, 24)
    assert state["positions"].shape == (1, 12, 24)  # the old ones stay


def test_standardised_input_is_each_voxel_s_own_and_travels_to_another_rung():
    volumes = torch.randn(40, 1, 8, 16, 16) * torch.rand(1, 1, 8, 16, 16) + torch.rand(1, 1, 8, 16, 16)
    encoder = VitEncoder((8, 16, 16), (4, 8, 8), 16, 1, 2, 32, standardise=True)
    encoder.fit_input(volumes.split(16))
    torch.testing.assert_close(encoder.input_mean, volumes.mean(0, keepdim=True))
    torch.testing.assert_close(encoder.input_spread, volumes.std(0, correction=0, keepdim=True).clamp_min(0.02))
    plain = VitEncoder((8, 16, 16), (4, 8, 8), 16, 1, 2, 32)
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("input_")})
    seen = (volumes - encoder.input_mean) / encoder.input_spread
    torch.testing.assert_close(encoder(volumes)[1], plain(seen)[1])
    larger = resize_weights(encoder.state_dict(), (8, 16, 16), (4, 8, 8), (16, 32, 32), (8, 16, 16))
    VitEncoder((16, 32, 32), (8, 16, 16), 16, 1, 2, 32, standardise=True).load_state_dict(larger)
    assert larger["input_mean"].shape == (1, 1, 16, 32, 32)
