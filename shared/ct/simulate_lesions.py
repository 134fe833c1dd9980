"""How each finding of a simulated chest CT looks: what it puts into the volume, in mm and HU, at any resolution.

Every function takes a scene and a finding, paints, and returns the box and the share of its voxels that the finding
fills. Position and form come from the seed of the finding, so they are the same at every resolution.
"""

from dataclasses import dataclass

import numpy as np

from shared.ct import simulate_anatomy as anatomy
from shared.ct.simulate_anatomy import Patient
from shared.ct.simulate_findings import Finding
from shared.ct.simulate_organs import Blood
from shared.ct.simulate_shapes import Grid, Tubes, blob, cover, join, paint, path, tube_cover, waves
from shared.ct.simulate_trees import LungTree, bronchi, lobe_pieces


@dataclass
class Scene:
    """A volume in the making. hu: float32 [D, H, W]."""

    hu: np.ndarray
    grid: Grid
    patient: Patient
    blood: Blood
    tree: LungTree

    def lung(self, box, side: int = 0) -> np.ndarray:
        """Share of lung in a box; side: of one lung only (-1 right, 1 left)."""
        zyx = self.grid.coordinates(box)
        share = cover(anatomy.lung_distance(self.patient, *zyx), self.grid.voxel_mm)
        return share * (zyx[2] * side > 0) if side else share

    def in_lobes(self, box, lobes) -> np.ndarray:
        index = anatomy.lobe_of(self.patient, *self.grid.coordinates(box))
        return np.isin(index, [anatomy.LOBES.index(lobe) for lobe in lobes])

    def whole_lungs(self):
        low, high = self.patient.mm((-165, -100, -140)), self.patient.mm((142, 104, 140))
        return self.grid.box(low, high)


def merge(parts):
    """Union of several (box, share)."""
    parts = [(box, share) for box, share in parts if share.size]
    if not parts:
        return (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32)
    low = [min(box[k].start for box, _ in parts) for k in range(3)]
    high = [max(box[k].stop for box, _ in parts) for k in range(3)]
    out = np.zeros([b - a for a, b in zip(low, high, strict=True)], np.float32)
    for box, share in parts:
        inner = tuple(slice(part.start - a, part.stop - a) for part, a in zip(box, low, strict=True))
        np.maximum(out[inner], share, out=out[inner])
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), out


def _bumpy(radius: float, rng, roughness: float):
    """Signed distance to a ball with bumps."""
    ways = rng.standard_normal((5, 3)) * 2.2 / radius
    shift = rng.random(5) * 2 * np.pi

    def distance(z, y, x):
        bumps = sum(
            np.sin(k[0] * z + k[1] * y + k[2] * x + s) for k, s in zip(ways.astype(np.float32), shift, strict=True)
        )
        return np.sqrt(z * z + y * y + x * x) - radius * (1 + np.float32(roughness) * bumps * 0.45)

    return distance


def nodule(scene: Scene, f: Finding, rng):
    r = f.size_mm / 2
    centre = anatomy.point_in_lobe(scene.patient, f.lobes[0], rng, min(r + 4, 22))
    rough = 0.05 if f.form == "calcified" or r < 3 else 0.12
    box, share = blob(scene.grid, centre, 1.4 * r, _bumpy(r, rng, rough))
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def mass(scene: Scene, f: Finding, rng):
    r = f.size_mm / 2
    centre = anatomy.point_in_lobe(scene.patient, f.lobes[0], rng, 0.55 * r)
    box, share = blob(scene.grid, centre, 1.5 * r, _bumpy(r, rng, 0.22))
    share = share * cover(anatomy.cage_distance(scene.patient, *scene.grid.coordinates(box)), scene.grid.voxel_mm)
    ways = rng.standard_normal((14, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    ends = centre + ways * r * rng.uniform(1.25, 1.55, (14, 1))
    spikes = Tubes(centre + ways * 0.85 * r, ends, np.full(14, 1.5), np.full(14, 0.4))
    spike_box, spike = tube_cover(scene.grid, spikes)
    spike = spike * scene.lung(spike_box)
    paint(scene.hu, spike_box, spike, f.density_hu)
    dead = blob(scene.grid, centre, 0.6 * r, _bumpy(0.5 * r, rng, 0.2))
    paint(scene.hu, box, share, f.density_hu)
    paint(scene.hu, *dead, f.density_hu - 22)
    return merge([(box, share), (spike_box, spike)])


def _patch(scene: Scene, lobe: str, size_mm: float, value: float, opacity: float, rng):
    """An ill-defined cloud in one lobe."""
    r = size_mm / 2
    centre = anatomy.point_in_lobe(scene.patient, lobe, rng, 0.5 * min(r, 24))
    reach = 1.6 * r
    box = scene.grid.box(centre - reach, centre + reach)
    zyx = scene.grid.coordinates(box)
    d = np.sqrt(sum((p - np.float32(c)) ** 2 for p, c in zip(zyx, centre, strict=True)))
    d = d - r + np.float32(0.22 * r) * waves(zyx, 0.9 * r + 8, rng)
    share = cover(d, max(scene.grid.voxel_mm, 5.0)) * scene.lung(box) * scene.in_lobes(box, [lobe])
    paint(scene.hu, box, opacity * share, value)
    return box, share


def consolidation(scene: Scene, f: Finding, rng):
    return merge([_patch(scene, lobe, f.size_mm, f.density_hu, 1.0, rng) for lobe in f.lobes])


def ground_glass(scene: Scene, f: Finding, rng):
    parts = []
    for lobe in f.lobes:
        parts.append(_patch(scene, lobe, f.size_mm, f.density_hu, 1.0, rng))
        for _ in range(int(rng.integers(0, 3))):
            parts.append(_patch(scene, lobe, f.size_mm * rng.uniform(0.4, 0.8), f.density_hu, 0.9, rng))
    return merge(parts)


def atelectasis(scene: Scene, f: Finding, rng):
    p, parts = scene.patient, []
    for side in f.sides:
        x = side * rng.uniform(52, 92) * p.scale[2]
        if f.form == "linear":
            y = rng.uniform(-20, 45) * p.scale[1]
            floor = float(anatomy.diaphragm_z(p, np.float32(y), np.float32(x)))
            centre = np.array([floor + rng.uniform(12, 26), y, x])
            normal = np.array([1, 0.35 * rng.standard_normal(), side * rng.uniform(0.15, 0.6)])
            normal /= np.linalg.norm(normal)
            length = rng.uniform(20, 30)

            def plate(z, y, x, normal=normal, length=length):
                across = np.abs(normal[0] * z + normal[1] * y + normal[2] * x) - f.size_mm / 2
                return np.maximum(across, np.sqrt(z * z + y * y + x * x) - length)

            box, share = blob(scene.grid, centre, length + 1, plate)
        else:
            floor = float(anatomy.diaphragm_z(p, np.float32(62 * p.scale[1]), np.float32(0.8 * x)))
            r = 0.8 * f.size_mm  # a ball from behind and below leaves a crescent in the lung
            centre = np.array([floor - 0.15 * r, 82 * p.scale[1] + 0.45 * r, 0.72 * x])
            box, share = blob(scene.grid, centre, 1.4 * r, _bumpy(r, rng, 0.14))
        share = share * scene.lung(box, side)
        paint(scene.hu, box, share, f.density_hu)
        parts.append((box, share))
    return merge(parts)


def emphysema(scene: Scene, f: Finding, rng):
    p = scene.patient
    at = anatomy.points_in_lungs(p, rng, 900, 3.0)
    height = at[:, 0] / (135 * p.scale[0])
    at = at[rng.random(len(at)) < np.clip(0.25 + 0.9 * height, 0.02, 1)]
    at = at[: int(160 + 220 * f.extent)]
    r = f.size_mm / 2 * rng.lognormal(0, 0.25, len(at))
    if f.form == "bullous":
        bullae = anatomy.points_in_lungs(p, rng, 700, 1.5)
        shallow = anatomy.cage_distance(p, *bullae.T.astype(np.float32)) > -16
        bullae = bullae[shallow & (bullae[:, 0] > 45 * p.scale[0])][:14]
        at = np.concatenate([at, bullae])
        r = np.concatenate([r, rng.uniform(6, 9 + 9 * f.extent, len(bullae))])
    way = rng.standard_normal(at.shape) * (0.25 * r[:, None])
    box, share = tube_cover(scene.grid, Tubes(at - way, at + way, r, r))
    share = share * scene.lung(box)
    thin = 0.35 * np.clip(scene.grid.coordinates(box)[0] / np.float32(120 * p.scale[0]) + 0.35, 0, 1)
    paint(scene.hu, box, thin * scene.lung(box), -955)
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def mosaic_attenuation(scene: Scene, f: Finding, rng):
    box = scene.whole_lungs()
    field = waves(scene.grid.coordinates(box), 2 * f.size_mm, rng, n=8)
    lung = scene.lung(box)
    dark = lung * np.clip(0.5 + 2.5 * field, 0, 1)
    paint(scene.hu, box, 0.9 * dark, f.density_hu)
    paint(scene.hu, box, 0.8 * (lung - dark), -735)
    return box, dark


def septal_thickening(scene: Scene, f: Finding, rng):
    """Sheets between lobules, thinner than a voxel: a net at fine resolution, a haze at a coarse one."""
    p, length = scene.patient, 25.0
    box = scene.whole_lungs()
    zyx = scene.grid.coordinates(box)
    width = np.float32(max(scene.grid.voxel_mm, 1.0))
    share = 0
    for _ in range(3):  # zero surfaces of smooth fields; their slope is about 2 pi / length
        away = np.abs(waves(zyx, length, rng)) * np.float32(length / (2 * np.pi))
        share = np.maximum(share, np.clip(1 - away / width, 0, 1) * np.float32(min(f.size_mm / width, 1)))
    share = share * scene.lung(box) * np.clip((38 + anatomy.cage_distance(p, *zyx)) / 14, 0, 1)
    if f.place == "lower_lobe":
        share = share * np.clip((25 - zyx[0] / np.float32(p.scale[0])) / 30, 0, 1)
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def fibrosis(scene: Scene, f: Finding, rng):
    p, tubes = scene.patient, []
    for side in f.sides:
        for _ in range(int(rng.integers(4, 8))):
            t = rng.uniform(-1, 1, 3)
            start = p.mm((112 + 8 * t[0], 22 + 22 * t[1], side * (44 + 18 * t[2])))
            stop = p.mm(
                (78 + 16 * rng.uniform(-1, 1), 16 + 26 * rng.uniform(-1, 1), side * (46 + 22 * rng.uniform(-1, 1)))
            )
            middle = 0.5 * (start + stop) + rng.normal(0, 5, 3)
            tubes.append(path([start, middle, stop], [f.size_mm / 2 + 1.2, f.size_mm / 2, f.size_mm / 3]))
    box, share = tube_cover(scene.grid, join(tubes))
    share = share * scene.lung(box)
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def _lumen(tree: LungTree, lobe: str, width_mm: float, rng) -> Tubes:
    """Wide bronchi that run to the periphery of a lobe."""
    pieces = lobe_pieces(tree, lobe)
    pieces = pieces[(tree.ends[pieces] >= 1) & (tree.ends[pieces] < 10)]
    pieces = pieces[np.isin(tree.parent[pieces], pieces) | (tree.ends[pieces] > 2)]
    t = tree.tubes.take(pieces)
    r = width_mm / 2 * np.clip(0.62 + 0.12 * tree.ends[pieces], 0, 1.15)
    shift = np.array([1.0, 1.2, 0.0]) * (0.7 * width_mm / 2 + t.r_start[:, None])
    return Tubes(t.start + shift, t.stop + shift, r, 0.9 * r)


def bronchiectasis(scene: Scene, f: Finding, rng):
    lumen = join([_lumen(scene.tree, lobe, f.size_mm, rng) for lobe in f.lobes])
    box, wall = tube_cover(scene.grid, lumen.widened(by_mm=1.6))
    wall = wall * scene.lung(box)
    paint(scene.hu, box, wall, 10)
    inner_box, inner = tube_cover(scene.grid, lumen)
    paint(scene.hu, inner_box, inner * scene.lung(inner_box), f.density_hu)
    return box, wall


def peribronchial_thickening(scene: Scene, f: Finding, rng):
    tubes = bronchi(scene.patient, scene.tree)
    box, share = tube_cover(scene.grid, tubes.widened(by_mm=f.size_mm + 0.45))
    return box, share * scene.lung(box)
