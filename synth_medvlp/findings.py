"""What a simulated chest radiograph may show: names, sides, places, extents, and which combinations can exist."""

from dataclasses import dataclass

import numpy as np

from synth_medvlp.anatomy import Patient, Shape

ZONES = ("upper", "middle", "lower")
FAINT, DENSE = 0.4, 0.6  # extent of a consolidation: below the first also an infiltrate, above the second pneumonia
_NONE = (("",), (1.0,))  # names and weights where there is nothing to choose


@dataclass(frozen=True)
class Kind:
    """sides: of which one is drawn, with weights; places: likewise; chronic: kept between a patient's studies;
    bedside: only on AP radiographs; device: not part of the patient; excludes: findings that never stand beside it, the
    relation holds both ways; slot: takes its (side, zone) alone."""

    name: str
    sides: tuple = _NONE
    places: tuple = _NONE
    chronic: bool = False
    bedside: bool = False
    device: bool = False
    excludes: tuple = ()
    slot: bool = False


def _sided(right=0.5, left=0.5, both=0.0):
    return ("right", "left", "bilateral"), (right, left, both)


_BOTH = (("bilateral",), (1.0,))
_ZONED = (ZONES, (0.4, 0.3, 0.3))
KINDS = {
    kind.name: kind
    for kind in (
        Kind("cardiomegaly", chronic=True),
        Kind("pleural_effusion", _sided(0.38, 0.32, 0.30), (("lower",), (1.0,)), slot=True),
        Kind("pneumothorax", _sided(), (("upper",), (1.0,)), slot=True),
        Kind("consolidation", _sided(0.45, 0.40, 0.15), (ZONES, (0.25, 0.25, 0.5)), slot=True),
        Kind("edema", _BOTH),
        Kind("atelectasis", _sided(0.35, 0.4, 0.25), (("lower",), (1.0,)), slot=True),
        Kind("nodule", _sided(), _ZONED, chronic=True, slot=True),
        Kind("mass", _sided(), _ZONED, chronic=True, slot=True),
        Kind("granuloma", _sided(), _ZONED, chronic=True, slot=True),
        Kind("rib_fracture", _sided(), (("upper", "middle"), (0.4, 0.6))),
        Kind("hiatal_hernia", chronic=True),
        Kind("emphysema", _BOTH, chronic=True, excludes=("edema", "fibrosis", "cardiomegaly")),
        Kind("fibrosis", _BOTH, (("lower",), (1.0,)), chronic=True),
        Kind("pleural_thickening", _sided(), (("apical", "lateral"), (0.6, 0.4)), chronic=True),
        Kind("scoliosis", _sided(), chronic=True),
        Kind("tortuous_aorta", chronic=True),
        Kind("pacemaker", _sided(0.18, 0.82), chronic=True, device=True),
        Kind("central_line", _sided(0.7, 0.3), (("jugular", "subclavian"), (0.65, 0.35)), device=True),
        Kind("endotracheal_tube", bedside=True, device=True),
        Kind("feeding_tube", device=True),
        Kind("sternal_wires", chronic=True, device=True),
    )
}
NAMES = tuple(KINDS)
EXCLUDES = {
    name: frozenset(kind.excludes) | {other for other, k in KINDS.items() if name in k.excludes}
    for name, kind in KINDS.items()
}


@dataclass(frozen=True)
class Finding:
    """One finding of one radiograph. side: "left" | "right" | "bilateral" | "" of the patient; extent: 0 (just visible)
    to 1; seed: of its own irregularities, so that it can be toggled with all else equal."""

    name: str
    side: str = ""
    place: str = ""
    extent: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.name not in KINDS:
            raise KeyError(f"unknown finding {self.name!r}: one of {', '.join(NAMES)}")

    @property
    def sides(self) -> tuple[int, ...]:
        """-1 (right), 1 (left) of the sides it is on; () where it has none."""
        return {"right": (-1,), "left": (1,), "bilateral": (-1, 1)}.get(self.side, ())


def _choose(options, rng) -> str:
    names, weights = options
    at, edge = rng.random() * sum(weights), 0.0
    for name, weight in zip(names, weights, strict=True):
        edge += weight
        if at < edge:
            return name
    return names[-1]


def draw_finding(name: str, rng: np.random.Generator, **fixed) -> Finding:
    """A finding of this name; `fixed` sets side, place, extent or seed."""
    kind = KINDS[name]
    drawn = {
        "side": _choose(kind.sides, rng), "place": _choose(kind.places, rng),
        "extent": float(rng.beta(1.6, 1.8)), "seed": int(rng.integers(2**31)),
    }  # fmt: skip
    return Finding(name, **(drawn | fixed))


def conditional_rates(prevalence: dict, share_ap: float) -> dict:
    """name -> probability of drawing it where nothing excludes it, such that `prevalence` comes out overall.

    Findings are drawn in the order of NAMES; one that is excluded by an earlier one is drawn the more often elsewhere.
    ValueError names a prevalence that no draw can reach.
    """
    unknown = set(prevalence) - set(NAMES)
    if unknown:
        raise KeyError(f"no such finding: {', '.join(sorted(unknown))}")
    rates = {}
    for i, name in enumerate(NAMES):
        free = float(np.prod([1 - prevalence.get(other, 0.0) for other in NAMES[:i] if other in EXCLUDES[name]]))
        if KINDS[name].bedside:
            free *= share_ap
        wanted = prevalence.get(name, 0.0)
        if not 0 <= wanted <= free:
            raise ValueError(f"prevalence of {name} is {wanted}, but must lie in 0..{free:.3f}")
        rates[name] = wanted / free if free else 0.0
    return rates


def draw_findings(rates: dict, view: str, rng, chronic: dict | None = None) -> list[Finding]:
    """Findings of one study. rates: of `conditional_rates`; chronic: the patient's standing draws, name -> (uniform
    number, Finding), which decide what stays from study to study; filled where empty."""
    chosen: list[Finding] = []
    taken: set = set()
    for name in NAMES:
        kind = KINDS[name]
        draw, finding = rng.random(), draw_finding(name, rng)
        if kind.chronic and chronic is not None:
            draw, finding = chronic.setdefault(name, (draw, finding))
        if draw >= rates[name] or (kind.bedside and view != "AP"):
            continue
        if any(other.name in EXCLUDES[name] for other in chosen):
            continue
        chosen.append(_place_free(finding, taken) if kind.slot else finding)
    return chosen


def _place_free(finding: Finding, taken: set) -> Finding:
    """Move a focal finding to a lung zone of its own (pneumothorax: to a side without effusion); marks the zone."""
    kind = KINDS[finding.name]
    options = [(finding.side, finding.place)]
    options += [(side, place) for side in kind.sides[0][:2] for place in kind.places[0]]
    for side, place in options:
        zones = _zones(finding.name, side, place)
        if not zones & taken:
            break
    else:  # a crowded chest: it may overlap, as on real radiographs
        side, place = finding.side, finding.place
        zones = _zones(finding.name, side, place)
    taken |= zones
    return Finding(finding.name, side, place, finding.extent, finding.seed)


def _zones(name: str, side: str, place: str) -> set:
    sides = ("right", "left") if side == "bilateral" else (side,)
    places = ZONES if name == "pneumothorax" else (place,)
    return {(s, p) for s in sides for p in places}


def shape_of(findings, patient: Patient) -> Shape:
    """Geometry of the body that these findings change before anything else is built."""
    there = {finding.name: finding for finding in findings}
    shape = Shape()
    if f := there.get("cardiomegaly"):
        shape.heart = 1.24 + 0.28 * f.extent
    if f := there.get("emphysema"):
        shape.lower_dome, shape.flat_dome = 1.5 + 1.8 * f.extent, 0.45 - 0.25 * f.extent
        shape.heart, shape.pruned = 0.80, 0.55 - 0.25 * f.extent
    if f := there.get("scoliosis"):
        shape.spine_curve = (1.0 + 1.2 * f.extent) * f.sides[0]
    if f := there.get("tortuous_aorta"):
        shape.knob, shape.unfold = 1.3 + 0.4 * f.extent, 1.1 + 1.5 * f.extent
    broken = []
    for f in findings:
        if f.name == "rib_fracture":
            rng = np.random.default_rng([f.seed, 1])
            first = int(rng.integers(2, 4)) if f.place == "upper" else int(rng.integers(4, 6))
            at = patient.half_width * rng.uniform(0.45, 0.64)
            for k in range(1 + int(f.extent > 0.4) + int(f.extent > 0.75)):
                step = (1.1 + 0.4 * f.extent) * (1 if rng.random() < 0.5 else -1)
                broken.append((f.sides[0], first + k, at + rng.normal(0, 0.4), step))
    shape.broken = tuple(broken)
    return shape
