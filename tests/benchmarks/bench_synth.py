"""Synthetic Med-VLP: preparing and reading radiographs, batched generation, a training step against its loading.

The common recipe is what public code does in its data loader, each time an image is asked for: decode the file, resize
it by area averaging, pad it to a square. Ours does that once, and reads the packed pixels from then on. The two give
the same array, and both are measured with as many threads, and as loaders of batches in an order drawn anew.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from shared.metrics.benchmark import Row
from synth_medvlp import simulate
from synth_medvlp.config import Config, parse
from synth_medvlp.data import Collator, PairDataset, sentences_of
from synth_medvlp.datasets import read_image
from synth_medvlp.datasets.images import read_pixels
from synth_medvlp.diffusion import Generator
from synth_medvlp.entities import DictionaryNer, mine
from synth_medvlp.generate import real
from synth_medvlp.model import VlpModel, tokeniser_of
from synth_medvlp.pairs import write_pairs
from synth_medvlp.record import CxrRecord
from synth_medvlp.sampler import Sampler
from synth_medvlp.train_writer import training_reports
from synth_medvlp.writer import make
from tests.benchmarks.steps import against_reading

SHAPE, TO = (3056, 2544), 256  # pixels of a detector; side of the packed image at paper tier
N_FILES, N_LOADED, N_PACKED, N_ROUNDS, BATCH = 16, 128, 8000, 3, 32  # 8,000 packed images: 0.5 GB


def run() -> list[Row]:
    """All rows; two minutes on two cores."""
    folder = Path(tempfile.mkdtemp(prefix="bench-synth-"))
    try:
        with mock.patch.dict(os.environ, CACHE_ROOT=str(folder / "cache")):
            cfg = parse(["--config=synth_medvlp/configs/laptop.yaml", "--data.simulate.n_patients=150"])
            return [*reading(folder), *generating(cfg), loading(cfg)]
    finally:
        shutil.rmtree(folder)


# --- reading ----------------------------------------------------------------------------------------------------------


def reading(folder: Path) -> list[Row]:
    """Files to packed pixels, and batches of either through the training's data loader."""
    folder.mkdir(exist_ok=True)
    paths, workers = write_files(folder), os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        (ours, made), (theirs, plain) = (rate(lambda f=f: list(pool.map(f, paths))) for f in (prepare, common_recipe))
    if not np.array_equal(made, plain):
        raise AssertionError("packed images and common recipe differ")
    images = packed(folder / "pairs", np.stack(made))
    loaded, _ = rate(lambda: load(Packed(images, N_PACKED), workers), N_PACKED)
    decoded, _ = rate(lambda: load(Decoded(paths), workers), N_LOADED)
    name, same = f"synth: {SHAPE[0]}x{SHAPE[1]} JPG to {TO}x{TO}", f"{workers} threads"
    against = f"{decoded:,.1f}/s decoding the film each time, as many processes"
    return [
        Row(f"{name}, {same}", ours, "images/s", f"{theirs:,.1f}/s common recipe, {same}; equal", ours / theirs),
        Row(f"synth: loader of packed images in random order, {workers} processes", loaded, "images/s", against,
            loaded / decoded),
    ]  # fmt: skip


def rate(make_them: Callable, n: int = N_FILES) -> tuple[float, Sequence]:
    """(items per second, the items) of the fastest of three rounds."""
    best = 0.0
    for _ in range(N_ROUNDS):
        start = time.perf_counter()
        made = make_them()
        best = max(best, n / (time.perf_counter() - start))
    return best, made


def packed(folder: Path, images: np.ndarray) -> Path:
    """A file of N_PACKED images as `write_pairs` leaves it."""
    nothing = dict.fromkeys(("id", "patient", "study", "findings", "impression", "source"), "")
    table = pd.DataFrame([nothing | {"view": "PA"}] * N_PACKED)
    write_pairs(folder, np.resize(images, (N_PACKED, *images.shape[1:])), table, {})
    return folder / "images.npy"


def forget(file: Path) -> None:
    """Written to the disk, and read from there next."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Packed(Dataset):
    """Images of a packed set."""

    def __init__(self, file: Path, n: int):
        self.images, self.n = np.load(file, mmap_mode="r"), n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> np.ndarray:
        return np.array(self.images[i])


class Decoded(Dataset):
    """The same from the files of the release; a file stands for several, which the system keeps in memory."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return N_LOADED

    def __getitem__(self, i: int) -> np.ndarray:
        return common_recipe(self.paths[i % len(self.paths)]).copy()


def load(data: Dataset, workers: int) -> None:
    """All batches, in an order drawn anew; packed images are dropped from memory first, where the system lets them."""
    if isinstance(data, Packed):
        forget(Path(data.images.filename))
    for _ in DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers):
        pass


def write_files(folder: Path) -> list[Path]:
    """Simulated films on the matrix of a detector, with its noise, as JPG files like those of MIMIC-CXR-JPG."""
    from PIL import Image

    paths = []
    for k in range(N_FILES):
        film = Image.fromarray(simulate.simulate_patient("mimic-cxr-jpg", 0, k)[0].image)
        pixels = np.asarray(film.resize(SHAPE[::-1], Image.Resampling.BICUBIC))
        noisy = np.clip(pixels + np.random.default_rng(k).normal(0, 3, SHAPE), 0, 255).astype(np.uint8)
        paths.append(folder / f"{k}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=95)
    return paths


def prepare(path: Path) -> np.ndarray:
    pixels, _ = read_pixels(path)
    return read_image(CxrRecord(path.stem, "", "", "mimic-cxr-jpg", pixels, "PA"), "pad", TO)


def common_recipe(path: Path) -> np.ndarray:
    """uint8 [TO, TO], as public data loaders make it of a file."""
    from PIL import Image, ImageOps

    film = Image.open(path).convert("L")
    width, height = (int(TO * side / max(film.size)) for side in film.size)
    left, top = (TO - width) // 2, (TO - height) // 2
    film = film.resize((width, height), Image.Resampling.BOX)
    return np.asarray(ImageOps.expand(film, (left, top, TO - width - left, TO - height - top)))


# --- generation and training ------------------------------------------------------------------------------------------


def generating(cfg: Config) -> list[Row]:
    """Reports and images of the shipped models, in batches against one at a time, one core."""
    texts = [text for report in training_reports(200, 5, "none") for text in report]
    requests = Sampler(mine(texts, DictionaryNer())[0], cfg.sampler).draw(BATCH)
    seeds = [request.seed for request in requests]
    writer, drawer = make(cfg.writer), Generator(cfg.image, cfg.data.size_px)

    def written(batch: int) -> list[str]:
        writer.cfg = replace(cfg.writer, batch=batch)
        return [reply.text for reply in writer.write_findings(requests, [None] * BATCH, seeds)]

    def drawn(batch: int) -> np.ndarray:
        drawer.cfg = replace(cfg.image, batch=batch)
        return drawer(prompts, seeds)[0].astype(int)

    prompts, rows = written(BATCH), []
    for what, make_them, batch in (("reports", written, BATCH), ("images", drawn, cfg.image.batch)):
        (many, together), (one, alone) = (timed(make_them, size) for size in (batch, 1))
        equal = np.mean([np.array_equal(a, b) for a, b in zip(together, alone, strict=True)])
        reference = f"{one:,.1f}/s one at a time; {equal:.0%} the same"
        rows.append(Row(f"synth: {what} in batches of {batch}, 1 core", many, f"{what}/s", reference, many / one))
    return rows


def timed(make_them: Callable, batch: int) -> tuple[float, Sequence]:
    """(items per second in one thread, the items); the faster of two."""
    threads, rate = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            start = time.perf_counter()
            made = make_them(batch)
            rate = max(rate, BATCH / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return rate, made


def loading(cfg: Config) -> Row:
    """A training step of the laptop tier against the reading of its batch: loading must not be the bottleneck."""
    pairs = real(cfg)
    data = PairDataset([pairs], [None], cfg.data, 0)
    model = VlpModel.build(cfg.model, tokeniser_of(cfg.model.text, sentences_of(pairs))).train()
    collate = Collator(model.tokeniser, cfg.data.augment, cfg.model.image.normalise)
    read = lambda rows: collate([data[i] for i in rows])  # noqa: E731
    return against_reading("synth", model, read, range(cfg.train.micro_batch), cfg.train.bf16)
