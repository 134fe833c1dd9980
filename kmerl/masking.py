"""Which leads and segments a model sees (reference: M4). Drawn on the CPU from torch's generator of the step, so that a
resumed run draws the same; the number of masked leads is one draw per batch, the same in every process of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

N_LEADS = 12
RULES = ("none", "random", "kmerl")


@dataclass(frozen=True)
class Visible:
    """Tokens that take part in a batch.

    leads: bool [B, 12], leads of which a record shows anything.
    index: int64 [B, n], numbers of the tokens that are computed: lead * M + segment, or segment (joint tokens).
    mask: bool [B, n], which of them take part; None = all, which is how hidden tokens are dropped.
    """

    leads: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> Visible:
        moved = (None if t is None else t.to(device, non_blocking=True) for t in (self.leads, self.index, self.mask))
        return Visible(*moved)


def draw_leads(
    n: int, rule: str, masked_leads: Sequence[int] = (9, 10, 11), p_full: float = 0.0, generator=None
) -> torch.Tensor:
    """Kept leads, bool [n, 12], at least one per record.

    rule: "none" keeps all; "kmerl" masks k leads, k uniform in masked_leads and the same for the whole batch, which
    leads drawn per record, and keeps all of them with probability p_full (per batch); "random" keeps a number uniform
    in 1..12, drawn per record like the leads. ValueError for another rule or a k outside 0..11.
    """
    if rule not in RULES:
        raise ValueError(f"model.lead_masking: '{rule}' is none of {', '.join(RULES)}")
    if not masked_leads or not set(masked_leads) <= set(range(N_LEADS)):
        raise ValueError(f"model.masked_leads: {list(masked_leads)} must be numbers between 0 and {N_LEADS - 1}")
    if rule == "none":
        return torch.ones(n, N_LEADS, dtype=torch.bool)
    if rule == "random":
        n_kept = torch.randint(1, N_LEADS + 1, (n, 1), generator=generator)
    else:
        masked = masked_leads[int(torch.randint(len(masked_leads), (), generator=generator))]
        full = bool(torch.rand((), generator=generator) < p_full)
        n_kept = torch.full((n, 1), N_LEADS if full else N_LEADS - masked)
    return _ranks(n, N_LEADS, generator) < n_kept


def n_kept_segments(n_segments: int, ratio: float) -> int:
    """round((1 - ratio) * M), at least 1."""
    return max(1, round((1 - ratio) * n_segments))


def draw_tokens(
    n: int, n_segments: int, joint: bool, masked_leads: Sequence[int], ratio: float, p_full: float = 0.0, generator=None
) -> Visible:
    """Tokens kept in a training step: leads by `draw_leads`, then as many segments of each kept lead, drawn per lead.

    joint: one token holds a segment of all leads, so segments are drawn per record and `leads` says which rows show.
    """
    leads = draw_leads(n, "kmerl", masked_leads, p_full, generator)
    kept = 1 if joint else int(leads[0].sum())
    segments = _ranks(n * kept, n_segments, generator).argsort(-1)[:, : n_kept_segments(n_segments, ratio)]
    segments = segments.sort(-1).values.view(n, kept, -1)
    if joint:
        return Visible(leads, segments[:, 0])
    number = leads.nonzero()[:, 1].view(n, kept, 1)
    return Visible(leads, (number * n_segments + segments).flatten(1))


def all_tokens(n: int, n_segments: int, joint: bool, leads: torch.Tensor | None = None) -> Visible:
    """Every token of the leads that exist, bool [12] (None = 12), for n records: what a trained model is given."""
    leads = torch.ones(N_LEADS, dtype=torch.bool) if leads is None else leads.cpu()
    if leads.shape != (N_LEADS,) or leads.dtype != torch.bool or not leads.any():
        raise ValueError(
            f"leads must be bool [{N_LEADS}] with at least one True, not {tuple(leads.shape)} {leads.dtype}"
        )
    segments = torch.arange(n_segments)
    index = segments if joint else (leads.nonzero() * n_segments + segments).flatten()
    return Visible(leads.expand(n, -1), index.expand(n, -1))


def masked_not_dropped(visible: Visible, n_tokens: int) -> Visible:
    """The same choice with all tokens computed and the hidden ones masked: slow, the reference for tests."""
    mask = torch.zeros(len(visible.index), n_tokens, dtype=torch.bool).scatter(1, visible.index, True)
    return Visible(visible.leads, torch.arange(n_tokens).expand(len(mask), -1), mask)


def _ranks(n: int, size: int, generator) -> torch.Tensor:
    """A random permutation of 0..size-1 in each of n rows."""
    return torch.rand(n, size, generator=generator).argsort(-1)
