"""Synthetic Med-VLP: preparing and reading radiographs, batched generation, a training step against its loading.

The common recipe is what public code does in its data loader, each time an image is asked for: decode the file, resize
it by area averaging, pad it to a square. Ours does that once, and reads the packed pixels from then on. The two give
the same array.
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

from shared.metrics.benchmark import Row
from synth_medvlp import simulate
from synth_medvlp.config import Config, parse
from synth_medvlp.data import Collator, PairDataset
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
N_FILES, N_ROUNDS, BATCH = 8, 3, 32
GOAL = 5.0


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
    """Files to packed pixels, and what the access to an image costs from then on."""
    folder.mkdir(exist_ok=True)
    paths, workers = write_files(folder), os.cpu_count() or 1
    together = one_by_one = 0.0
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(N_ROUNDS):
            start = time.perf_counter()
            ours = list(pool.map(prepare, paths))
            together = max(together, N_FILES / (time.perf_counter() - start))
            start = time.perf_counter()
            theirs = [common_recipe(path) for path in paths]
            one_by_one = max(one_by_one, N_FILES / (time.perf_counter() - start))
    if not np.array_equal(ours, theirs):
        raise AssertionError("packed images and common recipe differ")
    nothing = dict.fromkeys(("id", "patient", "study", "findings", "impression", "source"), "")
    table = pd.DataFrame([nothing | {"view": "PA"}] * N_FILES)
    images, packed = write_pairs(folder / "pairs", np.stack(ours), table, {}).images, 0.0
    for _ in range(N_ROUNDS):
        start = time.perf_counter()
        for i in range(1000 * N_FILES):
            np.array(images[i % N_FILES])
        packed = max(packed, 1000 * N_FILES / (time.perf_counter() - start))
    name = f"synth: {SHAPE[0]}x{SHAPE[1]} JPG to {TO}x{TO}"
    reference = f"{one_by_one:,.1f}/s common recipe, one after the other; equal"
    return [
        Row(f"{name}, {workers} cores", together, "images/s", reference, together / one_by_one),
        Row("synth: access to a prepared image", packed, "images/s", reference, packed / one_by_one, GOAL),
    ]


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
    data = PairDataset([real(cfg)], [None], cfg.data, 0)
    model = VlpModel.build(cfg.model, tokeniser_of(cfg.model.text, data.vocabulary())).train()
    collate = Collator(model.tokeniser, cfg.data.augment, cfg.model.image.normalise)
    read = lambda rows: collate([data[i] for i in rows])  # noqa: E731
    return against_reading("synth", model, read, range(cfg.train.micro_batch), cfg.train.bf16)
