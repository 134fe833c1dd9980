"""The model as a whole: where the visual tokens stand, what is trained, stages, save and load, generation."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from argus.compress import BUILD
from argus.llm import scratch_config
from argus.model import PRETRAIN, ArgusModel, ModelConfig, make_encoder, start_encoder
from argus.pretrain import EncoderPretraining

SHAPE, VOCAB = [16, 32, 32], 61
LLM = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2}
SMALL = {"patch": [4, 8, 8], "width": 24, "depth": 2, "heads": 2, "mlp": 48, "lora_r": 4, "lora_dropout": 0.0}
SMALL |= {"mae_width": 24, "mae_depth": 1, "mae_heads": 2}
SMALL |= {"text_width": 16, "text_depth": 1, "text_heads": 2, "text_tokens": 16}
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


class Tokenizer:
    """What the models ask of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self):
        return VOCAB


class NoBos(Tokenizer):
    bos_token_id = None


def build(seed=0, tokenizer=None, **settings):
    """A model in eval mode whose weights, LoRA's B too, are large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    llm = {} if "backbone" in settings else {"llm": LLM}
    model = ArgusModel.build(ModelConfig(**(SMALL | llm | settings)), SHAPE, tokenizer or Tokenizer())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2 and not name.startswith("encoder.positions"):
                p.normal_(0, 0.15)
    return model.eval()


def batch(seed=0, left=False, bos=True):
    """Two rows of 11 and 7 tokens with a loss on all but the first four, and their volumes."""
    g = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.long)
    labels = torch.full((2, 11), -100)
    for row, n in enumerate((11, 7)):
        real = torch.randint(3, VOCAB, (n,), generator=g)
        if bos:
            real[0] = Tokenizer.bos_token_id
        place = slice(11 - n, 11) if left else slice(0, n)
        ids[row, place], mask[row, place] = real, 1
        labels[row, place] = torch.cat([torch.full((4,), -100), real[4:]])
    volume = torch.rand((2, 1, *SHAPE), generator=g) * 2 - 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "volume": volume}


def prompts(seed=0):
    inputs = batch(seed, left=True)
    del inputs["labels"]
    return inputs


def joined(model, inputs, row):
    """[1, S, H]: BOS, visual tokens and the rest of one row put together by hand, without padding."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row] == 1]
    text = model.llm.get_input_embeddings()(ids)
    visual = model.look(inputs["volume"][row : row + 1])[0]
    n = int(model.config.bos_token_id is not None)
    return torch.cat([text[:n], visual, text[n:]])[None]


# ---------------------------------------------------------------- the sequence and its loss


@pytest.mark.parametrize("tokenizer", [Tokenizer, NoBos])
@pytest.mark.parametrize("left", [False, True])
def test_visual_tokens_stand_after_bos_and_the_loss_is_on_the_report(tokenizer, left):
    model, inputs = build(tokenizer=tokenizer()), batch(left=left, bos=tokenizer is Tokenizer)
    total = count = 0.0
    with torch.no_grad():
        out = model(**inputs)
        for row in range(2):
            logits = model.llm(inputs_embeds=joined(model, inputs, row)).logits[0].log_softmax(-1)
            real = inputs["input_ids"][row][inputs["attention_mask"][row] == 1]
            for t in range(4, len(real)):  # token t stands at t + M and is predicted one before
                total -= logits[t + model.compressor.n_tokens - 1, real[t]].item()
                count += 1
    assert out.loss.item() == pytest.approx(total / count, abs=1e-5)


def test_logits_are_kept_where_there_is_a_label_only():
    model, inputs = build(), batch()
    with torch.no_grad():
        some = model(**inputs).logits
        every = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    n = model.compressor.n_tokens
    assert every.shape == (2, 11 + n, VOCAB)
    counts = (inputs["labels"] != -100).sum(1).tolist()
    assert counts[0] == 7 and some.shape == (sum(counts), VOCAB)
    rows = [every[row, n + 3 : n + 3 + count] for row, count in enumerate(counts)]
    torch.testing.assert_close(some, torch.cat(rows))


@pytest.mark.parametrize("name", [*BUILD, "no_image"])
def test_every_arm_trains_what_it_should(name):
    model, inputs = build(compressor=name).train(), batch()
    model(**inputs).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    got = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert got == trained
    lora = {n for n in trained if n.startswith("llm.")}
    assert {n.split(".")[-4] for n in lora} == LINEAR and all("lora_" in n for n in lora) and len(lora) == 28
    parts = {n.split(".")[0] for n in trained}
    assert parts == ({"llm"} if name == "no_image" else {"llm", "encoder", "compressor"})


@pytest.mark.parametrize("name", BUILD)
def test_every_arm_trains_its_compressor_alone_in_stage_1(name):
    model, inputs = build(compressor=name, train_vit=False, train_llm=False).train(), batch()
    model(**inputs).loss.backward()
    got = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert got == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in got} == {"compressor"}


def test_the_report_depends_on_the_volume_of_its_own_row():
    model, inputs = build(), batch()
    with torch.no_grad():
        logits = model(**inputs).logits
        other = inputs | {"volume": torch.stack([inputs["volume"][0], -inputs["volume"][1]])}
        changed = model(**other).logits
        blind = build(compressor="no_image")
        same = torch.equal(blind(**inputs).loss, blind(**other).loss)
    n = int((inputs["labels"][0] != -100).sum())
    assert torch.equal(logits[:n], changed[:n]) and (logits[n:] - changed[n:]).abs().max() > 1e-3
    assert same, "an LLM without image never looks"


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(("vit", "llm"), [(False, False), (True, False), (False, True)])
def test_frozen_parts_do_not_move(vit, llm):
    model, inputs = build(train_vit=vit, train_llm=llm).train(), batch()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        model(**inputs).loss.backward()
        optimizer.step()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"compressor"} | ({"encoder"} if vit else set()) | ({"llm"} if llm else set())
    assert any("lora_" in n for n in before) == llm, "a stage that freezes the LLM has no LoRA"


def test_full_tuning_trains_every_weight():
    model = build(lora_r=0).train()
    model(**batch()).loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_the_second_stage_goes_on_from_the_first(tmp_path):
    first, inputs = build(train_vit=False, train_llm=False), batch()
    first.save_pretrained(tmp_path)
    cfg = ModelConfig(**(SMALL | {"llm": LLM}))
    second = ArgusModel.next_stage(str(tmp_path), cfg, SHAPE).eval()
    with torch.no_grad():
        assert torch.equal(first(**inputs).loss, second(**inputs).loss), "LoRA starts at nothing"
    second.train()(**inputs).loss.backward()
    without_a_way = [n for n, p in second.named_parameters() if p.requires_grad and p.grad is None]
    assert not without_a_way and {n.split(".")[0] for n, p in second.named_parameters() if p.requires_grad} == {
        "llm", "encoder", "compressor"
    }  # fmt: skip
    full = ArgusModel.next_stage(str(tmp_path), ModelConfig(**(SMALL | {"lora_r": 0})), SHAPE)
    assert all(p.requires_grad for p in full.parameters())
    second.save_pretrained(tmp_path / "second")
    third = ArgusModel.next_stage(str(tmp_path / "second"), cfg, SHAPE)
    assert third.config.lora_r == 4
    for key, value in (("compressor", "avgpool"), ("factors", [1, 2, 2])):
        with pytest.raises(ValueError, match=rf"train\.init.*{key}"):
            ArgusModel.next_stage(str(tmp_path), ModelConfig(**(SMALL | {key: value})), SHAPE)
    with pytest.raises(ValueError, match="shape"):
        ArgusModel.next_stage(str(tmp_path), cfg, [32, 32, 32])
    with pytest.raises(ValueError, match=r"model\.lora_r"):
        ArgusModel.next_stage(str(tmp_path / "second"), ModelConfig(**(SMALL | {"lora_r": 8})), SHAPE)


def test_a_language_model_is_the_backbone_of_the_next_run(tmp_path):
    language, inputs = build(objective="language"), batch()
    assert language.encoder is None and all(p.requires_grad for p in language.parameters())
    language.save_pretrained(tmp_path)
    model = ArgusModel.build(ModelConfig(**(SMALL | {"backbone": str(tmp_path)})), SHAPE, Tokenizer()).eval()
    text = {k: inputs[k] for k in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        torch.testing.assert_close(model(**text).loss, language(**text).loss)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"train\.init"):
        ArgusModel.build(ModelConfig(**(SMALL | {"backbone": str(tmp_path / "whole")})), SHAPE, Tokenizer())


# ---------------------------------------------------------------- save and load


def test_a_checkpoint_is_the_same_model_with_the_same_parts_frozen(tmp_path):
    model, inputs = build(train_vit=False), batch()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = ArgusModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).loss, model(**inputs).loss)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2"])
def test_backbones_of_a_folder_in_bfloat16(kind, tmp_path):
    """The classes of the paper tier: tied embeddings (Llama 3.2), biased projections and no BOS (Qwen 2.5)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "vocab_size": VOCAB - 1}  # the tokenizer brings one more, the pad token
    config = LlamaConfig(**sizes, tie_word_embeddings=True) if kind == "llama-tied" else Qwen2Config(**sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    cfg = ModelConfig(**(SMALL | {"backbone": str(tmp_path / "llm"), "dtype": "bfloat16"}))
    tokenizer = NoBos() if kind == "qwen2" else Tokenizer()
    model = ArgusModel.build(cfg, SHAPE, tokenizer)
    assert model.llm.get_input_embeddings().num_embeddings == VOCAB
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    assert {d for n, d in kinds.items() if "lora_" in n or not n.startswith("llm.")} == {torch.float32}
    assert {d for n, d in kinds.items() if n.startswith("llm.") and "lora_" not in n} == {torch.bfloat16}
    inputs = batch(bos=kind != "qwen2")
    model.train()(**inputs).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1)
    model.eval().save_pretrained(tmp_path / "argus")
    again = ArgusModel.from_pretrained(tmp_path / "argus")
    assert {n: p.dtype for n, p in again.named_parameters()} == kinds
    with torch.no_grad():
        assert torch.equal(again(**inputs).loss, model(**inputs).loss)
        assert len(again.generate(**prompts(), max_new_tokens=3)) == 2


@pytest.mark.parametrize("objective", PRETRAIN)
def test_a_pretrained_vit_starts_the_next_run(objective, tmp_path):
    torch.manual_seed(0)
    cfg = ModelConfig(**(SMALL | {"objective": objective}))
    labels = torch.randint(0, 2, (40, 18)).numpy()
    trained, inputs = EncoderPretraining.build(cfg, SHAPE, Tokenizer(), labels), batch()
    inputs |= {"text_ids": inputs["input_ids"], "text_mask": inputs["attention_mask"], "study": torch.arange(2)}
    inputs |= {"findings": torch.ones(2, 18), "findings_mask": torch.ones(2, 18, dtype=torch.bool)}
    trained(**inputs).loss.backward()
    assert not [n for n, p in trained.named_parameters() if p.grad is None]
    trained.eval().save_pretrained(tmp_path)
    again = EncoderPretraining.from_pretrained(tmp_path)
    losses = []
    for model in (trained, again):
        torch.manual_seed(1)
        losses.append(model(**inputs).loss.item())
    assert losses[0] == losses[1]

    model = ArgusModel.build(ModelConfig(**(SMALL | {"llm": LLM, "encoder": str(tmp_path)})), SHAPE, Tokenizer())
    with torch.no_grad():
        assert torch.equal(model.encoder(inputs["volume"])[1], trained.encoder(inputs["volume"])[1])
    model.save_pretrained(tmp_path / "whole")
    larger = make_encoder(ModelConfig(**(SMALL | {"patch": [4, 16, 16]})), [32, 64, 64])
    start_encoder(larger, str(tmp_path / "whole"))  # of any stage, at another resolution
    constant = torch.full((1, 1, 32, 64, 64), 0.3)
    with torch.no_grad():
        patch = larger.embed(constant[:, :, :4, :16, :16].reshape(1, 1, -1))
        small = model.encoder.embed(constant[:, :, :4, :8, :8].reshape(1, 1, -1))
    torch.testing.assert_close(patch, small)


def test_a_vit_of_other_sizes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.encoder"):
        start_encoder(make_encoder(ModelConfig(**SMALL), SHAPE), str(tmp_path / "none"))
    build().save_pretrained(tmp_path / "whole")
    for key, value in (("depth", 1), ("width", 48), ("heads", 4)):
        with pytest.raises(ValueError, match=r"model\.encoder"):
            start_encoder(make_encoder(ModelConfig(**(SMALL | {key: value})), SHAPE), str(tmp_path / "whole"))
    build(objective="language").save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="holds no ViT"):
        start_encoder(make_encoder(ModelConfig(**SMALL), SHAPE), str(tmp_path / "lm"))


# ---------------------------------------------------------------- generation and attention


@pytest.mark.parametrize("name", ["pixel_shuffle_3d", "hilt", "no_image"])
def test_generation_equals_decoding_without_cache(name):
    model, inputs = build(compressor=name), prompts()
    new = model.generate(**inputs, max_new_tokens=6)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    done = torch.zeros(2, dtype=torch.bool)
    for step in range(new.shape[1]):
        with torch.no_grad():
            token = model(ids, mask, volume=inputs["volume"]).logits[:, -1].argmax(-1).masked_fill(done, 0)
        assert torch.equal(token, new[:, step])
        done |= token == Tokenizer.eos_token_id
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)


def test_a_row_generates_the_same_alone_and_in_a_batch():
    model, inputs = build(), prompts()
    together = model.generate(**inputs, max_new_tokens=8)
    short = {k: v[1:, 4:] if k != "volume" else v[1:] for k, v in inputs.items()}
    assert torch.equal(model.generate(**short, max_new_tokens=8)[0], together[1])


def test_nothing_but_padding_follows_the_end_token():
    model, inputs = build(), prompts()
    with torch.no_grad():
        model.config.eos_token_id = int(model.generate(**inputs, max_new_tokens=1)[0, 0])
    new = model.generate(**inputs, max_new_tokens=8)
    assert new[0, 0] == model.config.eos_token_id and not new[0, 1:].any()
    with pytest.raises(ValueError, match="left"):
        model.generate(**{k: v for k, v in batch().items() if k != "labels"})
    with pytest.raises(RuntimeError, match="eval"):
        model.train().generate(**inputs)


def test_attention_on_visual_tokens_is_that_of_the_library():
    model, inputs = build(), prompts()
    new = model.generate(**inputs, max_new_tokens=5)
    seen = model.attend(**inputs, new_ids=new)
    n = model.compressor.n_tokens
    assert seen.shape == (2, new.shape[1], n) and model.llm.config._attn_implementation == "sdpa"
    model.llm.set_attn_implementation("eager")
    for row in range(2):
        whole = torch.cat([inputs["input_ids"][row], new[row]])[None]
        mask = torch.cat([inputs["attention_mask"][row], torch.ones_like(new[row])])[None]
        embeds = joined(model, {"input_ids": whole, "attention_mask": mask, "volume": inputs["volume"][row:]}, 0)
        with torch.no_grad():
            weights = model.llm(inputs_embeds=embeds, output_attentions=True).attentions
        mean = torch.stack(weights).mean((0, 2))[0]  # [S, S]
        torch.testing.assert_close(seen[row], mean[-new.shape[1] - 1 : -1, 1 : 1 + n])
    with pytest.raises(ValueError, match="no_image"):
        build(compressor="no_image").attend(**inputs, new_ids=new)


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for enabled in (False, True):
        model, inputs = build().train(), batch()
        if enabled:
            model.activation_checkpointing_enable()
            assert model.encoder.gradient_checkpointing and model.llm.model.gradient_checkpointing
        model(**inputs).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None for g in grads[1].values())
    torch.testing.assert_close(grads[1], grads[0])


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gan"}, r"model\.objective"),
        ({"compressor": "pca"}, r"model\.compressor"),
        ({"dtype": "int8"}, r"model\.dtype"),
        ({"compressor": "no_image", "train_llm": False}, r"model\.train_llm"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_backbones_that_cannot_be(tmp_path):
    for settings, message in (
        ({"backbone": "scratch:gpt2"}, "scratch:llama"),
        ({"backbone": "scratch:llama", "llm": {"hidden": 3}}, r"model\.llm.*hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            ArgusModel.build(ModelConfig(**(SMALL | settings)), SHAPE, Tokenizer())
    with pytest.raises(FileNotFoundError, match=r"model\.backbone"):
        ArgusModel.build(ModelConfig(**(SMALL | {"backbone": str(tmp_path / "lm")})), SHAPE, Tokenizer())
    assert scratch_config({"hidden_size": 64, "kv_heads": 2}, Tokenizer()).num_key_value_heads == 2


def test_config_of_a_checkpoint_says_what_it_is(tmp_path):
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "argus" and config["shape"] == SHAPE and config["settings"]["patch"] == [4, 8, 8]
