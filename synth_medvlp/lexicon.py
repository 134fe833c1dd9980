"""Words of radiology reports: sentences, singular forms, and lexicon.yaml compiled (reference: A4)."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

CLINICAL = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE")
ANATOMY = "ANATOMY"
TYPES = (*CLINICAL, ANATOMY)  # of RaTE-NER
LEXICON = Path(__file__).with_name("lexicon.yaml")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:st|nd|rd|th)\b|\d+(?:\.\d+)?|[^\sa-z\d-]")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")
_SENTENCE_END = re.compile(r"[;!?]|\.(?!\d)|(?<=[a-z])\.(?=\d)|\n\s*\n")


class Mention(NamedTuple):
    """text == report[start:end], in the report's own words; type: of `TYPES`."""

    text: str
    type: str
    start: int
    end: int


class Token(NamedTuple):
    word: str  # singular, lower case
    start: int
    end: int


class Element(NamedTuple):
    """Words that lexicon.yaml knows together; text[start:end]."""

    cls: str  # head | place | topic | state | mod | copula | adverb | pseudo | before | after | ends | other
    value: str  # of a head its type, of a state or modifier its kind
    words: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Lexicon:
    """terms: first word -> (words, class, value), longest first; heads: head -> type; denies: place -> heads that its
    normal state denies."""

    terms: dict[str, list[tuple[tuple[str, ...], str, str]]]
    heads: dict[str, str]
    sizes: frozenset[str]
    sides: frozenset[str]
    behind: list[re.Pattern]
    links: frozenset[str]
    synonyms: list[tuple[re.Pattern, str]]
    denies: dict[str, tuple[str, ...]]


@lru_cache(maxsize=1)
def _raw() -> dict:
    return yaml.safe_load(LEXICON.read_text(encoding="utf-8"))


@lru_cache(maxsize=50_000)
def singular(word: str) -> str:
    """opacities -> opacity, masses -> mass, apices -> apex; -ss, -us, -is and -as stay."""
    irregular = _raw()["plurals"].get(word)
    if irregular or len(word) < 4 or not word.endswith("s") or word[-2] in "suia'":
        return irregular or word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "ches", "shes")) else word[:-1]


def tokens(text: str) -> list[Token]:
    """Words, numbers and single signs; a hyphen is a space."""
    return [Token(singular(m.group()), m.start(), m.end()) for m in _TOKEN.finditer(text.lower())]


def _listed(text: str) -> list[str]:
    return [" ".join(t.word for t in tokens(item)) for item in text.split(",")]


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    raw = _raw()
    heads = {term: kind for kind, text in raw["heads"].items() for term in _listed(text)}
    negation, modifiers = raw["negation"], raw["modifiers"]
    classes = [(name, "", negation[name]) for name in ("pseudo", "before", "after", "ends")]
    classes += [("place", "", raw["anatomy"]), ("topic", "", raw["topics"])]
    classes += [("state", kind, text) for kind, text in raw["states"].items()]
    classes += [("mod", kind, text) for kind, text in modifiers.items()]
    classes += [("copula", "", raw["copula"]), ("adverb", "", raw["adverbs"])]
    known = {term: ("head", kind) for term, kind in heads.items()}
    for cls, value, text in classes:
        for term in _listed(text):
            known.setdefault(term, (cls, value))
    by_first = defaultdict(list)
    for term, (cls, value) in sorted(known.items(), key=lambda item: -len(item[0].split())):
        by_first[term.split()[0]].append((tuple(term.split()), cls, value))
    return Lexicon(
        terms=dict(by_first),
        heads=heads,
        sizes=frozenset(_listed(modifiers["size"])),
        sides=frozenset(_listed(modifiers["side"])),
        behind=[re.compile(pattern) for pattern in raw["behind"]],
        links=frozenset(_listed(negation["links"])) | {",", "/", "&"},
        synonyms=[(re.compile(pattern), new) for pattern, new in raw["synonyms"]],
        denies={" ".join(_listed(place)): tuple(_listed(text)) for place, text in raw["normal_denies"].items()},
    )


def elements(sentence: str) -> list[Element]:
    """A sentence as terms of the lexicon, longest first; what it does not know is "other"."""
    found, terms, i = tokens(sentence), lexicon().terms, 0
    words, out = tuple(t.word for t in found), []
    while i < len(words):
        fits = (t for t in terms.get(words[i], ()) if words[i : i + len(t[0])] == t[0])
        unknown = ("mod", "position") if _ORDINAL.fullmatch(words[i]) else ("other", "")  # "5th rib"
        term, cls, value = next(fits, (words[i : i + 1], *unknown))
        out.append(Element(cls, value, " ".join(term), found[i].start, found[i + len(term) - 1].end))
        i += len(term)
    return out


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(offset, sentence); those under 3 characters are dropped, as RaTE-NER does; an entity never crosses them."""
    start = 0
    for end in [*(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]:
        sentence = text[start:end]
        if len(sentence.strip()) >= 3:
            yield start, sentence
        start = end
