"""Labels without reports: what the simulator drew (control for `no-expert-annotation`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from supreme.labels import Labels
from supreme.terminology import ancestors, term


def truth_labels(root: Path, record_ids: Sequence[str], min_records: int) -> Labels:
    """Labels of simulated records: a term per finding that was drawn, and its wider terms, as `corrected` sets them.

    root: a simulated tree; a term needs min_records. Every label is in the loss.
    """
    drawn = pd.read_parquet(Path(root) / "truth.parquet").set_index("record_id").findings
    sets = [{i for f in drawn[r] for i in (f, *ancestors(f))} for r in record_ids]
    ids = sorted({i for row in sets for i in row})
    y = np.array([[i in row for i in ids] for row in sets], dtype=np.float32)
    n = y.sum(0)
    kept = sorted((c for c in range(len(ids)) if n[c] >= min_records), key=lambda c: (-n[c], ids[c]))
    if not kept:
        raise ValueError(f"no finding was drawn in {min_records} of {len(y)} records; lower extract.min_records")
    terms, mask = [term(ids[c]) for c in kept], np.ones((len(y), len(kept)), bool)
    return Labels(terms, y[:, kept], mask, {"terms_drawn": len(ids)})
