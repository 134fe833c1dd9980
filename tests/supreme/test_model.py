"""SuPreME as a whole: query sets that are swapped, controls, tokens left out, gradients, save and load."""

import pytest
import torch
from supreme_models import D_TEXT, N_TERMS, PATCH, SMALL, M, T, batch, small
from torch.nn import functional as F

from supreme import baselines
from supreme.losses import pos_weight
from supreme.model import CHOICES, EcgModel, ModelConfig, SupremeModel

CLASSES = torch.randn(9, D_TEXT, generator=torch.Generator().manual_seed(5))
BY_NEAREST = [{"head": "linear"}, *({"queries": q} for q in ("learned", "onehot", "random", "permuted"))]
MODES = [
    {}, {"encoder": "resnet"}, {"lead_embedding": False}, {"token_drop": 0.5}, {"query_positions": True},
    {"query_self_attention": True}, {"loss": "asymmetric"}, {"pos_weight": True}, {"normalise": "zscore"}, *BY_NEAREST,
]  # fmt: skip


def name_of(mode):
    return " ".join(f"{k}={v}" for k, v in mode.items()) or "default"


def trained(steps=3, **mode) -> SupremeModel:
    model = small(**mode)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        model(**(batch(seed=seed) | {"queries": batch()["queries"]})).loss.backward()
        optimizer.step()
    return model.eval()


# --- shapes, queries


def test_shapes():
    model, inputs = small().eval(), batch()
    assert model.features(inputs["ecg"]).shape == (6, 16)
    assert model.scores(inputs["ecg"], CLASSES).shape == (6, 9)
    assert model.scores(inputs["ecg"][:1], CLASSES[:1]).shape == (1, 1)
    out = model(**inputs)
    assert out.loss.shape == () and torch.equal(out.terms["labels"], out.loss) and not out.terms["labels"].requires_grad
    assert model.scores(inputs["ecg"], CLASSES).std() > 0 and model.step_samples == PATCH


def test_features_are_the_mean_of_all_normalised_tokens():
    model, ecg = small(token_drop=0.5).eval(), batch()["ecg"]
    x = (ecg - ecg.amin((1, 2), keepdim=True)) / (ecg.amax((1, 2), keepdim=True) - ecg.amin((1, 2), keepdim=True))
    assert torch.allclose(model.features(ecg), model.encoder(x).mean(1), atol=1e-5)


def test_query_sets_are_swapped_without_touching_weights():
    model, ecg = trained(), batch()["ecg"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model.scores(ecg, CLASSES)
    order = torch.randperm(9)
    assert torch.allclose(model.scores(ecg, CLASSES[order]), first[:, order], atol=1e-6)
    assert torch.allclose(model.scores(ecg, CLASSES[4:5]), first[:, 4:5], atol=1e-6)
    assert model.scores(ecg, torch.randn(106, D_TEXT)).shape == (6, 106)
    assert torch.equal(model.scores(ecg, CLASSES), first)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_new_class_close_to_a_term_scores_like_the_term():
    model, inputs = trained(), batch()
    terms = model.scores(inputs["ecg"], inputs["queries"])
    assert torch.allclose(model.scores(inputs["ecg"], 3 * inputs["queries"] + 1e-4), terms, atol=1e-2)


# --- loss


def test_loss_is_bce_of_the_scores_under_the_mask():
    model, inputs = small(), batch()
    logits = model.scores(inputs["ecg"], inputs["queries"])
    expected = F.binary_cross_entropy_with_logits(logits[inputs["mask"]], inputs["y"][inputs["mask"]])
    assert model(**inputs).loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("mode", [{}, {"head": "linear"}, {"loss": "asymmetric"}, {"pos_weight": True}], ids=name_of)
def test_masked_labels_have_no_influence(mode):
    inputs, results = batch(), []
    flipped = inputs | {"y": torch.where(inputs["mask"], inputs["y"], 1 - inputs["y"])}
    assert not torch.equal(flipped["y"], inputs["y"])
    for data in (inputs, flipped, inputs | {"y": inputs["y"].masked_fill(~inputs["mask"], torch.nan)}):
        model = small(**mode)
        loss = model(**data).loss
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


def test_positive_weights_follow_the_records_seen():
    model, first, second = small(pos_weight=True), batch(seed=1), batch(seed=2)
    model(**first)
    model.eval()
    model(**second)  # evaluation does not count
    model.train()
    logits = model.scores(second["ecg"], second["queries"])
    loss = model(**second).loss
    y, mask = (torch.cat([first[k], second[k]]) for k in ("y", "mask"))
    positive, negative = ((y == 1) & mask).sum(0), ((y == 0) & mask).sum(0)
    weight = (negative / positive.clamp(min=1)).sqrt()
    plain = F.binary_cross_entropy_with_logits(logits, second["y"], reduction="none", pos_weight=weight)
    assert loss.item() == pytest.approx(plain[second["mask"]].mean().item(), rel=1e-5)
    assert torch.equal(pos_weight(model.label_counts), weight) and weight.std() > 0
    assert model.bfloat16().label_counts.dtype == torch.int64  # 8 bits could not count


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_gradients_reach_everything_that_is_trained(mode):
    model, inputs = small(**mode), batch()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(**inputs).loss.backward()
    for name, p in model.named_parameters():
        assert p.requires_grad and p.grad is not None and p.grad.abs().max() > 0, name
    fixed = [name for name in before if name in ("own_queries", "order")]
    assert all(torch.equal(before[name], model.get_buffer(name)) for name in fixed)
    assert not inputs["queries"].requires_grad  # the text encoder is frozen: vectors only


def test_it_learns_a_mark_that_only_the_lead_tells():
    """Term 0 is a spike in lead I, term 1 the same spike in V6."""
    y = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0]]).repeat(16, 1)
    ecg = 0.1 * torch.randn(32, 12, T, generator=torch.Generator().manual_seed(0))
    ecg[y[:, 0] == 1, 0, ::PATCH] += 5
    ecg[y[:, 1] == 1, 11, ::PATCH] += 5
    model, mask, queries = small(normalise="zscore"), torch.ones(32, 5, dtype=torch.bool), batch()["queries"]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(ecg, y, mask, queries).loss.backward()
        optimizer.step()
    scores = model.eval().scores(ecg, queries)
    assert ((scores > 0) == (y == 1)).float().mean() > 0.95


# --- controls: a class is answered by its nearest term


@pytest.mark.parametrize("mode", BY_NEAREST, ids=name_of)
def test_a_class_is_answered_by_its_nearest_term(mode):
    model, inputs = trained(**mode), batch()
    logits = model.scores(inputs["ecg"], inputs["queries"])  # each term is nearest to itself
    nearest = [max(range(N_TERMS), key=lambda j: F.cosine_similarity(c, inputs["queries"][j], 0)) for c in CLASSES]
    assert torch.allclose(model.scores(inputs["ecg"], CLASSES), logits[:, nearest], atol=1e-6)
    assert 1 < len(set(nearest)) < 9
    inputs["mask"][:] = True
    expected = F.binary_cross_entropy_with_logits(logits, inputs["y"])
    assert model(**inputs).loss.item() == pytest.approx(expected.item(), abs=1e-6)  # trained as it is asked


@pytest.mark.parametrize("mode", BY_NEAREST, ids=name_of)
def test_what_was_never_trained_knows_no_terms(mode):
    with pytest.raises(ValueError, match="never trained"):
        small(**mode).eval().scores(batch()["ecg"], CLASSES)
    with pytest.raises(ValueError, match="4 queries for a model of 5"):
        small(**mode)(**(batch() | {"queries": CLASSES[:4]}))
    with pytest.raises(ValueError, match="n_classes"):
        SupremeModel.build(ModelConfig(**(SMALL | mode)), None, T, D_TEXT)


@pytest.mark.parametrize("queries", ["learned", "onehot", "random"])
def test_queries_without_meaning_ignore_the_text(queries):
    model, inputs = small(queries=queries), batch()
    assert torch.equal(model(**(inputs | {"queries": torch.randn(N_TERMS, D_TEXT)})).loss, model(**inputs).loss)
    assert not torch.equal(small(seed=1, queries=queries)(**inputs).loss, model(**inputs).loss)


def test_permuted_queries_are_the_texts_of_other_terms():
    model, inputs = small(queries="permuted"), batch()
    order = model.order
    assert sorted(order.tolist()) == list(range(N_TERMS)) and (order != torch.arange(N_TERMS)).all()
    text = small()
    shuffled = inputs | {"queries": inputs["queries"][order]}
    assert torch.allclose(model(**inputs).loss, text(**shuffled).loss)
    assert not torch.allclose(model(**inputs).loss, text(**inputs).loss)


@pytest.mark.parametrize("mode", [m for m in MODES if not {"encoder", "lead_embedding"} & m.keys()], ids=name_of)
def test_all_modes_start_from_the_same_encoder(mode):
    mine, default = small(**mode).encoder.state_dict(), small().encoder.state_dict()
    assert mine.keys() == default.keys() and all(torch.equal(mine[k], default[k]) for k in mine)


# --- tokens left out, normalisation


def test_tokens_are_left_out_in_training_only():
    model, inputs, counted = small(token_drop=0.75), batch(), []
    model.encoder.embed.linear.register_forward_hook(lambda _, args, out: counted.append(args[0].shape[1]))
    first, second = model(**inputs).loss, model(**inputs).loss
    assert first != second and counted == [3 * M] * 2
    model.eval()
    assert torch.equal(model(**inputs).loss, small()(**inputs).loss)
    model.scores(inputs["ecg"], CLASSES), model.features(inputs["ecg"])
    assert counted[2:] == [12 * M] * 3


@pytest.mark.parametrize("name", CHOICES["normalise"])
def test_normalisation(name):
    model, ecg = small(normalise=name), 3 + 2 * batch()["ecg"]
    x = model.normalise(ecg)
    if name == "none":
        assert torch.equal(x, ecg)
    elif name == "zscore":
        assert torch.allclose(x.mean((1, 2)), torch.zeros(6), atol=1e-5)
        assert torch.allclose(x.std((1, 2), correction=0), torch.ones(6), atol=1e-3)
    else:
        assert torch.allclose(x.amin((1, 2)), torch.zeros(6)) and torch.allclose(x.amax((1, 2)), torch.ones(6))
        assert torch.allclose(model.normalise(x), x, atol=1e-6)
    if name != "none":
        assert (model.normalise(torch.full((2, 12, T), 3.0)) == 0).all()
    assert model.normalise(ecg.half()).dtype == torch.float32


def test_normalisation_keeps_the_proportions_between_leads():
    ecg = batch()["ecg"]
    ecg[:, 4] *= 5
    for name in ("zscore", "joint_minmax"):
        x = small(normalise=name).normalise(ecg)
        assert torch.allclose(x[:, 4].std(-1) / x[:, 3].std(-1), ecg[:, 4].std(-1) / ecg[:, 3].std(-1), rtol=1e-3)


def test_shorter_records_and_refused_lengths():
    model = small().eval()
    assert model.scores(batch(t=3 * PATCH)["ecg"], CLASSES).shape == (6, 9)
    with pytest.raises(ValueError, match="ECGs of 170 samples"):
        model.features(batch(t=170)["ecg"])
    resnet = small(encoder="resnet").eval()
    assert resnet.features(batch(t=170)["ecg"]).shape == (6, 16) and resnet.step_samples == 1


# --- attention


@pytest.mark.parametrize("mode", [{}, {"queries": "learned"}], ids=name_of)
def test_attention_is_per_lead_and_segment(mode):
    model, ecg = trained(**mode), batch(t=3 * PATCH)["ecg"]
    weights = model.attention(ecg, CLASSES)
    assert weights.shape == (6, 9, 12, 3)
    assert torch.allclose(weights.sum((-1, -2)), torch.ones(6, 9), atol=1e-5)
    tokens = model.encoder(model.normalise(ecg))
    flat = model.cfn.attention(model.class_queries(CLASSES), tokens)
    assert torch.equal(weights[:, :, 7, 2], flat[:, :, 7 * 3 + 2])


@pytest.mark.parametrize("mode", [{"encoder": "resnet"}, {"head": "linear"}], ids=name_of)
def test_attention_needs_leads_and_queries(mode):
    with pytest.raises(ValueError, match=r"model\.encoder vit and model\.head cfn"):
        small(**mode).attention(batch()["ecg"], CLASSES)


# --- config, save and load, precision


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_round_trip(mode, tmp_path):
    model, inputs = trained(**mode), batch()
    model.save_pretrained(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    torch.manual_seed(99)
    loaded = baselines.load(tmp_path)
    assert type(loaded) is SupremeModel and not loaded.training and loaded.cfg == model.cfg
    assert torch.equal(loaded.scores(inputs["ecg"], CLASSES), model.scores(inputs["ecg"], CLASSES))
    assert torch.equal(loaded.features(inputs["ecg"]), model.features(inputs["ecg"]))
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    if mode.get("pos_weight"):
        assert torch.equal(loaded.label_counts, model.label_counts) and loaded.label_counts.any()


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_low_precision(mode):
    inputs, exact = batch(), small(**mode)
    torch.manual_seed(1)
    expected = exact(**inputs).loss
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        loss = small(**mode)(**inputs).loss
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=0.05)
    model = small(**mode).bfloat16()  # as DeepSpeed holds it
    model(**{k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().scores(inputs["ecg"], CLASSES).dtype == torch.float32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(({key: "other"}, rf"model\.{key}: 'other' is none of") for key in CHOICES),
        ({"token_drop": 1.0}, r"model\.token_drop"),
        ({"head": "linear", "queries": "random"}, r"model\.queries: 'random' needs model\.head cfn"),
        ({"loss": "asymmetric", "pos_weight": True}, r"model\.pos_weight"),
    ],
)
def test_impossible_configs_name_the_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SMALL | overrides))


def test_methods_are_those_that_can_be_built():
    assert set(CHOICES["method"]) == set(baselines.METHODS)
    assert all(issubclass(model, EcgModel) for model in baselines.METHODS.values())
