"""How good the extracted labels are: against what the simulator drew, and against real PTB-XL reports.

    python -m supreme.extract --agreement

Simulated: shared.ecg.agreement. Real: SCP codes, which are not what the reports say (how they differ:
shared.metrics.findings_validation), per language of the report; and reports read by hand, which are. All of them speak
in the findings of shared.ecg.codes. Patients on whose reports the shared lexicon was shaped are left out; what
`lexicon.yaml` adds may have been shaped on others, so that real reports are not a wholly unseen set.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.agreement import against_drawn, compare, matrix_of
from shared.ecg.codes import FINDINGS
from shared.metrics import findings_validation as validation
from shared.runs.config import data_root
from supreme.extract import ExtractConfig, extraction
from supreme.labels import counting
from supreme.terminology import findings_of
from supreme.thresholds import small_encoder

SAID = {"": ("definite",), "_hedged": ("definite", "hedged")}
BY_HAND = Path(validation.RESULT).parents[1] / "tests" / "shared" / "findings_read_by_hand.csv"
# Words that only one language of PTB-XL has; a report goes to the language with the most of them.
LANGUAGES = {
    "de": r"\w*rhythmus|lagetyp|\w*typ|\w*infarkt|alter|alt|nicht|\w*schenkelblock|normales|\w*hypertrophie|vorhof\w*|"
    r"unspezifisch\w*|verdacht|\w*senkung|\w*hebung|\w*spannung|\w*block|kein\w*|\w*systole|unbest\w*|wahrscheinlich|ekg",
    "en": r"rhythm|normal|axis|waves?|infarct\w*|is|are|with|the|left|right|changes?|no|ecg|of|in|possible|age|be|t|st",
    "sv": r"\w*rytm|v[aä]nster|h[oö]ger|f[oö]rmaks\w*|\w*sk[aä]nkelblock|ej|inga|och|normalt|\w*axel|\w*h[oö]jning|"
    r"b[oö]r|\w*[oö]verv[aä]gas|ospecifik\w*|[aå]lder|avvikande|\w*f[oö]r[aä]ndring\w*|sannolikt|f[oö]rdr[oö]jd|d[aå]lig",
}

NAMES = {"de": "German", "en": "English", "sv": "Swedish", "?": "language not told"}


# --- what reports say, in findings ---


def said(reports: Sequence[str], encode: Callable, cfg: ExtractConfig) -> dict[str, np.ndarray]:
    """Column suffix of SAID -> bool [n, F]: does a report state the finding so? Wider terms are not added."""
    found, number, out = extraction(cfg, reports, encode), {name: i for i, name in enumerate(FINDINGS)}, {}
    for key, certainties in SAID.items():
        rows = []
        for reading, terms in zip(found.readings, found.found, strict=True):
            stated = {t.id for e, t in zip(reading.entities, terms, strict=True) if t and e.certainty in certainties}
            rows.append(sorted({number[f] for id_ in stated for f in findings_of(id_)}))
        out[key] = ((found.of_report @ counting(rows, len(FINDINGS))) > 0).toarray()
    return out


def agreement(
    root: Path | None = None, n_records: int = 2000, seed: int = 7, encode: Callable | None = None,
    cfg: ExtractConfig | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`against_drawn` of `definite`, then of definite or hedged."""
    read = partial(said, encode=encode or small_encoder(), cfg=cfg or ExtractConfig())
    return against_drawn(read, root, n_records, seed)


# --- real reports ---


def language(report: str) -> str:
    """ "de", "en", "sv", or "?" where the words do not tell."""
    words = re.findall(r"[^\W\d_]+", report.lower())
    n = {key: sum(re.fullmatch(pattern, word) is not None for word in words) for key, pattern in LANGUAGES.items()}
    first, second = sorted(n.values(), reverse=True)[:2]
    return max(n, key=n.get) if first > second else "?"


def real_agreement(root: Path, encode: Callable | None = None, cfg: ExtractConfig | None = None) -> pd.DataFrame:
    """`compare` on PTB-XL under `root` (DATA_ROOT), with a column `against`: SCP codes by language of the report, codes
    of reports that others put into English, and reports read by hand (all, and the sample that corrected nothing)."""
    tables, read = {}, partial(said, encode=encode or small_encoder(), cfg=cfg or ExtractConfig())
    for sources, name in ((("form_8988rows", "ptbxl_350"), ""), (("english_500",), "codes, English version")):
        rows = validation.held_out(root, sources)
        spoken = rows.report.map(language) if not name else pd.Series("", rows.index)
        for key in sorted(set(spoken)):
            part = rows[spoken == key]
            sure, unsure = map(matrix_of, validation.ptbxl_labels(part))
            tables[name or f"codes, {NAMES[key]} ({len(part)})"] = compare(part.report.tolist(), sure, read, unsure)
    if BY_HAND.exists():
        for samples, name in (((1, 2, 3), "read by hand"), (validation.UNTOUCHED_SAMPLES, "read by hand, untouched")):
            texts, findings = validation.read_by_hand(root, BY_HAND, samples)
            tables[f"{name} ({len(texts)})"] = compare(texts, matrix_of(findings), read)
    return pd.concat([table.assign(against=name) for name, table in tables.items()], ignore_index=True)


def print_agreement() -> pd.DataFrame:
    """Simulated first; PTB-XL where DATA_ROOT holds it."""
    table = agreement()
    print("Simulated MIMIC-IV-ECG, against what was drawn:")
    print(table.to_string(index=False, float_format="%.3f"))
    root = data_root()
    missing = [file for file in validation.SOURCES.values() if not (root / file).exists()]
    if missing:
        print(f"\nPTB-XL: not measured, {root} has no {', '.join(missing)}")
        return table
    real = real_agreement(root)
    for name, part in real.groupby("against", sort=False):
        print(f"\nPTB-XL, {name}:")
        print(part[part.n > 0].drop(columns="against").to_string(index=False, float_format="%.3f"))
    return pd.concat([table.assign(against="simulated"), real], ignore_index=True)
