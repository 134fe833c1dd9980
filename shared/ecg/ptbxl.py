"""PTB-XL 1.0.3 (Wagner et al., Sci Data 7:154, 2020; doi:10.13026/kfzx-aw45): 12 leads, 10 s, at 500 and at 100 Hz.

Layout: ptbxl_database.csv (one row per record), records500/NNNNN/NNNNN_hr and records100/NNNNN/NNNNN_lr. Serves MEIT
(its second report data set) and, through the SCP codes, K-MERL and SuPreME. Reports are German for the most part, some
English or Swedish; the English `report_en` that MEIT used is not part of the release.
"""

import ast
from pathlib import Path

import pandas as pd

from shared.ecg.record import EcgReadError
from shared.ecg.wfdb_io import age_years, make_index, read_table

NAME = "ptb-xl"
FS_HZ = 500.0
SEX = {"0": "M", "1": "F"}  # the release codes male 0, female 1 (Table 2 of its paper)
PATH_COLUMN = {500.0: "filename_hr", 100.0: "filename_lr"}


def read_index(root: Path, fs_hz: float = FS_HZ, report_column: str = "report") -> pd.DataFrame:
    """One row per row of ptbxl_database.csv, in its order, with INDEX_COLUMNS.

    fs_hz: 500 or 100, chooses the files. report_column: another column with text, such as the `report_en` of a
    translated table.
    labels: all SCP codes of a record, whatever their likelihood (0 means "not stated", not "absent").
    Raises EcgReadError: missing file, bad csv, duplicate id, malformed scp_codes, malformed strat_fold. Empty reports
    stay and are counted in `.attrs["warnings"]`. A row whose files are absent fails when it is read.
    """
    if float(fs_hz) not in PATH_COLUMN:
        raise ValueError(f"PTB-XL has no files at {fs_hz} Hz; choose 500 or 100")
    path_column = PATH_COLUMN[float(fs_hz)]
    csv = Path(root) / "ptbxl_database.csv"
    required = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", report_column, path_column)
    table = read_table(csv, required)
    reports = table[report_column].str.split().str.join(" ")
    columns = {
        "record_id": table.ecg_id.map(_integer),
        "patient_id": table.patient_id.map(_integer),
        "path": table[path_column].str.removesuffix(".hea"),
        "report": reports,
        "labels": [_codes(csv, *row) for row in zip(table.ecg_id, table.scp_codes, strict=True)],
        "fold": [_fold(csv, *row) for row in zip(table.ecg_id, table.strat_fold, strict=True)],
        "age": table.age.map(age_years),
        "sex": table.sex.map(_integer).map(SEX).fillna(""),
    }
    return make_index(columns, csv, {"empty report": (reports == "").sum()})


def _integer(text: str) -> str:
    return text.strip().removesuffix(".0")  # the release writes patient 15709 as "15709.0"


def _codes(csv: Path, ecg_id: str, text: str) -> list[str]:
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise EcgReadError(csv, "malformed scp_codes", f"ecg_id {ecg_id}: {text!r}") from error
    if not isinstance(codes, dict) or not all(isinstance(code, str) for code in codes):
        raise EcgReadError(csv, "malformed scp_codes", f"ecg_id {ecg_id}: {text!r}")
    return list(codes)


def _fold(csv: Path, ecg_id: str, text: str) -> int:
    fold = _integer(text)
    if fold not in {str(number) for number in range(1, 11)}:
        raise EcgReadError(csv, "malformed strat_fold", f"ecg_id {ecg_id}: {text!r}, 1 to 10 expected")
    return int(fold)
