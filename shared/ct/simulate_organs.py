"""What fills the simulated thorax: body wall, abdomen, lungs, heart chambers, great vessels, skeleton, table; HU.

`paint_body` draws the large organs slab by slab, so that a 512 x 512 x 256 volume needs little memory beside itself;
the rest is drawn in its own box.
"""

from dataclasses import dataclass

import numpy as np

from shared.ct import simulate_anatomy as anatomy
from shared.ct.simulate_anatomy import Patient
from shared.ct.simulate_shapes import Grid, Tubes, cover, ellipsoid, everything, join, paint, path, smooth, tube_cover

AIR, FAT, MUSCLE, CORTEX, CARTILAGE, SOFT = -1000, -102, 56, 780, 105, 42
_SLAB_VOXELS = 600_000
N_VERTEBRAE, PITCH_MM = 14, 23.0  # of the reference adult; number 0 is the lowest in the field of view
_LOWEST_Z = -163.0


@dataclass(frozen=True)
class Blood:
    """HU of blood and of what takes up contrast. right: right heart and pulmonary arteries; left: left heart, pulmonary
    veins and aorta; cava: superior vena cava."""

    right: float
    left: float
    cava: float
    myocardium: float
    liver: float
    spleen: float


PHASES = {
    "none": Blood(42, 42, 42, 48, 58, 50),
    "pulmonary": Blood(390, 260, 520, 85, 68, 75),  # CT pulmonary angiography
    "venous": Blood(165, 170, 170, 105, 112, 120),
}
# Control points of the great vessels in the reference adult: (z, y, x) and radius.
_VESSELS = {
    "ascending aorta": ([(-8, -8, 6), (10, -20, -8), (30, -24, -17), (52, -18, -16), (66, -8, -6)],
                        [14.5, 15.5, 16, 15, 14]),
    "aortic arch": ([(66, -8, -6), (74, 4, 2), (75, 20, 12), (66, 36, 21), (52, 44, 24)], [14, 13.5, 13, 12.5, 12.5]),
    "descending aorta": ([(52, 44, 24), (20, 47, 26), (-20, 48, 24), (-70, 48, 18), (-120, 46, 10), (-168, 44, 6)],
                         [12.5, 12, 12, 11.5, 11, 10.5]),
    "pulmonary trunk": ([(-6, -46, 14), (12, -42, 22), (26, -30, 24), (34, -18, 20)], [14, 14, 14, 13.5]),
    "right pulmonary artery": ([(34, -16, 18), (33, 0, 4), (29, 8, -18), (24, 10, -38), (8, 14, -46)],
                               [12, 11.5, 11, 9.5, 7.5]),
    "left pulmonary artery": ([(34, -18, 20), (42, 2, 30), (40, 18, 38), (20, 26, 42), (2, 24, 44)],
                              [12, 11.5, 10.5, 8.5, 7]),
    "superior vena cava": ([(96, -14, -22), (70, -12, -28), (40, -10, -31), (4, -12, -31), (-14, -12, -29)],
                           [8, 9.5, 10, 10.5, 11]),
    "inferior vena cava": ([(-40, 0, -26), (-70, 8, -25), (-110, 20, -22), (-168, 24, -18)], [13, 13, 12, 11.5]),
    "left brachiocephalic vein": ([(72, -14, -27), (80, -20, -8), (90, -18, 18), (104, -4, 40)], [7.5, 7, 6.5, 6.5]),
    "right subclavian vein": ([(94, -14, -22), (106, -4, -38), (112, -4, -70), (110, 6, -120)], [7, 6.5, 6, 6]),
    "left subclavian vein": ([(104, -4, 40), (110, -4, 70), (108, 6, 120)], [6, 6, 6]),
    "brachiocephalic trunk": ([(76, 0, -4), (94, 0, -14), (112, 4, -24), (160, 4, -32)], [6.5, 6, 5.5, 4]),
    "left carotid": ([(80, 8, 4), (100, 8, 16), (160, 6, 30)], [4.5, 4.2, 4]),
    "left subclavian artery": ([(78, 20, 12), (104, 20, 26), (120, 16, 46), (116, 14, 90)], [5.5, 5.2, 5, 4.5]),
    "right upper pulmonary vein": ([(-2, 14, -18), (2, 4, -38), (14, -8, -52)], [8, 6.5, 4.5]),
    "right lower pulmonary vein": ([(-12, 24, -18), (-20, 30, -38), (-34, 38, -54)], [8, 6.5, 4.5]),
    "left upper pulmonary vein": ([(0, 14, 24), (8, 2, 42), (22, -8, 54)], [8, 6.5, 4.5]),
    "left lower pulmonary vein": ([(-10, 24, 24), (-18, 32, 44), (-32, 40, 58)], [8, 6.5, 4.5]),
}  # fmt: skip
_RIGHT = ("pulmonary trunk", "right pulmonary artery", "left pulmonary artery")
_CAVA = ("superior vena cava", "left brachiocephalic vein", "right subclavian vein", "left subclavian vein")
# Chambers: centre and half axes along the axes of `heart_axes` (pericardium = 1), and the blood they hold.
_CHAMBERS = (
    ("left ventricle", (0.30, 0.14, 0.20), (0.56, 0.50, 0.50), "left"),
    ("right ventricle", (0.16, -0.40, -0.46), (0.58, 0.42, 0.36), "right"),
    ("left atrium", (-0.52, 0.44, 0.40), (0.33, 0.42, 0.48), "left"),
    ("right atrium", (-0.42, -0.54, 0.10), (0.42, 0.36, 0.56), "right"),
)
# Courses of the coronary arteries on the surface of the heart, in the same coordinates (scaled to the epicardium).
CORONARIES = {
    "left anterior descending": [(-0.62, 0.34, -0.55), (-0.25, 0.25, -0.88), (0.2, 0.05, -0.92), (0.65, -0.1, -0.62)],
    "circumflex": [(-0.60, 0.40, -0.50), (-0.45, 0.85, -0.15), (-0.25, 0.88, 0.35), (0.1, 0.75, 0.62)],
    "right coronary": [(-0.72, -0.2, -0.55), (-0.45, -0.72, -0.42), (-0.1, -0.9, 0.02), (-0.05, -0.66, 0.62)],
}


def vessel(patient: Patient, name: str, n: int = 0) -> Tubes:
    """A great vessel in mm, as n pieces (0: two for each control point)."""
    points, radius = (np.array(part, float) for part in _VESSELS[name])
    n = n or 2 * len(points)
    curve = smooth(patient.mm(points), n + 1)
    r = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(radius)), radius) * np.mean(patient.scale[1:])
    if "aort" in name:
        r = r * patient.aorta
    if name == "ascending aorta" and patient.ascending_mm:
        bell = np.sin(np.linspace(0.12, 0.9, n + 1) * np.pi)
        r = r + (patient.ascending_mm / 2 - r.max()) * bell
    return path(curve, r)


def coronary(patient: Patient, name: str, n: int = 16) -> np.ndarray:
    """Points [n, 3] in mm along a coronary artery."""
    curve = smooth(CORONARIES[name], n)
    curve *= 0.90 / np.linalg.norm(curve, axis=1, keepdims=True)
    return anatomy.from_heart(patient, curve)


def paint_body(hu: np.ndarray, grid: Grid, patient: Patient, blood: Blood) -> None:
    """Body wall, cavity, abdomen and lungs into hu [D, H, W], which is overwritten."""
    per_slab = max(1, _SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for first in range(0, grid.shape[0], per_slab):
        box = (slice(first, min(first + per_slab, grid.shape[0])), *everything(grid)[1:])
        _paint_slab(hu[box], grid, grid.coordinates(box), patient, blood)
    _breasts(hu, grid, patient)
    _axillae(hu, grid, patient)
    _abdomen(hu, grid, patient, blood)


def _paint_slab(part, grid: Grid, zyx, patient: Patient, blood: Blood) -> None:
    voxel = grid.voxel_mm
    part[:] = _table(patient, *zyx[1:])
    every = (slice(None),) * 3
    muscle = anatomy.trunk_distance(patient, *zyx)
    paint(part, every, cover(muscle - np.float32(patient.fat_mm), voxel), FAT)
    paint(part, every, cover(muscle, voxel), MUSCLE)
    z, y, x = zyx
    half_y, half_x = 108 * patient.scale[1] + 6, 142 * patient.scale[2] + 6
    rows, columns = np.flatnonzero(np.abs(y.ravel()) < half_y), np.flatnonzero(np.abs(x.ravel()) < half_x)
    inner = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    zyx = z, y[:, inner[1]], x[:, :, inner[2]]
    cage = anatomy.cage_distance(patient, *zyx)
    paint(part, inner, cover(np.abs(cage - 13) - np.float32(1.2), voxel) * np.float32(0.6), FAT)  # between muscles
    paint(part, inner, cover(cage, voxel), FAT + 8)
    lung = anatomy.lung_distance(patient, *zyx, cage=cage)
    paint(part, inner, cover(lung, voxel), anatomy.lung_density(patient, *zyx))
    _fissures(part[inner], lung, grid, zyx, patient)


def _table(patient: Patient, y, x) -> np.ndarray:
    """Air and the couch: two thin shells with foam between, curved."""
    depth = y - np.float32(patient.back_mm + 2) + (x / 420) ** 2 * 60
    shell = np.exp(-0.5 * (depth / 2.0) ** 2) + np.exp(-0.5 * ((depth - 38) / 2.0) ** 2)
    wide = np.clip((225 - np.abs(x)) / 6, 0, 1)
    foam = 45 * ((depth > 0) & (depth < 38))
    return (AIR + wide * (np.minimum(shell, 1) * 820 + foam))[0]


def _fissures(part, lung, grid: Grid, zyx, patient: Patient) -> None:
    """Interlobar fissures: sheets a millimetre thin that only fine voxels show."""
    z, y, x = anatomy.reference(patient, *zyx)
    line = anatomy.fissure_z(y)
    oblique = np.abs(z - line) * np.float32(0.74)
    horizontal = np.where((x < 0) & (z > line), np.abs(z - 6), 99)
    width = max(1.0, 1.2 * grid.spacing_mm[0])
    sheet = np.clip(1 - np.minimum(oblique, horizontal) / np.float32(width), 0, 1) * np.float32(0.9 / width)
    part += np.where(lung < -1, sheet * 260, 0)


def _breasts(hu, grid: Grid, patient: Patient) -> None:
    if patient.male:
        return
    for side in (-1, 1):
        centre = np.array([2, -96, side * 72]) * patient.scale - [0, 0.45 * patient.fat_mm, 0]
        half = np.array([52, 18 + 0.7 * patient.fat_mm, 60])
        box = grid.box(centre - half - 5, centre + half + 5)
        zyx = grid.coordinates(box)
        outside = cover(-anatomy.trunk_distance(patient, *zyx), grid.voxel_mm)
        paint(hu, box, cover(ellipsoid(zyx, centre, half), grid.voxel_mm) * outside, FAT)
        gland = cover(ellipsoid(zyx, centre, half * [0.5, 0.45, 0.5]), grid.voxel_mm) * outside
        paint(hu, box, gland * (0.7 if patient.age < 55 else 0.35), 35)


def _axillae(hu, grid: Grid, patient: Patient) -> None:
    for side in (-1, 1):
        centre = patient.mm((86, 6, side * 124))
        half = np.array([44, 26, 16])
        box = grid.box(centre - half, centre + half)
        zyx = grid.coordinates(box)
        outside = cover(-anatomy.cage_distance(patient, *zyx) + 8, grid.voxel_mm)
        paint(hu, box, cover(ellipsoid(zyx, centre, half), grid.voxel_mm) * outside, FAT)


def _abdomen(hu, grid: Grid, patient: Patient, blood: Blood) -> None:
    """Liver, spleen and stomach under the diaphragm; gas lies in front, as the patient lies on the back."""
    top = anatomy.diaphragm_z(patient, np.float32(0), np.float32(-62 * patient.scale[2]))
    box = grid.box((-400, -400, -400), (float(top) + 10, 400, 400))
    if box[0].stop <= box[0].start:
        return
    zyx = grid.coordinates(box)
    z, y, x = zyx
    voxel = grid.voxel_mm
    under = np.maximum(anatomy.cage_distance(patient, *zyx) + 4, z - anatomy.diaphragm_z(patient, y, x) + 3)
    rz, ry, rx = anatomy.reference(patient, *zyx)
    rz = rz + np.float32(patient.inspiration_mm / patient.scale[0])
    spine = 34 - np.sqrt(rx**2 + (ry - 78) ** 2)
    liver = np.maximum(np.maximum(under, spine), 0.9 * (rx - 18 - 0.35 * (rz + 80) - 0.25 * (-ry)))
    paint(hu, box, cover(liver, voxel), blood.liver)
    paint(hu, box, cover(np.maximum(under, ellipsoid((rz, ry, rx), (-122, 44, 92), (44, 42, 32))), voxel), blood.spleen)
    stomach = np.maximum(under, ellipsoid((rz, ry, rx), (-118, -18, 62), (42, 46, 40)))
    paint(hu, box, cover(stomach, voxel), 40)
    inner = np.maximum(stomach + 4, spine)
    paint(hu, box, cover(inner, voxel), np.where(ry < -26, -960, 22))
    muscle = np.abs(under - 1.5) - 2.0  # the diaphragm itself
    paint(hu, box, cover(np.where(z > anatomy.diaphragm_z(patient, y, x) - 12, muscle, 9), voxel), 45)


def paint_heart(hu, grid: Grid, patient: Patient, blood: Blood) -> None:
    """Epicardial fat, myocardium, chambers and coronary arteries."""
    reach = 72 * patient.heart * max(patient.scale)
    centre = patient.mm(anatomy.HEART_CENTRE)
    box = grid.box(centre - reach, centre + reach)
    zyx = grid.coordinates(box)
    voxel = grid.voxel_mm
    u = anatomy.heart_axes(patient, *zyx)
    mm = np.float32(48 * patient.heart * np.mean(patient.scale))
    rho = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2)
    above = zyx[0] - anatomy.diaphragm_z(patient, zyx[1], zyx[2])
    pericardium = np.maximum((rho - 1) * mm, (5 - above) * 0.6)
    paint(hu, box, cover(pericardium, voxel), FAT + 12)
    paint(hu, box, cover(pericardium, voxel) * cover(-(pericardium + 1.4), voxel) * 0.8, 40)  # the pericardium itself
    groove = 0.06 * np.exp(-(((u[1] + 0.1 - 0.35 * u[0]) / 0.16) ** 2)) + 0.05 * np.exp(-(((u[0] + 0.42) / 0.14) ** 2))
    wall = np.maximum((rho - 0.95 + groove) * mm, pericardium + 2)
    paint(hu, box, cover(wall, voxel), blood.myocardium)
    for _, at, half, holds in _CHAMBERS:
        d = (np.sqrt(sum(((p - a) / h) ** 2 for p, a, h in zip(u, at, half, strict=True))) - 1) * mm * np.mean(half)
        paint(hu, box, cover(np.maximum(d, wall + 1.5), voxel), getattr(blood, holds))
    for name in CORONARIES:
        draw(hu, grid, path(coronary(patient, name), np.linspace(2.0, 1.2, 16)), blood.left * 0.9 + 4)


def draw(hu, grid: Grid, tubes: Tubes, value: float) -> None:
    """Tubes of one value, painted over what is there."""
    box, share = tube_cover(grid, tubes)
    paint(hu, box, share, value)


def paint_vessels(hu, grid: Grid, patient: Patient, blood: Blood) -> None:
    """Great vessels, seen against fat and, with contrast, by their blood; oesophagus with a little air."""
    cava_low = 0.35 * blood.right + 30  # mixed with blood that has no contrast yet
    rest = [name for name in _VESSELS if name not in (*_RIGHT, *_CAVA, "inferior vena cava")]
    for names, value in (
        (["inferior vena cava"], cava_low),
        (rest, blood.left),
        (_CAVA, blood.cava),
        (_RIGHT, blood.right),
    ):
        draw(hu, grid, join([vessel(patient, name) for name in names]), value)
    oesophagus = smooth(
        patient.mm([(165, 34, 4), (90, 36, 4), (40, 36, 6), (-20, 40, 6), (-90, 34, 14), (-112, 18, 26)]), 14
    )
    draw(hu, grid, path(oesophagus, 7.0), 38)
    wall = smooth(patient.mm([(165, 36, 3), (20, 38, 6)]), 5)
    draw(hu, grid, path(wall, 2.2), -420)  # a little air


def vertebra_z(patient: Patient, number: int) -> float:
    """Reference z of the middle of a vertebra."""
    return _LOWEST_Z + PITCH_MM * (number + 0.5)


def vertebra_name(number: int) -> str:
    """T1 .. T12, L1: number 0 is L1."""
    return "L1" if number == 0 else f"T{13 - number}"


def paint_spine(hu, grid: Grid, patient: Patient) -> None:
    """Vertebral bodies with cortex, discs, canal, arches and processes."""
    low, high = patient.mm((-190, 20, -48)), patient.mm((190, 150, 48))
    box = grid.box(low, high)
    zyx = grid.coordinates(box)
    voxel = grid.voxel_mm
    z, y, x = anatomy.reference(patient, *zyx)
    dy = y - anatomy.spine_y(patient, z)
    taper = np.float32(1) - np.clip((z + 40) / 600, -0.15, 0.35)
    half_x, half_y = 19.0 * taper, 15.5 * taper
    column = (np.sqrt((x / half_x) ** 2 + (dy / half_y) ** 2) - 1) * 16
    number = np.clip(np.floor((z - _LOWEST_Z) / PITCH_MM), 0, N_VERTEBRAE - 1).astype(int)
    off = z - (_LOWEST_Z + PITCH_MM * (number + 0.5))
    left = np.ones(N_VERTEBRAE, np.float32)
    for k, share in patient.collapsed.items():
        left[k] = share
    height = 9.6 * (1 - (1 - left[number]) * np.clip(0.6 - dy / 32, 0.15, 1))  # the front edge gives way first
    lost = 9.6 * (1 - left[number]) * np.clip(0.6 - dy / 32, 0.15, 1)
    body = np.maximum(column, np.abs(off + lost) - height)
    paint(hu, box, cover(column + 0.5, voxel), 85)  # discs
    paint(hu, box, cover(body, voxel), CORTEX * 0.62)
    marrow = patient.marrow_hu + 90 * (1 - left[number])
    paint(hu, box, cover(body + 1.6, voxel), marrow)
    arch = np.maximum((np.sqrt((x / 17) ** 2 + ((dy - 22) / 13) ** 2) - 1) * 14, np.abs(off + 2) - 8.5)
    paint(hu, box, cover(arch, voxel), 430)
    process = np.maximum(np.abs(x) - 3.2, np.maximum(np.abs(dy - 40) - 14, np.abs(off + 7) - 6.5))
    paint(hu, box, cover(process, voxel), 360)
    transverse = np.maximum(np.abs(x) - 34, np.maximum(np.abs(dy - 24 - 0.25 * np.abs(x)) - 4.5, np.abs(off) - 5))
    paint(hu, box, cover(transverse, voxel) * cover(-(column), voxel), 380)
    canal = (np.sqrt((x / 11) ** 2 + ((dy - 22) / 8.5) ** 2) - 1) * 9
    paint(hu, box, cover(canal, voxel), 24)


def rib(patient: Patient, number: int, side: int, n: int = 15) -> np.ndarray:
    """Points [n, 3] in mm along rib 1..11, from the spine (first) to the front; side: -1 right, 1 left."""
    index = 12.6 - number
    z0 = _LOWEST_Z + PITCH_MM * (index + 0.5) + 4
    t = np.linspace(0.02, 0.98 if number < 8 else 0.98 - 0.09 * (number - 7), n)
    angle = np.pi * (0.06 + 0.84 * t)  # 0 = back, pi = front
    fall = (18 + 3.6 * min(number, 8)) * (t - 0.1 * np.sin(2 * np.pi * t))
    z = z0 - fall
    half_x, half_y, y0 = (np.interp(z, anatomy._CAGE[:, 0], anatomy._CAGE[:, k]) for k in (1, 2, 3))
    s, c = np.sin(angle), np.cos(angle)
    square = 1 / np.sqrt(np.maximum(1 - 0.35 * (s * c) ** 2, 0.5))
    points = np.stack([z, y0 + (half_y + 5) * c * square, side * (half_x + 5) * s * square], 1)
    back = np.clip(1 - t / 0.16, 0, 1)
    head = np.stack([np.full(n, z0), anatomy.spine_y(patient, z) + 14, np.full(n, side * 22.0)], 1)
    return patient.mm(points * (1 - back[:, None]) + head * back[:, None])


def paint_ribs(hu, grid: Grid, patient: Patient) -> None:
    """Ribs with marrow, cartilages, sternum, clavicles and shoulder blades."""
    lines = {(k, side): rib(patient, k, side) for k in range(1, 12) for side in (-1, 1)}
    ribs = join([path(line, np.full(len(line), 4.4 if k > 1 else 5.2)) for (k, _), line in lines.items()])
    draw(hu, grid, ribs, CORTEX * 0.75)
    if grid.voxel_mm < 3:
        draw(hu, grid, ribs.widened(by_mm=-1.7), 170)
    sternum_y = {k: -np.interp(z, anatomy._CAGE[:, 0], anatomy._CAGE[:, 2] - anatomy._CAGE[:, 3]) - 7
                 for k, z in (("top", 84), ("angle", 60), ("low", -30))}  # fmt: skip
    cartilage, sternum, clavicles, blades = [], [], [], []
    for k in range(2, 8):
        for side in (-1, 1):
            end = lines[k, side][-1]
            z = np.interp(k, (2, 7), (60, -28)) * patient.scale[0]
            y = np.interp(z / patient.scale[0], (-30, 60), (sternum_y["low"], sternum_y["angle"])) * patient.scale[1]
            middle = np.array([0.5 * (end[0] + z) - 6, 0.55 * end[1] + 0.45 * y - 4, 0.5 * end[2] + side * 8])
            cartilage.append(path(smooth([end, middle, (z, y, side * 16)], 6), 4.6))
    for low, high, y_low, y_high, wide in ((-30, 60, "low", "angle", 15), (60, 86, "angle", "top", 24)):
        for x in np.linspace(-wide + 5, wide - 5, 5):
            line = patient.mm([(low, sternum_y[y_low], x), (high, sternum_y[y_high], x)])
            sternum.append(path(smooth(line, 4), 5.0))
    for side in (-1, 1):
        line = [(84, -34, side * 22), (98, -34, side * 60), (112, -8, side * 104), (118, 8, side * 140)]
        clavicles.append(path(smooth(patient.mm(line), 10), 6.0))
        for t in np.linspace(0, 1, 9):
            blade = [
                (112 - 14 * t, 50 + 22 * t, side * (128 - 34 * t)),
                (20 + 30 * t, 84 + 4 * t, side * (122 - 44 * t)),
            ]
            blades.append(path(smooth(patient.mm(blade), 4), 2.8))
    for tubes, value in ((cartilage, CARTILAGE), (sternum, 250), (clavicles, 480), (blades, 420)):
        draw(hu, grid, join(tubes), value)
