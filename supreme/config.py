"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m supreme.train --config supreme/configs/laptop.yaml --model.method simclr` overrides one key. `Deviations` in
the README lists the values that the paper leaves unknown.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from shared.runs.config import RunConfig, RunReproduceConfig, RunTrainConfig, SimulateConfig, parse_as
from shared.runs.tasks import TaskEvalConfig
from shared.vectors import TextConfig
from supreme.extract import ExtractConfig
from supreme.model import ModelConfig
from supreme.ssl import SslConfig


@dataclass
class DataConfig:
    """Pre-training records, how split, how turned into tensors (reference: Data)."""

    dataset: str = "mimic-iv-ecg"  # a release with reports
    simulate: SimulateConfig | None = None
    fs_hz: float = 500  # rate of the packed stores, pre-training and downstream
    seconds: float = 10.0  # longer records are cut
    split: str = "patient"  # patient | as_published (records, not patients)
    split_seed: int = 0
    share: float = 1.0  # of the training patients (data efficiency); of the labelled records of a supervised model
    labels: str = "extracted"  # extracted | truth (the findings that the simulator drew, in place of the reports)
    permute_labels: bool = False  # control: every record gets another record's labels
    workers: int = 0  # data loader processes


@dataclass
class TrainConfig(RunTrainConfig):
    """Optimisation (reference: M5); `epochs: 0` keeps the random initialisation, a control."""

    steps: int = 0  # optimiser steps in place of epochs, so that less data does not mean fewer updates; 0 = by epochs


@dataclass
class EvalConfig(TaskEvalConfig):
    """Zero-shot and probing (reference: Evaluation protocols)."""

    inputs: list[str] = field(default_factory=lambda: ["ecg"])  # see supreme/inputs.py
    texts: str = "short"  # of the classes: short | figure | code | long (M6, supreme/queries.py)


@dataclass
class Config(RunConfig):
    """One run of SuPreME or of a baseline."""

    experiment: str = "supreme"
    data: DataConfig = field(default_factory=DataConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ssl: SslConfig = field(default_factory=SslConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: RunReproduceConfig = field(default_factory=RunReproduceConfig)

    PAPER: ClassVar[str] = "supreme"
    TRAINED: ClassVar[tuple[str, ...]] = ("data", "extract", "text", "model", "ssl", "train")
    NEUTRAL: ClassVar[tuple[tuple[str, str], ...]] = (
        *RunConfig.NEUTRAL,
        *(("extract", key) for key in ("batch", "workers", "timeout_s", "backoff_s", "reviewed")),
        ("text", "batch"),
    )

    @property
    def n_samples(self) -> int:
        return round(self.data.fs_hz * self.data.seconds)

    def decisive(self) -> dict:
        e = self.eval
        shared = {k: getattr(self.reproduce, k) for k in ("seeds", "overrides")}
        shared |= {k: getattr(e, k) for k in ("tasks", "variant", "texts", "all_records")}
        return shared | {"probe": asdict(e.probe), "simulate": vars(e.simulate or SimulateConfig(0, 0, 0))}


def parse(args: list[str] | None = None) -> Config:
    return parse_as(Config, args)
