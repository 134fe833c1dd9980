"""Predictions of all runs -> `results/<paper>/<tier>/`: scorecard, tables, figures, and REPRODUCTION.md.

`collect` copies what is evidence (predictions, run facts, pictures that need signals) out of `runs/`; `score` computes
every number from that folder alone.
"""

import importlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from shared.locks import write_whole
from shared.metrics import scorecard
from shared.metrics.interval import Difference, Metric, difference
from shared.metrics.report import print_table, render
from shared.metrics.scorecard import TIERS, Measured
from shared.runs.config import RunConfig
from shared.runs.facts import commit, versions
from shared.runs.paper import Paper

RESULTS = Path(__file__).parents[2] / "results"  # the committed ones
FACTS = ("commit", "config_hash", "batch", "steps", "n_train", "parameters", "trainable")  # of run.json, kept
VARIANTS = ("meteor", "bertscore_p", "bertscore_r", "bertscore_f1")  # their full names say with what they were computed
Control = tuple[str, str, str, str, str | None]  # id, metric, key of what should fail, key of ours, what it is


def folder(cfg: RunConfig) -> Path:
    return Path(cfg.results) / cfg.PAPER / cfg.tier


def read_predictions(cfg: RunConfig, name: str, seed: int) -> pd.DataFrame:
    return pd.read_parquet(folder(cfg) / "predictions" / f"{name}-seed{seed}.parquet")


# --- collect ---


def run_folders(cfg: RunConfig, name: str, seed: int) -> list[Path]:
    """Folders of one experiment and seed: one, or one per fold."""
    folds = sorted((cfg.tier_dir / name).glob("fold-*"), key=lambda p: int(p.name.removeprefix("fold-")))
    return [f / f"seed{seed}" for f in folds] or [cfg.dir_of(name, seed)]


def check(cfg: RunConfig) -> None:
    """Results of another config never stand beside these: said before anything runs, and nothing is deleted."""
    file = folder(cfg) / "runs.json"
    if file.exists() and json.loads(file.read_text())["tier_hash"] != cfg.tier_hash():
        raise SystemExit(f"{folder(cfg)} holds results of another config: remove it, or give --results another folder")


def collect(paper: Paper, cfg: RunConfig, names: list[str], seeds: list[int], peak_rss_mb: int) -> None:
    """Copy predictions and run facts of `names` into the results folder, beside what earlier calls left there. Seeds of
    the same experiment that were trained on other data are not listed any more: no mean is taken over both.

    `wall_s` is the time of all runs listed there, at `reproduce.jobs` a time, whenever they ran.
    """
    out = folder(cfg)
    file = out / "runs.json"
    empty = {"tier_hash": cfg.tier_hash(), "runs": {}, "peak_rss_mb": 0}
    facts = json.loads(file.read_text()) if file.exists() else empty
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    for name in names:
        for seed in seeds:
            runs = run_folders(cfg, name, seed)
            parts = [pd.read_parquet(r / "predictions.parquet").assign(fold=i) for i, r in enumerate(runs)]
            table = pd.concat(parts, ignore_index=True).drop(columns="split", errors="ignore")
            table.to_parquet(out / "predictions" / f"{name}-seed{seed}.parquet", compression="zstd")
            run = facts["runs"][f"{name}/seed{seed}"] = run_facts(runs)
            if paper.kept_once:
                kept, of = paper.kept_once
                kept_as = f"{kept.replace('_', '-')}-{run[of]}.parquet"
                shutil.copy(runs[0] / f"{kept}.parquet", out / "predictions" / kept_as)
            paper.collect(cfg, name, runs, out)
        for seed in {*seeds_of(facts, name)} - {*seeds}:
            if facts["runs"][f"{name}/seed{seed}"].get("trained_on") != run.get("trained_on"):
                print(f"{name}: seed {seed} under {out} was trained on other data and is left out")
                del facts["runs"][f"{name}/seed{seed}"]
    facts |= {
        "commit": commit(),
        "wall_s": sum(r.get("train_s", 0) + r["evaluation_s"] for r in facts["runs"].values()) / cfg.reproduce.jobs,
        "peak_rss_mb": max(peak_rss_mb, facts["peak_rss_mb"]),
        "seeds": sorted({seed for _, seed, _ in runs_of(facts)}),
        "environment": versions(),
    }
    _write(file, facts)
    paper.pictures(cfg, names)


def _write(file: Path, facts: dict) -> None:
    write_whole(file, json.dumps(facts, indent=1, sort_keys=True) + "\n")


def run_facts(runs: list[Path]) -> dict:
    """What a reader may ask of a run: commit, hashes, sizes, time. Evaluation-only runs have no training facts.

    Everything in metrics.json but the metrics themselves is kept, and what run.json lists under `shown`.
    """
    metrics = [json.loads((r / "metrics.json").read_text()) for r in runs]
    facts = {k: v for k, v in metrics[0].items() if k not in ("metrics", "wall_s", "evaluation_hash", "scored_by")}
    facts |= {
        "evaluation_commit": facts["commit"],
        "n_runs": len(runs),
        "evaluation_s": round(sum(m["wall_s"] for m in metrics), 1),
    }
    if (runs[0] / "run.json").exists():
        trained = [json.loads((r / "run.json").read_text()) for r in runs]
        facts |= {k: trained[0][k] for k in FACTS if k in trained[0]} | trained[0].get("shown", {})
        facts |= {"train_s": round(sum(t["wall_s"] for t in trained), 1), "samples_per_s": trained[0]["samples_per_s"]}
        facts["loss"] = [[h["step"], round(h["loss"], 4)] for h in trained[0]["loss_log"]]
    return facts


def runs_of(facts: dict) -> list[tuple[str, int, dict]]:
    """(experiment, seed, facts) of every run, in this order; facts: runs.json."""
    runs = sorted((name, int(seed)) for name, seed in (run.rsplit("/seed", 1) for run in facts["runs"]))
    return [(name, seed, facts["runs"][f"{name}/seed{seed}"]) for name, seed in runs]


def seeds_of(facts: dict, name: str) -> list[int]:
    """Seeds with which an experiment was run, in order; facts: runs.json."""
    return [seed for found, seed, _ in runs_of(facts) if found == name]


# --- score ---


@dataclass
class Scored:
    """One experiment with one kind of input: metric -> one `Metric` per seed (`seeds`), all on the same items."""

    scores: dict[str, list[Metric]]
    ids: np.ndarray
    patients: np.ndarray
    source: str  # "simulated" or the data set
    data_hash: str
    n_folds: int = 1
    tables: list[pd.DataFrame] = field(default_factory=list)  # predictions, per seed
    n_records: int = 0  # where it is not the number of items: a record that serves several tasks is several
    seeds: list[int] = field(default_factory=list)
    _levels: dict = field(default_factory=dict)

    def metric(self, name: str) -> list[Metric]:
        """Scores per seed; `meteor` and `bertscore_f1` stand for the variant that ran."""
        return self.scores[self._found(name) or name]

    def has(self, name: str) -> bool:
        """Whether `metric` finds it."""
        return self._found(name) is not None

    def _found(self, name: str) -> str | None:
        variants = [n for n in self.scores if n.startswith(f"{name}_")] if name in VARIANTS else []
        return next((n for n in (name, *variants) if n in self.scores), None)

    def level(self, name: str) -> tuple[float, float, float]:
        """Mean over seeds with its 95 % interval over patients and seeds."""
        if name not in self._levels:
            d = difference(self.metric(name), None, self.patients)
            self._levels[name] = (d.mean, *d.interval())
        return self._levels[name]


def add_seed(scored: dict[str, Scored], key: str, new: Scored, seed: int, metrics: dict[str, Metric]) -> Scored:
    """The entry of `key`, `new` where there is none yet, with the metrics of one more seed. ValueError where the others
    were scored on other records or by other metrics."""
    one = scored.setdefault(key, new)
    if not same_records(one, new):
        raise ValueError(f"{key}: seeds were scored on different records; run it again")
    one.seeds.append(seed)
    for name, metric in metrics.items():
        one.scores.setdefault(name, []).append(metric)
    if odd := [name for name, found in one.scores.items() if len(found) != len(one.seeds)]:
        raise ValueError(f"{key}: not every seed was scored by {', '.join(odd)}; evaluate them alike")
    return one


def entry_name(paper: Paper, name: str) -> str:
    """Key of `score_all`: the paper's main input unless the name says otherwise."""
    return name if "@" in name else f"{name}@{paper.main_input}"


def compare(paper: Paper, scored: dict[str, Scored], metric: str, ours: str, theirs: str) -> Difference:
    """Paired difference of two entries of `score_all`, over the seeds that both have. ValueError where they were not
    scored on the same records."""
    a, b = (scored[entry_name(paper, x)] for x in (ours, theirs))
    if not same_records(a, b):
        raise ValueError(f"{ours} and {theirs} were scored on different records: run both again on one data set")
    if not paired(a, b, metric)[0]:
        raise ValueError(f"{ours} and {theirs} have no seed in common: {a.seeds} and {b.seeds}; run one of them again")
    return difference(*paired(a, b, metric), a.patients)


def paired(a: Scored, b: Scored, metric: str) -> tuple[list[Metric], list[Metric]]:
    """A metric of both, seed by seed of those that both have; without seeds (a score that no run made) as they are."""
    if a.seeds == b.seeds:
        return a.metric(metric), b.metric(metric)
    both = [seed for seed in a.seeds if seed in b.seeds]
    ours, theirs = ([e.metric(metric)[e.seeds.index(seed)] for seed in both] for e in (a, b))
    return ours, theirs


def same_records(a: Scored, b: Scored) -> bool:
    return np.array_equal(a.ids, b.ids) and a.data_hash == b.data_hash


def comparable(scored: dict[str, Scored], ours: str, theirs: str) -> bool:
    """Both scored, on the same records, and with a seed in common."""
    if ours not in scored or theirs not in scored or not same_records(scored[ours], scored[theirs]):
        return False
    a, b = scored[ours].seeds, scored[theirs].seeds
    return a == b or bool({*a} & {*b})


def gain(scored: dict[str, Scored], metric: str, ours: str, theirs: str) -> tuple[float, float, float]:
    """Paired difference of two keys of `score_all`, with its 95 % interval."""
    found = difference(*paired(scored[ours], scored[theirs], metric), scored[ours].patients)
    return (found.mean, *found.interval())


def describe(entry: Scored) -> str:
    """The data in words: `simulated, 360 test records ..` or `PTB-XL, 350 records .., out of fold`."""
    size = f"{entry.n_records or len(entry.ids)} records of {len(set(entry.patients))} patients"
    name = "simulated" if entry.source == "simulated" else entry.source.upper()
    return f"{name}, {size}" + (", out of fold" if entry.n_folds > 1 else "")


def claim_pairs(claim: dict) -> list[tuple[str, str]]:
    """What a claim compares: (experiment, comparator), or one pair per step `better > worse` of an ordering."""
    if claim["kind"] == "ordering":
        return [tuple(step.split(" > ")) for step in claim["comparator"]]
    return [(claim["experiment"], claim["comparator"])]


def control_rows(paper: Paper, scored: dict[str, Scored], controls: Iterable[Control]) -> list[dict]:
    """Rows of the controls that were scored, with how far ours is above them; without, where results of an earlier
    version of the data still stand beside new ones."""
    rows = []
    for control_id, metric, key, ours, note in controls:
        if key in scored and ours in scored:
            entry, same = scored[key], same_records(scored[ours], scored[key])
            above = compare(paper, scored, metric, ours, key) if same else None
            rows.append(scorecard.control(control_id, metric, entry.level(metric), above, describe(entry), note))
    return rows


def measure(paper: Paper, claim: dict, scored: dict[str, Scored]) -> Measured | str:
    """The differences a claim asks for, or why they are not there."""
    pairs = claim_pairs(claim)
    absent = sorted({side for pair in pairs for side in pair if entry_name(paper, side) not in scored})
    if absent:
        return f"needs {', '.join(absent)}: `make reproduce-{paper.name} CLAIM={claim['id']}` or `ALL=1`"
    reason = paper.unmet(claim, scored)
    if reason:
        return reason
    for a, b in pairs:  # results of an earlier version of the data never meet new ones
        if not same_records(*(scored[entry_name(paper, side)] for side in (a, b))):
            command = f"make reproduce-{paper.name} CLAIM={claim['id']}"
            return f"{a} and {b} stand on different data: `{command}` runs them again"
    data = describe(scored[entry_name(paper, pairs[0][0])])
    return Measured(tuple(compare(paper, scored, claim["metric"], a, b) for a, b in pairs), data)


def score(paper: Paper, cfg: RunConfig, claims: list[dict], started: float | None = None) -> dict:
    """Everything that can be computed from the results folder; writes the scorecard and REPRODUCTION.md.

    started: when (`time.monotonic`) a call began that ran the tier's own headline from nothing; `headline_s` is then
    its time by the clock, this scoring included.
    """
    out = folder(cfg)
    if not (out / "runs.json").exists():
        raise SystemExit(f"{out}: no results; run `make reproduce-{paper.name} TIER={cfg.tier}` first")
    facts = json.loads((out / "runs.json").read_text())
    scoring, tables = (importlib.import_module(f"{paper.name}.{module}") for module in ("scoring", "tables"))
    scored = scoring.score_all(cfg, facts)
    run = {k: facts[k] for k in ("commit", "wall_s", "headline_s", "peak_rss_mb", "seeds", "environment") if k in facts}
    due = {c["id"]: measure(paper, c, scored) for c in claims if cfg.tier in c["tiers"]}
    controls = control_rows(paper, scored, tables.controls(scored))
    parts = {"controls": controls, "tables": tables.tables(cfg, scored, facts)}
    card = scorecard.build(paper.name, cfg.tier, claims, due, run=run, **parts)
    if any("ours" in claim for claim in card["claims"]):
        from shared.metrics.figures import draw_claims  # here, so that training imports no matplotlib

        draw_claims(out / "claims.png", card)
    captions = {"claims.png": "Claims measured at this tier."} | tables.draw(cfg, scored, facts)
    figures = [{"file": file, "caption": caption} for file, caption in captions.items() if (out / file).exists()]
    if started is not None:
        run["headline_s"] = facts["headline_s"] = round(time.monotonic() - started, 1)
        _write(out / "runs.json", facts)
    card = scorecard.build(paper.name, cfg.tier, claims, due, run=run, **parts, figures=figures)
    scorecard.write(card, out / "scorecard.json")
    page = write_reproduction(paper, cfg, claims)
    print_table(card)
    print(f"wrote {out / 'scorecard.json'} and {page}")
    return card


def write_reproduction(paper: Paper, cfg: RunConfig, claims: list[dict]) -> Path:
    """REPRODUCTION.md from all committed scorecards; beside the results where they are not the committed ones."""
    committed = Path(cfg.results).resolve() == RESULTS.resolve()
    file = (paper.folder if committed else folder(cfg).parent) / "REPRODUCTION.md"
    shown = [t for t in TIERS if t != "smoke" or not committed]  # smoke proves the plumbing, it is no evidence
    cards = {t: Path(cfg.results) / paper.name / t / "scorecard.json" for t in shown}
    file.write_text(render(paper.name, claims, {t: scorecard.read(p) for t, p in cards.items() if p.exists()}))
    return file
