"""Simulated chest radiographs with known findings: the embedded data of this package (reference: Data; stage A1).

    python -m synth_medvlp.simulate mimic-cxr-jpg ROOT --n 500 --level middle --size-px 64
    python -m synth_medvlp.simulate --contact-sheet sheet.png

A patient (`anatomy`) gets findings (`findings`) that change what the beam meets (`lesions`); `film` develops the sum of
attenuation; `simulate_reports` words the report. "mimic-cxr-jpg" is the training hospital, with three levels of the
defects that the paper finds in real data; the others are test hospitals with other patients, devices and films.
Everything of patient k follows from (seed, hospital, k), so it does not depend on how many are asked for.
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from synth_medvlp import defects
from synth_medvlp.anatomy import Exposure, Patient, draw_exposure, draw_patient
from synth_medvlp.film import Film, develop
from synth_medvlp.findings import Finding, conditional_rates, draw_findings
from synth_medvlp.lesions import box, draw
from synth_medvlp.simulate_reports import Report, write_report

# Share of images per finding in the training hospital: a long tail.
LONG_TAIL = {
    "cardiomegaly": 0.17, "pleural_effusion": 0.20, "pneumothorax": 0.045, "consolidation": 0.12, "edema": 0.12,
    "atelectasis": 0.17, "nodule": 0.035, "mass": 0.02, "granuloma": 0.02, "rib_fracture": 0.018,
    "hiatal_hernia": 0.012, "emphysema": 0.03, "fibrosis": 0.018, "pleural_thickening": 0.02, "scoliosis": 0.012,
    "tortuous_aorta": 0.03, "pacemaker": 0.05, "central_line": 0.08, "endotracheal_tube": 0.06, "feeding_tube": 0.06,
    "sternal_wires": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Level:
    """Defects of the training set. tail: exponent on LONG_TAIL at equal total (0 = all findings equally frequent); the
    other values are shares of images, one defect at most in each."""

    tail: float
    non_frontal: float = 0.0
    wrong_body_part: float = 0.0
    unreadable: float = 0.0
    mismatched_report: float = 0.0


LEVELS = {
    "none": Level(0.0),
    "middle": Level(1.0, 0.02, 0.01, 0.04, 0.08),
    "strong": Level(1.5, 0.05, 0.03, 0.12, 0.20),
}


@dataclass(frozen=True)
class Hospital:
    """prevalence: share of images per finding; film: its mean, which varies by image; lateral: share of studies with a
    lateral image beside the frontal one; bilateral: share of consolidations on both sides, None = as elsewhere;
    shortcut: images with bilateral consolidation come from a source with a film of its own (COVIDx, Trap 16)."""

    name: str
    prevalence: dict
    share_ap: float
    age_mean: float
    film: Film
    more_studies: float = 0.4
    marker: float = 0.6
    clutter: float = 0.5
    lateral: float = 0.0
    bilateral: float | None = None
    shortcut: bool = False
    levels: int = 255


def _with(**changes) -> dict:
    return LONG_TAIL | changes


_FEW_DEVICES = {"central_line": 0.02, "endotracheal_tube": 0.01, "feeding_tube": 0.01}
HOSPITALS = {
    hospital.name: hospital
    for hospital in (
        Hospital("mimic-cxr-jpg", LONG_TAIL, 0.45, 62, Film(), lateral=0.15),
        Hospital("chexpert", _with(pleural_effusion=0.24, edema=0.18, cardiomegaly=0.26, atelectasis=0.26,
                                   consolidation=0.09, pacemaker=0.09, central_line=0.20),
                 0.70, 60, Film(2.7, 0.66, 2.2e5), lateral=0.2, clutter=0.7),
        Hospital("nih-cxr", _with(**_FEW_DEVICES, pleural_effusion=0.12, edema=0.03, cardiomegaly=0.05, nodule=0.07,
                                  mass=0.06, consolidation=0.07, pneumothorax=0.06, emphysema=0.04, fibrosis=0.03,
                                  pleural_thickening=0.04), 0.38, 47, Film(3.15, 0.92, 1.5e5), more_studies=1.5),
        Hospital("padchest", _with(**_FEW_DEVICES, edema=0.03, scoliosis=0.06, tortuous_aorta=0.09, granuloma=0.04,
                                   hiatal_hernia=0.03, emphysema=0.06, pleural_thickening=0.05),
                 0.12, 66, Film(2.75, 0.85, 4.0e5), lateral=0.25, marker=0.3, levels=4095),
        Hospital("rsna-pneumonia", _with(consolidation=0.24, edema=0.04), 0.46, 47, Film(3.05, 0.88, 1.5e5)),
        Hospital("siim-acr", _with(pneumothorax=0.24, consolidation=0.06), 0.40, 47, Film(3.05, 0.95, 1.5e5)),
        Hospital("covidx-cxr2", _with(consolidation=0.55, edema=0.02, pleural_effusion=0.08), 0.6, 56,
                 Film(2.95, 0.95, 1.2e5), bilateral=0.92, shortcut=True),
        Hospital("covid-rural", _with(consolidation=0.62, edema=0.02), 0.85, 53, Film(2.6, 0.8, 8.0e4),
                 bilateral=0.75, more_studies=1.5),
    )
}  # fmt: skip


@dataclass
class Cxr:
    """One radiograph. image: uint8 (uint16 above 255 levels) [n, n], bright = dense; view: PA | AP | LATERAL, as the
    hospital recorded it; findings: what the patient has; masks: name -> bool [n, n] and boxes: name -> (x, y, w, h) in
    pixels, empty where the picture does not show them (lateral, defects); defect: "" or one of `defects.DEFECTS`, with
    its kind after a colon; report: as filed, of somebody else where the report is mismatched; wording: seed of what
    the layouts add."""

    patient_id: int
    study: int
    image: np.ndarray
    view: str
    age: float
    male: bool
    findings: list[Finding]
    report: Report
    masks: dict = field(default_factory=dict)
    boxes: dict = field(default_factory=dict)
    defect: str = ""
    source: str = ""
    wording: int = 0

    @property
    def names(self) -> list[str]:
        return [finding.name for finding in self.findings]


def tail(prevalence: dict, exponent: float) -> dict:
    """The same total prevalence with another tail: 0 makes all equal, above 1 the rare ones rarer; at most 0.45."""
    weights = {name: value**exponent for name, value in prevalence.items()}
    scale = sum(prevalence.values()) / sum(weights.values())
    return {name: min(scale * weight, 0.45) for name, weight in weights.items()}


def prevalence_of(hospital: str, level: str = "none") -> dict:
    """Finding -> expected share of images. `level` matters in the training hospital only."""
    place = _hospital(hospital)
    if level not in LEVELS:
        raise KeyError(f"unknown defect level {level!r}: one of {', '.join(LEVELS)}")
    if place.name != "mimic-cxr-jpg":
        return dict(place.prevalence)
    return tail(place.prevalence, LEVELS[level].tail)


def _hospital(name: str) -> Hospital:
    if name not in HOSPITALS:
        raise KeyError(f"unknown hospital {name!r}: one of {', '.join(HOSPITALS)}")
    return HOSPITALS[name]


def _marker(body, rng) -> None:
    """The technician's lead letter beside the patient's left shoulder; where it lies differs by film."""
    letter = np.array(
        [[int(c) for c in row] for row in ("10000", "10000", "10000", "10000", "10000", "10000", "11111")]
    )
    size = 0.30
    column, row = np.meshgrid(np.arange(body.grid.n) * body.grid.px, np.arange(body.grid.n) * body.grid.px)
    field_cm = body.grid.n * body.grid.px
    c = np.floor((column - field_cm * rng.uniform(0.90, 0.94)) / size).astype(int)
    r = np.floor((row - field_cm * rng.uniform(0.04, 0.12)) / size).astype(int)
    inside = (c >= 0) & (c < 5) & (r >= 0) & (r < 7)
    body.metal = body.metal + 1.6 * np.where(inside, letter[np.clip(r, 0, 6), np.clip(c, 0, 4)], 0)


def _clutter(body, rng) -> None:
    """Monitoring leads on the skin of a bedside patient; no report mentions them."""
    t = np.linspace(0, 1, 120)
    for _ in range(int(rng.integers(1, 4))):
        x0, y0 = rng.uniform(-9, 9), rng.uniform(1, 18)
        x1, y1 = rng.choice([-19.0, 19.0]), y0 + rng.uniform(-6, 12)
        sag = rng.normal(0, 2.5)
        x, y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + sag * np.sin(np.pi * t)
        body.metal = body.metal + body.grid.stroke(x, y, 0.10, 0.08)
        ring = 2 * np.pi * t
        body.metal = body.metal + body.grid.stroke(x0 + 0.45 * np.cos(ring), y0 + 0.45 * np.sin(ring), 0.22, 0.12)


def picture(patient: Patient, exposure: Exposure, findings, n: int, film: Film | None = None, marker: bool = False,
            clutter: bool = False, spoiled: str = "", levels: int = 255) -> tuple[np.ndarray, dict]:  # fmt: skip
    """One frontal radiograph -> (image [n, n], masks name -> bool [n, n]). Same arguments, same bytes."""
    body, masks = draw(n, patient, exposure, findings)
    extra = np.random.default_rng([exposure.seed, 1])
    if clutter:
        _clutter(body, extra)
    if marker:
        _marker(body, extra)
    return _develop(body.attenuation(), body.grid.px, exposure, film or Film(), spoiled, levels), masks


def _develop(attenuation, px_cm: float, exposure: Exposure, film: Film, spoiled: str, levels: int) -> np.ndarray:
    rng = np.random.default_rng([exposure.seed, 2])
    if spoiled:
        return defects.spoil(spoiled, attenuation, film, px_cm, rng, levels)
    return develop(attenuation, film, px_cm, rng, levels)


def _draw_defect(level: Level, rng) -> str:
    draw_, edge = rng.random(), 0.0
    for name in defects.DEFECTS:
        edge += getattr(level, name)
        if draw_ < edge:
            kinds = {"wrong_body_part": defects.BODY_PARTS, "unreadable": defects.UNREADABLE}.get(name, ())
            return f"{name}:{kinds[int(rng.integers(len(kinds)))]}" if kinds else name
    return ""


def _film(place: Hospital, alike: bool, rng) -> tuple[Film, str]:
    """(film of this image, name of its source)."""
    film, source = place.film, place.name
    if place.shortcut:
        own = alike if rng.random() < 0.9 else not alike
        source = "hospital" if own else "rsna"
        film = replace(film, centre=film.centre - 0.45, width=0.72) if own else film
    centre, width = film.centre + rng.normal(0, 0.16), film.width * np.exp(rng.normal(0, 0.08))
    return replace(film, centre=centre, width=width, dose=film.dose * np.exp(rng.normal(0, 0.35))), source


def _other_report(findings, rates: dict, view: str, rng) -> Report:
    """Report of another patient, one whose findings differ."""
    names = {finding.name for finding in findings}
    for _ in range(50):
        others = draw_findings(rates, view, rng)
        if {finding.name for finding in others} != names:
            break
    return write_report(others, rng)


def simulate_patient(hospital: str, seed: int, number: int, size_px: int = 64, level: str = "none") -> list[Cxr]:
    """All radiographs of patient `number`, study by study."""
    place, index = _hospital(hospital), list(HOSPITALS).index(hospital)
    rates = conditional_rates(prevalence_of(hospital, level), place.share_ap)
    defect_level = LEVELS[level] if hospital == "mimic-cxr-jpg" else Level(1.0)
    rng = np.random.default_rng([seed, index, number])
    patient = draw_patient(rng, place.age_mean)
    chronic: dict = {}
    radiographs = []
    for study in range(1 + min(int(rng.poisson(place.more_studies)), 4)):
        of_study = np.random.default_rng([seed, index, number, study])
        radiographs += _study(place, rates, defect_level, patient, chronic, of_study, size_px)
        for cxr in radiographs:
            cxr.patient_id = number
            cxr.study = study if cxr.study < 0 else cxr.study
    return radiographs


def _study(place: Hospital, rates: dict, level: Level, patient: Patient, chronic: dict, rng, size_px: int) -> list[Cxr]:
    view = "AP" if rng.random() < place.share_ap else "PA"
    exposure = draw_exposure(rng, view)
    findings = draw_findings(rates, view, rng, chronic)
    if place.bilateral is not None:
        both = "bilateral" if rng.random() < place.bilateral else ("left", "right")[int(rng.integers(2))]
        findings = [replace(f, side=both) if f.name == "consolidation" else f for f in findings]
    alike = any(f.name == "consolidation" and f.side == "bilateral" for f in findings)
    film, source = _film(place, alike, rng)
    marker, clutter = rng.random() < place.marker, view == "AP" and rng.random() < place.clutter
    with_lateral = rng.random() < place.lateral
    words, wrong = np.random.default_rng(rng.integers(2**31)), np.random.default_rng(rng.integers(2**31))
    defect = _draw_defect(level, wrong)
    report = write_report(findings, words)
    if defect == "mismatched_report":
        report = _other_report(findings, rates, view, wrong)
    common = {"patient_id": -1, "study": -1, "age": patient.age, "male": patient.male, "findings": findings,
              "report": report, "source": source}  # fmt: skip
    kind = defect.partition(":")[2]
    masks = {}
    if defect == "non_frontal" or defect.startswith("wrong"):
        image = not_frontal(kind, patient, exposure, film, size_px, place.levels, wrong)
    else:
        image, masks = picture(patient, exposure, findings, size_px, film, marker, clutter, kind, place.levels)
        masks = {} if kind else masks
    boxes = {name: box(mask) for name, mask in masks.items() if mask.any()}
    made = [Cxr(image=image, view=view, masks=masks, boxes=boxes, defect=defect, wording=int(words.integers(2**31)),
                **common)]  # fmt: skip
    if with_lateral:
        image = not_frontal("", patient, exposure, film, size_px, place.levels, wrong)
        shared_report = defect if defect == "mismatched_report" else ""  # both images of a study have its report
        made.append(
            Cxr(image=image, view="LATERAL", defect=shared_report, wording=int(words.integers(2**31)), **common)
        )
    return made


def not_frontal(part: str, patient, exposure: Exposure, film: Film, n: int, levels: int, rng) -> np.ndarray:
    """A lateral chest, or, where `part` names one, another part of the body."""
    if part:
        attenuation, px = defects.body_part(n, part, exposure, rng)
    else:
        attenuation, px = defects.lateral(n, patient, exposure)
    return _develop(attenuation, px, replace(exposure, seed=exposure.seed + 1), film, "", levels)


def simulate(hospital: str, n_patients: int, seed: int, size_px: int = 64, level: str = "none") -> list[Cxr]:
    """Radiographs of n patients of a hospital named like its data set. Same arguments, same bytes."""
    if n_patients < 1 or size_px < 16:
        raise ValueError(f"n_patients must be at least 1 and size_px at least 16, not {n_patients} and {size_px}")
    return [cxr for k in range(n_patients) for cxr in simulate_patient(hospital, seed, k, size_px, level)]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hospital", nargs="?", choices=sorted(HOSPITALS), help="hospital = data set to imitate")
    parser.add_argument("root", nargs="?", type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--n", type=int, default=100, help="patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-px", type=int, default=64, help="side of the images")
    parser.add_argument("--level", choices=sorted(LEVELS), default="none", help="defects of the training hospital")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw one image per finding and stop")
    args = parser.parse_args(argv)
    if args.contact_sheet:
        from synth_medvlp.simulate_sheet import contact_sheet

        print(contact_sheet(args.contact_sheet, args.seed))
    elif args.hospital and args.root:
        from synth_medvlp.simulate_layouts import write

        print(write(args.hospital, args.root, args.n, args.seed, args.size_px, args.level, args.workers))
    else:
        parser.error("give HOSPITAL and ROOT, or --contact-sheet PNG")


if __name__ == "__main__":
    main()
