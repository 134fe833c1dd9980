"""Official or simulated tree -> packed store -> split, each made once and found again in the cache."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shared.ecg import LOADERS, simulate
from shared.ecg.splits import folds, load_split, save_split, split
from shared.ecg.store import EcgStore, pack
from shared.locks import locked
from shared.runs.config import SimulateConfig, cache_root, official_tree
from shared.store import disk_errors


@dataclass
class Packed:
    """A packed store and where it comes from."""

    store: EcgStore
    dataset: str
    root: Path  # tree of the release, official or simulated
    folder: Path  # of the store; what is derived from it (splits, labels) lies there too
    sha256: dict[str, str]  # of the store's files
    source: str  # "simulated" or the data set's name, for the scorecard


@dataclass
class Prepared:
    """A packed store, the split's ids and what identifies both."""

    store: EcgStore
    splits: dict[str, list[str]]  # train, val, test -> record ids
    data_hash: str  # of signals, reports and split
    split_sha256: str
    source: str

    def records(self, part: str) -> pd.DataFrame:
        """Rows of the store's table of one part, in the order of the split; the column `row` is the store's index."""
        table = self.store.records.assign(row=range(len(self.store.records))).set_index("record_id", drop=False)
        return table.loc[self.splits[part]]


def simulator_hash() -> str:
    """Of the simulator's source: trees of another version are never taken for this one's."""
    source = Path(simulate.__file__).parent
    files = [*sorted(source.glob("simulate*.py")), source / "codes.py"]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


def simulated_tree(dataset: str, sim: SimulateConfig) -> Path:
    """Folder of the simulated release, written once, whichever of several processes comes first."""
    name = f"{dataset}-n{sim.n_records}-seed{sim.seed}-{sim.fs_hz:g}hz-{simulator_hash()}"
    root = cache_root() / "simulated" / name / dataset
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.parent / ".lock"), disk_errors(root.parent):
        if not (root / "truth.parquet").exists():
            for left in root.parent.glob(f"{dataset}*"):  # of a killed run
                shutil.rmtree(left)
            simulate.write(dataset, root, sim.n_records, sim.seed, fs_hz=sim.fs_hz, workers=os.cpu_count() or 1)
    return root


def packed(dataset: str, fs_hz: float, sim: SimulateConfig | None) -> Packed:
    """The packed store of a release at `fs_hz`; simulated first where `sim` is given.

    Raises FileNotFoundError naming the missing folder and the command that fetches it.
    """
    if dataset not in LOADERS:
        raise ValueError(f"data set {dataset!r} is not one of {sorted(LOADERS)}")
    if sim:
        root, source_fs, source = simulated_tree(dataset, sim), sim.fs_hz, "simulated"
        name = root.parent.name
    else:
        root, source_fs, source = official_tree(dataset), None, dataset
        name = f"{dataset}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"
        if dataset == "ptb-xl" and fs_hz == 100:
            source_fs = 100  # the release has its own 100 Hz files
    out = cache_root() / "packed" / f"{name}-{fs_hz:g}hz"
    manifest = pack(dataset, root, out, source_fs_hz=source_fs, fs_hz=fs_hz)
    return Packed(EcgStore(out), dataset, root, out, manifest["sha256"], source)


def with_split(data: Packed, protocol: str, seed: int) -> Prepared:
    """The store with a split of `shared.ecg.splits`; `fold-1` .. `fold-10`: that official fold is the test set."""
    file = data.folder / f"split-{protocol}-seed{seed}.json"
    if not file.exists():
        if protocol.startswith("fold-"):
            parts = folds(data.store.records)[int(protocol.removeprefix("fold-")) - 1]
        else:
            parts = split(data.store.records, protocol, seed)
        save_split(parts, file)
    split_hash = hashlib.sha256(file.read_bytes()).hexdigest()
    data_hash = hashlib.sha256(("".join(data.sha256.values()) + split_hash).encode()).hexdigest()[:16]
    return Prepared(data.store, load_split(file), data_hash, split_hash, data.source)
