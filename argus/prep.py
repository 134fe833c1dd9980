"""Official layouts -> CT-3DRRG manifest -> packed volumes: `python -m argus.prep --config argus/configs/laptop.yaml`.

With `data.simulate` the trees are first written by the simulator, in the official layouts, under CACHE_ROOT; the same
loaders then read them. Every step is cached by what it depends on: a tree by patients, seed and shape, the manifest by
the trees' files and the rules, the store by manifest and geometry. So another input shape packs the same trees again
and draws nothing, and a second call returns at once. `--check` also hashes the store and lists what could not be read.
(Reference: "CT-3DRRG", "SimpleITK rules", "Cache".)
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from argus import manifest
from argus.config import Config, DataConfig, SimulateCt, parse
from shared import ct
from shared.ct.geometry import CLIPS, Geometry
from shared.ct.simulate_findings import LABELS
from shared.ct.simulate_layouts import simulator_hash, write
from shared.ct.store import CtStore, pack
from shared.locks import locked
from shared.runs.config import cache_root, hash_of, official_tree
from shared.store import disk_errors

NOT_READERS = "simulate*.py"  # of shared/ct: files that decide nothing about how a tree is read
HU = 1000.0  # what becomes 1.0 for the model
_MADE: dict = {}  # of this process: hash of what was asked for -> Prepared


@dataclass
class Prepared:
    """Volumes, texts and labels of one benchmark.

    table: one row per volume of the store, in its order: id ("source/volume id"), patient ("source/patient id"), study
    ("source/study id"), source, part ("train", "val", "test"), section, target (the text to write), labels (float32
    [18] in the order of CT-RATE's release, NaN = unknown; None where the source has none), spacing_mm (z, y, x) of the
    stored grid, row (index of the store), and the other columns of the manifest.
    chosen: ids of the training volumes in use (`data.share`). roots: source -> its tree. source: "simulated" or the
    data sets' names. report: of the manifest, with what could not be packed under "store".
    """

    store: CtStore
    table: pd.DataFrame
    chosen: frozenset[str]
    roots: dict[str, Path]
    data_hash: str  # of volumes, texts and parts
    split_sha256: str
    source: str
    report: dict

    def records(self, part: str) -> pd.DataFrame:
        """Rows of one part. Sources are mixed evenly, so that the first n rows hold each in its proportion."""
        rows = self.table[self.table.part == part]
        if part == "train":
            rows = rows[rows.id.isin(self.chosen)]
        groups = rows.groupby("source", sort=False)
        place = (groups.cumcount() + 0.5) / groups.id.transform("size")
        return rows.loc[place.sort_values(kind="stable").index].reset_index(drop=True)

    def batch(self, rows) -> np.ndarray:
        """Volumes of these rows of the store, float32 [B, 1, D, H, W]: HU / 1000, so [-1, 1] in the default window."""
        return self.store.batch_hu(rows)[:, None] / np.float32(HU)


def prepare(cfg: Config) -> Prepared:
    """Simulate (where asked), choose, pack and split; from the cache where done before.

    Raises FileNotFoundError for a missing tree, with the command that fetches it; ValueError where a key of the config
    leaves nothing to train on or to test. A process remembers what it made of simulated patients, which never change.
    """
    data = cfg.data
    key = hash_of([asdict(data), str(cache_root().resolve())])
    if data.simulate and key in _MADE and _MADE[key].store.path.is_dir():
        return _MADE[key]
    roots = {source: simulated_tree(source, data.simulate) if data.simulate else official_tree(source)
             for source in data.sources}  # fmt: skip
    folder, split_sha256, report = chosen_volumes(data, roots)
    # As floats: a config file may say 1000, a parsed one says 1000.0, and both are one store.
    spacing_mm = None if data.spacing_mm is None else tuple(map(float, data.spacing_mm))
    geometry = Geometry(tuple(data.shape), spacing_mm, tuple(map(float, data.clip_hu)), data.clip)
    values = [geometry.spacing_mm, geometry.clip_hu, *([] if geometry.clip == CLIPS[0] else [geometry.clip])]
    out = folder / f"store-{'x'.join(map(str, geometry.shape))}-{hash_of(values)[:8]}"
    table, _ = manifest.load(folder)
    packed = pack(table, roots, out, geometry)
    store = CtStore(out)
    table = records_table(store.volumes)
    content = [packed["sha256"], split_sha256]
    prepared = Prepared(
        store,
        table,
        chosen=share_of_patients(table[table.part == "train"], data.share, data.split_seed),
        roots=roots,
        data_hash=hash_of(content),
        split_sha256=split_sha256,
        source="simulated" if data.simulate else " + ".join(data.sources),
        report=report | {"store": packed["counts"]},
    )
    if data.simulate:
        _MADE[key] = prepared
    return prepared


# --- trees ------------------------------------------------------------------------------------------------------------


def simulated_tree(source: str, sim: SimulateCt) -> Path:
    """Folder of the simulated release, written once, whichever of several processes comes first."""
    n = sim.n_patients.get(source, 0)
    if n < 1:
        raise ValueError(f"data.simulate.n_patients: no number of patients for {source}, which data.sources names")
    name = f"{source}-n{n}-seed{sim.seed}-{'x'.join(map(str, sim.shape))}-{simulator_hash()}"
    root = cache_root() / "simulated" / name / source
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.parent / ".lock"), disk_errors(root.parent):
        if not (root / "truth.parquet").exists():  # the writer takes up what a killed run left
            write(source, root, n, sim.seed, tuple(sim.shape), workers=os.cpu_count() or 1)
    return root


def _files_hash(root: Path) -> str:
    """Of the names and sizes of a tree's files: a tree that grows gets another manifest."""
    digest = hashlib.sha256()
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(f for f in files if not f.startswith(".") and not f.endswith(".part")):
            path = Path(folder) / name
            digest.update(f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _readers_hash() -> str:
    """Of the code that reads trees and chooses volumes."""
    folder = Path(ct.__file__).parent
    files = sorted(set(folder.glob("*.py")) - set(folder.glob(NOT_READERS)))
    return hashlib.sha256(b"".join(f.read_bytes() for f in [*files, Path(manifest.__file__)])).hexdigest()


# --- manifest ---------------------------------------------------------------------------------------------------------


def chosen_volumes(data: DataConfig, roots: dict[str, Path]) -> tuple[Path, str, dict]:
    """(Folder of the manifest, SHA-256 of its id lists, its report); stores made of it lie in the folder too."""
    rules = manifest.Rules(**data.rules)
    trees = {source: [root.parent.name if data.simulate else str(root.resolve()), _files_hash(root)]
             for source, root in roots.items()}  # fmt: skip
    key = hash_of([trees, vars(rules), data.split_seed, _readers_hash()])
    folder = cache_root() / "packed" / f"ct-3drrg-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not (folder / "report.json").exists():
            table, report = manifest.build(roots, rules, data.split_seed, workers=2 * (os.cpu_count() or 1))
            _refuse_empty(report)
            manifest.save(table, report, folder)
    report = json.loads((folder / "report.json").read_text())
    return folder, report["splits_sha256"], report


def _refuse_empty(report: dict):
    """ValueError where the rules leave nothing of a source; it says what they dropped."""
    for source, counts in report["sources"].items():
        if not counts["kept"]:
            text = manifest.describe({"sources": {source: counts}})
            raise ValueError(f"{source}: no volume is left; change data.rules, or ask for more patients\n{text}")


def records_table(volumes: pd.DataFrame) -> pd.DataFrame:
    """Rows of the store with ids that are unique over the sources, labels as arrays, and `row`."""
    table = volumes.reset_index(drop=True)
    for name, column in (("id", "volume_id"), ("patient", "patient_id"), ("study", "study_id")):
        table[name] = table.source + "/" + table[column]
    labels = [_label_array(row.labels) if row.source == "ct-rate" else None for row in table.itertuples()]
    table["labels"] = pd.Series(labels, index=table.index, dtype=object)
    return table.assign(row=np.arange(len(table)))


def _label_array(labels: dict[str, int]) -> np.ndarray | None:
    """float32 [18], NaN where a label is not given; None where none of the 18 is."""
    values = np.array([labels.get(name, np.nan) for name in LABELS], dtype=np.float32)
    return None if np.isnan(values).all() else values


def share_of_patients(train: pd.DataFrame, share: float, seed: int) -> frozenset[str]:
    """Ids of the volumes of a share of the patients of each source; a smaller share is a subset of a larger one."""
    kept: set[str] = set()
    for _, rows in train.groupby("source", sort=True):
        patients = np.random.default_rng(seed).permutation(np.sort(rows.patient.unique()))
        kept |= set(patients[: max(1, round(share * len(patients)))])
    return frozenset(train.id[train.patient.isin(kept)])


# --- command line -----------------------------------------------------------------------------------------------------


def summary(prepared: Prepared) -> dict:
    """Counts and hashes, for a line of JSON."""
    parts = {part: len(prepared.records(part)) for part in manifest.PARTS}
    return {"source": prepared.source, "volumes": len(prepared.store), **parts, "data_hash": prepared.data_hash}


def main(args: list[str] | None = None) -> Prepared:
    args = list(sys.argv[1:] if args is None else args)
    check = "--check" in args
    cfg: Config = parse([arg for arg in args if arg != "--check"])
    prepared = prepare(cfg)
    print(manifest.describe(prepared.report))
    if check:
        prepared.store.verify()
        for skip in prepared.store.manifest["skips"]:
            print(f"could not be read: {skip['source']} {skip['path']}: {skip['reason']} ({skip['detail']})")
        print(f"store: {len(prepared.store)} volumes, SHA-256 as when they were packed, in {prepared.store.path}")
    print(json.dumps(summary(prepared)))
    return prepared


if __name__ == "__main__":
    main()
