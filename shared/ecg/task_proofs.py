"""Split proofs: labels and parts rebuilt from public metadata against MERL's published files, record by record.

What DATA_ROOT lacks is left out of the table. CPSC2018 and CSN are proved on all published rows as well, from records
that hold nothing but the SNOMED CT codes behind each row's labels (CSN: behind its `diagnose` text), because the
headers of those releases are rarely at hand. Serves `python -m shared.ecg.tasks` and the tests. Reference: D2 to D4.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from shared.ecg import LOADERS, ptbxl
from shared.ecg.splits import PARTS
from shared.ecg.task_splits import find_splits, permutation_split, published_members, published_tables
from shared.ecg.tasks import NO_RECORD, TASKS, TaskData, csn_acronyms, load_task

FORM_ROWS = "splits/ptbxl_database_form_8988rows.csv.gz"  # below DATA_ROOT; written from an earlier release


def form_rows(data_root: Path) -> pd.DataFrame:
    """Index of the table of PTB-XL records with a form statement, read as the release is."""
    with tempfile.TemporaryDirectory() as folder:
        table = pd.read_csv(Path(data_root) / FORM_ROWS, dtype=str, na_filter=False)
        table.to_csv(Path(folder) / "ptbxl_database.csv", index=False)
        return ptbxl.read_index(Path(folder))


def published_records(name: str, splits: Path) -> pd.DataFrame:
    """record_id and SNOMED CT codes of every published row of `cpsc2018` (by ecg_id) or `csn` (as in the files)."""
    task = TASKS[name]
    tables = published_tables(splits, task.published_file)
    records = published_members(tables, task.dataset)
    rows = pd.concat(tables.values(), ignore_index=True)
    if name == "csn":
        code_of = {acronym: code for code, acronym in csn_acronyms(Path(splits)).items()}
        records["labels"] = [[code_of[token] for token in text.split(",")] for text in rows["diagnose"]]
        return records
    there = rows[[c for _, c in task.snomed]].to_numpy() == "1"
    records["labels"] = [[code for (code, _), is_ in zip(task.snomed, row, strict=True) if is_] for row in there]
    return records.iloc[np.argsort(rows["ecg_id"].astype(int))].reset_index(drop=True)


def permuted_ids(records: pd.DataFrame) -> list[str]:
    """Ids of `records` as the permutation rule orders them: train, val, test."""
    rows = permutation_split(len(records))
    return records["record_id"].to_numpy()[np.concatenate([rows[part] for part in PARTS])].tolist()


def parts_that_differ(data: TaskData, records: pd.DataFrame) -> int | None:
    """Records whose part by the stated rule is not the published one; None where no rule gives it (CSN).

    CPSC2018: positions of the permuted list that hold another record, so the row order is proved as well.
    """
    if data.task == "csn":
        return None
    if data.task == "cpsc2018":
        if NO_RECORD in data.left_out or "part" not in records:
            return None  # the order of the release's own records is not the published numbering
        return sum(a != b for a, b in zip(permuted_ids(records), data.record_ids, strict=True))
    fold = records.set_index("record_id").fold[list(data.record_ids)].to_numpy()
    return int((np.where(fold == 10, "test", np.where(fold == 9, "val", "train")) != data.part).sum())


def _sources(data_root: Path, splits: Path):
    """(task, where its records come from, records) for what lies in DATA_ROOT."""
    for name, task in TASKS.items():
        if (data_root / task.dataset).is_dir():
            yield name, f"{task.dataset}/", LOADERS[task.dataset].read_index(data_root / task.dataset)
        if name == "ptb-xl-form" and (data_root / FORM_ROWS).is_file() and (data_root / "ptb-xl").is_dir():
            yield name, Path(FORM_ROWS).name, form_rows(data_root)
        if name in ("cpsc2018", "csn"):
            yield name, "codes behind the published rows", published_records(name, splits)


def _or_dash(count: int | None) -> str:
    return "no rule" if count is None else str(count)


def proofs(data_root: Path, splits: Path) -> pd.DataFrame:
    """One row per task, variant and source: rows rebuilt / published per part, cells and parts that differ."""
    rows = []
    for name, source, records in _sources(data_root, splits):
        task = TASKS[name]
        variants = ("corrected", "as_published") if task.train_order or name == "csn" else ("corrected",)
        tables = published_tables(splits, task.published_file)
        for variant in variants:
            data = load_task(name, records, data_root / task.dataset, variant, splits)
            row = {"task": name, "variant": variant, "records from": source}
            row |= {part: f"{len(data.part_rows(part)):,}/{len(tables[part]):,}" for part in PARTS}
            row |= {"classes": len(data.classes), "label cells that differ": data.mismatches}
            row |= {"parts that differ": _or_dash(parts_that_differ(data, records)), "left out": data.left_out or ""}
            rows.append(row)
    return pd.DataFrame(rows)


def csn_pollution(splits: Path) -> pd.DataFrame:
    """Positives of the CSN classes that the substring rule changes: exact and as published, per part."""
    records, acronym_of = published_records("csn", splits), csn_acronyms(splits)
    exact, published = (load_task("csn", records, splits, v, splits).counts() for v in ("corrected", "as_published"))
    table = exact.reindex(published.index).join(published, lsuffix=" exact", rsuffix=" published")
    # a class without column in the corrected labels: its own token, counted over all published rows
    for code in published.index.difference(exact.index):
        own = records["labels"].map(lambda codes, acronym=code: acronym in {acronym_of[c] for c in codes})
        table.loc[code, [f"{part} exact" for part in PARTS]] = [int(own[records.part == part].sum()) for part in PARTS]
    changed = [(table[f"{part} exact"] != table[f"{part} published"]) for part in PARTS]
    return table[np.logical_or.reduce(changed)].astype(int)


def report(data_root: Path) -> str:
    """The text of `python -m shared.ecg.tasks`. Raises FileNotFoundError where no published file lies."""
    splits = find_splits(data_root)
    if splits is None:
        raise FileNotFoundError(f"{data_root}: no published label files; `make data-merl-splits` fetches them")
    lines = [f"Labels rebuilt from public metadata against the files in {splits} (rows: rebuilt/published)", ""]
    lines += [proofs(data_root, splits).to_string(index=False), ""]
    lines += ["CSN classes that substring matching changes:", csn_pollution(splits).to_string()]
    return "\n".join(lines)
