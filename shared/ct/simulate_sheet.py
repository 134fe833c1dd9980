"""Pictures and numbers to judge the simulated chest CTs by: a contact sheet of every finding in three planes, and how
well each finding shows at a coarse and at a fine resolution.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from shared.ct.simulate import LAPTOP_SHAPE, SOURCES, Scan, draw_scan, render, simulate_patient, study_grid
from shared.ct.simulate_anatomy import draw_patient
from shared.ct.simulate_findings import KINDS, Finding, draw_finding

SHEET_SHAPE, CELL_PX, COLUMNS = (176, 256, 256), 216, 3
WINDOWS = {
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "bone": (400, 1800),
    "angiography": (180, 800),
}  # centre, width
_WINDOW_OF = {
    **dict.fromkeys(("pulmonary_embolism",), "angiography"),
    **dict.fromkeys(("fracture", "coronary_calcification", "aortic_calcification", "pacemaker", "central_line",
                     "surgical_material"), "bone"),
    **dict.fromkeys(("cardiomegaly", "pericardial_effusion", "pleural_effusion", "aortic_aneurysm", "lymphadenopathy",
                     "hiatal_hernia"), "mediastinum"),
}  # fmt: skip


def examples(seed: int) -> list[Finding]:
    """One finding of each name, variant and kind of place."""
    chosen = []
    for name, kind in KINDS.items():
        variants = [{"form": form} for form, _ in kind.forms]
        if name == "fracture":
            variants = [{"side": "right", "place": "rib"}, {"side": "", "place": "vertebra"}]
        if name == "pulmonary_embolism":
            variants = [{"side": "right", "place": "main"}, {"side": "left", "place": "lower_lobe"}]
        for k, fixed in enumerate(variants):
            rng = np.random.default_rng([seed, list(KINDS).index(name), k])
            drawn = draw_finding(name, rng, **fixed)
            low, high = kind.size_mm
            if name == "nodule":
                low, high = (5, 7) if fixed["form"] == "calcified" else (9, 16)
            elif name == "atelectasis":
                low, high = (4, 6) if fixed["form"] == "linear" else (40, 52)
            elif name == "fracture":
                low, high = (3, 6) if fixed["place"] == "rib" else (8, 10)
            chosen.append(draw_finding(name, rng, **fixed, seed=drawn.seed, size_mm=low + 0.6 * (high - low)))
    return chosen


def _scene(finding: Finding, seed: int):
    """A patient and a scan to show a finding in."""
    rng = np.random.default_rng([seed, 7 + len(finding.name)])
    patient = draw_patient(rng)
    scan = draw_scan(SOURCES["inspect" if finding.name == "pulmonary_embolism" else "ct-rate"], patient, rng)
    return patient, Scan(**{**vars(scan), "kernel": "soft", "noise_hu": 11.0})


def _window(hu: np.ndarray, name: str) -> np.ndarray:
    centre, width = WINDOWS[name]
    return ((hu.astype(np.float32) - centre + width / 2) / width).clip(0, 1) * 255


def _plane(picture: np.ndarray, step, mark=None, title: str = "") -> Image.Image:
    """A slice [rows, columns] with square millimetres in a square cell; mark: (row, column) to point at."""
    rows, columns = picture.shape
    scale = CELL_PX / max(rows * step[0], columns * step[1])
    size = (max(1, round(columns * step[1] * scale)), max(1, round(rows * step[0] * scale)))
    cell = Image.new("L", (CELL_PX, CELL_PX))
    cell.paste(Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR), (0, 0))
    cell = cell.convert("RGB")
    pen = ImageDraw.Draw(cell)
    if mark is not None:
        y, x = (float(m * s * scale) for m, s in zip(mark, step, strict=True))
        pen.line((x - 26, y, x - 12, y), fill=(255, 200, 40))
        pen.line((x, y - 26, x, y - 12), fill=(255, 200, 40))
    pen.text((3, CELL_PX - 13), title, fill=(255, 255, 120))
    return cell


def three_planes(hu: np.ndarray, spacing_mm, at, window: str, title: str = "") -> Image.Image:
    """Axial, coronal and sagittal slice through the voxel `at` (z, y, x), head up and front up, patient's right on the
    left."""
    z, y, x = (int(np.clip(round(float(k)), 0, n - 1)) for k, n in zip(at, hu.shape, strict=True))
    sz, sy, sx = spacing_mm
    grey = {
        "axial": _window(hu[z], window),
        "coronal": _window(hu[::-1, y], window),
        "sagittal": _window(hu[::-1, :, x], window),
    }
    up = hu.shape[0] - 1 - z
    cells = [_plane(grey["axial"], (sy, sx), (y, x), title), _plane(grey["coronal"], (sz, sx), (up, x)),
             _plane(grey["sagittal"], (sz, sy), (up, y))]  # fmt: skip
    strip = Image.new("RGB", (3 * CELL_PX, CELL_PX))
    for k, cell in enumerate(cells):
        strip.paste(cell, (k * CELL_PX, 0))
    return strip


def _middle(box, share) -> np.ndarray:
    """Voxel where a finding is densest, near its middle."""
    if not share.size or share.max() <= 0:
        return np.array([(part.start + part.stop) / 2 for part in box])
    there = np.argwhere(share > 0.6 * share.max())
    near = there[np.argmin(((there - there.mean(0)) ** 2).sum(1))]
    return near + [part.start for part in box]


def finding_strips(seed: int) -> list[Image.Image]:
    """Three planes through each finding."""
    strips = []
    for f in examples(seed):
        patient, scan = _scene(f, seed)
        made = render(patient, [f], scan, study_grid(scan, SHEET_SHAPE), shares=True)
        words = (f.name, f.form, f.side, f.place, f.detail, f"{f.size_mm:.1f} mm", f"{f.density_hu:.0f} HU")
        at = _middle(*made.shares[0])
        title = " ".join(w for w in words if w)
        strips.append(three_planes(made.hu, made.grid.spacing_mm, at, _WINDOW_OF.get(f.name, "lung"), title))
    return strips


def ladder_strips(seed: int) -> list[Image.Image]:
    """One patient with a 5 mm nodule and thin plaques at three resolutions; then an examination of each source."""
    rng = np.random.default_rng([seed, 1])
    nodule = draw_finding("nodule", rng, form="solid", side="right", place="upper_lobe", size_mm=5.0)
    plaque = draw_finding("aortic_calcification", rng, place="arch", size_mm=1.6)
    patient, scan = _scene(nodule, seed)
    strips = []
    for shape in (LAPTOP_SHAPE, (128, 192, 192), (256, 384, 384)):
        made = render(patient, [nodule, plaque], scan, study_grid(scan, shape), shares=True)
        title = f"5 mm nodule, {' x '.join(map(str, shape))}"
        strips.append(three_planes(made.hu, made.grid.spacing_mm, _middle(*made.shares[0]), "lung", title))
    for source in SOURCES:
        made = simulate_patient(source, seed, 1, LAPTOP_SHAPE)[0].volume
        at = np.array(made.grid.shape) * [0.45, 0.5, 0.52]
        for window in ("lung", "mediastinum"):
            strips.append(three_planes(made.hu, made.grid.spacing_mm, at, window, f"{source}, laptop grid, {window}"))
    return strips


def contact_sheet(path: Path, seed: int = 0) -> Path:
    """Write the sheet as PNG and return its path."""
    strips = finding_strips(seed) + ladder_strips(seed)
    rows = -(-len(strips) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (3 * CELL_PX + 6), rows * (CELL_PX + 6)))
    for k, strip in enumerate(strips):
        sheet.paste(strip, (k % COLUMNS * (3 * CELL_PX + 6), k // COLUMNS * (CELL_PX + 6)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def visibility(finding: Finding, seed: int, shape=LAPTOP_SHAPE) -> dict:
    """How a finding shows in a volume of `shape`: voxels that it fills by a third or more, contrast (mean HU that it
    changes there, without noise), surround (standard deviation in HU of the noisy volume without it, there and two
    voxels around), cnr = contrast / surround, detectability = sqrt(sum of squared change) / noise over its
    surroundings (a matched filter's d')."""
    patient, scan = _scene(finding, seed)
    grid = study_grid(scan, shape)
    made = render(patient, [finding], scan, grid, noise=False, shares=True)
    bare = render(patient, [], scan, grid, noise=False)
    noisy = render(patient, [], scan, grid).hu.astype(np.float32)
    change = made.hu.astype(np.float32) - bare.hu
    box, share = made.shares[0]
    there = np.zeros(grid.shape, bool)
    there[box] = share > share.max() / 3 if share.size else False
    if finding.name in ("cardiomegaly", "aortic_aneurysm", "peribronchial_thickening") or finding.place == "vertebra":
        there = np.abs(change) > max(40, np.abs(change).max() / 3)  # they change the anatomy itself
    around = binary_dilation(there, iterations=2)
    contrast = float(np.abs(change[there]).mean()) if there.any() else 0.0
    surround = float(noisy[around].std()) if around.any() else float("nan")
    noise = scan.noise_hu * np.prod(grid.spacing_mm) ** -0.25
    power = float(np.sqrt((change**2).sum()) / noise)
    return {"voxels": int(there.sum()), "contrast_hu": contrast, "surround_hu": surround, "cnr": contrast / surround,
            "detectability": power}  # fmt: skip


def contrast_table(seed: int = 0, shapes=(LAPTOP_SHAPE, (128, 192, 192))) -> str:
    """`visibility` of every finding at two resolutions, as text."""
    lines = [f"{'finding':44s}" + "".join(f"| {' x '.join(map(str, s)):14s} HU   CNR     d' " for s in shapes)]
    for f in examples(seed):
        name = " ".join(w for w in (f.name, f.form, f.place, f"{f.size_mm:.1f} mm") if w)
        cells = [visibility(f, seed, shape) for shape in shapes]
        row = (
            f"| {c['voxels']:6d} vx {c['contrast_hu']:8.0f} {c['cnr']:5.2f} {c['detectability']:6.0f} " for c in cells
        )
        lines.append(f"{name:44s}" + "".join(row))
    return "\n".join(lines)
