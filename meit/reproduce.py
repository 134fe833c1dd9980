"""MEIT's experiments, and how they are scored and shown: `make reproduce-meit`. The engine is `shared.runs`."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from meit.cases import draw_cases
from meit.config import Config
from meit.prep import prepare
from shared.runs import engine, evidence
from shared.runs.paper import Experiment, Paper

FAMILIES = ("llama", "mistral", "gpt2", "gpt_neo", "gpt_neox", "gptj", "bloom", "opt")
PTB_XL = {"data.dataset": "ptb-xl", "data.split": "official_folds"}


@dataclass(frozen=True)
class Fusion(Experiment):
    """An experiment with one backbone; `family` names it in `reproduce.backbones` of the tier."""

    inputs: tuple[str, ...] = ("ecg",)
    family: str = "llama"


CONTROLS = ("ecg", "zero", "shuffle", "majority", "nearest")
NOISE = ("noise-0.05", "noise-0.10", "noise-0.15", "noise-0.20", "snr-20", "snr-10", "snr-5", "snr-0")
EXPERIMENTS = {
    # the headline: fusion (paper Table 5), report quality and what the model reads
    "meit": Fusion(inputs=CONTROLS),
    "llava": Fusion({"model.fusion": "llava"}, ("ecg", "shuffle")),
    "flamingo": Fusion({"model.fusion": "flamingo"}, ("ecg", "shuffle")),
    "no-ecg": Fusion({"model.fusion": "none"}),
    # the real records: pre-train on simulated PTB-XL, tune on the real folds, score out of fold
    "ptb-xl": Fusion(PTB_XL, ("ecg", "shuffle", "majority")),
    "real-ptb-xl": Fusion(
        {"data.dataset": "ptb-xl", "data.simulate": None, "train.init": "{ptb-xl}"},
        CONTROLS,
        after=("ptb-xl",),
        folds=10,
    ),
    # secondary: instruction tuning, zero-shot transfer, perturbation, more ECG tokens, the families of LLMs
    "plain": Fusion({"data.instructions": "none"}),
    "zero-shot": Fusion({**PTB_XL, "eval.checkpoint": "{meit}"}, ("ecg", "shuffle"), after=("meit",), train=False),
    "zero-shot-plain": Fusion(
        {**PTB_XL, "data.instructions": "none", "eval.checkpoint": "{plain}"}, after=("plain",), train=False
    ),
    "noise": Fusion({"eval.checkpoint": "{meit}"}, ("ecg", *NOISE), after=("meit",), train=False),
    "tokens-8": Fusion({"model.n_ecg_tokens": 8}),
    "random-encoder": Fusion({"model.encoder": None}, ("ecg", "shuffle")),
    "llava-16": Fusion({"model.fusion": "llava", "model.n_ecg_tokens": 16}),
    "flamingo-16": Fusion({"model.fusion": "flamingo", "model.n_ecg_tokens": 16}),
    "as-published": Fusion({"data.split": "as_published", "data.instructions": "fixed"}, ("ecg", "shuffle")),
    **{f"family-{f}": Fusion(inputs=("ecg", "shuffle"), family=f) for f in FAMILIES if f != "llama"},
    "family-llama-mha": Fusion(inputs=("ecg", "shuffle"), family="llama-mha"),
    "size-small": Fusion(inputs=("ecg", "shuffle"), family="llama-small"),
    "size-large": Fusion(inputs=("ecg", "shuffle"), family="llama-large"),
    # only where the tier's `reproduce.backbones` names these models
    **{f"llama2-{size}": Fusion(family=f"llama2-{size}") for size in ("7b", "13b", "70b")},
    **{f"ptb-xl-{f}": Fusion(PTB_XL, family=f) for f in ("llama2", "llama3")},
}


class Meit(Paper):
    name = "meit"
    config = Config
    experiments = EXPERIMENTS
    main_input = "ecg"

    def experiment(self, cfg: Config, name: str) -> Fusion:
        """A row of EXPERIMENTS, or what such a row starts from: `lm-<text>-<family>`, `encoder-<text>`."""
        if name in EXPERIMENTS:
            return EXPERIMENTS[name]
        kind, text, *family = name.split("-", 2)
        keys = dict(PTB_XL) if text == "ptb" else {}
        if kind == "encoder":
            return Fusion({**keys, "model.fusion": "words", "data.instructions": "none"}, score=False)
        keys |= {"model.fusion": "none", "model.lora_r": 0, "data.instructions": "mixed"}
        return Fusion(keys, family=family[0], score=False)

    def cannot_run(self, cfg: Config, name: str) -> str | None:
        if EXPERIMENTS[name].family not in cfg.reproduce.backbones:
            return f"reproduce.backbones of this tier names no {EXPERIMENTS[name].family}"
        return super().cannot_run(cfg, name)

    def starts_from(self, cfg: Config, name: str) -> dict[str, str]:
        """Small tiers pre-train their own language model and encoder."""
        experiment = self.experiment(cfg, name)
        if not (experiment.train and experiment.score) or experiment.after:
            return {}
        text = "ptb" if experiment.overrides.get("data.dataset") == "ptb-xl" else "mimic"
        runs = {}
        if cfg.reproduce.backbones[experiment.family].startswith("scratch:"):
            runs["model.backbone"] = f"lm-{text}-{experiment.family}"
        if cfg.reproduce.pretrain_encoder and experiment.overrides.get("model.fusion") != "none":
            runs["model.encoder"] = f"encoder-{text}"
        return {key: run for key, run in runs.items() if key not in experiment.overrides}

    def keys(self, cfg: Config, name: str) -> dict:
        backbone = cfg.reproduce.backbones[self.experiment(cfg, name).family]
        # METEOR's start-up is paid once, when all runs are scored
        return {"model.backbone": backbone, "eval.metrics": ["bleu", "rouge", "cider_d"]}

    def prepare(self, cfg: Config) -> None:
        prepare(cfg)

    def collect(self, cfg: Config, name: str, runs: list[Path], out: Path) -> None:
        """Training reports: CIDEr-D takes its document frequencies from them."""
        parts = [pd.read_parquet(r / "train_reports.parquet").assign(fold=i) for i, r in enumerate(runs)]
        reports = pd.concat(parts, ignore_index=True)
        reports.to_parquet(out / "predictions" / f"{name}-train-reports.parquet", compression="zstd")

    def pictures(self, cfg: Config, names: list[str]) -> None:
        draw_cases(cfg, names)

    def unmet(self, claim: dict, scored: dict) -> str | None:
        ours = scored[evidence.entry_name(self, evidence.claim_pairs(claim)[0][0])]
        if claim["metric"].startswith("judge") and claim["metric"] not in ours.scores:
            return "needs a judge: set eval.judge_url and eval.judge_model and evaluate again"
        return None


MEIT = Meit()


def main(args: list[str] | None = None) -> dict:
    return engine.main(MEIT, args)


if __name__ == "__main__":
    main()
