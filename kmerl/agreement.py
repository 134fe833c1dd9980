"""How well the dictionary reads: precision and recall against what the simulator drew.

    python -m kmerl.extract --agreement

Simulated reports are written in the layout of MIMIC-IV-ECG and read by its loader; the truth is the list of findings
that each ECG was drawn with (truth.parquet). The truth knows no doubt: a report hedges ("possible inferior infarct")
only findings that were drawn, weaker ones more often. So hedged mentions are true, `affirmed` alone must miss them, and
`affirmed or uncertain` shows whether anything was overlooked. Reports deny only what was not drawn.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from kmerl import dictionary
from kmerl.extract import split
from shared.ecg import mimic_iv_ecg, simulate
from shared.ecg.codes import FINDINGS


def agreement(root: Path | None = None, n_records: int = 2000, seed: int = 7) -> pd.DataFrame:
    """Per finding: n (records drawn with it), precision and recall of `affirmed`, then of affirmed or uncertain.

    root: a simulated mimic-iv-ecg tree; None writes one of `n_records` for the purpose. The last row, "micro", pools
    all findings. What one entity implies for another is left out: the simulator's findings imply nothing. NaN where
    nothing stands below the line.
    """
    if root is None:
        with tempfile.TemporaryDirectory() as folder:
            simulate.write("mimic-iv-ecg", Path(folder) / "tree", n_records, seed, fs_hz=100)
            return agreement(Path(folder) / "tree")
    index = mimic_iv_ecg.read_index(root).set_index("record_id")
    truth = pd.read_parquet(Path(root) / "truth.parquet").set_index("record_id").findings
    drawn = np.array([[name in findings for name in FINDINGS] for findings in truth], dtype=bool)  # [n, F]
    said = {"": ("affirmed",), "_hedged": ("affirmed", "uncertain")}
    counts = {key: _counts(drawn, _read(index.report[truth.index], statuses)) for key, statuses in said.items()}
    table = pd.DataFrame({"finding": [*FINDINGS, "micro"], "n": [*drawn.sum(0), drawn.sum()]})
    for key, (tp, n_said) in counts.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            table[f"precision{key}"], table[f"recall{key}"] = tp / n_said, tp / table.n.to_numpy()
    return table


def _counts(drawn: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives and mentions per finding, with the sum of each as last item."""
    tp, n_said = (drawn & said).sum(0), said.sum(0)
    return np.append(tp, tp.sum()), np.append(n_said, n_said.sum())


def _read(reports: pd.Series, statuses: tuple[str, ...]) -> np.ndarray:
    """bool [n, F]: does the report say the finding with one of these statuses, the second pass agreeing?"""
    entity = dictionary.dictionary().finding
    read = {s: dictionary.verify(s, dictionary.read(s)) for s in {s for report in reports for s in split(report)}}
    rows = []
    for report in reports:
        found = (f for s in split(report) for f in read[s])
        there = {f.entity for f in found if f.status in statuses and f.verdict == "confirmed"}
        rows.append([entity[name] in there for name in FINDINGS])
    return np.array(rows, dtype=bool)
