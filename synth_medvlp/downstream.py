"""Test hospitals as evaluation reads them: images packed once, labels, parts, masks (reference: Data; Validation sets).

A task is a list of classes on the records of one release. Its kind says where it counts: headline (the mean that the
claims are about), extra, within_source (COVIDx images of one source each) or masks (grounding and segmentation
only). Two variants: corrected (split rules that share no patient or image, frontal images, uncertain labels in no
metric) and as_published (the public split rules; images that they list twice are two records).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from shared.locks import locked
from shared.runs.config import cache_root, hash_of
from shared.store import disk_errors
from synth_medvlp.datasets import LOADERS, boxes_mask, fit_mask, padchest, present, read_image, read_record, targets
from synth_medvlp.datasets.chexpert import HEADLINE_CLASSES
from synth_medvlp.datasets.labels import check_protocol
from synth_medvlp.datasets.splits import PUBLISHED
from synth_medvlp.record import CxrReadError, CxrRecord
from synth_medvlp.trees import CxrSimulateConfig, tree

HEADLINE, EXTRA, WITHIN, MASKS = "headline", "extra", "within_source", "masks"
PARTS = ("train", "val", "test")
PUBLISHED_SEED = 98  # of the few-label subsets as published (Fine-tuned classification, MAVL style)


class Spec(NamedTuple):
    dataset: str
    classes: tuple[str, ...]
    kind: str


TASKS = {
    "chexpert-5": Spec("chexpert", HEADLINE_CLASSES, HEADLINE),
    "nih-14": Spec("nih-cxr", LOADERS["nih-cxr"].CLASSES, HEADLINE),
    "padchest-seen": Spec("padchest", padchest.SEEN, HEADLINE),
    "rsna": Spec("rsna-pneumonia", LOADERS["rsna-pneumonia"].CLASSES, HEADLINE),
    "siim": Spec("siim-acr", LOADERS["siim-acr"].CLASSES, HEADLINE),
    "covidx": Spec("covidx-cxr2", LOADERS["covidx-cxr2"].CLASSES, EXTRA),
    "covidx-within": Spec("covidx-cxr2", LOADERS["covidx-cxr2"].CLASSES, WITHIN),
    "padchest-unseen": Spec("padchest", padchest.UNSEEN, EXTRA),
    "padchest-rare": Spec("padchest", padchest.RARE, EXTRA),
    "covid-rural": Spec("covid-rural", LOADERS["covid-rural"].CLASSES, MASKS),
}
MASKED = ("rsna", "siim", "covid-rural")  # tasks of one class whose releases have boxes or masks of it


@dataclass(frozen=True)
class Task:
    """C classes on n records of a release. labels: int8 [n, C], 1, 0, -1 uncertain; part: [n] of PARTS; left_out:
    classes of the official list that the test part does not show, or shows on every image."""

    name: str
    kind: str
    classes: tuple[str, ...]
    labels: np.ndarray
    record_ids: tuple[str, ...]
    patients: tuple[str, ...]
    part: np.ndarray
    variant: str = "corrected"
    left_out: tuple[str, ...] = ()

    def part_rows(self, part: str) -> np.ndarray:
        """Rows of one part, int64, ascending."""
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
        return np.flatnonzero(self.part == part)

    def few_label_rows(self, fraction: float, draw: int | None = None) -> np.ndarray:
        """Train rows of a few-label subset, ascending.

        corrected: of that share of the patients (at least one), smaller subsets within larger ones of the same draw.
        as_published: of int(share x images) images, the public seed for draw None. ValueError where there are none.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], not {fraction}")
        rows = self.part_rows("train")
        if not len(rows):
            raise ValueError(
                f"{self.name} has no training part: take it out of eval.finetune.tasks, eval.segment.tasks"
            )
        if self.variant == "as_published":
            order = np.random.RandomState(PUBLISHED_SEED + (draw or 0)).permutation(len(rows))
            return np.sort(rows[order[: max(1, int(fraction * len(rows)))]])
        people = np.array(self.patients, dtype=object)[rows]
        drawn = np.random.default_rng(draw or 0).permutation(np.unique(people.astype(str)))
        return rows[np.isin(people, drawn[: max(1, round(fraction * len(drawn)))])]


@dataclass
class Release:
    """A test hospital: images uint8 [n, size, size], masks likewise (0, 1) or None; records with record_id, patient_id,
    part, source and row, the number of the image; and the tasks on them."""

    dataset: str
    source: str  # "simulated" or the data set's name
    images: np.ndarray
    masks: np.ndarray | None
    records: pd.DataFrame
    meta: dict  # sha256, counts of what was left out
    tasks: dict[str, Task] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)  # tasks that cannot be scored here -> why

    def rows(self, parts: Sequence[str] = ("test",)) -> pd.DataFrame:
        """Records that some task has in `parts`: record_id, patient_id, row; none with an uncertain label, which no
        metric can use."""
        ids: set[str] = set()
        for task in self.tasks.values():
            usable = np.isin(task.part, parts) & (task.labels >= 0).all(1)
            ids |= set(np.array(task.record_ids, dtype=object)[usable])
        table = self.records[["record_id", "patient_id", "row"]]
        return table[table.record_id.isin(ids)].reset_index(drop=True)

    def row_of(self, task: Task) -> np.ndarray:
        """Number of the image of each record of a task, int64 [n]."""
        return self.records.set_index("record_id").row.loc[list(task.record_ids)].to_numpy(np.int64)

    def class_names(self) -> list[str]:
        """Official names of all class slots, task by task."""
        return [name for task in self.tasks.values() for name in task.classes]


def load_tasks(
    names: Sequence[str],
    size: int,
    geometry: str,
    simulate: CxrSimulateConfig | None = None,
    variant: str = "corrected",
    all_records: bool = False,
) -> tuple[dict[str, Release], dict[str, str]]:
    """(data set -> Release with the named tasks, absent data set -> why).

    size, geometry: of the packed images (`datasets.read_image`). all_records: all images at hand are the test part.
    Raises ValueError: unknown task; a headline task without a single class to score. FileNotFoundError where no release
    is there.
    """
    check_protocol(variant)
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(f"unknown task {', '.join(unknown) or '(none given)'}: choose from {', '.join(TASKS)}")
    found: dict[str, Release] = {}
    absent: dict[str, str] = {}
    for dataset in dict.fromkeys(TASKS[name].dataset for name in names):
        try:
            root, source = tree(dataset, simulate)
        except FileNotFoundError as error:
            absent[dataset] = str(error)
            continue
        release = _packed(dataset, root, source, size, geometry, variant, all_records)
        for name in names:
            if TASKS[name].dataset == dataset:
                _add_task(release, name, variant)
        if release.tasks:
            found[dataset] = release
    if not found:
        raise FileNotFoundError("no test set is there: " + "; ".join(absent.values()))
    return found, absent


def downstream_hash(downstream: dict[str, Release]) -> str:
    """Of images, labels and parts of all tasks."""
    parts: list = []
    for dataset, release in sorted(downstream.items()):
        parts += [dataset, *release.meta["sha256"]]
        for name, task in sorted(release.tasks.items()):
            parts += [name, task.classes, task.labels.tobytes().hex(), " ".join(task.record_ids), " ".join(task.part)]
    return hash_of(parts)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _add_task(release: Release, name: str, variant: str) -> None:
    """Put a task on its release; one per source where its kind is within_source."""
    spec = TASKS[name]
    columns = [release.meta["classes"].index(c) for c in spec.classes]
    labels = np.stack(release.records.labels)[:, columns].astype(np.int8)
    records = release.records
    if spec.kind != WITHIN:
        made = {name: np.arange(len(records))}
    else:
        made = {f"{name}:{s}": np.flatnonzero(records.source == s) for s in sorted(set(records.source))}
    for full_name, rows in made.items():
        part = records.part.to_numpy(str)[rows]
        task = _scorable(full_name, spec, labels[rows], records.iloc[rows], part, variant)
        if task.classes:
            release.tasks[full_name] = task
        elif spec.kind == HEADLINE:
            raise ValueError(
                f"{full_name} ({release.source}): none of {', '.join(spec.classes)} has both a positive and a negative "
                f"among {int((part == 'test').sum())} test images; take it out of eval.tasks or use more patients"
            )
        else:
            release.empty[full_name] = f"no class with a positive and a negative in test: {', '.join(task.left_out)}"


def _scorable(name: str, spec: Spec, labels: np.ndarray, records: pd.DataFrame, part: np.ndarray, variant: str) -> Task:
    test = labels[part == "test"]
    keep = (test == 1).any(0) & (test == 0).any(0) if len(test) else np.zeros(labels.shape[1], bool)
    if spec.kind == MASKS:
        keep[:] = len(test) > 0  # a set in which every image has a mask still serves grounding
    classes = np.array(spec.classes, dtype=object)
    return Task(
        name,
        spec.kind,
        tuple(classes[keep]),
        np.ascontiguousarray(labels[:, keep]),
        tuple(records.record_id),
        tuple(records.patient_id),
        part,
        variant,
        tuple(classes[~keep]),
    )


# --- packing ----------------------------------------------------------------------------------------------------------


def _packed(dataset: str, root: Path, source: str, size: int, geometry: str, variant: str, every: bool) -> Release:
    """Release without tasks, packed once below CACHE_ROOT; meta.json comes last, so a half folder is written again."""
    code = sorted([Path(__file__), *(Path(__file__).parent / "datasets").glob("*.py")])
    files = [*root.iterdir(), *(root / PUBLISHED).glob("*")]
    files = sorted((f.name, f.stat().st_size) for f in files if f.is_file())
    key = hash_of([root.name, files, size, geometry, variant, every, [hash_of(f.read_text()) for f in code]])
    folder = cache_root() / "downstream" / f"{dataset}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"), disk_errors(folder):
        if not (folder / "meta.json").exists():
            _pack(dataset, root, folder, size, geometry, variant, every)
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {n: folder / f"{n}.npy" for n in ("images", "masks")}
    images, masks = (np.load(f, mmap_mode="r", allow_pickle=False) if f.exists() else None for f in arrays.values())
    return Release(dataset, source, images, masks, pd.read_parquet(folder / "records.parquet"), meta)


def _pack(dataset: str, root: Path, folder: Path, size: int, geometry: str, variant: str, every: bool) -> None:
    loader = LOADERS[dataset]
    index = _index(loader, root, variant)
    warnings = index.attrs["warnings"]
    items, left_out = _items(loader, index, root, variant, every)
    classes = list(dict.fromkeys(c for spec in TASKS.values() if spec.dataset == dataset for c in spec.classes))
    names = list(dict.fromkeys(items.image_id))
    by_id = index.set_index("image_id", drop=False).loc[names]
    labels = targets(by_id.reset_index(drop=True), classes, variant).fillna(-1).astype(np.int8)
    has_mask = any(TASKS[name].dataset == dataset for name in MASKED)
    files = [folder / f"{name}.npy" for name in ("images", "masks")[: 1 + has_mask]]
    arrays = [np.lib.format.open_memmap(f, "w+", np.uint8, (len(names), size, size)) for f in files]

    def read(row: dict) -> str:
        try:
            record = read_record(root, row, dataset)
        except CxrReadError as error:
            return str(error)
        at = place[record.image_id]
        arrays[0][at] = read_image(record, geometry, size)
        if has_mask:
            arrays[1][at] = fit_mask(_mask(record), geometry, size)
        return ""

    place = {name: i for i, name in enumerate(names)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = dict(zip(names, pool.map(read, by_id.to_dict("records")), strict=True))
    skipped = {name: error for name, error in errors.items() if error}
    items = items[~items.image_id.isin(skipped)].reset_index(drop=True)
    if not len(items):
        raise CxrReadError(root, "no records", f"{len(skipped)} unreadable, left out: {left_out}")
    for array in arrays:
        array.flush()
    items["row"] = items.image_id.map(place)
    items["labels"] = list(labels.loc[items.image_id].to_numpy())
    items["source"] = by_id.source.loc[items.image_id].to_numpy(str)
    items.to_parquet(folder / "records.parquet")
    sums = [_sha256(f) for f in files]
    meta = {"sha256": sums, "classes": classes, "left_out": left_out, "skipped": skipped, "warnings": warnings}
    (folder / "meta.tmp").write_text(json.dumps(meta, indent=1))
    os.replace(folder / "meta.tmp", folder / "meta.json")


def _index(loader, root: Path, variant: str) -> pd.DataFrame:
    """Index of a release; as published that of MAVL's files where they list images of another download (RSNA)."""
    if variant == "as_published" and hasattr(loader, "read_published") and (root / PUBLISHED).is_dir():
        return loader.read_published(root, variant)
    return loader.read_index(root)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _items(loader, index: pd.DataFrame, root: Path, variant: str, every: bool) -> tuple[pd.DataFrame, dict[str, int]]:
    """(record_id, image_id, patient_id, part of what is packed; counts of what is not)."""
    left_out = {}
    if every:
        here = present(index, root)
        left_out["file not here"] = len(index) - len(here)
        items = pd.DataFrame({"image_id": here.image_id, "patient_id": here.patient_id, "part": "test"})
    else:
        split = loader.split(index, root, variant)
        items = pd.DataFrame({"image_id": split.image_id, "patient_id": split.patient_id, "part": split.split})
        left_out["in no part"] = int((~index.image_id.isin(split.image_id)).sum())
    if variant == "corrected":
        lateral = items.image_id.isin(index.image_id[index.view == "lateral"])
        left_out["lateral"] = int(lateral.sum())
        items = items[~lateral]
    again = items.groupby("image_id").cumcount()
    items.insert(0, "record_id", items.image_id + again.map(lambda n: f"#{n + 1}" if n else ""))
    return items.reset_index(drop=True), left_out


def _mask(record: CxrRecord) -> np.ndarray:
    """bool [H, W]: the record's mask, or its boxes; nothing on negatives."""
    return record.mask if record.mask is not None else boxes_mask(record.boxes, record.image.shape)
