"""`kill -9` at random points of every long stage: nothing is lost, and the end is that of an undisturbed run."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from packages import PACKAGES, environment, starter
from safetensors.numpy import load_file
from test_training import losses

pytestmark = pytest.mark.slow
KILLS = 3
BEFORE = {"prep": (), "generate": (), "train": ("prep",), "evaluate": ("prep", "train")}  # stages done undisturbed
TRAIN = ("--train.epochs=6", "--train.save_steps=2", "--train.log_steps=1")
# What a store has under way, and what holds seconds (of reports and images, whose tables are compared).
LEFT_OUT = ("journal.jsonl", "seconds.txt", "stats.json", "manifest-0.jsonl")
STAGES = [(name, stage) for name in PACKAGES for stage in BEFORE if stage != "generate" or name == "synth_medvlp"]


def start(package, stage: str, world: Path) -> int:
    """The stage as a process of its own; a world holds all that it writes."""
    made = package.made if stage == "generate" else ()
    options = ["--config", package.config, f"--runs={world / 'runs'}", *package.train, *made, *package.scored]
    options += TRAIN if stage != "prep" else ()
    return starter().start(f"{package.name}.{stage}", options, environment(world / "cache"), world / "printed")


def finish(package, stage: str, world: Path) -> float:
    """Seconds that the stage takes to its end."""
    before = time.monotonic()
    status = starter().wait([start(package, stage, world)])
    assert status == 0, f"{stage} ended with {status}:\n{(world / 'printed').read_text()[-3000:]}"
    return time.monotonic() - before


def kill_after(package, stage: str, world: Path, seconds: float) -> bool:
    """SIGKILL; False where the stage had ended before. What it had started ends with it."""
    pid, end = start(package, stage, world), time.monotonic() + seconds
    while time.monotonic() < end:
        if (status := starter().poll(pid)) is not None:
            assert status == 0, (world / "printed").read_text()[-3000:]
            return False
        time.sleep(0.01)
    workers = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    starter().wait([pid])
    _, alive = psutil.wait_procs(workers, timeout=20)
    left = [p.pid for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left, "workers outlived the killed stage"
    return True


def outcome(stage: str, world: Path) -> dict:
    """What the stage leaves: content of its files, losses and weights, or metrics."""
    if stage == "train":
        weights = load_file(next(world.glob("runs/**/checkpoint/model.safetensors")))
        return {"losses": losses(world)} | {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in weights.items()}
    if stage == "evaluate":
        return json.loads(next(world.glob("runs/**/metrics.json")).read_text())["metrics"]
    kept = [p for p in (world / "cache").rglob("*") if p.is_file() and p.name not in LEFT_OUT]
    whole = [p for p in kept if ".tmp" not in p.name and ".part" not in p.name]
    content = {p: gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in whole}  # no dates
    return {str(p.relative_to(world)): hashlib.sha256(data).hexdigest() for p, data in content.items()}


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_killed_stage_ends_like_an_undisturbed_one(name, stage, tmp_path):
    package, rng = PACKAGES[name], np.random.default_rng(zlib.crc32(f"{name} {stage}".encode()))
    begun, whole, killed = (tmp_path / name for name in ("begun", "whole", "killed"))
    begun.mkdir()
    for before in BEFORE[stage]:
        finish(package, before, begun)
    shutil.copytree(begun, whole)
    shutil.copytree(begun, killed)
    seconds, n_kills = finish(package, stage, whole), 0
    for share in rng.uniform(0.1, 0.9, 5 * KILLS):
        if kill_after(package, stage, killed, seconds * share):
            n_kills += 1
        elif not n_kills:  # too late, since the first start is the slowest: again from the beginning, and sooner
            seconds *= 0.7
            shutil.rmtree(killed)
            shutil.copytree(begun, killed)
        if n_kills == KILLS:
            break
    assert n_kills, "always too late: nothing was shown"
    finish(package, stage, killed)
    expected = outcome(stage, whole)
    assert expected and outcome(stage, killed) == expected
