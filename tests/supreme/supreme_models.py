"""Small SuPreME models and a batch for them; weights as drawn, no dropout."""

import torch

from supreme.model import ModelConfig, SupremeModel

T, D_TEXT, N_TERMS, PATCH = 160, 24, 5, 20
M = T // PATCH
SMALL = {
    "patch": PATCH, "width": 16, "depth": 2, "heads": 2, "mlp": 32, "cfn_width": 8, "cfn_layers": 2, "cfn_heads": 2,
    "cfn_mlp": 16, "cfn_dropout": 0.0, "resnet_width": 4,
}  # fmt: skip


def small(seed: int = 0, **overrides) -> SupremeModel:
    torch.manual_seed(seed)
    model = SupremeModel.build(ModelConfig(**(SMALL | overrides)), None, T, D_TEXT, N_TERMS).train()
    with torch.no_grad():  # embeddings large enough that an exchange of leads or segments shows
        for name, p in model.named_parameters():
            if name.endswith(("lead_emb", "time_emb")):
                p.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def batch(n: int = 6, seed: int = 0, t: int = T) -> dict[str, torch.Tensor]:
    """As the collator makes them: ecg [n, 12, t] in mV, y and mask [n, L], queries [L, d], text, patient."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "ecg": torch.randn(n, 12, t, generator=rng),
        "y": torch.randint(0, 2, (n, N_TERMS), generator=rng).float(),
        "mask": torch.rand(n, N_TERMS, generator=rng) > 0.2,
        "queries": torch.randn(N_TERMS, D_TEXT, generator=rng),
        "text": torch.randn(n, D_TEXT, generator=rng),
        "patient": torch.arange(n),
    }


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
