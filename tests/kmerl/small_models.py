"""Small K-MERL and baseline models, and a batch for them; weights as drawn, with every norm that has no statistics."""

import torch

from kmerl.baselines import build
from kmerl.model import ModelConfig

T, D_TEXT, N_ENTITIES, PATCH = 200, 24, 5, 20
M = T // PATCH
SMALL = {
    "patch": PATCH, "width": 16, "depth": 2, "heads": 2, "mlp": 32, "width_joint": 12, "projection_norm": "layer",
    "query_width": 8, "query_layers": 2, "query_heads": 2, "query_mlp": 16, "query_dropout": 0.0, "resnet_width": 4,
    "uni_dropout": 0.0,
}  # fmt: skip


def small(seed: int = 0, **overrides):
    torch.manual_seed(seed)
    model = build(ModelConfig(**(SMALL | overrides)), T, D_TEXT, n_classes=N_ENTITIES)
    with torch.no_grad():  # embeddings large enough that an exchange of leads or segments shows
        for name, p in model.named_parameters():
            if name.endswith(("lead_emb", "time_emb")):
                p.normal_()
    return model


def batch(n: int = 6, seed: int = 0, t: int = T) -> dict[str, torch.Tensor]:
    """ecg [n, 12, t] in mV, text [n, d], entities [n, E] of 1, 0, -1, queries [E, d]."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "ecg": torch.randn(n, 12, t, generator=rng),
        "text": torch.randn(n, D_TEXT, generator=rng),
        "entities": torch.randint(-1, 2, (n, N_ENTITIES), generator=rng).to(torch.int8),
        "queries": torch.randn(N_ENTITIES, D_TEXT, generator=rng),
    }


def leads(*rows: int) -> torch.Tensor:
    return torch.isin(torch.arange(12), torch.tensor(rows))
