"""Argus's experiments, and how they are scored and shown: `make reproduce-argus`. The engine is `shared.runs`.

    lm                      a small language model on text alone, where the tier has no pre-trained one
    encoder-<kind>          the ViT, pre-trained (mae | clip | supervised); once for all experiments and seeds; not
                            run where `reproduce.encoders` of the tier names one that was made before
    align-<name>            stage 1: compressor and projector, ViT and LLM frozen
    <name>                  stage 2, from `align-<name>`: ViT, projector and LoRA

What depends on a tier (input and patch of `hr`, spacing of `geometry-b`) stands in `reproduce.overrides` of its YAML
under the name of the experiment; its `data.` and `model.` keys hold for its first stage too.
"""

from dataclasses import dataclass

from argus.cases import draw_cases
from argus.config import Config
from argus.manifest import SECTIONS
from argus.prep import prepare
from shared.runs import engine, evidence
from shared.runs.paper import Experiment, Paper

ENCODER = "supervised"  # what the recipe's ViT starts from; which one won in the paper is not established
PRETRAINING = ("mae", "clip", "supervised")
CONTROLS = ("volume", "zero", "mean", "shuffle", "majority", "typical", "constant", "every", "nearest")
STAGE_1 = {"model.train_vit": False, "model.train_llm": False, "eval.inputs": []}
ALIGN, PRETRAIN, LM = "align-", "encoder-", "lm"
VIT = "vit-labels"
HELD_OUT = "inspect"  # the source whose volumes `held-out` never saw
BY_TIER = ("hr", "geometry-b")  # experiments whose sizes a tier has to name


@dataclass(frozen=True)
class Recipe(Experiment):
    """encoder: pre-training of the ViT, None = random weights. given: by the tier's `reproduce.encoders`, where it has
    one of this kind. own_encoder: pre-trained on this experiment's own data (one slice, another geometry), not on the
    common ones. size: of the LLM, a key of `reproduce.backbones`."""

    inputs: tuple[str, ...] = ("volume",)
    encoder: str | None = ENCODER
    given: bool = True
    own_encoder: bool = False
    size: str = "small"


def two_stages(name: str, keys: dict | None = None, stage_1: dict | None = None, inputs=("volume",), **kind) -> dict:
    """`align-<name>` and `<name>`; keys: of both stages; stage_1: of the first, in place of STAGE_1's."""
    keys = keys or {}
    first, second = keys | STAGE_1 | (stage_1 or {}), keys | {"train.init": f"{{{ALIGN}{name}}}"}
    return {
        ALIGN + name: Recipe(first, **kind),
        name: Recipe(second, inputs, after=(ALIGN + name,), **kind),
    }


def compression(name: str, compressor: str, **kind) -> dict:
    return two_stages(name, {"model.compressor": compressor}, **kind)


def from_argus(**keys) -> Recipe:
    """Stage 2 otherwise, from Argus's own stage 1."""
    return Recipe({"train.init": "{align-argus}", **keys}, after=("align-argus",))


def share(percent: int) -> dict:
    """Fewer patients, in every stage that the tier trains and as many updates."""
    return two_stages(f"data-{percent}", {"data.share": percent / 100})


def on_source(of: str) -> Recipe:
    return Recipe({"eval.checkpoint": f"{{{of}}}", "data.sources": [HELD_OUT]}, ("volume", "shuffle"),
                  after=(of,), train=False)  # fmt: skip


SEEN = [source for source in SECTIONS if source != HELD_OUT]
EXPERIMENTS = {
    # the headline: the recipe, its controls, and pixel shuffle against two rivals at as many visual tokens
    **two_stages("argus", inputs=CONTROLS),
    **compression("avgpool", "avgpool"),
    **compression("attn-pool", "attn_pool"),
    "no-image": Recipe({"model.compressor": "no_image"}, encoder=None),
    # all other arms of compression; radfm-perceiver as published, with 32 tokens
    **compression("avgpool-matched", "avgpool_matched"),  # as many parameters as pixel shuffle
    **compression("perceiver", "perceiver"),
    **compression("concat-1d", "concat_1d"),
    **compression("avgpool-seq", "avgpool_seq"),
    **compression("radfm-perceiver", "radfm_perceiver"),
    **compression("hilt", "hilt"),
    **compression("none", "none"),
    # what the ViT starts from, each pre-trained on the tier's own patients
    **two_stages("from-random", encoder=None),
    **{k: v for kind in PRETRAINING for k, v in two_stages(f"from-{kind}", encoder=kind, given=False).items()},
    # what the recipe's ViT sees by its own labels, without a language model
    VIT: Recipe({"model.objective": "supervised"}, train=False),
    # the schedule
    "frozen-vit": from_argus(**{"model.train_vit": False}),
    "full-llm": from_argus(**{"model.lora_r": 0}),
    "one-stage": Recipe(),
    **two_stages("vit-both-stages", stage_1={"model.train_vit": True}),
    # data, resolution, geometry
    **share(10), **share(25), **share(50),
    **two_stages("hr"),
    **two_stages("hr-cheap"),
    **compression("hr-avgpool", "avgpool"),
    **two_stages("geometry-b", own_encoder=True),
    **two_stages("single-slice", {"data.slice_only": True}, own_encoder=True),
    # a source that was never trained on, against the same single stage trained on all
    "held-out": Recipe({"data.sources": SEEN, "eval.inputs": []}),
    "held-out-scored": on_source("held-out"),
    "one-stage-scored": on_source("one-stage"),
    # only where the tier's `reproduce.backbones` names these models
    **two_stages("llm-medium", size="medium"),
    **two_stages("llm-large", size="large"),
}  # fmt: skip


def base(name: str) -> str:
    """The experiment that a stage belongs to."""
    return name.removeprefix(ALIGN)


def encoder_for(name: str) -> str:
    """The experiment for which `encoder-<kind>-<experiment>` is pre-trained; "" for the common ones."""
    return name.removeprefix(PRETRAIN).partition("-")[2] if name.startswith(PRETRAIN) else ""


class Argus(Paper):
    name = "argus"
    config = Config
    experiments = EXPERIMENTS
    main_input = "volume"
    kept_once = ("train_reports", "records_hash")  # CIDEr-D takes its document frequencies from them

    def experiment(self, cfg: Config, name: str) -> Recipe:
        """A row of EXPERIMENTS, or what such a row starts from: `lm`, `encoder-<kind>`, `encoder-<kind>-<row>`."""
        if name in EXPERIMENTS:
            return EXPERIMENTS[name]
        if name == LM:
            return Recipe({"model.objective": "language"}, score=False, encoder=None)
        kind, row = name.removeprefix(PRETRAIN).split("-")[0], encoder_for(name)
        data = {k: v for k, v in EXPERIMENTS[row].overrides.items() if k.startswith("data.")} if row else {}
        return Recipe({"model.objective": kind, **data}, score=False, encoder=None)

    def cannot_run(self, cfg: Config, name: str) -> str | None:
        if EXPERIMENTS[name].size not in cfg.reproduce.backbones:
            return f"reproduce.backbones of this tier names no {EXPERIMENTS[name].size} LLM"
        if base(name).startswith(BY_TIER) and not cfg.reproduce.keys_of(base(name)):
            return f"reproduce.overrides of this tier says nothing of {base(name)}"
        if base(name) == f"from-{ENCODER}" and ENCODER not in cfg.reproduce.encoders:
            return "the recipe itself is that arm at this tier"
        return super().cannot_run(cfg, base(name))

    def starts_from(self, cfg: Config, name: str) -> dict[str, str]:
        """Small tiers pre-train their own language model; every tier its ViTs."""
        experiment = self.experiment(cfg, name)
        if name == VIT and not self.shipped(cfg, experiment):
            return {"eval.checkpoint": PRETRAIN + ENCODER}
        if not (experiment.train and experiment.score) or experiment.after:
            return {}
        runs = {"model.backbone": LM} if cfg.reproduce.pretrain_lm else {}
        if experiment.encoder and not self.shipped(cfg, experiment):
            own = f"-{base(name)}" if experiment.own_encoder or "data.share" in experiment.overrides else ""
            runs["model.encoder"] = f"{PRETRAIN}{experiment.encoder}{own}"
        return runs

    def shipped(self, cfg: Config, experiment: Recipe) -> str | None:
        """The folder of the ViT that the tier gives to an experiment."""
        if not experiment.given or experiment.own_encoder or experiment.encoder is None:
            return None
        return cfg.reproduce.encoders.get(experiment.encoder)

    def keys(self, cfg: Config, name: str) -> dict:
        experiment = self.experiment(cfg, name)
        keys = {"model.backbone": cfg.reproduce.backbones[experiment.size]}
        if vit := (name == VIT or (experiment.train and not experiment.after)) and self.shipped(cfg, experiment):
            keys["eval.checkpoint" if name == VIT else "model.encoder"] = vit
        keys["eval.metrics"] = []  # n-grams are counted once, when all runs are scored
        later = base(name) if name.startswith(ALIGN) else encoder_for(name)
        if later:  # the sizes of the stage that goes on from this one
            keys |= {k: v for k, v in cfg.reproduce.keys_of(later).items() if k.startswith(("data.", "model."))}
        if name in ("one-stage", "held-out"):  # as many updates as the two stages together
            epochs, steps = self.both_stages(cfg, name)
            keys |= {"train.epochs": epochs, "train.steps": steps}
        return keys

    def both_stages(self, cfg: Config, name: str) -> tuple[float, int]:
        """Epochs and steps (0 = by epochs) of a run whose updates are those of stage 1 and of its own stage."""
        own, first = ([self.stage(cfg, n, k) for k in ("epochs", "steps", "global_batch")] for n in (name, ALIGN))
        if bool(own[1]) != bool(first[1]):
            raise ValueError(f"reproduce.overrides: {name} needs steps, or epochs, of both stages")
        return own[0] + first[0] * own[2] / first[2], own[1] + first[1]

    def stage(self, cfg: Config, name: str, key: str):
        """`train.<key>` of a run, as the tier gives it."""
        return cfg.reproduce.keys_of(name).get(f"train.{key}", getattr(cfg.train, key))

    def prepare(self, cfg: Config) -> None:
        prepare(cfg)

    def pictures(self, cfg: Config, names: list[str]) -> None:
        draw_cases(cfg, names)

    def unmet(self, claim: dict, scored: dict) -> str | None:
        ours = scored[evidence.entry_name(self, evidence.claim_pairs(claim)[0][0])]
        if claim["metric"] not in ours.scores:
            return f"{claim['metric']} is not computed here: sizes are known of simulated findings only"
        return None


ARGUS = Argus()


def main(args: list[str] | None = None) -> dict:
    return engine.main(ARGUS, args)


if __name__ == "__main__":
    main()
