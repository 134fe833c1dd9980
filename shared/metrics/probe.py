"""Linear probing on cached features (reference: Evaluation protocols).

Features are extracted once per encoder, in evaluation mode, and a linear layer with one logit per class is trained on
them. Two named protocols:

corrected      Features standardised by the training rows. Logistic regression with L2, solved by L-BFGS to its optimum,
               so that no learning rate, epoch or seed is left to tune; the weight decay is the one with the best macro
               AUROC on VALIDATION, out of the same list for every method.
as_published   The public MERL recipe: Adam 1e-3 with weight decay 1e-4, batch 16, 100 epochs, MultiStepLR (milestone
               40, x 0.1) stepped after every iteration and again after every epoch, the epoch chosen by the greatest
               macro AUROC on the TEST part, raw features. Its drifting BatchNorm statistics (encoder left in training
               mode) have no counterpart on cached features.

A class without a positive or a negative among the training rows cannot be learnt: `corrected` leaves it out (its
scores are NaN, so that no metric takes them by accident) and lists it; `as_published` scores its untrained logit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from shared.metrics.classification import auroc_per_class, usable_classes

PROTOCOLS = ("corrected", "as_published")


@dataclass
class ProbeConfig:
    """How a linear probe is trained (reference: Evaluation protocols)."""

    protocol: str = "corrected"  # corrected | as_published
    ratios: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])  # shares of the training labels
    draws: int = 5  # random subsets at every ratio below 1
    weight_decays: list[float] = field(default_factory=lambda: [10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4])  # corrected: tried
    max_iter: int = 500  # corrected: L-BFGS iterations per weight decay
    lr: float = 1e-3  # as_published, like all below
    weight_decay: float = 1e-4
    batch: int = 16
    epochs: int = 100
    milestone: int = 40
    gamma: float = 0.1
    seed: int = 42


@dataclass(frozen=True)
class Probe:
    """A trained probe's logits.

    scores: float32 [n_test, C], NaN in the columns of classes left out. val_scores: as scores, of validation, for
    thresholds; None out of fold. info: what was chosen and left out, ready for JSON.
    """

    scores: np.ndarray
    val_scores: np.ndarray | None
    info: dict[str, Any]

    @property
    def classes(self) -> list[int]:
        """Columns that have scores."""
        return self.info["classes"]


@dataclass(frozen=True)
class _Linear:
    """weights [d, C] and intercept [C] on features standardised by mean [d] and scale [d]."""

    weights: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def centred(self, features: np.ndarray) -> np.ndarray:
        """Logits minus their mean over the training rows [n, C]."""
        return ((features - self.mean) / self.scale) @ self.weights

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.centred(features) + self.intercept


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Mapping[str, np.ndarray],
    cfg: ProbeConfig,
    rows: np.ndarray | None = None,
) -> Probe:
    """Train on `parts["train"]`, or on the few labels `rows` out of it; tune on "val", score "test".

    features: [n, d]; labels: 0/1 [n, C]; parts and rows: indices into both. ValueError for bad shapes, an unknown
    protocol, rows outside the training part, or (corrected) no learnable class on which validation can choose.
    """
    features, labels = _checked(features, labels)
    if rows is not None:
        if not np.isin(rows, parts["train"]).all():
            raise ValueError("few labels: rows must be indices out of parts['train'], not positions within it")
        parts = {**parts, "train": np.asarray(rows)}
    x = {part: features[index] for part, index in parts.items()}
    y = {part: labels[index] for part, index in parts.items()}
    if cfg.protocol == "corrected":
        return _corrected(x, y, cfg)
    if cfg.protocol == "as_published":
        return _as_published(x, y, cfg)
    raise ValueError(f"probe protocol {cfg.protocol!r}: use one of {', '.join(PROTOCOLS)}")


def out_of_fold(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, cfg: ProbeConfig) -> Probe:
    """Scores [n, C] for all records, each by a probe that saw neither its fold nor tuned on it.

    folds: int [n], numbered 1..K; fold k is scored, the fold before it (K before 1) is validation, the rest is trained
    on, as in `shared.ecg.splits.folds`. The logits are centred on the training rows of their fit: the intercept moves
    against the prevalence of the held-out fold and would push the pooled AUROC below its true value. A class that one
    fit could not learn is left out everywhere.
    """
    features, labels = _checked(features, labels)
    folds = np.asarray(folds)
    numbers = np.unique(folds)
    if cfg.protocol != "corrected" or len(numbers) < 3 or len(folds) != len(labels):
        raise ValueError("out of fold: protocol corrected and >= 3 folds, one number per record, are needed")
    scores, fits = np.full(labels.shape, np.nan, dtype=np.float32), []
    for number, before in zip(numbers, np.roll(numbers, 1), strict=True):
        test, val = folds == number, folds == before
        train = ~test & ~val
        model, info = _tuned(features[train], labels[train], features[val], labels[val], cfg)
        scores[np.ix_(test, info["classes"])] = model.centred(features[test])
        fits.append(info)
    kept = [c for c in range(labels.shape[1]) if all(c in info["classes"] for info in fits)]
    left_out = [c for c in range(labels.shape[1]) if c not in kept]
    scores[:, left_out] = np.nan
    info = {"protocol": cfg.protocol, "folds": len(numbers), "classes": kept, "left_out": left_out}
    info |= {key: [fit[key] for fit in fits] for key in ("weight_decay", "val_auroc", "n_train", "converged")}
    return Probe(scores, None, info)


# --- corrected --------------------------------------------------------------------------------------------------------


def _corrected(x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], cfg: ProbeConfig) -> Probe:
    model, info = _tuned(x["train"], y["train"], x["val"], y["val"], cfg)

    def scores(part: str) -> np.ndarray:
        full = np.full(y[part].shape, np.nan, dtype=np.float32)
        full[:, info["classes"]] = model(x[part])
        return full

    return Probe(scores("test"), scores("val"), info)


def _tuned(x, y, x_val, y_val, cfg: ProbeConfig) -> tuple[_Linear, dict[str, Any]]:
    """The fit whose weight decay is best on validation (the larger one of equals), and what was chosen."""
    kept, left_out = usable_classes(y)
    on_val = np.intersect1d(kept, usable_classes(y_val)[0])
    if not len(on_val):
        raise ValueError(f"{len(kept)} classes can be learnt from {len(y)} rows, none of them is in validation too")
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-8] = 1.0  # a constant feature stays 0 after centring
    standard, target = (x - mean) / scale, y[:, kept].astype(np.float64)
    prevalence = target.mean(axis=0)
    weights, intercept = np.zeros((x.shape[1], len(kept))), np.log(prevalence / (1 - prevalence))
    best, tried = None, {}
    for decay in sorted(cfg.weight_decays, reverse=True):  # each starts from the one before
        weights, intercept, converged = _logistic(standard, target, decay, weights, intercept, cfg.max_iter)
        model = _Linear(weights, intercept, mean, scale)
        auroc = float(np.nanmean(auroc_per_class(y_val[:, kept], model(x_val))))
        tried[decay] = auroc
        if best is None or auroc > best[1]["val_auroc"]:
            best = model, {"weight_decay": decay, "val_auroc": auroc, "converged": converged}
    info = best[1] | {"protocol": cfg.protocol, "n_train": len(y), "val_auroc_by_weight_decay": tried}
    return best[0], info | {"classes": kept.tolist(), "left_out": left_out.tolist()}


def _logistic(x, y, decay: float, weights, intercept, max_iter: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Minimise mean over rows of BCE, summed over classes, + decay / 2 * |weights|^2; intercepts are free.

    x: [n, d]; y: [n, C]; the classes do not influence each other. Returns weights [d, C], intercept [C], converged.
    """
    n, shape = len(x), weights.shape

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[: -shape[1]].reshape(shape), flat[-shape[1] :]
        logits = x @ w + b
        value = (np.logaddexp(0, logits) - y * logits).sum() / n + decay / 2 * (w**2).sum()
        error = (expit(logits) - y) / n
        return value, np.concatenate([(x.T @ error + decay * w).ravel(), error.sum(axis=0)])

    start = np.concatenate([weights.ravel(), intercept])
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": 1e-5, "ftol": 1e-10, "maxcor": 20}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x[: -shape[1]].reshape(shape), found.x[-shape[1] :], bool(found.success)


# --- as published -----------------------------------------------------------------------------------------------------


def _as_published(x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], cfg: ProbeConfig) -> Probe:
    """The public recipe, faults included; see the module's docstring."""
    import torch

    inputs = {part: torch.as_tensor(values, dtype=torch.float32) for part, values in x.items()}
    target = torch.as_tensor(y["train"], dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        head = torch.nn.Linear(inputs["train"].shape[1], target.shape[1])
        optimizer = torch.optim.Adam(head.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [cfg.milestone], gamma=cfg.gamma)
        best: dict[str, Any] = {"test_auroc": -np.inf}
        for epoch in range(cfg.epochs):
            for batch in torch.randperm(len(target)).split(cfg.batch):
                optimizer.zero_grad()
                logits = head(inputs["train"][batch])
                torch.nn.functional.binary_cross_entropy_with_logits(logits, target[batch]).backward()
                optimizer.step()
                schedule.step()
            schedule.step()
            with torch.no_grad():
                scores = {part: head(inputs[part]).numpy() for part in ("val", "test")}
            auroc = float(np.nanmean(auroc_per_class(y["test"], scores["test"])))
            if auroc > best["test_auroc"]:
                best = {"test_auroc": auroc, "epoch": epoch + 1, "scores": scores}
    classes, (_, untrained) = list(range(target.shape[1])), usable_classes(y["train"])
    info = {"protocol": cfg.protocol, "n_train": len(target), "classes": classes, "left_out": []}
    info |= {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "epoch": best["epoch"], "test_auroc": best["test_auroc"]}
    return Probe(best["scores"]["test"], best["scores"]["val"], info | {"untrained": untrained.tolist()})


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features {features.shape} and labels {labels.shape} must be [n, d] and [n, C]")
    if not np.isfinite(features).all():
        raise ValueError(f"{(~np.isfinite(features)).any(axis=1).sum()} records have features that are not finite")
    return features, labels
