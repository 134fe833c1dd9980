"""The linear probe against scikit-learn, its two protocols, classes that cannot be learnt, and out-of-fold scores."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from shared.metrics.classification import auroc_per_class, macro_auroc
from shared.metrics.probe import ProbeConfig, out_of_fold, probe


def _data(n=400, d=12, n_classes=4, seed=0):
    """Features whose first columns carry the classes, on very different scales."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * np.geomspace(100, 0.01, d) + 5
    signal = (features - 5) / np.geomspace(100, 0.01, d)
    labels = (signal[:, :n_classes] + 0.8 * rng.normal(size=(n, n_classes)) > 0.7).astype(np.uint8)
    order = rng.permutation(n)
    return features.astype(np.float32), labels, {"train": order[:200], "val": order[200:300], "test": order[300:]}


def test_one_weight_decay_equals_scikit_learn():
    features, labels, parts = _data()
    found = probe(features, labels, parts, ProbeConfig(weight_decays=[0.05]))
    train, test = (features[parts[p]].astype(np.float64) for p in ("train", "test"))
    mean, scale = train.mean(axis=0), train.std(axis=0)
    for c in range(labels.shape[1]):
        model = LogisticRegression(C=1 / (200 * 0.05), tol=1e-10, max_iter=2000)
        model.fit((train - mean) / scale, labels[parts["train"], c])
        np.testing.assert_allclose(found.scores[:, c], model.decision_function((test - mean) / scale), atol=2e-3)


def test_the_weight_decay_is_chosen_on_validation():
    features, labels, parts = _data()
    decays = [100.0, 0.1, 1e-4]
    found = probe(features, labels, parts, ProbeConfig(weight_decays=decays))
    alone = {d: probe(features, labels, parts, ProbeConfig(weight_decays=[d])) for d in decays}
    on_val = {d: np.mean(auroc_per_class(labels[parts["val"]], p.val_scores)) for d, p in alone.items()}
    assert found.info["weight_decay"] == max(on_val, key=on_val.get)
    assert found.info["val_auroc"] == pytest.approx(max(on_val.values()), abs=2e-3)
    np.testing.assert_allclose(found.scores, alone[found.info["weight_decay"]].scores, atol=2e-2)  # warm start
    hidden = labels.copy()
    hidden[parts["test"]] = 1 - hidden[parts["test"]]  # test labels have no influence
    np.testing.assert_array_equal(
        probe(features, hidden, parts, ProbeConfig(weight_decays=decays)).scores, found.scores
    )


def test_it_learns_and_the_scale_of_a_feature_does_not_matter():
    features, labels, parts = _data()
    found = probe(features, labels, parts, ProbeConfig())
    best = macro_auroc(labels[parts["test"]], features[parts["test"], :4]).value  # what the noise of the labels allows
    assert best - 0.06 < macro_auroc(labels[parts["test"]], found.scores).value < best + 0.02
    assert found.scores.shape == (100, 4) and found.scores.dtype == np.float32 and found.info["converged"]
    scaled = probe(features * np.geomspace(1, 1000, 12), labels, parts, ProbeConfig())
    np.testing.assert_allclose(scaled.scores, found.scores, atol=1e-3)
    constant = np.concatenate([features, np.full((400, 1), 3.0)], axis=1)
    np.testing.assert_allclose(probe(constant, labels, parts, ProbeConfig()).scores, found.scores, atol=1e-3)


def test_few_rows_and_classes_that_they_lack():
    features, labels, parts = _data()
    labels[:, 3] = 0
    labels[parts["test"][:5], 3] = 1  # no positive to learn from
    rows = parts["train"][labels[parts["train"], 1] == 0][:20]  # a draw without the second class
    found = probe(features, labels, parts, ProbeConfig(), rows)
    assert found.info["left_out"] == [1, 3] and found.classes == [0, 2] and found.info["n_train"] == 20
    assert np.isnan(found.scores[:, [1, 3]]).all() and np.isfinite(found.scores[:, [0, 2]]).all()
    same = probe(features, labels, parts | {"train": rows}, ProbeConfig())
    np.testing.assert_array_equal(same.scores, found.scores)
    published = probe(features, labels, parts, ProbeConfig(protocol="as_published", epochs=2), rows)
    assert np.isfinite(published.scores).all() and published.info["untrained"] == [1, 3]


def test_as_published_equals_the_recipe_written_out_and_picks_the_best_test_epoch():
    """Learning rate 1e-4 after 40 steps of iterations and epochs together; epoch of the greatest test AUROC."""
    features, labels, parts = _data()
    features = features / np.geomspace(100, 0.01, 12).astype(np.float32) - 1
    cfg = ProbeConfig(protocol="as_published", epochs=8, lr=0.05)
    state = torch.get_rng_state()
    found = probe(features, labels, parts, cfg)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used up"
    x = {p: torch.tensor(features[i]) for p, i in parts.items()}
    y = torch.tensor(labels[parts["train"]], dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        head = torch.nn.Linear(12, 4)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05, weight_decay=1e-4)
        scores, stepped = [], 0
        for _ in range(8):
            for batch in torch.randperm(200).split(16):
                optimizer.param_groups[0]["lr"] = 0.05 * (0.1 if stepped >= 40 else 1)
                optimizer.zero_grad()
                torch.nn.BCEWithLogitsLoss()(head(x["train"][batch]), y[batch]).backward()
                optimizer.step()
                stepped += 1
            stepped += 1
            scores.append(head(x["test"]).detach().numpy())
    on_test = [np.mean(auroc_per_class(labels[parts["test"]], s)) for s in scores]
    best = int(np.argmax(on_test))
    assert found.info["epoch"] == best + 1 and found.info["test_auroc"] == pytest.approx(on_test[best])
    np.testing.assert_allclose(found.scores, scores[best], atol=1e-5)


def test_out_of_fold_scores_come_from_the_other_folds():
    features, labels, _ = _data()
    folds = np.arange(400) % 10 + 1
    cfg = ProbeConfig(weight_decays=[0.1, 0.01])
    found = out_of_fold(features, labels, folds, cfg)
    assert np.isfinite(found.scores).all() and found.val_scores is None and len(found.info["weight_decay"]) == 10
    assert macro_auroc(labels, found.scores).value > 0.85
    parts = {"train": folds > 2, "val": folds == 1, "test": folds == 2}
    one = probe(features, labels, {p: np.flatnonzero(m) for p, m in parts.items()}, cfg)
    offset = one.scores - found.scores[folds == 2]
    np.testing.assert_allclose(offset - offset[:1], 0, atol=1e-5)  # the same logits up to each class's intercept
    changed = labels.copy()
    changed[folds == 2] = 1 - changed[folds == 2]
    np.testing.assert_array_equal(
        out_of_fold(features, changed, folds, cfg).scores[folds == 2], found.scores[folds == 2]
    )


def test_out_of_fold_scores_of_noise_are_at_chance():
    """With intercepts, the prevalence of the held-out fold would push the pooled AUROC of noise far below one half."""
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 12)) < 0.1).astype(np.uint8)
    features = rng.normal(size=(200, 3))
    folds = rng.permutation(200) % 10 + 1
    found = out_of_fold(features, labels, folds, ProbeConfig(weight_decays=[10.0]))
    assert np.mean(auroc_per_class(labels, found.scores)) == pytest.approx(0.5, abs=0.05)
    prevalence = np.array([[labels[(folds != k) & (folds != (k - 2) % 10 + 1)].mean(axis=0)] for k in folds])[:, 0]
    logit = np.log(prevalence / (1 - prevalence))
    assert np.mean(auroc_per_class(labels, found.scores + logit)) < 0.42


def test_a_class_that_one_fold_cannot_learn_is_left_out_everywhere():
    features, labels, _ = _data()
    folds = np.arange(400) % 10 + 1
    labels[:, 2] = 0
    labels[np.flatnonzero(np.isin(folds, (4, 5)))[:6], 2] = 1  # folds 4 and 5 are test and validation of one fit
    found = out_of_fold(features, labels, folds, ProbeConfig(weight_decays=[0.1]))
    assert found.info["left_out"] == [2] and np.isnan(found.scores[:, 2]).all()
    assert np.isfinite(found.scores[:, [0, 1, 3]]).all()


def test_bad_input_is_named():
    features, labels, parts = _data()
    with pytest.raises(ValueError, match="'published': use one of corrected"):
        probe(features, labels, parts, ProbeConfig(protocol="published"))
    with pytest.raises(ValueError, match="must be"):
        probe(features[:5], labels, parts, ProbeConfig())
    broken = features.copy()
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="1 records have features that are not finite"):
        probe(broken, labels, parts, ProbeConfig())
    with pytest.raises(ValueError, match="rows must be indices out of parts"):
        probe(features, labels, parts, ProbeConfig(), parts["test"][:20])
    with pytest.raises(ValueError, match="none of them is in validation"):
        probe(features, np.zeros_like(labels), parts, ProbeConfig())
    with pytest.raises(ValueError, match="protocol corrected"):
        out_of_fold(features, labels, np.ones(400, dtype=int), ProbeConfig())


def test_a_thousand_features_of_twenty_classes_take_seconds():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1300, 192))
    labels = (features @ rng.normal(size=(192, 20)) / 14 + rng.normal(size=(1300, 20)) > 1).astype(np.uint8)
    parts = {"train": np.arange(1000), "val": np.arange(1000, 1150), "test": np.arange(1150, 1300)}
    start = time.process_time()
    probe(features, labels, parts, ProbeConfig())
    assert time.process_time() - start < 10  # 0.7 s on one core
