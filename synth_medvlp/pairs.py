"""Image-report pairs as VLP reads them: the one format of real and synthetic training data (reference: A1, S7).

A folder holds images.npy uint8 [n, size, size] (bright = dense), pairs.parquet (one row per image, in their order) and
meta.json (size, checksums, what it was made from).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ("id", "patient", "study", "view", "findings", "impression", "source")


@dataclass(frozen=True)
class Pairs:
    """images: uint8 [n, size, size], memory-mapped; table: n rows with COLUMNS and what a stage adds."""

    images: np.ndarray
    table: pd.DataFrame
    meta: dict

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sha256(self) -> str:
        """Of pixels and texts."""
        return hashlib.sha256((self.meta["images_sha256"] + self.meta["table_sha256"]).encode()).hexdigest()[:16]


def write_pairs(folder: Path, images: np.ndarray, table: pd.DataFrame, made_from: dict) -> Pairs:
    """Write all files, meta.json last: a folder without it is unfinished and is written again."""
    missing = [c for c in COLUMNS if c not in table]
    if missing or images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(table):
        raise ValueError(f"pairs need uint8 images [n, size, size], not {images.dtype} {images.shape}, and as many "
                         f"rows ({len(table)}) with the columns {', '.join(COLUMNS)}; missing: {missing}")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.tmp.npy", images, allow_pickle=False)
    os.replace(folder / "images.tmp.npy", folder / "images.npy")
    table.reset_index(drop=True).to_parquet(folder / "pairs.tmp")
    os.replace(folder / "pairs.tmp", folder / "pairs.parquet")
    sums = {f"{k}_sha256": _sha256(folder / f) for k, f in (("images", "images.npy"), ("table", "pairs.parquet"))}
    meta = {"n": len(table), "size": int(images.shape[1]), **sums, "made_from": made_from}
    (folder / "meta.tmp").write_text(json.dumps(meta, indent=1, sort_keys=True))
    os.replace(folder / "meta.tmp", folder / "meta.json")
    return read_pairs(folder)


def read_pairs(folder: Path) -> Pairs:
    """Raises FileNotFoundError for an unfinished folder, ValueError where files disagree with meta.json."""
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(f"{folder}: no meta.json, so no finished pairs; run the stage that makes them again")
    meta = json.loads((folder / "meta.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    table = pd.read_parquet(folder / "pairs.parquet")
    if len(images) != meta["n"] or len(table) != meta["n"]:
        raise ValueError(f"{folder}: {len(images)} images and {len(table)} rows, meta.json says {meta['n']}; remove it")
    return Pairs(images, table, meta)


def verify(folder: Path) -> None:
    """Raises ValueError where a file is not the one that was written."""
    meta = json.loads((folder / "meta.json").read_text())
    for key, name in (("images", "images.npy"), ("table", "pairs.parquet")):
        if _sha256(folder / name) != meta[f"{key}_sha256"]:
            raise ValueError(f"{folder / name} differs from meta.json; remove the folder and make it again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
