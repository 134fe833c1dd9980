"""How well `findings.extract` reads: against the SCP codes of PTB-XL, and against reports read by hand.

Two measurements, because the codes are not what the reports say: cardiologists recoded many ECGs from the signal, and
form statements ("periphere niederspannung", extrasystoles) were often not coded at all. Where text and codes differ in
the samples that were looked at, it is nearly always the LABEL that differs: "anteriorer infarkt" coded ASMI,
"vorhofflattern" coded AFIB, "rechtsschenkelblock" coded IRBBB, niederspannung without LVOLT, "qt-verlaengerung" without
LNGQT, LAFB coded from the axis alone. Agreement with codes is thus a lower bound, close to the truth only for rhythms,
axis and a few others; reports read by hand tell the rest.

The lexicon was shaped on the development half of the patients (`is_development`), which is left out of every number
here. Hand-read reports are from the other half (unique texts that the development half does not have), drawn at random
within language, English over-represented, and labelled by the lexicon's author before the extractor ran on them: one
reader, not blind to the lexicon. Samples 1 and 2 (2: of unusual wording) were then used to correct it (first run:
precision 0.988 and 0.992, recall 0.983 and 0.936); sample 3 never was, and its known errors are left in.

    python -m shared.metrics.findings_validation DATA_ROOT     # writes results/findings_validation.csv
"""

import argparse
import ast
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg.codes import FINDINGS
from shared.metrics.findings import asserted, from_codes

RESULT = Path(__file__).resolve().parents[2] / "results" / "findings_validation.csv"
SOURCES = {  # under DATA_ROOT
    "form_8988rows": "splits/ptbxl_database_form_8988rows.csv.gz",
    "ptbxl_350": "ptb-xl/ptbxl_database.csv",
    "english_500": "splits/ptbxl_report_english_500_fold10.csv",
}
MIN_LIKELIHOOD = 50  # of a diagnostic SCP code; below it the coder was uncertain. 0 means "stated without likelihood".
_AXIS = {"LAD": "left_axis_deviation", "ALAD": "left_axis_deviation", "RAD": "right_axis_deviation",
         "ARAD": "right_axis_deviation"}  # fmt: skip
# A finding may headline where the codes, or the hand-read reports never corrected on, vouch for it.
MIN_CODED, MIN_AGREEMENT = 20, 0.8
MIN_READ, MIN_READ_AGREEMENT = 8, 0.9
UNTOUCHED_SAMPLES = (3,)


def is_development(patient_id: float) -> bool:
    """Rows of these patients (half of them, by hash) were looked at when the lexicon was written."""
    return zlib.crc32(str(int(patient_id)).encode()) % 2 == 1


def ptbxl_rows(path: Path) -> pd.DataFrame:
    """Rows of ptbxl_database.csv that have report text. Raises ValueError where a needed column is missing."""
    rows = pd.read_csv(path)
    missing = {"ecg_id", "patient_id", "report", "scp_codes", "heart_axis"} - set(rows.columns)
    if missing:
        raise ValueError(f"{path}: no column {sorted(missing)}; give rows of ptbxl_database.csv")
    return rows[rows["report"].notna()].reset_index(drop=True)


def ptbxl_labels(rows: pd.DataFrame) -> tuple[list[set[str]], list[set[str]]]:
    """(asserted, uncertain) findings per row, from scp_codes and heart_axis. Uncertain: 0 < likelihood < 50."""
    certain, uncertain = [], []
    for codes, axis in zip(rows["scp_codes"].map(ast.literal_eval), rows["heart_axis"], strict=True):
        sure = from_codes(code for code, likelihood in codes.items() if likelihood == 0 or likelihood >= MIN_LIKELIHOOD)
        sure |= {_AXIS[axis]} if axis in _AXIS else set()
        certain.append(sure)
        uncertain.append(from_codes(codes) - sure)
    return certain, uncertain


def validation_table(
    texts: Iterable[str], label_sets: Sequence[set[str]], uncertain_sets: Sequence[set[str]] | None = None
) -> pd.DataFrame:
    """Per finding: n_codes, n_text, tp, fp, fn, precision, recall of the extractor (hedged mentions count as said).

    uncertain_sets: findings per text on which the labels do not commit themselves; that text is left out for them.
    The last row, "micro", pools the findings that any label asserts. NaN where a ratio has nothing below the line.
    """
    said = [asserted(text) for text in texts]
    unsure = uncertain_sets if uncertain_sets is not None else [set()] * len(said)
    rows = []
    for name in FINDINGS:
        scored = [(name in a, name in b) for a, b, u in zip(said, label_sets, unsure, strict=True) if name not in u]
        text, label = np.array(scored, dtype=bool).reshape(-1, 2).T
        rows.append((name, label.sum(), text.sum(), (text & label).sum(), (text & ~label).sum(), (~text & label).sum()))
    table = pd.DataFrame(rows, columns=["finding", "n_codes", "n_text", "tp", "fp", "fn"])
    pooled = table[table["n_codes"] > 0].drop(columns="finding").sum()
    table = pd.concat([table, pd.DataFrame([{"finding": "micro", **pooled}])], ignore_index=True)
    known = table["n_codes"] > 0  # a vocabulary without a code for the finding says nothing about precision
    table["precision"] = (table["tp"] / (table["tp"] + table["fp"])).where(known)
    table["recall"] = (table["tp"] / (table["tp"] + table["fn"])).where(known)
    return table


def read_by_hand(root: Path, path: Path, samples: Sequence[int]) -> tuple[list[str], list[set[str]]]:
    """(texts, findings) of the hand-read reports: `path` holds sample, source, ecg_id and what the report says.

    In `says`, a finding name stands for itself, an SCP code of an infarct or of ischaemia for its findings.
    """
    wanted = pd.read_csv(path, keep_default_na=False)
    wanted = wanted[wanted["sample"].isin(samples)]
    reports = {source: ptbxl_rows(root / file).set_index("ecg_id")["report"] for source, file in SOURCES.items()}
    texts = [reports[row.source][row.ecg_id] for row in wanted.itertuples()]
    return texts, [{w for w in s.split() if w in FINDINGS} | from_codes(s.split()) for s in wanted["says"]]


def held_out(root: Path, sources: Sequence[str]) -> pd.DataFrame:
    """Rows of the named sources whose patients did not shape the lexicon; each ecg_id once, the first source wins."""
    rows = pd.concat([ptbxl_rows(root / SOURCES[source]) for source in sources], ignore_index=True)
    return rows[~rows["patient_id"].map(is_development)].drop_duplicates("ecg_id").reset_index(drop=True)


def full_table(root: Path, hand: Path) -> pd.DataFrame:
    """Held-out precision and recall per finding: original and English reports against codes, and against reading."""
    table = None
    for prefix, sources in (("", ("form_8988rows", "ptbxl_350")), ("english_", ("english_500",))):
        rows = held_out(root, sources)
        part = validation_table(rows["report"], *ptbxl_labels(rows)).set_index("finding").add_prefix(prefix)
        table = part if table is None else table.join(part)
    for prefix, samples in (("read_", UNTOUCHED_SAMPLES), ("read_all_", (1, 2, 3))):
        read = validation_table(*read_by_hand(root, hand, samples)).rename(columns={"n_codes": "n_said"})
        table = table.join(read.set_index("finding").add_prefix(prefix))
    table["headline"] = _may_headline(table)
    return table.reset_index()


def _may_headline(table: pd.DataFrame) -> pd.Series:
    agreement, read_agreement = (table[[f"{p}precision", f"{p}recall"]].min(axis=1) for p in ("", "read_"))
    by_codes = (table["n_codes"] >= MIN_CODED) & (agreement >= MIN_AGREEMENT)
    by_reading = (table["read_n_said"] >= MIN_READ) & (read_agreement >= MIN_READ_AGREEMENT)
    return (by_codes | by_reading) & (table.index != "micro")


def validated_findings(path: Path = RESULT) -> list[str]:
    """Findings that may headline a result, as measured (column `headline` of the committed table)."""
    table = pd.read_csv(path)
    return table.loc[table["headline"], "finding"].tolist()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m shared.metrics.findings_validation")
    parser.add_argument("root", type=Path, metavar="DATA_ROOT", help="holds " + ", ".join(SOURCES.values()))
    parser.add_argument("--hand", type=Path, default=RESULT.parents[1] / "tests/shared/findings_read_by_hand.csv")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    table = full_table(args.root, args.hand)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out, index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
