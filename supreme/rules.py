"""The offline reader of statements (reference: M2, backend `rules`): `lexicon.yaml` and the shared findings lexicon, on
the engine of `shared.metrics.phrases`, which decides what is negated and what is hedged.

The engine gives mentions with a status; here they become entities: the status a certainty, the words around it age and
location, and the span in the statement as it is written. Of two readings of the same words the more exact one stays.
"""

import re
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import yaml

from shared.ecg.codes import FINDINGS
from shared.metrics import findings, phrases
from shared.metrics.phrases import Lexicon, Mention
from supreme.prompt import CATEGORIES, Entity

LEXICON = Path(__file__).with_name("lexicon.yaml")
CERTAINTY = {"present": "definite", "uncertain": "hedged", "absent": "negated"}  # the engine's words -> M2's
_WITH_LOCATION = ("st_t", "axis_voltage", "ischemia_infarct", "conduction")
_AGEING = "ischemia_infarct"  # the category whose entities have an age


class Kind(NamedTuple):
    """What the lexicon says of an entity, whatever the statement says."""

    category: str
    polarity: str = "abnormal"
    certainty: str = ""  # where it is always the same, unless denied
    instead_of: frozenset[str] = frozenset()
    location: tuple[str, ...] = ()


class Rules(NamedTuple):
    """The compiled lexicons. ages: temporality -> what ends the words before a mention, stands in it, follows it."""

    lexicon: Lexicon
    kinds: dict[str, Kind]
    ages: dict[str, tuple[re.Pattern, re.Pattern, re.Pattern]]
    residual: re.Pattern
    leads_before: re.Pattern
    leads_behind: re.Pattern
    place_words: list[tuple[re.Pattern, tuple[str, ...]]]
    of_finding: dict[str, str]  # a name of FINDINGS -> the entity that its phrases name


@lru_cache(maxsize=1)
def rules() -> Rules:
    """Raises ValueError where lexicon.yaml names a category, finding or entity that does not exist."""
    raw, shared = (yaml.safe_load(p.read_text(encoding="utf-8")) for p in (LEXICON, findings.LEXICON))
    kinds, known, of_finding = {}, [], {}
    for category, entries in raw["entities"].items():
        for name, entry in entries.items():
            entry = entry if isinstance(entry, dict) else {"present": entry}
            polarity, instead = entry.get("polarity", "abnormal"), frozenset(entry.get("instead_of", ()))
            kinds[name] = Kind(category, polarity, entry.get("certainty", ""), instead)
            if "finding" in entry:
                of_finding[entry["finding"]] = name
            for status, patterns in _patterns(entry, shared).items():
                known.append((phrases.any_of(patterns), (name,), status))
    known.append((phrases.any_of([*shared["not_findings"], *raw["not_findings"]]), (), "present"))
    places = [(word, name) for word, name in raw["places"].items()]
    places += [(word, raw["places_by_code"][codes[0]]) for word, codes in shared["locations"].items()]
    located = {}
    for place in dict.fromkeys(name for _, name in places):
        for head, entry in raw["located"].items():
            located[place, head] = name = f"{place} {entry['name']}"
            kinds[name] = Kind(entry["category"], location=tuple(raw["regions"].get(place, [place])))
    of_finding |= {f"{p}_{h}": f"{p} {raw['located'][k]['name']}" for p in ("anterior", "septal", "inferior", "lateral")
                   for h, k in (("mi", "infarct"), ("ischemia", "ischaemia")) if f"{p}_{h}" in FINDINGS}  # fmt: skip
    _check(raw, kinds, of_finding)
    word = "(?:" + "|".join(pattern for pattern, _ in places) + ")"
    abbreviations = shared["abbreviations"] | raw["abbreviations"]
    lexicon = Lexicon(
        abbreviations=[(re.compile(k), v) for k, v in abbreviations.items()],
        phrases=known,
        cues=phrases.cue_patterns(shared["cues"] | {k: shared["cues"][k] + more for k, more in raw["cues"].items()}),
        places=[(re.compile(w), {h: (located[place, h],) for h in raw["located"]}) for w, place in places],
        located=phrases.located_patterns(shared["location_heads"], word) + _own_heads(raw, shared, word),
        nesting=frozenset([*raw["nesting"], *located.values()]),
        descriptive=frozenset(raw["descriptive"]),
        causes=frozenset(name for name in kinds if name.endswith("ischemia")),
    )
    words = [(re.compile(w), tuple(raw["regions"].get(place, [place]))) for w, place in places]
    before, behind = _lead_patterns(word, shared["location_heads"]["joiner"])
    return Rules(lexicon, kinds, _ages(raw["age"]), re.compile(raw["residual"]), before, behind, words, of_finding)


def _patterns(entry: dict, shared: dict) -> dict[str, list[str]]:
    """Status -> patterns of an entity: its own, which are tried first, and those of its shared finding."""
    of_finding = shared["findings"].get(entry.get("finding"), {})
    of_finding = dict(of_finding) if isinstance(of_finding, dict) else {"present": of_finding}
    of_finding.pop("absent", None)  # "abnormal ECG" is an entity of its own here
    if "opposite_of" in entry:
        of_finding = {"present": shared["findings"][entry["opposite_of"]]["absent"]}
    merged = {status: [*entry.get(status, ()), *of_finding.get(status, ())] for status in phrases.STATUSES}
    return {status: patterns for status, patterns in merged.items() if patterns}


def _own_heads(raw: dict, shared: dict, place: str) -> list[tuple[re.Pattern, str]]:
    """Lateral injury; injury in anterior and lateral leads."""
    places, patterns = rf"(?P<places>{place}(?:{shared['location_heads']['joiner']}{place})*)", []
    for head, entry in raw["located"].items():
        if "pattern" in entry:
            patterns.append((rf"{places}[ -]*{raw['near_place']}{entry['pattern']}", head))
            patterns.append((rf"{entry['pattern']}\w* (?:in|over|of) (?:the )?{places}(?: leads?| wall)?", head))
    return [(phrases.any_of([pattern]), head) for pattern, head in patterns]


def _ages(raw: dict) -> dict[str, tuple[re.Pattern, re.Pattern, re.Pattern]]:
    gap = rf"[\s,;()-]*(?:{raw['between']}[\s,-]+)*"
    return {
        age: (
            re.compile(rf"\b{words}[\s-]+(?:\w+[\s-]+)?$"),
            re.compile(rf"\b{words}\b"),
            re.compile(rf"{gap}{words}\b"),
        )
        for age, words in raw.items()
        if age != "between"
    }


_LEAD = r"(?:v ?[1-6](?: ?[-,/&] ?v?[1-6]\b)*|av[rlf]\b|i{1,3}\b)"
_ROW = r"(?:limb|chest|precordial|extremity)"


def _lead_patterns(place: str, joiner: str) -> tuple[re.Pattern, re.Pattern]:
    """Where what precedes a mention ends in its places, and where leads or places follow it."""
    item = rf"(?:{_LEAD}|{place}|{_ROW})"
    many = rf"(?P<at>{item}(?:(?:[ ,/&+]|\b(?:and|und)\b)*{item})*)"
    places = rf"(?P<at>(?:{place}|{_ROW})(?:{joiner}{place})*)"
    before = re.compile(rf"\b{places}(?: leads?| wall)?(?: (?:minor|mild|marked|nonspecific|non-specific))?[ -]*$")
    return before, re.compile(rf"\b(?:in|over|of|ueber)\b (?:the )?(?:leads? )?{many}")


def _check(raw: dict, kinds: dict, of_finding: dict) -> None:
    used = {"category": set(raw["entities"]) - set(CATEGORIES), "finding": set(of_finding) - set(FINDINGS)}
    used["instead_of"] = {name for kind in kinds.values() for name in kind.instead_of} - set(kinds)
    used |= {key: set(raw[key]) - set(kinds) for key in ("nesting", "descriptive")}
    for key, unknown in used.items():
        if unknown:
            raise ValueError(f"{LEXICON.name}, {key}: no such name {sorted(unknown)}; correct it or add the entity")


@lru_cache(maxsize=1)
def version() -> str:
    """Hash of the lexicons and of the code that reads them: no reading is taken for one of another version."""
    sources = (LEXICON, findings.LEXICON, Path(phrases.__file__), Path(__file__))
    return sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]


def read(statement: str) -> list[Entity]:
    """Entities that a normalised statement names, by position; () where the lexicons know none."""
    lexicon = rules().lexicon
    text, spans = phrases.normalise_traced(statement, lexicon)
    found = []
    for offset, sentence in phrases.sentences(text):
        mentions = _most_exact(phrases.read_sentence(lexicon, sentence))
        for i, mention in enumerate(mentions):
            start, end = _with_cue(sentence, mentions, i)
            a, b = spans[offset + start][0], spans[offset + end - 1][1]
            surface = statement[a:b].rstrip()
            found += [_entity(name, surface, a, sentence, mentions, i) for name in mention.names]
    return [e for e in dict.fromkeys(found) if not any(_inside(e, other) for other in found)]


def _most_exact(mentions: list[Mention]) -> list[Mention]:
    """Without the names that another mention of the same words replaces, or that it names with more doubt."""
    out, kinds = [], rules().kinds
    for a in mentions:
        over = [b for b in mentions if a.start < b.end and b.start < a.end]
        replaced = {old for b in over for name in b.names for old in kinds[name].instead_of}
        doubted = {name for b in over if _doubts(b, a) for name in b.names}
        names = tuple(name for name in a.names if name not in replaced | doubted)
        if names or not a.names:
            out.append(a._replace(names=names))
    return out


def _doubts(b: Mention, a: Mention) -> bool:
    """Does b say what a says, and a doubt as well ("borderline prolonged QT")?"""
    doubt = (b.status, a.status) == ("uncertain", "present")
    return doubt and b.start <= a.start and a.end <= b.end


def _inside(e: Entity, other: Entity) -> bool:
    same = (e.entity, e.certainty) == (other.entity, other.certainty)
    return same and other.start <= e.start and e.end <= other.end and other.end - other.start > e.end - e.start


def _entity(name: str, surface: str, start: int, sentence: str, mentions: list[Mention], i: int) -> Entity:
    kind, mention = rules().kinds[name], mentions[i]
    certainty = CERTAINTY[mention.status]
    if kind.certainty and certainty != "negated":
        certainty = kind.certainty
    residual = kind.category == "summary" and kind.polarity == "normal" and certainty == "hedged"
    residual = residual and rules().residual.search(sentence[mention.start : mention.end]) is not None
    head, tail = _around(sentence, mentions, i)
    location = kind.location or (_location(sentence, mention, head, tail) if kind.category in _WITH_LOCATION else ())
    age = _age(name, sentence, mentions, i) if kind.category == _AGEING else "current"
    at = (surface, start, start + len(surface))
    return Entity(*at, name, kind.category, kind.polarity, certainty, age, location, residual)


def _around(sentence: str, mentions: list[Mention], i: int) -> tuple[str, str]:
    """What stands between a mention and the one before it, and the one behind it."""
    mention = mentions[i]
    before = max((m.end for m in mentions if m.end <= mention.start), default=0)
    behind = min((m.start for m in mentions if m.start >= mention.end), default=len(sentence))
    return sentence[before : mention.start], sentence[mention.end : behind]


def _with_cue(sentence: str, mentions: list[Mention], i: int) -> tuple[int, int]:
    """Span of a mention with the cue beside it that hedges or denies it; which one does, the engine has decided."""
    mention, kind = mentions[i], {"uncertain": "hedge", "absent": "negation"}.get(mentions[i].status)
    start, end = mention.start, mention.end
    if kind is None:
        return start, end
    head, tail = _around(sentence, mentions, i)
    cues = rules().lexicon.cues
    before = [m for m in cues[f"{kind}_before"].finditer(sentence, start - len(head), start)]
    if before and "," not in (gap := sentence[before[-1].end() : start]) and len(gap.split()) <= phrases.MAX_CUE_WORDS:
        return before[-1].start(), end
    behind = cues[f"{kind}_after"].search(sentence, end, end + len(tail))
    if behind and "," not in (gap := sentence[end : behind.start()]) and len(gap.split()) <= 3:
        end = behind.end()
    return start, end


def _age(name: str, sentence: str, mentions: list[Mention], i: int) -> str:
    """Age of an infarct, ischemia or injury, from the words behind it, in it or before it.

    Words that follow another such entity are about that one. An infarct whose age is not said is undetermined.
    """
    mention, (head, tail) = mentions[i], _around(sentence, mentions, i)
    ages, start = rules().ages, mention.start - len(head)
    if any(m.end == start and rules().kinds[n].category == _AGEING for m in mentions for n in m.names):
        taken = [m.end() for _, _, behind in ages.values() if (m := behind.match(head))]
        head = head[max(taken, default=0) :]
    for age, (_, _, behind) in ages.items():
        if behind.match(tail):
            return age
    for age, (before, within, _) in ages.items():
        if within.search(sentence, mention.start, mention.end) or before.search(head):
            return age
    dateless = "infarction" in name and not name.startswith(("acute", "ST elevation"))
    return "undetermined" if dateless else "current"


def _location(sentence: str, mention: Mention, head: str, tail: str) -> tuple[str, ...]:
    """Regions and leads named beside or in a mention, () where several groups follow: they belong to several things."""
    behind = list(rules().leads_behind.finditer(tail))
    inside = list(rules().leads_behind.finditer(sentence, mention.start, mention.end))
    if len(behind) > 1:
        return ()
    groups = [m["at"] for m in (*inside, *behind)]
    if m := rules().leads_before.search(head):
        groups.insert(0, m["at"])
    return tuple(dict.fromkeys(place for group in groups for place in _places(group)))


def _places(group: str) -> list[str]:
    """ "v2,3 and avl" -> V2, V3, aVL; "anteroseptal" -> anterior, septal; "limb" -> limb leads."""
    out, at = [], 0
    while at < len(group):
        found = None
        for pattern, regions in rules().place_words:
            if found := pattern.match(group, at):
                out += regions
                break
        if not found and (found := re.compile(rf"{_LEAD}|{_ROW}").match(group, at)):
            out += _leads(found.group())
        at = found.end() if found else at + 1
    return out


def _leads(words: str) -> list[str]:
    if re.fullmatch(_ROW, words):
        return ["precordial leads" if words in ("chest", "precordial") else "limb leads"]
    if not words.startswith("v"):
        return [words.upper() if words.startswith("i") else f"aV{words[-1].upper()}"]
    numbers: list[int] = []
    for sign, digit in re.findall(r"([-,/&]?) ?v? ?([1-6])", words):
        numbers += range(numbers[-1] + 1, int(digit) + 1) if sign == "-" and numbers else [int(digit)]
    return [f"V{n}" for n in numbers]
