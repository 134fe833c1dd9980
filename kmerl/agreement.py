"""How well the dictionary reads simulated reports: `python -m kmerl.extract --agreement` (shared.ecg.agreement).

What one entity implies for another is left out: the simulator's findings imply nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kmerl import dictionary
from kmerl.extract import split
from shared.ecg.agreement import against_drawn
from shared.ecg.codes import FINDINGS

SAID = {"": ("affirmed",), "_hedged": ("affirmed", "uncertain")}


def agreement(root: Path | None = None, n_records: int = 2000, seed: int = 7) -> pd.DataFrame:
    """`against_drawn` of `affirmed`, then of affirmed or uncertain."""
    return against_drawn(said, root, n_records, seed)


def said(reports: Sequence[str]) -> dict[str, np.ndarray]:
    """Column suffix of SAID -> bool [n, F]: does the report say the finding so, the second pass agreeing?"""
    entity = dictionary.dictionary().finding
    read = {s: dictionary.verify(s, dictionary.read(s)) for s in {s for report in reports for s in split(report)}}
    out = {}
    for key, statuses in SAID.items():
        found = [[f for s in split(report) for f in read[s] if f.status in statuses] for report in reports]
        there = [{f.entity for f in row if f.verdict == "confirmed"} for row in found]
        out[key] = np.array([[entity[name] in row for name in FINDINGS] for row in there], dtype=bool)
    return out
