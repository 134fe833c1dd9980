"""Training through the real entry point: kill and resume, ZeRO, batch identity, a loss that is not finite."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from packages import PACKAGES, environment, run, starter
from safetensors.numpy import load_file

LOG_ALL = ("--train.log_steps=1",)


def losses(folder: Path) -> list[float]:
    facts = json.loads(next(folder.glob("**/run.json")).read_text())
    return [entry["loss"] for entry in facts["loss_log"]]


def train(package, folder: Path, cache: Path, *options: str, **how) -> str:
    run_options = ("--config", package.config, f"--runs={folder}", *LOG_ALL, *options)
    return run(f"{package.name}.train", *run_options, cache=cache, **how)


def test_killed_run_resumes_to_the_same_losses(package, cache, tmp_path):
    options = (*package.train, "--train.epochs=10", "--train.save_steps=5")
    train(package, tmp_path / "whole", cache, *options)
    again = ("--config", package.config, f"--runs={tmp_path / 'killed'}", *LOG_ALL, *options)
    killed = starter().start(f"{package.name}.train", again, environment(cache), os.devnull)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("**/checkpoint-10/trainer_state.json")):
        assert starter().poll(killed) is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(killed, signal.SIGKILL)
    assert starter().wait([killed]) == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("**/run.json")), "killed too late to show anything"
    work = next((tmp_path / "killed").glob("**/checkpoint-10")).parent
    (work / "checkpoint-999").mkdir()  # what a kill leaves of a checkpoint that it meets in the making
    train(package, tmp_path / "killed", cache, *options, fresh=True)  # nothing depends on a process's hash seed
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_other_weights_in_a_run_take_the_scores_of_the_old_ones_away(package, cache, tmp_path):
    train(package, tmp_path, cache, *package.train)
    run_folder = next(tmp_path.glob("**/run.json")).parent
    (run_folder / "metrics.json").write_text("{}")
    train(package, tmp_path, cache, *package.train)
    assert (run_folder / "metrics.json").exists(), "nothing was trained again"
    train(package, tmp_path, cache, *package.train, "--train.lr=1e-5")
    assert not (run_folder / "metrics.json").exists()


def test_zero_stages_agree_with_plain_data_parallelism(package, cache, tmp_path):
    options = (*package.train, "--train.global_batch=16", "--train.micro_batch=8")
    train(package, tmp_path / "ddp", cache, *options, processes=2)
    plain = losses(tmp_path / "ddp")
    assert len(plain) >= 4 and plain[-1] < plain[0]
    for stage in (1, 2, 3):
        deepspeed = f"--train.deepspeed=shared/runs/zero{stage}.json"
        torchrun = stage == 3 and package is PACKAGES["meit"]  # one stands for all: they start in the same way
        train(package, tmp_path / f"zero{stage}", cache, *options, deepspeed, processes=2, fresh=torchrun)
        assert losses(tmp_path / f"zero{stage}") == pytest.approx(plain, abs=2e-4), f"ZeRO-{stage}"


def test_two_processes_equal_one_without_batchnorm(package, cache, tmp_path):
    options = (*package.no_norm, "--train.global_batch=16")
    alone = 16 if package.joined else 8
    train(package, tmp_path / "one", cache, *options, f"--train.micro_batch={alone}")
    train(package, tmp_path / "two", cache, *options, "--train.micro_batch=8", processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    facts = [json.loads(next((tmp_path / n).glob("**/run.json")).read_text())["batch"] for n in ("one", "two")]
    assert facts == [f"16 = {alone} x {16 // alone} x 1", "16 = 8 x 1 x 2"]


def test_frozen_weights_survive_zero3(package, smoke, cache, tmp_path):
    if not package.frozen:
        pytest.skip(f"{package.name}: no weights of its models are frozen")
    backbone = next((smoke / "runs").glob(f"**/{package.frozen_from}/seed0/checkpoint"))
    options = [o.format(backbone=backbone) for o in package.frozen]
    zero3 = "--train.deepspeed=shared/runs/zero3.json"
    train(package, tmp_path, cache, *options, zero3, processes=1)
    before = load_file(backbone / "model.safetensors")
    after = load_file(next(tmp_path.glob("**/checkpoint/model.safetensors")))
    frozen = [n for n in after if re.fullmatch(package.frozen_weights, n)]
    assert len(frozen) > 10
    for name in frozen:
        np.testing.assert_array_equal(after[name], before[name.replace(".base_layer", "")], err_msg=name)
    assert any(np.abs(w).max() > 0 for n, w in after.items() if "lora_B" in n), "LoRA was trained and saved"


def test_batch_identity_is_checked(package, cache, tmp_path):
    printed = train(package, tmp_path, cache, *package.train, "--train.global_batch=20", check=False)
    assert "train.global_batch 20" in printed


def test_a_training_set_smaller_than_one_batch_is_refused(package, cache, tmp_path):
    sizes = ("--train.global_batch=4096", "--train.micro_batch=4096")
    printed = train(package, tmp_path, cache, *package.train, *sizes, check=False)
    assert re.search(r"\d+ training \w+ do not fill one batch.*: lower train.micro_batch", printed), printed[-500:]
    assert not list(tmp_path.glob("**/run.json"))


def test_non_finite_loss_stops_with_a_clear_error(package, cache, tmp_path):
    blow_up = (*package.blow_up, "--train.warmup_ratio=0", "--train.epochs=3")
    printed = train(package, tmp_path, cache, *package.train, *blow_up, check=False)
    assert re.search(r"loss is (nan|inf)", printed), printed[-500:]
    assert not list(tmp_path.glob("**/run.json"))
