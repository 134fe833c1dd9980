"""Findings on generated ECG reports: what the scoring of MEIT's public code does to committed reports."""

from functools import cache

import numpy as np
import pandas as pd

from docs.audit.row import LAPTOP, SEEDS, Row, compare, exact, minus, over_draws, predictions
from meit.data import prompt_text
from meit.instructions import FIXED_INSTRUCTION
from meit.protocols import ASSISTANT_TAG
from shared.ecg.simulate import simulate
from shared.ecg.wfdb_io import fill_short_gaps
from shared.metrics.findings import finding_scores
from shared.metrics.findings_validation import validated_findings
from shared.metrics.interval import Scores
from shared.metrics.text import DocumentFrequencies, document_frequencies, score_texts

MODELS = {"MEIT": "ecg", "another record's ECG": "shuffle", "majority report": "majority"}
GAPS = {f"MEIT minus {other}": ("MEIT", other) for other in ("another record's ECG", "majority report")}
LEFT_IN = {"tag left in": ASSISTANT_TAG, "prompt left in": prompt_text(FIXED_INSTRUCTION)}
N_ORDERS = 200
N_SIGNALS = 200


@cache
def reports(kind: str) -> tuple[pd.DataFrame, ...]:
    """Reports written from one kind of input, one table per seed."""
    tables = [predictions("meit", "meit", seed) for seed in SEEDS]
    return tuple(t[t.input == kind].reset_index(drop=True) for t in tables)


def _score(table: pd.DataFrame, df: DocumentFrequencies, metrics: tuple, left_in: str = "") -> dict[str, Scores]:
    texts = ([left_in + t for t in side] for side in (table.reference, table.prediction))
    return score_texts(*texts, df, metrics)


NO_DF = DocumentFrequencies(2, {})  # every n-gram alike: the weights are constant and cancel


def _rows(what: str, published: dict[str, list[Scores]], corrected: dict[str, list[Scores]]) -> list[Row]:
    """One row per model, and one for what MEIT gains over the models whose text cannot depend on the ECG at hand."""
    patients = reports("ecg")[0].patient
    rows = [compare(f"{label}{what}", published[label], corrected[label], patients, LAPTOP) for label in MODELS]
    for label, (a, b) in GAPS.items():
        sides = ([minus(x, y) for x, y in zip(side[a], side[b], strict=True)] for side in (published, corrected))
        rows.append(compare(f"{label}{what}", *sides, patients, LAPTOP))
    return rows


def contaminated_text() -> list[Row]:
    """Only the text in front of both sides differs: same metric, corpus level."""
    bleu = {
        left_in: {m: [_score(t, NO_DF, ("bleu",), left_in)["bleu_4"] for t in reports(k)] for m, k in MODELS.items()}
        for left_in in ("", *LEFT_IN.values())
    }
    return [row for how, left_in in LEFT_IN.items() for row in _rows(f", {how}: BLEU-4", bleu[left_in], bleu[""])]


def constant_df_cider() -> list[Row]:
    """Only the document frequencies differ: 1 for every n-gram, against those of the training reports."""
    df = document_frequencies(predictions("meit", "meit-train-reports").report.tolist())
    sides = ({label: [_score(t, d, ("cider_d",))["cider_d"] for t in reports(kind)] for label, kind in MODELS.items()}
             for d in (NO_DF, df))  # fmt: skip
    return _rows(": CIDEr-D", *sides)


def batch_means(scores: Scores, batch: int, order: np.ndarray) -> float:
    """The public mean: the metric within each batch of items in this order, averaged over batches, short ones too."""
    sums = np.add.reduceat(scores.stats[order], np.arange(0, len(order), batch), axis=0)
    return float(np.mean(scores.reduce(sums)))


def per_batch_means() -> list[Row]:
    """Only the averaging differs; the interval is over random orders of the same reports."""
    rng, rows = np.random.default_rng(0), []
    for label, kind in list(MODELS.items())[:2]:
        scored = [_score(t, NO_DF, ("bleu",)) for t in reports(kind)]
        orders = [rng.permutation(scored[0]["bleu_4"].n_items) for _ in range(N_ORDERS)]
        for order, batch in ((1, 16), (4, 16), (4, 32)):
            metrics = [s[f"bleu_{order}"] for s in scored]
            corpus = float(np.mean([m.value for m in metrics]))
            drawn = np.array([np.mean([batch_means(m, batch, o) for m in metrics]) for o in orders])
            what = f"{label}, batches of {batch}: BLEU-{order}"
            rows.append(Row(what, over_draws(drawn), exact(corpus), over_draws(drawn - corpus), LAPTOP))
    return rows


def min_max(signal_mv: np.ndarray) -> np.ndarray:
    """One min-max over all leads, then whatever is not finite becomes 0. signal_mv [12, n] -> [12, n]."""
    low, high = signal_mv.min(), signal_mv.max()
    return np.nan_to_num((signal_mv - low) / (high - low + 1e-8), nan=0.0, posinf=0.0, neginf=0.0)


def nan_to_zeros() -> list[Row]:
    """One sample of one lead is lost in each record; then what the loss of the signal costs a report."""
    records, rng, fs_hz = simulate(N_SIGNALS, "mimic-iv-ecg", seed=0, fs_hz=100.0), np.random.default_rng(0), 100.0
    flat = {"published": 0, "corrected": 0}
    for signal in records.signal_mv:
        signal = signal.copy()
        signal[rng.integers(12), rng.integers(signal.shape[1])] = np.nan
        flat["published"] += np.ptp(min_max(signal)) == 0
        fill_short_gaps("simulated", signal, fs_hz)
        flat["corrected"] += np.ptp(min_max(signal)) == 0
    shares = [flat[name] / len(records.signal_mv) for name in ("published", "corrected")]
    data = f"{N_SIGNALS} simulated ECGs"
    rows = [Row("records that are constant after one lost sample", *map(exact, (*shares, shares[0] - shares[1])), data)]
    ecg, zero = reports("ecg"), reports("zero")
    for name, of in (("BLEU-4", _bleu_4), ("finding F1", _finding_f1)):
        sides = ([of(t) for t in tables] for tables in (zero, ecg))
        rows.append(compare(f"MEIT, reports of such records: {name}", *sides, ecg[0].patient, LAPTOP))
    return rows


def _bleu_4(table: pd.DataFrame) -> Scores:
    return _score(table, NO_DF, ("bleu",))["bleu_4"]


def _finding_f1(table: pd.DataFrame) -> Scores:
    return finding_scores(table.reference.tolist(), table.prediction.tolist(), validated_findings())["finding_f1"]
