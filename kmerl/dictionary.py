"""The offline reader of device statements: `entities.yaml` on the engine of `shared.metrics.phrases` (reference: M1).

Machine statements come from a closed vocabulary, so patterns with negation and uncertainty read them without an LLM;
the default at the laptop tier. Beside the mentions it knows what one entity implies (`implied`) and which of its
entities a name of any origin stands for (`entities_of`): "RBBB" is "right bundle branch block".
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from shared.ecg.codes import FINDINGS
from shared.metrics import findings, phrases
from shared.metrics.phrases import Lexicon

ENTITIES = Path(__file__).with_name("entities.yaml")
STATUSES = {"present": "affirmed", "absent": "negated", "uncertain": "uncertain"}  # the engine's words -> K-MERL's
EMPTY_WORDS = frozenset("a an the in of with and wave waves lead leads pattern syndrome type present complete".split())


class Found(NamedTuple):
    """One entity in one statement; evidence is statement[start:end], verdict what the second pass said of it."""

    entity: str
    status: str  # affirmed | negated | uncertain
    start: int
    end: int
    verdict: str = ""  # confirmed | rejected | "" (no second pass)


class Dictionary(NamedTuple):
    """The compiled file. also: entity -> entities directly implied; finding: name in FINDINGS -> entity."""

    lexicon: Lexicon
    names: tuple[str, ...]
    also: dict[str, tuple[str, ...]]
    finding: dict[str, str]
    version: str  # of the phrases and of the engine: readings of another version are never taken for this one's


@lru_cache(maxsize=1)
def dictionary() -> Dictionary:
    """Raises ValueError for names in entities.yaml that do not exist: findings, implied or nesting entities."""
    raw, shared = (yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ENTITIES, findings.LEXICON))
    known, also, finding = [], {}, {}
    for name, entry in raw["entities"].items():
        entry = entry if isinstance(entry, dict) else {"present": entry}
        also[name] = tuple(entry.get("also", ()))
        of_finding = shared["findings"].get(entry.get("finding"), {})
        of_finding = of_finding if isinstance(of_finding, dict) else {"present": of_finding}
        if "finding" in entry:
            finding[entry["finding"]] = name
        for status in phrases.STATUSES:
            patterns = [*entry.get(status, ()), *of_finding.get(status, ())]  # the first that matches is taken
            if patterns:
                known.append((phrases.any_of(patterns), (name,), status))
    known.append((phrases.any_of([*shared["not_findings"], *raw["not_findings"]]), (), "present"))
    located = _located_names(raw)
    for name, (place, head, parents) in located.items():
        also[name] = parents
        if place + raw["located"][head].get("finding", "") in FINDINGS:
            finding[place + raw["located"][head]["finding"]] = name
    names = tuple(also)
    _check(raw, names, also, finding)
    places = _places(raw, shared, located)
    place = "(?:" + "|".join(pattern for pattern, _ in places) + ")"
    lexicon = Lexicon(
        abbreviations=[(re.compile(k), v) for k, v in shared["abbreviations"].items()],
        phrases=known,
        cues=phrases.cue_patterns(shared["cues"] | {k: shared["cues"][k] + more for k, more in raw["cues"].items()}),
        places=[(re.compile(pattern), by_head) for pattern, by_head in places],
        located=phrases.located_patterns(shared["location_heads"], place) + _head_patterns(raw, shared, place),
        nesting=frozenset(raw["nesting"]) | frozenset(located),
        descriptive=frozenset(raw["descriptive"]),
        yielding=frozenset(raw["yielding"]),
        causes=frozenset(name for name in names if name.endswith("ischemia")),
    )
    sources = (ENTITIES, findings.LEXICON, Path(phrases.__file__), Path(__file__))
    version = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]
    return Dictionary(lexicon, names, also, finding, version)


def _located_names(raw: dict) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """ "anterolateral infarction" -> (place, head, what it implies: both regions, and myocardial infarction)."""
    by_code = [place for places in raw["places_by_code"].values() for place in places]
    all_places = dict.fromkeys([*by_code, *(p for places in raw["places"].values() for p in places)])
    out = {}
    for place in all_places:
        for head, entry in raw["located"].items():
            if place == "diffuse" and "pattern" not in entry:
                continue  # an extensive infarct is nowhere in particular
            regions = tuple(f"{part} {entry['name']}" for part in raw["regions"].get(place, ()))
            out[f"{place} {entry['name']}"] = (place, head, regions or (entry["also"],))
    return out


def _places(raw: dict, shared: dict, located: dict) -> list[tuple[str, dict[str, tuple[str, ...]]]]:
    """Place word -> head -> names there: the words of entities.yaml first, then those of findings_lexicon.yaml."""
    places = list(raw["places"].items())
    places += [(pattern, raw["places_by_code"][codes[0]]) for pattern, codes in shared["locations"].items()]
    heads = {(place, head): name for name, (place, head, _) in located.items()}
    return [
        (pattern, {h: tuple(heads[p, h] for p in at if (p, h) in heads) for h in raw["located"]})
        for pattern, at in places
    ]


def _head_patterns(raw: dict, shared: dict, place: str) -> list[tuple[re.Pattern, str]]:
    """Lateral ST-T changes; T wave inversion in anterior and lateral leads."""
    places = rf"(?P<places>{place}(?:{shared['location_heads']['joiner']}{place})*)"
    patterns = []
    for head, entry in raw["located"].items():
        if "pattern" in entry:
            patterns.append((rf"{places}[ -]*{raw['near_place']}{entry['pattern']}", head))
            after = rf"{entry['pattern']}\w*,? (?:is |are )?(?:seen |present )?(?:in|over|of) (?:the )?{places}"
            patterns.append((rf"{after}(?: leads?| wall)?", head))
    return [(phrases.any_of([pattern]), head) for pattern, head in patterns]


def _check(raw: dict, names: tuple[str, ...], also: dict, finding: dict) -> None:
    used = {"findings": set(finding) - set(FINDINGS)}
    used["also"] = {parent for parents in also.values() for parent in parents} - set(names)
    used |= {key: set(raw[key]) - set(names) for key in ("nesting", "yielding", "descriptive")}
    for key, unknown in used.items():
        if unknown:
            raise ValueError(f"{ENTITIES.name}, {key}: no such name {sorted(unknown)}; correct it or add the entity")


def read(statement: str) -> list[Found]:
    """Entities that a statement mentions, by position; of mentions of one entity inside each other the longest.

    The evidence is a span of the statement as it is written, though patterns see it normalised.
    """
    lexicon = dictionary().lexicon
    text, spans = phrases.normalise_traced(statement, lexicon)
    found = []
    for offset, sentence in phrases.sentences(text):
        for mention in phrases.read_sentence(lexicon, sentence):
            start, end = spans[offset + mention.start][0], spans[offset + mention.end - 1][1]
            found += [Found(name, STATUSES[mention.status], start, end) for name in mention.names]
    return [f for f in dict.fromkeys(found) if not any(_inside(f, other) for other in found)]


def _inside(f: Found, other: Found) -> bool:
    same = (f.entity, f.status) == (other.entity, other.status)
    return same and other.start <= f.start and f.end <= other.end and other.end - other.start > f.end - f.start


def verify(statement: str, found: list[Found]) -> list[Found]:
    """Second pass: the evidence, cut out of the statement and read anew, must name the entity; else `rejected`.

    Where a pattern looked past its own end ("T waves ... inverted"), the evidence grows to the end of its statement.
    """
    out = []
    for f in found:
        for end in (f.end, len(statement)):
            if f.entity in {again.entity for again in read(statement[f.start : end])}:
                out.append(f._replace(end=end, verdict="confirmed"))
                break
        else:
            out.append(f._replace(verdict="rejected"))
    return out


def implied(name: str) -> frozenset[str]:
    """All entities that are there where `name` is; none for a name that is not in the dictionary."""
    reached, todo = set(), [name]
    while todo:
        todo += [parent for parent in dictionary().also.get(todo.pop(), ()) if parent not in reached]
        reached.update(todo)
    return frozenset(reached - {name})


@lru_cache(maxsize=100_000)
def entities_of(name: str) -> tuple[str, ...]:
    """The entities that a name stands for, whoever coined it; () where the dictionary does not know it.

    "RBBB" -> right bundle branch block; "acute anterior infarction" -> two entities. What the mentions leave over of
    the name must be words without a meaning of their own: "inferior infarction after surgery" is not known.
    """
    text = " ".join(name.split())
    folded = {n.lower(): n for n in dictionary().names}
    if text.lower() in folded:
        return (folded[text.lower()],)
    found = read(text)
    covered = {i for f in found for i in range(f.start, f.end)}
    left = "".join(" " if i in covered else c for i, c in enumerate(text))
    if {f.status for f in found} != {"affirmed"} or set(re.findall(r"\w+", left.lower())) - EMPTY_WORDS:
        return ()
    names = {f.entity for f in found}
    return tuple(sorted(n for n in names if not any(n in implied(other) for other in names)))


def is_seen(class_name: str, vocabulary: list[str]) -> bool:
    """Is a class among the training entities: by its very name, or by all entities that the name stands for?"""
    known = entities_of(class_name)
    return class_name in vocabulary or (bool(known) and set(known) <= set(vocabulary))
