"""What does not belong into a set of frontal chest radiographs with their reports: the defects of the "real" set.

The reference's audit (A2, A3) asks of every image whether it is a chest radiograph, frontal, upright, of acceptable
quality; these pictures are the ones that should fail. Mismatched reports are made in `simulate`.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d

from synth_medvlp.anatomy import MU, Exposure, Grid, Patient, dome, smooth
from synth_medvlp.film import Film, develop

BODY_PARTS = ("hand", "knee", "abdomen")
UNREADABLE = ("too_dark", "too_bright", "noisy", "blurred", "cropped", "turned", "blank")
DEFECTS = ("non_frontal", "wrong_body_part", "unreadable", "mismatched_report")


def lateral(n: int, patient: Patient, exposure: Exposure, enlarged: float = 1.0) -> tuple[np.ndarray, float]:
    """Attenuation [n, n] of the same chest from the side, patient facing left, and the pixel size in cm."""
    grid = Grid(n, exposure)
    x, y, h = grid.x, grid.y, patient.height * exposure.inspiration
    half = patient.depth / 2
    side_path = 2 * patient.half_width
    bulge = 1.0 * smooth(y / 10)  # the chest deepens downwards
    trunk = (side_path + 2) * dome((x / (half + 1.8 + bulge)) ** 2) ** 0.5 * smooth((y + 4) / 8 + 0.2)
    arms = 13 * dome(((x - 0.5) / 6.5) ** 2) * (1 - smooth((y + 0.5) / 3.5))
    breast = patient.breast * 2.2 * dome(((x + half + 1.0) / 3.5) ** 2 + ((y - 15) / 5.5) ** 2)
    cavity = (
        dome(((x + 0.3) / (half - 0.6 + bulge)) ** 2) ** 0.8 * smooth((y - 0.4 - 0.012 * x**2) / 5) * 0.72 * side_path
    )
    floor = h + 0.5 + 0.10 * x + 0.055 * np.clip(x + 1.5, 0, None) ** 2
    lung = cavity * np.sqrt(np.clip((floor - y) / 1.2, 0, 1))
    c, s = np.cos(0.9), np.sin(0.9)
    dx, dy = x + 3.2, y - (h - 5.0)
    heart = 12 * dome(((c * dx + s * dy) / (6.0 * enlarged)) ** 2 + ((c * dy - s * dx) / (4.6 * enlarged)) ** 2)
    arch = 5 * np.exp(-(((np.hypot(x - 1.0, y - 8.5) - 3.6) / 1.1) ** 2)) * (y < 9.5)
    hilum = 5 * np.exp(-((x - 0.3) ** 2 + (y - 11.5) ** 2) / 3.5)
    lung = np.clip(lung - heart - arch - hilum, 0, None)
    spine_x = 0.72 * half + 1.8 * np.sin((y - 2) / 24 * np.pi)
    phase = (y / 2.5) % 1
    blocks = 0.55 + 0.45 * smooth((0.40 - np.abs(phase - 0.5)) / 0.06)
    bone = 2.6 * dome(((x - spine_x) / 1.7) ** 2) ** 0.4 * blocks * smooth((y + 6) / 3)
    bone = bone + 0.8 * dome(((x - spine_x - 3.2) / 0.8) ** 2 + ((phase - 0.7) * 2.5 / 0.7) ** 2)
    bone = bone + 1.4 * dome(((x + half - 0.2 + 0.10 * (y - 4)) / 0.6) ** 2) * smooth((y - 2) / 2) * smooth(
        (16 - y) / 2
    )
    t = np.linspace(0, 1, 40)
    for k in range(9):
        drop = 3.0 + 0.7 * k
        arc_x, arc_y = half * (0.8 - 1.55 * t), 0.8 + 2.3 * k + drop * t**1.3
        bone = bone + grid.stroke(arc_x, arc_y, 0.5, 0.42) + 0.8 * grid.stroke(arc_x, arc_y + 0.9, 0.5, 0.42)
    trachea = 2.0 * dome(((x - 1.0 - 0.12 * y) / 0.9) ** 2) * (1 - smooth((y - 9) / 1.5))
    soft = np.maximum(trunk, arms) + breast - 0.73 * lung - trachea
    total = MU["soft"] * np.clip(soft, 0, None) * 0.82 + MU["bone"] * bone * patient.bone
    return total.astype(np.float32), grid.px


def _capsule(grid: Grid, x0, y0, x1, y1, r0: float, r1: float | None = None) -> np.ndarray:
    """Path length through a rod from (x0, y0) to (x1, y1)."""
    r1 = r0 if r1 is None else r1
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((grid.x - x0) * dx + (grid.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    d2 = (grid.x - x0 - t * dx) ** 2 + (grid.y - y0 - t * dy) ** 2
    return 2 * np.sqrt(np.clip((r0 + (r1 - r0) * t) ** 2 - d2, 0, None))


def _hand(grid: Grid, rng) -> np.ndarray:
    soft = _capsule(grid, 0, 27, 0, 36, 4.0, 3.5)
    soft = np.maximum(soft, 4.2 * dome(((grid.x) / 6.2) ** 4 + ((grid.y - 20) / 7.0) ** 4) ** 0.5)
    bone = np.zeros_like(soft)
    for k, (x, top, lean) in enumerate(((-4.4, 0.5, -0.16), (-1.5, -3.0, -0.05), (1.4, -2.0, 0.06), (4.1, 1.5, 0.17))):
        top += rng.normal(0, 0.4)
        tip = x + lean * (15 - top)
        soft = np.maximum(soft, _capsule(grid, x, 16, tip, top, 1.45, 1.1))
        at = [0.0, 0.46, 0.76, 0.98]
        for a, b in pairwise(at):
            px = [x + (tip - x) * v for v in (a + 0.02, b - 0.03)]
            py = [14 + (top - 14) * v for v in (a + 0.02, b - 0.03)]
            bone = np.maximum(bone, _capsule(grid, px[0], py[0], px[1], py[1], 0.62 - 0.05 * k * (a > 0), 0.45))
        bone = np.maximum(bone, _capsule(grid, 0.55 * x, 24.5, x, 14.8, 0.6, 0.75))
    soft = np.maximum(soft, _capsule(grid, -4.5, 23, -10.5, 13.5, 1.8, 1.2))
    bone = np.maximum(bone, _capsule(grid, -3.2, 24.5, -6.6, 19.6, 0.75, 0.65))
    bone = np.maximum(bone, _capsule(grid, -7.0, 19.0, -10.2, 14.2, 0.6, 0.45))
    for x, y in ((-2.4, 26), (-0.6, 25.7), (1.2, 25.8), (-1.5, 27.6), (0.6, 27.6), (2.2, 27.4)):
        bone = np.maximum(bone, _capsule(grid, x, y, x + 0.3, y + 0.2, 0.8))
    bone = np.maximum(bone, _capsule(grid, -1.6, 29.5, -1.8, 40, 1.5, 1.0))
    bone = np.maximum(bone, _capsule(grid, 2.0, 29.6, 2.0, 40, 1.0, 0.8))
    return MU["soft"] * soft * 2.4 + MU["bone"] * bone * 2.2


def _knee(grid: Grid, rng) -> np.ndarray:
    tilt = rng.normal(0, 0.6)
    soft = _capsule(grid, tilt, -10, 0, 12, 9.0, 7.0)
    soft = np.maximum(soft, _capsule(grid, 0, 12, -tilt, 40, 7.0, 6.0))
    bone = np.maximum(_capsule(grid, tilt, -10, 0, 6, 2.1, 2.3), _capsule(grid, -2.3, 9, 2.3, 9, 2.9))
    bone = np.maximum(bone, _capsule(grid, -2.6, 16.2, 2.6, 16.2, 2.5))
    bone = np.maximum(bone, _capsule(grid, 0, 17, -tilt, 40, 2.6, 1.9))
    bone = np.maximum(bone, _capsule(grid, 5.0, 19.5, 4.6, 40, 1.1, 0.8))
    bone = bone + _capsule(grid, -0.4, 7.5, 0.4, 7.5, 2.0) * 0.4
    return 0.7 * MU["soft"] * soft + 0.7 * MU["bone"] * bone


def _abdomen(grid: Grid, rng) -> np.ndarray:
    x, y = grid.x, grid.y
    soft = 22 * dome((x / 17.5) ** 2) ** 0.8 + 0 * y
    phase = (y / 3.3) % 1
    bone = 1.5 * dome((x / 2.3) ** 2) ** 0.5 * (0.6 + 0.4 * smooth((0.4 - np.abs(phase - 0.5)) / 0.08)) * (y < 18)
    for side in (-1, 1):
        c, s = np.cos(0.5), np.sin(0.5)
        dx, dy = x * side - 8.5, y - 20.0
        wing = ((c * dx - s * dy) / 4.6) ** 2 + ((c * dy + s * dx) / 7.5) ** 2
        bone = bone + 1.1 * dome(wing) ** 0.6 + 0.9 * np.exp(-(((wing - 0.92) / 0.10) ** 2)) * (dy < 3)
        bone = bone + _capsule(grid, side * 12.5, 29, side * 16, 34, 2.2) * 0.7
        bone = bone + _capsule(grid, side * 2.6, 0.2, side * 12, 2.5, 0.55) * 0.6
    bone = bone + 1.6 * dome((x / 3.8) ** 2 + ((y - 20.5) / 5.0) ** 2)
    gas = np.zeros_like(x)
    for _ in range(14):  # colon around the edge, small bowel inside
        cx, cy, r = rng.uniform(-12, 12), rng.uniform(-3, 17), rng.uniform(1.0, 2.6)
        gas = np.maximum(gas, 2.4 * r * dome(((x - cx) ** 2 + (y - cy) ** 2 * rng.uniform(0.5, 1.6)) / r**2))
    return 0.8 * (MU["soft"] * np.clip(soft - gas, 0, None) + MU["bone"] * bone)


def body_part(n: int, part: str, exposure: Exposure, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Attenuation [n, n] of something that is no chest (one of BODY_PARTS), and the pixel size in cm."""
    grid = Grid(n, exposure)
    total = {"hand": _hand, "knee": _knee, "abdomen": _abdomen}[part](grid, rng)
    return total.astype(np.float32), grid.px


def spoil(kind: str, attenuation, film: Film, px_cm: float, rng: np.random.Generator, levels: int) -> np.ndarray:
    """A picture that cannot be read, for one of the reasons UNREADABLE; arguments and result as of `film.develop`."""
    if kind == "too_dark":
        film = replace(film, centre=film.centre + 2.6)
    elif kind == "too_bright":
        film = replace(film, centre=film.centre - 2.9, dose=film.dose / 40)
    elif kind == "noisy":
        film = replace(film, dose=10 / px_cm**2)  # a handful of photons per pixel
    elif kind == "blurred":
        axis = int(rng.integers(2))
        attenuation = gaussian_filter1d(attenuation, 1.6 / px_cm, axis=axis)
        film = replace(film, blur_cm=0.7)
    elif kind == "blank":
        attenuation = 0.03 * attenuation + rng.uniform(0.5, 4.5)
    picture = develop(attenuation, film, px_cm, rng, levels)
    if kind == "cropped":  # collimated to a strip
        n = len(picture)
        at, width = int(rng.uniform(0.05, 0.6) * n), int(0.3 * n)
        strip = np.zeros_like(picture)
        strip[:, at : at + width] = picture[:, at : at + width]
        picture = strip.T if rng.random() < 0.5 else strip
    elif kind == "turned":
        picture = np.rot90(picture, int(rng.integers(1, 4)))
    return np.ascontiguousarray(picture)
