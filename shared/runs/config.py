"""Configs: a tier is a YAML file of a paper's `Config`; unknown keys are errors; `--help` lists every key.

`python -m <paper>.train --config <paper>/configs/laptop.yaml --train.lr 1e-3` overrides one key.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import jsonargparse
import yaml

from shared.runs.checkpoint import run_file


@dataclass
class SimulateConfig:
    """Embedded data: a tree of `n_records` in the official layout. `simulate: null` is the official release."""

    n_records: int = 3000
    seed: int = 0
    fs_hz: float = 100


@dataclass
class RunTrainConfig:
    """Optimisation keys of every paper. Global batch = micro_batch x accumulation x processes."""

    epochs: float = 5
    global_batch: int = 64
    micro_batch: int = 16
    lr: float = 2e-5
    schedule: str = "linear"  # any transformers schedule name
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0  # 0 = no clipping
    bf16: bool = True
    deepspeed: str | None = None  # shared/runs/zero1.json ..: ZeRO stage; null = plain data parallelism
    save_steps: int = 200
    log_steps: int = 10


@dataclass
class RunReproduceConfig:
    """What `python -m <paper>.reproduce` runs at this tier; the experiments are in `<paper>/reproduce.py`."""

    headline: list[str] = field(default_factory=list)  # the default run
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    more_seeds: list[int] = field(default_factory=list)  # beside them, with ALL=1 or CLAIM=
    jobs: int = 1  # runs at a time, each with cores / jobs threads
    processes: int = 0  # of one run, through torchrun: the GPUs of this machine; 0 = runs in worker processes
    overrides: dict[str, dict] = field(default_factory=dict)  # experiment (or prefix) -> config keys at this tier
    not_here: dict[str, str] = field(default_factory=dict)  # experiment (or prefix) -> why this tier leaves it out

    def keys_of(self, name: str) -> dict:
        """The keys that the tier gives to an experiment."""
        return {k: v for prefix, keys in self.overrides.items() if name.startswith(prefix) for k, v in keys.items()}


@dataclass
class RunConfig:
    """What identifies one run. A paper's Config adds its sections: data, model, train, eval, reproduce."""

    tier: str = "laptop"
    experiment: str = ""
    seed: int = 0
    runs: str = "runs"
    results: str = "results"

    PAPER: ClassVar[str] = ""
    TRAINED: ClassVar[tuple[str, ...]] = ("data", "model", "train")  # sections that determine the weights
    NEUTRAL: ClassVar[tuple[tuple[str, str], ...]] = (  # keys among them that do not
        ("train", "save_steps"),
        ("train", "log_steps"),
        ("data", "workers"),
    )
    TESTED: ClassVar[tuple[tuple[str, str], ...]] = ()  # keys among them that change the scores, not the weights

    @property
    def tier_dir(self) -> Path:
        return Path(self.runs) / self.PAPER / self.tier

    def dir_of(self, experiment: str, seed: int) -> Path:
        """Folder of a run of this tier; of a fold: `<experiment>/fold-<n>`."""
        return self.tier_dir / experiment / f"seed{seed}"

    @property
    def run_dir(self) -> Path:
        return self.dir_of(self.experiment, self.seed)

    def starts(self) -> list[str | None]:
        """Checkpoints whose weights this run starts from."""
        return []

    def trained_content(self) -> dict:
        content = {k: v for k, v in dataclasses.asdict(self).items() if k in self.TRAINED}
        for section, key in self.NEUTRAL:
            content[section].pop(key, None)
        return content

    def digest(self) -> str:
        """Hash of all that determines the trained weights, the run whose weights this one starts from included."""
        content = self.trained_content() | {"seed": self.seed}
        for section, key in self.TESTED:
            content[section].pop(key)
        for start in self.starts():
            run = run_file(Path(start or ""), "run.json")
            if run.is_file():
                content[str(start)] = [json.loads(run.read_text())[k] for k in ("config_hash", "data_hash")]
        return hash_of(content)

    def decisive(self) -> dict:
        """Keys outside `TRAINED` that change results; the experiments of a tier that share them may be compared."""
        return {}

    def tier_hash(self) -> str:
        """Hash of the tier's own settings that change results, before an experiment changes any."""
        return hash_of(self.trained_content() | self.decisive())


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def hash_of(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def parser(config: type[RunConfig]) -> jsonargparse.ArgumentParser:
    """The command line of every entry point; `--help` lists all keys."""
    usage = f"python -m {config.PAPER}.<module> --config FILE [--section.key value ...]   (--help lists all keys)"
    p = jsonargparse.ArgumentParser(description=config.__doc__, usage=usage)
    p.add_argument("--config", action="config", help="YAML file of a tier; later options override it")
    p.add_class_arguments(config, None)
    return p


def parse_as(config: type[AnyConfig], args: list[str] | None = None) -> AnyConfig:
    """Command line (or `args`) -> config. An unknown key ends the program with a message that names it."""
    p = parser(config)
    values = vars(p.instantiate(p.parse_args(args)))
    values.pop("config", None)
    return config(**values)


def dump(cfg: RunConfig) -> str:
    """The fully resolved config as YAML."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False)


def check_writable(key: str, folder: str | Path) -> None:
    """SystemExit with one line where no file can be made in the folder, which is made where it is absent; key: of the
    config, which chose it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SystemExit(f"{folder}: cannot be written ({error.strerror}); give --{key} another folder") from error


def data_root() -> Path:
    return Path(os.environ.get("DATA_ROOT", "data/official"))


def official_tree(dataset: str) -> Path:
    """Folder of a release. Raises FileNotFoundError naming it and the command that fetches it where it is absent."""
    root = data_root() / dataset
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Fetch it with `make data-{dataset}` or set DATA_ROOT.")
    return root


def cache_root() -> Path:
    return Path(os.environ.get("CACHE_ROOT", "data/cache"))
