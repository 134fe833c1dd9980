"""Official layout -> packed store + splits + manifest: `python -m meit.prep --config meit/configs/laptop.yaml`.

With `data.simulate` the tree is first written by the simulator, in the official layout, under CACHE_ROOT; the same
loaders then read it. Everything is cached: a second call returns at once.
"""

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from meit.config import Config, DataConfig, cache_root, data_root, parse
from shared.ecg import LOADERS, simulate
from shared.ecg.splits import folds, load_split, save_split, split
from shared.ecg.store import EcgStore, pack


@dataclass
class Prepared:
    """A packed store, the split's ids and what identifies both."""

    store: EcgStore
    splits: dict[str, list[str]]  # train, val, test -> record ids
    data_hash: str  # of signals, reports and split
    split_sha256: str
    source: str  # "simulated" or the data set's name, for the scorecard

    def records(self, part: str) -> pd.DataFrame:
        """Rows of the store's table of one part, in the order of the split; the column `row` is the store's index."""
        table = self.store.records.assign(row=range(len(self.store.records))).set_index("record_id", drop=False)
        return table.loc[self.splits[part]]


def simulator_hash() -> str:
    """Of the simulator's source: trees of another version are never taken for this one's."""
    source = Path(simulate.__file__).parent
    files = [*sorted(source.glob("simulate*.py")), source / "codes.py"]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


def simulated_tree(data: DataConfig) -> Path:
    """Folder of the simulated release, written once, whichever of several processes comes first."""
    sim = data.simulate
    name = f"{data.dataset}-n{sim.n_records}-seed{sim.seed}-{sim.fs_hz:g}hz-{simulator_hash()}"
    root = cache_root() / "simulated" / name / data.dataset
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "truth.parquet").exists():
            for left in root.parent.glob(f"{data.dataset}*"):  # of a killed run
                shutil.rmtree(left)
            simulate.write(data.dataset, root, sim.n_records, sim.seed, fs_hz=sim.fs_hz, workers=os.cpu_count() or 1)
    return root


def prepare(data: DataConfig) -> Prepared:
    """Simulate (where asked), pack and split; from the cache where done before.

    Raises FileNotFoundError naming the missing folder and the command that fetches it.
    """
    if data.dataset not in LOADERS:
        raise ValueError(f"data.dataset: {data.dataset!r} is not one of {sorted(LOADERS)}")
    if data.simulate:
        root, source_fs, source = simulated_tree(data), data.simulate.fs_hz, "simulated"
        name = root.parent.name
    else:
        root, source_fs, source = data_root() / data.dataset, None, data.dataset
        name = f"{data.dataset}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root}: no such folder. Fetch it with `make data-{data.dataset}` or set DATA_ROOT."
            )
        if data.dataset == "ptb-xl" and data.fs_hz == 100:
            source_fs = 100  # the release has its own 100 Hz files
    out = cache_root() / "packed" / f"{name}-{data.fs_hz:g}hz"
    manifest = pack(data.dataset, root, out, source_fs_hz=source_fs, fs_hz=data.fs_hz)
    store = EcgStore(out)
    if not store.records.report.str.len().any():
        raise ValueError(f"{root}: no record has a report; MEIT needs mimic-iv-ecg or ptb-xl")
    split_file = out / f"split-{data.split}-seed{data.split_seed}.json"
    if not split_file.exists():
        if data.split.startswith("fold-"):
            parts = folds(store.records)[int(data.split.removeprefix("fold-")) - 1]
        else:
            parts = split(store.records, data.split, data.split_seed)
        save_split(parts, split_file)
    split_hash = hashlib.sha256(split_file.read_bytes()).hexdigest()
    data_hash = hashlib.sha256(("".join(manifest["sha256"].values()) + split_hash).encode())
    return Prepared(store, load_split(split_file), data_hash.hexdigest()[:16], split_hash, source)


def main(args: list[str] | None = None) -> Prepared:
    cfg: Config = parse(args)
    prepared = prepare(cfg.data)
    counts = {part: len(ids) for part, ids in prepared.splits.items()}
    summary = {"source": prepared.source, "records": len(prepared.store), "data_hash": prepared.data_hash, **counts}
    print(json.dumps(summary))
    return prepared


if __name__ == "__main__":
    main()
