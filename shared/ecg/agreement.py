"""How well reports are read, in the findings of shared.ecg.codes: precision and recall against what is there.

Simulated reports are written in the layout of MIMIC-IV-ECG and read by its loader; the truth is the list of findings
that each ECG was drawn with (truth.parquet). It knows no doubt: a report hedges ("possible inferior infarct") only
findings that were drawn, weaker ones more often. So hedged mentions are true, certain ones alone must miss them, and
both together show whether anything was overlooked. Reports deny only what was not drawn.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg import mimic_iv_ecg, simulate
from shared.ecg.codes import FINDINGS

# n reports -> bool [n, F], what they are read to say: "" for certain, "_hedged" for certain or hedged
Said = Callable[[Sequence[str]], dict[str, np.ndarray]]


def matrix_of(findings: Sequence[Collection[str]]) -> np.ndarray:
    """bool [n, F] of the findings of n records."""
    return np.array([[name in row for name in FINDINGS] for row in findings], dtype=bool).reshape(-1, len(FINDINGS))


def compare(reports: Sequence[str], truth: np.ndarray, said: Said, unsure: np.ndarray | None = None) -> pd.DataFrame:
    """Per finding: n (records that have it), precision and recall of certain mentions, then of certain or hedged ones.

    truth, unsure: bool [n, F]; where unsure, a record is left out for that finding. The last row, "micro", pools the
    findings that any record has. NaN where nothing stands below the line.
    """
    counts_in = np.ones_like(truth) if unsure is None else ~unsure
    known = (truth & counts_in).any(0)
    n = (truth & counts_in).sum(0)
    table = pd.DataFrame({"finding": [*FINDINGS, "micro"], "n": [*n, n.sum()]})
    for key, ours in said(reports).items():
        ours = ours & counts_in
        tp, yes = (ours & truth).sum(0), ours.sum(0)
        tp, yes = np.append(tp, tp[known].sum()), np.append(yes, yes[known].sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            table[f"precision{key}"], table[f"recall{key}"] = tp / yes, tp / table.n.to_numpy()
    return table


def against_drawn(said: Said, root: Path | None, n_records: int, seed: int) -> pd.DataFrame:
    """`compare` on simulated records. root: a simulated mimic-iv-ecg tree; None writes one of `n_records`."""
    if root is None:
        with tempfile.TemporaryDirectory() as folder:
            simulate.write("mimic-iv-ecg", Path(folder) / "tree", n_records, seed, fs_hz=100)
            return against_drawn(said, Path(folder) / "tree", n_records, seed)
    index = mimic_iv_ecg.read_index(root).set_index("record_id")
    truth = pd.read_parquet(Path(root) / "truth.parquet").set_index("record_id").findings
    return compare(index.report[truth.index].tolist(), matrix_of(truth.tolist()), said)
