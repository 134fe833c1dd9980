"""Small test hospitals in memory: a finding is a bright square on noise, its mask the square."""

import numpy as np
import pandas as pd

from synth_medvlp.downstream import EXTRA, HEADLINE, PARTS, Release, Task

SIZE = 32


def squares(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, SIZE, SIZE], masks likewise 0/1)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(40, 90, (n, SIZE, SIZE)).astype(np.uint8)
    masks = np.zeros_like(images)
    for i in np.flatnonzero(rng.random(n) < share):
        y, x = rng.integers(2, SIZE - 14, 2)
        masks[i, y : y + 10, x : x + 12] = 1
    return images + 120 * masks, masks


def release(
    n: int = 60, share: float = 0.5, seed: int = 0, dataset: str = "rsna-pneumonia", name: str = "rsna",
    classes: tuple[str, ...] = ("Pneumonia",), kind: str = HEADLINE,
) -> Release:  # fmt: skip
    """Half of the images train, a quarter each val and test; two images of a patient. The first class is the square,
    the others are drawn at random."""
    images, masks = squares(n, share, seed)
    rng = np.random.default_rng(seed + 1)
    labels = rng.integers(0, 2, (n, len(classes))).astype(np.int8)
    labels[:, 0] = masks.any((1, 2))
    part = np.array([PARTS[max(0, 4 * i // n - 1)] for i in range(n)])
    ids = [f"{name}{i:03d}" for i in range(n)]
    patients = [f"p{i // 2:03d}" for i in range(n)]
    records = pd.DataFrame({"record_id": ids, "patient_id": patients, "part": part, "source": "a", "row": range(n)})
    meta = {"sha256": [str(seed)], "left_out": {}, "skipped": {}}
    found = Release(dataset, "simulated", images, masks, records, meta)
    found.tasks[name] = task(found, name, classes, labels, kind)
    return found


def task(of: Release, name: str, classes, labels: np.ndarray, kind: str = EXTRA, rows=None, **options) -> Task:
    """A task on all or some rows of a release."""
    records = of.records if rows is None else of.records.iloc[rows]
    identity = tuple(records.record_id), tuple(records.patient_id), records.part.to_numpy(str)
    return Task(name, kind, tuple(classes), labels if rows is None else labels[rows], *identity, **options)
