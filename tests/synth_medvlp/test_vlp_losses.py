"""Every formula of ConVIRT and GLoRIA against loops; two processes against one with the joined batch."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from two_ranks import parallel_step, two_ranks
from vlp_models import batch, small

from shared.losses import unit
from synth_medvlp import gloria
from synth_medvlp.convirt import contrast, head, pool
from synth_medvlp.gloria import both_ways, local_similarity, prompt_scores, prompt_words, sum_pieces, words_of

# 3 texts of 8 pieces: words of one, two and three pieces, [SEP], padding
WORD_IDS = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 4], [0, 1, 2, 3, -1, -1, -1, -1], [0, 1, 1, 2, 2, 3, 4, -1]])
N_WORDS = torch.tensor([3, 2, 3])


def draw(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]


def dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cos(a, b) -> float:
    return dot(a, b) / max(math.sqrt(dot(a, a) * dot(b, b)), 1e-8)


def cross_entropies(Z) -> tuple[float, float]:
    """(rows, columns) of a square list of lists."""
    n = len(Z)
    rows = sum(-math.log(softmax(list(map(float, Z[i])))[i]) for i in range(n)) / n
    columns = sum(-math.log(softmax([float(Z[j][i]) for j in range(n)])[i]) for i in range(n)) / n
    return rows, columns


def context(V, T, temp1: float) -> tuple[list, list]:
    """(attention [L][R], context vectors [L][d]) of regions V [R, d] and words T [L, d], as the reference writes it."""
    S = [[dot(region, word) for word in T] for region in V]
    P = [softmax(row) for row in S]
    A = [softmax([temp1 * P[r][w] for r in range(len(V))]) for w in range(len(T))]
    C = [[sum(A[w][r] * float(V[r][k]) for r in range(len(V))) for k in range(V.shape[1])] for w in range(len(T))]
    return A, C


# --- ConVIRT


def test_pooling_ignores_padding():
    hidden, mask = draw(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.allclose(pool(hidden, mask, "mean"), torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
    assert torch.equal(pool(hidden, mask, "max"), torch.stack([hidden[0, :3].amax(0), hidden[1].amax(0)]))
    assert torch.equal(pool(hidden, mask, "cls"), hidden[:, 0])
    other = hidden.masked_fill(~mask.bool()[..., None], 99.0)
    assert all(torch.equal(pool(hidden, mask, how), pool(other, mask, how)) for how in ("mean", "max", "cls"))


def test_heads_have_the_published_sizes():
    count = {kind: sum(p.numel() for p in head(kind, 2048, 2048, out).parameters()) for kind, out in
             (("mlp", 512), ("bn", 128))}  # fmt: skip
    assert count["mlp"] == 2048 * 2048 + 2048 + 2048 * 512 + 512
    assert count["bn"] == 2048 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128  # the last BatchNorm has no weights
    x = draw(4, 2048)
    mlp = head("mlp", 2048, 2048, 512)
    first, _, last = mlp
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    assert torch.allclose(mlp(x), expected, atol=1e-4)
    torch.manual_seed(0)
    bn = head("bn", 2048, 2048, 128)(draw(64, 2048))
    assert bn.var(0, correction=0).sub(1).abs().max() < 0.01


@pytest.mark.parametrize(("tau", "weights"), [(0.1, (0.75, 0.25)), (0.07, (1.0, 1.0))])
def test_contrast_is_the_formula(tau, weights):
    v, u = unit(draw(5, 4)), unit(draw(5, 4, seed=1))
    rows, columns = cross_entropies([[dot(a, b) / tau for b in u] for a in v])
    assert contrast(v, u, tau, weights).item() == pytest.approx(weights[0] * rows + weights[1] * columns, rel=1e-5)
    in_float32 = contrast(v, u, tau, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast(v, u, tau, weights)
    assert found.dtype == torch.float32 and torch.equal(found, in_float32)


# --- GLoRIA


def test_word_pieces_are_summed_within_each_layer():
    hidden = tuple(draw(3, 8, 4, seed=k) for k in range(5))
    found = words_of(hidden, WORD_IDS, 4)
    assert torch.equal(found.n, N_WORDS)
    E = torch.stack(hidden[-4:], 1)  # [B, 4, L, d]
    for b in range(3):
        slots = torch.zeros(4, 8, 4)  # of each layer: [CLS], words, [SEP], zeros
        for position, word in enumerate(WORD_IDS[b].tolist()):
            if word >= 0:
                slots[:, word] += E[b, :, position]
        assert torch.allclose(found.words[b], slots.sum(0), atol=1e-5)
        published = slots.mean(1).sum(0)  # the mean runs over all slots, zeros too
        assert cos(found.total[b], published) == pytest.approx(1, abs=1e-6)


def test_padding_gets_no_gradient():
    hidden = draw(3, 8, 4).requires_grad_()
    words = sum_pieces(hidden, WORD_IDS)
    V = draw(3, 5, 4, seed=1)
    both_ways(local_similarity(V, words, N_WORDS, (4, 5, 10), "sum"), True).backward()
    used = (WORD_IDS >= 0) & (WORD_IDS <= N_WORDS[:, None])  # [SEP] is no word
    assert hidden.grad.isfinite().all() and (hidden.grad[~used] == 0).all()
    assert (hidden.grad[used].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("agg", ["sum", "mean"])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_local_similarity_is_the_formula(agg, chunk, monkeypatch):
    monkeypatch.setattr(gloria, "CHUNK", chunk)
    V, T, temps = draw(4, 6, 5), draw(3, 8, 5, seed=1), (4.0, 5.0, 10.0)
    found = local_similarity(V, T, N_WORDS, temps, agg)
    for j in range(4):
        for i in range(3):
            Ti = T[i, : N_WORDS[i] + 1]  # [CLS] and the words
            _, C = context(V[j], Ti, temps[0])
            exponentials = [math.exp(temps[1] * cos(Ti[w], C[w])) for w in range(len(Ti))]
            total = sum(exponentials) / (len(Ti) if agg == "mean" else 1)
            assert found[j, i].item() == pytest.approx(temps[2] * math.log(total), rel=1e-4)


def test_similarities_are_taken_in_float32():
    V, T = draw(4, 6, 5), draw(3, 8, 5, seed=1)
    expected, cosines = local_similarity(V, T, N_WORDS, (4, 5, 10), "sum"), gloria.cosine(V[:, 0], T[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_similarity(V, T, N_WORDS, (4, 5, 10), "sum"), expected)
        assert torch.equal(gloria.cosine(V[:, 0], T[:, 0]), cosines)


def test_four_cross_entropies():
    model = small("gloria").eval().requires_grad_(False)
    inputs = batch(model, 4)
    maps = model.image(inputs["pixel_values"])
    tokens = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    hidden = model.text(**tokens)
    V = maps[0].permute(0, 2, 3, 1).flatten(1, 2) @ model.on_top.local.weight[:, :, 0, 0].T
    gI = maps[1].mean((2, 3)) @ model.on_top.total.weight.T + model.on_top.total.bias
    texts = words_of(hidden, inputs["word_ids"], 2)
    Zloc = local_similarity(V, texts.words, texts.n, (4, 5, 10), "sum")
    Zglb = [[10 * cos(a, b) for b in texts.total] for a in gI]
    out = model(**inputs)
    assert out.loss.item() == pytest.approx(sum(cross_entropies(Zloc)) + sum(cross_entropies(Zglb)), rel=1e-4)
    assert out.loss.item() == pytest.approx(sum(t.item() for t in out.terms.values()), rel=1e-6)


def test_prompts_are_scored_by_their_true_words():
    texts = words_of((draw(3, 8, 4),), WORD_IDS, 1)
    V = draw(2, 6, 4, seed=1)
    found = prompt_scores(V, *prompt_words(texts), 4.0, 5.0)
    for j in range(2):
        for i in range(3):
            T = texts.words[i, 1 : N_WORDS[i] + 1]
            _, C = context(V[j], T, 4.0)
            assert found[j, i].item() == pytest.approx(max(5 * cos(T[w], C[w]) for w in range(len(T))), rel=1e-4)


def test_as_published_characters_count_as_words():
    texts = words_of((draw(3, 8, 4),), WORD_IDS, 1)
    V, characters = draw(2, 6, 4, seed=1), torch.tensor([12, 40, 3])
    found = prompt_scores(V, *prompt_words(texts, characters), 4.0, 5.0)
    for j in range(2):
        for i in range(3):
            slots = torch.zeros(97, 4)
            slots[:8] = texts.words[i]
            T = slots[1 : characters[i] + 1]  # with [SEP], then zeros
            _, C = context(V[j], T, 4.0)
            assert found[j, i].item() == pytest.approx(max(5 * cos(T[w], C[w]) for w in range(len(T))), abs=1e-4)
    assert (found[:, :2] >= 0).all()  # zeros are a floor
    with pytest.raises(ValueError, match="96 characters"):
        prompt_words(texts, torch.tensor([12, 97, 3]))


# --- two processes

N = 3  # pairs of each process
CASES = {
    "convirt": ("convirt", {}),
    "convirt_mgca": ("convirt_mgca", {}),
    "gloria": ("gloria", {}),
    "gloria-mean": ("gloria", {"agg": "mean"}),
    "alone": ("convirt", {"gather": False}),
}


def two_rank_batch(model, rows: slice) -> dict[str, torch.Tensor]:
    """The texts of the processes differ in length, so each pads to its own."""
    inputs = batch(model, 2 * N)
    inputs = {k: v[rows] for k, v in inputs.items()}
    length = int(inputs["attention_mask"].sum(1).max())
    return {k: v[:, :length] if v.dim() == 2 else v for k, v in inputs.items()}


def work(rank: int) -> dict:
    found = {}
    for name, (profile, options) in CASES.items():
        model = small(profile, **options).eval()  # BatchNorm by running statistics, which processes share
        out, gradients = parallel_step(model, two_rank_batch(model, slice(rank * N, (rank + 1) * N)))
        found[name] = out.loss.item(), gradients
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [name for name in CASES if name != "alone"])
def test_two_processes_equal_one_with_the_joined_batch(name, ranks):
    profile, options = CASES[name]
    model = small(profile, **options).eval()
    loss = model(**batch(model, 2 * N)).loss
    loss.backward()
    (loss0, grads0), (loss1, grads1) = ranks[0][name], ranks[1][name]
    assert (loss0 + loss1) / 2 == pytest.approx(loss.item(), abs=1e-4)
    assert abs(loss0 - loss1) > 1e-4  # the share of each differs
    assert len(ranks[0]["gloria"][1]) > 10
    for key, p in model.named_parameters():
        scale = p.grad.abs().max()
        assert torch.allclose(grads0[key], grads1[key], atol=1e-6), key
        assert torch.allclose(grads0[key], p.grad, atol=1e-4 * float(scale) + 1e-6), key


def test_without_gathering_a_process_has_only_its_own_negatives(ranks):
    model = small(gather=False).eval()
    for rank in range(2):
        expected = model(**two_rank_batch(model, slice(rank * N, (rank + 1) * N))).loss
        assert ranks[rank]["alone"][0] == pytest.approx(expected.item(), abs=1e-5)
    assert expected < cross_entropy(torch.zeros(1, 2 * N), torch.zeros(1, dtype=torch.long))
