"""ECG findings read from report text, and report quality as agreement on them (MEIT, section 4.3 of the issue: n-gram
scores reward template text, this one asks whether the same things are said about the heart).

A lexicon (`findings_lexicon.yaml`) of English, German and Swedish phrases finds mentions of the findings named in
`shared.ecg.codes`; negation and hedge cues decide whether a mention is `present`, `uncertain` or `absent` (the engine
is `shared.metrics.phrases`). All three languages are tried on every text: reports mix them. "Otherwise normal ECG" is
an uncertain normal. Where a report says a finding twice, present wins over uncertain, uncertain over absent. Infarcts
and ischaemia become the findings of the SCP codes of their place (`from_codes`), so that text and codes always speak
the same vocabulary.

What it reads right was measured: `shared.metrics.findings_validation`, results/findings_validation.csv.

    python -m shared.metrics.findings --validate ptbxl_database.csv     # precision and recall against the SCP codes
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from shared.ecg.codes import FINDINGS
from shared.metrics import phrases
from shared.metrics.interval import Scores
from shared.metrics.phrases import STATUSES, Lexicon

VERSION = 1
LEXICON = Path(__file__).with_name("findings_lexicon.yaml")
_HEADS = ("infarct", "ischaemia")  # columns of the lexicon's places
_NESTING_GROUPS = {"infarction", "st_t"}
_DESCRIPTIVE = frozenset({"t_wave_abnormality", "t_wave_inversion", "st_depression", "st_elevation"})


@lru_cache(maxsize=1)
def _lexicon() -> Lexicon:
    import yaml

    raw = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    unknown = set(raw["findings"]) - set(FINDINGS)
    if unknown:
        raise ValueError(
            f"{LEXICON.name}: {sorted(unknown)} are not names of shared.ecg.codes.FINDINGS; rename or add them there"
        )
    found = []
    for name, by_status in raw["findings"].items():
        by_status = by_status if isinstance(by_status, dict) else {"present": by_status}
        found += [(phrases.any_of(patterns), (name,), status) for status, patterns in by_status.items()]
    found.append((phrases.any_of(raw["not_findings"]), (), "present"))
    places = {
        place: {head: tuple(sorted(from_codes([code]))) for head, code in zip(_HEADS, codes, strict=True)}
        for place, codes in raw["locations"].items()
    }
    return Lexicon(
        abbreviations=[(re.compile(k), v) for k, v in raw["abbreviations"].items()],
        phrases=found,
        cues=phrases.cue_patterns(raw["cues"]),
        places=[(re.compile(place), by_head) for place, by_head in places.items()],
        located=phrases.located_patterns(raw["location_heads"], "(?:" + "|".join(places) + ")"),
        nesting=frozenset(name for name, finding in FINDINGS.items() if finding.group in _NESTING_GROUPS),
        descriptive=_DESCRIPTIVE,
        causes=frozenset(name for name in FINDINGS if name.endswith("_ischemia")),
        yielding=frozenset({"t_wave_abnormality"}),  # inside "changes due to ischaemia" they are no unspecific ones
    )


@lru_cache(maxsize=200_000)
def _extract_sentence(sentence: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, m.status) for m in phrases.read_sentence(_lexicon(), sentence) for name in m.names)


@lru_cache(maxsize=200_000)
def _extract(text: str) -> tuple[tuple[str, str], ...]:
    out: dict[str, str] = {}
    for _, sentence in phrases.sentences(phrases.normalise(text, _lexicon())):
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


def ratio(sums: np.ndarray, numerator: Sequence[float], denominator: Sequence[float]) -> np.ndarray:
    """Ratio of weighted tp, fp, fn (last axis); NaN where the denominator is 0."""
    below = sums @ np.asarray(denominator, dtype=np.float64)
    return np.divide(
        sums @ np.asarray(numerator, dtype=np.float64), below, out=np.full(below.shape, np.nan), where=below > 0
    )


# (numerator, denominator) of `ratio`: weights of tp, fp, fn.
F1, PRECISION, RECALL = ([2, 0, 0], [2, 1, 1]), ([1, 0, 0], [1, 1, 0]), ([1, 0, 0], [1, 0, 1])


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over findings from sums [..., 3 * n_findings]; findings that nobody says in a resample are left out."""
    by_finding = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, -1)
    f1 = ratio(by_finding, *F1)
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
        Scores(f"finding_{name}{suffix}", VERSION, micro, partial(ratio, numerator=top, denominator=below))
        for name, (top, below) in (("f1", F1), ("precision", PRECISION), ("recall", RECALL))
    ]
    macro = counts[:, :, in_references].reshape(len(counts), -1)
    out.append(Scores(f"finding_macro_f1{suffix}", VERSION, macro, macro_f1))
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
