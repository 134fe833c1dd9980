"""ECG findings read from report text, and report quality as agreement on them (MEIT, section 4.3 of the issue: n-gram
scores reward template text, this one asks whether the same things are said about the heart).

A lexicon (`findings_lexicon.yaml`) of English, German and Swedish phrases finds mentions of the findings named in
`shared.ecg.codes`; negation and hedge cues decide whether a mention is `present`, `uncertain` or `absent`. All three
languages are tried on every text: reports mix them.

How a cue reaches a mention: a cue in front takes the next mention of its sentence (at most 5 words on, no comma
between), a cue behind takes the mention directly before it; both pass on along "and / or / comma-or" chains. German
machine statements have no punctuation, so a scope "to the end of the sentence" would be wrong there. A hedge that
speaks of age ("wahrscheinlich alt", "age undetermined") is no hedge. "Otherwise normal ECG" is an uncertain normal.
Where a report says a finding twice, present wins over uncertain, uncertain over absent. The tail from "Edit:" on (SCP
codes that PTB-XL's reviewers typed after a report) is not report language and is cut. Infarcts and ischaemia become the
findings of the SCP codes of their place (`from_codes`), so that text and codes always speak the same vocabulary.

What it reads right was measured: `shared.metrics.findings_validation`, results/findings_validation.csv.

    python -m shared.metrics.findings --validate ptbxl_database.csv     # precision and recall against the SCP codes
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.ecg.codes import FINDINGS
from shared.metrics.interval import Scores

VERSION = 1
LEXICON = Path(__file__).with_name("findings_lexicon.yaml")
STATUSES = ("absent", "uncertain", "present")  # later wins over earlier
MAX_CUE_WORDS = 5
NESTING_GROUPS = {"infarction", "st_t"}  # groups whose mentions may lie inside each other ("acute inferior infarct")
DESCRIPTIVE = {
    "t_wave_abnormality",
    "t_wave_inversion",
    "st_depression",
    "st_elevation",
}  # "low or flat": no alternative
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "a", "ß": "ss", "æ": "ae", "’": "'"})
_WORD_START = r"(?<![a-z0-9])"


class Mention(NamedTuple):
    start: int
    end: int
    names: tuple[str, ...]  # () for a statement without a canonical finding
    status: str


class Lexicon(NamedTuple):
    abbreviations: list[tuple[re.Pattern, str]]
    phrases: list[tuple[re.Pattern, tuple[str, ...], str]]  # pattern, findings, status
    places: list[tuple[re.Pattern, str, str]]  # pattern, code of an infarct there, code of ischaemia there
    located: list[tuple[re.Pattern, int]]  # pattern with group "places", column of the code
    cues: dict[str, re.Pattern]


def _any(patterns: Iterable[str]) -> re.Pattern:
    return re.compile(_WORD_START + "(?:" + "|".join(patterns) + ")[a-z]*")


@lru_cache(maxsize=1)
def _lexicon() -> Lexicon:
    import yaml

    raw = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    unknown = set(raw["findings"]) - set(FINDINGS)
    if unknown:
        raise ValueError(
            f"{LEXICON.name}: {sorted(unknown)} are not names of shared.ecg.codes.FINDINGS; rename or add them there"
        )
    phrases = []
    for name, by_status in raw["findings"].items():
        by_status = by_status if isinstance(by_status, dict) else {"present": by_status}
        phrases += [(_any(patterns), (name,), status) for status, patterns in by_status.items()]
    phrases.append((_any(raw["not_findings"]), (), "present"))

    return Lexicon(
        [(re.compile(k), v) for k, v in raw["abbreviations"].items()],
        phrases,
        [(re.compile(k), *codes) for k, codes in raw["locations"].items()],
        _located_patterns(raw["location_heads"], "(?:" + "|".join(raw["locations"]) + ")"),
        _cue_patterns(raw["cues"]),
    )


def _located_patterns(heads: dict[str, str], place: str) -> list[tuple[re.Pattern, int]]:
    """Patterns such as: old anterior and septal infarct; infarkt inferior; lateral ST-T changes ... ischaemia."""
    places = rf"(?P<places>{place}(?:{heads['joiner']}{place})*)"
    ischaemia, filler = heads["ischaemia"], r"(?:(?:in|of|im|an|the|der|old|alt)\s+){0,3}"
    patterns = []
    for column, head in ((0, heads["infarct"]), (1, ischaemia)):
        patterns.append((rf"{places}[ -]*{heads['between']}{head}", column))
        patterns.append((rf"{head}\w*[, -]+{filler}{places}\b(?! ?(?:isch|infar|myok))", column))
    patterns.append((rf"{places}[ -]+(?:leads )?{heads['leads']}{ischaemia}", 1))
    patterns.append(
        (rf"(?:in|over|of|ueber) (?:the )?{places} (?:leads?|wall|ableitungen)[^.;]{{0,30}}? {ischaemia}", 1)
    )
    return [(_any([pattern]), column) for pattern, column in patterns]


def _cue_patterns(raw: dict) -> dict[str, re.Pattern]:
    cues = {k: v for k, v in raw.items() if isinstance(v, list)}
    for side in ("before", "after"):
        adverbs = "|".join(cues.pop(f"hedge_adverb_{side}"))
        cues[f"hedge_{side}"] = [*cues[f"hedge_{side}"], f"(?:{adverbs})(?!{raw['adverb_not_before']})"]
    singles = {"alternative": rf"\s*(?:{raw['alternative']})", "connector": raw["connector"]}
    return {k: _any(v) for k, v in cues.items()} | {k: re.compile(v) for k, v in singles.items()}


def normalise(text: str) -> str:
    """Lower case, umlauts and abbreviations spelled out, line ends as ";", single blanks, cut off at "Edit:"."""
    text = re.sub(r"\s+", " ", text.lower().replace("\n", " ; ").translate(_UMLAUTS))
    text = re.split(r"\bedit ?:", text, maxsplit=1)[0]
    for pattern, full in _lexicon().abbreviations:
        text = pattern.sub(full, text)
    return re.sub(r"\s+", " ", text).strip()


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.split(r"\.(?=\s|$)|(?<=[a-z]{3})\.(?=[a-z]{3})|[;|*]+", text) if s.strip()]


def _mentions(sentence: str) -> list[Mention]:
    lexicon, found = _lexicon(), []
    for pattern, names, status in lexicon.phrases:
        found += [Mention(m.start(), m.end(), names, status) for m in pattern.finditer(sentence)]
    for pattern, column in lexicon.located:
        for m in pattern.finditer(sentence):
            names = _located(m["places"], column)
            if names:
                either = re.search(r"\b(?:or|oder|eller)\b", m["places"])  # "anterior or lateral infarct"
                found.append(Mention(m.start(), m.end(), names, "uncertain" if either else "present"))
    return sorted(_without_contained(found))


@lru_cache(maxsize=4096)
def _located(places: str, column: int) -> tuple[str, ...]:
    """Findings of an infarct (column 0) or ischaemia (column 1) at listed places such as "anteriorer inferiorer"."""
    codes, at = [], 0
    while at < len(places):
        for pattern, *by_column in _lexicon().places:
            if m := pattern.match(places, at):
                codes.append(by_column[column])
                at = m.end() - 1
                break
        at += 1
    return tuple(sorted(from_codes(codes)))


def _is_ischemia(mention: Mention) -> bool:
    return any(name.endswith("_ischemia") for name in mention.names)


def _without_contained(mentions: list[Mention]) -> list[Mention]:
    """Drop what lies strictly inside a longer phrase: RBBB in "incomplete RBBB", normal in "otherwise normal ECG"."""

    def dropped(a: Mention) -> bool:
        if a.names == ("t_wave_abnormality",):  # "anterior ST-T changes due to ischaemia" are no unspecific ones
            return any(b.start <= a.start and a.end <= b.end for b in mentions if _is_ischemia(b))
        if a.names and FINDINGS[a.names[0]].group in NESTING_GROUPS:
            return False
        return any(b.start <= a.start and a.end <= b.end and b.end - b.start > a.end - a.start for b in mentions)

    return [m for m in mentions if not dropped(m)]


def _chained(sentence: str, mentions: list[Mention], i: int, step: int, comma: bool) -> list[int]:
    """Indices of mentions joined to mention i by connectors only; a bare comma joins where `comma`."""
    chain, connector = [i], _lexicon().cues["connector"]
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


def _statuses(sentence: str, mentions: list[Mention]) -> list[str]:
    cues = _lexicon().cues
    statuses = [m.status for m in mentions]
    has_or = re.search(rf"\b{cues['alternative'].pattern}|\bnor\b", sentence) is not None
    for kind, status in (("hedge", "uncertain"), ("negation", "absent")):
        taken = set()
        for cue in cues[f"{kind}_before"].finditer(sentence):
            inside = [i for i, m in enumerate(mentions) if m.start < cue.start() < m.end]
            if inside:  # "inferior ST-T changes may be due to ischaemia"; any other phrase carries its own status
                _lower(statuses, [i for i in inside if kind == "hedge" and _is_ischemia(mentions[i])], status)
                continue
            i = _target_ahead(sentence, mentions, cue)
            if i is not None:
                taken.add(cue.start())
                _lower(statuses, _chained(sentence, mentions, i, 1, comma=kind == "negation" and has_or), status)
        for cue in cues[f"{kind}_after"].finditer(sentence):
            i = None if cue.start() in taken else _target_behind(sentence, mentions, cue)
            if i is not None:
                _lower(statuses, _chained(sentence, mentions, i, -1, comma=False), status)
    for i, mention in enumerate(mentions):  # "inferior or lateral infarct", "ischaemia or strain": one of the two
        before = sentence[: mention.start].rstrip()
        alternative = cues["alternative"].match(sentence, mention.end) or re.search(r"\b(?:or|oder|eller)$", before)
        if alternative and not DESCRIPTIVE & set(mention.names) and statuses[i] == "present":
            statuses[i] = "uncertain"
    return statuses


@lru_cache(maxsize=200_000)
def _extract_sentence(sentence: str) -> tuple[tuple[str, str], ...]:
    mentions = _mentions(sentence)
    statuses = _statuses(sentence, mentions)
    return tuple((name, status) for m, status in zip(mentions, statuses, strict=True) for name in m.names)


@lru_cache(maxsize=200_000)
def _extract(text: str) -> tuple[tuple[str, str], ...]:
    out: dict[str, str] = {}
    for sentence in _sentences(normalise(text)):
        for name, status in _extract_sentence(sentence):
            out[name] = max(out.get(name, status), status, key=STATUSES.index)
    return tuple(sorted(out.items()))


def extract(text: str) -> dict[str, str]:
    """Findings that a report mentions -> "present" | "uncertain" | "absent"; what it does not mention is not there."""
    return dict(_extract(text))


def asserted(text: str, uncertain: str = "present") -> frozenset[str]:
    """Findings that count as said. uncertain: "present" counts hedged mentions as asserted, "ignore" drops them."""
    if uncertain not in ("present", "ignore"):
        raise ValueError(f"uncertain={uncertain!r}: 'present' or 'ignore'")
    counted = STATUSES[1:] if uncertain == "present" else STATUSES[2:]
    return frozenset(name for name, status in _extract(text) if status in counted)


# --- scores ---


def _counts(references: Sequence[frozenset], hypotheses: Sequence[frozenset], names: Sequence[str]) -> np.ndarray:
    """tp, fp, fn per item and finding: [n_items, 3, n_findings]."""
    said = [
        np.array([[name in found for name in names] for found in side], dtype=bool).reshape(len(side), len(names))
        for side in (references, hypotheses)
    ]
    reference, hypothesis = said
    return np.stack([reference & hypothesis, ~reference & hypothesis, reference & ~hypothesis], axis=1).astype(
        np.float64
    )


def _ratio(sums: np.ndarray, numerator: Sequence[float], denominator: Sequence[float]) -> np.ndarray:
    """Ratio of weighted tp, fp, fn (last axis); NaN where the denominator is 0."""
    below = sums @ np.asarray(denominator, dtype=np.float64)
    return np.divide(
        sums @ np.asarray(numerator, dtype=np.float64), below, out=np.full(below.shape, np.nan), where=below > 0
    )


_F1, _PRECISION, _RECALL = ([2, 0, 0], [2, 1, 1]), ([1, 0, 0], [1, 1, 0]), ([1, 0, 0], [1, 0, 1])


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over findings from sums [..., 3 * n_findings]; findings that nobody says in a resample are left out."""
    by_finding = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, -1)
    f1 = _ratio(by_finding, *_F1)
    defined = np.isfinite(f1).sum(axis=-1)
    return np.divide(np.nansum(f1, axis=-1), defined, out=np.full(defined.shape, np.nan), where=defined > 0)


def finding_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    findings: Sequence[str] | None = None,
    uncertain: str = "present",
) -> dict[str, Scores]:
    """Finding-level agreement of generated with reference reports: finding_{f1, precision, recall, macro_f1}.

    findings: the ones to score (default: all). uncertain: "present" (default) lets a hedged mention count as asserted
    in reference and hypothesis alike; "ignore" lets it count in neither (names then end in "_certain"). Absent and
    unmentioned are the same. Micro scores pool all findings; the macro score averages F1 over the findings that any
    reference asserts, so that two models scored on the same references are averaged over the same findings.
    Raises ValueError for lists of different length, unknown findings, or references that assert none of the findings.
    """
    if len(references) != len(hypotheses) or not len(references):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: give as many, at least one")
    names = list(FINDINGS) if findings is None else list(findings)
    if set(names) - set(FINDINGS):
        raise ValueError(f"unknown findings {sorted(set(names) - set(FINDINGS))}; see shared.ecg.codes.FINDINGS")
    said = [asserted(text, uncertain) for text in references]
    counts = _counts(said, [asserted(text, uncertain) for text in hypotheses], names)
    in_references = counts[:, [0, 2]].any(axis=(0, 1))
    if not in_references.any():
        raise ValueError("no reference asserts any of the findings: nothing to score")
    micro = counts.sum(axis=2)
    suffix = "" if uncertain == "present" else "_certain"
    out = [
        Scores(f"finding_{name}{suffix}", VERSION, micro, partial(_ratio, numerator=top, denominator=below))
        for name, (top, below) in (("f1", _F1), ("precision", _PRECISION), ("recall", _RECALL))
    ]
    macro = counts[:, :, in_references].reshape(len(counts), -1)
    out.append(Scores(f"finding_macro_f1{suffix}", VERSION, macro, _macro_f1))
    return {score.name: score for score in out}


@lru_cache(maxsize=2)
def _by_code(vocabulary: str) -> dict[str, tuple[str, ...]]:
    if vocabulary not in ("scp", "snomed"):
        raise ValueError(f"vocabulary={vocabulary!r}: 'scp' or 'snomed'")
    table: dict[str, tuple[str, ...]] = {}
    for finding in FINDINGS.values():
        for code in getattr(finding, vocabulary):
            table[code] = (*table.get(code, ()), finding.name)
    return table


def from_codes(labels: Iterable[str], vocabulary: str = "scp") -> set[str]:
    """Findings that codes assert; vocabulary "scp" (PTB-XL) or "snomed" (CinC 2020/2021). Others assert nothing."""
    table = _by_code(vocabulary)
    return {name for code in labels for name in table.get(str(code), ())}


def main(argv: Sequence[str] | None = None) -> None:
    from shared.metrics.findings_validation import ptbxl_labels, ptbxl_rows, validation_table

    parser = argparse.ArgumentParser(prog="python -m shared.metrics.findings", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--validate", type=Path, required=True, metavar="CSV", help="rows of ptbxl_database.csv")
    rows = ptbxl_rows(parser.parse_args(argv).validate)
    print(validation_table(rows["report"], *ptbxl_labels(rows)).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
