"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m meit.train --config meit/configs/laptop.yaml --model.fusion llava` overrides one key. `Deviations` in the
README lists the values that the paper leaves unknown.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from meit.model import ModelConfig
from shared.runs.config import RunConfig, RunReproduceConfig, RunTrainConfig, SimulateConfig, parse_as


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
class TrainConfig(RunTrainConfig):
    """Optimisation (reference: Training); the published code does not clip gradients."""

    encoder_lr: float = 2e-5
    gradient_checkpointing: bool = False
    init: str | None = None  # warm start from a trained MEIT checkpoint (real-data tuning)


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

    def __post_init__(self):
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("eval.judge_url and eval.judge_model belong together: give both or neither")


@dataclass
class ReproduceConfig(RunReproduceConfig):
    """What `python -m meit.reproduce` runs at this tier; the experiments themselves are in `meit/reproduce.py`."""

    pretrain_encoder: bool = False  # start from a ResNet that has learnt the words of the reports (Deviations)
    backbones: dict[str, str] = field(default_factory=dict)  # family -> hub name, folder or scratch:<family>


@dataclass
class Config(RunConfig):
    """One run of MEIT."""

    experiment: str = "meit"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(backbone="scratch:llama"))
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: ReproduceConfig = field(default_factory=ReproduceConfig)

    PAPER: ClassVar[str] = "meit"
    TESTED: ClassVar[tuple[tuple[str, str], ...]] = (("data", "n_test"),)

    def starts(self) -> list[str | None]:
        return [self.model.backbone, self.model.encoder, self.train.init]

    def decisive(self) -> dict:
        shared = {k: getattr(self.reproduce, k) for k in ("seeds", "backbones", "overrides", "pretrain_encoder")}
        return shared | {"max_new_tokens": self.eval.max_new_tokens}


def parse(args: list[str] | None = None) -> Config:
    return parse_as(Config, args)
