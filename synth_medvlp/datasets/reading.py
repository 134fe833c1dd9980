"""From a row of an index to a CxrRecord, and from a record to the array a model is given.

Reference, Data (image normalisation at evaluation) and Training settings. Rules of geometry:

| rule | from | what |
| --- | --- | --- |
| squash | MAVL evaluation | resize to size x size without keeping the aspect, bilinear (PadChest: bicubic) |
| pad | GLoRIA, MGCA | long side to size, area resampling, zeros around it to size x size |
| pad_crop | GLoRIA, MGCA evaluation | as pad at 256/224 of size, then the central size x size |

Rules of intensity, to uint8: `max` x / max * 255, cut to whole numbers (MAVL, PadChest); `equalise` histogram
equalisation over 256 bins (MAVL, RSNA); `minmax` (x - min) / (max - min) * 255 (others of 16 bit). 8-bit images of
other sets stay as they are. 255, not 256: with 256 the brightest pixels wrap to 0 (Trap 9).
"""

from pathlib import Path

import numpy as np

from synth_medvlp.datasets import masks
from synth_medvlp.datasets.images import read_pixels
from synth_medvlp.datasets.tables import inside, view
from synth_medvlp.record import CxrReadError, CxrRecord

GEOMETRY = ("squash", "pad", "pad_crop")
INTENSITY = {"padchest": "max", "rsna-pneumonia": "equalise"}
BICUBIC = ("padchest",)


def read_record(root: Path, row, dataset: str) -> CxrRecord:
    """The record that `row` of an index describes (Series or dict with INDEX_COLUMNS). Raises CxrReadError."""
    name = row["image_id"]
    path = inside(root, row["path"], name)
    image, header_view = read_pixels(path)
    height, width = image.shape
    frame = int(row["frame"])
    sx, sy = (width / frame, height / frame) if frame else (1.0, 1.0)
    mask = None
    if row["rle"]:
        mask = masks.resized(masks.union(row["rle"], frame, name), image.shape)
    elif row["mask_path"]:
        mask = read_mask(root, row["mask_path"], name, image.shape)
    return CxrRecord(
        image_id=name,
        study_id=row["study_id"],
        patient_id=row["patient_id"],
        dataset=dataset,
        image=image,
        view=row["view"] or view(header_view) or "other",
        findings=row["findings"],
        impression=row["impression"],
        labels=dict(row["labels"]),
        boxes=tuple((label, x * sx, y * sy, w * sx, h * sy) for label, x, y, w, h in row["boxes"]),
        mask=mask,
        source=row["source"],
    )


def read_mask(root: Path, relative: str, record: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """bool [H, W] from a mask image; shape: the image's, whose aspect the mask must have.

    Raises CxrReadError.
    """
    path = inside(root, relative, record)
    mask = read_pixels(path)[0] > 0  # 0/1 and 0/255 alike; the reference's own rule (Zero-shot grounding)
    if shape is None or mask.shape == tuple(shape):
        return mask
    if abs(mask.shape[0] * shape[1] - mask.shape[1] * shape[0]) > max(shape) + max(mask.shape):
        raise CxrReadError(path, "bad mask", f"{mask.shape} pixels for an image of {shape}: another aspect")
    return masks.resized(mask, shape)


def read_image(record: CxrRecord, rule: str = "squash", size: int = 224, intensity: str | None = None) -> np.ndarray:
    """uint8 [size, size] by a rule of GEOMETRY. intensity: max, equalise, minmax, none; None = the data set's own."""
    from PIL import Image

    pixels = to_uint8(record.image, intensity or INTENSITY.get(record.dataset, "none"))
    image = Image.fromarray(pixels)
    if rule == "squash":
        kind = Image.Resampling.BICUBIC if record.dataset in BICUBIC else Image.Resampling.BILINEAR
        return np.asarray(image.resize((size, size), kind))
    (height, width), (top, left), side = fitted(pixels.shape, rule, size)
    kind = Image.Resampling.BOX if max(height, width) < max(pixels.shape) else Image.Resampling.BILINEAR
    canvas = np.zeros((side, side), np.uint8)
    canvas[top : top + height, left : left + width] = np.asarray(image.resize((width, height), kind))
    return _central(canvas, size)


def fit_mask(mask: np.ndarray, rule: str = "squash", size: int = 224) -> np.ndarray:
    """bool [size, size]: the mask of an image under the same rule as `read_image`, nearest neighbour."""
    if rule == "squash":
        return masks.resized(mask, (size, size))
    shape, (top, left), side = fitted(mask.shape, rule, size)
    canvas = np.zeros((side, side), bool)
    canvas[top : top + shape[0], left : left + shape[1]] = masks.resized(mask, shape)
    return _central(canvas, size)


def fitted(shape: tuple[int, int], rule: str, size: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """((height, width) of the resized image, (top, left) of it on the canvas, side of the canvas), in pixels."""
    if rule not in GEOMETRY:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(GEOMETRY)}")
    side = size if rule == "pad" else round(size * 256 / 224)
    height, width = (max(1, int(side * edge / max(shape))) for edge in shape)
    return (height, width), ((side - height) // 2, (side - width) // 2), side


def _central(canvas: np.ndarray, size: int) -> np.ndarray:
    start = (len(canvas) - size) // 2
    return canvas[start : start + size, start : start + size]


def to_uint8(pixels: np.ndarray, rule: str = "none") -> np.ndarray:
    """uint8 of the same shape; rule: max, equalise, minmax, none (16 bit: as minmax). Constant images become 0."""
    if rule not in ("max", "equalise", "minmax", "none"):
        raise ValueError(f"unknown rule {rule!r}: choose max, equalise, minmax or none")
    if rule == "none" and pixels.dtype == np.uint8:
        return pixels
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        return np.zeros(pixels.shape, np.uint8)
    if rule == "max":
        return (pixels / high * 255).astype(np.uint8)
    if rule == "equalise":
        return (equalised(pixels) * 255).astype(np.uint8)
    return np.rint((pixels.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8)


def equalised(pixels: np.ndarray, bins: int = 256) -> np.ndarray:
    """Share 0..1 of pixels at most as bright, from a histogram of `bins` between minimum and maximum, linear between
    bin centres: the usual histogram equalisation."""
    counts, edges = np.histogram(pixels, bins=bins)
    shares = np.cumsum(counts) / pixels.size
    return np.interp(pixels.ravel(), (edges[:-1] + edges[1:]) / 2, shares).reshape(pixels.shape)
