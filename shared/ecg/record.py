"""One ECG as every loader hands it out: physical units, names, ids. Never a normalised tensor.

Lead order is fixed by NAME on reading, because releases differ: MIMIC-IV-ECG stores aVF before aVL, PTB-XL writes AVR,
PTBDB lower case.
"""

from dataclasses import dataclass

import numpy as np

from shared.store import ReadError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Columns of every data set's index (`read_index` of ptbxl, mimic_iv_ecg, cpsc2018, csn), one row per record.
INDEX_COLUMNS = (
    "record_id",  # str, unique within the data set
    "patient_id",  # str; the record id where a release names no patients
    "path",  # str, relative to the data set's root, without extension
    "report",  # str, "" where the release has no text
    "labels",  # list[str], the release's own codes: SCP-ECG (PTB-XL) or SNOMED CT (CinC); [] where it has none
    "fold",  # int, official fold; 0 where the release has none
    "age",  # float, years, NaN where unknown
    "sex",  # str, "F", "M" or ""
)


class EcgReadError(ReadError):
    """A record that cannot be used as it is."""


@dataclass(frozen=True)
class EcgRecord:
    """A 12-lead ECG.

    signal_mv: [12, n_samples] float32 in mV, rows in the order of LEADS. fs_hz: samples per second.
    n_interpolated: samples, over all leads, that were missing (gaps of at most 40 ms) and were interpolated.
    """

    record_id: str
    patient_id: str
    dataset: str
    signal_mv: np.ndarray
    fs_hz: float
    report: str = ""
    labels: tuple[str, ...] = ()
    fold: int = 0
    age: float = float("nan")
    sex: str = ""
    n_interpolated: int = 0
