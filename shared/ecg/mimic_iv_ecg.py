"""MIMIC-IV-ECG 1.0 (Gow et al. 2023, doi:10.13026/4nqg-sb35): 800,035 ECGs, 12 leads, 10 s, 500 Hz, machine statements.

Layout: record_list.csv (study_id, path), machine_measurements.csv (study_id, report_0 .. report_17),
files/pNNNN/pSUBJECT/sSTUDY/STUDY. Serves MEIT (its first report data set), K-MERL and SuPreME. The public MEIT code
sorts both tables and pairs them by row number; here they are joined on study_id.
"""

import re
import warnings
from pathlib import Path

import pandas as pd

from shared.ecg.record import EcgReadError
from shared.ecg.wfdb_io import make_index, read_table

NAME = "mimic-iv-ecg"
FS_HZ = 500.0
REPORT_COLUMN = re.compile(r"report_(\d+)")
DECORATION = " \t\r\n*=-"  # around machine notices: "*** Poor data quality ***", "--- Warning ---"


def read_index(root: Path) -> pd.DataFrame:
    """One row per row of record_list.csv, in its order, with INDEX_COLUMNS; no waveform is touched.

    record_id = study_id, patient_id = subject_id, report = `join_statements` of report_0 .. report_17; no labels,
    folds, ages or sexes. A record without a row of measurements keeps its waveform and an empty report; measurements
    without a record are left out. Both are counted in `.attrs["warnings"]` and warned of; empty reports are counted.
    Raises EcgReadError: missing file, bad csv, duplicate id, mismatched subject_id.
    """
    list_csv, text_csv = Path(root) / "record_list.csv", Path(root) / "machine_measurements.csv"
    records = read_table(list_csv, ("subject_id", "study_id", "path"))
    texts = read_table(text_csv, ("subject_id", "study_id", "report_0"), optional=REPORT_COLUMN.fullmatch)
    for csv, table in ((list_csv, records), (text_csv, texts)):
        twice = table.study_id[table.study_id.duplicated()]
        if len(twice):
            raise EcgReadError(csv, "duplicate id", f"{twice.nunique()} study_ids, first {twice.iloc[0]}")
    reports = pd.DataFrame({"study_id": texts.study_id, "subject": texts.subject_id, "report": _reports(texts)})
    joined = records.merge(reports, on="study_id", how="left", validate="one_to_one")
    matched = joined.subject.notna()
    wrong = joined[matched & (joined.subject != joined.subject_id)]
    if len(wrong):
        raise EcgReadError(
            text_csv, "mismatched subject_id", f"{len(wrong)} rows, first study_id {wrong.study_id.iloc[0]}"
        )
    n_records_alone, n_texts_alone = int((~matched).sum()), len(texts) - int(matched.sum())
    if n_records_alone or n_texts_alone:
        warnings.warn(
            f"{root}: {n_records_alone} records without measurements, {n_texts_alone} measurements without record "
            "(unmatched study_id)",
            stacklevel=2,
        )
    columns = {
        "record_id": joined.study_id,
        "patient_id": joined.subject_id,
        "path": joined.path.str.removesuffix(".hea"),
        "report": joined.report.fillna(""),
        "labels": [[] for _ in range(len(joined))],
        "fold": 0,
        "age": float("nan"),
        "sex": "",
    }
    counts = {
        "unmatched study_id in record_list.csv": n_records_alone,
        "unmatched study_id in machine_measurements.csv": n_texts_alone,
        "empty report": (columns["report"] == "").sum(),
    }
    return make_index(columns, list_csv, counts)


def clean_statement(text: str) -> str:
    """One machine statement without its decoration: white space collapsed, `* = -` and a final stop gone, EKG -> ECG.

    After the text cleaning of the public MEIT code, which strips the ends of the joined report only; lower-casing is
    left to the papers.
    """
    return " ".join(text.replace("EKG", "ECG").split()).strip(DECORATION).rstrip(DECORATION + ".")


def join_statements(statements: list[str]) -> str:
    """The statements that are not empty after cleaning, joined by ". "."""
    return ". ".join(filter(None, map(clean_statement, statements)))


def _reports(texts: pd.DataFrame) -> list[str]:
    """`join_statements` of every row; each distinct statement is cleaned once: millions of cells hold few of them."""
    names = sorted((n for n in texts.columns if REPORT_COLUMN.fullmatch(n)), key=lambda n: int(n.split("_")[1]))
    cleaned = {text: clean_statement(text) for name in names for text in texts[name].unique()}
    columns = [texts[name].map(cleaned) for name in names]
    return [". ".join(filter(None, row)) for row in zip(*columns, strict=True)]
