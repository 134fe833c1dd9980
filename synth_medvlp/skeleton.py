"""Bones of the simulated thorax: ribs, clavicles, scapulae, humeri, spine; path length of bone in cm (`anatomy`)."""

import numpy as np

from synth_medvlp.anatomy import SIDES, Body, dome, smooth

N_RIBS = 10
_SPACING = 2.35  # cm between posterior ribs of a body with height 21.5


def tube(distance: np.ndarray, radius, cortex: float = 0.28) -> np.ndarray:
    """Bone met across a tube with a dense cortex: bright edges, dimmer middle. distance from its axis in cm."""
    d2 = distance * distance
    outer = np.sqrt(np.clip(radius**2 - d2, 0, None))
    inner = np.sqrt(np.clip((radius * (1 - cortex)) ** 2 - d2, 0, None))
    return 2 * (outer - 0.78 * inner)


def ribs(body: Body, side: int) -> np.ndarray:
    """Path length [n, n] of the ribs of one side, back and front parts; fractured ones step at the break.

    A rib is an ellipse around the chest that falls towards the front: at share u of the half width, its back part lies
    (1 - sqrt(1 - u^2)) / 2 of the whole drop below the spine, its front part (1 + sqrt(1 - u^2)) / 2.
    """
    grid, scale = body.grid, body.patient.height / 21.5
    number = np.arange(N_RIBS, dtype=np.float32)[:, None, None]  # the leading axis is the rib
    level, drop = (0.2 + _SPACING * number) * scale, (5.0 + 0.75 * number) * scale
    across = np.clip(grid.x * side, 0, None)
    wall = np.maximum(body.wall(grid.y) + 0.35, 0.5)
    u = np.clip(across / wall, 0, 0.9995)
    z = np.sqrt(1 - u * u)
    # Distance from the axis = height above it, over the length of the slope's normal.
    normal = 1 / np.sqrt(1 + (drop * (0.5 * u / (wall * np.maximum(z, 0.08)))) ** 2)
    back = grid.y - level - drop * (0.5 * (1 - z)) + 1.54 * u * (1 - u)
    radius = np.where(number == 0, 0.75, 0.66).astype(np.float32)
    gap = 1.0
    if any(broken[0] == side for broken in body.shape.broken):
        offset, gap = _breaks(body, side, across)
        back = back - offset
    bone = tube(back * normal, radius) * (gap * smooth((across - 1.6) / 0.6))
    front = grid.y - level - drop * (0.5 * (1 + z))
    seen = np.where(number < 7, 0.46, 0.18).astype(np.float32)  # cartilage at the ends does not show
    bone += tube(front * normal, radius + 0.12) * seen * smooth((u - 0.42) / 0.12)
    inside = smooth((1.01 - across / wall) / 0.03) * (grid.x * side > 0) * smooth(grid.y / 0.5)
    along = 0.62 / np.sqrt(np.maximum(z * z, 0.25))  # the beam runs along the bone at the side of the chest
    return bone.sum(0) * (inside * along)


def _breaks(body: Body, side: int, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offset in cm, remaining bone) [ribs, n, n]: fractured ribs stand off beyond the break, with a gap at it."""
    offset, gap = (np.full((N_RIBS, *across.shape), value, np.float32) for value in (0.0, 1.0))
    for at_side, number, at, step in body.shape.broken:
        if at_side == side:
            beyond = across - at
            offset[number] = step * smooth(beyond / 0.25 + 0.5) * np.exp(-np.clip(beyond, 0, None) / 2.5)
            gap[number] = 1 - np.exp(-((beyond / np.hypot(0.30, body.grid.px / 3)) ** 2))
    return offset, gap


def _clavicle(body: Body, side: int) -> np.ndarray:
    grid, e = body.grid, body.exposure
    reach = 15.5 * body.patient.half_width / 13.6
    across = grid.x * side - side * 0.9 * e.rotation
    t = np.clip(across / reach, 0, 1)
    lift = 2.0 if e.view == "AP" else 0.0  # bedside beams throw the clavicles above the apex
    y = 5.2 - lift - 3.4 * t + 1.0 * np.sin(2 * np.pi * t) * 0.7
    slope = (-3.4 + 1.4 * np.pi * np.cos(2 * np.pi * t) * 0.7) / reach
    ends = smooth((across - 1.2) / 0.6) * smooth((reach + 0.4 - across) / 0.8)
    return 0.95 * tube((grid.y - y) / np.sqrt(1 + slope**2), 0.72 + 0.25 * np.abs(t - 0.5)) * ends


def _shoulder(body: Body, side: int) -> np.ndarray:
    """Scapula and humeral head; arms down (AP) leave the blade over the lung, rolled shoulders (PA) carry it away."""
    grid, w = body.grid, body.patient.half_width
    away = 0.0 if body.exposure.view == "AP" else 2.6
    ax, ay = w - 3.0 + away, 3.2
    x, y = grid.x * side - ax, grid.y - ay
    medial, lateral = x + 0.6 - 0.12 * y, 3.9 - 0.28 * y - x  # two borders that meet at the lower angle
    blade = 0.32 * smooth(medial / 0.5) * smooth(lateral / 0.5) * smooth(y / 0.6) * smooth((12.5 - y) / 1.0)
    t = np.linspace(0, 1, 40)
    border = grid.stroke(side * (ax + 3.9 - 3.3 * t), ay + 11.8 * t, 0.75 * (1 - 0.4 * t), 0.28)
    spine = grid.stroke(side * (ax - 0.2 + 5.6 * t), ay + 1.6 - 2.6 * t, 0.6, 0.35)
    hx, hy = grid.x * side - ax - 6.2, grid.y - ay - 1.0
    head = 2.6 * dome((hx * hx + hy * hy) / 2.5**2) * 0.6
    shaft = tube(hx - 0.9 - 0.06 * hy, 1.25) * smooth(hy / 1.5)
    return blade + border + spine + np.maximum(head, shaft)


def _spine(body: Body) -> np.ndarray:
    """Vertebral bodies, discs, pedicles and spinous processes along the midline."""
    grid, e = body.grid, body.exposure
    bend = body.shape.spine_curve * np.sin((grid.y - 2.0) / 22.0 * 2 * np.pi)
    x = grid.x - bend + 0.15 * e.rotation
    pitch = 2.45 * body.patient.height / 21.5
    phase = (grid.y / pitch) % 1.0
    half = 1.75 + 0.018 * np.clip(grid.y, 0, None)
    waist = 1 - 0.10 * np.sin(np.pi * phase)
    column = 1.0 * dome((x / (half * waist)) ** 2) ** 0.5
    column = column * (0.62 + 0.38 * smooth((0.42 - np.abs(phase - 0.5)) / 0.08))
    pedicle_y = (phase - 0.35) * pitch
    pedicles = sum(0.5 * dome(((x - s * 1.15) ** 2 + pedicle_y**2) / 0.42**2) for s in SIDES)
    process = 0.6 * dome((x / 0.35) ** 2 + ((phase - 0.75) * pitch / 0.7) ** 2)
    transverse = 0.5 * dome(((phase - 0.35) * pitch / 0.45) ** 2) * smooth((3.1 - np.abs(x)) / 0.5)
    return column + pedicles + process + transverse


def bones(body: Body) -> np.ndarray:
    """All bones, cm [n, n] float32, by the patient's mineral content."""
    total = _spine(body)
    for side in SIDES:
        total = total + ribs(body, side) + _clavicle(body, side) + _shoulder(body, side)
    return (total * body.patient.bone).astype(np.float32)
