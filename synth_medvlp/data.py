"""Dataset and collator of image-text pairs: the text of an access, augmentation, normalisation (reference: ConVIRT,
GLoRIA, Training settings; regimes).

What an access draws follows from (seed, epoch, item) alone, so that a resumed run sees what an uninterrupted one sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from synth_medvlp.pairs import Pairs
from synth_medvlp.text import Tokeniser, report_sentences

NORMALISE = {  # mean, standard deviation of intensities in 0..1, per channel
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
REAL_ONLY = ("real", "clean")  # nothing is generated for them
SET_OF = {  # regime -> the generated set that it needs
    "synthetic": "synthetic", "mix": "synthetic", "real_text": "real_text", "real_text_impression": "real_text",
    "real_of_text": "real_text", "real_image": "real_image", "real_of_image": "real_image",
}  # fmt: skip
REGIMES = (*REAL_ONLY, *SET_OF)
REAL_OF = ("real_of_text", "real_of_image")  # real pairs, those that a generated set has
IMPRESSION_ONLY = ("real_of_text", "real_text_impression")
N_DRAWS = 7  # uniform numbers of an augmentation: flip, zoom, shift x, shift y, angle, brightness, contrast


@dataclass
class AugmentConfig:
    """Section `data.augment:`; each image of a batch gets its own.

    crop: smallest share of the area of a random resized crop (1 = none); rotation_deg: largest angle; jitter: largest
    relative change of brightness and of contrast; flip: half of the images mirrored, as in the public code, though
    reports say left and right.
    """

    crop: float = 0.8
    rotation_deg: float = 5.0
    jitter: float = 0.2
    flip: bool = False


@dataclass
class PairsConfig:
    """What of the pairs is trained on (the part of section `data:` that this module reads).

    Args:
        regime: real | clean (real after A2 and A3) | synthetic | mix (both) | real_text (its images synthetic) |
            real_image (its texts synthetic). What the last two are compared with: real_of_image, the real pairs of the
            images that real_image has; real_of_text, likewise of real_text, with the IMPRESSION alone, of which the
            images of real_text are drawn - as has real_text_impression.
        sentences: how many of FINDINGS and IMPRESSION make the text of an access, drawn anew each time, in their order
            (impression first); 0 = all.
        n: number of pairs, drawn by run seed; smaller sets lie within larger ones; null = all.
        shuffle_pairs: control: every image gets another one's text.
        by_source: control: a batch (of one process) is of one folder, so that no negative can be told by its source.
        augment: of the images.
        workers: data loader processes.
    """

    regime: str = "real"
    sentences: int = 1
    n: int | None = None
    shuffle_pairs: bool = False
    by_source: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = 0

    def __post_init__(self):
        if self.regime not in REGIMES:
            raise ValueError(f"data.regime: '{self.regime}' is none of {', '.join(REGIMES)}")
        if self.sentences < 0:
            raise ValueError(f"data.sentences: {self.sentences}, but it is a number of sentences, or 0 for all")


def normalise(images: torch.Tensor, how: str) -> torch.Tensor:
    """Intensities 0..1, or uint8, [B, H, W] -> float32 [B, 1 or 3, H, W] by a rule of NORMALISE."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in NORMALISE[how])
    return (images[:, None] - mean) / std


def augment(images: torch.Tensor, draws: torch.Tensor, cfg: AugmentConfig) -> torch.Tensor:
    """images 0..1 [B, H, W], draws [B, N_DRAWS] in 0..1 -> the same shape; black where nothing was exposed.

    Crop and rotation are one bilinear resampling. Two numbers of a row set how bright and how strong of contrast.
    """
    flip, zoom, shift_x, shift_y, angle, brightness, contrast = draws.unbind(1)
    side = (cfg.crop + (1 - cfg.crop) * zoom).sqrt()
    mirror = torch.where(flip < 0.5, -1.0, 1.0) if cfg.flip else torch.ones_like(flip)
    angle = torch.deg2rad((2 * angle - 1) * cfg.rotation_deg)
    cos, sin = side * angle.cos(), side * angle.sin()
    at_x, at_y = ((1 - side) * (2 * shift - 1) for shift in (shift_x, shift_y))
    theta = torch.stack([cos * mirror, -sin, at_x, sin * mirror, cos, at_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(images), 1, *images.shape[1:]], align_corners=False)
    images = F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    gain, lift = ((1 + cfg.jitter * (2 * d - 1)).view(-1, 1, 1) for d in (contrast, brightness))
    middle = images.mean((1, 2), keepdim=True)
    return ((images - middle) * gain + middle * lift).clamp(0, 1)


def texts_of(pairs: Pairs, impression_only: bool = False) -> list[list[str]]:
    """The sentences of each report."""
    sections = pairs.table[["findings", "impression"]].fillna("").to_numpy()
    return [report_sentences("" if impression_only else findings, impression) for findings, impression in sections]


def sentences_of(pairs: Pairs) -> Iterator[str]:
    """Every sentence of every report; nothing is read until it is asked for."""
    for report in texts_of(pairs):
        yield from report


class PairDataset(Dataset):
    """Pairs of one or more folders, in a shuffled order. keep: for each of them a mask bool [n], or None for all.

    `epoch` is set by the training loop. Pairs without a sentence of two words are left out and counted in `left_out`.
    """

    def __init__(self, pairs: Sequence[Pairs], keep: Sequence[np.ndarray | None], cfg: PairsConfig, seed: int):
        self.pairs, self.cfg, self.seed, self.epoch = pairs, cfg, seed, 0
        texts: list[list[str]] = []
        places = []
        for number, (some, mask) in enumerate(zip(pairs, keep, strict=True)):
            kept = np.arange(len(some)) if mask is None else np.flatnonzero(mask)
            places.append(np.stack([np.full(len(kept), number), kept], 1))
            said = texts_of(some, cfg.regime in IMPRESSION_ONLY)
            texts += [said[i] for i in kept]
        order = np.random.default_rng([seed, 1]).permutation(len(texts))
        usable = [i for i in order if texts[i]]
        self.left_out = len(texts) - len(usable)
        if cfg.n is not None and cfg.n > len(usable):
            raise ValueError(f"data.n: {cfg.n} pairs are asked for, there are {len(usable)}")
        usable = usable[: cfg.n]
        if not usable:
            raise ValueError(f"none of {self.left_out} pairs has a text: look at the columns findings, impression")
        self.places = np.concatenate(places)[usable]  # [n, 2] folder, row
        self.texts = [texts[i] for i in usable]
        if cfg.shuffle_pairs:  # a cycle through a random order
            self.texts = self.texts[1:] + self.texts[:1]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict:
        """image uint8 [H, W], text, draws float32 [N_DRAWS]."""
        rng = np.random.default_rng([self.seed, self.epoch, i])
        draws, texts = rng.random(N_DRAWS, dtype=np.float32), self.texts[i]
        chosen = sorted(rng.permutation(len(texts))[: self.cfg.sentences or None])
        folder, row = self.places[i]
        return {
            "image": np.asarray(self.pairs[folder].images[row]),
            "text": " ".join(texts[k] for k in chosen),
            "draws": draws,
        }


class BySource(Sampler):
    """Numbers of items, in an order in which each batch of `size` is of one folder; what fills no batch is left out."""

    def __init__(self, dataset: PairDataset, size: int):
        self.dataset, self.size = dataset, size
        of = dataset.places[:, 0]
        self.folders = [found for n in np.unique(of) if len(found := np.flatnonzero(of == n)) >= size]
        if not self.folders:
            raise ValueError(f"data.by_source: no folder of pairs fills a batch of {size}: lower train.micro_batch")

    def __len__(self) -> int:
        return sum(len(folder) // self.size * self.size for folder in self.folders)

    def __iter__(self):
        rng = np.random.default_rng([self.dataset.seed, 2, self.dataset.epoch])
        orders = [rng.permutation(folder) for folder in self.folders]
        batches = np.concatenate([o[: len(o) // self.size * self.size].reshape(-1, self.size) for o in orders])
        yield from rng.permutation(batches).ravel().tolist()


class Collator:
    """Items -> pixel_values float32 [B, 1 or 3, H, W]; input_ids, attention_mask, word_ids int64 [B, L]."""

    def __init__(self, tokeniser: Tokeniser, cfg: AugmentConfig, normalise_by: str):
        self.tokeniser, self.cfg, self.normalise_by = tokeniser, cfg, normalise_by

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        images = torch.from_numpy(np.stack([item["image"] for item in items])).float() / 255
        draws = torch.from_numpy(np.stack([item["draws"] for item in items]))
        pixels = normalise(augment(images, draws, self.cfg), self.normalise_by)
        return {"pixel_values": pixels} | vars(self.tokeniser([item["text"] for item in items]))
