"""How each finding changes the body: fluid and gas take lung away, disease makes it denser, devices add metal.

`apply` draws one finding into a body that was built with `findings.shape_of` and returns where the attenuation changed.
Sizes in cm; the look follows what the radiograph of each condition is known for (meniscus, pleural line, air
bronchogram, Kerley lines ...).
"""

import numpy as np

from synth_medvlp.anatomy import LEFT, SIDES, Body, build, dome, smooth
from synth_medvlp.findings import KINDS, Finding, shape_of

VISIBLE = 0.05  # change of attenuation from which a pixel belongs to a finding's mask
_ZONE_Y = {"upper": 0.23, "middle": 0.50, "lower": 0.78}  # of the lung height
# Order of drawing: what takes lung away stands before what changes the lung that is left.
_FIRST = ("pleural_effusion", "pneumothorax", "pleural_thickening", "hiatal_hernia", "emphysema")
ORDER = (*_FIRST, *(name for name in KINDS if name not in _FIRST))


def _spot(body: Body, side: int, place: str, rng) -> tuple[float, float]:
    """A point well inside the lung: zone by height, between hilum and chest wall; beside the heart below."""
    y = (_ZONE_Y[place] + rng.uniform(-0.06, 0.06)) * body.height
    low, high = (0.62, 0.74) if side == LEFT and place == "lower" else (0.46, 0.68)
    return side * float(body.wall(np.float64(y))) * rng.uniform(low, high), float(y)


def _spline(points, n: int = 160):
    """Smooth curve through points [(x, y), ...] (Catmull-Rom)."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    at = np.linspace(0, len(p) - 3 - 1e-6, n)
    i, t = at.astype(int), (at % 1)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
    return curve[:, 0], curve[:, 1]


def _take_lung(body: Body, side: int, share: np.ndarray, gas: bool = False) -> None:
    """Replace this share of the lung's depth by fluid or soft tissue, or by free gas."""
    share = np.clip(share, 0, 1)
    if gas:
        body.gas = body.gas + body.lung[side] * share
    on_side = body.grid.x * side > 0
    body.vessels = body.vessels * (1 - share * on_side)
    body.lung[side] = body.lung[side] * (1 - share)


def _fill(body: Body, share: np.ndarray, density: float = 0.98, keep_vessels: float = 0.25) -> None:
    """Move the lung's density towards `density` by this share of its depth; filled lung hides its vessels."""
    share = np.clip(share, 0, 1)
    body.density = body.density + (density - body.density) * share
    body.vessels = body.vessels * (1 - (1 - keep_vessels) * share)


def _effusion(body: Body, f: Finding, rng) -> None:
    for side in f.sides:
        angle = float(body.diaphragm(np.float64(side * 0.96 * body.patient.half_width), side))
        level = angle - (2.6 + 11.5 * f.extent * rng.uniform(0.75, 1.0))
        u = body.grid.x * side / body.patient.half_width
        surface = level - (1.5 + 2.6 * f.extent) * np.clip(u, 0, 1) ** 3 + 0.9
        _take_lung(body, side, smooth((body.grid.y - surface) / 1.6) * 0.97)


def _pneumothorax(body: Body, f: Finding, rng) -> None:
    side, x, y = f.sides[0], body.grid.x, body.grid.y
    q = 0.13 + 0.42 * f.extent**1.3
    hx, hy = side * 3.4, 0.47 * body.height
    shrunk = body.inside(hx + (x - hx) / (1 - q), hy + (y - hy) / (1 - 0.8 * q), side)
    free = smooth(-shrunk / 0.2 + 0.5)
    if f.extent < 0.55:  # gas rises: a small one is apical and lateral only
        free = free * smooth((0.72 * body.height - y) / 3.0)
    depth = np.minimum(body.lung[side] / 2.0, 1)
    line = np.exp(-((shrunk / np.hypot(0.13, body.grid.px / 3)) ** 2)) * 0.9 * depth * (free > 0.02)
    _take_lung(body, side, free, gas=True)
    body.soft = body.soft + line.astype(np.float32)


def _consolidation(body: Body, f: Finding, rng) -> None:
    x, y = body.grid.x, body.grid.y
    for side in f.sides:
        cx, cy = _spot(body, side, f.place, rng)
        size = 2.6 + 2.9 * f.extent
        r = np.sqrt(((x - cx) / 1.15) ** 2 + ((y - cy) / 0.9) ** 2) / size
        patchy = 1.25 - r + 0.22 * body.grid.noise(rng, 2.4) + 0.10 * body.grid.noise(rng, 1.0)
        share = 0.72 * smooth(patchy / 0.9)
        if f.place == "upper" and rng.random() < 0.5:  # stops at the minor fissure
            share = share * smooth((0.47 * body.height + 0.05 * x * side - y) / 0.3)
        t = np.linspace(0, 1, 40)
        for _ in range(3):  # air bronchograms
            ex, ey = cx + rng.normal(0, 0.6 * size), cy + rng.normal(0, 0.6 * size)
            bend = rng.normal(0, 0.8) * np.sin(np.pi * t)
            hx, hy = side * 3.6, 0.45 * body.height
            branch = body.grid.stroke(hx + (ex - hx) * t, hy + (ey - hy) * t + bend, 0.55, 0.16)
            share = share * (1 - np.clip(branch, 0, 0.6))
        _fill(body, share * (x * side > 0))


def _edema(body: Body, f: Finding, rng) -> None:
    x, y, grid = body.grid.x, body.grid.y, body.grid
    cloud = 0.85 + 0.28 * grid.noise(rng, 1.6) + 0.15 * grid.noise(rng, 0.8)
    kerley = np.zeros_like(x)
    t = np.linspace(0, 1, 12)
    for side in SIDES:
        d = np.hypot((np.abs(x) - 4.5) / 4.6, (y - 0.55 * body.height) / 7.0)
        share = (0.24 + 0.42 * f.extent) * np.exp(-(d**2)) * cloud + 0.05 + 0.06 * f.extent
        _fill(body, np.where(x * side > 0, share, 0), keep_vessels=0.8)
        for _ in range(9):
            ly = body.height * rng.uniform(0.62, 0.95)
            lx = float(body.wall(np.float64(ly))) - 0.4
            kerley += grid.stroke(side * (lx - rng.uniform(1.2, 2.0) * t), ly + rng.normal(0, 0.15) * t, 0.45, 0.09)
    lung = np.minimum(sum(body.lung.values()) / 3.0, 1)
    grown = 1 + (0.35 + 0.45 * f.extent) * smooth((0.6 * body.height - y) / 5 + 0.3)
    body.vessels = body.vessels * grown + kerley * lung


def _atelectasis(body: Body, f: Finding, rng) -> None:
    grid = body.grid
    share = np.zeros_like(grid.x)
    t = np.linspace(0, 1, 60)
    for side in f.sides:
        for k in range(2 + int(f.extent > 0.5)):
            reach = rng.uniform(4.5, 7.5)
            x0 = side * rng.uniform(3.5, 5.0)
            x = x0 + side * reach * t
            y = np.minimum(body.height, body.diaphragm(x, side)) - 0.9 - 1.5 * k - rng.uniform(0, 0.5)
            y = y.min() + rng.uniform(-0.25, 0.1) * reach * t
            share += grid.stroke(x, y, (0.55 + 0.25 * f.extent) * np.sin(np.pi * t) ** 0.4, 0.26 + 0.20 * f.extent)
    _fill(body, np.clip(share, 0, 0.85))


def _ball(body: Body, f: Finding, rng, radius: float, lobes: float, spicules: int, bone: float = 0.0) -> None:
    grid = body.grid
    cx, cy = _spot(body, f.sides[0], f.place, rng)
    dx, dy = grid.x - cx, grid.y - cy
    angle, phase = np.arctan2(dy, dx), rng.uniform(0, 6.28, 2)
    edge = radius * (1 + lobes * (np.sin(3 * angle + phase[0]) + 0.7 * np.sin(5 * angle + phase[1])))
    soft_edge = np.hypot(1.0, 0.25 * grid.px / radius)  # partial volume of small ones
    path = 2 * radius * dome((dx**2 + dy**2) / (edge * soft_edge) ** 2) / soft_edge**2
    t = np.linspace(0, 1, 24)
    for turn in np.arange(spicules) * 6.283 / max(spicules, 1) + phase[0]:
        r = radius * (0.85 + rng.uniform(0.5, 0.9) * t)
        path = path + grid.stroke(cx + r * np.cos(turn), cy + r * np.sin(turn), 0.7 * (1 - t), 0.12)
    if bone:
        body.bone = body.bone + (bone * path).astype(np.float32)
    else:
        body.vessels = body.vessels + (1.5 * path).astype(np.float32)  # solid tissue beats the crumpled lung around it


def _nodule(body: Body, f: Finding, rng) -> None:
    _ball(body, f, rng, 0.75 + 0.65 * f.extent, 0.03, 0)


def _mass(body: Body, f: Finding, rng) -> None:
    _ball(body, f, rng, 1.8 + 1.5 * f.extent, 0.05, 11 if rng.random() < 0.6 else 0)


def _granuloma(body: Body, f: Finding, rng) -> None:
    _ball(body, f, rng, 0.32 + 0.18 * f.extent, 0.02, 0, bone=1.3)


def _hernia(body: Body, f: Finding, rng) -> None:
    grid, size = body.grid, 2.9 + 1.6 * f.extent
    cx, cy = 0.9 + rng.normal(0, 0.5), body.height - 0.2 * size
    r2 = ((grid.x - cx) / (1.15 * size)) ** 2 + ((grid.y - cy) / size) ** 2
    path = 2 * size * dome(r2)
    for side in SIDES:
        body.lung[side] = np.clip(body.lung[side] - path, 0, None)
    level = cy + rng.uniform(-0.1, 0.25) * size
    gas = 1.9 * size * dome(r2 / 0.82) * smooth((level - grid.y) / 0.15 + 0.5)
    body.gas = body.gas + gas.astype(np.float32)


def _emphysema(body: Body, f: Finding, rng) -> None:
    lost = 0.12 + 0.06 * f.extent
    for _ in range(int(2 + 4 * f.extent)):  # bullae
        side = SIDES[int(rng.integers(2))]
        cx, cy = _spot(body, side, "upper", rng)
        r = rng.uniform(1.4, 2.8)
        d2 = ((body.grid.x - cx - rng.normal(0, 1)) ** 2 + (body.grid.y - cy - rng.normal(0, 1.5)) ** 2) / r**2
        lost = lost + 0.08 * dome(d2)
        body.vessels = body.vessels * (1 - 0.7 * (d2 < 1)) + 0.12 * np.exp(-(((d2 - 1) / 0.12) ** 2)) * (
            body.lung[side] > 3
        )
    body.density = np.clip(body.density - lost, 0.05, None)


def _fibrosis(body: Body, f: Finding, rng) -> None:
    grid, y = body.grid, body.grid.y
    wall = np.maximum(body.wall(y), 0.5)
    where = smooth((y / body.height - 0.35) / 0.5) * (0.35 + 0.65 * smooth((np.abs(grid.x) / wall - 0.35) / 0.5))
    net = np.exp(-((grid.noise(rng, 1.0) / 0.32) ** 2)) + 0.7 * np.exp(-((grid.noise(rng, 0.7) / 0.3) ** 2))
    _fill(body, (0.10 + (0.26 + 0.30 * f.extent) * net) * where, keep_vessels=1.0)


def _pleural_thickening(body: Body, f: Finding, rng) -> None:
    side, x, y = f.sides[0], body.grid.x, body.grid.y
    thick = 0.7 + 1.1 * f.extent
    if f.place == "apical":
        rest = body.inside(x, y - 1.3 * thick, side) + 0.12 * body.grid.noise(rng, 1.2)
        where = smooth((0.27 * body.height - y) / 2.0)
    else:
        rest = body.inside(x + side * thick, y, side) + 0.12 * body.grid.noise(rng, 1.5)
        where = smooth((y - 0.35 * body.height) / 2) * smooth((0.95 * body.height - y) / 2)
    _take_lung(body, side, 0.9 * smooth(-rest / 0.25 + 0.5) * where)


def _wire(body: Body, points, metal: float, sigma: float) -> None:
    body.metal = body.metal + body.grid.stroke(*_spline(points), metal, sigma)


def _pacemaker(body: Body, f: Finding, rng) -> None:
    grid, side, h = body.grid, f.sides[0], body.height
    cx, cy = side * (9.6 + rng.normal(0, 0.4)), 4.8 + rng.normal(0, 0.5)
    dx, dy = np.abs(grid.x - cx) / 2.3, (grid.y - cy) / 2.0
    r = dx**3 + np.abs(dy) ** 3
    body.metal = body.metal + 0.55 * smooth((1 - r) / 0.25) + 0.35 * smooth((1 - r) / 0.2) * (dy < -0.45)
    vein = [(cx - side * 0.5, cy - 2.0), (side * 7.5, 1.9), (side * 4.0, 2.3)]
    vein += [(-2.0, 4.2)] if side == LEFT else []
    _wire(body, [*vein, (-2.7, 7.0), (-2.9, h - 7), (-1.6, h - 2.2), (4.6 + rng.normal(0, 0.4), h - 0.6)], 0.45, 0.11)
    if f.extent > 0.35:  # second lead, curled up in the right atrial appendage
        _wire(
            body, [*vein, (-2.4, 6.8), (-2.9, h - 7.5), (-3.0, h - 5.2), (-1.9, h - 5.0), (-1.6, h - 6.6)], 0.40, 0.11
        )


def _central_line(body: Body, f: Finding, rng) -> None:
    side, tip = f.sides[0], (-2.4 + rng.normal(0, 0.15), 7.2 + 2.2 * f.extent)
    start = [(side * 4.4, -7.0), (side * 3.4, -1.0), (side * 2.9, 2.5)]
    if f.place == "subclavian":
        start = [(side * 12.5, 4.2), (side * 9.0, 1.6), (side * 4.5, 2.4)]
    between = [(0.5, 4.2)] if side == LEFT else []
    _wire(body, [*start, *between, (-2.2, 5.2), tip], 0.45, 0.11)


def _endotracheal_tube(body: Body, f: Finding, rng) -> None:
    tip, x = 3.2 + 2.8 * f.extent, -0.9 * body.exposure.rotation * 0.6
    y = np.linspace(-8, tip, 90)
    for offset in (-0.42, 0.42):
        body.bone = body.bone + body.grid.stroke(x + offset + 0 * y, y, 1.0, 0.11)
    body.metal = body.metal + body.grid.stroke(x + 0.42 + 0 * y, y, 0.6, 0.11)


def _feeding_tube(body: Body, f: Finding, rng) -> None:
    h = body.height
    path = [
        (0.6, -8),
        (0.3, 0),
        (0.5, 8),
        (0.7, 14),
        (1.0, h - 1),
        (3.2, h + 3.2),
        (6.2 + f.extent, h + 4.4 + f.extent),
    ]
    _wire(body, path, 0.55, 0.12)


def _sternal_wires(body: Body, f: Finding, rng) -> None:
    turn = np.linspace(0, 2 * np.pi, 40)
    for k in range(5 + int(f.extent > 0.5)):
        x, y = 0.7 * body.exposure.rotation + rng.normal(0, 0.15), 3.6 + 2.5 * k + rng.normal(0, 0.15)
        loop = body.grid.stroke(x + rng.uniform(0.8, 1.1) * np.cos(turn), y + 0.5 * np.sin(turn), 0.75, 0.09)
        body.metal = body.metal + loop


_DRAW = {
    "pleural_effusion": _effusion, "pneumothorax": _pneumothorax, "consolidation": _consolidation, "edema": _edema,
    "atelectasis": _atelectasis, "nodule": _nodule, "mass": _mass, "granuloma": _granuloma, "hiatal_hernia": _hernia,
    "emphysema": _emphysema, "fibrosis": _fibrosis, "pleural_thickening": _pleural_thickening,
    "pacemaker": _pacemaker, "central_line": _central_line, "endotracheal_tube": _endotracheal_tube,
    "feeding_tube": _feeding_tube, "sternal_wires": _sternal_wires,
}  # fmt: skip


def draw(n: int, patient, exposure, findings) -> tuple[Body, dict[str, np.ndarray]]:
    """A body [n, n] with these findings -> (body, masks: name -> bool [n, n]).

    A mask is where the finding changes the attenuation by more than VISIBLE; of what changes a whole organ
    (cardiomegaly, emphysema) it is that organ, as annotators draw it.
    """
    body = build(n, patient, exposure, shape_of(findings, patient))
    masks = {}
    before = body.attenuation()
    for f in sorted(findings, key=lambda f: ORDER.index(f.name)):
        if f.name in _DRAW:
            _DRAW[f.name](body, f, np.random.default_rng([f.seed, 2]))
            after = body.attenuation()
            mask = np.abs(after - before) > VISIBLE
            before = after
        else:
            mask = None if f.name == "cardiomegaly" else _geometric(n, patient, exposure, f)
        if f.name == "cardiomegaly":
            mask = body.heart > 0.5
        elif f.name == "emphysema":
            mask = sum(body.lung.values()) > 0.5
        masks[f.name] = mask
    return body, masks


def _geometric(n: int, patient, exposure, finding: Finding) -> np.ndarray:
    """Where a changed geometry (spine, aorta, broken rib) shows against the healthy body."""
    healthy, changed = (build(n, patient, exposure, shape_of(some, patient)) for some in ([], [finding]))
    return np.abs(changed.attenuation() - healthy.attenuation()) > VISIBLE


def box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Bounding box (x, y, width, height) in pixels; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
