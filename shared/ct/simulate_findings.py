"""What a simulated chest CT may show: 25 findings with side, place, size in mm and density in HU, and which of them can
stand together.

Names and places are those of `shared.metrics.ct_findings`; `label` is the CT-RATE label that a finding counts under,
and all 18 labels are covered (Argus, reference: "Encoder-pretraining arms").
"""

from dataclasses import dataclass, replace

import numpy as np

from shared.ct.simulate_anatomy import Patient
from shared.ct.simulate_organs import vertebra_name

_LOBES = (("right", "upper_lobe"), ("right", "middle_lobe"), ("right", "lower_lobe"), ("left", "upper_lobe"),
          ("left", "lower_lobe"))  # fmt: skip
_BY_LOBE = tuple(zip(_LOBES, (0.29, 0.10, 0.23, 0.21, 0.17), strict=True))
_BASES = ((("right", "lower_lobe"), 0.36), (("left", "lower_lobe"), 0.36), (("bilateral", "lower_lobe"), 0.28))
_NOWHERE = ((("", ""), 1.0),)
_BOTH = ((("bilateral", ""), 1.0),)


@dataclass(frozen=True)
class Kind:
    """where: ((side, place), weight); size_mm, density_hu: range; size: what size_mm means; forms: name of a variant ->
    weight; label: of CT-RATE, or ""; early: drawn under the vessels of the lung; aged: more frequent with age; chronic:
    kept from one examination to the next; slot: takes its lobe alone; excludes: holds both ways."""

    name: str
    size: str
    size_mm: tuple[float, float]
    density_hu: tuple[float, float]
    where: tuple = _NOWHERE
    label: str = ""
    forms: tuple = (("", 1.0),)
    early: bool = False
    aged: bool = False
    chronic: bool = True
    slot: bool = False
    excludes: tuple = ()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("nodule", "diameter", (3, 28), (15, 60), _BY_LOBE, "Lung nodule",
             (("solid", 0.72), ("calcified", 0.16), ("subsolid", 0.12)), slot=True),
        Kind("mass", "diameter", (31, 70), (25, 55), _BY_LOBE, "Lung nodule", slot=True),
        Kind("ground_glass", "diameter of the largest patch", (18, 75), (-620, -380),
             (*((at, 0.6 * w) for at, w in _BY_LOBE), (("bilateral", "lower_lobe"), 0.22), (("bilateral", ""), 0.18)),
             "Lung opacity", early=True, chronic=False, slot=True, excludes=("mosaic_attenuation",)),
        Kind("consolidation", "diameter", (22, 95), (10, 45),
             (*((at, 0.75 * w) for at, w in _BY_LOBE), (("bilateral", "lower_lobe"), 0.25)),
             "Consolidation", early=True, chronic=False, slot=True),
        Kind("atelectasis", "thickness of a band, else diameter", (3, 60), (15, 50), _BASES, "Atelectasis",
             (("linear", 0.6), ("passive", 0.4)), early=True, chronic=False, slot=True),
        Kind("emphysema", "diameter of a hole", (3, 9), (-985, -960), ((("bilateral", "upper_lobe"), 1.0),),
             "Emphysema", (("centrilobular", 0.65), ("bullous", 0.35)), early=True, aged=True),
        Kind("fibrosis", "thickness of a band", (2, 5.5), (-20, 40),
             ((("right", "upper_lobe"), 0.35), (("left", "upper_lobe"), 0.25), (("bilateral", "upper_lobe"), 0.40)),
             "Pulmonary fibrotic sequela", early=True, aged=True),
        Kind("bronchiectasis", "width of the lumen", (4.5, 11), (-990, -970),
             (*((at, 0.7 * w) for at, w in _BY_LOBE), (("bilateral", "lower_lobe"), 0.3)), "Bronchiectasis"),
        Kind("peribronchial_thickening", "thickness of the wall", (1.6, 3.2), (5, 25), _BOTH,
             "Peribronchial thickening", chronic=False),
        Kind("septal_thickening", "thickness of a septum", (0.9, 2.4), (-120, 10),
             ((("bilateral", "lower_lobe"), 0.6), (("bilateral", ""), 0.4)), "Interlobular septal thickening",
             early=True, chronic=False),
        Kind("mosaic_attenuation", "size of a patch", (28, 60), (-960, -930), _BOTH, "Mosaic attenuation pattern",
             early=True, excludes=("emphysema",)),
        Kind("pleural_effusion", "depth", (7, 62), (2, 22),
             ((("right", ""), 0.34), (("left", ""), 0.30), (("bilateral", ""), 0.36)), "Pleural effusion",
             chronic=False),
        Kind("pneumothorax", "depth", (6, 48), (-1000, -995), ((("right", ""), 0.55), (("left", ""), 0.45)),
             chronic=False, excludes=("pleural_effusion", "atelectasis")),
        Kind("cardiomegaly", "width of the heart", (138, 172), (42, 50), label="Cardiomegaly", aged=True),
        Kind("pericardial_effusion", "depth", (5, 24), (4, 26), label="Pericardial effusion", chronic=False),
        Kind("coronary_calcification", "length", (3, 26), (420, 1100),
             ((("", "lad"), 0.6), (("", "circumflex"), 0.15), (("", "rca"), 0.25)),
             "Coronary artery wall calcification", aged=True),
        Kind("aortic_calcification", "thickness", (1.2, 3.8), (450, 1050),
             ((("", "arch"), 0.5), (("", "descending"), 0.35), (("", "ascending"), 0.15)),
             "Arterial wall calcification", aged=True),
        Kind("aortic_aneurysm", "diameter", (44, 64), (42, 42), ((("", "ascending"), 1.0),), aged=True),
        Kind("pulmonary_embolism", "length", (12, 60), (40, 70),
             ((("right", "main"), 0.22), (("left", "main"), 0.18), (("right", "lower_lobe"), 0.2),
              (("left", "lower_lobe"), 0.15), (("right", "upper_lobe"), 0.15), (("left", "upper_lobe"), 0.1)),
             chronic=False),
        Kind("lymphadenopathy", "short axis", (11, 27), (35, 65),
             ((("", "mediastinal"), 0.62), (("right", "hilar"), 0.14), (("left", "hilar"), 0.12),
              (("right", "axillary"), 0.06), (("left", "axillary"), 0.06)), "Lymphadenopathy"),
        Kind("hiatal_hernia", "diameter", (34, 78), (15, 45), label="Hiatal hernia", aged=True),
        Kind("fracture", "displacement of a rib, else height lost", (2, 11), (200, 600),
             ((("right", "rib"), 0.25), (("left", "rib"), 0.25), (("", "vertebra"), 0.5)), aged=True),
        Kind("pacemaker", "width of the generator", (42, 54), (2800, 3000),
             ((("left", ""), 0.82), (("right", ""), 0.18)), "Medical material", aged=True),
        Kind("central_line", "width of the catheter", (2.0, 3.2), (800, 1600),
             ((("right", ""), 0.75), (("left", ""), 0.25)), "Medical material", (("port", 0.6), ("catheter", 0.4)),
             excludes=("pacemaker",)),
        Kind("surgical_material", "thickness of a wire", (0.8, 1.4), (2600, 3000), label="Medical material",
             aged=True),
    )
}  # fmt: skip
NAMES = tuple(KINDS)
_EXCLUDES = {
    name: frozenset(kind.excludes) | {other for other, k in KINDS.items() if name in k.excludes}
    for name, kind in KINDS.items()
}
LABELS = (  # of CT-RATE, in the order of the release
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """side: "left" | "right" | "bilateral" | ""; place: region of `shared.metrics.ct_findings`, or ""; form: variant;
    detail: "T8", "rib 6" and the like; seed: of position and shape, so that it can be toggled with all else equal."""

    name: str
    side: str = ""
    place: str = ""
    size_mm: float = 0.0
    density_hu: float = 0.0
    form: str = ""
    detail: str = ""
    seed: int = 0

    def __post_init__(self):
        if self.name not in KINDS:
            raise KeyError(f"unknown finding {self.name!r}: one of {', '.join(NAMES)}")

    @property
    def extent(self) -> float:
        """0 (smallest of its kind) .. 1 (largest)."""
        low, high = KINDS[self.name].size_mm
        return float(np.clip((self.size_mm - low) / (high - low), 0, 1))

    @property
    def sides(self) -> tuple[int, ...]:
        """-1 (right), 1 (left) of the sides it is on; both where it has none."""
        return {"right": (-1,), "left": (1,)}.get(self.side, (-1, 1))

    @property
    def lobes(self) -> tuple[str, ...]:
        """Names of the lobes it is in, as in `simulate_anatomy.LOBES`."""
        names = {-1: "right", 1: "left"}
        regions = (self.place,) if self.place.endswith("_lobe") else ("upper_lobe", "lower_lobe")
        return tuple(f"{names[s]} {region.replace('_', ' ')}" for s in self.sides for region in regions)


def _choose(options, rng):
    edges = np.cumsum([weight for _, weight in options])
    return options[int(np.searchsorted(edges, rng.random() * edges[-1]).clip(max=len(options) - 1))][0]


def draw_finding(name: str, rng: np.random.Generator, **fixed) -> Finding:
    """A finding of this name; `fixed` sets side, place, size_mm, density_hu, form, detail or seed. KeyError: no such
    name."""
    if name not in KINDS:
        raise KeyError(f"unknown finding {name!r}: one of {', '.join(NAMES)}")
    kind = KINDS[name]
    side, place = _choose(kind.where, rng)
    form = fixed.get("form", _choose(kind.forms, rng))
    t, u = rng.beta(1.3, 1.7), rng.random()
    low, high = kind.size_mm
    low, high, t = _of_form(name, form, fixed.get("place", place), low, high, t, rng)
    size = low + (high - low) * t if high / low < 4 else low * (high / low) ** t
    density = kind.density_hu[0] + (kind.density_hu[1] - kind.density_hu[0]) * u
    if name == "nodule" and form != "solid":
        density = 250 + 450 * u if form == "calcified" else -640 + 180 * u
    detail = ""
    number = int(rng.integers(3, 10))
    if name == "fracture":
        detail = f"rib {number}" if fixed.get("place", place) == "rib" else vertebra_name(int(rng.integers(1, 9)))
    drawn = {"side": side, "place": place, "size_mm": round(float(size), 1), "density_hu": round(float(density)),
             "form": form, "detail": detail, "seed": int(rng.integers(2**31))}  # fmt: skip
    return Finding(name, **(drawn | fixed))


def _of_form(name, form, place, low, high, t, rng):
    """Range of sizes and place in it for a variant."""
    if name == "nodule":
        if form == "subsolid":
            low = 6
        if form == "calcified":
            high = 12
        t = rng.beta(1.0, 1.6)  # many small ones
    if name == "atelectasis":
        low, high = (3, 7) if form == "linear" else (26, 60)
    if name == "fracture":
        low, high = (2, 6) if place == "rib" else (4, 11)
    return low, high, t


def draw_findings(
    rates: dict, age: int, contrast: bool, rng: np.random.Generator, kept: dict | None = None
) -> list[Finding]:
    """Findings of an examination, in the order of NAMES, compatible with each other. rates: share of examinations per
    finding (at 60 years for those that come with age); kept: name -> findings of the examination before."""
    unknown = set(rates) - set(NAMES)
    if unknown:
        raise KeyError(f"no such finding: {', '.join(sorted(unknown))}")
    older = float(np.clip((age - 35) / 25, 0.08, 1.7))
    found, slots = [], set()
    for name, kind in KINDS.items():
        chance = rng.random()
        new = [draw_finding(name, rng) for _ in range(1 + int(name == "nodule" and rng.random() < 0.35))]
        if kept is not None and kind.chronic:
            new = kept.get(name, [])
        elif chance >= rates.get(name, 0.0) * (older if kind.aged else 1.0):
            continue
        if (name == "pulmonary_embolism" and not contrast) or any(f.name in _EXCLUDES[name] for f in found):
            continue
        for finding in new:
            lobes = set(finding.lobes) if kind.slot else set()
            if not lobes & slots:
                slots |= lobes
                found.append(finding)
    return found


def changed(patient: Patient, findings: list[Finding]) -> Patient:
    """The patient with what findings change of the anatomy: heart, aorta, vertebrae, bronchial walls."""
    for f in findings:
        if f.name == "cardiomegaly":
            patient = replace(patient, heart=f.size_mm / (116 * patient.scale[2]))
        elif f.name == "aortic_aneurysm":
            patient = replace(patient, ascending_mm=f.size_mm)
        elif f.name == "peribronchial_thickening":
            patient = replace(patient, bronchial_wall_mm=f.size_mm)
        elif f.name == "fracture" and f.place == "vertebra":
            number = vertebra_number(f.detail)
            patient = replace(patient, collapsed={**patient.collapsed, number: max(1 - f.size_mm / 19.2, 0.35)})
    return patient


def vertebra_number(detail: str) -> int:
    """Inverse of `simulate_organs.vertebra_name`."""
    return 0 if detail == "L1" else 13 - int(detail[1:])


def labels(findings: list[Finding]) -> dict[str, int]:
    """The 18 CT-RATE labels, 0 or 1, in the order of the release."""
    there = {KINDS[f.name].label for f in findings}
    return {label: int(label in there) for label in LABELS}
