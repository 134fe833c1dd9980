"""Stage 3: names of one thing become one (reference: M2, deduplicate; M1, merge).

Entity names are embedded and clustered by average linkage; clusters are cut at cosine `tau_merge`. Embeddings put
antonyms close together, so that two names are never merged where a guard tells them apart: side, chamber, degree,
completeness, polarity, direction, always; location and age in `corrected`, which keeps subtypes. Two guards are ours:
the wave or interval that is spoken of (PR and QT), and names that the terminology knows as different terms.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from supreme.terminology import find, term, terminology

PROTOCOLS = ("as_published", "corrected")
SUBTYPES = ("location", "age")  # guards of `corrected` alone
APART = 1e9  # distance of names under a guard: no average of distances that holds it comes near a threshold

# Guard -> value -> pattern. A name's values in all guards are its signature; names of different signature stay apart.
_GUARDS = {
    "side": {
        "left": r"left|leftward|lv|llt",
        "right": r"right|rightward|rv",
        "bi": r"bi ?ventricular|bi ?atrial|combined|dual chamber",
        # of the two fascicles; elsewhere these words are places
        "anterior fascicle": r"anterior (?=fascic|hemi|fasicul)",
        "posterior fascicle": r"posterior (?=fascic|hemi|fasicul)",
        "clockwise": r"clock ?wise",
        "counterclockwise": r"(?:counter|anti) ?clock ?wise",
        "superior": r"superior|north ?west|extreme",
    },
    "chamber": {
        "atrial": r"(?:bi|inter|intra)? ?(?:atrial|atrium|atria|auricular)",
        "ventricular": r"(?:bi|intra)? ?(?:ventricular|ventricle|ventricles)|lv|rv|pvcs?|vpcs?",
        "idioventricular": r"idio ?ventricular",
        "supraventricular": r"supra ?ventricular|sv",
        "junctional": r"junctional|nodal",
        "sinus": r"sinus|sino ?atrial",
        "septum": r"septal (?=hypertro)",
    },
    "degree": {
        "1": r"(?:first|1st|i|1) (?:degree|grade)|(?<=block )(?:i|1)$",
        "2": r"(?:second|2nd|ii|2) (?:degree|grade)|wenckebach|mobitz",
        "type 1": r"(?:mobitz|type) (?:type )?(?:i|1|one)|wenckebach",
        "type 2": r"(?:mobitz|type) (?:type )?(?:ii|2|two)|2 1 (?:av |a v )?(?:block|conduction)",
        "3": r"(?:third|3rd|iii|3) (?:degree|grade)|(?:complete|total) (?:av|a v|heart|atrioventricular)",
        "high": r"(?:high|advanced) (?:degree|grade|(?:av|a v|heart) block)",
    },
    "completeness": {
        "incomplete": r"incomplete|partial|inc",
        "bifascicular": r"bi ?fascicular",
        "trifascicular": r"tri ?fascicular",
        "blocked": r"blocked|non ?conducted",
        "paired": r"paired|pairs|couplets?|triplets?|salvos?|runs?",
        "paroxysmal": r"paroxysmal|non ?sustained",
    },
    "polarity": {
        "normal": r"normal",
        "borderline": r"borderline",
        "no": r"no|not|without|absent|absence",
    },
    "direction": {
        "up": r"elevat\w*|rais\w*|up ?slop\w*|hebung",
        "down": r"depress\w*|down ?slop\w*|senkung|drop\w*",
        "long": r"prolong\w*|long|lengthen\w*|extended|widen\w*|wide|broad",
        "short": r"short\w*|narrow",
        "fast": r"tachy\w*|rapid|fast|accelerated",
        "slow": r"brady\w*|slow",
        "high": r"high|tall|peaked|increased|hyper(?=kal|cal)\w*|large|prominent",
        "low": r"low|flat\w*|decreased|reduced|hypo(?=kal|cal)\w*|small",
        "inverted": r"inver\w*|negative|opposite",
        "biphasic": r"biphasic|diphasic",
        "early": r"early|premature|extra",
        "late": r"late|delayed",
    },
    "part": {
        "p": r"p",
        "pr": r"pr",
        "q": r"q|qs",
        "qrs": r"qrs",
        "qt": r"qtc?",
        "r": r"r|rs|rsr",
        "st": r"st|j point",
        "t": r"t",
        "u": r"u",
        "axis": r"axis",
        "voltage": r"voltages?",
    },
    "location": {
        "anterior": r"anterior(?! (?:fascic|hemi))|anterosept\w*|anterolat\w*|front",
        "septal": r"septal(?! hypertro)|anteroseptal|inferoseptal",
        "inferior": r"inferior|infero\w+|diaphragmatic|lower",
        "lateral": r"lateral|\w+olateral|apical",
        "posterior": r"posterior(?! (?:fascic|hemi))|postero\w+|infero ?postero\w*|inferoposterior|back",
        "subendocardial": r"subendocardial",
        "limb": r"limb|extremity|frontal|peripheral",
        "precordial": r"precordial|chest|horizontal|v ?[1-6]",
        "diffuse": r"diffuse|widespread|extensive",
    },
    "age": {
        "acute": r"acute|recent|evolving|new|hyperacute",
        "old": r"old|prior|previous|remote|chronic|healed",
        "undetermined": r"age (?:undetermined|indeterminate|unknown)|undetermined age",
    },
}  # fmt: skip
_PATTERNS = {guard: {v: re.compile(rf"\b(?:{p})\b") for v, p in values.items()} for guard, values in _GUARDS.items()}


def guards(protocol: str) -> tuple[str, ...]:
    """The guards on names under a protocol, in the order in which they are named as a reason."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"extract.protocol={protocol!r}: one of {', '.join(PROTOCOLS)}")
    return tuple(g for g in _GUARDS if protocol == "corrected" or g not in SUBTYPES)


@lru_cache(maxsize=200_000)
def signature(name: str) -> tuple[frozenset[str], ...]:
    """What each guard sees in a name, in the order of all guards. A name that the terminology knows is seen as its
    preferred one, so that LVH has a side."""
    known = find(name)
    text = " " + re.sub(r"[^a-z0-9]+", " ", (known.preferred if known else name).lower()) + " "
    return tuple(_read_once({v for v, p in values.items() if p.search(text)}) for values in _PATTERNS.values())


def _read_once(values: set[str]) -> frozenset[str]:
    """Without what a more exact value of the same words says already."""
    inside = {"clockwise": {"counterclockwise"}, "2": {"type 1", "type 2"}, "qrs": {"axis", "voltage"}}
    return frozenset(v for v in values if not inside.get(v, set()) & values)


def verdict(a: str, b: str, protocol: str) -> str:
    """The first guard that keeps two names apart, "" where none does."""
    for guard, x, y in zip(_GUARDS, signature(a), signature(b), strict=True):
        if x != y and guard in guards(protocol):
            return guard
    known = find(a), find(b)
    return "term" if None not in known and known[0] != known[1] else ""


def without(name: str, guard_names: Sequence[str] = SUBTYPES) -> str:
    """A name without the words of some guards: "lateral ST depression" -> "st depression"."""
    text = " " + re.sub(r"[^a-z0-9]+", " ", name.lower()) + " "
    for guard in guard_names:
        for pattern in _PATTERNS[guard].values():
            text = pattern.sub(" ", text)
    return re.sub(r"^(?:of|in|and|or) | (?:of|in|and|or)$", "", " ".join(text.split()))


@lru_cache(maxsize=1)
def collapsed() -> dict[str, str]:
    """Id of a subtype -> id of what it becomes in `as_published`: only place or age tells them apart (inferior MI
    becomes MI, reference: M1 as drawn). Normal rhythm becomes normal ECG there, as drawn too."""
    parent = {
        t.id: t.parent for t in terminology() if t.parent and _subtype_only(t.preferred, term(t.parent).preferred)
    }
    out = {"normal_rhythm": "normal"}
    for id_ in parent:
        top = id_
        while top in parent:
            top = parent[top]
        out[id_] = top
    return out


def _subtype_only(narrow: str, wide: str) -> bool:
    differs = {g for g, x, y in zip(_GUARDS, signature(narrow), signature(wide), strict=True) if x != y}
    return bool(differs) and differs <= set(SUBTYPES)


@dataclass
class Merged:
    """names: E distinct entity names; cluster: int [E], number of the cluster; representative: per cluster the index of
    the name that stands for it; pairs: (i, j, cosine, guard) of names at or above the threshold, and of merged ones."""

    names: list[str]
    cluster: np.ndarray
    representative: list[int]
    pairs: list[tuple[int, int, float, str]]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64; a zero row stays zero and is like nothing."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


def merge(names: Sequence[str], n_records: Sequence[int], encode: Callable, tau: float, protocol: str) -> Merged:
    """Clusters of distinct names. n_records: how many records have each; encode(list) -> [n, d].

    Names that the terminology gives one term are one whatever their vectors. The representative is a name that the
    terminology knows where the cluster has one, else the most frequent, ties alphabetical.
    """
    names, order = list(names), guards(protocol)
    vectors = unit(encode(names)) if names else np.zeros((0, 1))
    used = [i for i, guard in enumerate(_GUARDS) if guard in order]
    blocks: dict[tuple, list[int]] = {}
    for i, name in enumerate(names):
        blocks.setdefault(tuple(signature(name)[g] for g in used), []).append(i)
    cluster = np.zeros(len(names), dtype=np.int64)
    n_clusters = 0
    for members in blocks.values():
        cluster[members] = n_clusters + _clusters([names[i] for i in members], vectors[members], tau)
        n_clusters = cluster[members].max() + 1
    representative = [-1] * n_clusters
    rank = sorted(range(len(names)), key=lambda i: (find(names[i]) is None, -n_records[i], names[i]))
    for i in reversed(rank):
        representative[cluster[i]] = i
    return Merged(names, cluster, representative, _pairs(names, vectors, cluster, tau, protocol))


def _clusters(names: list[str], vectors: np.ndarray, tau: float) -> np.ndarray:
    """int [n], numbered from 0 in the order of the names, of names that no guard on their words keeps apart."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(names) == 1:
        return np.zeros(1, dtype=np.int64)
    distance = np.clip(1 - vectors @ vectors.T, 0, None)
    known = np.array([found.id if (found := find(name)) else "" for name in names])
    both = (known[:, None] != "") & (known[None, :] != "")
    same = known[:, None] == known[None, :]
    distance[both & same], distance[both & ~same] = 0, APART
    np.fill_diagonal(distance, 0)
    label = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - tau + 1e-9, "distance")
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _pairs(names: list[str], vectors: np.ndarray, cluster: np.ndarray, tau: float, protocol: str) -> list:
    """Pairs that were merged, and pairs that are close enough but kept apart, with what did it ("linkage": the rest of
    their clusters)."""
    out, step = [], 2000
    for start in range(0, len(names), step):
        cosine = vectors[start : start + step] @ vectors.T
        rows, columns = np.nonzero((cosine >= tau) | (cluster[start : start + step, None] == cluster[None, :]))
        for i, j in zip(rows + start, columns, strict=True):
            if i < j:
                merged = cluster[i] == cluster[j]
                why = "" if merged else verdict(names[i], names[j], protocol) or "linkage"
                out.append((int(i), int(j), float(cosine[i - start, j]), why))
    return out
