"""Mentions of things in report text, and whether each is present, uncertain or absent: the engine behind
`shared.metrics.findings` and behind every other lexicon of ECG phrases.

A `Lexicon` gives the phrases; negation and hedge cues decide about a mention. A cue in front takes the next mention of
its sentence (at most 5 words on, no comma between), a cue behind takes the mention directly before it; both pass on
along "and / or / comma-or" chains. German machine statements have no punctuation, so a scope "to the end of the
sentence" would be wrong there. A hedge that speaks of age ("wahrscheinlich alt", "age undetermined") is no hedge. The
tail from "Edit:" on (SCP codes that PTB-XL's reviewers typed after a report) is not report language and is cut.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

STATUSES = ("absent", "uncertain", "present")  # later wins over earlier
MAX_CUE_WORDS = 5
WORD_START = r"(?<![a-z0-9])"
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "a", "ß": "ss", "æ": "ae", "’": "'"})
_EDIT = re.compile(r"\bedit ?:")
_BLANKS = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"\.(?=\s|$)|(?<=[a-z]{3})\.(?=[a-z]{3})|[;|*]+")
_EITHER = r"\b(?:or|oder|eller)"


class Mention(NamedTuple):
    start: int
    end: int
    names: tuple[str, ...]  # () for a statement without a name in the lexicon
    status: str


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Phrases and cues, compiled. Patterns see normalised text (`normalise`)."""

    abbreviations: list[tuple[re.Pattern, str]]  # expanded before sentences are cut at full stops
    phrases: list[tuple[re.Pattern, tuple[str, ...], str]]  # pattern, names, status
    cues: dict[str, re.Pattern]
    places: list[tuple[re.Pattern, dict[str, tuple[str, ...]]]]  # place word -> head -> names
    located: list[tuple[re.Pattern, str]]  # pattern with group "places", head
    nesting: frozenset[str] = frozenset()  # names whose mentions may lie inside each other ("acute inferior infarct")
    descriptive: frozenset[str] = frozenset()  # "low or flat" of one of these is no alternative
    causes: frozenset[str] = frozenset()  # "ST-T changes may be due to ischaemia": the hedge inside is about these
    yielding: frozenset[str] = frozenset()  # not meant where a mention of a cause lies around it


def any_of(patterns: Iterable[str]) -> re.Pattern:
    """One pattern for all, anchored at a word start, running to the end of the word."""
    return re.compile(WORD_START + "(?:" + "|".join(patterns) + ")[a-z]*")


def located_patterns(heads: dict[str, str], place: str) -> list[tuple[re.Pattern, str]]:
    """Patterns such as: old anterior and septal infarct; infarkt inferior; lateral ST-T changes ... ischaemia."""
    places = rf"(?P<places>{place}(?:{heads['joiner']}{place})*)"
    ischaemia, filler = heads["ischaemia"], r"(?:(?:in|of|im|an|the|der|old|alt)\s+){0,3}"
    patterns = []
    for name, head in (("infarct", heads["infarct"]), ("ischaemia", ischaemia)):
        patterns.append((rf"{places}[ -]*{heads['between']}{head}", name))
        patterns.append((rf"{head}\w*[, -]+{filler}{places}\b(?! ?(?:isch|infar|myok))", name))
    patterns.append((rf"{places}[ -]+(?:leads )?{heads['leads']}{ischaemia}", "ischaemia"))
    patterns.append(
        (rf"(?:in|over|of|ueber) (?:the )?{places} (?:leads?|wall|ableitungen)[^.;]{{0,30}}? {ischaemia}", "ischaemia")
    )
    return [(any_of([pattern]), name) for pattern, name in patterns]


def cue_patterns(raw: dict) -> dict[str, re.Pattern]:
    """The section `cues` of a lexicon file, compiled."""
    cues = {k: v for k, v in raw.items() if isinstance(v, list)}
    for side in ("before", "after"):
        adverbs = "|".join(cues.pop(f"hedge_adverb_{side}"))
        cues[f"hedge_{side}"] = [*cues[f"hedge_{side}"], f"(?:{adverbs})(?!{raw['adverb_not_before']})"]
    singles = {"alternative": rf"\s*(?:{raw['alternative']})", "connector": raw["connector"]}
    return {k: any_of(v) for k, v in cues.items()} | {k: re.compile(v) for k, v in singles.items()}


def normalise(text: str, lexicon: Lexicon) -> str:
    """Lower case, umlauts and abbreviations spelled out, line ends as ";", single blanks, cut off at "Edit:"."""
    text = _BLANKS.sub(" ", text.lower().replace("\n", " ; ").translate(_UMLAUTS))
    text = _EDIT.split(text, maxsplit=1)[0]
    for pattern, full in lexicon.abbreviations:
        text = pattern.sub(full, text)
    return _BLANKS.sub(" ", text).strip()


def normalise_traced(text: str, lexicon: Lexicon) -> tuple[str, list[tuple[int, int]]]:
    """`normalise`, with the span of the source text that each character comes from."""
    pieces = [" ; " if c == "\n" else c.lower().translate(_UMLAUTS) for c in text]
    spans = [(i, i + 1) for i, piece in enumerate(pieces) for _ in piece]
    out, spans = _traced_sub(_BLANKS, " ", "".join(pieces), spans)
    out = _EDIT.split(out, maxsplit=1)[0]
    for pattern, full in lexicon.abbreviations:
        out, spans = _traced_sub(pattern, full, out, spans)
    out, spans = _traced_sub(_BLANKS, " ", out, spans)
    start = len(out) - len(out.lstrip())
    return out.strip(), spans[start : start + len(out.strip())]


def _traced_sub(pattern: re.Pattern, new: str, text: str, spans: list) -> tuple[str, list[tuple[int, int]]]:
    out, out_spans, at = [], [], 0
    for m in pattern.finditer(text):
        if m.start() == m.end():
            continue
        put = m.expand(new)
        out += [text[at : m.start()], put]
        out_spans += spans[at : m.start()] + [(spans[m.start()][0], spans[m.end() - 1][1])] * len(put)
        at = m.end()
    return "".join([*out, text[at:]]), out_spans + spans[at:]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(offset, sentence) of normalised text; empty ones are left out."""
    at = 0
    for end, following in [*(m.span() for m in _SENTENCE_END.finditer(text)), (len(text), len(text))]:
        piece = text[at:end]
        if piece.strip():
            yield at + len(piece) - len(piece.lstrip()), piece.strip()
        at = following


def read_sentence(lexicon: Lexicon, sentence: str) -> list[Mention]:
    """Mentions in one normalised sentence, in order, with the status that the cues leave them."""
    mentions = _mentions(lexicon, sentence)
    statuses = _statuses(lexicon, sentence, mentions)
    return [m._replace(status=status) for m, status in zip(mentions, statuses, strict=True)]


def _mentions(lexicon: Lexicon, sentence: str) -> list[Mention]:
    found = []
    for pattern, names, status in lexicon.phrases:
        found += [Mention(m.start(), m.end(), names, status) for m in pattern.finditer(sentence)]
    for pattern, head in lexicon.located:
        for m in pattern.finditer(sentence):
            names = _located(lexicon, m["places"], head)
            if names:
                either = re.search(rf"{_EITHER}\b", m["places"])  # "anterior or lateral infarct"
                found.append(Mention(m.start(), m.end(), names, "uncertain" if either else "present"))
    return sorted(_without_contained(lexicon, found))


def _located(lexicon: Lexicon, places: str, head: str) -> tuple[str, ...]:
    """Names of a head (an infarct, say) at listed places such as "anteriorer inferiorer"."""
    names, at = set(), 0
    while at < len(places):
        for pattern, by_head in lexicon.places:
            if m := pattern.match(places, at):
                names.update(by_head.get(head, ()))
                at = m.end() - 1
                break
        at += 1
    return tuple(sorted(names))


def _without_contained(lexicon: Lexicon, mentions: list[Mention]) -> list[Mention]:
    """Drop what lies strictly inside a longer phrase: RBBB in "incomplete RBBB", normal in "otherwise normal ECG"."""

    def dropped(a: Mention) -> bool:
        if a.names and lexicon.yielding.issuperset(a.names):  # "anterior ST-T changes due to ischaemia"
            return any(b.start <= a.start and a.end <= b.end for b in mentions if lexicon.causes.intersection(b.names))
        if a.names and a.names[0] in lexicon.nesting:
            return False
        return any(b.start <= a.start and a.end <= b.end and b.end - b.start > a.end - a.start for b in mentions)

    return [m for m in mentions if not dropped(m)]


def _chained(
    lexicon: Lexicon, sentence: str, mentions: list[Mention], i: int, step: int, comma: bool = False
) -> list[int]:
    """Indices of mentions joined to mention i by connectors only; a bare comma joins where `comma`."""
    chain, connector = [i], lexicon.cues["connector"]
    while 0 <= i + step < len(mentions):
        a, b = sorted((mentions[i], mentions[i + step]))
        gap = sentence[a.end : b.start].strip()
        if a.end < b.start and not (connector.fullmatch(gap + " ") and (comma or gap != ",")):
            break
        i += step
        chain.append(i)
    return chain


def _lower(statuses: list[str], indices: Iterable[int], status: str) -> None:
    for i in indices:
        statuses[i] = min(statuses[i], status, key=STATUSES.index)


def _target_ahead(sentence: str, mentions: list[Mention], cue: re.Match) -> int | None:
    """Index of the first mention that starts at most MAX_CUE_WORDS behind the cue, with no comma between."""
    for i, mention in enumerate(mentions):
        if mention.start >= cue.end():
            gap = sentence[cue.end() : mention.start]
            return i if "," not in gap and len(gap.split()) <= MAX_CUE_WORDS else None
    return None


def _target_behind(sentence: str, mentions: list[Mention], cue: re.Match) -> int | None:
    """Index of the last mention that ends before the cue with at most 3 words, and no comma, between."""
    before = [i for i, m in enumerate(mentions) if m.end <= cue.start()]
    if not before:
        return None
    i = max(before, key=lambda k: mentions[k].end)
    gap = sentence[mentions[i].end : cue.start()]
    return i if "," not in gap and len(gap.split()) <= 3 else None


def _statuses(lexicon: Lexicon, sentence: str, mentions: list[Mention]) -> list[str]:
    cues = lexicon.cues
    statuses = [m.status for m in mentions]
    has_or = re.search(rf"\b{cues['alternative'].pattern}|\bnor\b", sentence) is not None
    for kind, status in (("hedge", "uncertain"), ("negation", "absent")):
        comma, taken = kind == "negation" and has_or, set()
        for cue in cues[f"{kind}_before"].finditer(sentence):
            inside = [i for i, m in enumerate(mentions) if m.start < cue.start() < m.end]
            if inside:  # "inferior ST-T changes may be due to ischaemia"; any other phrase carries its own status
                causes = [i for i in inside if lexicon.causes.intersection(mentions[i].names)]
                _lower(statuses, causes if kind == "hedge" else [], status)
                taken.update([cue.start()] if causes else [])
                continue
            i = _target_ahead(sentence, mentions, cue)
            if i is not None:
                taken.add(cue.start())
                _lower(statuses, _chained(lexicon, sentence, mentions, i, 1, comma), status)
        for cue in cues[f"{kind}_after"].finditer(sentence):
            i = None if cue.start() in taken else _target_behind(sentence, mentions, cue)
            if i is not None:
                _lower(statuses, _chained(lexicon, sentence, mentions, i, -1), status)
    for i, mention in enumerate(mentions):  # "inferior or lateral infarct", "ischaemia or strain": one of the two
        before = sentence[: mention.start].rstrip()
        alternative = cues["alternative"].match(sentence, mention.end) or re.search(rf"{_EITHER}$", before)
        if alternative and not lexicon.descriptive & set(mention.names) and statuses[i] == "present":
            statuses[i] = "uncertain"
    return statuses
