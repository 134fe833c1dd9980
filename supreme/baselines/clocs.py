"""CLOCS: Kiyasseh, Zhu, Clifton, CLOCS: Contrastive Learning of Cardiac Signals Across Space, Time, and Patients,
ICML 2021, eq. 1 to 3. Parts of a record, and of all records of its patient, attract each other; other patients repel.

Parts are its halves (CMSC), its leads (CMLC) or the halves of its leads (CMSMLC). As published: no augmentation,
cosine at temperature 0.1, both directions, positives on the diagonal and off it. The two halves are cut by token, so
each keeps the time positions that it has in a whole record.
"""

from itertools import combinations

import torch
from torch import nn

from shared.losses import unit
from shared.runs.processes import gather, rank
from supreme.baselines.common import SslModel, needs_lead_tokens
from supreme.encoder import keep_tokens


class Clocs(SslModel):
    temperature = 0.1

    def parts(self):
        if self.ssl.clocs != "cmsc":
            needs_lead_tokens(self.cfg, f"ssl.clocs {self.ssl.clocs}")
        return {"embedding": nn.Linear(self.width, self.ssl.projection_width)}

    def terms(self, ecg, patient):
        x = self.normalise(ecg)
        if patient is None:
            patient = torch.arange(len(x), device=x.device) + len(x) * rank()
        parts = [gather(z) for z in unit(self.objective["embedding"](self.part_features(x))).chunk(self.n_parts)]
        patient = gather(patient)
        losses = [contrast(a, b, patient, self.temperature) for a, b in combinations(parts, 2)]
        return {"contrastive": torch.stack(losses).mean()}

    @property
    def n_parts(self) -> int:
        return {"cmsc": 2, "cmlc": 12, "cmsmlc": 24}[self.ssl.clocs]

    def part_features(self, x: torch.Tensor) -> torch.Tensor:
        """Mean tokens of all parts of normalised x [B, 12, T], each part encoded alone: [parts * B, width]."""
        if self.cfg.encoder != "vit":
            half = x.shape[-1] // 2
            return self.encoder(torch.cat([x[..., :half], x[..., half : 2 * half]])).mean(1)
        numbers = part_tokens(self.encoder.n_segments(x.shape[-1]), self.ssl.clocs).to(x.device)  # [parts, n]
        index = numbers.repeat_interleave(len(x), 0)
        if self.training and self.cfg.token_drop:
            index = index.gather(1, keep_tokens(*index.shape, self.cfg.token_drop, x.device))
        return self.encoder(x.repeat(len(numbers), 1, 1), index).mean(1)


def part_tokens(m: int, views: str) -> torch.Tensor:
    """Token numbers (lead * m + segment) of each part of a record, [parts, n]."""
    numbers = torch.arange(12 * m).view(12, m)
    half = m // 2
    if views == "cmlc":
        return numbers
    if not half:
        raise ValueError("ssl.clocs: halves need records of at least 2 segments: lower model.patch")
    halves = torch.stack([numbers[:, :half], numbers[:, half : 2 * half]])  # [2, 12, M / 2]
    return halves.flatten(1) if views == "cmsc" else halves.flatten(0, 1)


def contrast(a: torch.Tensor, b: torch.Tensor, patient: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1 of unit rows a, b [N, d] of all processes, patient [N]: both directions, diagonal (eq. 2) plus other
    records of the same patient (eq. 3), which most batches do not have."""
    with torch.autocast(a.device.type, enabled=False):
        logits = a.float() @ b.float().T / temperature
        log_p = logits.log_softmax(1) + logits.log_softmax(0)
        others = (patient[:, None] == patient).fill_diagonal_(False)
        off_diagonal = (log_p * others).sum() / others.sum().clamp(min=1)
        return -log_p.diagonal().mean() - off_diagonal
