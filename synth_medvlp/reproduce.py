"""The paper's experiments, and how they are scored and shown: `make reproduce-synth_medvlp`. Engine: `shared.runs`."""

from pathlib import Path

import pandas as pd
import torch

from shared.runs import engine
from shared.runs.paper import Experiment, Paper, evaluation
from synth_medvlp import pictures
from synth_medvlp.config import Config
from synth_medvlp.data import REAL_ONLY
from synth_medvlp.generate import set_of
from synth_medvlp.prep import prepare, prepare_tasks

CONTROLS = tuple(f"image~{c}" for c in ("zeroed", "shuffled", "prompts", "prior", "val"))
PROMPTS = tuple(f"image+{p}" for p in ("name", "description", "findings", "pair"))
REGIMES = ("real", "synthetic", "mix")
BY_TIER = ("longer-", "slower-", "faster-")  # experiments whose settings a tier has to name


def regime(name: str, *inputs: str, **overrides) -> Experiment:
    """VLP on the pairs of a regime, everything else the same."""
    return Experiment({"data.regime": name, **overrides}, inputs or ("image",))


def three(prefix: str, *inputs: str, **overrides) -> dict[str, Experiment]:
    return {f"{prefix}-{name}": regime(name, *inputs, **overrides) for name in REGIMES}


def downstream(prefix: str, *inputs: str, of=(*REGIMES, "random-init")) -> dict[str, Experiment]:
    return {f"{prefix}-{name}": evaluation(name, inputs) for name in of}


EXPERIMENTS = {
    # the headline: ConVIRT on the three regimes, and what it reads
    "real": regime("real", "image", *CONTROLS),
    "synthetic": regime("synthetic", "image", *CONTROLS),
    "mix": regime("mix", "image", *CONTROLS),
    "random-init": Experiment({"train.epochs": 0, "train.steps": 0}, ("image",)),
    "shuffled-pairs": regime("synthetic", **{"data.shuffle_pairs": True}),
    # the second method, and ConVIRT as MGCA has it: equal weights, lower temperature, wider heads
    **three("gloria", **{"model.profile": "gloria"}),
    **three("mgca", **{"model.profile": "convirt_mgca"}),
    # what else could explain a difference: cleaning, size, more steps, negatives that can be told by their source
    "clean": regime("clean"),
    "size-matched": regime("real"),  # as many pairs as synthetic ones: `keys` below
    "clean-epochs": regime("clean", **{"train.steps": 0}),
    "synthetic-epochs": regime("synthetic", **{"train.steps": 0}),
    "mix-epochs": regime("mix", **{"train.steps": 0}),
    "mix-by-source": regime("mix", **{"data.by_source": True}),
    # is the baseline trained as well as it can be? The tier's `reproduce.overrides` says how many updates, which rates
    **three("longer"),
    "slower-real": regime("real"),
    "faster-real": regime("real"),
    # the set drawn anew, stages left out, halves of a pair, another generator
    "redrawn": regime("synthetic", **{"sampler.seed": 1, "image.seed": 1}),
    "random-sampling": regime("synthetic", **{"sampler.balanced": False}),
    "no-cap": regime("synthetic", **{"sampler.tau_max": None}),
    "compatible": regime("synthetic", **{"sampler.compatible": True}),
    "template-text": regime("synthetic", **{"writer.backend": "template"}),
    "no-text-check": regime("synthetic", **{"writer.check": False}),
    "no-image-check": regime("synthetic", **{"image.check": False}),
    "real-text": regime("real_text"),
    "real-text-impression": regime("real_text_impression"),
    "real-of-text": regime("real_of_text"),
    "real-image": regime("real_image"),
    "real-of-image": regime("real_of_image"),
    "oracle": regime("synthetic", **{"image.checkpoint": "oracle"}),
    "disjoint-real": regime("real", **{"data.simulate.seed": 13}),
    "disjoint-synthetic": regime("synthetic", **{"data.simulate.seed": 13}),
    "disjoint-mix": regime("mix", **{"data.simulate.seed": 13}),
    "random-text": regime("real", **{"model.text.frozen": True}),
    # other amounts of defects in the real data
    **three("none", **{"data.simulate.level": "none"}),
    **three("strong", **{"data.simulate.level": "strong"}),
    # the same weights, evaluated otherwise
    **{f"prompts-{name}": evaluation(name, PROMPTS) for name in REGIMES},
    **{f"published-{name}": evaluation(name, ("image",), **{"eval.variant": "as_published"}) for name in REGIMES},
    **downstream("ground", "grounding:image", "grounding:image~shuffled", "grounding:image~prior"),
    **downstream("linear", "linear:image~val"),
    **downstream("finetune", "finetune:image~val"),
    **downstream("segment", "segment:image"),
    **downstream("gloria-ground", "grounding:image", "grounding:image+cosine", of=[f"gloria-{r}" for r in REGIMES]),
}


class SynthMedVlp(Paper):
    name = "synth_medvlp"
    config = Config
    experiments = EXPERIMENTS
    main_input = "image"
    kept_once = ("labels", "data_hash")  # of the tasks: what predictions are compared with

    def cannot_run(self, cfg: Config, name: str) -> str | None:
        for prefix in BY_TIER:
            if name.startswith(prefix) and prefix not in cfg.reproduce.overrides:
                return f"reproduce.overrides of this tier says nothing of {prefix}"
        return super().cannot_run(cfg, name)

    def keys(self, cfg: Config, name: str) -> dict:
        return {"data.n": cfg.data.n_synthetic} if name == "size-matched" else {}

    def prepare(self, cfg: Config) -> None:
        n = cfg.reproduce.processes or (1 if torch.cuda.is_available() else cfg.reproduce.jobs)
        if n > 1 and cfg.data.regime not in REAL_ONLY:  # several would share one GPU
            engine.in_processes("synth_medvlp.generate", [f"--config={engine.tier_file(cfg)}"], n)
        prepare(cfg)
        prepare_tasks(cfg)

    def same_data(self, cfg: Config) -> str:
        return set_of(cfg) + repr([cfg.eval.tasks, cfg.eval.simulate, cfg.eval.variant])

    def collect(self, cfg: Config, name: str, runs: list[Path], out: Path) -> None:
        """Pixel counts of the masks."""
        masks = pd.read_parquet(runs[0] / "masks.parquet")
        if len(masks):
            masks.to_parquet(out / "predictions" / f"{name}-masks-{runs[0].name}.parquet", compression="zstd")

    def pictures(self, cfg: Config, names: list[str]) -> None:
        pictures.keep_funnel(cfg, names)
        pictures.draw_sheets(cfg, names)


SYNTH_MEDVLP = SynthMedVlp()


def main(args: list[str] | None = None) -> dict:
    return engine.main(SYNTH_MEDVLP, args)


if __name__ == "__main__":
    main()
