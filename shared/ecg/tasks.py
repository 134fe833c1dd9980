"""The six downstream tasks of MERL, K-MERL and SuPreME: labels from the official metadata, splits, few-label subsets.

    python -m shared.ecg.tasks [--root DATA_ROOT]     counts and split proofs against the published files

Labels are rebuilt from what the releases ship (SCP statements, SNOMED CT codes), not taken from MERL's files; those
serve as list of members and as proof. Two variants: `corrected`, and `as_published`, which repeats the two defects of
the published files (train columns of the PTB-XL subclass read by position; CSN acronyms matched as substrings).
A class is identified by (task, code): STTC, STE, MI, AVB and AF mean different things in different tasks.
Reference: D2 to D5 of K-MERL.
"""

import argparse
import csv
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from shared.ecg.codes import CSN_CONDITIONS
from shared.ecg.record import EcgReadError
from shared.ecg.splits import N_FOLDS, PARTS
from shared.ecg.task_splits import by_rule, find_splits, permutation, published_members, published_tables
from shared.ecg.wfdb_io import read_table

VARIANTS = ("corrected", "as_published")
TABLE = Path(__file__).with_name("tasks.yaml")
CONDITION_NAMES = "ConditionNames_SNOMED-CT.csv"
NO_LABEL, NOT_PUBLISHED, UNMAPPED, NO_RECORD = (
    "no label of the task",
    "not in the published split",
    "code without acronym",  # CSN: the published rule drops the whole record
    "published, but not among the records",
)

# Codes of one record -> classes of the task; None: the record cannot be labelled.
Labeller = Callable[[list[str]], set[str] | None]


@dataclass(frozen=True)
class TaskClass:
    """code: as the column of the published files is called. description: plain words, the query of zero-shot."""

    code: str
    description: str


@dataclass(frozen=True)
class Task:
    """classes: of the corrected labels, in column order. See tasks.yaml for the other fields."""

    name: str
    dataset: str
    classes: tuple[TaskClass, ...]
    published_file: tuple[str, ...]  # stems
    published_classes: tuple[TaskClass, ...]  # CSN: 38, one of which has no record of its own
    label: str = ""
    snomed: tuple[tuple[str, str], ...] = ()  # (SNOMED CT code, class code)
    train_order: tuple[str, ...] = ()

    def classes_of(self, variant: str) -> tuple[TaskClass, ...]:
        if variant not in VARIANTS:
            raise ValueError(f"unknown label variant {variant!r}: choose {' or '.join(VARIANTS)}")
        return self.classes if variant == "corrected" else self.published_classes


def _read_tasks() -> dict[str, Task]:
    tasks = {}
    for name, entry in yaml.safe_load(TABLE.read_text()).items():
        published = tuple(TaskClass(str(code), text) for code, text in entry["classes"].items())
        left = entry.get("as_published_only", [])
        tasks[name] = Task(
            name=name,
            dataset=entry["dataset"],
            classes=tuple(c for c in published if c.code not in left),
            published_file=tuple(entry["published"]),
            published_classes=published,
            label=entry.get("label", ""),
            snomed=tuple((str(code), name) for name, code in entry.get("snomed", {}).items()),
            train_order=tuple(entry.get("train_order", ())),
        )
    return tasks


TASKS = _read_tasks()


@dataclass(frozen=True)
class TaskData:
    """A task on the records at hand: n records, C classes.

    labels: uint8 [n, C]. part: [n] of "train", "val", "test". position: int64 [n], row of the record in its part's
    list (the published file, or the rule's list); n_train: length of that list for train, with records that are
    missing here. left_out: reason -> count. mismatches: labels that differ from the published columns, None without
    published files.
    """

    task: str
    variant: str
    classes: tuple[TaskClass, ...]
    record_ids: tuple[str, ...]
    labels: np.ndarray
    part: np.ndarray
    position: np.ndarray
    n_train: int
    left_out: dict[str, int]
    mismatches: int | None

    def part_rows(self, part: str) -> np.ndarray:
        """Rows of one part, int64, ascending."""
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
        return np.flatnonzero(self.part == part)

    def counts(self) -> pd.DataFrame:
        """Positives of each class (index: code) in train, val and test."""
        table = {part: self.labels[self.part == part].sum(0, dtype=np.int64) for part in PARTS}
        return pd.DataFrame(table, index=[c.code for c in self.classes])

    def few_label_rows(self, fraction: float, draw: int | None = None) -> np.ndarray:
        """Train rows of a few-label subset, ascending; fraction 1 is all of them.

        draw None: the published subset, the last floor(fraction * n_train) of RandomState(42)'s permutation of the
        train list (D5). It is drawn from the whole list and then cut to the records at hand, so a record missing here
        changes no other. Any other draw: the same with that seed. No draw is stratified: at 1 % the published one
        misses up to seven classes, and how a method fares there is part of the question; average several draws.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], not {fraction}")
        rows = self.part_rows("train")
        if fraction == 1:
            return rows
        shuffled = permutation(self.n_train) if draw is None else permutation(self.n_train, draw)
        n = math.floor(fraction * self.n_train)
        return rows[np.isin(self.position[rows], shuffled[self.n_train - n :])]


def load_task(
    name: str, records: pd.DataFrame, root: Path, variant: str = "corrected", splits: Path | None = None
) -> TaskData:
    """The task `name` (a key of TASKS) on `records`: an index of a loader or `EcgStore.records` (INDEX_COLUMNS).

    root: folder of the release, for scp_statements.csv or ConditionNames_SNOMED-CT.csv (the CSN table has a copy in
    `shared.ecg.codes`). splits: folder of the published files (`find_splits`); then they decide membership, part and
    order, and records that they list but that are missing from `records` (skipped by the packer, not downloaded) are
    counted in left_out. Simulated records carry the ids of real ones: never give `splits` with them. Without it:
    PTB-XL by official folds (8/1/1), the others by the permutation of the sorted ids of the records with a label.
    Where a part has no positive of a class, the column stays, all zero.
    Raises KeyError (unknown task), ValueError (variant; a release's code without entry), FileNotFoundError (published
    file), EcgReadError (the release's table).
    """
    if name not in TASKS:
        raise KeyError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
    task = TASKS[name]
    record_ids = records["record_id"].to_numpy(dtype=str)
    codes, labeller = _classes_and_labeller(task, Path(root), variant)
    labels, unmapped = _rebuilt_labels(records["labels"], codes, labeller)
    usable = labels.any(1)
    if splits is None:
        # the list of the published variant for both, as in the published files: the variants then share their splits
        on_list = _rebuilt_labels(records["labels"], *_classes_and_labeller(task, Path(root), "as_published"))[0].any(1)
        members, published = by_rule(record_ids[on_list], _official_parts(records[on_list], task)), None
        listed = np.ones(len(records), bool)
    else:
        tables = published_tables(splits, task.published_file)
        members = published_members(tables, task.dataset)
        published = _published_labels(task, variant, tables)
        listed = records["record_id"].isin(members["record_id"]).to_numpy()
        if variant == "as_published":  # two CSN rows have no label there either: they stay
            empty = members["record_id"][~published.any(1)]
            usable |= records["record_id"].isin(empty).to_numpy() & ~unmapped
    left_out = {
        NOT_PUBLISHED: (~listed).sum(),
        UNMAPPED: (listed & unmapped).sum(),
        NO_LABEL: (listed & ~unmapped & ~usable).sum(),
        NO_RECORD: (~members["record_id"].isin(record_ids)).sum(),
    }
    row_of = pd.Series(np.arange(len(record_ids))[usable], index=record_ids[usable])
    kept = members[members["record_id"].isin(row_of.index)]
    labels = labels[row_of[kept["record_id"]].to_numpy(dtype=np.int64)]
    part = kept["part"].to_numpy(dtype=str)
    if variant == "as_published" and task.train_order:
        labels = _by_position(labels, part, codes, task.train_order)
    mismatches = None if published is None else int((labels != published[kept.index]).sum())
    return TaskData(
        task=name,
        variant=variant,
        classes=task.classes_of(variant),
        record_ids=tuple(kept["record_id"]),
        labels=labels,
        part=part,
        position=kept["position"].to_numpy(dtype=np.int64),
        n_train=int((members["part"] == "train").sum()),
        left_out={reason: int(count) for reason, count in left_out.items() if count},
        mismatches=mismatches,
    )


# ------------------------------------------------------------------------------------------------ labels


def _rebuilt_labels(records_codes, codes: list[str], labeller: Labeller) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, C], and bool [n] of the records that cannot be labelled (all zero)."""
    rows, column = {}, {code: i for i, code in enumerate(codes)}  # each combination of codes is read once
    keys = [tuple(row) for row in records_codes]
    for key in dict.fromkeys(keys):
        classes, row = labeller(list(key)), np.zeros(len(codes), np.uint8)
        row[[column[code] for code in classes or ()]] = 1
        rows[key] = row, classes is None
    labels = np.array([rows[key][0] for key in keys], np.uint8).reshape(len(keys), len(codes))
    return labels, np.array([rows[key][1] for key in keys], bool)


def _classes_and_labeller(task: Task, root: Path, variant: str) -> tuple[list[str], Labeller]:
    codes = [c.code for c in task.classes_of(variant)]
    if task.label:
        return codes, partial(_scp_classes, of_code=_scp_table(root / "scp_statements.csv", task.label))
    if task.snomed:
        return codes, partial(_snomed_classes, of_code=dict(task.snomed))
    return codes, partial(_csn_classes, of_code=csn_acronyms(root), acronyms=codes, substring=variant == "as_published")


def _scp_table(csv_path: Path, label: str) -> dict[str, str]:
    """SCP code -> class, "" where the code is none of the task's; outer underscores stripped (D4)."""
    kind = label if label in ("form", "rhythm") else "diagnostic"
    columns = dict.fromkeys(("Unnamed: 0", kind, label))  # the column of the codes has no name
    table = read_table(csv_path, tuple(columns))
    classes = table["Unnamed: 0"] if kind == label else table[label]
    is_kind = pd.to_numeric(table[kind], errors="coerce") == 1
    return dict(zip(table["Unnamed: 0"], classes.str.strip("_").where(is_kind, ""), strict=True))


def _scp_classes(codes: list[str], of_code: dict[str, str]) -> set[str]:
    """Classes of the SCP codes of a record, whatever their likelihood, 0 included."""
    unknown = [code for code in codes if code not in of_code]
    if unknown:
        raise ValueError(f"SCP codes {unknown} are not in scp_statements.csv: table and records of one release needed")
    return {of_code[code] for code in codes} - {""}


def _snomed_classes(codes: list[str], of_code: dict[str, str]) -> set[str]:
    return {of_code[code] for code in codes if code in of_code}


def csn_acronyms(root: Path) -> dict[str, str]:
    """SNOMED CT code -> acronym, from the release's table where it lies in `root`, else from `codes.CSN_CONDITIONS`.

    Where acronyms share a code, the first counts: so do the published files.
    """
    path = Path(root) / CONDITION_NAMES
    if path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [{(key or "").replace(" ", ""): value for key, value in row.items()} for row in csv.DictReader(file)]
        if not rows or {"AcronymName", "Snomed_CT"} - set(rows[0]):
            raise EcgReadError(path, "bad csv", "columns Acronym Name and Snomed_CT expected")
        pairs = [(row["Snomed_CT"].strip(), row["AcronymName"].strip()) for row in rows]
    else:
        pairs = [(code, acronym) for acronym, code, _ in CSN_CONDITIONS]
    return dict(reversed(pairs))


def _csn_classes(codes: list[str], of_code: dict[str, str], acronyms: list[str], substring: bool) -> set[str] | None:
    """Acronyms of a record's codes; None where a code has none. substring: "AVB" is in "1AVB"."""
    if any(code not in of_code for code in codes):
        return None
    return csn_classes([of_code[code] for code in codes], acronyms, substring)


def csn_classes(tokens: list[str], acronyms: list[str], substring: bool) -> set[str]:
    """Those of `acronyms` that the acronyms of a record assert."""
    if substring:
        return {acronym for acronym in acronyms if any(acronym in token for token in tokens)}
    return set(tokens) & set(acronyms)


def _by_position(labels: np.ndarray, part: np.ndarray, codes: list[str], train_order: tuple[str, ...]) -> np.ndarray:
    """Labels as a reader of the published files gets them who goes by column number: train columns swapped."""
    labels, train = labels.copy(), part == "train"
    labels[train] = labels[np.ix_(train, [codes.index(code) for code in train_order])]
    return labels


# ------------------------------------------------------------------------------------------------ members


def _official_parts(records: pd.DataFrame, task: Task) -> np.ndarray | None:
    if task.dataset != "ptb-xl":
        return None
    fold = records["fold"].to_numpy()
    if ((fold < 1) | (fold > N_FOLDS)).any():
        raise ValueError("PTB-XL records need their official fold, 1 to 10, in the column `fold`")
    return np.where(fold == N_FOLDS, "test", np.where(fold == N_FOLDS - 1, "val", "train"))


def _published_labels(task: Task, variant: str, tables: dict[str, pd.DataFrame]) -> np.ndarray:
    """uint8 [rows, C] of the published files, train first. corrected: columns by name (CSN: tokens of `diagnose`)."""
    codes = [c.code for c in task.classes_of(variant)]
    parts = []
    for table in tables.values():
        if task.published_classes != task.classes and variant == "corrected":
            exact = partial(csn_classes, acronyms=codes, substring=False)
            parts.append(_rebuilt_labels(table["diagnose"].str.split(","), codes, exact)[0])
        else:
            columns = codes if variant == "corrected" else list(table.columns[-len(codes) :])  # by position
            parts.append(table[columns].to_numpy().astype(np.uint8))
    return np.concatenate(parts)


def main(argv=None) -> None:
    from shared.ecg.task_proofs import report

    parser = argparse.ArgumentParser(prog="python -m shared.ecg.tasks", description=__doc__.split("\n")[0])
    default = Path(os.environ.get("DATA_ROOT", "data/official"))
    parser.add_argument("--root", type=Path, default=default, help="DATA_ROOT: releases and published files by name")
    root = parser.parse_args(argv).root
    if find_splits(root) is None:
        parser.exit(message=f"{root}: no published split files; fetch them with `make data-merl-splits`\n")
    print(report(root))


if __name__ == "__main__":
    main()
