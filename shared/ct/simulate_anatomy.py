"""The simulated patient and the form of the thorax: body, cavity, lungs with lobes, diaphragm, heart, as functions of
mm.

Every function takes broadcastable coordinates z, y, x in mm (grid or points) and answers in mm, so that the same
patient can be asked at any resolution. The form is given for a reference adult and scaled; tissue values are in HU.
"""

from dataclasses import dataclass, field

import numpy as np

from shared.ct.simulate_shapes import waves

# Inner surface of the rib cage of the reference adult: z, half width, half depth, y of its middle, mm.
_CAGE = np.array([
    (-165, 128, 90, 0), (-120, 134, 93, 0), (-80, 136, 94, 0), (-40, 134, 92, 0), (0, 129, 87, 1), (40, 117, 78, 5),
    (70, 100, 66, 12), (95, 78, 52, 20), (112, 56, 40, 25), (125, 35, 26, 28), (134, 10, 8, 30), (140, 0.5, 0.5, 30),
])  # fmt: skip
# Outline of muscle and bone around it: z, half width, half depth, y of its middle.
_TRUNK = np.array([
    (-165, 141, 103, 2), (-80, 149, 107, 2), (0, 148, 104, 3), (50, 158, 96, 7), (90, 172, 86, 13), (120, 168, 74, 18),
    (145, 120, 64, 20), (165, 75, 58, 20),
])  # fmt: skip
# Half width of the mediastinum by y, at the height of the hila.
_MEDIASTINUM = np.array([(-95, 7), (-70, 9), (-50, 17), (-30, 31), (0, 37), (25, 30), (45, 22), (70, 26), (100, 30)])
_NARROWS = np.array([(-120, 0.75), (-60, 0.8), (0, 1.0), (45, 1.0), (75, 0.95), (110, 0.85), (140, 0.8)])
LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
HEART_CENTRE = (-30.0, -20.0, 20.0)
_HEART_AXES = np.array([(-0.45, -0.52, 0.73), (0.55, 0.45, 0.70), (-0.70, 0.73, 0.08)])  # rows: long, base, depth
_HEART_HALF = (66.0, 46.0, 43.0)


@dataclass(frozen=True)
class Patient:
    """scale: (z, y, x) of the reference thorax; fat_mm: under the skin; muscle: thickness relative to the reference;
    inspiration_mm: how far the diaphragm lies below the reference; lung_hu: aerated lung; marrow_hu: vertebral marrow;
    bulge_mm: kyphosis; seed: of vessels and other irregularities. What findings change: heart (size), aorta (width),
    ascending_mm (diameter of a dilated ascending aorta, 0 = by `aorta`), collapsed {vertebra: share of height left}."""

    male: bool
    age: int
    scale: tuple[float, float, float]
    fat_mm: float
    muscle: float
    inspiration_mm: float
    lung_hu: float
    marrow_hu: float
    bulge_mm: float
    seed: int
    heart: float = 1.0
    aorta: float = 1.0
    ascending_mm: float = 0.0
    bronchial_wall_mm: float = 0.0
    collapsed: dict = field(default_factory=dict)

    def mm(self, reference) -> np.ndarray:
        """Points [.., 3] of the reference adult -> of this patient."""
        return np.asarray(reference, float) * self.scale

    @property
    def half_width_mm(self) -> float:
        """Of the chest with fat, without the shoulders."""
        return 149.0 * self.scale[2] + self.fat_mm + 6

    @property
    def back_mm(self) -> float:
        """y of the skin of the back: where the table is."""
        return 108.0 * self.scale[1] + 0.8 * self.fat_mm + 4


def draw_patient(rng: np.random.Generator, age_mean: float = 55.0) -> Patient:
    """A random adult."""
    male = bool(rng.random() < 0.56)
    age = int(np.clip(rng.normal(age_mean, 16), 18, 94))
    size, girth = rng.normal(0, 0.035), rng.normal(0, 0.05)
    scale = (
        (1.02 if male else 0.93) + size + 0.4 * rng.normal(0, 0.03),
        (1.02 if male else 0.93) + 0.6 * size + girth + 0.0012 * (age - 55),
        (1.03 if male else 0.93) + 0.6 * size + girth,
    )
    return Patient(
        male, age, tuple(float(np.clip(s, 0.80, 1.18)) for s in scale),
        fat_mm=float(np.clip(rng.gamma(4.0, 4.0) + (2 if male else 6), 5, 38)),
        muscle=float(np.clip(rng.normal(1.03 if male else 0.93, 0.06) - 0.002 * (age - 55), 0.8, 1.15)),
        inspiration_mm=float(rng.normal(3, 8)), lung_hu=float(rng.normal(-862, 16)),
        marrow_hu=float(np.clip(rng.normal(235, 25) - 1.9 * (age - 25), 60, 260)),
        bulge_mm=float(np.clip(rng.normal(8, 3) + 0.2 * (age - 55), 0, 24)), seed=int(rng.integers(2**31)),
        heart=float(rng.normal(1.0, 0.035)),
        aorta=float(np.clip(rng.normal(0.95, 0.05) + 0.004 * (age - 50), 0.8, 1.2)),
    )  # fmt: skip


def reference(patient: Patient, z, y, x):
    """Coordinates of the patient -> of the reference adult."""
    return tuple(p * np.float32(1 / s) for p, s in zip((z, y, x), patient.scale, strict=True))


def _profile(table: np.ndarray, at: np.ndarray, column: int) -> np.ndarray:
    return np.interp(at, table[:, 0], table[:, column]).astype(np.float32)


def _outline(table, z, y, x) -> np.ndarray:
    """Signed distance to a cross-section between ellipse and rounded rectangle that changes with z."""
    half_x, half_y = _profile(table, z, 1), _profile(table, z, 2)
    dy = y - _profile(table, z, 3)
    u, v = (x / half_x) ** 2, (dy / half_y) ** 2
    rho = np.sqrt(np.maximum(u + v - 0.35 * np.minimum(u * v, 1.5), 1e-4))
    return np.sqrt(x * x + dy * dy) * (1 - 1 / rho)


def trunk_distance(patient: Patient, z, y, x) -> np.ndarray:
    """To the outside of the muscles; the skin lies `fat_mm` further out."""
    return _outline(_TRUNK, *reference(patient, z, y, x)) - np.float32(9 * (patient.muscle - 1))


def cage_distance(patient: Patient, z, y, x) -> np.ndarray:
    """To the inner surface of the rib cage."""
    return _outline(_CAGE, *reference(patient, z, y, x))


def spine_y(patient: Patient, z_reference) -> np.ndarray:
    """Reference y of the middle of the vertebral bodies at a reference z: a kyphosis."""
    z = np.asarray(z_reference, np.float32)
    return 66 + patient.bulge_mm * (1 - (z / 90) ** 2) - 14 * np.clip((z - 60) / 80, 0, 2)


def diaphragm_z(patient: Patient, y, x) -> np.ndarray:
    """Height of the diaphragm over y, x, mm."""
    _, y, x = reference(patient, 0.0, y, x)
    steep = np.where(y > -12, 60 * ((y + 12) / 92) ** 2, 20 * ((y + 12) / 80) ** 2)
    right = -63 - 55 * ((x + 62) / 84) ** 2 - steep
    left = -72 - 50 * ((x - 68) / 80) ** 2 - steep
    return (np.maximum(right, left) - patient.inspiration_mm) * np.float32(patient.scale[0])


def heart_axes(patient: Patient, z, y, x):
    """Coordinates in the heart: along its long axis (apex +), to its base side, in depth; 1 is the pericardium."""
    z, y, x = reference(patient, z, y, x)
    dz, dy, dx = (p - np.float32(c) for p, c in zip((z, y, x), HEART_CENTRE, strict=True))
    axes = _orthonormal(_HEART_AXES)
    half = np.array(_HEART_HALF) * patient.heart
    return tuple((a[0] * dz + a[1] * dy + a[2] * dx) / np.float32(h) for a, h in zip(axes, half, strict=True))


def from_heart(patient: Patient, points) -> np.ndarray:
    """Points [n, 3] in the coordinates of `heart_axes` -> mm."""
    axes = _orthonormal(_HEART_AXES)
    offset = (np.asarray(points, float) * _HEART_HALF * patient.heart) @ axes.astype(float)
    return patient.mm(offset + HEART_CENTRE)


def _orthonormal(rows) -> np.ndarray:
    q, r = np.linalg.qr(np.asarray(rows).T)
    return (q * np.sign(np.diag(r))).T.astype(np.float32)


def heart_distance(patient: Patient, z, y, x) -> np.ndarray:
    """To the pericardium."""
    a, b, c = heart_axes(patient, z, y, x)
    return (np.sqrt(a * a + b * b + c * c) - 1) * np.float32(48 * patient.heart * np.mean(patient.scale))


def mediastinum_distance(patient: Patient, z, y, x) -> np.ndarray:
    """To the mediastinal pleura on either side, without the heart."""
    z, y, x = reference(patient, z, y, x)
    width = _profile(_MEDIASTINUM, y, 1) * _profile(_NARROWS, z, 1)
    return np.abs(x - 1) - width


def lung_distance(patient: Patient, z, y, x, cage=None) -> np.ndarray:
    """To the visceral pleura of either lung (negative inside); cage: `cage_distance` where known already."""
    cage = cage_distance(patient, z, y, x) if cage is None else cage
    rz, ry, rx = reference(patient, z, y, x)
    out = np.maximum(cage + 1.5, -mediastinum_distance(patient, z, y, x))
    out = np.maximum(out, -heart_distance(patient, z, y, x) + 1)
    out = np.maximum(out, (diaphragm_z(patient, y, x) - z) * np.float32(0.72))
    behind = spine_y(patient, rz)  # the vertebral bodies bulge into the cavity
    spine = np.sqrt((rx / 24) ** 2 + ((ry - behind - 4) / 26) ** 2)
    return np.maximum(out, (1 - spine) * 24)


def fissure_z(y_reference) -> np.ndarray:
    """Reference height of the oblique fissure over y."""
    return 0.92 * y_reference - 6


def lobe_of(patient: Patient, z, y, x) -> np.ndarray:
    """Index into LOBES of points inside the lungs."""
    z, y, x = reference(patient, z, y, x)
    lower = z < fissure_z(y)
    right = np.where(lower, 2, np.where(z < 6, 1, 0))
    return np.where(x < 0, right, np.where(lower, 4, 3))


def lung_density(patient: Patient, z, y, x) -> np.ndarray:
    """HU of aerated lung: denser where it lies low (the back, lying face up), slightly uneven."""
    uneven = waves((z, y, x), 90.0, np.random.default_rng([patient.seed, 3]), n=3)
    return np.float32(patient.lung_hu) + np.float32(0.38) * y + 9 * uneven


def points_in_lungs(patient: Patient, rng: np.random.Generator, n: int, inside_mm: float = 4.0) -> np.ndarray:
    """n random points [n, 3], even in volume, at least about inside_mm below the pleura."""
    found = np.empty((0, 3))
    while len(found) < n:
        p = patient.mm(rng.uniform((-140, -95, -134), (136, 95, 134), (6 * n + 64, 3)))
        found = np.concatenate([found, p[lung_distance(patient, *p.T.astype(np.float32)) < -inside_mm]])
    return found[:n]


def point_in_lobe(patient: Patient, lobe: str, rng: np.random.Generator, inside_mm: float) -> np.ndarray:
    """A random point [3] of a lobe, at least inside_mm below the pleura where the lobe is that thick."""
    wanted = LOBES.index(lobe)
    for depth in (inside_mm, 0.7 * inside_mm, 0.4 * inside_mm, 1.0):
        p = points_in_lungs(patient, rng, 200, depth)
        p = p[lobe_of(patient, *p.T) == wanted]
        if len(p):
            return p[0]
    raise ValueError(f"no point of the {lobe} found: the lobe is empty in this patient")
