"""The lead-wise encoder: tokens by the formula, tokens that are left out, leads, lengths; the ResNet beside it."""

import pytest
import torch
from supreme_models import PATCH, M, T, n_parameters
from torch import nn

from supreme.encoder import LeadEncoder, ResNetEncoder, keep_tokens
from supreme.model import ModelConfig, SupremeModel

N = 12 * M


def encoder(depth=2, seed=0, **options) -> LeadEncoder:
    torch.manual_seed(seed)
    model = LeadEncoder(16, depth, 2, 32, PATCH, M, **options).eval()
    with torch.no_grad():
        for table in (model.embed.lead_emb, model.embed.time_emb):
            if table is not None:
                table.normal_()
    return model


def ecgs(n=3, t=T, seed=0):
    return torch.randn(n, 12, t, generator=torch.Generator().manual_seed(seed))


def test_the_default_has_the_size_of_the_reference():
    with torch.device("meta"):
        model = SupremeModel.build(ModelConfig(), None, n_samples=5000)
    assert n_parameters(model.encoder) == 5_370_048
    assert n_parameters(model.encoder.blocks) == 12 * (12 * 192 * 192 + 13 * 192)  # MLP 4 d, all biases, no CLS token
    assert n_parameters(model.encoder.embed) == (50 * 192 + 192) + (12 + 100) * 192
    assert model.encoder.n_segments(5000) == 100


def test_tokens_are_the_formula():
    model, ecg = encoder(), ecgs()
    tokens, part = model.embed(ecg), model.embed
    for lead in (0, 5, 11):
        for m in (0, 3, M - 1):
            segment = ecg[:, lead, m * PATCH : (m + 1) * PATCH]
            expected = segment @ part.linear.weight.T + part.linear.bias + part.lead_emb[lead] + part.time_emb[m]
            assert torch.allclose(tokens[:, lead * M + m], expected, atol=1e-6)
    assert tokens.shape == (3, N, 16)


def test_the_output_is_normalised():
    out = encoder()(ecgs())
    assert out.shape == (3, N, 16)
    assert torch.allclose(out.mean(-1), torch.zeros(3, N), atol=1e-5)
    assert torch.allclose(out.std(-1, correction=0), torch.ones(3, N), atol=1e-3)


# --- tokens that are left out


def test_all_numbers_are_all_tokens():
    model, ecg = encoder(), ecgs()
    assert torch.allclose(model(ecg, torch.arange(N).expand(3, -1)), model(ecg), atol=1e-6)


def test_without_attention_dropping_equals_computing_everything():
    model, ecg = encoder(depth=0), ecgs()
    index = torch.stack([torch.randperm(N)[:30] for _ in range(3)])  # in any order
    picked = model(ecg).gather(1, index[:, :, None].expand(-1, -1, 16))
    assert torch.allclose(model(ecg, index), picked, atol=1e-6)


def test_dropped_tokens_are_not_computed_and_do_not_matter():
    model, ecg, counted = encoder(), ecgs(), []
    for module in (model.embed.linear, *model.blocks, model.norm):
        module.register_forward_hook(lambda _, args, out: counted.append(args[0].shape[:2]))
    index = keep_tokens(3, N, 0.75, "cpu")
    out = model(ecg, index)
    assert counted == [(3, N // 4)] * 4 and out.shape == (3, N // 4, 16)
    hidden = torch.ones(3, N, dtype=torch.bool).scatter(1, index, False)
    other = ecg + 9 * hidden.view(3, 12, M).repeat_interleave(PATCH, 2) * torch.randn_like(ecg)
    assert torch.equal(model(other, index), out) and not torch.allclose(model(other), model(ecg), atol=1e-2)
    visible = ecg + ~hidden.view(3, 12, M).repeat_interleave(PATCH, 2)
    assert not torch.allclose(model(visible, index), out, atol=1e-2)


def test_a_part_is_encoded_as_the_same_tokens_without_the_rest():
    """Leads II and V6 by number, against blocks run by hand on their tokens."""
    model, ecg = encoder(), ecgs()
    index = torch.cat([torch.arange(M) + M, torch.arange(M) + 11 * M]).expand(3, -1)
    x = model.embed(ecg).unflatten(1, (12, M))[:, [1, 11]].flatten(1, 2)
    for block in model.blocks:
        x = block(x)
    assert torch.allclose(model(ecg, index), model.norm(x), atol=1e-6)


@pytest.mark.parametrize(("drop", "n"), [(0.25, 72), (0.5, 48), (0.9, 10), (0.999, 1)])
def test_kept_tokens(drop, n):
    index = keep_tokens(50, N, drop, "cpu")
    assert index.shape == (50, n) and index.dtype == torch.int64 and index.min() >= 0 and index.max() < N
    assert (index.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in index.tolist()}) > 10  # each record its own
    assert keep_tokens(50, N, 0.0, "cpu") is None


def test_every_token_is_kept_equally_often():
    torch.manual_seed(0)
    share = torch.bincount(keep_tokens(4000, N, 0.5, "cpu").flatten(), minlength=N) / 4000
    assert (share - 0.5).abs().max() < 5 * 0.5 / 4000**0.5


# --- leads, lengths


def test_lead_order_matters_through_the_lead_embedding():
    model, ecg = encoder(), ecgs()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    before, wrong = model(ecg).mean(1), model(ecg[:, order]).mean(1)
    assert (before - wrong).abs().max() > 1e-2
    with torch.no_grad():
        model.embed.lead_emb.copy_(model.embed.lead_emb[order].clone())
    assert torch.allclose(model(ecg[:, order]).mean(1), before, atol=1e-5)


def test_without_lead_embedding_leads_are_anonymous():
    model, ecg = encoder(lead_embedding=False), ecgs()
    assert model.embed.lead_emb is None
    assert torch.allclose(model(ecg[:, torch.randperm(12)]).mean(1), model(ecg).mean(1), atol=1e-5)
    late = ecg.roll(3 * PATCH, -1)  # but time is known
    assert not torch.allclose(model(late).mean(1), model(ecg).mean(1), atol=1e-3)


def test_shorter_records_use_the_first_positions():
    model, ecg = encoder(), ecgs(t=3 * PATCH)
    before = model(ecg)
    with torch.no_grad():
        model.embed.time_emb[3:] += 1
    assert before.shape == (3, 36, 16) and torch.equal(model(ecg), before)


@pytest.mark.parametrize("t", [T + PATCH, PATCH - 1, PATCH + 1])
def test_other_lengths_are_refused(t):
    with pytest.raises(ValueError, match=f"ECGs of {t} samples: the model takes 1 to {M} segments of {PATCH}"):
        encoder()(ecgs(t=t))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width of 16 cannot be divided into 3 heads"):
        LeadEncoder(16, 1, 3, 32, PATCH, M)


def test_dropout_acts_in_training_only():
    model, ecg = encoder(dropout=0.3), ecgs()
    assert torch.equal(model(ecg), model(ecg)) and torch.equal(model(ecg), encoder()(ecg))
    model.train()
    assert not torch.allclose(model(ecg), model(ecg), atol=1e-3)


# --- ResNet


@pytest.mark.parametrize(("t", "n"), [(160, 10), (100, 7), (5000, 313)])
def test_resnet_tokens_are_time_steps(t, n):
    model = ResNetEncoder(16, channels=4).eval()
    out = model(ecgs(2, t))
    assert out.shape == (2, n, 16) and torch.allclose(out.mean(-1), torch.zeros(2, n), atol=1e-5)
    assert torch.equal(model(ecgs(2, t), keep_tokens(2, 12, 0.5, "cpu")), out)
    assert not torch.allclose(model(ecgs(2, t).flip(1)), out, atol=1e-3)


def test_resnet_has_the_published_stages():
    convs = [m for m in ResNetEncoder(192).modules() if isinstance(m, nn.Conv1d)]
    main = [c for c in convs if c.kernel_size != (1,)]
    assert len(main) == 17 and [c.out_channels for c in main[1::4]] == [64, 128, 256, 512]
    assert main[0].kernel_size == (7,) and sum(c.stride == (2,) for c in main) == 4
