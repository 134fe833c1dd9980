"""Output folders that cannot be written, a disk that is full, and two trainings at once: through every entry point."""

import importlib
import os
import re
import resource
from contextlib import contextmanager

import pytest
from packages import environment, run, starter
from safetensors.numpy import load_file
from test_training import losses

from shared.store import StoreError


@contextmanager
def full_disk():
    """No file grows beyond 3,000 bytes: what a full disk does to its writer, to root's too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def checkpoint_option(package, smoke) -> str:
    return f"--eval.checkpoint={next((smoke / 'runs').glob(f'**/{package.published}/seed0/checkpoint'))}"


def test_folders_that_cannot_be_written_are_named_with_their_key(package, smoke, cache, tmp_path):
    file = tmp_path / "file"  # in the folder's place; a read-only folder is one for root
    file.write_text("")
    calls = {
        ("reproduce", f"--runs={file}/x"): "runs",
        ("reproduce", f"--runs={tmp_path / 'runs'}", f"--results={file}"): "results",
        ("train", f"--runs={file}"): "runs",
        ("evaluate", f"--runs={file}", checkpoint_option(package, smoke)): "runs",
    }
    for (module, *options), key in calls.items():
        printed = run(f"{package.name}.{module}", "--config", package.config, *options, cache=cache, check=False)
        assert re.search(rf"{file}\S*: cannot be written \(.+\); give --{key} another folder", printed), printed[-900:]
        assert "Traceback" not in printed, printed[-900:]


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_a_full_disk_is_one_line_that_names_the_folder(package, module, smoke, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    options = ["--config", package.config, f"--runs={tmp_path}", *package.train]
    if module == "evaluate":
        options += [checkpoint_option(package, smoke)]
    importlib.import_module(f"{package.name}.prep").main(["--config", package.config, *package.train, *package.made])
    main = importlib.import_module(f"{package.name}.{module}").main
    told = rf"^({tmp_path}|{cache})\S*: no room to write .*make room and run again"
    with pytest.raises(StoreError, match=told) as error, full_disk():
        main(options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("**/run.json")) and not list(tmp_path.glob("**/metrics.json"))


@pytest.mark.slow
def test_two_trainings_at_once_equal_two_alone(package, tmp_path):
    def options(folder: str, seed: int) -> tuple[str, ...]:
        more = (f"--runs={tmp_path / folder / str(seed)}", f"--seed={seed}", "--train.log_steps=1")
        return ("--config", package.config, *package.train, *package.made, *more)

    both = environment(tmp_path / "cache-of-both")
    pids = [starter().start(f"{package.name}.train", list(options("both", s)), both, os.devnull) for s in (0, 1)]
    assert starter().wait(pids) == 0
    for seed in (0, 1):
        run(f"{package.name}.train", *options("alone", seed), cache=tmp_path / "cache-of-one")
        one, other = (tmp_path / folder / str(seed) for folder in ("alone", "both"))
        assert losses(one) == losses(other)
        weights = [load_file(next(f.glob("**/checkpoint/model.safetensors"))) for f in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
