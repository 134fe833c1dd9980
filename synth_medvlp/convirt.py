"""ConVIRT (reference: ConVIRT): a global vector of each image and of each text, contrasted within the batch.

Profile `convirt` is the re-implementation whose temperature, weights and sentence sampling agree with the original;
`convirt_mgca` the baseline of MGCA. Their losses differ in scale and must not be compared.
"""

import torch
from torch import nn
from torch.nn import functional as F

from shared.losses import unit
from shared.runs.processes import gather, rank


class LinearLast(nn.Linear):
    """A linear layer on the last axis of float32: 8 bits of mantissa are too few for cosines over a temperature."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


def head(kind: str, width: int, hidden: int, out: int) -> nn.Sequential:
    """mlp: width -> width -> out, with biases. bn (MGCA's GlobalEmbedding): width -> hidden -> out, with BatchNorms."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), LinearLast(width, out))
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, out), nn.BatchNorm1d(out, affine=False),
    )  # fmt: skip


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Tokens [B, L, d], mask [B, L] -> [B, d]: mean | max over tokens that are no padding, or cls."""
    if how == "cls":
        return hidden[:, 0]
    there = mask.bool().unsqueeze(-1)
    if how == "max":
        return hidden.masked_fill(~there, float("-inf")).amax(1)
    return (hidden * there).sum(1) / there.sum(1)


def contrast(
    v: torch.Tensor, u: torch.Tensor, tau: float, weights: tuple[float, float], gathered: bool = True
) -> torch.Tensor:
    """weights[0] CE(Z) + weights[1] CE(Z^T), Z = v u^T / tau over unit rows v (images) and u (texts) [B, d].

    gathered: negatives are the items of all processes, each of which needs the same B.
    """
    with torch.autocast(v.device.type, enabled=False):
        v, u = v.float(), u.float()
        every_v, every_u = (gather(v), gather(u)) if gathered else (v, u)
        target = torch.arange(len(v), device=v.device) + (len(v) * rank() if gathered else 0)
        to_text = F.cross_entropy(v @ every_u.T / tau, target)
        to_image = F.cross_entropy(u @ every_v.T / tau, target)
        return weights[0] * to_text + weights[1] * to_image


class Convirt(nn.Module):
    """Heads and loss over the towers' outputs; sizes: widths of (image, text)."""

    def __init__(self, cfg, sizes: tuple[int, int]):
        super().__init__()
        self.cfg = cfg
        self.image_head = head(cfg.head, sizes[0], cfg.head_hidden, cfg.projection)
        self.text_head = head(cfg.head, sizes[1], cfg.head_hidden, cfg.projection)

    def image(self, maps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """v [B, d], unit rows: the head on the mean of the last map."""
        return unit(self.image_head(maps[1].mean((2, 3))))

    def cells(self, maps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[B, d, h, w], unit cells: the head on each cell of the last map (BatchNorm: running statistics, in eval)."""
        cells = maps[1].permute(0, 2, 3, 1)
        found = unit(self.image_head(cells.flatten(0, 2))).unflatten(0, cells.shape[:3])
        return found.permute(0, 3, 1, 2)

    def text(self, hidden: tuple[torch.Tensor, ...], attention_mask: torch.Tensor) -> torch.Tensor:
        """u [B, d], unit rows."""
        return unit(self.text_head(pool(hidden[-1], attention_mask, self.cfg.pool)))

    def loss(self, maps, hidden, attention_mask, word_ids) -> dict[str, torch.Tensor]:
        cfg = self.cfg
        v, u = self.image(maps), self.text(hidden, attention_mask)
        return {"global": contrast(v, u, cfg.tau, (cfg.weight_image, cfg.weight_text), cfg.gather)}
