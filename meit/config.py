"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m meit.train --config meit/configs/laptop.yaml --model.fusion llava` overrides one key. `Deviations` in the
README lists the values that the paper leaves unknown.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import jsonargparse
import yaml

from meit.model import ModelConfig


@dataclass
class SimulateConfig:
    """Embedded data: a tree of `n_records` in the official layout. `data.simulate: null` is the official release."""

    n_records: int = 3000
    seed: int = 0
    fs_hz: float = 100


@dataclass
class DataConfig:
    """Which records, how split, how turned into tensors (reference: Data, Instruction text)."""

    dataset: str = "mimic-iv-ecg"  # mimic-iv-ecg | ptb-xl: the releases with reports
    simulate: SimulateConfig | None = None
    fs_hz: float = 500  # rate of the packed store
    split: str = "patient"  # patient | official_folds | as_published | fold-1 .. fold-10 (that fold is the test set)
    split_seed: int = 0
    normalise: str = "joint_minmax"  # joint_minmax (public code) | none (mV)
    instructions: str = (
        "pool"  # pool (256, paper) | fixed (public code) | none (plain tuning) | mixed (LM pre-training)
    )
    max_tokens: int = 128  # prompt + report, public code
    n_train: int = 0  # use only the first n training records of the split; 0 = all
    n_test: int = 0  # score only the first n test records; 0 = all
    workers: int = 0  # data loader processes


@dataclass
class TrainConfig:
    """Optimisation (reference: Training). Global batch = micro_batch x accumulation x processes."""

    epochs: float = 5
    global_batch: int = 64
    micro_batch: int = 16
    lr: float = 2e-5
    encoder_lr: float = 2e-5
    schedule: str = "linear"  # any transformers schedule name
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0  # 0 = no clipping, as in the public code
    bf16: bool = True
    gradient_checkpointing: bool = False
    deepspeed: str | None = None  # configs/zero1.json ..: ZeRO stage; null = plain data parallelism
    init: str | None = None  # warm start from a trained MEIT checkpoint (real-data tuning)
    save_steps: int = 200
    log_steps: int = 10


@dataclass
class EvalConfig:
    """Generation and scoring (reference: Evaluation protocols)."""

    max_new_tokens: int = 128
    batch: int = 32
    inputs: list[str] = field(default_factory=lambda: ["ecg"])
    # each of: ecg | zero | shuffle | majority | nearest | noise-0.20 (published) | snr-10 (dB)
    checkpoint: str | None = None  # of another run, e.g. for zero-shot transfer; null = this run's own
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge", "cider_d", "meteor"])  # beside finding_f1
    bertscore: str | None = None  # encoder for BERTScore, hub name or folder; null = left out
    bertscore_layer: int = 17
    judge_url: str | None = None  # OpenAI-compatible endpoint for expert alignment
    judge_model: str | None = None
    n_boot: int = 1000


@dataclass
class ReproduceConfig:
    """What `python -m meit.reproduce` runs at this tier; the experiments themselves are in `meit/reproduce.py`."""

    headline: list[str] = field(default_factory=lambda: ["meit", "llava", "flamingo", "no-ecg"])  # the default run
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    pretrain_encoder: bool = False  # start from a ResNet that has learnt the words of the reports (Deviations)
    jobs: int = 1  # runs at a time, each with cores / jobs threads
    processes: int = 0  # of one run, through torchrun: the GPUs of this machine; 0 = runs in worker processes
    backbones: dict[str, str] = field(default_factory=dict)  # family -> hub name, folder or scratch:<family>
    overrides: dict[str, dict] = field(default_factory=dict)  # experiment (or prefix, "lm-") -> config keys here


@dataclass
class Config:
    """One run."""

    tier: str = "laptop"
    experiment: str = "meit"
    seed: int = 0
    runs: str = "runs"
    results: str = "results"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(backbone="scratch:llama"))
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: ReproduceConfig = field(default_factory=ReproduceConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / "meit" / self.tier / self.experiment / f"seed{self.seed}"

    def digest(self) -> str:
        """Hash of all that determines the trained weights, the run whose weights this one starts from included."""
        content = {k: v for k, v in dataclasses.asdict(self).items() if k in ("seed", "data", "model", "train")}
        for section, key in (("train", "save_steps"), ("train", "log_steps"), ("data", "n_test"), ("data", "workers")):
            content[section].pop(key)  # these change nothing
        for start in (self.model.backbone, self.model.encoder, self.train.init):
            run = Path(start or "").parent / "run.json"
            if run.is_file():
                content[str(start)] = [json.loads(run.read_text())[k] for k in ("config_hash", "data_hash")]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def parser() -> jsonargparse.ArgumentParser:
    """The command line of every entry point; `--help` lists all keys."""
    usage = "python -m meit.<module> --config FILE [--section.key value ...]   (--help lists all keys)"
    p = jsonargparse.ArgumentParser(description=__doc__, usage=usage)
    p.add_argument("--config", action="config", help="YAML file of a tier; later options override it")
    p.add_class_arguments(Config, None)
    return p


def parse(args: list[str] | None = None) -> Config:
    """Command line (or `args`) -> Config. An unknown key ends the program with a message that names it."""
    p = parser()
    values = vars(p.instantiate(p.parse_args(args)))
    values.pop("config", None)
    return Config(**values)


def dump(cfg: Config) -> str:
    """The fully resolved config as YAML."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False)


def data_root() -> Path:
    return Path(os.environ.get("DATA_ROOT", "data/official"))


def cache_root() -> Path:
    return Path(os.environ.get("CACHE_ROOT", "data/cache"))
