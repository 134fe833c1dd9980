"""InfoNCE against its formula; two processes against one with the joined batch."""

import math

import pytest
import torch
from torch.nn import functional as F
from two_ranks import two_ranks

from shared.losses import info_nce, unit

N = 4  # rows of each process


def unit_rows(n, d=8, seed=0):
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_info_nce_is_the_sum_of_both_directions():
    a, b = unit_rows(5), unit_rows(5, seed=1)
    total = 0.0
    for i in range(5):
        for x, y in ((a, b), (b, a)):
            scores = [float(x[i] @ y[j]) / 0.07 for j in range(5)]
            total += math.log(sum(math.exp(s) for s in scores)) - scores[i]
    assert info_nce(a, b, 0.07).item() == pytest.approx(total / 5, rel=1e-4)
    assert info_nce(a, b, 1e6).item() == pytest.approx(2 * math.log(5), rel=1e-4)  # a mean would be log 5
    assert info_nce(a, a, 0.01).item() == pytest.approx(0, abs=1e-3)


def test_info_nce_is_not_rounded_by_autocast():
    a, b = unit_rows(16, 64), unit_rows(16, 64, seed=1)
    exact = info_nce(a, b, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(a, b, 0.07), exact)


def contrast(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(Loss, gradient of the rows of one side)."""
    a = unit_rows(2 * N)[rows].requires_grad_()
    loss = info_nce(a, unit_rows(2 * N, seed=1)[rows], 0.07)
    loss.backward()
    return loss.detach(), a.grad


def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return contrast(slice(rank * N, (rank + 1) * N))


def test_the_contrast_of_two_processes_has_the_gradient_of_one(tmp_path):
    loss, grad = contrast(slice(None))
    (loss0, grad0), (loss1, grad1) = two_ranks(work, tmp_path)
    assert (loss0 + loss1).item() / 2 == pytest.approx(loss.item(), abs=1e-5)
    assert torch.allclose(torch.cat([grad0, grad1]) / 2, grad, atol=1e-5)


def test_the_gradient_through_other_processes_features_counts():
    """What MERL's public code leaves out: with gathered features as constants the gradient would be another one."""
    a, b = unit_rows(2 * N), unit_rows(2 * N, seed=1)
    local = torch.zeros_like(a)
    for rows in (slice(0, N), slice(N, 2 * N)):
        x = a.clone().requires_grad_()
        known = torch.cat([x[rows] if rows.start == s else x[s : s + N].detach() for s in (0, N)])
        target = torch.arange(2 * N)[rows]
        (F.cross_entropy(x[rows] @ b.T / 0.07, target) + F.cross_entropy(b[rows] @ known.T / 0.07, target)).backward()
        local += x.grad / 2
    assert (local - contrast(slice(None))[1]).abs().max() > 1e-2
