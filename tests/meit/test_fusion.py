"""MEIT's fusion, per backbone family, against attention written out here.

The reference runs the plain library model without any fusion; hooks replace what enters each layer's output projection
by attention computed in this file from the layer's projection outputs: rotary, ALiBi, windows, scales, masks and the
ECG pairs (from the merged weight matrices) are all spelled out. Nothing of meit.fusion is used by it.
"""

import copy

import pytest
import torch
from tiny_models import CACHE_ROUTE, D_H, FAMILIES, HEADS, LORA_ALPHA, LORA_R, WINDOW, D, Tokenizer, batch, build
from transformers import AutoModelForCausalLM

from meit.model import MeitModel, ModelConfig

TOLERANCE = 1e-5

LAYOUT = {  # layers, attention, query/key/value projections, output projection
    "gpt2": ("transformer.h", "attn", ["c_attn"], "c_proj"),
    "gpt_neo": ("transformer.h", "attn.attention", ["q_proj", "k_proj", "v_proj"], "out_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", ["query_key_value"], "dense"),
    "gptj": ("transformer.h", "attn", ["q_proj", "k_proj", "v_proj"], "out_proj"),
    "bloom": ("transformer.h", "self_attention", ["query_key_value"], "dense"),
    "opt": ("model.decoder.layers", "self_attn", ["q_proj", "k_proj", "v_proj"], "out_proj"),
    "llama": ("model.layers", "self_attn", ["q_proj", "k_proj", "v_proj"], "o_proj"),
    "mistral": ("model.layers", "self_attn", ["q_proj", "k_proj", "v_proj"], "o_proj"),
}


def plain_llm(model):
    """The same LLM as the library has it: LoRA merged into the weights by hand, eager attention, no fusion."""
    config = copy.deepcopy(model.llm.config)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    state = model.llm.state_dict()
    merged = {k.replace(".base_layer", ""): v.clone() for k, v in state.items() if "lora_" not in k}
    for key, a in state.items():
        if "lora_A" in key:
            delta = state[key.replace("lora_A", "lora_B")] @ a * (LORA_ALPHA / LORA_R)  # [out, in]
            name = key.replace(".lora_A.default", "")
            merged[name] += delta.T if config.model_type == "gpt2" else delta  # Conv1D stores [in, out]
    plain.load_state_dict(merged)
    return plain


def split_heads(x):
    return x.view(*x.shape[:2], -1, D_H).transpose(1, 2)  # [B, H, T, d_h]


def qkv(family, outputs):
    """Projection outputs [B, T, .] of a layer -> q [B, H, T, d_h], k, v [B, H_kv, T, d_h]."""
    if family == "gpt2":
        return [split_heads(x) for x in outputs[0].split(D, dim=-1)]
    if family in ("bloom", "gpt_neox"):
        heads = [outputs[0][..., 3 * D_H * h : 3 * D_H * (h + 1)] for h in range(HEADS)]
        return [torch.stack([x[..., D_H * i : D_H * (i + 1)] for x in heads], 1) for i in range(3)]
    return [split_heads(x) for x in outputs]


def rotate(family, x, positions):
    """Rotary code of x [B, H, T, d_h] at positions [B, T]."""
    n_rot = {"llama": D_H, "mistral": D_H, "gpt_neox": D_H // 4, "gptj": 2}.get(family, 0)
    if n_rot == 0:
        return x
    frequencies = 10000.0 ** (-torch.arange(0, n_rot, 2) / n_rot)
    angle = (positions[:, None, :, None] * frequencies).double()  # [B, 1, T, n_rot / 2]
    cos, sin = angle.cos().float(), angle.sin().float()
    out = x.clone()
    if family == "gptj":  # neighbouring pairs
        even, odd = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
        out[..., 0:n_rot:2], out[..., 1:n_rot:2] = even * cos - odd * sin, odd * cos + even * sin
    else:  # first half with second half
        half = n_rot // 2
        a, b = x[..., :half], x[..., half:n_rot]
        out[..., :half], out[..., half:n_rot] = a * cos - b * sin, b * cos + a * sin
    return out


def text_bias(family, layer, mask, positions, windowed):
    """What is added to the scores of text columns [B, H, T, T]: -inf where not seen, ALiBi for BLOOM."""
    t = mask.shape[1]
    i, j = torch.arange(t)[:, None], torch.arange(t)[None, :]
    seen = (j <= i) & mask.bool()[:, None, None, :]
    if windowed or (family == "gpt_neo" and layer % 2 == 1):
        seen = seen & (i - j < WINDOW)
    bias = torch.zeros(len(mask), HEADS, t, t)
    if family == "bloom":
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)])
        bias = bias + slopes[None, :, None, None] * positions[:, None, None, :]
    return bias.masked_fill(~seen, float("-inf"))


def reference(model, inputs, e, name, ecg_layers=(0, 1)):
    """Logits [B, T, V] and per layer the softmax mass on the ECG [B, H, T], with e [B, n, d_h]."""
    family = name.split("-")[0]
    mask, plain = inputs["attention_mask"], plain_llm(model)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    u = torch.cat([e] * HEADS, dim=-1)  # [B, n, d]
    layers, attention_name, projections, out_name = LAYOUT[family]
    captured, masses, hooks = {}, {}, []

    def attend(layer, attention):
        q, k, v = qkv(family, [captured[layer, p] for p in projections])
        q, k = rotate(family, q, positions), rotate(family, k, positions)
        k_e, v_e = k[:, :, :0], v[:, :, :0]
        if layer in ecg_layers:  # called on the module without hooks: merged weights and biases
            _, k_e, v_e = qkv(family, [attention.get_submodule(p).forward(u) for p in projections])
        repeat = HEADS // k.shape[1]
        keys, values = (torch.cat(x, 2).repeat_interleave(repeat, 1) for x in ((k_e, k), (v_e, v)))
        scores = q @ keys.transpose(-1, -2) * (1.0 if family == "gpt_neo" else D_H**-0.5)
        bias = text_bias(family, layer, mask, positions, name.endswith("window"))
        scores[..., k_e.shape[2] :] += bias
        weights = scores.softmax(-1).nan_to_num(0.0)  # pads in layers without ECG see nothing
        masses[layer] = weights[..., : k_e.shape[2]].sum(-1)
        return (weights @ values).transpose(1, 2).flatten(2)

    for layer, block in enumerate(plain.get_submodule(layers)):
        attention = block.get_submodule(attention_name)
        for p in projections:
            hook = lambda _m, _i, out, key=(layer, p): captured.__setitem__(key, out)  # noqa: E731
            hooks.append(attention.get_submodule(p).register_forward_hook(hook))
        swap = lambda _m, _i, layer=layer, attention=attention: (attend(layer, attention),)  # noqa: E731
        hooks.append(attention.get_submodule(out_name).register_forward_pre_hook(swap))
    kwargs = {} if family == "bloom" else {"position_ids": positions}
    with torch.no_grad():
        logits = plain(inputs["input_ids"], attention_mask=mask, **kwargs).logits
    return logits, masses


def on_text(x, inputs):
    return x[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_brute_force(name, padding):
    model, inputs = build(name), batch(padding)
    with torch.no_grad():
        logits = model(**inputs).logits
    e = model.encode(inputs["ecg"]).detach()
    expected, masses = reference(model, inputs, e, name)
    assert (on_text(logits, inputs) - on_text(expected, inputs)).abs().max() < TOLERANCE
    assert 0.01 < masses[0].mean() < 0.9, "the ECG column must matter, else this test shows nothing"
    measured = model.attention_to_ecg(inputs)["mass"]
    for layer, mass in masses.items():
        assert measured[layer] == pytest.approx(on_text(mass.mean(1), inputs).mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_several_ecg_tokens_and_chosen_layers(name):
    model, inputs = build(name, n_ecg_tokens=3, ecg_layers=[1]), batch("left")
    with torch.no_grad():
        logits = model(**inputs).logits
    e = model.encode(inputs["ecg"]).detach()
    assert e.shape == (3, 3, D_H)
    expected, _ = reference(model, inputs, e, name, ecg_layers=(1,))
    assert (on_text(logits, inputs) - on_text(expected, inputs)).abs().max() < TOLERANCE
    assert model.attention_to_ecg(inputs)["mass"][0] is None


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_or_absent_ecg_gives_the_plain_llm(name):
    model, inputs = build(name), batch("left")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    kwargs = {} if name == "bloom" else {"position_ids": positions}
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        base = plain_llm(model)(**text, **kwargs).logits
        absent = model(**text).logits
        prefix = model._context(inputs["ecg"])
        prefix.visible = False
        hidden = model.fusion.run(model.llm, **text, prefix=prefix).logits
        seen = model(**inputs).logits
        after = model(**text).logits  # nothing of the prefix may stay behind
    assert (on_text(absent, inputs) - on_text(base, inputs)).abs().max() < TOLERANCE
    assert (on_text(hidden, inputs) - on_text(base, inputs)).abs().max() < TOLERANCE
    assert (on_text(seen, inputs) - on_text(base, inputs)).abs().amax(-1).min() > 1e-3
    assert torch.equal(after, absent)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_depends_on_its_own_ecg_only(name):
    model, inputs = build(name), batch("left")
    other = inputs | {"ecg": inputs["ecg"].clone()}
    other["ecg"][1] = torch.randn(12, 80, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits, changed = model(**inputs).logits, model(**other).logits
        alone = model(**{k: v[2:] for k, v in inputs.items()}).logits
    real = inputs["attention_mask"][1].bool()
    assert (logits[1] - changed[1])[real].abs().amax(-1).min() > 1e-4, "each token, the first one too, sees the ECG"
    assert (logits[[0, 2]] - changed[[0, 2]]).abs().max() < 1e-6, "the other records do not"
    real = inputs["attention_mask"][2].bool()
    assert (logits[2] - alone[0])[real].abs().max() < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_greedy_equals_argmax_without_cache(name):
    model, inputs = build(name), batch("left", n_tokens=9)
    model.config.eos_token_id = None  # so that all 8 steps count
    n_new = 2 * WINDOW
    cached = model.generate(**inputs, max_new_tokens=n_new)
    ids, mask, ecg = inputs["input_ids"], inputs["attention_mask"], inputs["ecg"]
    with torch.no_grad():
        for _ in range(n_new):
            token = model(ids, mask, ecg=ecg).logits[:, -1].argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    assert cached.tolist() == ids[:, -n_new:].tolist()
    rows = [model.generate(**{k: v[i : i + 1, ...] for k, v in inputs.items()}, max_new_tokens=n_new) for i in range(3)]
    assert cached.tolist() == torch.cat(rows).tolist()
    assert len(set(cached.flatten().tolist())) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_no_new_parameters_in_the_llm(name):
    model = build(name)
    own = {n.replace(".base_layer", ""): p.shape for n, p in model.llm.named_parameters() if "lora_" not in n}
    assert own == {n: p.shape for n, p in plain_llm(model).named_parameters()}
    assert sum(p.numel() for p in model.fusion.parameters()) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_lora_and_encoder_and_nothing_frozen(name):
    model, inputs = build(name), batch("right")
    model.train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for parameter_name, p in model.named_parameters():
        trained = "lora_" in parameter_name or parameter_name.startswith("encoder.")
        assert p.requires_grad == trained, parameter_name
        assert (p.grad is not None) == trained, parameter_name
    last_layer_only = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
    assert last_layer_only == []
    assert model.encoder.stem[0].weight.grad.norm() > 1e-6


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bloom"])
def test_the_ecg_passes_through_the_lora_wrapped_modules(name):
    """In training the projection modules are called twice a layer (text, ECG), and once for the ECG in a generation."""
    model, inputs = build(name), batch("left")
    layers, attention, projections, _ = LAYOUT[name.split("-")[0]]
    calls = []
    module = model.llm.get_submodule(f"{layers}.0.{attention}.{projections[-1]}")
    assert "lora" in type(module).__module__
    module.register_forward_hook(lambda _m, args, _o: calls.append(tuple(args[0].shape[:2])))
    model(**inputs)
    assert calls == [(3, 1), (3, 11)]
    calls.clear()
    model.config.eos_token_id = None
    model.generate(**inputs, max_new_tokens=3)
    assert calls == [(3, 1), (3, 11), (3, 1), (3, 1)]


def gradients(model, inputs):
    model.train()
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in CACHE_ROUTE])
def test_gradient_checkpointing_changes_no_gradient(name):
    model, inputs = build(name), batch("right")
    plain = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    layers, attention, projections, _ = LAYOUT[name.split("-")[0]]
    calls = []
    first = model.llm.get_submodule(f"{layers}.0.{attention}.{projections[0]}")
    first.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients(model, inputs)
    assert len(calls) > (2 if name == "gpt2" or name == "gpt_neox" else 1), "the layer was not recomputed"
    assert plain.keys() == checkpointed.keys()
    for parameter_name, g in plain.items():
        assert torch.allclose(g, checkpointed[parameter_name], atol=1e-7), parameter_name


@pytest.mark.parametrize("name", CACHE_ROUTE)
def test_gradient_checkpointing_is_refused_on_the_cache_route(name):
    with pytest.raises(ValueError, match=f"not available for {name}"):
        build(name).gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="use_reentrant must be false"):
        build("llama").gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_low_precision(name, dtype):
    """Autocast (how it is trained) and weights cast as a whole (how DeepSpeed holds them) stay near fp32."""
    model, inputs = build(name), batch("left")
    with torch.no_grad():
        exact = on_text(model(**inputs).logits, inputs)
        with torch.autocast("cpu", dtype):
            autocast = on_text(model(**inputs).logits, inputs).float()
        cast = on_text(model.to(dtype)(**inputs).logits, inputs).float()
        assert model.generate(**inputs, max_new_tokens=2).shape == (3, 2)
    for low in (autocast, cast):
        assert low.isfinite().all()
        assert torch.nn.functional.cosine_similarity(low, exact, dim=-1).min() > 0.97


def test_wrong_layer_numbers_and_families_are_named():
    with pytest.raises(ValueError, match=r"ecg_layers: \[5\]"):
        build("llama", ecg_layers=[5])
    with pytest.raises(ValueError, match="ecg_layers is empty"):
        build("bloom", ecg_layers=[])
    with pytest.raises(ValueError, match="'bert' is not supported"):
        MeitModel.build(ModelConfig(backbone="scratch:bert"), Tokenizer())
    with pytest.raises(ValueError, match="head size 16 x 4 heads is not the hidden size 32"):
        build("llama", llm={"head_dim": 16})
