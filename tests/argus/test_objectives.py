"""argus/objectives.py: losses against brute force; that each teaches an encoder something on 200 toy volumes."""

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from argus import objectives as o
from argus.encoder import VitEncoder, patchify
from argus.objectives import ClipModel, MaeModel, SupervisedModel, pos_weights, text_tower

SHAPE, PATCH = (16, 16, 16), (4, 4, 4)
N_TRAIN = 200


def toy(n=400, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """An elliptic body in air with up to three balls, each near its own place: volumes [n, 1, 16, 16, 16], which
    balls are there [n, 3]."""
    draw = torch.Generator().manual_seed(seed)
    there = (torch.rand(n, 3, generator=draw) < 0.4).float()
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij")
    size = torch.rand(n, 2, 1, 1, 1, generator=draw)
    volume = ((x / (0.7 + 0.25 * size[:, 0])) ** 2 + (y / (0.6 + 0.2 * size[:, 1])) ** 2 < 1).float() - 1
    for k, centre in enumerate(((-0.5, 0, -0.4), (0.5, 0.3, 0.3), (0, -0.5, 0.5))):
        at = torch.tensor(centre) + 0.3 * (torch.rand(n, 3, generator=draw) - 0.5)
        inside = sum((axis - at[:, i].view(-1, 1, 1, 1)) ** 2 for i, axis in enumerate((z, y, x))) < 0.09
        volume[inside & there[:, k].bool().view(-1, 1, 1, 1)] = 0.6
    volume += 0.05 * torch.randn(volume.shape, generator=draw)
    return volume.clamp(-1, 1).unsqueeze(1), there


def reports(there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A report of four tokens: begin, and for each ball "there" or "not there"."""
    ids = torch.cat([torch.ones(len(there), 1), 2 + 2 * torch.arange(3) + there], dim=1).long()
    return ids, torch.ones_like(ids)


def vit(seed=0) -> VitEncoder:
    torch.manual_seed(seed)
    return VitEncoder(SHAPE, PATCH, width=48, depth=2, heads=4, mlp=96)


def clip() -> ClipModel:
    return ClipModel(vit(), text_tower(8, 32, 1, 2, 8))


def models() -> dict[str, torch.nn.Module]:
    return {"mae": MaeModel(vit(), 0.75, 24, 1, 4), "clip": clip(), "supervised": SupervisedModel(vit(), torch.ones(3))}


def batch(n=6) -> dict:
    volume, there = toy(n)
    ids, mask = reports(there)
    return {"volume": volume, "findings": there, "findings_mask": there >= 0, "text_ids": ids, "text_mask": mask,
            "study": torch.arange(n), "input_ids": ids}  # fmt: skip


def fit(model, inputs: dict, steps: int, lr=2e-3, n_batch=24) -> None:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        rows = torch.randint(N_TRAIN, (n_batch,))
        optimiser.zero_grad()
        model(**{k: v[rows] for k, v in inputs.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


# --- all


@pytest.mark.parametrize("name", ["mae", "clip", "supervised"])
def test_every_parameter_gets_a_gradient(name):
    model = models()[name].train()
    model(**batch()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["mae", "clip", "supervised"])
def test_the_state_dict_holds_all_that_a_model_is(name):
    """Fixed positions and label weights too: a model is loaded into an empty one."""
    model, empty = models()[name].eval(), models()[name].eval()
    for tensor in empty.state_dict().values():
        tensor.zero_()
    empty.load_state_dict(model.state_dict())
    losses = []
    for each in (model, empty):
        torch.manual_seed(3)
        losses.append(each(**batch()).loss.item())
    assert losses[0] == losses[1]


# --- masked autoencoder


def test_positions_are_sines_and_cosines_of_the_three_axes():
    grid, width = (2, 3, 4), 20
    table = o.sincos_3d(grid, width)
    assert table.shape == (24, 20) and len({tuple(row.tolist()) for row in table}) == 24
    for n, (d, h, w) in enumerate(np.ndindex(grid)):
        row = []
        for place in (d, h, w):
            rates = [10000 ** (-i / 3) for i in range(3)]
            row += [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]
        assert table[n].tolist() == pytest.approx([*row, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match=r"model\.mae_width"):
        o.sincos_3d(grid, 5)


def test_visible_tokens_are_a_uniform_draw():
    torch.manual_seed(0)
    keep = o.draw_keep(4000, 10, 0.75)
    assert keep.shape == (4000, 2)  # int(10 * 0.25)
    assert (keep[:, 0] < keep[:, 1]).all()
    share = torch.bincount(keep.flatten(), minlength=10) / 4000
    assert share.tolist() == pytest.approx([0.2] * 10, abs=0.03)
    assert o.draw_keep(2, 4096, 0.75).shape == (2, 1024) and o.draw_keep(2, 100, 0.9).shape == (2, 10)
    for mask in (1.0, 0.0, 0.99):
        with pytest.raises(ValueError, match=r"model\.mae_mask"):
            o.draw_keep(2, 10, mask)


def test_targets_are_normalised_per_patch():
    volume, _ = toy(3)
    volume[0, :, :4, :4, :4] = -1  # air without noise
    target = o.normalised_patches(volume, PATCH)
    assert target.isfinite().all() and not target[0, 0].any()
    rest = target[1:]
    assert torch.allclose(rest.mean(-1), torch.zeros(2, 64), atol=1e-5)
    assert torch.allclose(rest.var(-1), torch.ones(2, 64), atol=0.05)


def test_mae_loss_is_the_mean_over_masked_patches_only(monkeypatch):
    model, volume = models()["mae"], toy(4)[0]
    error = torch.randn(4, 64, 1, generator=torch.Generator().manual_seed(5)).expand(-1, -1, 64)
    target = o.normalised_patches(volume, PATCH)
    drawn = []
    monkeypatch.setattr(model, "reconstruct", lambda volume, keep: drawn.append(keep) or target + error)
    loss = model(volume=volume).loss.item()
    keep = drawn[0]
    assert keep.shape == (4, 16)
    masked = [float(error[b, n, 0]) ** 2 for b in range(4) for n in range(64) if n not in keep[b].tolist()]
    assert len(masked) == 4 * 48 and loss == pytest.approx(np.mean(masked), rel=1e-5)


def test_reconstruction_sees_nothing_of_what_is_masked():
    model, volume = models()["mae"].eval(), toy(1)[0]
    other = toy(1, seed=9)[0]
    keep = torch.arange(0, 64, 4)[None]
    patches = patchify(other, PATCH).clone()
    patches[0, keep[0]] = patchify(volume, PATCH)[0, keep[0]]
    mixed = patches.unflatten(1, (4, 4, 4)).unflatten(4, PATCH).permute(0, 1, 4, 2, 5, 3, 6).reshape(volume.shape)
    a, b, c = (model.reconstruct(v, keep) for v in (volume, mixed, other))
    assert a.shape == (1, 64, 64) and torch.equal(a, b) and not torch.allclose(a, c, atol=1e-4)


def test_mae_tells_masked_positions_apart():
    """Without decoder positions, all masked patches of a volume would be filled in alike."""
    model = models()["mae"].eval()
    keep = torch.arange(0, 64, 4)[None]
    filled = model.reconstruct(toy(1)[0], keep)[0]
    masked = filled[[n for n in range(64) if n % 4]]
    assert torch.pdist(masked.detach()).min() > 1e-4


def textures(n: int, seed: int) -> torch.Tensor:
    """Volumes [n, 1, 8, 8, 8] of eight patches with the same texture, one of six: what is masked shows in the rest."""
    six = torch.randn(6, *PATCH, generator=torch.Generator().manual_seed(1)).repeat(1, 2, 2, 2)
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(6, (n,), generator=draw)
    return (0.3 * six[kind] + 0.05 * torch.randn(n, 8, 8, 8, generator=draw)).clamp(-1, 1).unsqueeze(1)


def test_mae_learns_to_fill_in_from_what_it_sees():
    """What a position looks like on average explains nothing here (an error of 5/6); the visible patches do."""
    train, test = textures(N_TRAIN, 0), textures(200, 2)
    torch.manual_seed(0)
    model = MaeModel(VitEncoder((8, 8, 8), PATCH, width=32, depth=1, heads=4, mlp=64), 0.75, 24, 1, 4)
    fit(model, {"volume": train}, 60, lr=1e-2)
    target = o.normalised_patches(test, PATCH)
    by_position = (target - o.normalised_patches(train, PATCH).mean(0)).square().mean()
    torch.manual_seed(1)
    with torch.no_grad():
        assert model(volume=test).loss < 0.5 * by_position


# --- contrast


def clip_by_hand(model, inputs, same: set[tuple[int, int]]) -> float:
    """Both cross-entropies term by term; `same`: pairs of rows that are no negatives of each other."""
    with torch.no_grad():
        v, u = model.image(inputs["volume"]), model.text(inputs["text_ids"], inputs["text_mask"])
    logits = (math.exp(model.log_scale.item()) * v @ u.T).double()
    n, total = len(v), 0.0
    for i in range(n):
        others = [j for j in range(n) if j == i or (i, j) not in same]
        for row in (logits[i], logits[:, i]):
            total += math.log(sum(math.exp(row[j]) for j in others)) - float(row[i])
    return total / (2 * n)


def test_clip_loss_counts_no_report_as_a_negative_of_itself():
    model = clip().eval()
    inputs = batch(7)
    inputs["text_ids"] = torch.tensor([[1, 2, 4, 6], [1, 3, 4, 6], [1, 2, 5, 6], [1, 2, 4, 7], [1, 3, 5, 6],
                                       [1, 3, 5, 7], [1, 3, 5, 7]])  # fmt: skip
    inputs["study"] = torch.tensor([0, 1, 2, 1, 4, 5, 6])  # 1 and 3: two reconstructions; 5 and 6: the same words
    found = model(**inputs)
    same = {(1, 3), (3, 1), (5, 6), (6, 5)}
    assert found.loss.item() == pytest.approx(clip_by_hand(model, inputs, same), abs=1e-4)
    assert abs(found.loss.item() - clip_by_hand(model, inputs, set())) > 1e-3
    assert found.logits.shape == (7, 7) and {tuple(p) for p in found.logits.isinf().nonzero().tolist()} == same


def test_two_processes_share_their_negatives(monkeypatch):
    """The loss of the joined batch is the mean of what the processes compute (gathering itself: tests/shared)."""
    model, inputs = clip().eval(), batch(8)
    inputs["study"][5] = 1  # of the other process
    whole = model(**inputs).loss.item()
    parts = []
    with torch.no_grad():
        v, u = model.image(inputs["volume"]), model.text(inputs["text_ids"], inputs["text_mask"])
    for number in range(2):
        rows = slice(4 * number, 4 * number + 4)
        every = iter([v, u, inputs["study"], o.fingerprints(inputs["text_ids"], inputs["text_mask"])])
        monkeypatch.setattr(o, "gather", lambda x, every=every: next(every))
        monkeypatch.setattr(o, "rank", lambda number=number: number)
        found = model(**{k: x[rows] for k, x in inputs.items()})
        assert found.logits.shape == (4, 8)
        parts.append(found.loss.item())
    assert np.mean(parts) == pytest.approx(whole, abs=1e-5)


def test_features_are_unit_rows_in_float32_under_autocast():
    model, inputs = clip().eval(), batch(4)
    with torch.autocast("cpu", torch.bfloat16):
        v, u = model.image(inputs["volume"]), model.text(inputs["text_ids"], inputs["text_mask"])
        assert model(**inputs).loss.dtype == torch.float32
    assert v.dtype == u.dtype == torch.float32 and v.shape == u.shape == (4, 48)
    for rows in (v, u):
        assert torch.allclose(rows.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_the_temperature_is_exponentiated_and_bounded():
    model = clip()
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)  # Not log(1 / 0.07)
    torch.nn.init.constant_(model.log_scale, 6.0)
    model.scale().sum().backward()
    assert model.scale().item() == pytest.approx(100, rel=1e-5) and model.log_scale.grad.item() > 0


def test_fingerprints_know_texts_whatever_their_padding():
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 9, 9], [6, 5, 0, 0], [5, 0, 6, 0], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    a, b, c, d, e = o.fingerprints(ids, mask).tolist()
    assert a == b == o.fingerprints(ids[:1, :2], mask[:1, :2]).item()
    assert len({a, c, d, e}) == 4
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 30, (3000, 20), generator=draw).unique(dim=0)
    assert len(o.fingerprints(texts, torch.ones_like(texts)).unique()) == len(texts)


def test_text_towers(tmp_path):
    tower = text_tower(50, 32, 2, 4, 16, pad_id=3)
    assert tower.config.num_hidden_layers == 2 and tower.config.pad_token_id == 3 and tower.pooler is None
    tower.save_pretrained(tmp_path)
    again = o.published_tower(str(tmp_path))
    assert again.pooler is None
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))


def test_clip_learns_to_find_the_report_of_a_volume():
    volume, there = toy()
    ids, mask = reports(there)
    model = clip()
    inputs = {"volume": volume, "text_ids": ids, "text_mask": mask, "study": torch.arange(len(ids))}
    fit(model, inputs, 130, lr=1.5e-3)
    texts = ids.unique(dim=0)
    with torch.no_grad():
        best = (model.image(volume[N_TRAIN:]) @ model.text(texts, torch.ones_like(texts)).T).argmax(1)
    found = (texts[best] == ids[N_TRAIN:])[:, 1:].float().mean(0)
    usual = torch.maximum(there[N_TRAIN:].mean(0), 1 - there[N_TRAIN:].mean(0))
    assert (texts[best] == ids[N_TRAIN:]).all(1).float().mean() > 0.3  # of 8 texts; the most frequent one has 0.21
    assert found.mean() > usual.mean() + 0.05


# --- supervision


def test_supervised_loss_by_hand():
    weights = torch.tensor([2.0, 5.0, 0.5])
    model = SupervisedModel(vit(), weights).eval()
    volume, there = toy(5)
    known = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    there[~known] = float("nan")
    found = model(volume=volume, findings=there, findings_mask=known, study=None)
    terms = []
    for i, k in known.nonzero().tolist():
        p = 1 / (1 + math.exp(-found.logits[i, k].item()))
        terms.append(-(weights[k].item() * math.log(p) if there[i, k] else math.log(1 - p)))
    assert found.logits.shape == (5, 3) and found.loss.item() == pytest.approx(np.mean(terms), rel=1e-4)
    found.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    nothing = model(volume=volume, findings=there, findings_mask=torch.zeros_like(known))
    assert nothing.loss.item() == 0  # a batch of sources without labels
    assert model(volume=volume).loss is None


def test_label_weights_are_negatives_over_positives(caplog):
    labels = np.array([[1, 0, np.nan], [0, 0, 1], [0, 0, np.nan], [0, np.nan, 0]])
    assert pos_weights(labels).tolist() == [3, 3, 1]  # no positive counts as one
    assert not caplog.records


def test_label_weights_far_from_the_published_ones_are_told(caplog):
    prevalence = 1 / (1 + np.array(o.CT_CLIP_WEIGHTS))
    labels = (np.arange(1000)[:, None] + 0.5) / 1000 < prevalence
    with caplog.at_level(logging.WARNING):
        assert pos_weights(labels).tolist() == pytest.approx(o.CT_CLIP_WEIGHTS, rel=0.05)
        assert not caplog.records
        labels[:, 9] = False
        pos_weights(labels)
    assert "Lung nodule 1000.0" in caplog.text and "Emphysema" not in caplog.text


def test_supervision_learns_the_labels():
    volume, there = toy()
    model = SupervisedModel(vit(), pos_weights(there[:N_TRAIN].numpy()))
    fit(model, {"volume": volume, "findings": there, "findings_mask": there >= 0}, 70, lr=3e-3)
    with torch.no_grad():
        scores = torch.cat([model(volume=part).logits for part in volume[N_TRAIN:].split(50)])
    auroc = [roc_auc_score(there[N_TRAIN:, k], scores[:, k]) for k in range(3)]
    assert np.mean(auroc) > 0.8


def test_learning_starts_near_what_chance_gives():
    """At random weights: the error of predicting noise about zero, and of a coin."""
    inputs = batch(6)
    found = {name: model.eval()(**inputs).loss.item() for name, model in models().items()}
    assert 0.9 < found["mae"] < 1.6
    assert found["supervised"] == pytest.approx(math.log(2), abs=0.15)
    assert found["clip"] < 4
