"""Cardiac Fusion Network: the formula of reference M4, its size, and that a score does not depend on the list asked."""

import math

import pytest
import torch
from supreme_models import n_parameters
from torch.nn import functional as F

from supreme.cfn import CardiacFusionNetwork, sinusoids
from supreme.model import ModelConfig, SupremeModel

D_TEXT, D_ECG, WIDTH = 24, 16, 12


def network(seed=0, layers=3, heads=2, dropout=0.0, **controls) -> CardiacFusionNetwork:
    torch.manual_seed(seed)
    return CardiacFusionNetwork(D_TEXT, D_ECG, WIDTH, layers, heads, 20, dropout, **controls).eval()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLASSES, TOKENS = draw(106, D_TEXT), draw(4, 30, D_ECG, seed=1)
CONTROLS = [{"positions": True}, {"self_attention": True}]


def test_the_default_has_the_size_of_the_reference():
    with torch.device("meta"):
        model = SupremeModel.build(ModelConfig(), None, n_samples=5000, d_text=768, n_classes=295)
    assert n_parameters(model.cfn) == 16_499_969
    assert n_parameters(model) == 21_870_017  # whatever the number of terms


def test_it_is_the_formula():
    """One head at a time, one query at a time, from the weights."""
    net, queries = network().requires_grad_(False), CLASSES[:3]
    memory = TOKENS[1] @ net.memory_linear.weight.T + net.memory_linear.bias  # [n, width]
    for i, query in enumerate(queries):
        h = net.query_linear(query / query.square().mean().sqrt())
        for block in net.blocks:
            attention, parts = block.cross_attention, []
            q, (k, v) = attention.q(h), attention.kv(memory).chunk(2, dim=-1)
            for head in (slice(0, WIDTH // 2), slice(WIDTH // 2, WIDTH)):
                weights = [math.exp(q[head] @ row[head] / math.sqrt(WIDTH // 2)) for row in k]
                parts.append(sum(w * row[head] for w, row in zip(weights, v, strict=True)) / sum(weights))
            h = block.cross_norm(h + attention.out(torch.cat(parts)))
            h = block.mlp_norm(h + block.mlp[2](block.mlp[0](h).clamp(min=0)))
        expected = net.head.weight[0] @ h + net.head.bias
        assert net(queries, TOKENS)[1, i].item() == pytest.approx(expected.item(), abs=1e-5)


def test_permuting_queries_permutes_scores():
    net, order = network(), torch.randperm(106)
    scores = net(CLASSES, TOKENS)
    assert scores.shape == (4, 106) and scores.std(1).min() > 1e-2
    assert torch.allclose(net(CLASSES[order], TOKENS), scores[:, order], atol=1e-6)


def test_a_class_alone_equals_the_class_among_106():
    net = network()
    scores = net(CLASSES, TOKENS)
    for i in (0, 50, 105):
        assert torch.allclose(net(CLASSES[i : i + 1], TOKENS), scores[:, i : i + 1], atol=1e-6)


@pytest.mark.parametrize("controls", [{}, {"self_attention": True}])
def test_equal_texts_give_equal_scores(controls):
    queries = CLASSES[:6].clone()
    queries[4] = queries[1]
    scores = network(**controls)(queries, TOKENS)
    assert torch.allclose(scores[:, 4], scores[:, 1], atol=1e-6) and not torch.allclose(scores[:, 4], scores[:, 2])


def test_with_positions_equal_texts_do_not():
    scores = network(positions=True)(CLASSES[:1].expand(6, -1), TOKENS)
    assert (scores[:, 0] - scores[:, 5]).abs().max() > 1e-3


def test_with_positions_scores_depend_on_the_order_of_the_list():
    net, order = network(positions=True), torch.arange(106).flip(0)
    assert not torch.allclose(net(CLASSES[order], TOKENS), net(CLASSES, TOKENS)[:, order], atol=1e-3)


@pytest.mark.parametrize("controls", CONTROLS)
def test_with_positions_or_self_attention_a_class_alone_scores_otherwise(controls):
    net = network(**controls)
    alone, among = net(CLASSES[50:51], TOKENS), net(CLASSES, TOKENS)[:, 50:51]
    assert not torch.allclose(alone, among, atol=1e-4)


def test_records_do_not_depend_on_the_batch():
    net = network()
    assert torch.allclose(net(CLASSES, TOKENS[2:3]), net(CLASSES, TOKENS)[2:3], atol=1e-6)


def test_the_order_of_ecg_tokens_does_not_matter_but_their_content_does():
    net = network()
    scores = net(CLASSES, TOKENS)
    assert torch.allclose(net(CLASSES, TOKENS.flip(1)), scores, atol=1e-5)
    assert not torch.allclose(net(CLASSES, TOKENS.flip(0)), scores, atol=1e-3)


def test_the_length_of_text_vectors_does_not_matter():
    net = network()
    for factor in (0.05, 40.0):
        assert torch.allclose(net(factor * CLASSES, TOKENS), net(CLASSES, TOKENS), atol=1e-4)
    assert net(torch.zeros(2, D_TEXT), TOKENS).isfinite().all()


def test_dropout_acts_in_training_only():
    net = network(dropout=0.5)
    assert torch.equal(net(CLASSES, TOKENS), network()(CLASSES, TOKENS))
    net.train()
    assert not torch.allclose(net(CLASSES, TOKENS), net(CLASSES, TOKENS), atol=1e-2)


def test_logits_keep_32_bits_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        scores = network()(CLASSES, TOKENS)
    assert scores.dtype == torch.float32
    assert len(scores[0].unique()) == 106  # 8 bits would tie
    assert torch.allclose(scores, network()(CLASSES, TOKENS), atol=0.1)


# --- attention


def test_attention_weights_sum_to_one_per_query():
    weights = network().attention(CLASSES, TOKENS)
    assert weights.shape == (4, 106, 30) and weights.min() >= 0
    assert torch.allclose(weights.sum(-1), torch.ones(4, 106), atol=1e-5)


def test_attention_weights_are_those_that_were_used():
    net, used, seen = network(layers=1, heads=1), [], []
    attention = net.blocks[0].cross_attention
    attention.register_forward_hook(lambda module, args, out: used.append((args[1], out)))
    net(CLASSES, TOKENS, seen)
    (memory, out), (weights,) = used[0], seen
    assert torch.allclose(attention.out(weights @ attention.kv(memory).chunk(2, dim=-1)[1]), out, atol=1e-5)


def test_a_token_like_the_key_of_a_query_is_looked_at():
    net = network(layers=1, heads=1)
    tokens = TOKENS[:1].clone().requires_grad_()
    optimizer = torch.optim.Adam([tokens], 0.1)
    for _ in range(100):  # tokens that make query 0 look at token 7
        optimizer.zero_grad()
        F.nll_loss(net.attention(CLASSES[:1], tokens)[:, 0].log(), torch.tensor([7])).backward()
        optimizer.step()
    assert net.attention(CLASSES[:1], tokens)[0, 0].argmax() == 7
    assert net.attention(CLASSES[:1], tokens)[0, 0, 7] > 0.5


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids(width):
    table = sinusoids(50, width)
    assert table.shape == (50, width) and len({tuple(row) for row in table.tolist()}) == 50
    half = (width + 1) // 2
    for position in (0, 1, 17):
        for i in range(width):
            angle = position / 10_000 ** (i % half / half)
            expected = math.sin(angle) if i < half else math.cos(angle)
            assert table[position, i].item() == pytest.approx(expected, abs=1e-5)
