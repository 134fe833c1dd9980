"""Every value that can be set, in one place. A tier is a YAML file of this shape; unknown keys are errors.

`python -m synth_medvlp.train --config synth_medvlp/configs/laptop.yaml --data.regime synthetic` overrides one key.
`Deviations` in the README lists the values that the paper leaves unknown.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from shared.runs.config import RunConfig, RunReproduceConfig, RunTrainConfig, parse_as
from synth_medvlp.data import PairsConfig
from synth_medvlp.diffusion import ImageConfig
from synth_medvlp.entities import NerConfig
from synth_medvlp.inputs import EvalConfig
from synth_medvlp.model import ModelConfig
from synth_medvlp.sampler import SamplerConfig
from synth_medvlp.screening import AuditConfig
from synth_medvlp.trees import CxrSimulateConfig
from synth_medvlp.writer import WriterConfig


@dataclass
class DataConfig(PairsConfig):
    """Real pairs of the training hospital, how many synthetic ones, and which of them are trained on."""

    simulate: CxrSimulateConfig | None = None  # the training hospital; null = MIMIC-CXR-JPG under DATA_ROOT
    size_px: int = 256
    geometry: str = "pad"  # squash | pad | pad_crop (synth_medvlp/datasets/reading.py)
    split: str = "corrected"  # corrected | as_published
    n_synthetic: int = 200_000


@dataclass
class TrainConfig(RunTrainConfig):
    """Optimisation; `epochs: 0` keeps the random initialisation, a control."""

    steps: int = 0  # optimiser steps in place of epochs, so that more data does not mean more updates; 0 = by epochs
    adam_beta1: float = 0.9


@dataclass
class Config(RunConfig):
    """One run of vision-language pre-training on real, synthetic or mixed pairs."""

    experiment: str = "real"
    data: DataConfig = field(default_factory=DataConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    ner: NerConfig = field(default_factory=NerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    writer: WriterConfig = field(default_factory=WriterConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    reproduce: RunReproduceConfig = field(default_factory=RunReproduceConfig)

    PAPER: ClassVar[str] = "synth_medvlp"
    TRAINED: ClassVar[tuple[str, ...]] = ("data", "audit", "ner", "sampler", "writer", "image", "model", "train")
    NEUTRAL: ClassVar[tuple[tuple[str, str], ...]] = (
        *RunConfig.NEUTRAL,
        *(("writer", key) for key in ("workers", "timeout_s", "backoff_s", "retries", "base_url")),
        *(("ner", key) for key in ("batch", "device")),
        ("image", "device"),
    )

    def decisive(self) -> dict:
        e = self.eval
        shared = {k: getattr(self.reproduce, k) for k in ("seeds", "overrides")}
        shared |= {k: getattr(e, k) for k in ("tasks", "variant", "prompts", "scorer", "all_records")}
        shared |= {k: asdict(getattr(e, k)) for k in ("grounding", "finetune", "segment")}
        return shared | {"simulate": vars(e.simulate or CxrSimulateConfig(0))}


def parse(args: list[str] | None = None) -> Config:
    return parse_as(Config, args)
