"""GLoRIA (reference: GLoRIA): global vectors, and words against regions through attention.

The symbols are the reference's: V local image features, E word pieces of the last layers, T words, S dot products of
regions and words, A attention, C context vector of a word.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from shared.runs.processes import gather, rank, widest

EPS = 1e-8  # smallest product of norms in a cosine
CHUNK = 2**20  # similarities of (image, text, word, region) held at a time
PUBLISHED_SLOTS = 97  # word slots of the published text encoder


class Words(NamedTuple):
    """Texts: total [B, d] = sum over word pieces and layers; words [B, L, d], [CLS] at 0, then n words; n int64 [B]."""

    total: torch.Tensor
    words: torch.Tensor
    n: torch.Tensor


def sum_pieces(hidden: torch.Tensor, word_ids: torch.Tensor) -> torch.Tensor:
    """Pieces [B, L, d] -> words [B, L, d]: slot w is the sum of the pieces of word w, zero where there is none."""
    there = (word_ids >= 0).unsqueeze(-1)
    index = word_ids.clamp(min=0).unsqueeze(-1).expand_as(hidden)
    return torch.zeros_like(hidden).scatter_add(1, index, hidden * there)


def words_of(hidden: tuple[torch.Tensor, ...], word_ids: torch.Tensor, layers: int) -> Words:
    """From BERT's hidden states [B, L, d]. The published mean over all slots is `total` over a constant, which a cosine
    does not see; [SEP] is in `total`, not among the words."""
    with torch.autocast(word_ids.device.type, enabled=False):
        pieces = torch.stack(hidden[-layers:]).float().sum(0)
        words = sum_pieces(pieces, word_ids)  # a sum over pieces and one over layers may change places
        return Words(words.sum(1), words, word_ids.amax(1) - 1)


class Local(NamedTuple):
    """Of each (image, text, word): cosine of the word and its context [B_i, B_t, L]; attention [B_i, B_t, L, R]."""

    cosine: torch.Tensor
    attention: torch.Tensor


def attend(V: torch.Tensor, T: torch.Tensor, mask: torch.Tensor, temp1: float) -> Local:
    """Regions V [B_i, R, d], words T [B_t, L, d], mask bool [B_t, L] (words that count). All in float32."""
    with torch.autocast(V.device.type, enabled=False):
        V, T = V.float(), T.float()
        S = (T.flatten(0, 1) @ V.transpose(1, 2)).unflatten(1, T.shape[:2])  # [B_i, B_t, L, R]
        others = torch.zeros_like(mask, dtype=S.dtype).masked_fill(~mask, float("-inf"))
        P = (S + others.unsqueeze(2)).softmax(2)  # over the words of a text
        A = (temp1 * P).softmax(3)  # over the regions of an image
        # With C = sum_r A_r V_r the cosine needs T.C = sum_r A_r S_r and |C|^2 = A (V V^T) A: C [.., d] never exists.
        dot = (A * S).sum(3)
        gram = V @ V.transpose(1, 2)  # [B_i, R, R]
        square = ((A.flatten(1, 2) @ gram).view_as(A) * A).sum(3)
        norms = square.clamp(min=EPS**2).sqrt() * T.norm(dim=-1)
        return Local(dot / norms.clamp(min=EPS), A)


def chunks(n_images: int, per_image: int) -> list[slice]:
    """Images a chunk at a time, per_image = words x regions of all texts."""
    step = max(1, CHUNK // per_image)
    return [slice(start, start + step) for start in range(0, n_images, step)]


def local_similarity(
    V: torch.Tensor, T: torch.Tensor, n: torch.Tensor, temps: tuple[float, float, float], agg: str
) -> torch.Tensor:
    """Zloc [B_i, B_t] = temp3 log sum_w exp(temp2 cos); words are [CLS] and the n of a text. agg mean: of the
    exponentials over the words, so that long texts do not win."""
    mask = torch.arange(T.shape[1], device=T.device) <= n[:, None]
    found = []
    for some in chunks(len(V), T.shape[0] * T.shape[1] * V.shape[1]):
        cosine = attend(V[some], T, mask, temps[0]).cosine
        found.append((temps[1] * cosine).masked_fill(~mask, float("-inf")).logsumexp(2))
    score = torch.cat(found)
    return temps[2] * (score - (n + 1).log() if agg == "mean" else score)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B_i, d], [B_t, d] -> [B_i, B_t], in float32."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        return a @ b.T / (a.norm(dim=-1)[:, None] * b.norm(dim=-1)).clamp(min=EPS)


def both_ways(Z: torch.Tensor, gathered: bool) -> torch.Tensor:
    """CE(Z) + CE(Z^T), Z [B, W * B]: rows of this process's images; columns need the rows of all processes."""
    B = len(Z)
    target = torch.arange(B, device=Z.device) + (B * rank() if gathered else 0)
    columns = gather(Z) if gathered else Z
    return F.cross_entropy(Z, target) + F.cross_entropy(columns[:, target].T, target)


class Gloria(nn.Module):
    """Projections and loss over the towers' outputs; sizes: widths of (last map but one, last map, text)."""

    def __init__(self, cfg, sizes: tuple[int, int, int]):
        super().__init__()
        self.cfg = cfg
        self.local = nn.Conv2d(sizes[0], sizes[2], 1, bias=False)
        self.total = nn.Linear(sizes[1], sizes[2])

    def image(self, maps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """gI [B, d]."""
        return self.total(maps[1].mean((2, 3)))

    def cells(self, maps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """V [B, d, h, w]."""
        return self.local(maps[0])

    def text(self, hidden: tuple[torch.Tensor, ...], word_ids: torch.Tensor) -> Words:
        return words_of(hidden, word_ids, self.cfg.last_layers)

    def loss(self, maps, hidden, attention_mask, word_ids) -> dict[str, torch.Tensor]:
        cfg, texts = self.cfg, self.text(hidden, word_ids)
        if cfg.gather:
            length = widest(texts.words.shape[1], word_ids.device)
            words = F.pad(texts.words, (0, 0, 0, length - texts.words.shape[1]))
            texts = Words(gather(texts.total), gather(words), gather(texts.n))
        V = regions(self.cells(maps))
        Zloc = local_similarity(V, texts.words, texts.n, (cfg.temp1, cfg.temp2, cfg.temp3), cfg.agg)
        Zglb = cfg.temp3 * cosine(self.image(maps), texts.total)
        return {"local": both_ways(Zloc, cfg.gather), "global": both_ways(Zglb, cfg.gather)}


def regions(cells: torch.Tensor) -> torch.Tensor:
    """[B, d, h, w] -> V [B, R, d], row by row."""
    return cells.flatten(2).transpose(1, 2)


# --- inference --------------------------------------------------------------------------------------------------------


def prompt_words(texts: Words, characters: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(words [P, L, d] without [CLS], mask [P, L]) of prompts at inference: their true words.

    characters: as published, their number counts as that of the words, so that [SEP] and empty slots enter.
    ValueError for a prompt of more characters than there are slots, where the published code breaks off.
    """
    if characters is None:
        words, n = texts.words[:, 1:], texts.n
    else:
        if int(characters.max()) >= PUBLISHED_SLOTS:
            raise ValueError(f"as published, prompts have at most {PUBLISHED_SLOTS - 1} characters: shorten it, or use "
                             "the scorer gloria")  # fmt: skip
        words, n = F.pad(texts.words, (0, 0, 0, max(0, PUBLISHED_SLOTS - texts.words.shape[1])))[:, 1:], characters
    return words, torch.arange(words.shape[1], device=words.device) < n[:, None]


def prompt_scores(V: torch.Tensor, words: torch.Tensor, mask: torch.Tensor, temp1: float, temp2: float) -> torch.Tensor:
    """Local score [B, P] = max over words of temp2 cos(word, context): not the log-sum of training, as published."""
    found = []
    for some in chunks(len(V), words.shape[0] * words.shape[1] * V.shape[1]):
        cos = attend(V[some], words, mask, temp1).cosine
        found.append(temp2 * cos.masked_fill(~mask, float("-inf")).amax(2))
    return torch.cat(found)
