"""Reports -> entity labels (reference: M1): unique statements -> entities, verified -> audit -> vocabulary -> labels.

    python -m kmerl.extract --config kmerl/configs/laptop.yaml [--extract.backend endpoint ...]
    python -m kmerl.extract --agreement               precision and recall of the dictionary on simulated reports

The statements of MIMIC-IV-ECG come from a closed device vocabulary, so cost grows with the UNIQUE statements, each read
once and kept on disk. A statement is read without its neighbours. Label of record b, entity e: 1 affirmed; 0 negated or
not mentioned; uncertain by `extract.uncertain`; affirmed wins over uncertain, uncertain over negated, and records that
both affirm and deny an entity are counted. Where a statement could not be read, nothing is known to be absent: all that
the record's other statements do not settle is -1, out of the loss. What the paper did here is not known (Deviations).
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from kmerl import dictionary
from kmerl.backends import Backend, Reading, make
from kmerl.dictionary import Found
from shared.locks import entries, locked
from shared.runs.config import cache_root
from shared.store import disk_errors

log = logging.getLogger(__name__)

POLICIES = {"positive": 1, "negative": 0, "ignore": -1}  # label of an entity that is only ever hedged


@dataclass
class ExtractConfig:
    """Statements to entities (reference: M1). Keys of language models are ignored by the dictionary."""

    backend: str = "dictionary"  # dictionary | local (transformers) | endpoint (OpenAI-compatible)
    model: str | None = None  # of the language model: hub name or folder; at an endpoint, what it is called there
    base_url: str | None = None  # of the endpoint, such as http://localhost:8000/v1; key: environment EXTRACT_API_KEY
    verify: bool = True  # second pass: does each entity truly occur?
    retries: int = 3  # further attempts after the first, per question
    batch: int = 16  # local: statements at a time
    workers: int = 8  # endpoint: requests at a time
    timeout_s: float = 60.0
    backoff_s: float = 1.0  # first wait after a failure; doubles
    max_new_tokens: int = 512
    response_format: bool = True  # ask the endpoint for JSON by schema; given up where it refuses
    merge: bool = True  # a name that the dictionary knows becomes its canonical entity ("RBBB"; LLM backends)
    implied: bool = True  # "inferior infarction" is a "myocardial infarction": kmerl/entities.yaml, also
    uncertain: str = "ignore"  # positive | negative | ignore (left out of the loss)
    min_count: int = 20  # records that must affirm an entity for it to enter the vocabulary
    hold_out: list[str] = field(default_factory=list)  # entities left out, so that they are unseen classes
    separator: str = ". "  # between the statements of a report; "": a report is one statement


@dataclass
class Entities:
    """names: E entities, most frequent first. labels: int8 [n, E] (1, 0, -1 = ignored). counts: see `run`."""

    names: list[str]
    labels: np.ndarray
    counts: dict[str, int]
    folder: Path | None = None  # where `run` wrote the audit


def split(report: str, separator: str = ". ") -> list[str]:
    """Statements of a report as `shared.ecg.mimic_iv_ecg` joins them, without blanks or the final stop."""
    parts = report.split(separator) if separator else [report]
    return [s for s in (" ".join(part.split()).rstrip(".") for part in parts) if s]


def run(cfg: ExtractConfig, reports: Sequence[str], out: Path) -> Entities:
    """Entities of n reports. Writes to `out`: audit.parquet (one row per statement and entity), failures.csv,
    unread.csv (statements without an entity, most frequent first), labels.npy, entities.json (names, counts, config).

    Goes on where a killed run stopped: readings are kept under CACHE_ROOT/extract, by backend, prompt and statement.
    counts: reports, statements (all), unique, failed (unique), failed_reports, rejected (entities that the second pass
    refused), conflicts (record-entity pairs both affirmed and denied), ignored (labels -1).
    Raises ValueError for a bad config or where no entity is frequent enough.
    """
    if cfg.uncertain not in POLICIES:
        raise ValueError(f"extract.uncertain={cfg.uncertain!r}: one of {', '.join(POLICIES)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"):  # several processes of one run ask for the same entities
        rows = [split(report, cfg.separator) for report in reports]
        unique = {s: i for i, s in enumerate(dict.fromkeys(s for row in rows for s in row))}
        n_all = sum(map(len, rows))
        log.info("%d reports, %d statements, %d unique", len(rows), n_all, len(unique))
        backend = make(cfg)
        readings = read_cached(backend, list(unique), cache_root() / "extract")
        n_reports = _n_reports(rows, unique)
        counts = {"reports": len(rows), "statements": n_all, "unique": len(unique)}
        counts["failed"] = sum(bool(r.error) for r in readings)
        audit = audit_table(readings, n_reports, backend.name)
        counts["rejected"] = int((audit.verdict == "rejected").sum())
        entities = _labels(cfg, rows, unique, readings, counts)
        entities.folder = out
        with disk_errors(out):
            _save(out, cfg, entities, audit, readings, n_reports)
    return entities


def read_cached(backend: Backend, statements: list[str], folder: Path) -> list[Reading]:
    """Readings in the order of `statements`; asks only for what is not on disk, and puts each there as it comes.

    Failures are not kept: the next run asks again. A last line that a kill cut off is dropped.
    """
    from rich.progress import track

    key = sha256(f"{backend.name} {backend.version}".encode()).hexdigest()[:12]
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', backend.name)[-60:]}-{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        known = {r.statement: r for r in entries(path, _reading, "reading")}
        todo = [s for s in statements if s not in known]
        log.info("%s: %d unique statements, %d of them to read", backend.name, len(statements), len(todo))
        with path.open("a", encoding="utf-8") as cache:
            new = track(backend.read(todo), f"{backend.name}: statements", total=len(todo), disable=len(todo) < 1000)
            for reading in new:
                known[reading.statement] = reading
                if not reading.error:
                    cache.write(json.dumps({"statement": reading.statement, "found": reading.found}) + "\n")
                    cache.flush()
    failed = [s for s in statements if known[s].error]
    if failed:
        log.warning("%s: %d of %d statements could not be read: %s", backend.name, len(failed), len(todo), failed[:5])
    return [known[s] for s in statements]


def _reading(entry: dict) -> Reading:
    return Reading(entry["statement"], tuple(Found(*f) for f in entry["found"]))


def audit_table(readings: list[Reading], n_reports: np.ndarray, backend: str) -> pd.DataFrame:
    """One row per statement and entity; evidence is statement[start:end]."""
    rows = [
        (r.statement, int(n), f.entity, f.status, r.statement[f.start : f.end], f.start, f.end, f.verdict, backend)
        for r, n in zip(readings, n_reports, strict=True)
        for f in r.found
    ]
    names = ["statement", "n_reports", "entity", "status", "evidence", "start", "end", "verdict", "backend"]
    return pd.DataFrame(rows, columns=names)


def _n_reports(rows: list[list[str]], unique: dict[str, int]) -> np.ndarray:
    ids = [unique[s] for row in rows for s in set(row)]
    return np.bincount(np.array(ids, dtype=np.int64), minlength=len(unique))


def _statuses(cfg: ExtractConfig, reading: Reading) -> Iterator[tuple[str, str]]:
    """(entity, status) of a statement: rejected ones gone, names merged, what they imply added.

    What implies is affirmed or uncertain: that there is no inferior infarction does not say that there is none.
    """
    for f in reading.found:
        if f.verdict == "rejected":
            continue
        names = (dictionary.entities_of(f.entity) if cfg.merge else ()) or (" ".join(f.entity.split()),)
        if f.status != "negated" and cfg.implied:
            names = (*names, *(parent for name in names for parent in dictionary.implied(name)))
        for name in names:
            yield name, f.status


def _labels(
    cfg: ExtractConfig, rows: list[list[str]], unique: dict[str, int], readings: list[Reading], counts: dict
) -> Entities:
    """Vocabulary and labels [n, E]; adds to `counts`. Products of sparse matrices, report x statement x entity."""
    said = [dict.fromkeys(_statuses(cfg, reading)) for reading in readings]
    names = sorted({name for pairs in said for name, _ in pairs})
    _check_hold_out(cfg.hold_out, names)
    column = {name: i for i, name in enumerate(names)}
    of_report = _matrix([[unique[s] for s in row] for row in rows], len(unique))  # [n, statements]
    there = {
        status: of_report @ _matrix([[column[n] for n, s in pairs if s == status] for pairs in said], len(names))
        for status in ("affirmed", "uncertain", "negated")
    }  # each [n, names], > 0 where some statement says so
    failed = (of_report @ np.array([bool(r.error) for r in readings], dtype=np.int32)) > 0  # [n]
    n_affirmed = np.asarray((there["affirmed"] > 0).sum(axis=0)).ravel()
    kept = [n for n in names if n_affirmed[column[n]] >= cfg.min_count and n not in cfg.hold_out]
    kept.sort(key=lambda n: (-n_affirmed[column[n]], n))
    if not kept:
        raise ValueError(
            f"no entity is affirmed in {cfg.min_count} of {len(rows)} reports; lower extract.min_count or look at "
            "the audit for what the backend reads"
        )
    columns = [column[n] for n in kept]
    affirmed, uncertain, negated = (there[s][:, columns].toarray() > 0 for s in ("affirmed", "uncertain", "negated"))
    labels = np.zeros(affirmed.shape, dtype=np.int8)
    labels[failed] = -1
    labels[negated] = 0
    labels[uncertain] = POLICIES[cfg.uncertain]
    labels[affirmed] = 1
    counts |= {
        "failed_reports": int(failed.sum()),
        "conflicts": int((affirmed & negated).sum()),
        "entities_read": len(names),
        "entities": len(kept),
        "ignored": int((labels == -1).sum()),
    }
    return Entities(kept, labels, counts)


def _matrix(rows: list[list[int]], n_columns: int) -> csr_matrix:
    """int32 CSR [len(rows), n_columns] that counts the column indices of each row."""
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([i for row in rows for i in row], dtype=np.int32)
    return csr_matrix((np.ones(len(indices), dtype=np.int32), indices, indptr), shape=(len(rows), n_columns))


def _check_hold_out(hold_out: list[str], names: list[str]) -> None:
    known = [*names, *dictionary.dictionary().names]
    for name in hold_out:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise ValueError(f"extract.hold_out: no entity is called {name!r}; did you mean one of {near}?")


def _save(
    out: Path, cfg: ExtractConfig, entities: Entities, audit: pd.DataFrame, readings: list[Reading], n: np.ndarray
) -> None:
    audit.to_parquet(out / "audit.parquet", index=False)
    table = pd.DataFrame({"statement": [r.statement for r in readings], "n_reports": n})
    table["error"] = [r.error for r in readings]
    table[table.error != ""].to_csv(out / "failures.csv", index=False)
    nothing = np.array([not r.found and not r.error for r in readings], dtype=bool)
    unread = table[nothing].drop(columns="error").sort_values("n_reports", ascending=False, kind="stable")
    unread.to_csv(out / "unread.csv", index=False)
    np.save(out / "labels.npy", entities.labels)
    affirmed = (entities.labels == 1).sum(axis=0).tolist()
    summary = {"counts": entities.counts, "entities": dict(zip(entities.names, affirmed, strict=True))}
    (out / "entities.json").write_text(json.dumps(summary | {"config": asdict(cfg)}, indent=1))


def main(args: Sequence[str] | None = None) -> Entities | pd.DataFrame:
    """Extract for a config and print counts and a sample of the audit, or measure the dictionary (--agreement)."""
    import sys

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = list(sys.argv[1:] if args is None else args)
    if "--agreement" in args:
        from kmerl.agreement import agreement

        table = agreement()
        print(table.to_string(index=False, float_format="%.3f"))
        return table
    from kmerl.config import parse
    from kmerl.prep import prepare

    entities = prepare(parse(args)).entities
    print(entities.counts)
    print(f"most frequent of {len(entities.names)} entities: {', '.join(entities.names[:20])}")
    audit = pd.read_parquet(entities.folder / "audit.parquet")
    print(f"sample of {entities.folder / 'audit.parquet'}:")
    print(audit.sample(min(5, len(audit)), random_state=0).to_string(index=False))
    return entities


if __name__ == "__main__":
    main()
