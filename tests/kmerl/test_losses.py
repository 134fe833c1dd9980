"""The entity loss against its formula; two processes against one with the joined batch."""

import pytest
import torch
from small_models import batch, small
from two_ranks import parallel_step, two_ranks

from kmerl.losses import entity_bce


def test_entity_bce_leaves_ignored_labels_out():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1, 0, -1, 1, 0, -1], [-1] * 6, [0] * 6, [1, 1, 1, -1, -1, -1]], dtype=torch.int8)
    terms = []
    for i in range(4):
        for j in range(6):
            if labels[i, j] >= 0:
                p = torch.sigmoid(logits[i, j])
                terms.append(-(p if labels[i, j] else 1 - p).log())
    loss = entity_bce(logits, labels)
    assert len(terms) == 13 and torch.allclose(loss, torch.stack(terms).mean(), atol=1e-6)
    loss.backward()
    assert ((logits.grad == 0) == (labels < 0)).all()
    assert entity_bce(logits, torch.full_like(labels, -1)) == 0


# ---------------------------------------------------------------- two processes


N = 4  # records of each process


def two_rank_inputs() -> dict[str, torch.Tensor]:
    """8 records; the second process has far more ignored labels."""
    inputs = batch(2 * N, seed=3)
    inputs["entities"][N:, 1:] = -1
    inputs["entities"][:N] = inputs["entities"][:N].abs()
    return inputs


def model_of(name: str):
    """Nothing random and no BatchNorm in a step, so that two processes can equal one."""
    if name == "kmerl":
        return small(masked_leads=[0], segment_masking=0.0)
    if name == "merl-vit":
        return small(method="merl", encoder="vit", entity_head=True)
    return small(method="supervised", masked_leads=[0], segment_masking=0.0)


NAMES = ("kmerl", "merl-vit", "supervised")


def work(rank: int) -> dict:
    rows, found = slice(rank * N, (rank + 1) * N), {}
    for name in NAMES:
        mine = {k: v if k == "queries" else v[rows] for k, v in two_rank_inputs().items()}
        out, gradients = parallel_step(model_of(name), mine)
        found[name] = {k: v.item() for k, v in out.items()}, gradients
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_with_the_joined_batch(name, ranks):
    model = model_of(name)
    out = model(**two_rank_inputs())
    out.loss.backward()
    (terms0, grads0), (terms1, grads1) = ranks[0][name], ranks[1][name]
    for key, value in out.items():
        assert (terms0[key] + terms1[key]) / 2 == pytest.approx(value.item(), abs=1e-5), key
    for key, p in model.named_parameters():
        assert torch.allclose(grads0[key], grads1[key]), key
        assert torch.allclose(grads0[key], p.grad, atol=1e-5), key
        assert p.grad.abs().max() > 1e-4, key
