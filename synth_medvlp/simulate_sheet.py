"""Contact sheet of the simulated radiographs: every finding with the outline of its mask, every defect, every film."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from synth_medvlp import defects
from synth_medvlp.anatomy import draw_exposure, draw_patient
from synth_medvlp.findings import KINDS, NAMES, draw_finding
from synth_medvlp.lesions import box
from synth_medvlp.simulate import HOSPITALS, not_frontal, picture, simulate_patient

SIZE_PX, CELL_PX, COLUMNS = 256, 256, 8
_COLOUR = (255, 190, 40)


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask [n, n] that touch its outside."""
    padded = np.pad(mask, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~core


def _cell(image: np.ndarray, title: str, mask: np.ndarray | None = None) -> Image.Image:
    """One picture with its title; mask: outlined, with its box."""
    grey = image.astype(float) * (255 / max(int(image.max()), 255))
    colour = np.repeat(grey.astype(np.uint8)[..., None], 3, 2)
    if mask is not None and mask.any():
        colour[outline(mask)] = _COLOUR
    cell = Image.fromarray(colour).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(cell)
    if mask is not None and mask.any():
        x, y, w, h = (value * CELL_PX / len(mask) for value in box(mask))
        pen.rectangle((x, y, x + w, y + h), outline=(90, 160, 255))
    pen.rectangle((0, 0, CELL_PX, 13), fill=(0, 0, 0))
    pen.text((3, 1), title, fill=(255, 255, 255))
    return cell


def _sheet(cells: list[Image.Image]) -> Image.Image:
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, rows * CELL_PX))
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % COLUMNS * CELL_PX, i // COLUMNS * CELL_PX))
    return sheet


def _person(name: str, seed: int):
    rng = np.random.default_rng([seed, NAMES.index(name) if name in NAMES else 99])
    view = "AP" if name in KINDS and (KINDS[name].bedside or name == "central_line") else "PA"
    return draw_patient(rng), draw_exposure(rng, view), rng


def finding_cells(seed: int) -> list[Image.Image]:
    """Per finding the picture without and with the outline of its mask."""
    cells = []
    for name in NAMES:
        patient, exposure, rng = _person(name, seed)
        finding = draw_finding(name, rng, extent=0.65)
        image, masks = picture(patient, exposure, [finding], SIZE_PX)
        title = " ".join(word for word in (name, finding.side, finding.place, exposure.view) if word)
        cells += [_cell(image, title), _cell(image, "mask and box", masks[name])]
    return cells


def defect_cells(seed: int) -> list[Image.Image]:
    """One picture per defect that can be seen (a mismatched report cannot)."""
    patient, exposure, rng = _person("", seed)
    film = HOSPITALS["mimic-cxr-jpg"].film
    cells = [_cell(picture(patient, exposure, [], SIZE_PX, marker=True)[0], "no finding")]
    for part in ("", *defects.BODY_PARTS):
        image = not_frontal(part, patient, exposure, film, SIZE_PX, 255, rng)
        cells.append(_cell(image, f"wrong_body_part: {part}" if part else "non_frontal"))
    for kind in defects.UNREADABLE:
        cells.append(_cell(picture(patient, exposure, [], SIZE_PX, spoiled=kind)[0], f"unreadable: {kind}"))
    return cells


def hospital_cells(seed: int) -> list[Image.Image]:
    """Two random radiographs per hospital, as its data set would hold them at the laptop tier's 64 px and at 256 px."""
    cells = []
    for name in HOSPITALS:
        for number, size_px in ((0, SIZE_PX), (1, 64)):
            cxr = simulate_patient(name, seed, number, size_px)[0]
            cells.append(_cell(cxr.image, f"{name} {cxr.view} {size_px} px"))
    return cells


def contact_sheet(path: Path, seed: int = 0) -> Path:
    """Write the sheet as PNG and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(finding_cells(seed) + defect_cells(seed) + hospital_cells(seed)).save(path)
    return path
