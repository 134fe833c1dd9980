"""Small baselines, a batch for them, and a training loop."""

import torch

from shared.losses import unit
from supreme.baselines import METHODS, build
from supreme.model import ModelConfig
from supreme.ssl import SslConfig

T, PATCH, D_TEXT, N_CLASSES = 160, 20, 24, 5
M = T // PATCH
BASELINES = [name for name in METHODS if name != "supreme"]
SLOW = ["byol", "moco_v3"]
SMALL = {"patch": PATCH, "width": 16, "depth": 1, "heads": 2, "mlp": 32, "resnet_width": 4}
SMALL_SSL = {
    "projection_width": 16, "projection_hidden": 32, "barlow_width": 32, "decoder_width": 16, "decoder_depth": 1,
    "decoder_heads": 2, "context_width": 16, "context_heads": 2, "context_depth": 1, "context_mlp": 16, "horizon": 3,
}  # fmt: skip


def small(method, seed=0, ssl=None, **model):
    torch.manual_seed(seed)
    cfg = ModelConfig(**(SMALL | model), method=method)
    return build(cfg, SslConfig(**(SMALL_SSL | (ssl or {}))), T, D_TEXT, N_CLASSES).train()


def batch(n=16, seed=0):
    """Records that differ in rate and amplitudes, with labels and texts that say so."""
    rng = torch.Generator().manual_seed(seed)
    rate = 0.5 + 2 * torch.rand(n, 1, 1, generator=rng)
    size = torch.randn(n, 12, 1, generator=rng)
    ecg = size * torch.sin(2 * torch.pi * rate * torch.linspace(0, 8, T))
    return {
        "ecg": ecg + 0.05 * torch.randn(n, 12, T, generator=rng),
        "y": (size[:, :N_CLASSES, 0] > 0).float(),
        "mask": torch.rand(n, N_CLASSES, generator=rng) > 0.1,
        "queries": torch.randn(N_CLASSES, D_TEXT, generator=rng),
        "text": size[:, :, 0].repeat(1, D_TEXT // 12),
        "patient": torch.arange(n) // 2,
    }


def optimiser(model, lr=3e-3):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)


def steps(model, opt, data, first, last, total):
    losses = []
    for i in range(first, last):
        opt.zero_grad()
        loss = model(**data).loss
        loss.backward()
        opt.step()
        if hasattr(model, "after_step"):
            model.after_step((i + 1) / total)
        losses.append(loss.item())
    return losses


def unit_rows(n, d=8, seed=0):
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))
