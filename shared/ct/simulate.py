"""Simulated chest CTs with known findings: the embedded data of Argus (issue 6 item 4; reference: "Data").

    python -m shared.ct.simulate ct-rate ROOT --n 100 --seed 0 --shape 64 96 96
    python -m shared.ct.simulate --contact-sheet sheet.png
    python -m shared.ct.simulate --contrast

A procedural thorax (`simulate_anatomy`, `simulate_organs`, `simulate_trees`) with findings (`simulate_findings`,
`simulate_lesions`) is continuous in mm and put on any grid: the same patient at a finer grid shows more. Reports
(`simulate_reports`) and files (`simulate_layouts`) follow the three sources of CT-3DRRG. Everything of patient k
follows from (seed, source, k), so it does not depend on how many are asked for, nor the patient on the grid.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from shared.ct.simulate_anatomy import Patient, draw_patient
from shared.ct.simulate_findings import KINDS, Finding, changed, draw_findings
from shared.ct.simulate_lesions import Scene
from shared.ct.simulate_lesions_chest import DRAW
from shared.ct.simulate_organs import PHASES, paint_body, paint_heart, paint_ribs, paint_spine, paint_vessels
from shared.ct.simulate_reports import Report, write_report
from shared.ct.simulate_shapes import Grid
from shared.ct.simulate_trees import grow, paint_airways, paint_arteries

LAPTOP_SHAPE = (64, 96, 96)
_LAST = ("pneumothorax", "pleural_effusion", "pericardial_effusion")  # air and fluid fill what is left
# CT-RATE: prevalences implied by the label weights of CT-CLIP (reference); those without a label are our choice.
_CT_RATE = {
    "surgical_material": 0.04, "pacemaker": 0.02, "central_line": 0.04, "aortic_calcification": 0.30,
    "cardiomegaly": 0.11, "pericardial_effusion": 0.05, "coronary_calcification": 0.25, "hiatal_hernia": 0.14,
    "lymphadenopathy": 0.24, "emphysema": 0.19, "atelectasis": 0.25, "nodule": 0.40, "mass": 0.05,
    "ground_glass": 0.33, "fibrosis": 0.24, "pleural_effusion": 0.12, "mosaic_attenuation": 0.06,
    "peribronchial_thickening": 0.08, "consolidation": 0.14, "bronchiectasis": 0.09, "septal_thickening": 0.08,
    "pneumothorax": 0.03, "aortic_aneurysm": 0.06, "fracture": 0.07,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A data set to imitate. rates: finding -> share of examinations; phases: contrast phase -> share; healthy: share
    of patients without findings; follow_up: share with a second examination; sharp: share of sharp kernels."""

    name: str
    rates: dict
    phases: dict
    age_mean: float
    healthy: float = 0.08
    follow_up: float = 0.12
    sharp: float = 0.4


SOURCES = {
    source.name: source
    for source in (
        Source("ct-rate", _CT_RATE, {"none": 1.0}, 50),
        Source("bimcv-r", _CT_RATE | {"ground_glass": 0.45, "consolidation": 0.26, "pleural_effusion": 0.18,
                                      "pulmonary_embolism": 0.5},
               {"none": 0.68, "venous": 0.24, "pulmonary": 0.08}, 62),
        Source("inspect", _CT_RATE | {"pulmonary_embolism": 0.22, "pleural_effusion": 0.25, "atelectasis": 0.34,
                                      "lymphadenopathy": 0.18, "ground_glass": 0.22, "fibrosis": 0.12},
               {"pulmonary": 1.0}, 60, follow_up=0.15, sharp=0.2),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """phase: of contrast; kernel: "soft" | "sharp"; noise_hu: standard deviation in voxels of 1 mm³; fov_mm: width of
    the field of view; length_mm, centre_mm (z, y, x): of the volume in the patient; seed: of the noise."""

    phase: str
    kernel: str
    noise_hu: float
    fov_mm: float
    length_mm: float
    centre_mm: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Study:
    """One examination of a patient, without voxels. number: of the patient; index: 0, 1 .. of the examination."""

    source: str
    number: int
    index: int
    patient: Patient
    findings: tuple[Finding, ...]
    scan: Scan
    report: Report


@dataclass
class Rendered:
    """hu: int16 [D, H, W], LPS (z up, y to the back, x to the left). boxes: per finding of the study (z0, y0, x0, z1,
    y1, x1) in voxels, the last exclusive, () where it lies outside; volume_mm3: per finding; shares: per finding its
    box as slices and the share of each voxel, where they were asked for."""

    hu: np.ndarray
    grid: Grid
    boxes: list
    volume_mm3: list
    shares: list = field(default_factory=list)


def draw_scan(source: Source, patient: Patient, rng: np.random.Generator) -> Scan:
    """Contrast phase, kernel, dose and field of view of an examination."""
    phases = list(source.phases)
    phase = phases[
        int(np.searchsorted(np.cumsum(list(source.phases.values())), rng.random()).clip(max=len(phases) - 1))
    ]
    kernel = "sharp" if rng.random() < source.sharp else "soft"
    noise = rng.uniform(9, 20) * (1.7 if kernel == "sharp" else 1.0) * (patient.half_width_mm / 165)
    return Scan(
        phase, kernel, float(noise), fov_mm=2 * patient.half_width_mm + float(rng.uniform(4, 44)),
        length_mm=float(rng.uniform(298, 322)) * patient.scale[0],
        centre_mm=(float(rng.normal(-7, 4)), float(rng.normal(6, 5)), float(rng.normal(0, 5))),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def draw_studies(source: str, seed: int, number: int) -> list[Study]:
    """The examinations of patient `number` of a source, oldest first, without voxels. KeyError: no such source."""
    if source not in SOURCES:
        raise KeyError(f"unknown source {source!r}: one of {', '.join(SOURCES)}")
    place = SOURCES[source]
    rng = np.random.default_rng([seed, list(SOURCES).index(source), number])
    patient = draw_patient(rng, place.age_mean)
    rates = {} if rng.random() < place.healthy else place.rates
    studies, kept = [], None
    for index in range(1 + int(rng.random() < place.follow_up)):
        of_study = np.random.default_rng(rng.integers(2**63, size=2))
        scan = draw_scan(place, patient, of_study)
        findings = draw_findings(rates, patient.age, scan.phase == "pulmonary", of_study, kept)
        kept = {name: [f for f in findings if f.name == name] for name in KINDS}
        report = write_report(source, findings, scan.phase != "none", of_study)
        studies.append(Study(source, number, index, patient, tuple(findings), scan, report))
    return studies


def study_grid(scan: Scan, shape=LAPTOP_SHAPE) -> Grid:
    """The field of view of a scan in so many voxels (D, H, W)."""
    d, h, w = shape
    return Grid(tuple(shape), (scan.length_mm / d, scan.fov_mm / h, scan.fov_mm / w), scan.centre_mm)


def spaced_grid(scan: Scan, spacing_mm) -> Grid:
    """The field of view of a scan in voxels of this spacing (sz, sy, sx)."""
    size = (scan.length_mm, scan.fov_mm, scan.fov_mm)
    shape = tuple(max(1, round(a / b)) for a, b in zip(size, spacing_mm, strict=True))
    return Grid(shape, tuple(float(s) for s in spacing_mm), scan.centre_mm)


def render(patient: Patient, findings, scan: Scan, grid: Grid, noise: bool = True, shares: bool = False) -> Rendered:
    """The volume of a patient with these findings. noise=False: also without the kernel, the bare tissue. shares: keep
    what each finding fills."""
    findings = list(findings)
    patient = changed(patient, findings)
    scene = Scene(np.empty(grid.shape, np.float32), grid, patient, PHASES[scan.phase], grow(patient))
    hu, blood = scene.hu, scene.blood
    fills = {}

    def draw(chosen):
        for i in chosen:
            fills[i] = DRAW[findings[i].name](scene, findings[i], np.random.default_rng(findings[i].seed))

    early = [i for i, f in enumerate(findings) if KINDS[f.name].early]
    last = [i for i, f in enumerate(findings) if f.name in _LAST]
    paint_body(hu, grid, patient, blood)
    draw(early)
    paint_arteries(hu, grid, patient, scene.tree, blood.right)
    paint_heart(hu, grid, patient, blood)
    paint_vessels(hu, grid, patient, blood)
    paint_airways(hu, grid, patient, scene.tree)
    paint_spine(hu, grid, patient)
    paint_ribs(hu, grid, patient)
    draw(i for i in range(len(findings)) if i not in early and i not in last)
    draw(last)
    if noise:
        _reconstruct(hu, grid, scan)
    ordered = [fills[i] for i in range(len(findings))]
    return Rendered(
        np.rint(hu.clip(-1024, 3071, out=hu), out=hu).astype(np.int16), grid, [_box(*fill) for fill in ordered],
        [float(share.sum() * np.prod(grid.spacing_mm)) for _, share in ordered], ordered if shares else [],
    )  # fmt: skip


def _box(box, share) -> tuple:
    """Voxels of which a finding fills at least a third of what it fills at most."""
    if not share.size or share.max() < 1e-3:
        return ()
    there = share > share.max() / 3
    low, high = [], []
    for axis in range(3):
        at = np.flatnonzero(there.any(tuple(k for k in range(3) if k != axis)))
        low.append(box[axis].start + int(at[0]))
        high.append(box[axis].start + int(at[-1]) + 1)
    return (*low, *high)


def _reconstruct(hu: np.ndarray, grid: Grid, scan: Scan) -> None:
    """Blur and sharpness of the kernel where voxels are small enough to show them; noise, less in larger voxels (the
    fourth root of their volume: neighbouring noise is correlated)."""
    sharp = scan.kernel == "sharp"
    sigma = [s if s > 0.3 else 0 for s in ((0.5 if sharp else 0.85) / np.array(grid.spacing_mm))]
    if any(sigma):
        gaussian_filter(hu, sigma, output=hu, truncate=2.5)
    if sharp and grid.spacing_mm[2] < 3:
        hu += 0.3 * (hu - gaussian_filter(hu, [0, 1.2 / grid.spacing_mm[1], 1.2 / grid.spacing_mm[2]], truncate=2.5))
    rng = np.random.default_rng(scan.seed)
    noise = rng.standard_normal(hu.shape, np.float32)
    noise *= np.float32(scan.noise_hu * np.prod(grid.spacing_mm) ** -0.25)
    hu += noise


@dataclass
class Simulated:
    """An examination with its volume."""

    study: Study
    volume: Rendered


def simulate_patient(source: str, seed: int, number: int, shape=LAPTOP_SHAPE) -> list[Simulated]:
    """Examinations of patient `number` as volumes of `shape` (D, H, W) voxels. Same arguments, same bytes; another
    shape is the same patient at another resolution."""
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape must be three numbers of at least 16, not {tuple(shape)}")
    studies = draw_studies(source, seed, number)
    return [Simulated(s, render(s.patient, s.findings, s.scan, study_grid(s.scan, shape))) for s in studies]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", choices=sorted(SOURCES), help="data set to imitate")
    parser.add_argument("root", nargs="?", type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--n", type=int, default=100, help="patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=LAPTOP_SHAPE, metavar=("D", "H", "W"), help="voxels")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw each finding in three planes and stop")
    parser.add_argument("--contrast", action="store_true", help="print how well each finding shows and stop")
    args = parser.parse_args(argv)
    if args.contact_sheet or args.contrast:
        from shared.ct.simulate_sheet import contact_sheet, contrast_table

        print(contact_sheet(args.contact_sheet, args.seed) if args.contact_sheet else contrast_table(args.seed))
    elif args.source and args.root:
        from shared.ct.simulate_layouts import write

        print(write(args.source, args.root, args.n, args.seed, tuple(args.shape), args.workers))
    else:
        parser.error("give SOURCE and ROOT, or --contact-sheet PNG, or --contrast")


if __name__ == "__main__":
    main()
