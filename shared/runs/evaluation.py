"""What the `evaluate` of every paper does around its model: whose weights, what is done already, work in parts."""

import json
import os
import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.progress import track

from shared.locks import write_whole
from shared.metrics.interval import Metric, intervals
from shared.metrics.scorecard import dumps
from shared.runs.checkpoint import fetched, run_file
from shared.runs.config import RunConfig, check_writable
from shared.runs.processes import device as device  # where modules that synth_medvlp/generate.py hashes look
from shared.runs.processes import worker
from shared.store import disk_errors


def checkpoint_of(cfg: RunConfig) -> Path:
    """`eval.checkpoint`, or this run's own. Raises FileNotFoundError where no run has ended there."""
    checkpoint = fetched(cfg.eval.checkpoint or cfg.run_dir / "checkpoint")
    if not run_file(checkpoint, "run.json").is_file():
        raise FileNotFoundError(f"{checkpoint}: no finished run; train it first with `python -m {cfg.PAPER}.train`")
    return checkpoint


def weights_of(cfg: RunConfig, checkpoint: Path, data_hash: str | None = None) -> list[str]:
    """[config hash, data hash] of the run that trained them. data_hash: of what this run would train on; None = any.

    Raises ValueError where the run's own weights are another config's or stand on other data.
    """
    trained = json.loads(run_file(checkpoint, "run.json").read_text())
    if cfg.eval.checkpoint is None and trained["config_hash"] != cfg.digest():
        raise ValueError(f"{checkpoint} was trained with another config (see config.yaml there); train again")
    if cfg.eval.checkpoint is None and data_hash not in (None, trained["data_hash"]):
        raise ValueError(f"{checkpoint} was trained on other records, labels or texts; train again")
    return [trained["config_hash"], trained["data_hash"]]


def evaluated(cfg: RunConfig, identity: dict) -> bool:
    """True where `metrics.json` is of this very evaluation; else the run's folder must be writable."""
    file = cfg.run_dir / "metrics.json"
    same = file.is_file() and identity.items() <= json.loads(file.read_text()).items()
    if not same:
        check_writable("runs", cfg.run_dir)
    return same


def keep(cfg: RunConfig, summary: dict, **tables: pd.DataFrame) -> None:
    """Write each table as `<name>.parquet` into the run's folder and, last, the summary as `metrics.json`, whole or not
    at all: it vouches for the tables, and says on what data the weights were trained. Parts of other evaluations of the
    run are removed. StoreError where the disk is full."""
    run = json.loads(run_file(checkpoint_of(cfg), "run.json").read_text())
    file = cfg.run_dir / "metrics.json"
    file.unlink(missing_ok=True)
    with disk_errors(cfg.run_dir):
        for name, table in tables.items():
            table.to_parquet(cfg.run_dir / f"{name}.parquet", index=False)
        write_whole(file, dumps(summary | {"trained_on": run["data_hash"]}))
    for parts in set(cfg.run_dir.glob("parts-*")) - {cfg.run_dir / f"parts-{summary['evaluation_hash']}"}:
        shutil.rmtree(parts, ignore_errors=True)


def in_parts(
    jobs: Mapping[str, Hashable], make: Callable[[Hashable], pd.DataFrame], parts: Path, title: str
) -> pd.DataFrame:
    """`make` of every job, one table below the other. jobs: name of a part's file -> job.

    Each part is written as it ends, so a killed evaluation goes on where it stopped; under torchrun each process takes
    its share and waits for the others'.
    """
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / f"{name}.parquet" for name in jobs]
    number, n_workers = worker()
    mine = list(zip(jobs.values(), files, strict=True))[number::n_workers]
    mine = [(job, file) for job, file in mine if not file.exists()]
    for job, file in track(mine, title, disable=not os.isatty(2)):
        part = make(job)
        with disk_errors(parts):
            part.to_parquet(file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    while not all(file.exists() for file in files):  # other processes still write theirs
        time.sleep(1)
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def entries(metrics: Mapping[str, Metric], patients: Sequence, n: int, n_boot: int) -> dict[str, dict]:
    """What metrics.json holds of metrics of the same n rows: value, interval (none without draws), n, version."""
    if n_boot and metrics:
        found = intervals(list(metrics.values()), patients, n_boot)
    else:
        found = [(metric.value, None, None) for metric in metrics.values()]
    return {
        name: {"value": value, "ci": [lo, hi], "n": n, "version": metric.version}
        for (name, metric), (value, lo, hi) in zip(metrics.items(), found, strict=True)
    }
