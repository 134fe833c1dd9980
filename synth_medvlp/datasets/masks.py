"""Masks of the releases: SIIM's run-length code, boxes as masks, mask images. Serves grounding and segmentation.

SIIM-ACR's rule, as its data page documents it: pixels are numbered down the columns (column-major) of a 1024 x 1024
image from 0; the code is pairs "offset length"; an offset counts from the END of the run before it (the first one from
pixel 0); "-1", often written with a leading space, means no pneumothorax.
"""

from collections.abc import Iterable

import numpy as np

from synth_medvlp.record import Box, CxrReadError

NO_MASK = "-1"


def decode_rle(code: str, shape: tuple[int, int], where: str = "run-length code") -> np.ndarray:
    """SIIM's relative run-length code -> bool [height, width]; "-1" -> all False.

    Raises CxrReadError "bad mask": not whole numbers, odd count, empty run, beyond the last pixel.
    """
    height, width = shape
    starts, ends = check_rle(code, height * width, where)
    steps = np.zeros(height * width + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape((height, width), order="F")


def check_rle(code: str, n_pixels: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(first pixel, pixel after the last) of every run of a code; none for "-1". Raises CxrReadError "bad mask"."""
    tokens = code.split()
    if tokens == [NO_MASK]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not tokens or len(tokens) % 2 or not all(token.isdecimal() and len(token) < 12 for token in tokens):
        raise CxrReadError(where, "bad mask", f"{code[:40]!r} is not pairs of offset and length, nor {NO_MASK}")
    numbers = np.array([int(token) for token in tokens], dtype=np.int64)
    ends = np.cumsum(numbers)[1::2]  # offsets and lengths alternate, so every second running sum ends a run
    lengths = numbers[1::2]
    if (lengths == 0).any() or ends[-1] > n_pixels:
        raise CxrReadError(where, "bad mask", f"a run of length 0, or an end at {ends[-1]} of {n_pixels} pixels")
    return ends - lengths, ends


def encode_rle(mask: np.ndarray) -> str:
    """bool [height, width] -> SIIM's relative run-length code, "-1" where the mask is empty."""
    edges = np.flatnonzero(np.diff(np.asarray(mask, bool).ravel(order="F"), prepend=False, append=False))
    if not len(edges):
        return NO_MASK
    starts, ends = edges[::2], edges[1::2]
    offsets = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{offset} {length}" for offset, length in zip(offsets, ends - starts, strict=True))


def boxes_mask(boxes: Iterable[Box], shape: tuple[int, int]) -> np.ndarray:
    """bool [height, width], True inside any box: rows int(y) to int(y) + int(h), likewise columns.

    The truncation is that of the reference (Zero-shot grounding, boxes rasterised on the image).
    """
    mask = np.zeros(shape, bool)
    for _, x, y, w, h in boxes:
        mask[int(y) : int(y) + max(int(h), 1), int(x) : int(x) + max(int(w), 1)] = True
    return mask


def union(codes: Iterable[str], side: int, where: str) -> np.ndarray:
    """bool [side, side]: the union of several run-length masks of one image."""
    mask = np.zeros((side, side), bool)
    for code in codes:
        mask |= decode_rle(code, (side, side), where)
    return mask


def resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour copy of a bool mask at another [height, width]; pixel centres correspond."""
    if mask.shape == tuple(shape):
        return mask
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(shape, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns[None, :]]
