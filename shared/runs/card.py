"""The model card of a published run: README.md with the hub's metadata, made from what the run left, never by hand.

Texts come from the package's README.md (its heading and first paragraph) and card.yaml, numbers from the run's
metrics.json and, where the run is one of those behind it, from the scorecard of its tier.
"""

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shared.metrics import scorecard
from shared.metrics.report import ci_text, escaped, markdown_table, number, verdict_text
from shared.releases import RELEASES
from shared.runs.checkpoint import HUB_NAME
from shared.runs.evidence import claim_pairs

ROOT = Path(__file__).parents[2]
TIERS = {
    "smoke": "proves the plumbing in one to two minutes; its numbers mean nothing",
    "laptop": "small models, trained within minutes on 2 CPU cores",
    "gpu": "mid-size models, trained on one GPU",
    "paper": "the published setting",
}


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder by `read_run`.

    kind: class of the model; config: config.yaml; facts: run.json; evaluation: metrics.json, {} where nothing was
    evaluated; about: card.yaml.
    """

    folder: Path
    paper: str
    kind: str
    config: dict
    facts: dict
    evaluation: dict
    about: dict

    @property
    def experiment(self) -> str:
        """Without the fold, where there is one."""
        return self.config["experiment"].split("/fold-")[0]

    @property
    def simulated(self) -> bool:
        """Trained on simulated records."""
        return self.facts["source"] == "simulated"

    @property
    def releases(self) -> list[str]:
        """The data sets trained on, or those whose layout and reports the simulated ones have."""
        data = self.config["data"]
        return data.get("sources") or [data.get("dataset") or self.about["dataset"]]

    def setting(self, key: str):
        """Value of a dotted key of the config; None where it is not there."""
        return reduce(lambda part, name: (part or {}).get(name), key.split("."), self.config)

    @property
    def served(self) -> bool:
        """The paper's `predict` takes it."""
        return self.kind in self.about["served"] and not any(
            self.setting(key) in values for key, values in self.about["unserved"].items()
        )

    @property
    def base_models(self) -> list[str]:
        """Models of the hub that these weights started from."""
        values = [str(self.setting(key) or "") for key in self.about["base"]]
        return [value for value in values if HUB_NAME.fullmatch(value) and not Path(value).exists()]

    @property
    def inputs(self) -> dict[str, dict]:
        """Kind of input -> metric -> value, ci, n: what the claims are about, the model's own input first."""
        metrics = self.evaluation.get("metrics", {})
        asked = {claim["metric"] for claim in scorecard.load_claims(ROOT / self.paper / "claims.yaml")}
        order = dict.fromkeys([*self.config["eval"]["inputs"], *metrics])
        found = {i: {m: v for m, v in metrics.get(i, {}).items() if m in asked} for i in order}
        return {i: values for i, values in found.items() if values}


def read_run(folder: Path) -> Run:
    """The run in `runs/<paper>/<tier>/<experiment>/seed<k>`. FileNotFoundError or ValueError that says what to do."""
    for name in ("config.yaml", "run.json", "checkpoint/config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: give the folder of a finished training run, "
                "runs/<paper>/<tier>/<experiment>/seed<k>; an evaluation of another run's weights has none of its own"
            )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    paper = folder.resolve().parents[len(Path(config["experiment"]).parts) + 1].name
    if not (ROOT / paper / "card.yaml").is_file():
        raise ValueError(f"{folder}: '{paper}' is no paper of this repository; keep runs under <paper>/<tier>/")
    about = yaml.safe_load((ROOT / paper / "card.yaml").read_text())
    kind = json.loads((folder / "checkpoint" / "config.json").read_text())["architectures"][0]
    if kind not in about["models"]:
        raise ValueError(
            f"{folder}: a {kind}, trained on the way to others; publish one of {', '.join(about['models'])}"
        )
    metrics = folder / "metrics.json"
    evaluation = json.loads(metrics.read_text()) if metrics.is_file() else {}
    return Run(folder, paper, kind, config, json.loads((folder / "run.json").read_text()), evaluation, about)


def card(run: Run, name: str) -> ModelCard:
    """The card. name: what `from_pretrained` is given, a folder or `owner/name`."""
    heading, summary = (ROOT / run.paper / "README.md").read_text(encoding="utf-8").split("\n\n")[:2]
    c = run.config
    title = f"# {heading.removeprefix('# ')}: `{c['experiment']}`, tier `{c['tier']}`, seed {c['seed']}"
    parts = [title, summary, _warning(run), _usage(run, name), _data(run), _metrics(run), _claims(run), _limits(run)]
    parts.append(_made(run))
    return ModelCard("---\n" + metadata(run).to_yaml() + "\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def metadata(run: Run) -> ModelCardData:
    """Licence, tags, data sets and, as the hub's evaluation results, the metrics on the model's own input."""
    c, inputs = run.config, run.inputs
    own = next(iter(inputs.items()), (None, {}))
    results = [
        EvalResult(
            task_type=run.about["task"],
            dataset_type=run.evaluation["source"],
            dataset_name=f"{run.evaluation['source']}, test records",
            dataset_split="test",
            metric_type=metric,
            metric_value=found["value"],
            metric_name=f"{metric}, input {own[0]}",
            metric_args={"confidence_interval_95": found["ci"], "n": found["n"]},
        )
        for metric, found in own[1].items()
        if found["value"] is not None
    ]
    free = run.simulated and not run.base_models
    return ModelCardData(
        license="apache-2.0" if free else "other",
        license_name=None if free else "terms-of-data-and-base-model",
        language="en",
        library_name="medmm-repro",
        pipeline_tag=run.about["task"],
        tags=[run.paper, *run.about["tags"], "medical", f"tier-{c['tier']}", *["simulated-data"] * run.simulated],
        datasets=["simulated"] if run.simulated else [RELEASES[r].hub or r for r in run.releases],
        base_model=run.base_models or None,
        metrics=sorted(own[1]) or None,
        model_name=f"{run.paper}-{c['experiment']}".replace("/", "-"),
        eval_results=results or None,
    )


def _warning(run: Run) -> str:
    tested = " and tested" if run.evaluation.get("source") == "simulated" else ""
    trained = f"Trained{tested} on simulated records only. " if run.simulated else ""
    return f"> **Research only, not for clinical use.** {trained}Tier `{run.config['tier']}`: {_tier(run)}."


def _tier(run: Run) -> str:
    return TIERS.get(run.config["tier"], "a tier of its own")


def _usage(run: Run, name: str) -> str:
    python, shell = (run.about[key].strip().replace("{name}", name) for key in ("usage", "predict"))
    text = f"## Use\n\nWith this repository installed:\n\n```python\n{python}\n```"
    return text + (f"\n\n```bash\n{shell}\n```" if run.served else "")


def _data(run: Run) -> str:
    n = run.facts.get("n_train")
    records = "Records" if n is None else f"{n:,} records"
    kind = "simulated, in the layout and report style of" if run.simulated else "of"
    titles = "\n".join(f"- {RELEASES[r].title}" for r in run.releases)
    settings = [[f"`{key}`", escaped(str(run.setting(key)))] for key in run.about["settings"]]
    settings += [
        ["parameters", number(run.facts["parameters"])],
        ["steps of the optimiser", number(run.facts["steps"])],
    ]
    return (
        f"## Data and settings\n\n{records} {kind}\n\n{titles}\n\nTraining, validation and test sets share no patient "
        "unless `data.split` says `as_published`. All settings are in `config.yaml`.\n\n"
        + markdown_table(["Setting", "Value"], settings)
    )


def _metrics(run: Run) -> str:
    if not run.inputs:
        return "## Metrics\n\nThis run was not evaluated on its own."
    rows = [
        [f"`{kind}`", f"`{metric}`", f"{number(v['value'])} {ci_text(v['ci'])}", number(v["n"])]
        for kind, values in run.inputs.items()
        for metric, v in values.items()
    ]
    return (
        "## Metrics\n\nOf this run, by what the model was given; the first input is its own, most others are controls. "
        "Intervals are over patients of the test set, not over seeds.\n\n"
        + markdown_table(["Input", "Metric", "Value [95 % CI]", "Rows"], rows)
    )


def _claims(run: Run) -> str:
    """What the scorecard of the tier says of the experiment, all seeds together; only where this run is among those."""
    c = run.config
    folder = Path(c["results"]) / run.paper / c["tier"]
    if not ((folder / "runs.json").is_file() and (folder / "scorecard.json").is_file()):
        return ""
    known = json.loads((folder / "runs.json").read_text())["runs"].get(f"{run.experiment}/seed{c['seed']}", {})
    if (known.get("config_hash"), known.get("data_hash")) != (
        run.facts["config_hash"],
        run.evaluation.get("data_hash"),
    ):
        return "The scorecard of this tier stands on other settings or data than this run; nothing of it is shown."
    measured = [claim for claim in scorecard.read(folder / "scorecard.json")["claims"] if "ours" in claim]
    rows = [
        [
            f"{escaped(claim['statement'])} (`{claim['id']}`)",
            f"{escaped(claim['metric'])}, {'weakest step ' if 'steps' in claim['ours'] else ''}"
            f"{number(claim['ours']['level'])} against {number(claim['ours']['comparator_level'])}",
            f"{number(claim['ours']['difference'], True)} {ci_text(claim['ours']['ci'], True)}",
            verdict_text(claim),
        ]
        for claim in measured
        if run.experiment in {side(s) for pair in claim_pairs(claim) for s in pair}
    ]
    if not rows:
        return ""
    return (
        f"### Claims that `{run.experiment}` takes part in\n\nFrom the scorecard of tier `{c['tier']}`, over all its "
        "seeds; intervals over patients and seeds; verdicts corrected for the number of claims.\n\n"
        + markdown_table(["Claim", "Levels", "Difference [95 % CI]", "Verdict"], rows)
    )


def side(text: str) -> str:
    """The experiment of one side of a claim, `name@input`."""
    return text.split("@")[0]


def _limits(run: Run) -> str:
    limits = ["Not a medical device: not for diagnosis, triage or any decision about a patient."]
    if run.simulated:
        limits.append(
            "Simulated records are simpler than patients: numbers on them say nothing of effects on patients."
        )
    else:
        terms = "; ".join(f"{r}: {RELEASES[r].licence}" for r in run.releases)
        limits.append(f"The terms of the data go with the weights ({terms}).")
    limits += [f"Started from {name}: its licence goes with the weights." for name in run.base_models]
    limits += run.about["limits"]
    return "## Limits\n\n" + "\n".join(f"- {' '.join(limit.split())}" for limit in limits)


def _made(run: Run) -> str:
    """The commands that made the run, from a checkout of its commit."""
    claim = f" CLAIM={run.experiment}" if run.inputs else ""
    commands = (
        f"make reproduce-{run.paper} TIER={run.config['tier']}{claim}  # all seeds, with what they start from",
        f"python -m {run.paper}.train --config config.yaml  # this run",
        f"python -m {run.paper}.evaluate --config config.yaml",
    )
    about = f"At commit `{run.facts['commit']}` of medmm-repro; `config.yaml` is in this folder."
    return f"## How it was made\n\n{about}\n\n```bash\n" + "\n".join(commands) + "\n```"
