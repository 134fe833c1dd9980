"""Findings on the six ECG tasks of MERL, K-MERL and SuPreME: labels, splits, inputs and thresholds."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm

from docs.audit.row import (
    LAPTOP,
    SEEDS,
    Row,
    compare,
    exact,
    labels_of,
    need,
    predictions,
    task_mean,
)
from shared.ecg.task_splits import find_splits, published_tables
from shared.ecg.tasks import TASKS, csn_classes
from shared.metrics.classification import auroc_per_class, macro_auroc, macro_f1
from shared.metrics.probe import ProbeConfig, probe
from shared.metrics.six_tasks import FREQUENT, best_f1_thresholds, items_of, metrics_of
from shared.runs.config import data_root

SPLITS = "MERL's published split files"
INPUT = {"kmerl": "12 leads", "supreme": "ecg", "synth_medvlp": "image"}  # of zero-shot, in the committed predictions
NAMES = {"kmerl": "K-MERL", "supreme": "SuPreME", "synth_medvlp": "Synthetic VLP, real pairs"}
RUN = {"kmerl": "kmerl", "supreme": "supreme", "synth_medvlp": "real"}
POLLUTED = ("VB", "AVB", "SA", "AF", "ST", "CR", "2AVB")
N_DRAWS, N_FEATURES = 200, 64
PROBES = {0.1: 60, 1.0: 20}  # share of the labels -> draws
AUROC = 0.8  # of every class, in the finding on tiny classes


def published(task: str) -> dict[str, pd.DataFrame]:
    """Part -> published table of a task."""
    return published_tables(
        need(find_splits(data_root()) or data_root() / "merl-splits", "`make data-merl-splits`"),
        TASKS[task].published_file,
    )


def _csn_labels() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Test labels by substring and by exact token, uint8 [n, 38], and their columns."""
    table, codes = published("csn")["test"], [c.code for c in TASKS["csn"].published_classes]
    tokens = table["diagnose"].str.split(",")
    exact_labels = [[code in csn_classes(t, codes, substring=False) for code in codes] for t in tokens]
    return table[codes].to_numpy().astype(np.uint8), np.array(exact_labels, np.uint8), codes


def substring_labels() -> list[Row]:
    """A detector that is always right about the exact codes, scored against the published labels and the exact ones."""
    loose, tight, codes = _csn_labels()
    records = np.arange(len(loose))
    rows = []
    for code in POLLUTED:
        c = [codes.index(code)]
        n = [int(labels[:, c].sum()) for labels in (loose, tight)]
        rows.append(Row(f"CSN test positives, {code}", exact(n[0]), exact(n[1]), exact(n[0] - n[1]), SPLITS))
    half = [0.5] * len(codes)
    kept = np.flatnonzero(tight.any(0))  # a class without exact positives has no corrected value
    what = f"a perfect detector of the exact codes, {len(kept)} classes"
    for name, of in (("AUROC", macro_auroc), ("F1", lambda y, s: macro_f1(y, s, half[: y.shape[1]]))):
        sides = ([of(labels[:, kept], tight[:, kept])] for labels in (loose, tight))
        rows.append(compare(f"{what}: macro {name}", *sides, records, SPLITS))
    sides = [[], []]
    for seed in SEEDS:
        scores, y = _csn_scores(seed)
        for side, labels in zip(sides, y, strict=True):
            side.append(macro_auroc(labels, scores))
    rows.append(compare("K-MERL, zero-shot, CSN: macro AUROC", *sides, np.arange(len(scores)), LAPTOP))
    return rows


def _csn_scores(seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Scores [n, C] of the classes that both label files have, and their published and exact labels [n, C]."""
    exact_codes = [c.code for c in TASKS["csn"].classes]
    all_codes = [c.code for c in TASKS["csn"].published_classes]
    tables = [labels_of("kmerl", name) for name in ("as-published", RUN["kmerl"])]
    loose, tight = (t[t.task == "csn"].set_index("id").reference for t in tables)
    rows = predictions("kmerl", RUN["kmerl"], seed)
    rows = rows[(rows.input == INPUT["kmerl"]) & (rows.dataset == "chapman-shaoxing-ningbo")]
    columns = [all_codes.index(code) for code in exact_codes]
    y = np.stack(loose[rows.id].to_list())[:, columns], np.stack(tight[rows.id].to_list())
    kept = np.flatnonzero(y[0].any(0) & y[1].any(0))  # the same classes on both sides
    return np.stack(rows.prediction.to_list())[:, kept], tuple(labels[:, kept] for labels in y)


def column_order() -> list[Row]:
    """Heads trained on columns read by position, tested by name: three of them learnt another class."""
    task = TASKS["ptb-xl-subclass"]
    tables, n = published(task.name), len(task.classes)
    codes = list(tables["test"].columns[-n:])
    order = [codes.index(code) for code in tables["train"].columns[-n:]]  # head j learnt the class of this position
    y = tables["test"][codes].to_numpy().astype(np.uint8)
    rows = [compare("PTB-XL subclass, a perfect probe: macro AUROC", [macro_auroc(y, y[:, order])],
                    [macro_auroc(y, y)], np.arange(len(y)), SPLITS)]  # fmt: skip
    labels, sides = labels_of("kmerl", RUN["kmerl"]), [[], []]
    for seed in SEEDS:
        table = predictions("kmerl", "probe-kmerl", seed)
        _, patients, parts = items_of(table[table.input == "probe:12 leads 1 #0"], labels)
        index, y, s = parts[task.name]
        kept = np.flatnonzero(y.any(0) & ~np.isnan(s[:, order]).any(0) & ~np.isnan(s).any(0))
        for side, scores in zip(sides, (s[:, order], s), strict=True):
            side.append(macro_auroc(y[:, kept], scores[:, kept]))
    what = f"K-MERL, linear probe, {len(kept)} classes: macro AUROC"
    return [*rows, compare(what, *sides, patients[index], LAPTOP)]


def padding_before_scaling() -> list[Row]:
    """CPSC2018: half the window and padding before min-max, against the whole window."""
    rows = []
    for paper in ("kmerl", "supreme"):
        labels, sides = labels_of(paper, RUN[paper]), [[], []]
        labels = labels[labels.dataset == "cpsc2018"]
        for seed in SEEDS:
            for side, run in zip(sides, ("as-published", RUN[paper]), strict=True):
                table = predictions(paper, run, seed)
                table = table[(table.input == INPUT[paper]) & (table.dataset == "cpsc2018")]
                metrics, patients = metrics_of(table, labels, {})
                side.append(metrics["auroc"])
        rows.append(compare(f"{NAMES[paper]}, zero-shot, CPSC2018: macro AUROC", *sides, patients, LAPTOP))
    return rows


def tiny_classes() -> list[Row]:
    """Half width of the 95 % range of the macro AUROC when every class truly has AUROC 0.8, by the test part alone."""
    rng, rows = np.random.default_rng(0), []
    shift = np.sqrt(2) * norm.ppf(AUROC)
    for name, task in TASKS.items():
        y = published(name)["test"][[c.code for c in task.published_classes]].to_numpy().astype(np.uint8)
        kept = y[:, y.any(0)]
        often = kept.sum(0) >= FREQUENT
        drawn = np.array([auroc_per_class(kept, rng.normal(size=kept.shape) + shift * kept) for _ in range(N_DRAWS)])
        halves = [1.96 * drawn[:, chosen].mean(1).std(ddof=1) for chosen in (np.ones(len(often), bool), often)]
        what = f"{name}, {len(often)} classes, {int((~often).sum())} with fewer than {FREQUENT} positives: half width"
        rows.append(Row(what, exact(halves[0]), exact(halves[1]), exact(halves[0] - halves[1]), SPLITS))
    return rows


# --- test-set tuning --------------------------------------------------------------------------------------------------


def tuning_on_test_sets() -> list[Row]:
    """Thresholds that maximise F1 on the test part, against those of validation; and the epoch of a probe."""
    rows = []
    for paper in RUN:
        for label, scores_of in (("", _as_they_are), (", scores of other records", _of_others)):
            sides = [[], []]
            for seed in SEEDS:
                found, patients = _f1_by_thresholds(paper, seed, scores_of)
                for side, metric in zip(sides, found, strict=True):
                    side.append(metric)
            rows.append(compare(f"{NAMES[paper]}{label}: macro F1, mean over tasks", *sides, patients, LAPTOP))
    return [*rows, *(_best_epoch(share, n) for share, n in PROBES.items())]


def _as_they_are(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return scores


def _of_others(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(scores)


def _f1_by_thresholds(paper: str, seed: int, scores_of: Callable) -> tuple[list, np.ndarray]:
    """Macro F1 with thresholds from test and from validation, mean over tasks, on the same classes; patients."""
    rng = np.random.default_rng(seed)
    labels, table = labels_of(paper, RUN[paper]), predictions(paper, RUN[paper], seed)
    _, patients, test = items_of(table[table.input == INPUT[paper]], labels)
    _, _, val = items_of(table[table.input == f"{INPUT[paper]}~val"], labels)
    parts = [[], []]
    for task, (rows, y, s) in test.items():
        if task not in val:
            continue
        _, y_val, s_val = val[task]
        s, s_val = scores_of(s, rng), scores_of(s_val, rng)
        cuts = best_f1_thresholds(y, s), best_f1_thresholds(y_val, s_val)
        kept = np.flatnonzero(np.isfinite(cuts[0]) & np.isfinite(cuts[1]))
        for part, cut in zip(parts, cuts, strict=True):
            if len(kept):
                part.append((rows, macro_f1(y[:, kept], s[:, kept], cut[kept])))
    return [task_mean(part, len(patients)) for part in parts], patients


def _best_epoch(share: float, n_draws: int) -> Row:
    """A probe of features that are noise, its epoch chosen by the test score; noise has AUROC 0.5 by construction."""
    labels = labels_of("kmerl", RUN["kmerl"])
    labels = labels[labels.task == "ptb-xl-form"]
    y = np.stack(labels.reference.to_list())
    parts = {part: np.flatnonzero(labels.part == part) for part in ("train", "val", "test")}
    few, rng = parts["train"][: int(share * len(parts["train"]))], np.random.default_rng(0)
    found = []
    for draw in range(n_draws):
        features = rng.normal(size=(len(y), N_FEATURES))
        found.append(probe(features, y, parts, ProbeConfig("as_published", seed=draw), few).info["test_auroc"])
    half = 1.96 * np.std(found, ddof=1) / np.sqrt(n_draws)
    mean = float(np.mean(found))
    published = mean, mean - half, mean + half
    what = f"{n_draws} probes of features that are noise, {share:.0%} of the labels: macro AUROC"
    return Row(what, published, exact(0.5), tuple(v - 0.5 for v in published), LAPTOP)
