"""Entities of a report by lexicon.yaml: noun phrases, states of places, and what is denied (reference: A4).

A noun phrase with a head is an abnormality or disease with all that stands directly before it ("small left pleural
effusion"); a place with a state is one mention, whole ("the heart is mildly enlarged", "lungs are clear"); a place
alone is ANATOMY. A negation denies the next entity and those that follow it in a list; denied ones become NON-*, a
denied normal state ("the heart is not normal") an ABNORMALITY. Hedged entities keep their type.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from synth_medvlp.lexicon import ANATOMY, Element, Mention, elements, lexicon, sentences

_PHRASE = ("head", "place", "topic", "state", "mod")
_REACH = 6  # words between a negation and what it denies
_NORMAL_REACH = frozenset("a an the any evidence sign of for definite obvious other".split())  # and a normal state


class _Span(NamedTuple):
    """elements[first:last], whose text ends at `end`. state: "" for a noun phrase, else normal | abnormal."""

    first: int
    last: int
    end: int
    type: str
    state: str = ""
    verb: bool = False  # the state stands behind a verb
    denied: bool = False


class DictionaryNer:
    """Reads texts; cannot fail. Sentences are read once."""

    def __call__(self, texts: Sequence[str]) -> list[list[Mention]]:
        return [[m for offset, s in sentences(text) for m in _moved(s, offset)] for text in texts]


def _moved(sentence: str, offset: int) -> list[Mention]:
    return [m._replace(start=m.start + offset, end=m.end + offset) for m in _read(sentence)]


@lru_cache(maxsize=200_000)
def _read(sentence: str) -> tuple[Mention, ...]:
    parts = elements(sentence)
    spans = _spans(parts, sentence.lower())
    mentions = []
    for span, denied in zip(spans, _denied(parts, spans), strict=True):
        start = parts[span.first].start
        mentions.append(Mention(sentence[start : span.end], _type(span, denied), start, span.end))
    return tuple(mentions)


def _type(span: _Span, denied: bool) -> str:
    if span.type == ANATOMY or not denied:
        return span.type
    return "ABNORMALITY" if span.state == "normal" else f"NON-{span.type}"


# --- phrases ---


def _spans(parts: list[Element], lower: str) -> list[_Span]:
    spans, i = [], 0
    while i < len(parts):
        if parts[i].cls not in _PHRASE:
            i += 1
            continue
        last = _run(parts, i)
        heads = [j for j in range(i, last) if parts[j].cls == "head"]
        span = _finding(parts, i, heads[-1] + 1, lower) if heads else _place(parts, i, last, lower)
        if span:
            spans.append(span)
        i = span.last if span else last
    return spans


def _run(parts: list[Element], i: int) -> int:
    """End of the phrase at i; "cardiac, mediastinal and hilar contours" is one."""
    while i < len(parts):
        joins = parts[i].words in (",", "and", "or") and i > 0 and _says_where(parts, i - 1)
        following = i + 1 + (joins and i + 1 < len(parts) and parts[i + 1].words in ("and", "or"))
        if joins and (_says_where(parts, following) or _named(parts, following)):
            i = following
        elif parts[i].cls not in _PHRASE:
            break
        i += 1
    return i


def _named(parts: list[Element], i: int) -> bool:
    return i < len(parts) and parts[i].cls in ("place", "topic")


def _says_where(parts: list[Element], i: int) -> bool:
    return i < len(parts) and parts[i].cls == "mod" and parts[i].value == "position"


def _finding(parts: list[Element], first: int, last: int, lower: str) -> _Span:
    kind = parts[last - 1].value
    last, end = _behind(parts, last, lower)
    return _Span(first, last, end, "ABNORMALITY" if kind == "DEVICE" else kind)


def _behind(parts: list[Element], last: int, lower: str) -> tuple[int, int]:
    """Words behind an entity that belong to it, unless they go on into the next phrase ("on the left lung base")."""
    for pattern in lexicon().behind:
        if m := pattern.match(lower, parts[last - 1].end):
            after = next((j for j in range(last, len(parts)) if parts[j].start >= m.end()), len(parts))
            if after == len(parts) or parts[after].cls not in _PHRASE:
                return after, m.end()
    return last, parts[last - 1].end


def _place(parts: list[Element], first: int, last: int, lower: str) -> _Span | None:
    """A place or topic with its state, a place alone, or nothing."""
    named = [j for j in range(first, last) if parts[j].cls in ("place", "topic")]
    if not named:
        return None
    states = [j for j in range(first, last) if parts[j].cls == "state"]
    if states:
        after, end = _behind(parts, max(named[-1], states[-1]) + 1, lower)
        return _stated(parts, first, after, end, states)
    if span := _predicate(parts, first, last, lower):
        return span
    places = [j for j in named if parts[j].cls == "place"]
    if not places:
        return None
    while parts[first].cls == "mod" and parts[first].value not in ("side", "position"):
        first += 1
    return _Span(first, places[-1] + 1, parts[places[-1]].end, ANATOMY)


def _predicate(parts: list[Element], first: int, last: int, lower: str) -> _Span | None:
    """Heart, mediastinum and hila ARE normal: several places may share a state, and a place may have several."""
    while last + 1 < len(parts) and parts[last].words in ("and", ",", "or", "/"):
        begin = last + 1 + (parts[last].words == "," and parts[last + 1].words == "and")
        begin += begin < len(parts) and parts[begin].words == "the"
        more = _run(parts, begin)
        if more == begin or any(parts[j].cls in ("head", "state") for j in range(begin, more)):
            break
        last = more
    if last >= len(parts) or parts[last].cls != "copula":
        return None
    i, denied, states, after = last + 1, False, [], last
    while i < len(parts):
        part = parts[i]
        if part.cls == "state":
            states.append(i)
            after = i + 1
        elif part.words in ("not", "no longer") and not states:
            denied = True
        elif not (part.cls == "adverb" or part.cls == "mod" or (states and part.words in ("and", ","))):
            break
        i += 1
    if not states:
        return None
    after, end = _behind(parts, after, lower)
    said = states[:1] if denied else states  # "not normal and enlarged" denies the first
    return _stated(parts, first, after, end, said)._replace(verb=True, denied=denied)


def _stated(parts: list[Element], first: int, last: int, end: int, states: list[int]) -> _Span:
    abnormal = any(parts[j].value == "abnormal" for j in states)
    kind = "ABNORMALITY" if abnormal else "NON-ABNORMALITY"
    return _Span(first, last, end, kind, "abnormal" if abnormal else "normal")


# --- negation ---


def _denied(parts: list[Element], spans: list[_Span]) -> list[bool]:
    """Which spans are denied. A list takes in a normal state by "or" alone: "no effusion, normal heart" are two."""
    out = [span.denied for span in spans]
    inside = {j for s in spans if s.type == ANATOMY for j in range(s.first, s.last)}
    clinical = [n for n, span in enumerate(spans) if span.type != ANATOMY]
    before, passes = 0, False  # end of the entity before; does its denial go on?
    waiting: list[int] = []  # normal states behind a comma of a list, denied if an "or" follows
    for n in clinical:
        span, first = spans[n], n == clinical[0]
        gap = [parts[j] for j in range(before, span.first) if j not in inside]
        before = span.last
        on = passes and not span.verb and _listed_on(gap, parts[span.first])
        by_or = on and bool({"or", "nor"} & {part.words for part in gap})
        if span.state == "normal" and on and not by_or:
            waiting.append(n)
            continue
        cue = not span.verb and _cue(gap, first, _NORMAL_REACH if span.state == "normal" else None)
        passes = cue or by_or or (on and not waiting)
        out[n] |= passes
        for normal in waiting if by_or else ():
            out[normal] = True
        waiting = []
    for a, n in reversed(list(enumerate(clinical))):
        if spans[n].verb or not _denied_behind(parts, spans[n].last):
            continue
        out[n] = True
        for left, right in reversed(list(pairwise(clinical[: a + 1]))):
            gap = [parts[j] for j in range(spans[left].last, spans[right].first) if j not in inside]
            if spans[left].state == "normal" or not _listed_on(gap, parts[spans[right].first]):
                break
            out[left] = True
    return out


def _cue(gap: list[Element], first: bool, only: frozenset[str] | None = None) -> bool:
    """Does a negation stand before, near enough and with nothing that ends it in between?

    first: no entity stands before it; only: words allowed in between."""
    at = max((j for j, part in enumerate(gap) if part.cls == "before"), default=-1)
    behind = gap[at + 1 :]
    stops = any(part.cls == "ends" or part.words in (",", "(", ")") for part in behind)
    stops |= only is not None and any(part.words not in only for part in behind)
    return at >= 0 and not stops and len(behind) <= _REACH and (first or not _after_verb(gap, at))


def _after_verb(gap: list[Element], at: int) -> bool:
    """ "X is not seen" denies X, not what follows."""
    return gap[at].words in ("not", "resolved") and at > 0 and gap[at - 1].cls == "copula" and at <= 2


def _listed_on(gap: list[Element], first: Element) -> bool:
    """Only links between; after a bare comma or "and", an entity with a size is a new statement."""
    words = [part.words for part in gap]
    joined = {"or", "nor", "and", ",", "/", "&"} & set(words)
    sized = first.cls == "mod" and first.value == "size" and not {"or", "nor"} & set(words)
    return bool(joined) and not sized and all(word in lexicon().links for word in words)


def _denied_behind(parts: list[Element], i: int) -> bool:
    """Is denied what ends at i: "... is not seen", "... has resolved"?"""
    if i >= len(parts) or parts[i].cls != "copula":
        return False
    i += 1
    while i < len(parts) and parts[i].cls in ("adverb", "copula"):
        i += 1
    return i < len(parts) and (parts[i].cls == "after" or parts[i].words in ("not", "resolved"))
