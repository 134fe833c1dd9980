"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m kmerl.train --config kmerl/configs/laptop.yaml --model.method merl` overrides one key. `Deviations` in the
README lists the values that the paper leaves unknown.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from kmerl.extract import ExtractConfig
from kmerl.model import ModelConfig
from shared.runs.config import RunConfig, RunReproduceConfig, RunTrainConfig, SimulateConfig, parse_as
from shared.runs.tasks import TaskEvalConfig
from shared.vectors import TextConfig


@dataclass
class DataConfig:
    """Pre-training records, how split, how turned into tensors (reference: D1)."""

    dataset: str = "mimic-iv-ecg"  # a release with reports
    simulate: SimulateConfig | None = None
    fs_hz: float = 500  # rate of the packed stores, pre-training and downstream
    seconds: float = 10.0  # longer records are cut
    split: str = "patient"  # patient | as_published (records, not patients)
    split_seed: int = 0
    n_train: int = 0  # use only the first n training records of the split; 0 = all
    permute_entities: bool = False  # control: every record gets another record's entity labels
    workers: int = 0  # data loader processes


@dataclass
class TrainConfig(RunTrainConfig):
    """Optimisation (reference: M8); `epochs: 0` keeps the random initialisation, a control."""

    init: str | None = None  # warm start from a checkpoint


@dataclass
class EvalConfig(TaskEvalConfig):
    """Zero-shot and probing (reference: Evaluation protocols; variant: D4)."""

    inputs: list[str] = field(default_factory=lambda: ["12 leads"])  # see kmerl/inputs.py
    prompts: str = "names"  # names (class descriptions) | engineered (shared/ecg/prompts.yaml): MERL's way
    n_random_sets: int = 10  # random lead sets per count, for the input `random`


@dataclass
class Config(RunConfig):
    """One run of K-MERL or of a baseline."""

    experiment: str = "kmerl"
    data: DataConfig = field(default_factory=DataConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: RunReproduceConfig = field(default_factory=RunReproduceConfig)

    PAPER: ClassVar[str] = "kmerl"
    TRAINED: ClassVar[tuple[str, ...]] = ("data", "extract", "text", "model", "train")

    @property
    def n_samples(self) -> int:
        return round(self.data.fs_hz * self.data.seconds)

    def starts(self) -> list[str | None]:
        return [self.train.init]

    def decisive(self) -> dict:
        e = self.eval
        shared = {k: getattr(self.reproduce, k) for k in ("seeds", "overrides")}
        shared |= {k: getattr(e, k) for k in ("tasks", "variant", "prompts", "n_random_sets", "all_records")}
        return shared | {"probe": asdict(e.probe), "simulate": vars(e.simulate or SimulateConfig(0, 0, 0))}


def parse(args: list[str] | None = None) -> Config:
    return parse_as(Config, args)
