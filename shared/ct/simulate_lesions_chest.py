"""How findings of the pleura, heart, vessels, mediastinum, bones and devices look; continues `simulate_lesions`."""

import numpy as np

from shared.ct import simulate_anatomy as anatomy
from shared.ct import simulate_lesions as lungs
from shared.ct.simulate_findings import Finding, vertebra_number
from shared.ct.simulate_lesions import Scene, merge
from shared.ct.simulate_organs import CORTEX, coronary, rib, vertebra_z, vessel
from shared.ct.simulate_shapes import blob, cover, join, paint, path, smooth, tube_cover
from shared.ct.simulate_trees import branches_to, lobe_pieces

_STATIONS = {  # reference (z, y, x) of lymph nodes
    ("", "mediastinal"): [(58, 4, -20), (66, -2, -14), (22, 26, 4), (46, 2, 30), (76, -18, 4)],
    ("right", "hilar"): [(20, 6, -50), (8, 22, -52), (30, 14, -44)],
    ("left", "hilar"): [(18, 12, 52), (2, 30, 54), (30, 16, 50)],
    ("right", "axillary"): [(86, 4, -126), (72, 10, -126), (98, -2, -122)],
    ("left", "axillary"): [(86, 4, 126), (72, 10, 126), (98, -2, 122)],
}
_ARTERIES = {"lad": "left anterior descending", "circumflex": "circumflex", "rca": "right coronary"}
_AORTA = {"arch": "aortic arch", "descending": "descending aorta", "ascending": "ascending aorta"}


def _draw(scene: Scene, tubes, value: float):
    box, share = tube_cover(scene.grid, tubes)
    paint(scene.hu, box, share, value)
    return box, share


def _along_wall(scene: Scene, weight):
    """Box of the lungs, distance to the chest wall, and `weight` of reference coordinates there."""
    box = scene.whole_lungs()
    zyx = scene.grid.coordinates(box)
    deep = -anatomy.cage_distance(scene.patient, *zyx)
    lung = anatomy.lung_distance(scene.patient, *zyx, cage=-deep)
    return box, zyx, deep, lung, weight(*anatomy.reference(scene.patient, *zyx))


def pleural_effusion(scene: Scene, f: Finding, rng):
    """Free fluid behind and below, as the patient lies on the back."""
    reach = 70 - 60 * f.extent

    def weight(z, y, x):
        return np.clip((y + 20 - reach) / 45, 0, 1.15) * np.clip(1.1 - (z + 120) / 330, 0.35, 1)

    box, zyx, deep, lung, w = _along_wall(scene, weight)
    share = cover(np.maximum(deep - f.size_mm * w, lung), scene.grid.voxel_mm)
    if f.side != "bilateral":
        share = share * (zyx[2] * f.sides[0] > 0)
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def pneumothorax(scene: Scene, f: Finding, rng):
    """Air in front and above, and the edge of the lung as a fine line."""

    def weight(z, y, x):
        return np.maximum(np.clip((20 - y) / 60, 0, 1), np.clip((z - 60) / 50, 0, 1)) + 0.15

    box, zyx, deep, lung, w = _along_wall(scene, weight)
    edge = deep - f.size_mm * w
    voxel = scene.grid.voxel_mm
    here = (zyx[2] * f.sides[0] > 0) * np.float32(1)
    share = cover(np.maximum(edge, lung), voxel) * here
    line = (cover(edge - 0.9, voxel) - cover(edge, voxel)) * cover(lung, voxel) * here
    paint(scene.hu, box, share, f.density_hu)
    paint(scene.hu, box, line, -60)
    return box, share


def cardiomegaly(scene: Scene, f: Finding, rng):
    reach = 75 * scene.patient.heart * max(scene.patient.scale)
    centre = scene.patient.mm(anatomy.HEART_CENTRE)
    box = scene.grid.box(centre - reach, centre + reach)
    return box, cover(anatomy.heart_distance(scene.patient, *scene.grid.coordinates(box)), scene.grid.voxel_mm)


def pericardial_effusion(scene: Scene, f: Finding, rng):
    p = scene.patient
    reach = 75 * p.heart * max(p.scale) + f.size_mm
    centre = p.mm(anatomy.HEART_CENTRE)
    box = scene.grid.box(centre - reach, centre + reach)
    z, y, x = scene.grid.coordinates(box)
    d = anatomy.heart_distance(p, z, y, x)
    low = np.clip(0.55 + 0.006 * (y - centre[1]) - 0.004 * (z - centre[0]), 0.25, 1)  # it gathers behind and below
    floor = (anatomy.diaphragm_z(p, y, x) - z + 2) * np.float32(0.7)
    top = z - np.float32(centre[0] + 42 * p.scale[0])
    shell = np.maximum(np.maximum(d - f.size_mm * low, floor), np.maximum(-d, top))
    spine = (anatomy.spine_y(p, z / np.float32(p.scale[0])) - 34) * p.scale[1]  # aorta and oesophagus stay
    share = cover(np.maximum(shell, y - spine), scene.grid.voxel_mm)
    paint(scene.hu, box, share, f.density_hu)
    return box, share


def coronary_calcification(scene: Scene, f: Finding, rng):
    line = coronary(scene.patient, _ARTERIES[f.place], 60)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    n, parts = 1 + int(f.extent * 3), []
    for k in range(n):
        start = length[-1] * (0.12 + 0.7 * k / n + 0.1 * rng.random())
        at = np.linspace(start, min(start + f.size_mm / n + 1.5, length[-1]), 4)
        points = np.stack([np.interp(at, length, line[:, axis]) for axis in range(3)], 1)
        parts.append(path(points, 1.0 + 0.9 * f.extent * rng.random()))
    return _draw(scene, join(parts), f.density_hu)


def aortic_calcification(scene: Scene, f: Finding, rng):
    wall = vessel(scene.patient, _AORTA[f.place], 24)
    middle = 0.5 * (wall.start + wall.stop)
    along = wall.stop - wall.start
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    u = np.cross(along, [0.2, 0.1, 0.97])
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(along, u)
    plaques = []
    for _ in range(2 + int(3 * f.extent)):
        k = int(rng.integers(2, len(middle) - 4))
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.4, 1.1), 4)
        at = np.minimum(k + np.array([0, 0, 1, 1]), len(middle) - 1)
        out = np.cos(angle)[:, None] * u[at] + np.sin(angle)[:, None] * v[at]
        plaques.append(path(middle[at] + out * (wall.r_start[at] - 0.4)[:, None], f.size_mm / 2))
    return _draw(scene, join(plaques), f.density_hu)


def aortic_aneurysm(scene: Scene, f: Finding, rng):
    return tube_cover(scene.grid, vessel(scene.patient, "ascending aorta"))


def pulmonary_embolism(scene: Scene, f: Finding, rng):
    """A filling defect: dark in bright blood."""
    if f.place == "main":
        name = f"{f.side} pulmonary artery"
        tubes = vessel(scene.patient, name, 16).take(slice(4, 4 + max(3, int(f.size_mm / 6))))
        clot = tubes.widened(times=0.62)
    else:
        tree = scene.tree
        pieces = lobe_pieces(tree, f.lobes[0])
        thick = pieces[tree.tubes.r_start[pieces] > np.quantile(tree.tubes.r_start[pieces], 0.7)]
        chain = branches_to(tree, int(thick[rng.integers(len(thick))]))[-max(2, int(f.size_mm / 10)) :]
        clot = tree.tubes.take(chain).widened(times=0.95)
    return _draw(scene, clot, f.density_hu)


def lymphadenopathy(scene: Scene, f: Finding, rng):
    places = _STATIONS[f.side, f.place]
    n = min(1 + int(rng.integers(1, 3)), len(places))
    parts = []
    for k in rng.permutation(len(places))[:n]:
        size = f.size_mm if not parts else f.size_mm * rng.uniform(0.6, 0.9)
        centre = scene.patient.mm(places[k]) + rng.normal(0, 2, 3)
        stretch = rng.uniform(1.2, 1.5)

        def node(z, y, x, size=size, stretch=stretch):
            return np.sqrt((z / stretch) ** 2 + (y / 1.15) ** 2 + x * x) - size / 2

        box, share = blob(scene.grid, centre, size, node)
        paint(scene.hu, box, share, f.density_hu)
        parts.append((box, share))
    return merge(parts)


def hiatal_hernia(scene: Scene, f: Finding, rng):
    p, r = scene.patient, f.size_mm / 2
    centre = p.mm((-76, 36, 10)) + r * np.array([0.25, -0.1, 0.25])

    def sac(z, y, x):
        return np.sqrt((z / 1.15) ** 2 + (y / 0.9) ** 2 + x * x) - r

    box, share = blob(scene.grid, centre, 1.2 * r, sac)
    z, y, _ = scene.grid.coordinates(box)
    share = share * cover(y - (anatomy.spine_y(p, z / np.float32(p.scale[0])) - 17) * p.scale[1], scene.grid.voxel_mm)
    paint(scene.hu, box, share, 45)
    inner_box, inner = blob(scene.grid, centre, 1.2 * r, lambda z, y, x: sac(z, y, x) + 4)
    y = scene.grid.coordinates(inner_box)[1]
    inside = inner * cover(y - np.float32(centre[1] + 0.8 * r), scene.grid.voxel_mm)
    paint(scene.hu, inner_box, inside, np.where(y < centre[1] - 0.15 * r, -940, f.density_hu))
    return box, share


def fracture(scene: Scene, f: Finding, rng):
    p = scene.patient
    if f.place == "vertebra":
        z = vertebra_z(p, vertebra_number(f.detail))
        centre = p.mm((z, float(anatomy.spine_y(p, z)), 0.0))

        def body(z, y, x):
            return np.maximum(np.sqrt((y / 16) ** 2 + (x / 19) ** 2) * 16 - 16, np.abs(z) - 11)

        return blob(scene.grid, centre, 20, body)
    side = f.sides[0]
    line = rib(p, int(f.detail.split()[1]), side, 40)
    k = int(rng.integers(14, 26))
    along = line[k + 1] - line[k - 1]
    along /= np.linalg.norm(along)
    inwards = np.array([0, -line[k][1], -line[k][2]])
    inwards /= np.linalg.norm(inwards)
    cut = blob(scene.grid, line[k], 6.0, lambda z, y, x: np.sqrt(z * z + y * y + x * x) - 5.6)
    paint(scene.hu, *cut, 60)
    shift = inwards * f.size_mm
    ends = [path([line[k] - 7 * along, line[k] + 1.5 * along], 4.0),
            path([line[k] - 0.5 * along + shift, line[k] + 8 * along + 0.6 * shift], 4.0)]  # fmt: skip
    fragments = _draw(scene, join(ends), CORTEX * 0.75)
    return merge([cut, fragments])


def _chest_wall(scene: Scene, z_reference: float, x_reference: float) -> np.ndarray:
    """Point [3] in mm just outside the muscles at the front."""
    z, _, x = scene.patient.mm((z_reference, 0, x_reference))
    y = np.linspace(-160, -20, 281, dtype=np.float32)
    d = anatomy.trunk_distance(scene.patient, np.full_like(y, z), y, np.full_like(y, x))
    return np.array([z, float(y[np.argmin(np.abs(d - 2))]), x])


def _to_heart(scene: Scene, start, side: int) -> np.ndarray:
    """Way of a wire or catheter from the chest wall through the veins: to the superior vena cava."""
    p = scene.patient
    veins = [
        (108, -6, side * 78),
        (104, -6, side * 44),
        (92, -14, -20 if side < 0 else -4),
        (62, -12, -28),
        (34, -11, -31),
    ]
    return np.concatenate([[start], p.mm(veins)])


def pacemaker(scene: Scene, f: Finding, rng):
    side = f.sides[0]
    centre = _chest_wall(scene, 72, side * 84)
    half = f.size_mm / 2

    def box_shape(z, y, x):
        flat = np.sqrt((z / half) ** 4 + (x / half) ** 4) ** 0.5 * half - half
        return np.maximum(flat, np.abs(y + 0.12 * side * x) - 4.5)

    generator = blob(scene.grid, centre, 1.3 * half, box_shape)
    paint(scene.hu, *generator, f.density_hu)
    way = _to_heart(scene, centre, side)
    apex = anatomy.from_heart(scene.patient, [(-0.4, -0.6, 0.0), (0.1, -0.5, -0.3), (0.58, -0.3, -0.35)])
    lead = _draw(scene, path(smooth(np.concatenate([way, apex]), 40), 1.1), 2600)
    return merge([generator, lead])


def central_line(scene: Scene, f: Finding, rng):
    side, parts = f.sides[0], []
    if f.form == "port":
        start = _chest_wall(scene, 70, side * 78)
        port = blob(scene.grid, start, 14, lambda z, y, x: np.maximum(np.sqrt(z * z + x * x) - 12, np.abs(y) - 5))
        paint(scene.hu, *port, 1800)
        parts.append(port)
    else:
        start = scene.patient.mm((150, 0, side * 40))
    way = _to_heart(scene, start, side)
    way = np.concatenate([way if f.form == "port" else way[[0, 2, 3, 4, 5]], scene.patient.mm([(12, -12, -31)])])
    parts.append(_draw(scene, path(smooth(way, 32), f.size_mm / 2), f.density_hu))
    return merge(parts)


def surgical_material(scene: Scene, f: Finding, rng):
    """Wires around the sternum after a sternotomy."""
    p, rings = scene.patient, []
    turn = np.linspace(0, 2 * np.pi, 14)
    for z in np.linspace(-20, 74, 6):
        _, y, _ = p.mm((0, -np.interp(z, anatomy._CAGE[:, 0], anatomy._CAGE[:, 2] - anatomy._CAGE[:, 3]) - 7, 0))
        ring = np.stack([np.full(14, z * p.scale[0]) + 2 * np.sin(turn), y + 8 * np.cos(turn), 12 * np.sin(turn)], 1)
        rings.append(path(ring, f.size_mm / 2))
    return _draw(scene, join(rings), f.density_hu)


DRAW = {name: vars(lungs)[name] for name in (
    "nodule", "mass", "ground_glass", "consolidation", "atelectasis", "emphysema", "fibrosis", "bronchiectasis",
    "peribronchial_thickening", "septal_thickening", "mosaic_attenuation")}  # fmt: skip
DRAW |= {draw.__name__: draw for draw in (
    pleural_effusion, pneumothorax, cardiomegaly, pericardial_effusion, coronary_calcification, aortic_calcification,
    aortic_aneurysm, pulmonary_embolism, lymphadenopathy, hiatal_hernia, fracture, pacemaker, central_line,
    surgical_material)}  # fmt: skip
