"""Continuous shapes in millimetres put on a voxel grid, with partial volume (the embedded CT world, issue 6 item 4).

Axes as in a `CtVolume`: arrays [D, H, W] = z (inferior to superior), y (anterior to posterior), x (right to left).
Points are [n, 3] in the order z, y, x, in mm from the middle of the thorax. A shape larger than a voxel is drawn by its
signed distance; a thinner tube is drawn by points that carry its volume, so that what it adds to the volume does not
depend on where it lies between voxel centres: resolution blurs small things, it does not lose them at random.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_MARGIN_MM = 1.0


@dataclass(frozen=True)
class Grid:
    """shape (D, H, W) voxels; spacing_mm (sz, sy, sx); centre_mm (z, y, x): where the middle of the grid lies in the
    patient, whose middle of the thorax is 0."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres of the voxels along z, y, x, float32 mm."""
        return tuple(
            (first + np.arange(n) * step).astype(np.float32)
            for first, n, step in zip(self.first_mm, self.shape, self.spacing_mm, strict=True)
        )

    @cached_property
    def first_mm(self) -> np.ndarray:
        """Centre of voxel (0, 0, 0), float64 [3]."""
        half = (np.array(self.shape) - 1) / 2
        return np.array(self.centre_mm) - half * self.spacing_mm

    @cached_property
    def voxel_mm(self) -> float:
        """Side of the cube with the volume of a voxel."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))

    def box(self, low, high) -> tuple[slice, slice, slice]:
        """Voxels whose centres lie between two corners (z, y, x) in mm, one voxel more on each side; may be empty."""
        return tuple(slice(a, b) for a, b in zip(*(edge.tolist() for edge in self.edges(low, high)), strict=True))

    def edges(self, low, high) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 voxel [.., 3] of `box` for many corners [.., 3]."""
        size = np.array(self.shape)
        start = np.floor((np.asarray(low) - self.first_mm) / self.spacing_mm).astype(int)
        stop = np.ceil((np.asarray(high) - self.first_mm) / self.spacing_mm).astype(int) + 1
        return np.minimum(np.maximum(start, 0), size), np.minimum(np.maximum(stop, 0), size)

    def coordinates(self, box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z [d, 1, 1], y [1, h, 1], x [1, 1, w] of a box."""
        z, y, x = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]


def everything(grid: Grid) -> tuple[slice, slice, slice]:
    return tuple(slice(0, n) for n in grid.shape)


def cover(distance_mm: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Share of a voxel inside a shape whose surface is `distance_mm` away (negative inside)."""
    return np.minimum(np.maximum(0.5 - distance_mm * np.float32(1 / voxel_mm), 0), 1)


def paint(hu: np.ndarray, box, share: np.ndarray, value) -> None:
    """Replace `share` of each voxel of the box by tissue of `value` HU, in place."""
    part = hu[box]
    part += share * (value - part)


def ellipsoid(zyx, centre, half) -> np.ndarray:
    """Approximate signed distance to an axis-parallel ellipsoid; exact on spheres."""
    q = sum(((p - np.float32(c)) / np.float32(h)) ** 2 for p, c, h in zip(zyx, centre, half, strict=True))
    rho = np.sqrt(q)
    return (rho - 1) * np.float32(np.prod(half) ** (1 / 3))


def waves(zyx, length_mm: float, rng: np.random.Generator, n: int = 6) -> np.ndarray:
    """Smooth random field of unit variance on broadcastable coordinates: n plane waves of about this wavelength."""
    total = 0
    for _ in range(n):
        towards = rng.standard_normal(3)
        k = towards / np.linalg.norm(towards) * (2 * np.pi / length_mm) * rng.uniform(0.7, 1.4)
        factors = [np.exp(np.complex64(1j) * np.float32(kk) * p) for kk, p in zip(k, zyx, strict=True)]
        factors[0] = factors[0] * np.complex64(np.exp(2j * np.pi * rng.random()))
        total = total + (factors[0] * factors[1] * factors[2]).real
    return total * np.float32(np.sqrt(2 / n))


def blob(grid: Grid, centre, reach_mm: float, distance) -> tuple[tuple, np.ndarray]:
    """Box and share of voxels inside a small shape. distance: (dz, dy, dx in mm from the centre) -> signed distance in
    mm; nothing may lie further than reach_mm from the centre. Sub-samples voxels that are coarse for it."""
    centre = np.asarray(centre, float)
    box = grid.box(centre - reach_mm - _MARGIN_MM, centre + reach_mm + _MARGIN_MM)
    sizes = [part.stop - part.start for part in box]
    if min(sizes) <= 0:
        return box, np.zeros([max(n, 0) for n in sizes], np.float32)
    fine, times = [], []
    for k, part in enumerate(box):
        step = grid.spacing_mm[k]
        m = int(np.clip(np.ceil(step / max(reach_mm / 4, 0.4)), 1, 8))
        inside = (np.arange(m) + 0.5) / m - 0.5
        points = (grid.axes[k][part][:, None] + (inside * step)[None]).ravel() - centre[k]
        fine.append(points.astype(np.float32).reshape([-1 if axis == k else 1 for axis in range(3)]))
        times.append(m)
    step_mm = float(np.prod([s / m for s, m in zip(grid.spacing_mm, times, strict=True)]) ** (1 / 3))
    share = cover(distance(*fine), step_mm)
    d, h, w = sizes
    share = np.broadcast_to(share, (d * times[0], h * times[1], w * times[2]))
    return box, share.reshape(d, times[0], h, times[1], w, times[2]).mean((1, 3, 5), dtype=np.float32)


@dataclass(frozen=True)
class Tubes:
    """n straight pieces with round cross-section: start, stop [n, 3] in mm, radius at both ends [n] in mm."""

    start: np.ndarray
    stop: np.ndarray
    r_start: np.ndarray
    r_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, where) -> "Tubes":
        return Tubes(self.start[where], self.stop[where], self.r_start[where], self.r_stop[where])

    def widened(self, times: float = 1.0, by_mm: float = 0.0) -> "Tubes":
        return Tubes(self.start, self.stop, self.r_start * times + by_mm, self.r_stop * times + by_mm)


def path(points, radius) -> Tubes:
    """Tubes along a polyline [n, 3]; radius: mm, one or n."""
    points = np.asarray(points, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(points))
    return Tubes(points[:-1], points[1:], radius[:-1], radius[1:])


def smooth(points, n: int) -> np.ndarray:
    """n points on a smooth curve through [m, 3] control points (Catmull-Rom)."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    at = np.linspace(0, len(p) - 3, n)
    i = np.minimum(at.astype(int), len(p) - 4)
    t = (at - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def join(parts: list[Tubes]) -> Tubes:
    return Tubes(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("start", "stop", "r_start", "r_stop")))


def tube_cover(grid: Grid, tubes: Tubes) -> tuple[tuple, np.ndarray]:
    """Box around all tubes and the share of its voxels that they fill, float32 [d, h, w]."""
    r_max = np.maximum(tubes.r_start, tubes.r_stop)
    reach = r_max[:, None] + _MARGIN_MM
    low = np.minimum(tubes.start, tubes.stop) - reach
    high = np.maximum(tubes.start, tubes.stop) + reach
    box = grid.box(low.min(0), high.max(0))
    share = np.zeros([max(part.stop - part.start, 0) for part in box], np.float32)
    if not share.size:
        return box, share
    coarse = max(grid.spacing_mm)
    thin = r_max < 1.25 * coarse
    if thin.any():
        points, volume = _filling(tubes.take(thin), coarse)
        splat(share, grid, box, points, volume)
        np.minimum(share, 1, out=share)
    if not thin.all():
        starts, stops = grid.edges(low, high)
        for i in np.flatnonzero(~thin & (stops > starts).all(1)):
            _capsule(share, grid, box, tubes, i, starts[i].tolist(), stops[i].tolist())
    return box, share


def _filling(tubes: Tubes, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [m, 3] spread through tubes and the volume in mm³ that each stands for."""
    along = tubes.stop - tubes.start
    length = np.linalg.norm(along, axis=1)
    n_along = np.maximum(np.ceil(length / (0.4 * voxel_mm)), 1).astype(int)
    of = np.repeat(np.arange(len(tubes)), n_along)
    rank = np.arange(len(of)) - np.repeat(np.cumsum(n_along) - n_along, n_along)
    t = (rank + 0.5) / n_along[of]
    r = tubes.r_start[of] + (tubes.r_stop - tubes.r_start)[of] * t
    middle = tubes.start[of] + along[of] * t[:, None]
    n_disc = max(int(np.ceil((2.6 * r.max() / voxel_mm) ** 2)), 1)
    volume = np.pi * r**2 * (length / n_along)[of] / n_disc
    unit = along / np.maximum(length, 1e-6)[:, None]
    other = np.where(np.abs(unit[:, :1]) < 0.8, [[1.0, 0, 0]], [[0, 1.0, 0]])
    u = np.cross(unit, other)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-6)
    v = np.cross(unit, u)
    k = np.arange(n_disc)
    radial, angle = np.sqrt((k + 0.5) / n_disc), 2.399963 * k  # sunflower: even over the disc
    if n_disc == 1:
        radial = np.zeros(1)
    a, b = r[:, None] * radial * np.cos(angle), r[:, None] * radial * np.sin(angle)
    points = middle[:, None] + a[..., None] * u[of][:, None] + b[..., None] * v[of][:, None]
    return points.reshape(-1, 3), np.repeat(volume, n_disc)


def splat(share: np.ndarray, grid: Grid, box, points: np.ndarray, volume_mm3) -> None:
    """Add points [m, 3] with their volumes to the shares of a box, spread over the eight voxels around each."""
    at = (points - grid.first_mm) / grid.spacing_mm - [part.start for part in box]
    base = np.floor(at).astype(np.int64)
    inside = ((base >= -1) & (base < share.shape)).all(1)
    at, base = at[inside], base[inside]
    part = np.broadcast_to(volume_mm3, len(points))[inside] / np.prod(grid.spacing_mm)
    high = at - base
    weights = np.stack([1 - high, high])  # [2, m, 3]
    _, h, w = (n + 2 for n in share.shape)
    index = ((base[:, 0] + 1) * h + base[:, 1] + 1) * w + base[:, 2] + 1  # into an array with a border of one voxel
    padded = np.zeros([n + 2 for n in share.shape], np.float32)
    for dz in (0, 1):
        for dy in (0, 1):
            ahead = part * weights[dz, :, 0] * weights[dy, :, 1]
            for dx in (0, 1):
                amount = (ahead * weights[dx, :, 2]).astype(np.float32)
                np.add.at(padded.reshape(-1), index + ((dz * h + dy) * w + dx), amount)
    share += padded[1:-1, 1:-1, 1:-1]


def _capsule(share: np.ndarray, grid: Grid, box, tubes: Tubes, i: int, start: list, stop: list) -> None:
    """The i-th tube, wider than a voxel, into its own voxels start .. stop of the grid."""
    a = tubes.start[i]
    ab = (tubes.stop[i] - a).astype(np.float32)
    r0, r1 = float(tubes.r_start[i]), float(tubes.r_stop[i])
    z, y, x = (axis[m:n] - np.float32(c) for axis, m, n, c in zip(grid.axes, start, stop, a, strict=True))
    z, y = z[:, None, None], y[:, None]
    t = (z * ab[0] + y * ab[1] + x * ab[2]) / max(ab @ ab, np.float32(1e-9))
    np.minimum(np.maximum(t, 0, out=t), 1, out=t)
    d = np.sqrt((z - t * ab[0]) ** 2 + (y - t * ab[1]) ** 2 + (x - t * ab[2]) ** 2)
    share_here = 0.5 - (d - r0 - t * np.float32(r1 - r0)) * np.float32(1 / grid.voxel_mm)
    inner = tuple(slice(m - q.start, n - q.start) for m, n, q in zip(start, stop, box, strict=True))
    part = share[inner]
    np.maximum(part, np.minimum(share_here, 1), out=part)
