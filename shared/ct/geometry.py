"""Orientation, HU clip and the two geometries of the reference (Argus, "SimpleITK rules" 2-6), on arrays [D, H, W].

A resize: the whole anatomy to a fixed shape, anisotropic scale (`resize`).
B fixed spacing: n' = int(n * s / t), then centred crop and pad to a fixed shape (`respace`, `crop_pad`).

Both keep the outer extent of the volume: the spacing becomes s * n / n' and the first voxel's centre moves by half the
difference of the spacings (keeping the origin is the common error). Values are trilinear between voxel centres, equal
to torch's `interpolate(mode="trilinear", align_corners=False)` and to SimpleITK's `Resample` under the same rule; no
public pipeline smooths before it shrinks, so neither does this. One slice of the result is made at a time, which keeps
the work in the cache: shrinking costs a fraction of either library's time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from shared.ct.volume import CtReadError, CtVolume

CLIP_HU = (-1000.0, 1000.0)
AIR_HU = -1000.0
CLIPS = ("before", "after")  # resampling
LETTERS = ("LR", "PA", "SI")  # (towards +, towards -) of the patient axes of LPS space


@dataclass(frozen=True)
class Geometry:
    """How volumes are prepared. shape: (D, H, W) of the result.

    spacing_mm: (sz, sy, sx) of geometry B; None = geometry A. clip_hu: window. clip: "before" or "after" resampling
    (both occur in public code; they differ at the edges of what lies outside the window).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None = None
    clip_hu: tuple[float, float] = CLIP_HU
    clip: str = CLIPS[0]

    def __post_init__(self):
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"geometry: shape {self.shape} is not (D, H, W)")
        if self.spacing_mm is not None and (len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0):
            raise ValueError(f"geometry: spacing_mm {self.spacing_mm} is not (sz, sy, sx) in mm")
        if self.clip_hu[0] >= self.clip_hu[1]:
            raise ValueError(f"geometry: clip_hu {self.clip_hu} is not (low, high)")
        if self.clip not in CLIPS:
            raise ValueError(f"geometry: clip {self.clip!r} is neither 'before' nor 'after'")


def prepare(volume: CtVolume, geometry: Geometry) -> CtVolume:
    """`volume`, re-oriented to LPS, clipped and brought to `geometry.shape` by geometry A or B; float32 HU."""
    volume = reorient(volume)
    before = geometry.clip_hu if geometry.clip == "before" else None
    if geometry.spacing_mm is None:
        volume = resize(volume, geometry.shape, before)
    else:
        volume = crop_pad(respace(volume, geometry.spacing_mm, before), geometry.shape)
    return volume if geometry.clip == "before" else clip(volume, geometry.clip_hu)


def clip(volume: CtVolume, window_hu: tuple[float, float] = CLIP_HU) -> CtVolume:
    """Values held inside `window_hu`."""
    return replace(volume, hu=np.clip(volume.hu, *_window(window_hu, volume.hu.dtype)))


# ---------------------------------------------------------------------------------------------------- orientation


def orientation_code(direction: tuple[float, ...]) -> str:
    """Where the x, y and z indices grow to, as nibabel and ITK write it: identity = "LPS". Tilts take the nearest."""
    cosines = np.reshape(direction, (3, 3))
    return "".join(LETTERS[axis][int(cosines[axis, index] < 0)] for index, axis in enumerate(_patient_axes(cosines)))


def reorient(volume: CtVolume, code: str = "LPS") -> CtVolume:
    """The same voxels with axes permuted and flipped towards `code`; a tilted direction stays tilted."""
    if volume.orientation == code:
        return volume
    cosines = np.reshape(volume.direction, (3, 3))
    axes = _patient_axes(cosines)
    letters = [axis for letter in code for axis in range(3) if letter in LETTERS[axis]]
    if len(code) != 3 or sorted(letters) != [0, 1, 2]:
        raise ValueError(f"orientation {code!r} is not one letter each of L/R, P/A, S/I")
    order = [axes.index(axis) for axis in letters]  # order[k]: x, y or z index (0, 1, 2) that becomes index k
    hu = volume.hu.transpose([2 - order[2 - k] for k in range(3)])
    spacing = [volume.spacing_mm[2 - index] for index in order]  # (x, y, z)
    cosines, origin = cosines[:, order], np.array(volume.origin_mm)
    for index, (axis, letter) in enumerate(zip(letters, code, strict=True)):
        if LETTERS[axis][int(cosines[axis, index] < 0)] != letter:
            hu = np.flip(hu, 2 - index)
            origin = origin + cosines[:, index] * spacing[index] * (hu.shape[2 - index] - 1)
            cosines = cosines * np.where(np.arange(3) == index, -1.0, 1.0)
    return replace(
        volume,
        hu=hu,
        spacing_mm=tuple(spacing[::-1]),
        origin_mm=tuple(origin.tolist()),
        direction=tuple((cosines.ravel() + 0.0).tolist()),
        orientation=code,
    )


def _patient_axes(cosines: np.ndarray) -> tuple[int, int, int]:
    """For the x, y and z index: the patient axis (0 = left-right, 1 = front-back, 2 = head-feet) it runs along."""
    return max(permutations(range(3)), key=lambda axes: sum(abs(cosines[axis, i]) for i, axis in enumerate(axes)))


# ----------------------------------------------------------------------------------------------------- resampling


def resize(volume: CtVolume, shape: tuple[int, int, int], clip_hu: tuple[float, float] | None = None) -> CtVolume:
    """Geometry A: the whole extent on a grid of `shape` (D, H, W); float32. clip_hu: window, applied before."""
    spacing = [s * n / m for s, n, m in zip(volume.spacing_mm, volume.hu.shape, shape, strict=True)]
    shift = 0.5 * (np.array(spacing) - volume.spacing_mm)[::-1]  # (x, y, z)
    origin = np.array(volume.origin_mm) + np.reshape(volume.direction, (3, 3)) @ shift
    hu = trilinear(volume.hu, shape, clip_hu)
    return replace(volume, hu=hu, spacing_mm=tuple(spacing), origin_mm=tuple(origin.tolist()))


def respace(volume: CtVolume, spacing_mm, clip_hu: tuple[float, float] | None = None) -> CtVolume:
    """Geometry B before its crop: n' = int(n * s / t) per axis (the spacing becomes s * n / n', not exactly t).

    CtReadError "too small": less than one voxel along an axis."""
    shape = [int(n * (s / t)) for n, s, t in zip(volume.hu.shape, volume.spacing_mm, spacing_mm, strict=True)]
    if min(shape) < 1:
        detail = f"smaller than one voxel of {tuple(spacing_mm)} mm (z, y, x)"
        raise CtReadError(volume.volume_id or "volume", "too small", detail)
    return resize(volume, tuple(shape), clip_hu)


def crop_pad(volume: CtVolume, shape: tuple[int, int, int]) -> CtVolume:
    """Centred crop, then centred pad with air, to `shape` (D, H, W); an odd remainder goes to the far side."""
    hu = np.full(shape, AIR_HU, volume.hu.dtype)
    source, target, shift = [], [], []
    for n, wanted in zip(volume.hu.shape, shape, strict=True):
        start, length = max((n - wanted) // 2, 0), min(n, wanted)
        low = (wanted - length) // 2
        source.append(slice(start, start + length))
        target.append(slice(low, low + length))
        shift.append(start - low)
    hu[tuple(target)] = volume.hu[tuple(source)]
    step = np.reshape(volume.direction, (3, 3)) @ (np.array(shift) * volume.spacing_mm)[::-1]
    return replace(volume, hu=hu, origin_mm=tuple((np.array(volume.origin_mm) + step).tolist()))


def trilinear(hu: np.ndarray, shape: tuple[int, int, int], clip_hu: tuple[float, float] | None = None) -> np.ndarray:
    """[D, H, W] -> float32 of `shape`, linear between voxel centres, outer extents equal; clipped before if asked."""
    (below, above, weight), *plane = (_taps(n, m) for n, m in zip(hu.shape, shape, strict=True))
    window = clip_hu and _window(clip_hu, hu.dtype)

    def load(k: int) -> np.ndarray:
        return (hu[k] if window is None else np.clip(hu[k], *window)).astype(np.float32)

    def within(slice_: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            if shape[axis + 1] != hu.shape[axis + 1]:
                low, high, w = plane[axis]
                slice_ = _lerp(slice_.take(low, axis), slice_.take(high, axis), w if axis else w[:, None])
        return slice_

    out = np.empty(shape, np.float32)
    shrinks = shape[0] <= hu.shape[0]
    # Fewer slices: mix the two neighbours first. More slices: each source slice serves several, so finish it first.
    first = load if shrinks else _remember(lambda k: within(load(k)))
    for k in range(shape[0]):
        mixed = first(below[k])
        if weight[k]:
            other = first(above[k])
            mixed = _lerp(mixed, other if shrinks else other.copy(), weight[k])
        out[k] = within(mixed) if shrinks else mixed
    return out


def _taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of m samples over n voxels: the voxel below, the one above, and the weight of the latter, float32."""
    centre = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
    below = np.minimum(centre.astype(np.intp), max(n - 2, 0))
    return below, np.minimum(below + 1, n - 1), (centre - below).astype(np.float32)


def _lerp(low: np.ndarray, high: np.ndarray, weight) -> np.ndarray:
    """low + weight * (high - low), in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high


def _remember(function: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """`function`, keeping its last two results: callers walk upwards and need k and k + 1."""
    kept: dict[int, np.ndarray] = {}

    def remembered(k: int) -> np.ndarray:
        if k not in kept:
            while len(kept) > 1:
                kept.pop(min(kept))
            kept[k] = function(k)
        return kept[k]

    return remembered


def _window(window_hu: tuple[float, float], dtype) -> tuple:
    """Window in the array's own type, so that clipping int16 stays int16 and cheap."""
    low, high = window_hu
    if np.issubdtype(dtype, np.integer) and float(low).is_integer() and float(high).is_integer():
        bounds = np.iinfo(dtype)
        return dtype.type(max(low, bounds.min)), dtype.type(min(high, bounds.max))
    return np.float32(low), np.float32(high)
