"""What the caches of the stages can tell beyond their counts: how long the tail is, and whether the audit is right.

`tail` serves the statistics of A4 and S7, `audit_scores` those of A2 and A3: in the simulator every defect is known.
Both are collected once and committed; tables and figures are made of what was collected.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from synth_medvlp.config import Config
from synth_medvlp.datasets import mimic_cxr_jpg
from synth_medvlp.defects import DEFECTS
from synth_medvlp.entities import TYPES, entities, gini, ner
from synth_medvlp.generate import audited, entity_pool, real, synthetic
from synth_medvlp.quality import annotate
from synth_medvlp.screening import NO, QUESTIONS, is_bad
from synth_medvlp.trees import tree


def tail(cfg: Config) -> dict:
    """Type -> real, synthetic: how often reports name each string, most frequent first, and Gini of the real strings.

    real: mentions in the reports that the pool was mined from; synthetic: packed reports with the string. A string of
    the pool that no report names is 0.
    """
    (pool, _), table = entity_pool(cfg), synthetic(cfg).table
    used: Counter = Counter()
    for mentions in ner(cfg.ner)((table.findings + " " + table.impression).tolist()):
        used.update(entities(mentions))
    found = {}
    for kind in TYPES:
        names = {*pool.get(kind, ()), *(name for name, k in used if k == kind)}
        sides = {"real": [pool[kind][n] for n in names], "synthetic": [used[n, kind] for n in names]}
        found[kind] = {side: sorted(counts, reverse=True) for side, counts in sides.items()}
        found[kind]["gini"] = {side: gini(counts) for side, counts in sides.items()}
    return found


def audit_scores(cfg: Config) -> list[list]:
    """Rows (what, images, found, recall, precision) of the audit against the simulator's truth; [] of real data.

    Of a defect: images with it, those of them that A2 or A3 dropped, and its share of all that were dropped. Of a
    question: images that deserve NO, and those of them that got it.
    """
    if cfg.data.simulate is None:
        return []
    pairs, audit = real(cfg), audited(cfg)
    truth = pd.read_parquet(tree(mimic_cxr_jpg.NAME, cfg.data.simulate)[0] / "truth.parquet")
    defects = truth.set_index("image_id").defect.reindex(pairs.table.id).to_numpy()
    return scores(defects, audit.answers, audit.dropped, is_bad(audit.answers, cfg.audit.rule))


def scores(defects: Sequence[str], answers: np.ndarray, dropped: np.ndarray, bad: np.ndarray) -> list[list]:
    """The rows of `audit_scores`. defects: per image "" or as the simulator names it; answers: int8 [n, 6]; dropped:
    bool [n] by A2 and A3; bad: those by A2."""
    kinds = np.array([d.partition(":")[0] for d in defects])
    in_image = np.isin(kinds, [d for d in DEFECTS if d != "mismatched_report"])
    rows = [_row(f"dropped by A2: {d.replace('_', ' ')}", kinds == d, bad) for d in DEFECTS]
    rows += [_row("dropped by A2: any defect of the image", in_image, bad)]
    rows += [_row(f"dropped by A2 or A3: {d.replace('_', ' ')}", kinds == d, dropped) for d in DEFECTS]
    rows += [_row("dropped by A2 or A3: any defect of the image", in_image, dropped)]
    deserved = np.array([annotate(d) for d in defects], np.int8) == NO
    said = np.asarray(answers) == NO
    return rows + [_row(f"NO to {q}", deserved[:, i], said[:, i]) for i, q in enumerate(QUESTIONS)]


def _row(what: str, true: np.ndarray, said: np.ndarray) -> list:
    found = int((true & said).sum())
    return [what, int(true.sum()), found, *(found / int(n.sum()) if n.any() else None for n in (true, said))]
