"""ECG findings read from report text, and report quality as agreement on them (MEIT: n-gram
scores reward template text, this one asks whether the same things are said about the heart).

A lexicon (`findings_lexicon.yaml`) of English, German and Swedish phrases finds mentions of the findings named in
`shared.ecg.codes`; negation and hedge cues decide whether a mention is `present`, `uncertain` or `absent` (the engine
is `shared.metrics.phrases`). All three languages are tried on every text: reports mix them. "Otherwise normal ECG" is
an uncertain normal. Where a report says a finding twice, present wins over uncertain, uncertain over absent. Infarcts
and ischaemia become the findings of the SCP codes of their place (`from_codes`), so that text and codes always speak
the same vocabulary.

What it reads right was measured: `shared.metrics.findings_validation`, results/findings_validation.csv.
"""

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


def asserted(text: str) -> frozenset[str]:
    """Findings that count as said: hedged mentions do."""
    return frozenset(name for name, status in _extract(text) if status in STATUSES[1:])


# --- scores ---


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


def agreement(
    references: Sequence[Iterable[tuple]],
    hypotheses: Sequence[Iterable[tuple]],
    names: Sequence[str],
    suffix: str = "",
    version: int = VERSION,
) -> dict[str, Scores]:
    """finding_{f1, precision, recall, macro_f1}<suffix> and finding_f1/<name><suffix> of sets of tuples (name, ...).

    A tuple that both sides have is a true positive of its name. Micro scores pool all names; the macro score averages
    F1 over the names that any reference has, so that two models scored on the same references are averaged over the
    same findings. Raises ValueError for lists of different length and where no reference has any of the names.
    """
    if len(references) != len(hypotheses) or not len(references):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: give as many, at least one")
    column = {name: k for k, name in enumerate(names)}
    counts = np.zeros((len(references), 3, len(column)))  # tp, fp, fn
    for i, (reference, hypothesis) in enumerate(zip(map(set, references), map(set, hypotheses), strict=True)):
        for j, items in enumerate((reference & hypothesis, hypothesis - reference, reference - hypothesis)):
            for item in items:
                if item[0] in column:
                    counts[i, j, column[item[0]]] += 1
    in_references = counts[:, [0, 2]].any(axis=(0, 1))
    if not in_references.any():
        raise ValueError("no reference asserts any of the findings: nothing to score")
    micro, ratios = counts.sum(axis=2), {"f1": F1, "precision": PRECISION, "recall": RECALL}
    reduce = {name: partial(ratio, numerator=top, denominator=below) for name, (top, below) in ratios.items()}
    out = [Scores(f"finding_{name}{suffix}", version, micro, how) for name, how in reduce.items()]
    macro = counts[:, :, in_references].reshape(len(counts), -1)
    out.append(Scores(f"finding_macro_f1{suffix}", version, macro, macro_f1))
    out += [Scores(f"finding_f1/{n}{suffix}", version, counts[:, :, k], reduce["f1"]) for n, k in column.items()]
    return {score.name: score for score in out}


def finding_scores(
    references: Sequence[str], hypotheses: Sequence[str], findings: Sequence[str] | None = None
) -> dict[str, Scores]:
    """Finding-level agreement of generated with reference reports, see `agreement`; micro and macro scores alone.

    findings: the ones to score (default: all). A hedged mention counts as asserted in reference and hypothesis alike;
    absent and unmentioned are the same. Raises ValueError for unknown findings, and as `agreement` does.
    """
    names = list(FINDINGS) if findings is None else list(findings)
    if set(names) - set(FINDINGS):
        raise ValueError(f"unknown findings {sorted(set(names) - set(FINDINGS))}; see shared.ecg.codes.FINDINGS")
    said = [[{(name,) for name in asserted(text)} for text in side] for side in (references, hypotheses)]
    return {name: score for name, score in agreement(*said, names).items() if "/" not in name}


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
