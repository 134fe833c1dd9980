"""Reports -> unique normalised statements (reference: M2, stage 0).

Machine reports are put together from a closed vocabulary of statements, so that extraction is paid for per unique
statement, not per record. `unit: report` takes a whole report as one statement instead (the drawn reading of the
paper), because a statement can modify its neighbour.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
import pandas as pd
import yaml

from shared.metrics import findings

UNITS = ("statement", "report")
SEPARATOR = ". "  # between the statements of a report, as shared.ecg.mimic_iv_ecg joins them
DECORATION = " \t\r\n*=-"
N_POSITIONS = 18  # report_0 .. report_17; later ones count in the last bin
QUANTITY = re.compile(r"(?<![\w.,:/-])\d+(?:[.,]\d+)?(?:\s?-\s?\d+(?:[.,]\d+)?)?\s?(?:(?:ms|msec|bpm|mv|mm)\b|%)")
_EDIT = re.compile(r"\bedit ?:.*", re.IGNORECASE | re.DOTALL)  # codes that PTB-XL's reviewers typed: no report language


@dataclass
class Statements:
    """Stage 0 over n reports. norm: U unique normalised statements, first occurrence first; ids: of each, hashed;
    of_report: per report its statements in order, as indices into norm ([] for an empty report); table: one row per
    unique statement: id, norm, raw (its spellings), n_records, n_occurrences, positions (int64 [18], a histogram)."""

    norm: list[str]
    ids: list[str]
    of_report: list[list[int]]
    table: pd.DataFrame


def statement_id(norm: str) -> str:
    return sha256(norm.encode()).hexdigest()[:12]


@lru_cache(maxsize=200_000)
def normalise(raw: str) -> str:
    """EKG -> ECG, lower case, single blanks, no decoration or final stop; number with ms, bpm, mV, mm or % -> <num>.

    V1-V6, ordinals and ratios such as 2:1 stay: they are no measured quantities.
    """
    text = " ".join(raw.split()).lower().replace("ekg", "ecg").strip(DECORATION).rstrip(DECORATION + ".")
    return QUANTITY.sub("<num>", text)


@lru_cache(maxsize=1)
def _abbreviations() -> re.Pattern:
    """What ends in a full stop without ending a statement ("v.a. ", "mögl. akut", "block i. grades")."""
    raw = yaml.safe_load(findings.LEXICON.read_text(encoding="utf-8"))["abbreviations"]
    return re.compile("|".join(f"(?:{pattern})" for pattern in raw), re.IGNORECASE)


@lru_cache(maxsize=200_000)
def split(report: str) -> tuple[str, ...]:
    """Raw statements of a report; blank ones, which may lie between filled ones, are dropped."""
    report = _EDIT.sub("", report)
    kept = [m.span() for m in _abbreviations().finditer(report)] if "." in report else []
    pieces, start = [], 0
    for m in re.finditer(r"\.\s+", report):
        if not any(a <= m.start() < b for a, b in kept):
            pieces.append(report[start : m.start()])
            start = m.end()
    return tuple(piece for piece in (*pieces, report[start:]) if normalise(piece))


def collect(reports: Sequence[str], unit: str = "statement", max_unique: int = 50_000) -> Statements:
    """Stage 0 of n reports, each its statements joined by ". ".

    Raises ValueError for an unknown unit, and for more than `max_unique` unique statements: the normalisation has then
    missed what varies from report to report, and every variant would be paid for. Whole reports have no such limit.
    """
    if unit not in UNITS:
        raise ValueError(f"extract.unit={unit!r}: one of {', '.join(UNITS)}")
    number: dict[str, int] = {}
    raw_forms: list[dict[str, None]] = []
    of_report, n_records, n_occurrences, positions = [], [], [], []
    for report in reports:
        raws = split(report)
        raws = (SEPARATOR.join(raws),) if unit == "report" and raws else raws
        row = []
        for position, raw in enumerate(raws):
            norm = SEPARATOR.join(map(normalise, split(raw))) if unit == "report" else normalise(raw)
            i = number.setdefault(norm, len(number))
            if i == len(raw_forms):
                _check_unique(len(number), max_unique, unit, norm)
                raw_forms.append({})
                n_records.append(0)
                n_occurrences.append(0)
                positions.append(np.zeros(N_POSITIONS, dtype=np.int64))
            raw_forms[i][raw] = None
            n_records[i] += i not in row
            n_occurrences[i] += 1
            positions[i][min(position, N_POSITIONS - 1)] += 1
            row.append(i)
        of_report.append(row)
    norms = list(number)
    ids = [statement_id(norm) for norm in norms]
    columns = {"id": ids, "norm": norms, "raw": [list(forms) for forms in raw_forms]}
    columns |= {"n_records": n_records, "n_occurrences": n_occurrences, "positions": positions}
    return Statements(norms, ids, of_report, pd.DataFrame(columns))


def _check_unique(n: int, max_unique: int, unit: str, norm: str) -> None:
    if unit == "statement" and n > max_unique:
        raise ValueError(
            f"more than {max_unique:,} unique statements, the last one {norm[:80]!r}: the normalisation has failed; "
            "look at what varies between statements (supreme.statements.normalise), or take extract.unit=report"
        )
