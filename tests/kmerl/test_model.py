"""K-MERL as a whole: tokens, dropped against masked, any subset of leads, gradients, save and load."""

import pytest
import torch
from small_models import D_TEXT, N_ENTITIES, PATCH, SMALL, M, T, batch, leads, small

from kmerl.baselines import build, load
from kmerl.heads import CardiacQueryNetwork
from kmerl.model import ModelConfig


def step(model, seed=7, **inputs):
    """One forward of a training step from a given state of torch's generator."""
    torch.manual_seed(seed)
    return model(**inputs)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------- sizes and shapes


def test_default_encoder_is_vit_tiny():
    """12 blocks of 12 d^2 + 13 d (MLP 4 d, all biases), the shared linear, 12 + 100 embeddings, the last norm."""
    d = 192
    with torch.device("meta"):
        model = build(ModelConfig(), 5000)
    assert n_parameters(model.encoder.blocks) == 12 * (12 * d * d + 13 * d) == 5_338_368
    assert n_parameters(model.encoder.tokens) == (50 * d + d) + (12 + 100) * d
    assert (
        n_parameters(model.encoder) == n_parameters(model.encoder.blocks) + n_parameters(model.encoder.tokens) + 2 * d
    )


def test_shapes():
    model, inputs = small().eval(), batch()
    assert model.features(inputs["ecg"]).shape == (6, 16)
    assert model.scores(inputs["ecg"], torch.randn(9, D_TEXT)).shape == (6, 9)
    assert model.scores(inputs["ecg"][:1], torch.randn(1, D_TEXT)).shape == (1, 1)
    out = step(model, **inputs)
    assert out.loss.shape == () and torch.allclose(out.loss, out.contrastive + out.entity)
    scores = model.scores(inputs["ecg"], inputs["queries"])
    assert torch.isfinite(scores).all() and scores.std() > 0


@pytest.mark.parametrize("overrides", [{}, {"tokens": "joint"}, {"p_full_leads": 1.0}, {"segment_masking": 0.0}])
def test_hidden_tokens_are_not_computed(overrides):
    model, inputs, counted = small(**overrides), batch(), []
    model.encoder.tokens.linear.register_forward_hook(lambda _, args, out: counted.append(args[0].shape[1]))
    for seed in range(20):
        step(model, seed, **inputs)
    n_segments = M if "segment_masking" in overrides else 8  # round(0.75 * 10)
    n_leads = {"tokens": (1,), "p_full_leads": (12,)}.get(next(iter(overrides), ""), (1, 2, 3))
    assert set(counted) == {n * n_segments for n in n_leads}
    counted.clear()
    model.features(inputs["ecg"], leads(0, 6))
    assert counted == [M if "tokens" in overrides else 2 * M]


# ---------------------------------------------------------------- dropped = masked


@pytest.mark.parametrize("tokens", ["lead", "joint"])
@pytest.mark.parametrize("seed", range(3))
def test_dropping_equals_masking(tokens, seed):
    inputs = batch()
    results = []
    for drop in (True, False):
        model = small(drop_tokens=drop, tokens=tokens)
        out = step(model, seed, **inputs)
        out.loss.backward()
        results.append((out, {n: p.grad for n, p in model.named_parameters()}))
    (dropped, grads), (masked, masked_grads) = results
    assert torch.allclose(dropped.contrastive, masked.contrastive, atol=1e-5)
    assert torch.allclose(dropped.entity, masked.entity, atol=1e-5)
    for name, grad in grads.items():
        assert torch.allclose(grad, masked_grads[name], atol=1e-5), name


# ---------------------------------------------------------------- leads


def test_leads_are_exchangeable_with_their_embeddings():
    model, inputs = small().eval(), batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    available = leads(0, 3, 7, 11)
    before = model.scores(inputs["ecg"], inputs["queries"], available)
    ecg, moved = inputs["ecg"][:, order], available[order]
    wrong = model.scores(ecg, inputs["queries"], moved)
    with torch.no_grad():
        model.encoder.tokens.lead_emb.copy_(model.encoder.tokens.lead_emb[order].clone())
    after = model.scores(ecg, inputs["queries"], moved)
    assert torch.allclose(before, after, atol=1e-5)
    assert (before - wrong).abs().max() > 1e-3  # the embeddings say which lead is which


def test_without_lead_embedding_leads_are_anonymous():
    model, inputs = small(lead_embedding=False).eval(), batch()
    assert model.encoder.tokens.lead_emb is None
    shuffled = inputs["ecg"][:, torch.randperm(12)]
    assert torch.allclose(model.features(inputs["ecg"]), model.features(shuffled), atol=1e-5)


@pytest.mark.parametrize("tokens", ["lead", "joint"])
@pytest.mark.parametrize("rows", [(0,), (1, 4), (0, 1, 6, 7, 8, 9, 10, 11), tuple(range(12))])
def test_missing_leads_do_not_matter(rows, tokens):
    model, inputs = small(tokens=tokens).eval(), batch()
    available = leads(*rows)
    other = inputs["ecg"].clone()
    other[:, ~available] = 100 * torch.randn_like(other[:, ~available])
    for ecg in (inputs["ecg"], other):
        features = model.features(ecg, available)
        scores = model.scores(ecg, inputs["queries"], available)
        if ecg is inputs["ecg"]:
            expected = features, scores
    assert torch.allclose(features, expected[0], atol=1e-5) and torch.allclose(scores, expected[1], atol=1e-5)


def test_published_normalisation_leaks_the_range_of_hidden_leads():
    model, inputs = small(normalise="joint_minmax").eval(), batch()
    other = inputs["ecg"].clone()
    other[:, 5] *= 10
    assert not torch.allclose(model.features(inputs["ecg"], leads(0)), model.features(other, leads(0)), atol=1e-3)


def test_all_leads_is_the_default_and_training_on_few_leads_leaves_it_open():
    model, inputs = small(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for seed in range(3):
        step(model, seed, **inputs).loss.backward()
        optimizer.step()
    model.eval()
    everything = model.scores(inputs["ecg"], inputs["queries"])
    assert torch.allclose(everything, model.scores(inputs["ecg"], inputs["queries"], leads(*range(12))))
    assert torch.isfinite(everything).all()
    assert not torch.allclose(everything, model.scores(inputs["ecg"], inputs["queries"], leads(0)), atol=1e-4)


# ---------------------------------------------------------------- length


def test_shorter_records():
    model, inputs = small().eval(), batch(t=3 * PATCH)
    assert model.features(inputs["ecg"]).shape == (6, 16)
    assert step(model, **inputs).loss.isfinite()
    with torch.no_grad():  # time embeddings beyond the third segment play no part
        before = model.features(inputs["ecg"])
        model.encoder.tokens.time_emb[3:] += 1
    assert torch.equal(before, model.features(inputs["ecg"]))


@pytest.mark.parametrize("t", [T + PATCH, PATCH - 1, PATCH + 1])
def test_other_lengths_are_refused(t):
    with pytest.raises(ValueError, match=f"ECGs of {t} samples: the model takes 1 to {M} segments of {PATCH}"):
        small().features(torch.randn(2, 12, t))


# ---------------------------------------------------------------- normalisation


def test_normalisation():
    model, ecg = small(), batch()["ecg"]
    whole = model.normalise(ecg)
    assert torch.allclose(whole.amin((1, 2)), torch.zeros(6)) and torch.allclose(whole.amax((1, 2)), torch.ones(6))
    some = model.normalise(ecg, leads(2, 3))[:, 2:4]
    assert torch.allclose(some.amin((1, 2)), torch.zeros(6)) and torch.allclose(some.amax((1, 2)), torch.ones(6))
    assert torch.allclose(model.normalise(whole), whole, atol=1e-6)
    assert (model.normalise(torch.full((2, 12, T), 3.0)) == 0).all()
    assert torch.equal(small(normalise="none").normalise(ecg), ecg)


@pytest.mark.parametrize("rows", [(2, 3), tuple(range(12))])
def test_zscore_over_available_leads(rows):
    model, ecg, kept = small(normalise="available_zscore"), 3 + 2 * batch()["ecg"], leads(*rows)
    some = model.normalise(ecg, kept)[:, kept]
    assert torch.allclose(some.mean((1, 2)), torch.zeros(6), atol=1e-5)
    assert torch.allclose(some.std((1, 2), correction=0), torch.ones(6), atol=1e-3)
    each = model.normalise(ecg, kept.expand(6, -1))
    assert torch.equal(each, model.normalise(ecg, kept))
    assert (model.normalise(torch.full((2, 12, T), 3.0), kept) == 0).all()


def test_training_sees_the_range_of_kept_leads_only():
    model, inputs, fed = small(masked_leads=[11], segment_masking=0.0), batch(), []
    model.encoder.tokens.linear.register_forward_hook(lambda _, args, out: fed.append(args[0]))
    step(model, **inputs)
    low, high = fed[0].amin((1, 2)), fed[0].amax((1, 2))
    assert torch.allclose(low, torch.zeros(6), atol=1e-6) and torch.allclose(high, torch.ones(6), atol=1e-6)


# ---------------------------------------------------------------- queries


def test_scores_do_not_depend_on_the_other_queries():
    model, inputs = small().eval(), batch()
    alone = model.scores(inputs["ecg"], inputs["queries"][2:3])
    assert torch.allclose(model.scores(inputs["ecg"], inputs["queries"])[:, 2:3], alone, atol=1e-6)
    talking = small(query_self_attention=True).eval()
    alone = talking.scores(inputs["ecg"], inputs["queries"][2:3])
    assert not torch.allclose(talking.scores(inputs["ecg"], inputs["queries"])[:, 2:3], alone, atol=1e-5)


def test_records_do_not_depend_on_the_batch():
    model, inputs = small(projection_norm="batch").eval(), batch()
    scores = model.scores(inputs["ecg"], inputs["queries"])
    assert torch.allclose(scores[3:4], model.scores(inputs["ecg"][3:4], inputs["queries"]), atol=1e-6)


def test_attention_weights():
    model, inputs = small().eval(), batch()
    weights, lead, segment = model.attention(inputs["ecg"], inputs["queries"], leads(1, 8))
    assert weights.shape == (6, N_ENTITIES, 2 * M)
    assert torch.allclose(weights.sum(-1), torch.ones(6, N_ENTITIES), atol=1e-5)
    assert lead.tolist() == [1] * M + [8] * M and segment.tolist() == list(range(M)) * 2
    assert small(tokens="joint").eval().attention(inputs["ecg"], inputs["queries"])[1].unique().tolist() == [-1]
    with pytest.raises(ValueError, match="entity_loss 0"):
        small(entity_loss=0.0).attention(inputs["ecg"], inputs["queries"])


def test_attention_weights_are_those_that_were_used():
    """With one layer and one head, and nothing after the attention, the output is the weighted sum of the values."""
    torch.manual_seed(0)
    network = CardiacQueryNetwork(D_TEXT, 16, 8, layers=1, heads=1, mlp=8, dropout=0.0).eval()
    attention, seen = network.layers[0].cross_attention, []
    memory, queries = torch.randn(2, 7, 16), torch.randn(3, D_TEXT)
    used = []
    attention.register_forward_hook(lambda module, args, out: used.append((args[1], out)))
    network(queries, memory, seen=seen)
    (normed, out), (weights,) = used[0], seen
    values = attention.kv(normed).chunk(2, dim=-1)[1]
    assert torch.allclose(attention.out(weights @ values), out, atol=1e-5)


# ---------------------------------------------------------------- losses, gradients


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tokens": "joint"}, {"lead_embedding": False}, {"contrastive_loss": 0.0}, {"entity_loss": 0.0},
     {"query_self_attention": True}],
)  # fmt: skip
def test_gradients_reach_everything(overrides):
    model, inputs = small(masked_leads=[0], segment_masking=0.0, **overrides), batch()
    step(model, **inputs).loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_branches_without_a_loss_are_not_built():
    inputs = batch()
    no_contrast = small(contrastive_loss=0.0)
    assert no_contrast.text_projection is None and step(no_contrast, **inputs).contrastive is None
    no_entities = small(entity_loss=0.0).eval()
    assert no_entities.query_network is None and step(no_entities, **inputs).entity is None
    cosines = no_entities.scores(inputs["ecg"], inputs["queries"], leads(0))
    assert cosines.shape == (6, N_ENTITIES) and cosines.min() < 0 and cosines.abs().max() <= 1 + 1e-6


def test_loss_weights():
    inputs = batch()
    out = step(small(entity_loss=3.0, contrastive_loss=0.5), **inputs)
    assert torch.allclose(out.loss, 0.5 * out.contrastive + 3 * out.entity)


def test_it_learns_a_lead_specific_mark():
    """Entity 0 is a spike in lead I, entity 1 the same spike in V6: only the lead embedding tells them apart."""
    torch.manual_seed(0)
    y = torch.tensor([[1, 0], [0, 1]]).repeat(16, 1)
    ecg = 0.1 * torch.randn(32, 12, T)
    ecg[y[:, 0] == 1, 0, ::PATCH] += 5
    ecg[y[:, 1] == 1, 11, ::PATCH] += 5
    model, queries = small(masked_leads=[0], contrastive_loss=0.0), torch.randn(2, D_TEXT)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(ecg, entities=y, queries=queries).loss.backward()
        optimizer.step()
    scores = model.eval().scores(ecg, queries)
    assert ((scores > 0) == (y == 1)).float().mean() > 0.95


# ---------------------------------------------------------------- config, save and load


@pytest.mark.parametrize("overrides", [{}, {"tokens": "joint", "projection_norm": "batch"}, {"entity_loss": 0.0}])
def test_round_trip(overrides, tmp_path):
    model, inputs = small(**overrides), batch()
    step(model, **inputs)  # moves BatchNorm statistics
    model.eval().save_pretrained(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    torch.manual_seed(99)
    loaded = load(tmp_path)
    assert type(loaded) is type(model) and not loaded.training and loaded.cfg == model.cfg
    for available in (None, leads(0, 1)):
        args = inputs["ecg"], inputs["queries"], available
        assert torch.equal(loaded.scores(*args), model.scores(*args))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no checkpoint there"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type 'bert' is none of kmerl, merl"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "clip"}, r"model\.method: 'clip'"),
        ({"encoder": "resnet"}, r"model\.encoder: 'resnet' does not go with method kmerl"),
        ({"tokens": "word"}, r"model\.tokens: 'word' is none of lead, joint"),
        ({"normalise": "z"}, r"model\.normalise: 'z'"),
        ({"segment_masking": 1.0}, r"model\.segment_masking"),
        ({"entity_loss": 0.0, "contrastive_loss": 0.0}, "nothing to train"),
        ({"method": "merl", "contrastive_loss": 0.0}, "nothing to train"),
    ],
)
def test_impossible_configs_name_the_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SMALL | overrides))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width of 16 cannot be divided into 3 heads"):
        small(heads=3)


def test_bf16_autocast_trains_in_float32_losses():
    model, inputs = small(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = step(model, **inputs)
    exact = step(model, **inputs)
    assert out.loss.dtype == torch.float32
    assert torch.allclose(out.loss, exact.loss, rtol=0.05)
