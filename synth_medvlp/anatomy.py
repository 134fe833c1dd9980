"""A thorax made of attenuating tissue, in centimetres: the body under the simulated radiographs (`simulate`).

Every structure is a map of path length along the beam. What lies behind each other adds up; `film.develop` turns the
sum into a picture. x runs from the patient's right (negative, on the left of a frontal image) to the left, y downwards
from the lung apex. A finding never paints: it changes how much air, tissue, bone or metal the beam meets (`findings`).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

RIGHT, LEFT = -1, 1
SIDES = (RIGHT, LEFT)
# Effective linear attenuation per cm at chest energies (scatter included, hence below narrow-beam values).
MU = {"soft": 0.20, "bone": 0.46, "metal": 2.6}
LUNG_DENSITY = 0.27  # of soft tissue, at full inspiration
FIELD_CM = 37.0  # side of the image plane


@dataclass
class Patient:
    """What stays the same from one radiograph of a person to the next; lengths in cm."""

    male: bool
    age: float
    half_width: float  # inner rib cage at its widest
    height: float  # apex to the right dome at full inspiration
    depth: float  # outer, front to back
    fat: float  # chest wall beside the ribs
    heart: float  # scale of the heart, 1 = cardiothoracic ratio about 0.45
    heart_tilt: float  # radians; small = upright
    bone: float  # mineral content, 1 = young adult
    breast: float  # thickness, 0 in men
    seed: int  # of the vessel tree and the small irregularities


@dataclass
class Exposure:
    """How one radiograph was taken. view: "PA" or "AP"."""

    view: str = "PA"
    rotation: float = 0.0  # cm by which front structures move against back ones
    inspiration: float = 1.0  # 1 = full
    zoom: float = 1.0
    shift_x: float = 0.0  # cm
    shift_y: float = 0.0
    tilt: float = 0.0  # radians in the image plane
    seed: int = 0  # of noise and clutter


def draw_patient(rng: np.random.Generator, age_mean: float = 58.0, age_sd: float = 17.0) -> Patient:
    """A person; women are smaller and have breasts, age takes bone mineral and turns the heart."""
    male, age = bool(rng.random() < 0.54), float(np.clip(rng.normal(age_mean, age_sd), 18, 95))
    size = rng.normal(1.0 if male else 0.93, 0.05)
    return Patient(
        male, age, half_width=13.6 * size * rng.normal(1, 0.03), height=21.5 * size * rng.normal(1, 0.04),
        depth=20.5 * size * rng.normal(1, 0.06), fat=float(np.clip(rng.normal(2.2, 0.8), 1.0, 4.5)),
        heart=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.1)), heart_tilt=float(rng.normal(0.72, 0.10)),
        bone=float(np.clip(rng.normal(1.1 - 0.004 * max(age - 45, 0), 0.1), 0.65, 1.3)),
        breast=0.0 if male else float(np.clip(rng.normal(2.4, 0.9), 0.8, 4.5)), seed=int(rng.integers(2**31)),
    )  # fmt: skip


def draw_exposure(rng: np.random.Generator, view: str) -> Exposure:
    """Bedside AP radiographs are less inspired, more rotated and less well centred than PA ones."""
    bedside = view == "AP"
    return Exposure(
        view, rotation=float(rng.normal(0, 0.9 if bedside else 0.35)),
        inspiration=float(np.clip(rng.normal(0.88 if bedside else 0.98, 0.05), 0.74, 1.08)),
        zoom=float(rng.normal(1.05 if bedside else 1.0, 0.035)), shift_x=float(rng.normal(0, 0.9 if bedside else 0.5)),
        shift_y=float(rng.normal(0, 1.0 if bedside else 0.6)), tilt=float(rng.normal(0, 0.035 if bedside else 0.012)),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def smooth(value: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(value, 0, 1)
    return t * t * (3 - 2 * t)


def dome(squared_radius: np.ndarray) -> np.ndarray:
    """Path length through a unit ball at this squared distance from its axis, as a share of the diameter."""
    return np.sqrt(np.clip(1 - squared_radius, 0, None))


class Grid:
    """Pixel centres in cm: x, y float32 [n, n]; px: pixel size in cm."""

    def __init__(self, n: int, exposure: Exposure):
        self.n, self.px = n, FIELD_CM / n / exposure.zoom
        at = ((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5) * FIELD_CM / exposure.zoom
        col, row = np.meshgrid(at, at)
        c, s = np.float32(np.cos(exposure.tilt)), np.float32(np.sin(exposure.tilt))
        self.cos, self.sin = c, s
        self.origin = (np.float32(exposure.shift_x), np.float32(exposure.shift_y + 12.6))
        self.x = c * col + s * row + self.origin[0]
        self.y = c * row - s * col + self.origin[1]

    def pixels(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Position in cm -> (column, row) as fractional pixel numbers."""
        dx, dy = np.asarray(x) - self.origin[0], np.asarray(y) - self.origin[1]
        half = self.n / 2 - 0.5
        return (self.cos * dx - self.sin * dy) / self.px + half, (self.cos * dy + self.sin * dx) / self.px + half

    def stroke(self, x, y, thickness, sigma: float) -> np.ndarray:
        """Soft lines through dense points -> path length [n, n]. thickness: cm at the centre of the line, per point;
        sigma: half width in cm. x, y: [..., points]; thin lines fade with the pixel size, as partial volume does."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        ds = np.hypot(np.diff(x, axis=-1), np.diff(y, axis=-1))
        weight = np.broadcast_to(thickness, x.shape)[..., 1:] * ds * np.sqrt(2 * np.pi) * sigma / self.px**2
        column, row = self.pixels((x[..., 1:] + x[..., :-1]) / 2, (y[..., 1:] + y[..., :-1]) / 2)
        spread = np.hypot(sigma / self.px, 0.35)
        return gaussian_filter(self._splat(column, row, weight), spread, truncate=3.0, mode="constant")

    def _splat(self, column, row, weight) -> np.ndarray:
        n = self.n
        c0, r0 = np.floor(column).astype(int), np.floor(row).astype(int)
        fc, fr = column - c0, row - r0
        total = np.zeros(n * n)
        for dc, dr in ((0, 0), (0, 1), (1, 0), (1, 1)):
            w = weight * (fc if dc else 1 - fc) * (fr if dr else 1 - fr)
            c, r = c0 + dc, r0 + dr
            inside = (c >= 0) & (c < n) & (r >= 0) & (r < n)
            total += np.bincount((r * n + c)[inside], w[inside], minlength=n * n)
        return total.reshape(n, n).astype(np.float32)

    def noise(self, rng: np.random.Generator, scale_cm: float) -> np.ndarray:
        """Smooth random field of standard deviation about 1, same statistics at every pixel size."""
        cells = max(int(FIELD_CM / scale_cm), 2) + 3
        coarse = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
        column = (self.x + FIELD_CM * 0.55) / (FIELD_CM * 1.2) * cells
        row = (self.y + 9.0) / (FIELD_CM * 1.2) * cells
        column, row = np.clip(column, 0, cells - 0.01), np.clip(row, 0, cells - 0.01)
        c, r = column.astype(int), row.astype(int)
        fc, fr = smooth(column - c), smooth(row - r)
        top = coarse[r, c] * (1 - fc) + coarse[r, c + 1] * fc
        bottom = coarse[r + 1, c] * (1 - fc) + coarse[r + 1, c + 1] * fc
        return (top * (1 - fr) + bottom * fr) * 1.5


@dataclass
class Shape:
    """Geometry that findings may change before the body is built; lengths in cm."""

    heart: float = 1.0  # factor on the patient's heart
    lower_dome: float = 0.0  # diaphragm moved down
    flat_dome: float = 1.0  # factor on its curvature
    spine_curve: float = 0.0
    knob: float = 1.0  # size of the aortic arch
    unfold: float = 0.0  # descending aorta moved to the left
    pruned: float = 1.0  # factor on peripheral vessels
    upper_flow: float = 0.0  # cephalisation of vessels, 0..1
    broken: tuple = ()  # (side, rib, x, step): fractured posterior ribs


@dataclass
class Body:
    """Maps [n, n] float32 of path length in cm (depth, soft, bone, metal) or share (density, heart)."""

    grid: Grid
    patient: Patient
    exposure: Exposure
    shape: Shape
    lung: dict = field(default_factory=dict)  # side -> air-filled depth, heart and mediastinum taken out
    density: np.ndarray = None  # of the lung, share of soft tissue
    soft: np.ndarray = None  # body without lungs; what findings add
    bone: np.ndarray = None
    metal: np.ndarray = None
    vessels: np.ndarray = None  # tissue of lung vessels
    heart: np.ndarray = None  # path length through the heart
    gas: np.ndarray = None  # air outside the lungs: trachea, stomach

    @property
    def height(self) -> float:  # apex to the right dome in this radiograph
        return self.patient.height * self.exposure.inspiration + self.shape.lower_dome

    def wall(self, y) -> np.ndarray:
        """Half width of the inner rib cage at height y."""
        v = np.clip(y / (1.1 * self.patient.height), 0, None)
        return (
            self.patient.half_width
            * np.sqrt(np.clip(1 - (1 - np.clip(v, 0, 1)) ** 3.1, 1e-6, 1))
            * (1 - 0.03 * np.clip(v - 0.8, 0, 1))
        )

    def diaphragm(self, x, side: int) -> np.ndarray:
        """y of the dome on this side; the left one stands lower, and both fall off to the costophrenic angle."""
        w = self.patient.half_width
        top = self.height + (1.1 if side == LEFT else 0.0)
        away = (x * side - 0.45 * w) / w
        away = np.where(away < 0, 0.35 * away, away)  # the cardiophrenic angle is shallow
        return top + self.shape.flat_dome * 15.0 * away**2

    def inside(self, x, y, side: int) -> np.ndarray:
        """Signed share: positive inside the lung of this side, in cm from its nearest straight edge (roughly)."""
        lateral = self.wall(y) - x * side
        return np.minimum(np.minimum(lateral, x * side - 0.4), np.minimum(self.diaphragm(x, side) - y, y))

    def attenuation(self) -> np.ndarray:
        """Line integral of attenuation, float32 [n, n]."""
        air = sum(self.lung.values())
        soft = self.soft - air * (1 - self.density) - self.gas + self.vessels
        return MU["soft"] * np.clip(soft, 0, None) + MU["bone"] * np.clip(self.bone, 0, None) + MU["metal"] * self.metal


def build(n: int, patient: Patient, exposure: Exposure, shape: Shape | None = None) -> Body:
    """The healthy body of a patient with this shape, on n x n pixels."""
    from synth_medvlp.skeleton import bones  # which builds on this module

    grid = Grid(n, exposure)
    body = Body(grid, patient, exposure, shape or Shape())
    zero = np.zeros((n, n), np.float32)
    body.metal = zero.copy()
    body.soft = _outline(body)
    body.heart = _heart(body)
    _lungs(body)
    body.gas = body.gas + _gas(body)
    rng = np.random.default_rng([patient.seed, 1])
    uneven = 0.02 * grid.noise(rng, 2.5) + 0.012 * grid.noise(rng, 1.0)
    gravity = 0.05 * np.clip(grid.y / patient.height - 0.5, -0.5, 0.5)  # more blood in the bases
    compressed = 0.16 * (1 - exposure.inspiration)
    body.density = np.clip(LUNG_DENSITY + uneven + gravity + compressed, 0.05, 0.9).astype(np.float32)
    body.vessels = _vessels(body, np.random.default_rng([patient.seed, 2]))
    body.bone = bones(body)
    return body


def _outline(body: Body) -> np.ndarray:
    """Soft tissue of trunk, shoulders, neck, arms and breasts before the lungs are taken out, cm."""
    p, x, y = body.patient, body.grid.x, body.grid.y
    across = np.abs(x)
    widening = 0.10 * np.clip(y - 18, 0, None)  # flanks
    half = p.half_width + p.fat + 0.8 + widening
    trunk = p.depth * dome((across / half) ** 2) ** 0.8 * smooth((y + 0.5) / 9.0 + 0.3)
    slope = -6.5 + 0.021 * across**1.9  # trapezius to shoulder
    shoulder = 13.0 * smooth((y - slope) / 6.5) * dome((across / (22.5 + p.fat)) ** 4)
    shoulder *= 1 - 0.9 * smooth((y - 8) / 7)
    neck = 12.5 * dome((across / 6.6) ** 2) * (1 - smooth((y - 4) / 4))
    arm_at = half + (3.6 if body.exposure.view == "AP" else 6.2) + 0.06 * np.clip(y, 0, None)
    arm = 9.5 * dome(((across - arm_at) / 4.2) ** 2) * smooth((y - 5) / 5)
    soft = np.maximum(np.maximum(trunk, shoulder), np.maximum(neck, arm))
    soft = soft + p.fat * 0.8 * (soft > 0)
    if p.breast:
        middle_y = 14.5 + 0.8 * p.breast
        for side in SIDES:
            r2 = ((x * side - 7.9) / 6.3) ** 2 + ((y - middle_y) / np.where(y > middle_y, 5.2, 8.5)) ** 2
            soft = soft + p.breast * dome(r2)
    if p.male:
        for side in SIDES:  # pectoral fold
            r2 = ((x * side - 9.5) / 6.0) ** 2 + ((y - 6.5) / 6.5) ** 2
            soft = soft + 1.1 * dome(r2)
    return soft.astype(np.float32)


def _heart(body: Body) -> np.ndarray:
    """Path length through the heart: left ventricle and right atrium. AP enlarges it, being far from the plate."""
    p, e, x, y = body.patient, body.exposure, body.grid.x, body.grid.y
    scale = p.heart * body.shape.heart * (1.09 if e.view == "AP" else 1.0) * p.half_width / 13.6
    scale *= 1 + 0.30 * (1 - e.inspiration)  # a high diaphragm spreads it
    tall = scale ** (0.6 if body.shape.heart > 1 else 1.0)  # enlargement is mostly to the side
    bottom = body.height + 1.2
    x = x - 0.6 * e.rotation
    c, s = np.cos(p.heart_tilt), np.sin(p.heart_tilt)
    dx, dy = x - 2.1 * scale, y - (bottom - 5.3 * tall)
    along, off = c * dx + s * dy, c * dy - s * dx
    left = 13.0 * dome((along / (7.0 * scale)) ** 2 + (off / (4.5 * tall)) ** 2)
    right = 12.0 * dome(((x + 0.3 * scale) / (4.1 * scale)) ** 2 + ((y - bottom + 5.4 * tall) / (5.0 * tall)) ** 2)
    outflow = 10.5 * dome(((x - 0.9) / 3.3) ** 2 + ((y - bottom + 9.5 * tall) / 5.5) ** 2)
    return np.maximum(np.maximum(left, right), outflow).astype(np.float32)


def _lungs(body: Body) -> None:
    """Air-filled depth of both lungs: the cavity, ellipse by ellipse, without heart, mediastinum and diaphragm."""
    p, e, x, y = body.patient, body.exposure, body.grid.x, body.grid.y
    shift = 0.8 * e.rotation
    cavity = 0.86 * p.depth * dome((x / np.maximum(body.wall(y), 1e-3)) ** 2) ** 0.85
    cavity = cavity * (0.25 + 0.75 * smooth(y / 7 + 0.1)) * (y > 0)
    between = 0.30 * np.clip(cavity - body.heart, 0, None) * smooth((body.height - 1 - y) / 6)
    soft_edge = 0.55 + 2.2 * np.clip(body.heart / 8, 0, 1)  # lung wraps the heart: no sharp edge behind it
    wide = 1.12 if e.view == "AP" else 1.0
    right_edge = wide * (2.75 + 0.35 * smooth((y - 5) / 4)) - 0.7 * smooth((6 - y) / 5)
    left_edge = (
        wide * (2.6 + 0.25 * np.sin(y / 5)) - 0.6 * smooth((5 - y) / 5) + body.shape.unfold * smooth((y - 7) / 5)
    )
    knob = 5.5 * body.shape.knob * dome(((x - shift - 2.5) ** 2 + (y - 6.6) ** 2) / (1.75 * body.shape.knob) ** 2)
    body.gas = np.zeros_like(x)
    for side, edge in ((RIGHT, right_edge), (LEFT, left_edge)):
        out = smooth(((x - shift) * side - edge) / soft_edge + 0.5)
        above = np.sqrt(np.clip((body.diaphragm(x, side) - y) / 1.6, 0, 1))
        depth = cavity * out * above * (x * side > 0)
        depth = np.clip(depth - body.heart - (knob if side == LEFT else 0), 0, None)
        body.lung[side] = depth.astype(np.float32)
        body.gas = body.gas + between * (1 - out) * (x * side > 0)  # lung before and behind the mediastinum


def _gas(body: Body) -> np.ndarray:
    """Trachea, main bronchi and stomach bubble: air that the soft tissue does not contain, cm."""
    grid, x, y = body.grid, body.grid.x, body.grid.y
    shift = 0.9 * body.exposure.rotation + 0.3 * np.clip((6.5 - np.abs(y - 6.5)) / 6.5, 0, 1) * body.shape.knob
    trachea = 3.0 * dome(((x + shift - 0.1) / 0.95) ** 2) * (1 - smooth((y - 8.3) / 0.9))
    t = np.linspace(0, 1, 24)
    bronchi = grid.stroke(-0.2 - 3.0 * t, 8.2 + 3.6 * t, 1.3, 0.5) + grid.stroke(
        -0.1 + 3.8 * t, 8.2 + 2.6 * t, 1.1, 0.45
    )
    rng = np.random.default_rng([body.patient.seed, body.exposure.seed, 3])
    size, at = rng.uniform(1.6, 3.2), rng.uniform(4.0, 7.0)
    under = y - body.diaphragm(x, LEFT) - 0.8
    bubble = 5.0 * dome(((x - at) / (1.3 * size)) ** 2 + ((under - 0.7 * size) / size) ** 2) * smooth(under / 0.6)
    return (trachea + bronchi + bubble).astype(np.float32)


def _vessels(body: Body, rng: np.random.Generator) -> np.ndarray:
    """Branching arteries and veins from both hila: path length of their blood, cm; only where there is lung."""
    grid = body.grid
    total = np.zeros_like(grid.x)
    share = {side: np.minimum(depth / 6.0, 1) for side, depth in body.lung.items()}
    steps = np.linspace(0, 1, 9)
    for side in SIDES:
        n = 9
        x = np.full(n, side * 3.4) + rng.normal(0, 0.35, n)
        y = (9.6 if side == RIGHT else 8.8) + rng.normal(0, 0.9, n)
        angle = np.linspace(-1.25, 1.4, n) + rng.normal(0, 0.12, n)  # 0 = straight to the side, positive = down
        length, radius = rng.uniform(2.6, 4.0, n), np.where(angle > 0, 0.62, 0.40 + 0.2 * body.shape.upper_flow)
        tree = np.zeros_like(grid.x)
        for level, sigma in enumerate((0.30, 0.20, 0.14, 0.11)):
            bend = angle[:, None] + rng.normal(0, 0.18, len(angle))[:, None] * steps
            px = x[:, None] + side * length[:, None] * steps * np.cos(bend)
            py = y[:, None] + length[:, None] * steps * np.sin(bend)
            fade = body.shape.pruned if level > 1 else 1.0
            tree += grid.stroke(px, py, (2.7 * radius * fade)[:, None], sigma)
            spread = rng.uniform(0.18, 0.5, len(angle))
            x, y = np.repeat(px[:, -1], 2), np.repeat(py[:, -1], 2)
            angle = np.stack([angle - spread, angle + spread], 1).ravel()
            length = np.repeat(length, 2) * rng.uniform(0.62, 0.92, len(angle))
            radius = np.repeat(radius, 2) * 0.74
        hilum = np.hypot(grid.x - side * 3.6, 0.7 * (grid.y - (9.8 if side == RIGHT else 9.0)))
        tree += 2.2 * dome((hilum / 1.9) ** 2)
        total += tree * share[side]
    return total.astype(np.float32)
