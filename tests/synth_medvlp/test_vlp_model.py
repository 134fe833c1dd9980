"""The model as a whole: what is trained, what is kept, what is loaded, scores and maps."""

import copy
import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ResNetConfig, ResNetForImageClassification
from vlp_models import TEXTS, batch, config, images, small, tokeniser

from shared.losses import unit
from synth_medvlp import gloria
from synth_medvlp.encoders import load_weights
from synth_medvlp.model import OF_METHOD, PROFILES, ModelConfig, VlpModel, load, tokeniser_of

PROMPTS = ["there is edema", "there is cardiomegaly", "left pleural effusion"], ["no edema", "no cardiomegaly", "no"]


@pytest.fixture(scope="module", params=PROFILES)
def trained(request) -> VlpModel:
    """A few steps from new, so that BatchNorm has statistics."""
    model = small(request.param)
    step(model, 3)
    return model.eval()


def step(model: VlpModel, n: int = 1) -> None:
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for number in range(n):
        optimiser.zero_grad()
        model(**batch(model, seed=number)).loss.backward()
        optimiser.step()


# --- configuration


def test_profiles_fill_in_what_the_config_leaves_open():
    found = {name: ModelConfig(profile=name).resolved() for name in PROFILES}
    assert (found["convirt"].tau, found["convirt"].projection, found["convirt"].text.frozen_layers) == (0.1, 512, 6)
    assert (found["convirt"].weight_image, found["convirt"].weight_text, found["convirt"].pool) == (0.75, 0.25, "mean")
    mgca = found["convirt_mgca"]
    assert (mgca.tau, mgca.projection, mgca.head, mgca.pool, mgca.image.resize) == (0.07, 128, "bn", "cls", 299)
    assert (found["gloria"].image.resize, found["gloria"].temp1, found["gloria"].last_layers) == (299, 4.0, 4)
    assert ModelConfig(tau=0.2).resolved().tau == 0.2 and ModelConfig().tau is None
    assert config(text={"frozen_layers": 0}).resolved().text.frozen_layers == 0  # 0 is no null


@pytest.mark.parametrize(
    ("options", "key"),
    [({"profile": "clip"}, "model.profile"), ({"agg": "max"}, "model.agg"), ({"head": "x"}, "model.head"),
     ({"image": {"arch": "cnn"}}, "model.image.arch"), ({"image": {"normalise": "x"}}, "model.image.normalise")],
)  # fmt: skip
def test_unknown_choices_name_the_key(options, key):
    with pytest.raises(ValueError, match=key):
        config(**options)


@pytest.mark.parametrize(
    ("profile", "options", "key"),
    [("gloria", {"last_layers": 4}, "last_layers"), ("convirt", {"text": {"frozen_layers": 3}}, "frozen_layers")],
)
def test_more_layers_than_there_are(profile, options, key):
    with pytest.raises(ValueError, match=f"model.*{key}"):
        small(profile, **options)


# --- training


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("arch", ["resnet", "vit"])
def test_gradients_reach_all_that_is_trained(profile, arch):
    """The text head too."""
    model = small(profile, image={"arch": arch})
    model(**batch(model)).loss.backward()
    flat = ("key.bias", "local.weight") if arch == "vit" else ("key.bias",)  # a key's bias moves no attention weight
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if not name.endswith(flat):
            assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("arch", ["resnet", "vit"])
def test_weights_in_bfloat16_as_deepspeed_has_them(profile, arch):
    model = small(profile, image={"arch": arch})
    expected = model(**batch(model)).loss
    model = model.bfloat16()
    inputs = batch(model)
    loss = model(**inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=0.3)


@pytest.mark.parametrize("text", [{"frozen_layers": 1}, {"frozen": True}])
@pytest.mark.parametrize("profile", ["convirt", "gloria"])
def test_nothing_frozen_moves(profile, text):
    model = small(profile, text=text | {"dropout": 0.5})
    before = copy.deepcopy(model.state_dict())
    step(model, 2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    prefix = "text.backbone." if "frozen" in text else "text.backbone.encoder.layer.0."
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(prefix)} and frozen
    assert not moved & frozen
    assert any(n.startswith("image.") for n in moved) and any(n.startswith("on_top.") for n in moved)
    if "frozen" not in text:
        assert any(n.startswith("text.backbone.embeddings") for n in moved)  # as published


def test_a_frozen_tower_has_no_dropout():
    tokens = tokeniser()(TEXTS[:3])
    for frozen in (True, False):
        tower = small(text={"frozen": frozen, "dropout": 0.5}).train().text
        a, b = (tower(tokens.input_ids, tokens.attention_mask)[-1] for _ in range(2))
        assert torch.equal(a, b) == frozen


def test_one_seed_one_model_whatever_the_text_tower():
    a, b, c = small(seed=1), small(seed=1), small(seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.image.backbone.embedder.embedder.convolution.weight,
                           c.image.backbone.embedder.embedder.convolution.weight)  # fmt: skip


# --- checkpoints


def test_a_saved_model_is_the_same_model(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    loaded = load(tmp_path)
    assert not loaded.training and loaded.tokeniser.max_tokens == 24
    pixels = trained.pixels(images(4))
    for scorer in OF_METHOD[trained.cfg.method]:
        assert torch.allclose(
            loaded.scores(pixels, PROMPTS, scorer), trained.scores(pixels, PROMPTS, scorer), atol=1e-5
        )
    assert torch.allclose(loaded.maps(pixels, TEXTS[0]), trained.maps(pixels, TEXTS[0]), atol=1e-6)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in trained.named_parameters() if p.requires_grad
    }


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with"):
        load(tmp_path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders as the hub has them: a ResNet with its classifier, a BERT with its language-model head and tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(5)
    resnet = ResNetConfig(num_channels=3, embedding_size=4, hidden_sizes=[8, 8, 12, 16], depths=[1] * 4, num_labels=7)
    ResNetForImageClassification(resnet).save_pretrained(folder / "resnet")
    tokens = tokeniser()
    bert = BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40,
    )  # fmt: skip
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    tokens.save(folder / "bert")
    return folder


def test_hub_weights_are_loaded_and_counted(hub):
    cfg = config(image={"name": str(hub / "resnet"), "resize": 64}, text={"name": str(hub / "bert")})
    model = VlpModel.build(cfg, tokeniser_of(cfg.text, []))
    for tower, source in (("image", ResNetForImageClassification), ("text", BertForMaskedLM)):
        expected = source.from_pretrained(hub / {"image": "resnet", "text": "bert"}[tower]).base_model.state_dict()
        found = getattr(model, tower).backbone.state_dict()
        expected = {k: v for k, v in expected.items() if not k.startswith("pooler")}
        assert set(found) == set(expected) and model.loaded[tower] == len(expected)
        assert all(torch.equal(found[k], expected[k]) for k in found)
    assert model.scores(model.pixels(images(2)), PROMPTS).shape == (2, 3)  # one channel in, three read
    random = config(image={"name": str(hub / "resnet")}, text={"name": str(hub / "bert"), "pretrained": False})
    control = VlpModel.build(random, tokeniser())
    assert set(control.loaded) == {"image"} and control.text.backbone.config.max_position_embeddings == 40
    weight = "embeddings.word_embeddings.weight"
    assert not torch.equal(control.text.backbone.state_dict()[weight], model.text.backbone.state_dict()[weight])


def test_missing_tensors_are_an_error(hub, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(hub / "resnet" / "model.safetensors")
    gone = "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((hub / "resnet" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"1 tensors.*shortcut"):
        load_weights(small(image={"name": str(hub / "resnet")}).image.backbone, str(tmp_path))


def test_another_architecture_is_an_error(hub):
    with pytest.raises(ValueError, match=r"model\.image\.name"):
        config(image={"name": str(hub / "bert")}).image.architecture()
    with pytest.raises(ValueError, match=r"model\.text\.name"):
        config(text={"name": str(hub / "resnet")}).text.architecture(10)
    with pytest.raises(ValueError, match=r"model\.text\.max_tokens"):
        config(text={"name": str(hub / "bert"), "max_tokens": 50}).text.architecture(10)


# --- maps of the backbone


def test_maps_of_the_towers():
    for arch, shapes in (("resnet", [(4, 16), (4, 8), (8, 4), (12, 2)]), ("vit", [(16, 4), (16, 4)])):
        model = small(image={"arch": arch}).eval()
        maps = model.image_maps(model.pixels(images(2)))
        assert [(m.shape[1], m.shape[2]) for m in maps] == shapes
        v, cells, pooled = model.image_features(model.pixels(images(2)))
        assert torch.allclose(pooled, maps[-1].mean((2, 3))) and v.shape == (2, 6) and cells.shape[2] == shapes[-1][1]
    resized = small(image={"resize": 64}).eval()
    assert resized.image_maps(resized.pixels(images(2)))[-1].shape[2:] == (4, 4)


@pytest.mark.parametrize("arch", ["resnet", "vit"])
def test_rows_of_a_map_are_rows_of_the_image(arch):
    model = small(image={"arch": arch, "depth": 1}).eval()
    dark, dot = torch.full((1, 32, 32), 128, dtype=torch.uint8), torch.full((1, 32, 32), 128, dtype=torch.uint8)
    dot[0, 2:6, 26:30] = 255  # top right
    maps = [model.image_maps(model.pixels(x))[1 if arch == "resnet" else -1] for x in (dot, dark)]
    change = (maps[0] - maps[1]).abs().sum((0, 1))
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < len(change) / 2 <= column


# --- scores and maps


def test_shapes_and_default_scorers(trained):
    pixels = trained.pixels(images(5))
    default = trained.scores(pixels, PROMPTS)
    name = "gloria" if trained.cfg.profile == "gloria" else "cos"
    assert default.shape == (5, 3) and torch.equal(default, trained.scores(pixels, PROMPTS, name))
    assert default.dtype == torch.float32
    one_by_one = torch.cat([trained.scores(p[None], PROMPTS) for p in pixels])
    assert torch.allclose(default, one_by_one, atol=1e-4)  # no score depends on the other images
    single = torch.cat([trained.scores(pixels, ([p], [])) for p in PROMPTS[0]], 1)
    assert torch.allclose(default, single, atol=1e-4)  # nor on the other classes


def test_cosine_and_pair(trained):
    pixels = trained.pixels(images(4))
    v = unit(trained.image_features(pixels)[0])

    def of(texts):
        found = trained.text_features(trained.tokeniser(texts))
        return unit(found.total if trained.cfg.method == "gloria" else found)

    assert torch.allclose(trained.scores(pixels, PROMPTS, "cos"), v @ of(PROMPTS[0]).T, atol=1e-5)
    several = ([PROMPTS[0][:2], "no"], [["no", "the"], "is"])
    mean = torch.stack([(v @ of(PROMPTS[0][:2]).T).mean(1), v @ of(["no"])[0]], 1)
    assert torch.allclose(trained.scores(pixels, several, "cos"), mean, atol=1e-5)
    positive, negative = (torch.stack([unit(of(t).mean(0)) for t in side]) for side in
                          ((PROMPTS[0][:2], ["no"]), (["no", "the"], ["is"])))  # fmt: skip
    a, b = (v @ positive.T).exp(), (v @ negative.T).exp()
    assert torch.allclose(trained.scores(pixels, several, "pair"), a / (a + b), atol=1e-5)


def test_gloria_scores_are_both_parts():
    model = small("gloria").eval()
    pixels = model.pixels(images(4))
    found = {name: model.scores(pixels, PROMPTS, name) for name in OF_METHOD["gloria"]}
    assert torch.allclose(found["gloria"], (found["global"] + found["local"]) / 2, atol=1e-5)
    assert torch.equal(found["global"], found["cos"])
    assert not torch.allclose(found["gloria"], found["gloria_published"], atol=1e-4)
    best = torch.maximum(found["gloria"][:, 0], found["gloria"][:, 1])
    assert torch.allclose(model.scores(pixels, ([PROMPTS[0][:2]], []), "gloria")[:, 0], best, atol=1e-5)


@pytest.mark.parametrize(("profile", "scorer"), [("convirt", "local"), ("gloria", "none")])
def test_unknown_scorers(profile, scorer):
    model = small(profile).eval()
    with pytest.raises(ValueError, match=r"eval\.scorer"):
        model.scores(model.pixels(images(2)), PROMPTS, scorer)
    with pytest.raises(ValueError, match="negative prompts"):
        model.scores(model.pixels(images(2)), (PROMPTS[0], []), "pair")


def test_maps_of_convirt_are_the_head_on_each_cell():
    for profile in ("convirt", "convirt_mgca"):
        model = small(profile)
        step(model, 2)
        model.eval()
        pixels = model.pixels(images(3))
        last, u = model.image_maps(pixels)[-1], model.text_features(model.tokeniser([TEXTS[0]]))[0]
        found = model.maps(pixels, TEXTS[0])
        for i, y, x in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
            cell = unit(model.on_top.image_head(last[i, :, y, x][None]))[0]
            assert found[i, y, x].item() == pytest.approx((cell @ u).item(), abs=1e-5)
        with pytest.raises(ValueError, match="kind of map"):
            model.maps(pixels, TEXTS[0], "attention")


def test_maps_of_gloria():
    model = small("gloria").eval()
    pixels, text = model.pixels(images(3)), TEXTS[0]
    attention, cosines = model.maps(pixels, text), model.maps(pixels, text, "cosine")
    assert attention.shape == cosines.shape == (3, 4, 4)
    assert torch.allclose(attention.sum((1, 2)), torch.ones(3), atol=1e-5)  # a mean of weights over regions
    n = len(text.split())
    words = model.text_features(model.tokeniser([text])).words[0, 1 : n + 1]
    V = model.on_top.cells(model.image(pixels))
    expected = torch.stack([gloria.cosine(V[i].flatten(1).T, words).mean(1).view(4, 4) for i in range(3)])
    assert torch.allclose(cosines, expected, atol=1e-5)
    with pytest.raises(ValueError, match="kind of map"):
        model.maps(pixels, text, "gradient")


def test_the_checkpoint_says_how_it_was_made(tmp_path):
    small("gloria").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model"]["profile"] == "gloria" and saved["hidden_size"] == 16
    assert saved["image"]["model_type"] == "resnet" and saved["text"]["num_hidden_layers"] == 2
