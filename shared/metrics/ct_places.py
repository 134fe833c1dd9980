"""Where a CT report says that something is: sides, lobes, lymph node stations, vessels and bones, and which finding a
place belongs to (for `shared.metrics.ct_findings`).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from shared.metrics.phrases import WORD_START, Mention

BOTH = ("left", "right")
_SIDES = {"right": ("right",), "left": ("left",), "both": BOTH}
_LUNG = frozenset({"upper_lobe", "middle_lobe", "lower_lobe", "lingula", "hilar"})
_ONE_SIDED = {"middle_lobe": ("right",), "lingula": ("left",)}
_NO_SIDED_WHOLE = frozenset({"vertebra", "sternum", "mediastinal", "main"})  # a side beside it is of something else
_LUNGS = r"(?:lungs?|hemithora(?:x|ces))\b"
_GLUE = (
    r"(?:[ ,/&-]+(?:(?:and|or|to|of|in|at|on|the|its|also|lobes?|lobar|zones?|fields?|portions?|DIRECTION|SEGMENT)\b)?)"
)
_LED = r"(?P<led>\b(?:in|of|at|on|within|to|from|over|involving|affecting|throughout|across)(?: the| all)? )?"
_CLOSED = re.compile(r"[,;:()]|\b(?:in|of|at|on|is|are|was|were|and|with|without|no|or|there|has|have|shows?)\b")
_SHARED = re.compile(r"\s*(?:,|&|and|or)\s+(?:\w+\s+){0,2}")  # "moderate left and small right effusions"
_CLAUSE = re.compile(r";|\b(?:but|however|although|though|whereas|while)\b|\band there\b|, there\b")


class Place(NamedTuple):
    """side: "left", "right" or ""; region: a lobe, station, vessel or bone, or ""."""

    side: str
    region: str


class Spot(NamedTuple):
    """Places said together, at sentence[start:end] of the text without them (start == end where taken out)."""

    start: int
    end: int
    places: tuple[Place, ...]
    led: bool  # by a preposition
    compared: bool  # "more prominent in": says where most of it is, where places are said already


def place_words(raw: dict) -> dict[str, re.Pattern]:
    """Patterns of the sections place_words, kept_places and cues of the lexicon file."""
    segment, regions = raw["segment"], {k: v.replace("LOBE", raw["lobe_ahead"]) for k, v in raw["place_words"].items()}
    side = (
        r"(?P<both>(?:right|left)(?: side)? ?(?:greater|more|larger|worse)(?: than)?(?: the| on the)? (?:right|left)"
        r"|both|bilateral(?:ly)?)|(?P<right>right)(?:-sided| sided| side)?|(?P<left>left)(?:-sided| sided| side)?"
    )
    named = "|".join(f"(?P<{name}>{pattern})" for name, pattern in regions.items())
    opening = rf"{WORD_START}(?:(?:{side})\b(?!{raw['not_beside']})|{named})"
    token = rf"{opening}|{WORD_START}(?P<lung>{_LUNGS})|(?P<segment>{segment})|(?P<join>,|/|&|\band\b|\bor\b)"
    opening = re.sub(r"\(\?P<\w+>", "(?:", opening)
    glue = _GLUE.replace("SEGMENT", segment).replace("DIRECTION", "(?:inf|sup|ant|post)erior|medial|lateral")
    tail = rf"(?:[ -]+(?:{_LUNGS}|lobes?\b|lobar\b|zones?\b|fields?\b|predominan(?:t|ce)\b|{segment}))*"
    words = {
        "token": token,
        "run": rf"{_LED}(?:the )?(?:{segment} of (?:the )?)?{opening}(?:{glue}*(?:{opening}|{WORD_START}{_LUNGS}))*"
        + tail,
        "plural": raw["plural"],
        "kept": "|".join(f"(?P<{name}>{WORD_START}(?:{pattern}))" for name, pattern in raw["kept_places"].items()),
    }
    words |= {key: raw["cues"][key] for key in ("inherits", "compared", "topic")}
    return {key: re.compile(pattern) for key, pattern in words.items()}


def _read_run(words: dict[str, re.Pattern], sentence: str, start: int, end: int) -> list[tuple[Place, int]]:
    """(place, number of commas and "and"s before it) in sentence[start:end], "right upper and left lower lobes" say."""
    items: list[tuple[tuple[str, ...] | None, str, int]] = []
    side, fresh, previous, joins = None, False, "", 0  # fresh: no region has taken this side yet
    for m in words["token"].finditer(sentence, start):
        kind = m.lastgroup
        if m.start() >= end:
            break
        if kind in _SIDES and previous in ("region", "lung") and items and items[-1][0] is None:
            items = [(_SIDES[kind] if at is None else at, *rest) for at, *rest in items]  # upper lobe of the right lung
            side, fresh, previous = _SIDES[kind], False, "side"
        elif kind in _SIDES:
            together = side if fresh else ()  # left and right lower lobes
            side, fresh, previous = tuple(sorted({*together, *_SIDES[kind]})), True, "side"
        elif kind == "join":
            if previous == "lung" and fresh:  # in the right lung and ...
                items.append((side, "", joins))
                side, fresh = None, False
            joins, previous = joins + 1, kind
        elif kind == "lung":
            previous = kind
        elif kind != "segment":
            items.append((None if kind == "mediastinal" and not fresh else side, kind, joins))
            fresh, previous = False, "region"
    if fresh:
        items.append((side, "", joins))
    plural = words["plural"].search(sentence, start, end) and all(at is None for at, *_ in items)
    out = []
    for at, region, group in items:
        sides = _ONE_SIDED.get(region) or at or (BOTH if plural and region in _LUNG | {"main"} else ("",))
        out += [(Place(s, region), group) for s in sides]
    return out


def take_places(words: dict[str, re.Pattern], sentence: str) -> tuple[str, list[Spot]]:
    """(sentence without the words of places, the places in order). Vessels and bones are read but stay in."""
    out, spots, at = "", [], 0
    for m in words["run"].finditer(sentence):
        read = _read_run(words, sentence, *m.span())
        if not read:
            continue
        out += sentence[at : m.start()]
        blank = (not out or out.endswith(" ")) and sentence[m.end() : m.end() + 1] == " "
        at = m.end() + blank
        compared = words["compared"].search((sentence[: m.start()] + (m["led"] or "")).rstrip()) is not None
        last = read[-1][1] if m["led"] else 0  # "in the right lower lobe and left | pleural effusion"
        for some, led in (([p for p, k in read if k < last], True), ([p for p, k in read if k >= last], not last)):
            if some:
                spots.append(Spot(len(out), len(out), tuple(dict.fromkeys(some)), led and bool(m["led"]), compared))
    out += sentence[at:]
    spots += [Spot(m.start(), m.end(), (Place("", m.lastgroup),), False, False) for m in words["kept"].finditer(out)]
    return out, sorted(spots, key=lambda s: (s.start, s.end))


# --- which mention a place is of ---


def _chain(sentence: str, mentions: list[Mention], spots: list[Spot], i: int, step: int, connector) -> list[int]:
    """Indices of mention i and of the ones listed with it ("consolidation and atelectasis"), no place between."""
    out = [i]
    while 0 <= i + step < len(mentions):
        a, b = sorted((mentions[i], mentions[i + step]))
        gap = sentence[a.end : max(a.end, b.start)].strip()  # none in "ground glass consolidation"
        listed = not gap or connector.fullmatch(gap + " ")
        if not listed or any(a.end <= s.start <= b.start for s in spots):
            break
        i += step
        out.append(i)
    return out


def _targets(
    words: dict[str, re.Pattern], sentence: str, mentions: list[Mention], spots: list[Spot], spot: Spot,
    takers: list[int], connector: re.Pattern,
) -> list[int] | None:  # fmt: skip
    """Indices of the mentions that a spot stands in, before or behind; None where it is a topic."""
    inside = [i for i in takers if mentions[i].start < spot.end and spot.start < mentions[i].end]
    if inside:
        return inside
    later = spots[spots.index(spot) + 1 :]
    ahead = next((i for i, m in enumerate(mentions) if m.start >= spot.end), None)
    if later and not spot.led and ahead is not None and later[0].start <= mentions[ahead].start:
        if _SHARED.fullmatch(sentence, spot.end, later[0].start):
            return _targets(words, sentence, mentions, spots, later[0], takers, connector)
    behind = next((i for i in reversed(range(len(mentions))) if mentions[i].end <= spot.start), None)
    if behind is not None and mentions[behind].names and behind not in takers:
        behind = next((i for i in reversed(takers) if i < behind), None)
    if behind is not None and _CLAUSE.search(sentence[mentions[behind].end : spot.start]):
        behind = None
    adjacent = ahead is not None and not _CLOSED.search(sentence[spot.end : mentions[ahead].start])
    fits = ahead in takers or behind is None or not (ahead is None or mentions[ahead].names)
    if adjacent and fits and not (spot.led and behind is not None):
        return _chain(sentence, mentions, spots, ahead, 1, connector)
    if behind is not None and not words["topic"].match(sentence[spot.end :]):
        alone = not spot.led and not any(place.region for place in spot.places)  # "..., right greater than left"
        return [behind] if alone else _chain(sentence, mentions, spots, behind, -1, connector)
    return None


def _merged(places: set[Place]) -> set[Place]:
    """ "right" and "rib" of one fracture are the right rib."""
    sides = {p.side for p in places if not p.region}
    regions = {p.region for p in places if not p.side} - _NO_SIDED_WHOLE
    if not sides or not regions:
        return places
    rest = {p for p in places if (p.side and p.region) or p.region in _NO_SIDED_WHOLE}
    return rest | {Place(side, region) for side in sides for region in regions}


def _inherit(
    words: dict[str, re.Pattern], sentence: str, mentions: list[Mention], got: list[set[Place]],
    takes: Callable[[Mention, Place], bool], connector: re.Pattern,
) -> None:  # fmt: skip
    """Give "adjacent atelectasis", or what an opacity may represent, the places of the mention before it."""
    heir = -1
    for i in range(1, len(mentions)):
        between, beside = (sentence[mentions[i - 1].end : mentions[i].end + k] for k in (0, 15))
        listed = heir == i - 1 and connector.match(between.strip())
        if not got[i] and (listed or words["inherits"].search(beside)):
            got[i], heir = {place for place in got[i - 1] if takes(mentions[i], place)}, i


def attach(
    words: dict[str, re.Pattern],
    sentence: str,
    mentions: list[Mention],
    spots: list[Spot],
    takes: Callable[[Mention, Place], bool],
    connector: re.Pattern,
) -> tuple[list[set[Place]], set[int]]:
    """(places of each mention, indices of mentions directly behind a place they cannot be in: "axillary mass")."""
    got: list[set[Place]] = [set() for _ in mentions]
    elsewhere, topics, compared = set(), [], []

    def give(spot: Spot, targets: list[int]) -> None:
        for i in targets:
            got[i] |= {place for place in spot.places if takes(mentions[i], place)}

    for spot in spots:
        takers = [i for i, m in enumerate(mentions) if any(takes(m, place) for place in spot.places)]
        targets = _targets(words, sentence, mentions, spots, spot, takers, connector)
        if spot.compared:
            compared.append((spot, targets or []))
        elif targets is None:
            topics.append(spot)
        else:
            give(spot, targets)
            elsewhere |= {i for i in targets[:1] if i not in takers}
    _inherit(words, sentence, mentions, got, takes, connector)
    for k, spot in enumerate(topics):
        end = topics[k + 1].start if k + 1 < len(topics) else len(sentence)
        give(spot, [i for i, m in enumerate(mentions) if not got[i] and spot.end <= m.start < end])
    for spot, targets in compared:
        give(spot, [i for i in targets if not got[i]])
    _inherit(words, sentence, mentions, got, takes, connector)
    return [_merged(places) for places in got], elsewhere
