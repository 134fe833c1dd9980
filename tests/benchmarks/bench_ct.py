"""Argus: preparing CT volumes, training steps with and without pixel shuffle, a 512x512x256 file through the model.

The common recipe is what public code does: `nibabel` get_fdata, clip, torch's trilinear `interpolate`; here in as many
processes as the store has threads, its results thrown away, while the store also checks, hashes and writes. Files come
from the page cache on both sides; the two alternate and the fastest of each counts.
Steps and forward passes run in processes of their own, so that each peak of memory is its own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch

from shared.ct.geometry import Geometry
from shared.ct.simulate import simulate_patient
from shared.ct.simulate_layouts import save_nifti
from shared.ct.store import CtStore, pack
from shared.metrics.benchmark import Row
from tests.benchmarks.steps import against_reading, step_s

SMALL = (64, 128, 128)  # simulated
REPEAT = (3, 4, 4)  # each of its voxels this often: (192, 512, 512), the matrix of scanners
TO = (64, 256, 256)  # rung nr
N_FILES, N_VOLUMES, N_ROUNDS = 2, 8, 3
GOAL = 3.0
# ViT-B on one 512x512x256 volume: patch D, H, W -> operations (reference: token arithmetic, without patches).
WHOLE = {"16,32,32": 1.31e12, "16,16,16": 12.7e12}
WHOLE_SHAPE = [256, 512, 512]
NARROW = {"hidden_size": 256, "layers": 4, "heads": 4, "kv_heads": 2}
LLAMA_3B = {"hidden_size": 3072, "layers": 28, "heads": 24, "kv_heads": 8, "intermediate_size": 8192,
            "vocab_size": 128_256, "tie_word_embeddings": True}  # fmt: skip


def run() -> list[Row]:
    """All rows; several minutes on two cores, 5 GB of memory, 0.4 GB of temporary disk."""
    return [*preparing(), *steps(), loading(), *(whole_volume(patch) for patch in WHOLE)]


def on_gpu() -> list[Row]:
    """What a GPU changes; 13 GB of its memory."""
    whole = [whole_volume(patch) for patch in WHOLE]
    return [*steps(), *whole, *(whole_training(patch) for patch in ("16,16,16", "4,16,16"))]


# --- preparing --------------------------------------------------------------------------------------------------------


def preparing() -> list[Row]:
    folder = Path(tempfile.mkdtemp(prefix="bench-ct-"))
    try:
        paths = write_volumes(folder / "files", N_FILES)
        workers = os.cpu_count() or 1
        many = [paths[i % N_FILES] for i in range(N_VOLUMES)]
        ours, recipe = 0.0, 0.0
        spawn = {"mp_context": get_context("spawn"), "initializer": torch.set_num_threads, "initargs": (1,)}
        with ProcessPoolExecutor(workers, **spawn) as pool:
            list(pool.map(common_recipe, paths * workers))  # warm: imports, page cache
            for k in range(N_ROUNDS):
                start = time.perf_counter()
                list(pool.map(_recipe_thrown_away, many))
                recipe = max(recipe, N_VOLUMES / (time.perf_counter() - start))
                start = time.perf_counter()
                pack(index_of(many), {"bimcv-r": folder / "files"}, folder / f"store-{k}", Geometry(TO), workers)
                ours = max(ours, N_VOLUMES / (time.perf_counter() - start))
        store = CtStore(folder / "store-0")
        difference = max(np.abs(store.hu(i) - common_recipe(paths[i])).max() for i in range(N_FILES))
    finally:
        shutil.rmtree(folder)
    if difference > 0.5 + 1e-4 * 2000:  # rounding to int16, and 1e-4 of the window
        raise AssertionError(f"store and common recipe differ by {difference} HU")
    name = f"ct: preparing 512x512x192 to 256x256x64, {workers} cores"
    reference = f"{recipe:,.2f}/s nibabel + torch trilinear (difference {difference:.2f} HU)"
    return [Row(name, ours, "volumes/s", reference, ours / recipe, GOAL)]


def write_volumes(folder: Path, n: int, repeat: tuple[int, int, int] = REPEAT) -> list[Path]:
    """n simulated chest CTs with the matrix of scanners, noise in every voxel, as BIMCV-R stores them."""
    folder.mkdir(parents=True)
    paths = []
    for k in range(n):
        small = simulate_patient("bimcv-r", 0, k, SMALL)[0].volume
        hu = small.hu
        for axis, times in enumerate(repeat):
            hu = hu.repeat(times, axis)
        hu = hu + np.random.default_rng(k).normal(0, 12, hu.shape).astype(np.int16)
        spacing = [s / times for s, times in zip(small.grid.spacing_mm, repeat, strict=True)]
        paths.append(folder / f"sub-S{k}_ses-E0_run-1_bp-chest_ct.nii.gz")
        save_nifti(paths[-1], np.maximum(hu, -1024), spacing, (0.0, 0.0, 0.0))
    return paths


def index_of(paths: list[Path]) -> pd.DataFrame:
    """A store's index: INDEX_COLUMNS and source."""
    nothing = {"split": "", "findings": "", "impression": "", "language": "en", "labels": {}, "flag": ""}
    nothing |= {"n_slices": 0, "spacing_mm": (), "origin_mm": (), "direction": (), "blank_header": False}
    nothing |= {"slope": float("nan"), "intercept": float("nan"), "source": "bimcv-r"}
    ids = ("volume_id", "study_id", "patient_id")
    return pd.DataFrame([nothing | dict.fromkeys(ids, f"v{i}") | {"path": p.name} for i, p in enumerate(paths)])


def common_recipe(path: Path) -> np.ndarray:
    """float32 [D, H, W] of TO in HU, as public code prepares a volume (axes of the file turned to z, y, x)."""
    import nibabel as nib

    hu = np.clip(nib.load(path).get_fdata(), -1000, 1000)
    volume = torch.tensor(hu, dtype=torch.float32).permute(2, 1, 0)[None, None]
    return torch.nn.functional.interpolate(volume, TO, mode="trilinear", align_corners=False)[0, 0].numpy()


def _recipe_thrown_away(path: Path) -> None:
    common_recipe(path)


# --- steps ------------------------------------------------------------------------------------------------------------


def steps() -> list[Row]:
    """Steps of volume -> report with pixel shuffle, against all tokens in the LLM; peak memory of each."""
    found = {name: in_process("step", name) for name in ("pixel_shuffle_3d", "none")}
    shuffled, whole = found["pixel_shuffle_3d"], found["none"]
    name = f"argus: steps, pixel shuffle, {shuffled['tokens']} visual tokens, {shuffled['where']}"
    rate, other = 1 / shuffled["seconds"], 1 / whole["seconds"]
    reference = f"{other:,.2f}/s without, {whole['tokens']:,} tokens"
    memory = f"{whole['peak_mb']:,.0f} MB without"
    return [
        Row(name, rate, "steps/s", reference, rate / other),
        Row(f"{name}: peak memory", shuffled["peak_mb"], "MB", memory, whole["peak_mb"] / shuffled["peak_mb"]),
    ]


def loading() -> Row:
    """A step of the laptop tier's second stage against the reading of its batch: loading must not be the bottleneck."""
    from argus.config import parse
    from argus.prep import prepare
    from argus.train import build

    few = "--data.simulate.n_patients={ct-rate: 40, bimcv-r: 15, inspect: 15}"
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CACHE_ROOT=folder):
        cfg = parse(["--config=argus/configs/laptop.yaml", few])
        cfg.model.backbone = cfg.reproduce.backbones["small"]
        model, _, train_set, collate = build(cfg, prepare(cfg))
        items = np.random.default_rng(0).permutation(len(train_set))[: cfg.train.micro_batch].tolist()
        read = lambda rows: collate([train_set[i] for i in rows])  # noqa: E731
        return against_reading("argus", model.train(), read, items, cfg.train.bf16)


def whole_volume(patch: str) -> Row:
    """A file of 512x512x256 voxels through ArgusModel, forward."""
    with tempfile.TemporaryDirectory() as folder:
        (file,) = write_volumes(Path(folder) / "files", 1, (4, 4, 4))
        found = in_process("whole", patch, str(file))
    model = f"ViT-B, patch {patch}, narrow LLM"
    name = f"argus: 512x512x256 file to logits, {model}, {found['tokens']:,} tokens, {found['where']}"
    rate = WHOLE[patch] / found["vit_s"] / 1e9
    parts = f"reading {found['read_s']:.1f} s, ViT {found['vit_s']:.1f} s; peak {found['peak_mb']:,.0f} MB"
    reference = f"its ViT at {rate:,.0f} GFLOP/s, one of its matrix products at {found['product']:,.0f}; {parts}"
    return Row(name, found["seconds"], "s", reference, rate / found["product"])


def whole_training(patch: str) -> Row:
    """Forward and backward, without the optimiser, of one 512x512x256 volume: ViT-B, pixel shuffle, an LLM of 3B with
    LoRA, 1,024 tokens of text."""
    found = in_process("train", patch)
    name = f"argus: forward and backward, 512x512x256, ViT-B, patch {patch}, 3B LLM, {found['where']}"
    reference = f"peak {found['peak_mb']:,.0f} MB; {found['tokens']:,} visual tokens to the LLM"
    return Row(name, found["seconds"], "s", reference)


def in_process(what: str, *which: str) -> dict:
    """Seconds, peak_mb, tokens and where of `step`, `whole` or `train`, from a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_ct", what, *which]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: it begins at what the process that started this one had reached.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _step(compressor: str) -> dict:
    """Forward and backward of two volumes of 64x128x128 and 96 tokens of text; LoRA, ViT and compressor trained."""
    from argus.data import train_tokenizer
    from argus.model import ArgusModel, ModelConfig

    device, shape = "cuda" if torch.cuda.is_available() else "cpu", [64, 128, 128]
    torch.manual_seed(0)
    cfg = ModelConfig(
        patch=[4, 16, 16], width=192, depth=4, heads=3, mlp=768, compressor=compressor,
        llm=NARROW, lora_dropout=0.0,
    )  # fmt: skip
    model = ArgusModel.build(cfg, shape, train_tokenizer(["No nodule is seen."], 300)).to(device).train()
    ids = torch.randint(3, 250, (2, 96), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    inputs["volume"] = torch.randn(2, 1, *shape, device=device).clamp(-1, 1)
    seconds = min(step_s(model, inputs, device, bf16=device == "cuda") for _ in range(4))
    return {"seconds": seconds, "tokens": model.compressor.n_tokens}


def _whole(patch: str, file: str = "") -> dict:
    """From a NIfTI file (one of its own, where none is named) to the logits of a prompt: ViT-B, pixel shuffle, a narrow
    LLM."""
    if not file:
        with tempfile.TemporaryDirectory() as folder:
            return _whole(patch, str(write_volumes(Path(folder) / "files", 1, (4, 4, 4))[0]))
    from argus.data import prompt_batch, train_tokenizer
    from argus.model import ArgusModel, ModelConfig
    from argus.predict import prepared_as, read
    from argus.prep import HU

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["No nodule is seen."], 300)
    cfg = ModelConfig(patch=[int(n) for n in patch.split(",")], llm=NARROW)
    model = ArgusModel.build(cfg, WHOLE_SHAPE, tokenizer).to(device).eval()
    prompt = {k: v.to(device) for k, v in prompt_batch(["findings"], tokenizer).items()}
    spent: dict = {}  # by the ViT
    model.encoder.register_forward_pre_hook(lambda *_: spent.update(begun=now(device)))
    model.encoder.register_forward_hook(lambda _, __, out: spent.update(ended=now(device), tokens=out[1].shape[1]))
    data = {"shape": WHOLE_SHAPE, "spacing_mm": None, "clip_hu": [-1000, 1000], "slice_only": False}
    start = time.perf_counter()
    volume = torch.from_numpy(prepared_as(read(Path(file)), data).hu.astype(np.float32))[None, None] / HU
    read_s = time.perf_counter() - start
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for _ in range(2 if device == "cuda" else 1):  # the first pass on a GPU loads its kernels
            start = now(device)
            model(**prompt, volume=volume.to(device))
            seconds = read_s + now(device) - start
    vit_s, tokens = spent["ended"] - spent["begun"], spent["tokens"]
    product = product_rate(device, tokens, cfg.width, cfg.mlp)
    return {"seconds": seconds, "read_s": read_s, "vit_s": vit_s, "tokens": tokens, "product": product}


def product_rate(device: str, rows: int, width: int, mlp: int) -> float:
    """GFLOP/s of what a ViT does most, [rows, width] x [width, mlp] in the type of its products."""
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, device=device, dtype=kind) for size in ((rows, width), (width, mlp)))
    seconds = float("inf")
    for _ in range(10):
        start = now(device)
        left @ right
        seconds = min(seconds, now(device) - start)
    return 2 * rows * width * mlp / seconds / 1e9


def now(device: str) -> float:
    """Seconds, once the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _train(patch: str) -> dict:
    """Forward and backward with activation checkpointing; the LLM's weights are random, as many as in Llama 3.2 3B."""
    from argus.data import train_tokenizer
    from argus.model import ArgusModel, ModelConfig

    if not torch.cuda.is_available():
        raise RuntimeError("forward and backward at this size need a GPU of 80 GB")
    torch.manual_seed(0)
    text = 1024
    cfg = ModelConfig(patch=list(map(int, patch.split(","))), factors=[2, 4, 4], llm=LLAMA_3B)
    torch.set_default_dtype(torch.bfloat16)  # of the random backbone; ViT, compressor and LoRA are float32 below
    with torch.device("cuda"):
        model = ArgusModel.build(cfg, WHOLE_SHAPE, train_tokenizer(["No nodule is seen."], 300))
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.gradient_checkpointing_enable()
    model.train()
    ids = torch.randint(3, 250, (1, text), device="cuda")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    inputs["volume"] = torch.randn(1, 1, *WHOLE_SHAPE, device="cuda").clamp(-1, 1)
    seconds = min(step_s(model, inputs, "cuda", bf16=True) for _ in range(3))
    return {"seconds": seconds, "tokens": model.compressor.n_tokens}


if __name__ == "__main__":
    measured = {"step": _step, "whole": _whole, "train": _train}[sys.argv[1]](*sys.argv[2:])
    where = "GPU, bf16" if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    print(json.dumps(measured | {"peak_mb": _peak_mb(), "where": where}))
