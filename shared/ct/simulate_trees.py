"""Vessels and bronchi of the simulated lungs: trees that grow from the hilum to random points of the lung.

Radii follow Murray's law from the number of ends that a branch feeds, so that the same tree has large trunks that any
voxel shows and fine branches that need small ones.
"""

from dataclasses import dataclass

import numpy as np

from shared.ct import simulate_anatomy as anatomy
from shared.ct.simulate_anatomy import LOBES, Patient
from shared.ct.simulate_shapes import Grid, Tubes, join, paint, path, smooth, tube_cover

_ENDS, _STEP_MM = 120, 15.0
_MURRAY = 2.5
AIRWAY = {  # reference (z, y, x), radius of the lumen
    "trachea": ([(168, 22, 0), (110, 20, 0), (70, 19, 1), (42, 20, 2)], [8.8, 8.6, 8.6, 8.8]),
    "right main bronchus": ([(42, 20, 2), (30, 20, -14), (20, 18, -30)], [7.2, 6.8, 6.2]),
    "bronchus intermedius": ([(20, 18, -30), (4, 20, -40), (-10, 24, -48)], [5.4, 5.0, 4.2]),
    "right upper bronchus": ([(20, 18, -30), (28, 14, -44)], [4.8, 4.2]),
    "left main bronchus": ([(42, 20, 2), (26, 22, 22), (14, 22, 40)], [6.4, 6.0, 5.2]),
    "left lower bronchus": ([(14, 22, 40), (-4, 28, 50)], [4.4, 3.9]),
    "left upper bronchus": ([(14, 22, 40), (22, 8, 50)], [4.6, 4.0]),
}
_ROOTS = {-1: (8.0, 14.0, -46.0), 1: (4.0, 22.0, 45.0)}  # where the pulmonary arteries enter the lungs


@dataclass(frozen=True)
class LungTree:
    """Branches of both lungs. tubes: n pieces from hilum to ends; parent: index of the piece before, -1 at the hilum;
    lobe: index into LOBES of each piece's end; ends: how many ends each piece feeds."""

    tubes: Tubes
    parent: np.ndarray
    lobe: np.ndarray
    ends: np.ndarray


def grow(patient: Patient) -> LungTree:
    """Arteries (and the bronchi beside them) of a patient; the same at every resolution."""
    rng = np.random.default_rng([patient.seed, 1])
    targets = anatomy.points_in_lungs(patient, rng, 2 * _ENDS, inside_mm=5.0)
    starts, stops, parents, offset = [], [], [], 0
    for side in (-1, 1):
        p = targets[targets[:, 2] * side > 0]
        start, stop, parent = _grow_side(patient.mm(_ROOTS[side]), p)
        starts.append(start), stops.append(stop)
        parents.append(np.where(parent >= 0, parent + offset, -1))
        offset += len(start)
    start, stop, parent = np.concatenate(starts), np.concatenate(stops), np.concatenate(parents)
    ends = np.zeros(len(start))
    is_end = ~np.isin(np.arange(len(start)), parent)
    ends[is_end] = 1
    for i in range(len(start) - 1, -1, -1):  # children come after their parents
        if parent[i] >= 0:
            ends[parent[i]] += ends[i]
    r = 0.78 * ends ** (1 / _MURRAY)
    lobe = anatomy.lobe_of(patient, *stop.T)
    return LungTree(Tubes(start, stop, r, r * np.where(is_end, 0.6, 0.95)), parent, lobe, ends)


def _grow_side(root: np.ndarray, targets: np.ndarray):
    """Pieces (start, stop, parent) that join all targets to the root, nearest targets first."""
    most = 2 + sum(2 + int(d / _STEP_MM * 1.5) for d in np.linalg.norm(targets - root, axis=1))
    nodes, far = np.empty((most, 3)), np.zeros(most)  # node 0 is the root, node i the end of piece i - 1
    nodes[0], n = root, 1
    start, parent = [], []
    for target in targets[np.argsort(((targets - root) ** 2).sum(1))]:
        gap = np.sqrt(((nodes[:n] - target) ** 2).sum(1))
        k = int(np.argmin(gap + 0.35 * far[:n]))  # rather from the trunk than from a twig
        line, before, length = nodes[k].copy(), k, float(gap[k])
        pieces = max(1, round(length / _STEP_MM))
        bend = (line - root) * (0.12 * length / max(float(far[k]), 1.0))
        for t in np.arange(1, pieces + 1) / pieces:
            nodes[n] = line + (target - line) * t + bend * (4 * t * (1 - t))
            far[n] = np.sqrt(((nodes[n] - root) ** 2).sum())
            start.append(before), parent.append(before - 1)
            before, n = n, n + 1
    return nodes[start], nodes[1:n].copy(), np.array(parent, int)


def airway(patient: Patient, name: str) -> Tubes:
    """A large airway in mm (lumen)."""
    points, r = AIRWAY[name]
    curve = smooth(patient.mm(points), 3 * len(points))
    radius = np.interp(np.linspace(0, 1, len(curve)), np.linspace(0, 1, len(r)), r)
    return path(curve, radius * (0.9 + 0.1 * patient.male))


def bronchi(patient: Patient, tree: LungTree) -> Tubes:
    """Segmental and smaller bronchi beside the arteries (lumen), shifted to one side of them."""
    keep = tree.tubes.r_start > 1.15
    t = tree.tubes.take(keep)
    shift = np.array([0.6, 0.75, 0.0]) * (t.r_start + 1.4)[:, None]
    return Tubes(t.start + shift, t.stop + shift, 0.82 * t.r_start, 0.82 * t.r_stop)


def branches_to(tree: LungTree, piece: int) -> np.ndarray:
    """Indices of the pieces from the hilum to `piece`."""
    out = [piece]
    while tree.parent[out[-1]] >= 0:
        out.append(int(tree.parent[out[-1]]))
    return np.array(out[::-1])


def lobe_pieces(tree: LungTree, lobe: str) -> np.ndarray:
    return np.flatnonzero(tree.lobe == LOBES.index(lobe))


def paint_arteries(hu, grid: Grid, patient: Patient, tree: LungTree, value: float) -> None:
    """Vessels over the lungs: arteries, and veins as their thinner mirror between them."""
    box, share = tube_cover(grid, tree.tubes)
    paint(hu, box, share, value)
    veins = tree.tubes.take(tree.tubes.r_start < 1.6)
    shift = np.array([4.0, -7.0, 5.0])
    veins = Tubes(veins.start + shift, veins.stop + shift, 0.8 * veins.r_start, 0.8 * veins.r_stop)
    middle = (0.5 * (veins.start + veins.stop)).astype(np.float32)
    inside = anatomy.lung_distance(patient, *middle.T) < -3
    box, share = tube_cover(grid, veins.take(inside))
    paint(hu, box, share, value)


def paint_airways(hu, grid: Grid, patient: Patient, tree: LungTree) -> None:
    """Trachea and bronchi: walls first, then air."""
    large = join([airway(patient, name) for name in AIRWAY])
    small = bronchi(patient, tree)
    extra = patient.bronchial_wall_mm
    for tubes, wall in ((large, 1.3 + 0.5 * extra), (small, 0.45 + extra)):
        box, share = tube_cover(grid, tubes.widened(by_mm=wall))
        paint(hu, box, share, 15)
    for tubes in (small, large):
        box, share = tube_cover(grid, tubes)
        paint(hu, box, share, -985)
