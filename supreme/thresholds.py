"""tau_merge and tau_map from hand-written pairs of names (reference: M2, Threshold calibration).

`pairs.csv` says of two names whether they are synonyms, antonyms (another side, chamber, degree, direction ..), one a
subtype of the other, or unrelated; a name alone is one that no term of the terminology means. The threshold with
precision >= 0.95 and the best recall is chosen on one half of the pairs and measured on the other. Cosines of one
encoder are not those of another: choose anew for each. The words of the guards were corrected on these pairs, so that
what guards do is not measured on unseen names; thresholds are.

    python -m supreme.extract --thresholds     for the encoder of the laptop tier
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from shared.runs.config import cache_root
from supreme.mapping import Names
from supreme.merge import guards, signature, unit
from supreme.terminology import find

PAIRS = Path(__file__).with_name("pairs.csv")
RELATIONS = ("synonym", "antonym", "subtype", "unrelated")
MIN_PRECISION = 0.95


def pairs() -> pd.DataFrame:
    """a, b, relation, half (0 to choose on, 1 to report): every other pair of each relation, in the file's order."""
    table = pd.read_csv(PAIRS, keep_default_na=False)
    if wrong := set(table.relation) - set(RELATIONS):
        raise ValueError(f"{PAIRS.name}: relations {sorted(wrong)}; one of {', '.join(RELATIONS)}")
    return table.assign(half=table.groupby([table.relation, table.b == ""]).cumcount() % 2)


def small_encoder() -> Callable[[list[str]], np.ndarray]:
    """The encoder of the laptop tier, fitted on the terminology and the names of the pairs."""
    from shared.vectors import TextConfig
    from supreme.text import embed

    table = pairs()
    names = sorted({*table.a, *table.b} - {""})
    return partial(embed, cfg=TextConfig(encoder="lsa"), cache_dir=cache_root() / "text", fit_on=names)


@dataclass
class Scored:
    """Pairs with a score (cosine, -1 under a guard) and whether yes is right; half as in `pairs`. n_right: yes
    answers that there are to be found, per half."""

    score: np.ndarray
    right: np.ndarray
    half: np.ndarray
    n_right: tuple[int, int]

    def at(self, tau: float, half: int) -> tuple[float, float]:
        """(precision, recall) of yes for scores at or above tau; precision 1 where nothing is said."""
        yes = (self.score >= tau) & (self.half == half)
        tp = int((yes & self.right).sum())
        return (tp / int(yes.sum()) if yes.any() else 1.0), tp / max(self.n_right[half], 1)

    def choose(self) -> float:
        """The threshold with precision >= MIN_PRECISION and the best recall on half 0, the lowest with both; midway to
        the next score below."""
        scores = np.unique(self.score[(self.half == 0) & (self.score > 0)])
        fit = [(self.at(tau, 0)[1], -tau) for tau in scores if self.at(tau, 0)[0] >= MIN_PRECISION]
        if not fit:
            return 1.0
        tau = -max(fit)[1]
        below = scores[scores < tau]
        return float((tau + below[-1]) / 2 if len(below) else tau)


def merge_scores(encode: Callable, protocol: str = "corrected", guarded: bool = True) -> Scored:
    """Stage 3: synonyms are to be merged, nothing else. What the terminology knows is not used."""
    table = pairs().query("b != ''")
    a, b = unit(encode(table.a.tolist())), unit(encode(table.b.tolist()))
    score = (a * b).sum(1)
    if guarded:
        n = len(guards(protocol))
        apart = [signature(x)[:n] != signature(y)[:n] for x, y in zip(table.a, table.b, strict=True)]
        score[np.array(apart)] = -1
    right = (table.relation == "synonym").to_numpy()
    half = table.half.to_numpy()
    return Scored(score, right, half, tuple(int((right & (half == h)).sum()) for h in (0, 1)))


def map_scores(encode: Callable, protocol: str = "corrected", margin: float = 0.0) -> Scored:
    """Stage 4: names that the terminology does not know. Beside a synonym that it knows, that one's term is right and
    every other wrong; in another relation, the partner's term is wrong; for a name alone, every term is."""
    table, names = pairs(), Names(encode, protocol)
    rows = [
        (a, find(b), r.relation == "synonym", r.half)
        for r in table.itertuples()
        for a, b in ((r.a, r.b), (r.b, r.a))
        if a and find(a) is None and (not b or find(b) is not None)
    ]
    vectors = unit(encode([name for name, *_ in rows]))
    score, right = [], []
    for (name, partner, synonym, _), vector in zip(rows, vectors, strict=True):
        near, _ = names.nearest(name, vector)
        ahead = len(near) == 1 or (len(near) > 1 and near[0][1] - near[1][1] >= margin)
        same = bool(near) and partner is not None and near[0][0] == partner.id
        # In a pair of another relation, a third term may well be right: only the partner's is known to be wrong.
        counts = bool(near) and ahead and (synonym or partner is None or same)
        score.append(near[0][1] if counts else -1.0)
        right.append(synonym and same)
    half = np.array([h for *_, h in rows])
    synonyms = np.array([synonym for _, _, synonym, _ in rows])
    return Scored(np.array(score), np.array(right), half, tuple(int((synonyms & (half == h)).sum()) for h in (0, 1)))


def calibrate(encode: Callable, protocol: str = "corrected", margin: float = 0.02) -> pd.DataFrame:
    """stage, tau, and precision and recall on the half it was chosen on and on the other; the guards' share is shown by
    the row without them."""
    stages = {
        "merge": merge_scores(encode, protocol),
        "merge, no guards": merge_scores(encode, protocol, guarded=False),
        "map": map_scores(encode, protocol, margin),
    }
    rows = []
    for stage, scored in stages.items():
        tau = scored.choose()
        rows.append((stage, tau, *scored.at(tau, 0), *scored.at(tau, 1), *scored.n_right))
    names = ["stage", "tau", "precision", "recall", "other_precision", "other_recall", "n_right", "other_n_right"]
    return pd.DataFrame(rows, columns=names)


def print_thresholds() -> pd.DataFrame:
    table = calibrate(small_encoder())
    print(table.to_string(index=False, float_format="%.3f"))
    return table
