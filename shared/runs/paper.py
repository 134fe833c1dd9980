"""What a paper says of itself, so that the engine can run and score it: one subclass in `<paper>/reproduce.py`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from shared.runs.config import RunConfig, data_root

REAL = {  # the PTB-XL records at hand: zero-shot on all of them, probes out of fold
    "eval.simulate": None,
    "eval.all_records": True,
    "eval.tasks": ["ptb-xl-superclass", "ptb-xl-subclass", "ptb-xl-form", "ptb-xl-rhythm"],
}
REAL_PROBE = REAL | {"eval.tasks": ["ptb-xl-superclass"]}


@dataclass(frozen=True)
class Experiment:
    """One row of runs, one per seed. `after`: experiments whose checkpoints it starts from or is evaluated with."""

    overrides: dict = field(default_factory=dict)  # config keys; {x} in a value = the checkpoint of x, same seed
    inputs: tuple[str, ...] = ()  # `eval.inputs`: what the trained model is given at test time
    after: tuple[str, ...] = ()
    train: bool = True
    score: bool = True
    folds: int = 0  # out-of-fold over the official folds: one run per fold, predictions pooled


def evaluation(of: str, inputs: tuple[str, ...], **overrides) -> Experiment:
    """Another evaluation of the weights of experiment `of`."""
    return Experiment({"eval.checkpoint": f"{{{of}}}", **overrides}, inputs, after=(of,), train=False)


class Paper(ABC):
    """The names and the few choices in which papers differ. Found by name, the same in every package: the entry points
    `train` and `evaluate`; `scoring.score_all(cfg, facts)`, which maps `name@input` to `evidence.Scored` from the
    results folder; `tables.controls(scored)`, each an `evidence.Control`; `tables.tables(cfg, scored, facts)`; and
    `tables.draw(cfg, scored, facts)`, which returns file -> caption of all figures that a tier may have.

    main_input: the kind of input that `experiment` stands for where a claim names none (`meit` is `meit@ecg`).
    kept_once: a table of a run that scoring needs, once for all runs on the same data, and the key of their hash among
    a run's facts.
    """

    name: str
    config: type[RunConfig]
    experiments: dict[str, Experiment]
    main_input: str
    kept_once: tuple[str, str] | None = None

    @property
    def folder(self) -> Path:
        return Path(__file__).parents[2] / self.name

    # --- what runs ---

    def experiment(self, cfg: RunConfig, name: str) -> Experiment:
        """A row of `experiments`, or what such a row starts from."""
        return self.experiments[name]

    def cannot_run(self, cfg: RunConfig, name: str) -> str | None:
        """Why this tier, or this machine's data, cannot run an experiment; None where it can. One that turns
        `data.simulate` or `eval.simulate` off is on the PTB-XL records at hand."""
        for prefix, reason in cfg.reproduce.not_here.items():
            if name.startswith(prefix):
                return reason
        for part in ("data", "eval"):
            if self.experiments[name].overrides.get(f"{part}.simulate", "") is None:
                if not getattr(cfg, part).simulate:
                    return "this tier has the real releases already"
                if not (data_root() / "ptb-xl").is_dir():
                    return f"{data_root() / 'ptb-xl'} is missing (`make data-ptb-xl`, or set DATA_ROOT)"
        return None

    def starts_from(self, cfg: RunConfig, name: str) -> dict[str, str]:
        """Config key -> run (seed 0) whose checkpoint it names: what is trained once for all experiments and seeds."""
        return {}

    def stands_for(self, side: str) -> tuple[str, ...]:
        """The experiments behind a name that a claim compares: itself, or those of which scoring chooses one."""
        return (side,)

    def keys(self, cfg: RunConfig, name: str) -> dict:
        """Config keys of every run of an experiment, before its own overrides."""
        return {}

    @abstractmethod
    def prepare(self, cfg: RunConfig) -> None:
        """Data of one run, before workers start, so that no two make them."""

    def same_data(self, cfg: RunConfig) -> str:
        """Runs with the same text need `prepare` only once."""
        return repr(cfg.data)

    # --- what is shown ---

    def collect(self, cfg: RunConfig, name: str, runs: list[Path], out: Path) -> None:  # noqa: B027 (nothing to add)
        """Copy what scoring needs beside the predictions. runs: folders of one seed, one per fold."""

    def pictures(self, cfg: RunConfig, names: list[str]) -> None:  # noqa: B027 (likewise)
        """Figures that need signals or weights, drawn while `runs/` and the data are there."""

    def unmet(self, claim: dict, scored: dict) -> str | None:
        """Why a claim cannot be measured although its runs are there (no judge, say)."""
        return None
