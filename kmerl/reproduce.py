"""K-MERL's experiments, and how they are scored and shown: `make reproduce-kmerl`. The engine is `shared.runs`."""

from kmerl import tables
from kmerl.config import Config
from kmerl.inputs import ALL_LEADS
from kmerl.prep import prepare
from shared.runs import engine
from shared.runs.paper import REAL, REAL_PROBE, Experiment, Paper, evaluation
from shared.runs.tasks import prepare_tasks

LEADS = (ALL_LEADS, "partial")
FILLED = (ALL_LEADS, "partial/zero", "partial/record_mean", "partial/lead_mean", "partial/einthoven+zero")
MERL = {"model.method": "merl"}
MASKED = (ALL_LEADS, "partial/zero", "partial/einthoven+zero")
SUPERVISED = {"model.method": "supervised", "eval.tasks": ["ptb-xl-superclass"], "train.epochs": 26}
REAL_SETS = (ALL_LEADS, "limb", "I+II", "I")


def oof(fill: str = "") -> tuple[str, ...]:
    return tuple(f"oof:{s}{fill if s != ALL_LEADS else ''}" for s in REAL_SETS)


def real(fill: str = "") -> tuple[str, ...]:
    return tuple(f"{s}{fill if s != ALL_LEADS else ''}" for s in REAL_SETS)


EXPERIMENTS = {
    # the headline: partial leads, the fair baseline, and what the model reads
    "kmerl": Experiment({}, (*LEADS, *(f"{ALL_LEADS}~{c}" for c in ("zeroed", "shuffled", "permuted", "val")))),
    "merl": Experiment(MERL, (*FILLED, f"{ALL_LEADS}~shuffled")),
    "merl-masked": Experiment(MERL | {"model.lead_masking": "random"}, MASKED),
    "random-init": Experiment({"train.epochs": 0}, LEADS),
    # controls: K-MERL's own masking rule for MERL, the entity labels without lead tokens, labels of other records
    "merl-masked-kmerl": Experiment(MERL | {"model.lead_masking": "kmerl"}, MASKED),
    "merl-entities": Experiment(MERL | {"model.entity_head": True, "model.lead_masking": "random"}, MASKED),
    "merl-vit": Experiment(MERL | {"model.encoder": "vit"}, (ALL_LEADS, "partial/zero")),
    "permuted-entities": Experiment({"data.permute_entities": True, "model.contrastive_loss": 0}, LEADS),
    # control: from scratch on the labels of one task; 26 epochs are as many updates as the laptop's pre-training
    "supervised": Experiment(SUPERVISED, LEADS),
    "supervised-resnet": Experiment(SUPERVISED | {"model.encoder": "resnet"}, (ALL_LEADS, "partial/zero")),
    # ablations (reference: Controls): lead tokens, spatial embedding, masking, losses
    "joint-tokens": Experiment({"model.tokens": "joint"}, LEADS),
    "no-lead-embedding": Experiment({"model.lead_embedding": False}, LEADS),
    "no-masking": Experiment({"model.masked_leads": [0], "model.segment_masking": 0}, LEADS),
    "mask-few-leads": Experiment({"model.masked_leads": [0, 3, 6, 9]}, LEADS),
    "some-full-leads": Experiment({"model.p_full_leads": 0.25}, LEADS),
    "segments-0": Experiment({"model.segment_masking": 0}, LEADS),
    "segments-50": Experiment({"model.segment_masking": 0.5}, LEADS),
    "no-entities": Experiment({"model.entity_loss": 0}, LEADS),
    "no-contrast": Experiment({"model.contrastive_loss": 0}, LEADS),
    # the same weights, evaluated otherwise
    "random-sets-kmerl": evaluation("kmerl", ("random",)),
    "random-sets-merl": evaluation("merl", ("random/zero", "random/lead_mean")),
    "random-sets-masked": evaluation("merl-masked", ("random/zero",)),
    "kmerl-prompts": evaluation("kmerl", LEADS, **{"eval.prompts": "engineered"}),
    "merl-prompts": evaluation("merl", FILLED, **{"eval.prompts": "engineered"}),
    "as-published": evaluation("kmerl", (ALL_LEADS, f"{ALL_LEADS}~val"), **{"eval.variant": "as_published"}),
    "probe-kmerl": evaluation("kmerl", (f"probe:{ALL_LEADS}", "probe:I")),
    "probe-merl": evaluation("merl", (f"probe:{ALL_LEADS}", "probe:I/zero")),
    "probe-random": evaluation("random-init", (f"probe:{ALL_LEADS}", "probe:I")),
    # the real records
    "real-kmerl": evaluation("kmerl", (*real(), f"{ALL_LEADS}~shuffled"), **REAL),
    "real-merl": evaluation("merl", real("/zero"), **REAL),
    "real-masked": evaluation("merl-masked", real("/zero"), **REAL),
    "real-random": evaluation("random-init", real(), **REAL),
    "real-probe-kmerl": evaluation("kmerl", oof(), **REAL_PROBE),
    "real-probe-merl": evaluation("merl", oof("/zero"), **REAL_PROBE),
    "real-probe-masked": evaluation("merl-masked", oof("/zero"), **REAL_PROBE),
    "real-probe-random": evaluation("random-init", oof(), **REAL_PROBE),
}


class Kmerl(Paper):
    name = "kmerl"
    config = Config
    experiments = EXPERIMENTS
    main_input = ALL_LEADS
    kept_once = ("labels", "data_hash")  # of the tasks: what predictions are compared with

    def prepare(self, cfg: Config) -> None:
        prepare(cfg)
        prepare_tasks(cfg)

    def same_data(self, cfg: Config) -> str:
        return repr([cfg.data, cfg.extract, cfg.text, cfg.eval.tasks, cfg.eval.simulate])

    def pictures(self, cfg: Config, names: list[str]) -> None:
        tables.draw_attention_cases(cfg, names)


KMERL = Kmerl()


def main(args: list[str] | None = None) -> dict:
    return engine.main(KMERL, args)


if __name__ == "__main__":
    main()
