"""Losses against plain formulas; two processes against one with the joined batch."""

import math

import pytest
import torch
from supreme_models import batch, small
from two_ranks import parallel_step, two_ranks

from supreme.losses import asymmetric, bce, count_labels, pos_weight

Y = torch.tensor([[1, 0, 0.5, 1, 0, 1], [0, 0, 0, 0, 1, 1], [1, 1, 0, 0.5, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(logits, part):
    """Mean of part(probability, label, column) over unmasked labels."""
    cells = [(i, j) for i in range(3) for j in range(6) if MASK[i, j]]
    return sum(part(1 / (1 + math.exp(-logits[i, j])), Y[i, j].item(), j) for i, j in cells) / len(cells)


def plain_bce(p, y, j, weight=(1.0,) * 6):
    return -weight[j] * y * math.log(p) - (1 - y) * math.log(1 - p)


def plain_asymmetric(p, y, _, gamma_pos=0.0, gamma_neg=4.0, shift=0.05):
    q = max(p - shift, 0)
    return -y * (1 - p) ** gamma_pos * math.log(p) - (1 - y) * q**gamma_neg * math.log(1 - q)


# --- formulas


def test_bce_is_the_mean_over_unmasked_labels():
    logits = 2 * draw(3, 6)
    assert bce(logits, Y, MASK).item() == pytest.approx(plain(logits, plain_bce), rel=1e-5)


def test_pos_weight_multiplies_positives():
    logits, weight = 2 * draw(3, 6), torch.tensor([1, 2, 3, 4, 5, 0.5])
    expected = plain(logits, lambda p, y, j: plain_bce(p, y, j, weight.tolist()))
    assert bce(logits, Y, MASK, weight).item() == pytest.approx(expected, rel=1e-5)
    counts = torch.tensor([[100, 1, 0, 50], [400, 10_000, 9, 2]])
    assert pos_weight(counts).tolist() == pytest.approx([2, 20, 3, 0.2])


def test_labels_are_counted_where_the_mask_is_set():
    assert count_labels(Y, MASK).tolist() == [[2, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1]]


@pytest.mark.parametrize("options", [{}, {"gamma_pos": 1.0, "gamma_neg": 2.0, "shift": 0.2}])
def test_asymmetric_is_the_formula(options):
    logits = 2 * draw(3, 6)
    expected = plain(logits, lambda *args: plain_asymmetric(*args, **options))
    assert asymmetric(logits, Y, MASK, **options).item() == pytest.approx(expected, rel=1e-5)


def test_asymmetric_without_asymmetry_is_bce():
    logits = 3 * draw(3, 6)
    assert torch.allclose(asymmetric(logits, Y, MASK, 0.0, 0.0, 0.0), bce(logits, Y, MASK), rtol=1e-5)


@pytest.mark.parametrize("loss", [bce, asymmetric])
def test_masked_labels_have_no_influence(loss):
    logits = (2 * draw(3, 6)).requires_grad_()
    for other in (1 - Y, torch.full_like(Y, torch.nan), torch.full_like(Y, 9)):
        assert torch.equal(loss(logits, torch.where(MASK, Y, other), MASK), loss(logits, Y, MASK))
    loss(logits, Y, MASK).backward()
    assert (logits.grad[~MASK] == 0).all() and (logits.grad[MASK & (Y == 1)] < 0).all()
    none = loss(logits, Y, torch.zeros_like(MASK))
    assert none == 0 and none.requires_grad


@pytest.mark.parametrize("loss", [bce, asymmetric])
def test_extreme_and_rounded_logits_stay_finite(loss):
    logits = torch.tensor([[-90.0, 90, -90, 90, 0, -3]] * 3, requires_grad=True)
    loss(logits, Y, MASK).backward()
    assert logits.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(draw(3, 6).bfloat16(), Y.bfloat16(), MASK)
    assert value.dtype == torch.float32 and torch.equal(value, loss(draw(3, 6).bfloat16().float(), Y, MASK))


# --- two processes


N = 4  # records of each process
MODELS = {
    "supreme": {},
    "pos-weight": {"pos_weight": True},
    "asymmetric": {"loss": "asymmetric"},
    "linear": {"head": "linear"},
    "learned": {"queries": "learned"},
    "self-attention": {"query_self_attention": True},
}


def two_rank_inputs() -> dict[str, torch.Tensor]:
    """8 records; the second process has far more masked labels."""
    inputs = batch(2 * N, seed=3)
    inputs["mask"][:N] = True
    inputs["mask"][N:, 1:] = False
    return inputs


def work(rank: int) -> dict:
    rows, found = slice(rank * N, (rank + 1) * N), {}
    mine = {k: v if k == "queries" else v[rows] for k, v in two_rank_inputs().items()}
    for name, overrides in MODELS.items():
        out, gradients = parallel_step(small(**overrides), mine)
        found[name] = out.loss.item(), gradients
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_equal_one_with_the_joined_batch(name, ranks):
    model = small(**MODELS[name])
    loss = model(**two_rank_inputs()).loss
    loss.backward()
    (loss0, grads0), (loss1, grads1) = ranks[0][name], ranks[1][name]
    assert (loss0 + loss1) / 2 == pytest.approx(loss.item(), abs=1e-5)
    assert abs(loss0 - loss1) > 1e-2  # the share of each differs
    for key, p in model.named_parameters():
        assert torch.allclose(grads0[key], grads1[key]), key
        assert torch.allclose(grads0[key], p.grad, atol=1e-5), key
        assert p.grad.abs().max() > 1e-5, key
