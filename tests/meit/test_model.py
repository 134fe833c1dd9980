"""The MEIT model as a whole: encoder, LoRA, freezing, save/load, generation, and the compared fusions."""

import json

import pytest
import torch
from tiny_models import CACHE_ROUTE, FAMILIES, VOCAB, Tokenizer, batch, build, config
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from meit.baselines.flamingo import FlamingoFusion
from meit.encoder import EcgEncoder, EncoderConfig, EncoderForWords
from meit.model import FUSIONS, MeitModel, ModelConfig

ONE_PER_FAMILY = [n for n in FAMILIES if n not in ("llama", "mistral")]
MATCHED = {  # LoRA-wrapped modules per layer, as the public code's name lists hit them (reference: "Fusion" table)
    "gpt2": {"c_attn"},
    "gpt_neo": {"q_proj", "k_proj", "v_proj"},
    "gpt_neox": {"query_key_value"},
    "gptj": {"q_proj", "k_proj", "v_proj"},
    "bloom": {"query_key_value"},
    "opt": {"q_proj", "k_proj", "v_proj"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def run_without_cache(model, inputs, n_new):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        for _ in range(n_new):
            token = model(ids, mask, ecg=inputs["ecg"]).logits[:, -1].argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    return ids[:, -n_new:]


# ---------------------------------------------------------------- encoder


@pytest.mark.parametrize(
    ("d_h", "norm", "expected"),
    [(128, True, 20_422_144), (64, True, 20_290_880), (256, True, 20_684_672), (96, False, 20_352_224)],
)
def test_published_encoder_has_the_published_size(d_h, norm, expected):
    with torch.device("meta"):
        encoder = EcgEncoder(64, [3, 4, 6, 3], 1, d_h, norm)
    assert n_parameters(encoder) == expected
    assert n_parameters(encoder) - n_parameters(encoder.projector) == 15_959_168


def test_encoder_stages_at_5000_samples():
    with torch.device("meta"):
        encoder = EcgEncoder(64, [3, 4, 6, 3], 1, 128).eval()
        x = encoder.stem(torch.empty(2, 12, 5000))
        shapes = [tuple(x.shape[1:])]
        for block in encoder.stages:
            x = block(x)
            shapes.append(tuple(x.shape[1:]))
        assert encoder(torch.empty(2, 12, 5000)).shape == (2, 1, 128)
    assert [shapes[i] for i in (0, 3, 7, 13, 16)] == [(64, 2500), (256, 2500), (512, 1250), (1024, 625), (2048, 313)]


def test_encoder_gives_unit_vectors_and_several_tokens_keep_the_order_of_time():
    torch.manual_seed(0)
    encoder = EcgEncoder(4, [1, 1, 1, 1], 4, 16).eval()
    ecg = torch.randn(2, 12, 640)
    e = encoder(ecg)
    assert e.shape == (2, 4, 16)
    assert torch.allclose(e.norm(dim=-1), torch.ones(2, 4), atol=1e-6)
    ecg[:, :, 480:] += 3.0  # the last quarter moves the last token most
    shift = (encoder(ecg) - e).norm(dim=-1)
    assert (shift.argmax(1) == 3).all() and (shift[:, 0] < shift[:, 3] / 10).all()
    assert EcgEncoder(4, [1, 1, 1, 1], 5, None)(ecg).shape == (2, 5, 128)


def test_head_size_sets_the_ecg_vector():
    assert build("gptj", llm={"hidden_size": 64, "heads": 2}).encode(torch.randn(1, 12, 80)).shape == (1, 1, 32)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in build("gpt_neox").encoder.projector)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in build("opt").encoder.projector) == 2


# ---------------------------------------------------------------- LoRA and freezing


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_lora_targets(name):
    lora = [n for n, m in build(name).llm.named_modules() if hasattr(m, "lora_A")]
    assert {n.rsplit(".", 1)[-1] for n in lora} == MATCHED[name.split("-")[0]]
    assert len(lora) == 2 * len(MATCHED[name.split("-")[0]])


def test_rank_zero_trains_the_whole_llm():
    model = build("llama", "none", lora_r=0)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("lora" in n for n, _ in model.named_parameters())
    assert model.encoder is None


def test_lora_starts_as_the_plain_llm():
    torch.manual_seed(0)
    model = MeitModel.build(config("llama"), Tokenizer())
    b = [p for n, p in model.named_parameters() if "lora_B" in n]
    a = [p for n, p in model.named_parameters() if "lora_A" in n]
    assert b and all((p == 0).all() for p in b) and all(p.std() > 0 for p in a)


# ---------------------------------------------------------------- loss


def test_loss_is_the_mean_over_labelled_tokens():
    model, inputs = build("llama-gqa"), batch("right")
    labels = inputs["input_ids"].clone()
    labels[:, :4] = -100
    labels[inputs["attention_mask"] == 0] = -100
    out = model(**inputs, labels=labels)
    terms = []
    for row in range(3):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                terms.append(-out.logits[row, t - 1].log_softmax(-1)[labels[row, t]])
    assert len(terms) == 7 + 4 + 0
    assert torch.allclose(out.loss, torch.stack(terms).mean(), atol=1e-6)
    assert model(**inputs, labels=torch.full_like(labels, -100)).loss == 0


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_round_trip_without_the_backbone(name, tmp_path):
    model, inputs = build(name), batch("left")
    model.train()(**inputs)  # moves BatchNorm statistics
    model.eval().save_pretrained(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = MeitModel.from_pretrained(tmp_path)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    assert model.generate(**inputs, max_new_tokens=4).tolist() == loaded.generate(**inputs, max_new_tokens=4).tolist()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == trained
    tied = model.llm.get_output_embeddings().weight is model.llm.get_input_embeddings().weight
    assert (loaded.llm.get_output_embeddings().weight is loaded.llm.get_input_embeddings().weight) == tied
    assert loaded.config.encoder_blocks == [1, 1, 1, 1] and loaded.config.eos_token_id == 2
    loaded.train()(**inputs, labels=inputs["input_ids"]).loss.backward()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_round_trip_of_every_fusion(fusion, tmp_path):
    model, inputs = build("gpt2", fusion, n_ecg_tokens=3), batch("left")
    if fusion == "flamingo":
        open_gates(model)
    model.save_pretrained(tmp_path)
    loaded = MeitModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


class BiggerTokenizer(Tokenizer):
    """The backbone's tokenizer with an added pad token."""

    def __len__(self):
        return VOCAB + 1


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_backbone_from_a_folder_in_its_own_format(name, tmp_path):
    """What the paper tier does with a hub name: AutoModelForCausalLM weights, resized for the pad token."""
    source = build(name, "none", lora_r=0).llm
    source.save_pretrained(tmp_path)
    cfg = ModelConfig(backbone=str(tmp_path), encoder_width=2, encoder_blocks=[1, 1, 1, 1], lora_r=2)
    model = MeitModel.build(cfg, BiggerTokenizer()).eval()
    text = {k: v for k, v in batch("none").items() if k != "ecg"}
    with torch.no_grad():
        logits = model(**text).logits
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(**text).logits
    assert logits.shape[-1] == VOCAB + 1
    assert (logits[..., :VOCAB] - expected).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "meit")
    assert MeitModel.from_pretrained(tmp_path / "meit").llm.config.vocab_size == VOCAB + 1
    with pytest.raises(ValueError, match=r"model\.llm is for scratch backbones"):
        MeitModel.build(ModelConfig(backbone=str(tmp_path), llm={"layers": 2}), Tokenizer())


def test_backbone_from_a_text_only_checkpoint(tmp_path):
    language_model, inputs = build("llama-gqa", "none", lora_r=0), batch("left")
    language_model.save_pretrained(tmp_path / "lm")
    small = {"encoder_width": 2, "encoder_blocks": [1, 1, 1, 1], "lora_r": 2}
    model = MeitModel.build(ModelConfig(backbone=str(tmp_path / "lm"), **small), Tokenizer()).eval()
    text = {k: v for k, v in inputs.items() if k != "ecg"}
    with torch.no_grad():
        assert (model(**text).logits - language_model(**text).logits).abs().max() < 1e-5
        assert (model(**inputs).logits - model(**text).logits).abs().max() > 1e-4
    assert not model.llm.get_input_embeddings().weight.requires_grad
    model.save_pretrained(tmp_path / "meit")
    with pytest.raises(ValueError, match="already has an ECG or LoRA"):
        MeitModel.build(ModelConfig(backbone=str(tmp_path / "meit"), **small), Tokenizer())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["mistral-gqa-window", "bloom"])
def test_bf16_backbone(name, fusion, tmp_path):
    """model.dtype bfloat16: LLM and LoRA in bf16, encoder in fp32; trains and generates with and without autocast."""
    build(name, "none", lora_r=0).llm.save_pretrained(tmp_path)
    small = {"encoder_width": 2, "encoder_blocks": [1, 1, 1, 1], "lora_r": 2, "dtype": "bfloat16"}
    model, inputs = MeitModel.build(ModelConfig(str(tmp_path), fusion, **small), Tokenizer()), batch("left")
    assert model.llm.dtype == torch.bfloat16
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32
        assert model.eval().generate(**inputs, max_new_tokens=2).shape == (3, 2)
    if model.encoder is not None:
        assert model.encoder.stem[0].weight.dtype == torch.float32
        assert model.encoder.stem[0].weight.grad.isfinite().all()


# ---------------------------------------------------------------- generation


def test_generation_ends_at_the_end_token():
    model, inputs = build("llama"), batch("left")
    free = run_without_cache(model, inputs, 6)
    model.config.eos_token_id = int(free[0, 2])  # row 0 ends at its third token at the latest
    out = model.generate(**inputs, max_new_tokens=6)
    for row, text in enumerate(out.tolist()):
        end = text.index(model.config.eos_token_id) if model.config.eos_token_id in text else len(text)
        assert text[:end] == free[row, :end].tolist()
        assert all(token == 0 for token in text[end + 1 :])
    one = {k: v[:1] for k, v in inputs.items()}
    assert model.generate(**one, max_new_tokens=6).shape[1] <= 3, "stops when all rows have ended"


def test_generation_refuses_what_would_be_wrong():
    model = build("llama")
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(**batch("right"))
    with pytest.raises(RuntimeError, match=r"generate\(\) in training mode .* model\.eval\(\)"):
        model.train().generate(**batch("left"))
    with pytest.raises(RuntimeError, match="attention_to_ecg"):
        model.attention_to_ecg(batch("left"))


# ---------------------------------------------------------------- compared fusions


def open_gates(model):
    with torch.no_grad():
        for block in model.fusion.blocks:
            block.attention_gate.fill_(0.8)
            block.ffw_gate.fill_(0.5)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@pytest.mark.parametrize("fusion", ["llava", "flamingo", "none"])
def test_compared_fusions_in_every_family(fusion, name):
    """Cached greedy = no-cache argmax with left padding; rows do not mix; the ECG counts (except without fusion)."""
    model, inputs = build(name, fusion, n_ecg_tokens=3), batch("left", n_tokens=9)
    if fusion == "flamingo":
        open_gates(model)
    model.config.eos_token_id = None
    expected = run_without_cache(model, inputs, 5)
    assert model.generate(**inputs, max_new_tokens=5).tolist() == expected.tolist()
    other = inputs | {"ecg": inputs["ecg"].flip(0)}
    with torch.no_grad():
        logits, changed = model(**inputs).logits, model(**other).logits
        alone = model(**{k: v[2:] for k, v in inputs.items()}).logits
        n_pads = int((inputs["attention_mask"][2] == 0).sum())
        unpadded = model(**{k: v[2:] if k == "ecg" else v[2:, n_pads:] for k, v in inputs.items()}).logits
    real = inputs["attention_mask"][2].bool()
    assert logits.shape == (3, 9, VOCAB) and n_pads > 4
    assert (logits[2] - alone[0])[real].abs().max() < 1e-5
    assert (logits[2, real] - unpadded[0]).abs().max() < 1e-5
    difference = (logits[2] - changed[2])[real].abs().amax(-1).min()
    assert difference == 0 if fusion == "none" else difference > 1e-4


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_closed_flamingo_gates_leave_the_llm_as_it_was(name):
    model, inputs = build(name, "flamingo"), batch("left")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs | {"ecg": None}).logits)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.fusion.blocks[0].attention_gate.grad.abs() > 0


def test_flamingo_blocks_stand_before_every_fourth_layer():
    model = build("llama", "flamingo", llm={"layers": 9})
    assert len(model.fusion.blocks) == 2  # before layers 3 and 7
    hooked = [i for i, layer in enumerate(model.llm.model.layers) if layer._forward_pre_hooks]
    assert hooked == [3, 7]
    assert len(build("llama", "flamingo").fusion.blocks) == 2  # each of 2 layers
    assert isinstance(model.fusion, FlamingoFusion)


def test_llava_equals_reading_the_tokens_as_words():
    model, inputs = build("llama-gqa", "llava", n_ecg_tokens=2), batch("none")
    with torch.no_grad():
        logits = model(**inputs).logits
        words = model.llm.get_input_embeddings()(inputs["input_ids"])
        ecg = model.fusion.mlp(model.encode(inputs["ecg"]))
        expected = model.llm(inputs_embeds=torch.cat([ecg, words], 1)).logits[:, 2:]
    assert (logits - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["llama", *CACHE_ROUTE])
@pytest.mark.parametrize("fusion", ["llava", "flamingo", "none"])
def test_gradient_checkpointing_of_the_compared_fusions(fusion, name):
    model, inputs = build(name, fusion), batch("right")
    if fusion == "flamingo":
        open_gates(model)

    def gradients():
        model.train().zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable()
    for n, g in gradients().items():
        assert torch.allclose(g, plain[n], atol=1e-7), n


# ---------------------------------------------------------------- settings and training


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"model\.fusion: 'qformer' is none of meit, llava, flamingo, none"):
        ModelConfig(fusion="qformer")
    with pytest.raises(ValueError, match="n_ecg_tokens"):
        ModelConfig(n_ecg_tokens=0)
    with pytest.raises(ValueError, match=r"model\.dtype: 'int8'"):
        ModelConfig(dtype="int8")
    with pytest.raises(ValueError, match="gpt2 has no grouped key/value heads"):
        build("gpt2", llm={"kv_heads": 2})
    with pytest.raises(ValueError, match=r"unknown key\(s\) \['depth'\]"):
        build("llama", llm={"depth": 2})
    with pytest.raises(ValueError, match="defined for fusion 'meit', not 'llava'"):
        build("llama", "llava").attention_to_ecg(batch("left"))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_trainer_learns_and_resumes(fusion, tmp_path):
    """The library's Trainer drives every fusion: only trained weights move, the loss falls, the checkpoint loads."""
    model = build("llama-gqa", fusion)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = batch("right")
    items = [{k: v[i % 3] for k, v in (inputs | {"labels": inputs["input_ids"]}).items()} for i in range(24)]
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        max_steps=12,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=12,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=items)
    trainer.train()
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert losses[-1] < 0.8 * losses[0]
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (not p.requires_grad), n
    loaded = MeitModel.from_pretrained(tmp_path / "checkpoint-12")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    assert json.loads((tmp_path / "checkpoint-12/config.json").read_text())["fusion"] == fusion


def test_encoder_learns_the_words_of_the_report_and_is_handed_on(tmp_path):
    torch.manual_seed(0)
    words = EncoderForWords(EncoderConfig(width=2, blocks=[1, 1, 1, 1], vocab_size=7))
    ecg = torch.randn(2, 12, 80)
    labels = torch.tensor([[-100, 3, 5, 3, -100], [-100, -100, 0, -100, -100]])
    out = words(ecg=ecg, labels=labels)
    present = torch.zeros(2, 7)
    present[0, [3, 5]] = present[1, 0] = 1  # each word once, pads never
    expected = -(present * out.logits.sigmoid().log() + (1 - present) * (1 - out.logits.sigmoid()).log()).sum() / 2
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in words.parameters())
    words.save_pretrained(tmp_path)
    sizes = {"encoder_width": 2, "encoder_blocks": [1, 1, 1, 1]}
    llm = {"hidden_size": 32, "layers": 1, "heads": 2}
    model = MeitModel.build(ModelConfig(encoder=str(tmp_path), llm=llm, **sizes), Tokenizer())
    for name, weight in words.encoder.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        MeitModel.build(ModelConfig(encoder=str(tmp_path), llm=llm, **(sizes | {"encoder_width": 4})), Tokenizer())
