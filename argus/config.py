"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m argus.train --config argus/configs/laptop.yaml --model.compressor avgpool` overrides one key. `Deviations` in
the README lists the values that the paper leaves unknown: of this paper, nearly all.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from argus.manifest import SECTIONS, Rules
from argus.model import ModelConfig
from shared.ct.geometry import CLIPS
from shared.ct.simulate import LAPTOP_SHAPE
from shared.runs.config import RunConfig, RunReproduceConfig, RunTrainConfig, parse_as


@dataclass
class SimulateCt:
    """Embedded data: trees of simulated patients in the official layouts. `simulate: null` is the official releases."""

    n_patients: dict[str, int] = field(default_factory=lambda: {"ct-rate": 1000, "bimcv-r": 300, "inspect": 500})
    seed: int = 0
    shape: list[int] = field(default_factory=lambda: list(LAPTOP_SHAPE))  # D, H, W of the written files


@dataclass
class DataConfig:
    """Which volumes, how split, how turned into tensors (reference: Data, "Reaching 512x512x256")."""

    sources: list[str] = field(default_factory=lambda: list(SECTIONS))
    simulate: SimulateCt | None = None
    shape: list[int] = field(default_factory=lambda: [64, 256, 256])  # D, H, W of the model's input; rung nr
    spacing_mm: list[float] | None = None  # D, H, W: geometry B, fixed spacing, then crop and pad; null = A, resize
    clip_hu: list[float] = field(default_factory=lambda: [-1000.0, 1000.0])
    clip: str = "before"  # or "after" resampling, as CT-CLIP's training does
    rules: dict[str, Any] = field(default_factory=dict)  # fields of argus.manifest.Rules
    split_seed: int = 0
    max_tokens: int = 1024  # prompt + report; the visual tokens have a budget of their own
    share: float = 1.0  # of the training patients, with as many updates; smaller shares are subsets of larger ones
    texts: dict[str, int] = field(default_factory=dict)  # objective language: further simulated patients per source
    n_train: int = 0  # use only the first n training records; 0 = all
    n_test: int = 0  # score only the first n test records; 0 = all
    slice_only: bool = False  # 2-D control: the middle slice in place of every slice
    workers: int = 0  # data loader processes

    def __post_init__(self):
        unknown = sorted(set(self.sources) - set(SECTIONS))
        if unknown or not self.sources:
            raise ValueError(f"data.sources: {unknown or 'empty'}; choose among {', '.join(SECTIONS)}")
        if self.clip not in CLIPS:
            raise ValueError(f"data.clip: {self.clip!r} is none of {', '.join(CLIPS)}")
        unknown = sorted(set(self.rules) - {f.name for f in fields(Rules)})
        if unknown:
            raise ValueError(f"data.rules: unknown key(s) {unknown}; known: {[f.name for f in fields(Rules)]}")
        if unknown := sorted(set(self.texts) - set(SECTIONS)):
            raise ValueError(f"data.texts: unknown source(s) {unknown}; choose among {', '.join(SECTIONS)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share: {self.share} is no share of the training patients; 0 < share <= 1")


@dataclass
class TrainConfig(RunTrainConfig):
    """Optimisation of one stage (reference: Training schedule)."""

    encoder_lr: float | None = None  # of the ViT; null = lr
    steps: int = 0  # optimiser steps in place of epochs, so that more data does not mean more updates; 0 = by epochs
    adam_beta2: float = 0.999  # 0.95 in the MAE recipe
    init: str | None = None  # checkpoint of the earlier stage


@dataclass
class EvalConfig:
    """Generation and scoring (reference: Evaluation protocols). A metric whose model is null is not computed."""

    max_new_tokens: int = 1024
    batch: int = 8
    inputs: list[str] = field(default_factory=lambda: ["volume"])
    # each of: volume | zero | mean | shuffle | majority | typical | constant | every | nearest
    checkpoint: str | None = None  # of another run; null = this run's own
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge", "cider_d", "meteor"])  # beside finding F1
    bertscore: str | None = None  # encoder for BERTScore, hub name or folder
    bertscore_layer: int = 17
    green: str | None = None  # hub name or folder
    ratescore: str | None = None
    radgraph: str | None = None
    n_boot: int = 2000


@dataclass
class ReproduceConfig(RunReproduceConfig):
    """What `python -m argus.reproduce` runs at this tier; the experiments themselves are in `argus/reproduce.py`."""

    pretrain_lm: bool = False  # start from a small language model that has learnt report text (Deviations)
    backbones: dict[str, str] = field(default_factory=dict)  # size -> hub name, folder or scratch:<family>
    encoders: dict[str, str] = field(default_factory=dict)  # pre-training -> folder of a ViT made before (Deviations)


@dataclass
class Config(RunConfig):
    """One stage of Argus: pre-training of an encoder, alignment of a compressor, or tuning of the whole."""

    experiment: str = "argus"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: ReproduceConfig = field(default_factory=ReproduceConfig)

    PAPER: ClassVar[str] = "argus"
    TESTED: ClassVar[tuple[tuple[str, str], ...]] = (("data", "n_test"),)

    def starts(self) -> list[str | None]:
        return [self.model.backbone, self.model.encoder, self.train.init]

    def decisive(self) -> dict:
        shared = {k: getattr(self.reproduce, k) for k in ("seeds", "backbones", "encoders", "overrides", "pretrain_lm")}
        return shared | {"max_new_tokens": self.eval.max_new_tokens}


def parse(args: list[str] | None = None) -> Config:
    return parse_as(Config, args)
