"""What the conformance suite needs to know of each package. A new package is one more entry here, and one of PAPERS
in the Makefile."""

import functools
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from starter import Starter

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Package:
    name: str
    train: tuple[str, ...]  # options of a small training run from scratch, without anything trained before
    no_norm: tuple[str, ...]  # the same without BatchNorm and dropout: one process must equal two
    blow_up: tuple[str, ...]  # a learning rate at which the loss cannot stay finite
    joined: bool = False  # its loss compares records of a batch: one process must see the global batch at once
    frozen: tuple[str, ...] = ()  # a run that starts from {backbone}, another run's checkpoint, and freezes it
    frozen_from: str = "lm-*"  # pattern of that other run's name
    frozen_weights: str = ""  # a pattern: parameters that must not move in such a run
    published: str = ""  # an experiment of the smoke tier whose run is published
    scored: tuple[str, ...] = ()  # with these `evaluate` serves what `train` made
    made: tuple[str, ...] = ()  # with these a run asks for all that the package keeps in CACHE_ROOT
    unserved: str = ""  # another, whose run is published too, but refused by `predict`
    predict: tuple[str, ...] = ()  # pattern of an input file below CACHE_ROOT, and further options of `predict`

    @property
    def config(self) -> str:
        return f"{self.name}/configs/smoke.yaml"


_SMALL_LM = '--model.llm={"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1}'
PACKAGES = {
    "meit": Package(
        name="meit",
        train=(_SMALL_LM,),
        no_norm=(_SMALL_LM, "--model.fusion=none", "--model.lora_r=0"),
        blow_up=("--train.lr=1e30", "--train.encoder_lr=1e30"),
        frozen=("--model.backbone={backbone}",),
        frozen_weights=r"llm\..*(base_layer|norm|embed).*",
        published="meit",
        unserved="no-ecg",
        predict=("simulated/mimic-*/**/*.hea",),
    ),
    "kmerl": Package(  # its text encoder is frozen outside of the model: vectors are cached
        name="kmerl",
        train=(),
        no_norm=(
            "--model.masked_leads=[0]",
            "--model.segment_masking=0",
            "--model.projection_norm=layer",
            "--model.query_dropout=0",
        ),
        blow_up=("--train.lr=1e30",),
        joined=True,
        published="kmerl",
        unserved="merl",
        predict=("simulated/mimic-*/**/*.hea", "--classes=atrial fibrillation"),
    ),
    "supreme": Package(
        name="supreme",
        train=("--model.method=byol",),  # slow targets and BatchNorm, which resume and ZeRO must carry along
        scored=('--eval.inputs=["probe:ecg~val"]',),
        no_norm=("--model.cfn_dropout=0",),
        blow_up=("--train.lr=1e30",),
        published="supreme",
        unserved="simclr",
        predict=("simulated/mimic-*/**/*.hea",),
    ),
    "synth_medvlp": Package(
        name="synth_medvlp",
        train=(),
        no_norm=(
            '--model.image={"name": null, "arch": "vit", "width": 16, "depth": 2, "heads": 2, "mlp": 32, '
            '"patch": 8, "size": 32}',
            "--model.text.dropout=0",
        ),
        blow_up=("--train.lr=1e30",),
        joined=True,
        published="real",
        made=("--data.regime=mix",),
        predict=("**/*.jpg", "pleural effusion", "--compare=0"),
    ),
    "argus": Package(
        name="argus",
        train=(_SMALL_LM, "--data.n_train=48"),
        no_norm=(_SMALL_LM, "--data.n_train=48"),
        blow_up=("--train.lr=1e30", "--train.encoder_lr=1e30"),
        frozen=("--model.backbone={backbone}",),
        frozen_from="lm",
        frozen_weights=r"llm\..*(base_layer|norm|embed).*",
        published="argus",
        unserved="lm",
        predict=("**/*.nii.gz",),
    ),
}


@functools.cache
def starter() -> Starter:
    return Starter(ROOT)


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"CACHE_ROOT": str(cache), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run(module: str, *options: str, processes: int = 0, cache: Path, check: bool = True, fresh: bool = False) -> str:
    """`python -m module options`, or as many processes as torchrun would start; returns what they print.

    check: AssertionError where it fails; False: where it does not. fresh: by a new interpreter or torchrun, as a user
    would, in place of the starter.
    """
    if fresh:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(torchrun if processes else []), "-m", module, *options]
        done = subprocess.run(command, cwd=ROOT, env=environment(cache), capture_output=True, text=True)
        status, printed = done.returncode, done.stderr
    else:
        with tempfile.NamedTemporaryFile("r") as file:
            each = ranks(processes) if processes else [{}]
            pids = [starter().start(module, options, environment(cache) | more, file.name) for more in each]
            status, printed = starter().wait(pids), file.read()
    if bool(status) == check:
        raise AssertionError(f"{module} {' '.join(options)} ended with {status}:\n{printed[-3000:]}")
    return printed
