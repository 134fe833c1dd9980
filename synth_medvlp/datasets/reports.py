"""Sections of MIMIC-CXR reports. Serves A1 (real pairs) and A4 (entity mining) of the reference.

A section runs from its heading, words in capitals and a colon at the start of a line (or one of the names below in any
case), to the next heading. Repeated sections: the last one with text counts, as in the release's own section files
(an addendum repeats headings, and the first copy is often empty). A heading that describes the study ("CHEST, PA AND
LATERAL:") opens findings where no section of that name has text; "FINDINGS AND IMPRESSION" is an impression. Text
without any heading of these kinds stays unused: which part of it describes the image cannot be told.
"""

import re

HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&.\-]{2,60}?)[ \t]*:", re.MULTILINE)
NAMED = re.compile(
    r"^[ \t]*(findings and impression|findings ?/ ?impression|findings?|impression|conclusions?|indication|history"
    r"|comparisons?|technique|examination|recommendations?|notification|wet read)[ \t]*:",
    re.MULTILINE | re.IGNORECASE,
)
FINDINGS = ("findings", "finding")
IMPRESSION = (
    "impression", "conclusion", "conclusions", "findings and impression", "findings/impression",
    "findings / impression")  # fmt: skip
VIEW_WORDS = re.compile(r"\b(chest|portable|views?|radiographs?|pa|ap|lateral|frontal)\b")
NOT_A_VIEW = re.compile(r"\b(examinations?|exam|indication|comparisons?|history|techniques?|reason|study)\b")


def sections(report: str) -> dict[str, str]:
    """Heading in lower case -> text with white space collapsed; the last non-empty one of equal headings."""
    report = report.replace("\r\n", "\n").replace("\r", "\n")
    found = {match.start(): match for pattern in (HEADING, NAMED) for match in pattern.finditer(report)}
    marks = [found[start] for start in sorted(found)]
    ends = [match.start() for match in marks[1:]] + [len(report)] * bool(marks)
    result: dict[str, str] = {}
    for match, end in zip(marks, ends, strict=True):
        name, text = " ".join(match[1].lower().split()), " ".join(report[match.end() : end].split())
        if text or name not in result:
            result[name] = text
    return result


def findings_and_impression(report: str) -> tuple[str, str]:
    """(findings, impression) of a report, "" for what it lacks."""
    named = sections(report)
    findings = _first(named, FINDINGS)
    if not findings:
        described = [name for name in named if VIEW_WORDS.search(name) and not NOT_A_VIEW.search(name)]
        findings = _first(named, described)
    return findings, _first(named, IMPRESSION)


def _first(named: dict[str, str], names) -> str:
    return next((named[name] for name in names if named.get(name)), "")
