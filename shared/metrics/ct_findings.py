"""Chest CT findings read from report text with place, negation and uncertainty, and report quality as agreement on
them (Argus, metrics: finding-level precision, recall and F1, over all findings and over the 18 labels of CT-RATE).

A lexicon (`ct_lexicon.yaml`) finds mentions in English of many hands. Words that say where ("in the right upper and
left lower lobes") are taken out first and become `Place`s; what is left goes through the engine of the ECG findings
(`shared.metrics.phrases`: sentences, mentions, hedges). Negation is read here, because CT text is punctuated and its
lists are long: "no" reaches to the end of its clause, "was not detected" back over a list. Each place then goes to the
mention that it stands before ("left lower lobe atelectasis"), else to the ones that it follows ("consolidation and
atelectasis in the left lower lobe"), else, as a topic ("in the left lung, ..."), to those after it. History, questions
and indications ("evaluate for pneumonia") say nothing.

What is gone ("resolved", "no longer seen") is absent. Both sides are two places; a base counts as lower lobe, an apex
as upper lobe; the middle lobe is right, the lingula left; lobes in the plural without a side are those of both lungs.

What it reads right was measured: `shared.metrics.ct_findings_validation`, results/ct_findings_validation.csv.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from shared.metrics import phrases
from shared.metrics.ct_places import Place, attach, place_words, take_places
from shared.metrics.findings import agreement
from shared.metrics.interval import Scores
from shared.metrics.phrases import STATUSES, Lexicon, Mention

VERSION = 1
LEXICON = Path(__file__).with_name("ct_lexicon.yaml")
LOCATIONS = {"none": 0, "side": 1, "place": 2}  # how much of a place must agree -> fields of it that are compared
MAX_WORDS_BEHIND = 8  # between a mention and "was not detected"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(r"[a-z]{6,}")
_SOFT_LINE_END = re.compile(r"(?<![.:;!?\n])\n(?=[a-z])")

_LUNG = ("upper_lobe", "middle_lobe", "lower_lobe", "lingula", "hilar")
_NODES = ("mediastinal", "hilar", "axillary", "supraclavicular")
_AORTA = ("root", "ascending", "arch", "descending")
_CORONARY = ("left_main", "lad", "circumflex", "rca")
_BONE = ("rib", "vertebra", "sternum", "clavicle", "scapula")

CT_RATE_LABELS = (  # in the order of the release
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip


class Finding(NamedTuple):
    """regions: the ones that can be its place (() for none at all); label: of CT_RATE_LABELS, or None."""

    regions: tuple[str, ...] = ()
    label: str | None = None


# Which finding counts under which CT-RATE label is our choice (default): the release defines its labels by examples.
FINDINGS: dict[str, Finding] = {
    "nodule": Finding(_LUNG, "Lung nodule"),
    "mass": Finding(_LUNG, "Lung nodule"),
    "ground_glass": Finding(_LUNG, "Lung opacity"),
    "opacity": Finding(_LUNG, "Lung opacity"),
    "consolidation": Finding(_LUNG, "Consolidation"),
    "atelectasis": Finding(_LUNG, "Atelectasis"),
    "emphysema": Finding(_LUNG, "Emphysema"),  # bullae and blebs included
    "fibrosis": Finding(_LUNG, "Pulmonary fibrotic sequela"),  # scars, bands, reticulation, honeycombing
    "bronchiectasis": Finding(_LUNG, "Bronchiectasis"),
    "peribronchial_thickening": Finding(_LUNG, "Peribronchial thickening"),
    "septal_thickening": Finding(_LUNG, "Interlobular septal thickening"),
    "mosaic_attenuation": Finding(_LUNG, "Mosaic attenuation pattern"),  # air trapping included
    "tree_in_bud": Finding(_LUNG),
    "cavity": Finding(_LUNG),
    "pneumonia": Finding(_LUNG),
    "pulmonary_edema": Finding(_LUNG),
    "pleural_effusion": Finding(_LUNG, "Pleural effusion"),
    "pleural_thickening": Finding(_LUNG),  # plaques included
    "pneumothorax": Finding(_LUNG),
    "pneumomediastinum": Finding(),
    "cardiomegaly": Finding((), "Cardiomegaly"),
    "pericardial_effusion": Finding((), "Pericardial effusion"),
    "coronary_calcification": Finding(_CORONARY, "Coronary artery wall calcification"),
    "aortic_calcification": Finding(_AORTA, "Arterial wall calcification"),
    "arterial_calcification": Finding((), "Arterial wall calcification"),  # of other arteries, or of ones not named
    "valve_calcification": Finding(),
    "aortic_aneurysm": Finding(_AORTA),  # dilatation and ectasia included
    "pulmonary_embolism": Finding((*_LUNG, "main")),
    "pulmonary_artery_enlargement": Finding(),
    "right_heart_strain": Finding(),
    "lymphadenopathy": Finding(_NODES, "Lymphadenopathy"),  # 10 mm and more, or said to be enlarged
    "hiatal_hernia": Finding((), "Hiatal hernia"),
    "fracture": Finding(_BONE),
    "bone_lesion": Finding(_BONE),
    "pacemaker": Finding((), "Medical material"),
    "central_line": Finding((), "Medical material"),  # ports and other catheters included
    "tube": Finding((), "Medical material"),
    "stent": Finding((), "Medical material"),
    "surgical_material": Finding((), "Medical material"),
}
_SIDED = frozenset(name for name, f in FINDINGS.items() if f.regions not in ((), _AORTA, _CORONARY))
_LUNG_ONLY = frozenset({"nodule", "mass"})  # "axillary mass" is none of the lung


@dataclass(frozen=True)
class Found:
    """status: "present" | "uncertain" | "absent"; places: where it was said to be, empty if nowhere in particular."""

    status: str
    places: frozenset[Place]


# --- lexicon ---


@dataclass(frozen=True, eq=False)
class _CtLexicon:
    phrases: Lexicon
    words: dict[str, re.Pattern]  # of places, see ct_places.place_words
    spelled: frozenset[str]
    correct: frozenset[str]
    denial: dict[str, re.Pattern]  # before, after, not, unsaid, stop, fresh


def _calcification_patterns(heads: dict[str, str], place: str) -> list[tuple[re.Pattern, str]]:
    """Aortic and coronary calcifications; plaques in the walls of the aorta; aorta ... with mural calcification."""
    places = rf"(?P<places>{place}(?:{heads['joiner']}(?:{place}))*)"
    head, wall = heads["calcification"], r"(?:(?:arter\w+|walls?|vessels?|root|arch|of|the) ){0,3}"
    forms = (
        rf"{places}[ -]+{wall}{head}",
        rf"{head}\b[^.;]{{0,60}}?\b(?:in|of|on|at|along|involving|within|affecting|and) (?:the )?(?:both )?"
        rf"(?:walls? of (?:the )?)?{places}",
        rf"{places} [^.;,]{{0,50}}?\b(?:with|is|are|shows?|has|have) (?:[a-z]+ ){{0,4}}?{head}",
    )
    return [(phrases.any_of([form]), "calcification") for form in forms]


@lru_cache(maxsize=1)
def _lexicon() -> _CtLexicon:
    import yaml

    raw = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    named = set(raw["findings"]) | {name for names in raw["combined"].values() for name in names}
    if named ^ set(FINDINGS):
        raise ValueError(
            f"{LEXICON.name} and ct_findings.FINDINGS differ in {sorted(named ^ set(FINDINGS))}; align them"
        )
    found = []
    for name, by_status in raw["findings"].items():
        by_status = by_status if isinstance(by_status, dict) else {"present": by_status}
        found += [(phrases.any_of(some), (name,), status) for status, some in by_status.items() if some]
    found += [(phrases.any_of([pattern]), tuple(names), "present") for pattern, names in raw["combined"].items()]
    found.append((phrases.any_of(raw["not_findings"]), (), "present"))
    cues = raw["cues"]
    denial = {key: phrases.any_of(cues.pop(key)) for key in ("denial_before", "denial_after", "not_denials", "unsaid")}
    denial |= {key: re.compile(cues.pop(key)) for key in ("stop", "fresh")}
    lexicon = Lexicon(
        abbreviations=[(re.compile(k), v) for k, v in raw["abbreviations"].items()],
        phrases=found,
        places=[(re.compile(place), by_head) for place, by_head in raw["locations"].items()],
        located=_calcification_patterns(raw["location_heads"], "(?:" + "|".join(raw["locations"]) + ")"),
        cues=phrases.cue_patterns({k: v for k, v in cues.items() if k not in ("inherits", "compared", "topic")}),
        nesting=frozenset({"aortic_aneurysm"}),  # "the aorta is ectatic with mural calcification"
    )
    spelled = frozenset(word for line in raw["spelling"] for word in line)
    return _CtLexicon(lexicon, place_words(raw), spelled, frozenset(raw["correct_as_they_are"]), denial)


@lru_cache(maxsize=100_000)
def _spelled(word: str) -> str:
    """The word of the lexicon's `spelling` one edit, or one exchange of neighbours, away; else the word itself."""
    lexicon = _lexicon()
    if word in lexicon.spelled or word in lexicon.correct:
        return word
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    near = {a + b[1:] for a, b in cuts} | {a + b[1::-1] + b[2:] for a, b in cuts}
    near |= {a + c + b[k:] for a, b in cuts for c in _ALPHABET for k in (0, 1)}
    return min(near & lexicon.spelled, default=word)


# --- negation ---


def _clause_end(denial: dict[str, re.Pattern], sentence: str, start: int) -> int:
    """Where the clause that begins at `start` ends: at "but", at a verb, or where a list of "no" starts afresh."""
    stop = denial["stop"].search(sentence, start)
    end = stop.start() if stop else len(sentence)
    for fresh in denial["fresh"].finditer(sentence, start, end):  # "no pneumothorax, small effusion"
        if not re.search(r"\b(?:or|nor)\b", sentence[fresh.start() : end]):
            return fresh.start()
    return end


def _behind(lexicon: _CtLexicon, sentence: str, mentions: list[Mention], cue: re.Match) -> list[int]:
    """Indices of the mentions that "was not detected" is said of: the last one before it and its list."""
    before = [i for i, m in enumerate(mentions) if m.end <= cue.start()]
    if not before:
        return []
    i = before[-1]
    gap = re.sub(r",? (?:which|that)\b[^,]*,", "", sentence[mentions[i].end : cue.start()])  # ", seen in May, "
    if len(gap.split()) > MAX_WORDS_BEHIND or re.search(lexicon.denial["stop"].pattern.replace("|:", ""), gap):
        return []
    out, connector = [i], lexicon.phrases.cues["connector"]
    while i and (
        mentions[i - 1].end >= mentions[i].start
        or connector.fullmatch(sentence[mentions[i - 1].end : mentions[i].start].strip() + " ")
    ):
        i -= 1
        out.append(i)
    return out


def _denied(lexicon: _CtLexicon, sentence: str, mentions: list[Mention]) -> tuple[set[int], set[int]]:
    """Indices of the mentions that are negated, and of those about which nothing is said (history, questions)."""
    denial, absent, unsaid = lexicon.denial, set(), set()
    spared = [m.span() for m in denial["not_denials"].finditer(sentence)]
    for kind, out in (("denial_before", absent), ("unsaid", unsaid)):
        for cue in denial[kind].finditer(sentence):
            if any(a <= cue.start() < b for a, b in spared):
                continue
            headed = sentence[cue.end() : cue.end() + 1] == ":"  # "Indication: ..."
            end = len(sentence) if headed else _clause_end(denial, sentence, cue.end())
            out.update(i for i, m in enumerate(mentions) if cue.end() <= m.start < end)
    absent.update(i for i, m in enumerate(mentions) if re.search(r"\b(?:no|not)\b", sentence[m.start : m.end]))
    for cue in denial["denial_after"].finditer(sentence):
        if not any(a <= cue.start() < b for a, b in spared):
            absent.update(_behind(lexicon, sentence, mentions, cue))
    return absent, unsaid


# --- extraction ---


def _can_be(name: str, place: Place) -> bool:
    return place.region in FINDINGS[name].regions or (not place.region and name in _SIDED)


def _takes(mention: Mention, place: Place) -> bool:
    """Can this be a place of what is mentioned?"""
    return any(_can_be(name, place) for name in mention.names)


@lru_cache(maxsize=200_000)
def _extract_sentence(sentence: str) -> tuple[tuple[str, str, frozenset[Place]], ...]:
    lexicon = _lexicon()
    stripped, spots = take_places(lexicon.words, sentence)
    mentions = phrases.read_sentence(lexicon.phrases, stripped)
    absent, unsaid = _denied(lexicon, stripped, mentions)
    places, elsewhere = attach(lexicon.words, stripped, mentions, spots, _takes, lexicon.phrases.cues["connector"])
    out = []
    for i, mention in enumerate(mentions):
        if i in unsaid:
            continue
        for name in mention.names:
            if i in elsewhere and name in _LUNG_ONLY:
                continue
            here = frozenset(place for place in places[i] if _can_be(name, place))
            out.append((name, "absent" if i in absent else mention.status, here))
    return tuple(out)


@lru_cache(maxsize=200_000)
def _extract(text: str) -> tuple[tuple[str, Found], ...]:
    text = phrases.normalise(_SOFT_LINE_END.sub(" ", text), _lexicon().phrases)
    text = _WORD.sub(lambda word: _spelled(word[0]), text)
    out: dict[str, tuple[str, frozenset[Place]]] = {}
    for _, sentence in phrases.sentences(text):
        for name, status, places in _extract_sentence(sentence):
            old, at = out.get(name, (STATUSES[0], frozenset()))
            at = at | places if status != "absent" else at  # where something is not does not matter
            out[name] = (max(old, status, key=STATUSES.index), at)
    return tuple((name, Found(status, places)) for name, (status, places) in sorted(out.items()))


def extract(text: str) -> dict[str, Found]:
    """Findings that a report mentions, with status and places; what it does not mention is not there.

    Where a report says a finding twice, present wins over uncertain over absent, and the places are joined.
    """
    return dict(_extract(text))


def asserted(text: str, location: str = "none") -> frozenset[tuple[str, ...]]:
    """Findings that count as said (hedged mentions do), as tuples: (name,), (name, side) or (name, side, region).

    location: "none", "side" or "place"; a finding without a place has "" there, one in two places is two tuples.
    Raises ValueError for other values.
    """
    if location not in LOCATIONS:
        raise ValueError(f"location={location!r}: one of {', '.join(LOCATIONS)}")
    depth = LOCATIONS[location]
    return frozenset(
        (name, *place[:depth])
        for name, found in _extract(text)
        if found.status in STATUSES[1:]
        for place in found.places or {Place("", "")}
    )


def ct_rate_labels(text: str) -> frozenset[tuple[str, ...]]:
    """The CT-RATE labels that a report asserts, as tuples (label,)."""
    return frozenset((FINDINGS[name].label,) for (name,) in asserted(text) if FINDINGS[name].label)


# --- scores ---


def finding_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    findings: Sequence[str] | None = None,
    location: str = "none",
) -> dict[str, Scores]:
    """Finding-level agreement of generated with reference reports, see `agreement`; micro, macro and per finding.

    findings: the ones to score (default: all of FINDINGS, or CT_RATE_LABELS where that is passed). location as in
    `asserted`; names then end in "_side" or "_place". Raises ValueError for unknown findings, for places of labels, and
    as `agreement` does.
    """
    names = list(FINDINGS) if findings is None else list(findings)
    suffix = "" if location == "none" else f"_{location}"
    if set(names) <= set(CT_RATE_LABELS) and location == "none":
        said = ct_rate_labels
    elif set(names) <= set(FINDINGS):
        said = partial(asserted, location=location)
    else:
        raise ValueError(
            f"findings {sorted(set(names) - set(FINDINGS))}: give names of ct_findings.FINDINGS, or of CT_RATE_LABELS "
            "with location='none'"
        )
    return agreement(list(map(said, references)), list(map(said, hypotheses)), names, suffix, VERSION)
