"""SuPreME's experiments, and how they are scored and shown: `make reproduce-supreme`. The engine is `shared.runs`."""

from shared.runs import engine
from shared.runs.paper import REAL, REAL_PROBE, Experiment, Paper, evaluation
from shared.runs.tasks import prepare_tasks
from supreme import tables
from supreme.config import Config
from supreme.prep import prepare
from supreme.scoring import BEST, ESSL

PROBES = ("probe:ecg~val",)
CONTROLS = tuple(f"ecg~{c}" for c in ("zeroed", "shuffled", "permuted", "texts", "prior", "val"))


def method(name: str, **overrides) -> dict:
    return {"model.method": name, **overrides}


def essl(name: str) -> Experiment:
    """A self-supervised objective on the same records and updates, scored by linear probes."""
    return Experiment(method(name.replace("-", "_")), PROBES)


ALL_LABELS = {"eval.probe.ratios": [1.0]}
# Five findings held out of the extracted labels, whole: with all that is narrower, and patterns of premature beats.
HELD_OUT = ["pvc", "bigeminy", "trigeminy", "lbbb", "sinus_tachycardia", "long_qt", "low_voltage"]

EXPERIMENTS = {
    # the headline: zero-shot against probes of three kinds of self-supervision, unseen conditions, what the model reads
    "supreme": Experiment({}, ("ecg", *CONTROLS)),
    "held-out": Experiment({"extract.hold_out": HELD_OUT}, ("ecg", "ecg~shuffled", "ecg~texts")),
    "simclr": essl("simclr"),
    "st-mem": essl("st-mem"),
    "simsiam": essl("simsiam"),
    "random-init": Experiment({"train.epochs": 0, "train.steps": 0}, ("ecg", *PROBES)),
    "supervised": Experiment(method("supervised"), ("ecg",)),
    # the other self-supervised objectives, a contrastive encoder of ECG and report, few labels from scratch
    **{name: essl(name) for name in ESSL if name not in ("simclr", "st-mem", "simsiam")},
    "merl": Experiment(method("merl"), ("ecg", *PROBES)),
    "supervised-10": Experiment(method("supervised", **{"data.share": 0.1}), ("ecg",)),
    "supervised-1": Experiment(method("supervised", **{"data.share": 0.01}), ("ecg",)),
    "probe-supreme": evaluation("supreme", PROBES),
    # data efficiency: fewer patients, as many updates
    "share-10": Experiment({"data.share": 0.1}, ("ecg",)),
    "share-30": Experiment({"data.share": 0.3}, ("ecg",)),
    # ablations (reference: Controls): fusion, encoder, queries, labels
    "linear-head": Experiment({"model.head": "linear"}, ("ecg",)),
    "resnet": Experiment({"model.encoder": "resnet"}, ("ecg",)),
    "no-lead-embedding": Experiment({"model.lead_embedding": False}, ("ecg",)),
    "random-queries": Experiment({"model.queries": "random"}, ("ecg",)),
    "permuted-queries": Experiment({"model.queries": "permuted"}, ("ecg",)),
    "learned-queries": Experiment({"model.queries": "learned"}, ("ecg",)),
    "raw-statements": Experiment({"extract.skip_merge_map": True}, ("ecg",)),
    "uncertain-positive": Experiment({"extract.uncertain": "positive"}, ("ecg",)),
    "uncertain-negative": Experiment({"extract.uncertain": "negative"}, ("ecg",)),
    "labels-as-published": Experiment({"extract.protocol": "as_published"}, ("ecg",)),
    "true-labels": Experiment({"data.labels": "truth"}, ("ecg",)),
    "permuted-labels": Experiment({"data.permute_labels": True}, ("ecg",)),
    # the same weights, evaluated otherwise
    "texts-figure": evaluation("supreme", ("ecg",), **{"eval.texts": "figure"}),
    "texts-long": evaluation("supreme", ("ecg",), **{"eval.texts": "long"}),
    "texts-code": evaluation("supreme", ("ecg",), **{"eval.texts": "code"}),
    "as-published": evaluation("supreme", ("ecg", "ecg~val"), **{"eval.variant": "as_published"}),
    **{f"all-labels-{n}": evaluation(n, PROBES, **ALL_LABELS) for n in ("supreme", "simclr", "st-mem", "simsiam")},
    # the real records
    "real-supreme": evaluation("supreme", ("ecg", "ecg~shuffled"), **REAL),
    "real-random": evaluation("random-init", ("ecg",), **REAL),
    **{
        f"real-probe-{n}": evaluation(n, ("oof:ecg",), **REAL_PROBE)
        for n in ("supreme", "simclr", "st-mem", "simsiam", "random-init")
    },
}


class Supreme(Paper):
    name = "supreme"
    config = Config
    experiments = EXPERIMENTS
    main_input = "ecg"
    kept_once = ("labels", "data_hash")  # of the tasks: what predictions are compared with

    def stands_for(self, side: str) -> tuple[str, ...]:
        return ESSL if side == BEST else (side,)

    def prepare(self, cfg: Config) -> None:
        prepare(cfg)
        prepare_tasks(cfg)

    def same_data(self, cfg: Config) -> str:
        supervised = cfg.model.method == "supervised"
        return repr([supervised, cfg.data, cfg.extract, cfg.text, cfg.eval.tasks, cfg.eval.simulate])

    def pictures(self, cfg: Config, names: list[str]) -> None:
        tables.draw_attention_cases(cfg, names)
        tables.write_extraction(cfg, names)


SUPREME = Supreme()


def main(args: list[str] | None = None) -> dict:
    return engine.main(SUPREME, args)


if __name__ == "__main__":
    main()
