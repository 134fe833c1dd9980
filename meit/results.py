"""Predictions of all runs -> `results/meit/<tier>/`: scorecard, tables, figures, and REPRODUCTION.md.

`collect` copies what is evidence (predictions, training reports, run facts, pictures that need signals) out of `runs/`;
`score` computes every number from that folder alone.
"""

import dataclasses
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from meit import figures
from meit.config import Config, parse
from meit.prep import prepare
from meit.runs import commit
from meit.scoring import Scored, compare, describe, entry_name, folder, read_predictions, score_all
from meit.tables import controls, draw, tables
from shared.metrics import scorecard
from shared.metrics.report import print_table, render
from shared.metrics.scorecard import TIERS, Measured

HERE = Path(__file__).parent
N_CASES = 3


# --- collect ---


def run_folders(cfg: Config, name: str, seed: int) -> list[Path]:
    """Folders of one experiment and seed: one, or one per fold."""
    base = Path(cfg.runs) / "meit" / cfg.tier / name
    folds = sorted(base.glob("fold-*"), key=lambda p: int(p.name.removeprefix("fold-")))
    return [f / f"seed{seed}" for f in folds] or [base / f"seed{seed}"]


def collect(cfg: Config, names: list[str], peak_rss_mb: int) -> None:
    """Copy predictions and run facts of `names` into the results folder, beside what earlier calls left there.

    `wall_s` is the time of all runs listed there, at `reproduce.jobs` a time, whenever they ran.
    """
    out = folder(cfg)
    file = out / "runs.json"
    empty = {"tier_hash": tier_hash(cfg), "runs": {}, "peak_rss_mb": 0}
    facts = json.loads(file.read_text()) if file.exists() else empty
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    for name in names:
        for seed in cfg.reproduce.seeds:
            runs = run_folders(cfg, name, seed)
            parts = [pd.read_parquet(r / "predictions.parquet").assign(fold=i) for i, r in enumerate(runs)]
            table = pd.concat(parts, ignore_index=True)
            table.drop(columns="split").to_parquet(
                out / "predictions" / f"{name}-seed{seed}.parquet", compression="zstd"
            )
            facts["runs"][f"{name}/seed{seed}"] = run_facts(runs)
        parts = [pd.read_parquet(r / "train_reports.parquet").assign(fold=i) for i, r in enumerate(runs)]
        reports = pd.concat(parts, ignore_index=True)
        reports.to_parquet(out / "predictions" / f"{name}-train-reports.parquet", compression="zstd")
    facts |= {
        "commit": commit(),
        "wall_s": sum(r.get("train_s", 0) + r["evaluation_s"] for r in facts["runs"].values()) / cfg.reproduce.jobs,
        "peak_rss_mb": max(peak_rss_mb, facts["peak_rss_mb"]),
        "seeds": cfg.reproduce.seeds,
        "environment": {p: version(p) for p in ("torch", "transformers", "peft", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }
    file.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    draw_cases(cfg, names)


def tier_hash(cfg: Config) -> str:
    """Hash of the tier's own settings that change results, before an experiment changes any."""
    content = {k: v for k, v in dataclasses.asdict(cfg).items() if k in ("data", "model", "train")}
    for section, key in (("train", "save_steps"), ("train", "log_steps"), ("data", "workers")):
        content[section].pop(key)
    content["max_new_tokens"] = cfg.eval.max_new_tokens
    content |= {k: getattr(cfg.reproduce, k) for k in ("seeds", "backbones", "overrides", "pretrain_encoder")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check(cfg: Config) -> None:
    """Results of another config never stand beside these: said before anything runs, and nothing is deleted."""
    file = folder(cfg) / "runs.json"
    if file.exists() and json.loads(file.read_text())["tier_hash"] != tier_hash(cfg):
        raise SystemExit(f"{folder(cfg)} holds results of another config: remove it, or give --results another folder")


def run_facts(runs: list[Path]) -> dict:
    """What a reader may ask of a run: commit, hashes, sizes, time. Evaluation-only runs have no training facts."""
    metrics = [json.loads((r / "metrics.json").read_text()) for r in runs]
    facts = {k: metrics[0][k] for k in ("source", "data_hash", "commit", "attention") if k in metrics[0]}
    facts |= {"n_runs": len(runs), "evaluation_s": round(sum(m["wall_s"] for m in metrics), 1)}
    if (runs[0] / "run.json").exists():
        trained = [json.loads((r / "run.json").read_text()) for r in runs]
        keys = ("commit", "config_hash", "batch", "steps", "n_train", "n_truncated", "parameters", "trainable")
        facts |= {k: trained[0][k] for k in keys}
        facts |= {"train_s": round(sum(t["wall_s"] for t in trained), 1), "samples_per_s": trained[0]["samples_per_s"]}
        facts["loss"] = [[h["step"], round(h["loss"], 4)] for h in trained[0]["loss_log"]]
    return facts


def draw_cases(cfg: Config, names: list[str]) -> None:
    """ECGs of the first test records with different reports, beside the reference and what each fusion wrote."""
    for name in ("meit", "real-ptb-xl"):
        if name not in names:
            continue
        run = run_folders(cfg, name, cfg.reproduce.seeds[0])[0]
        data = parse(["--config", str(run / "config.yaml")]).data
        store = prepare(data).store
        row_of = {r: i for i, r in enumerate(store.records.record_id)}
        main = read_predictions(cfg, name, cfg.reproduce.seeds[0])
        others = {"llava": "LLaVA-style", "flamingo": "Flamingo-style"}
        others = {n: label for n, label in others.items() if name == "meit" and n in names}
        tables = {"MEIT": main[main.input == "ecg"]}
        for other, label in others.items():
            table = read_predictions(cfg, other, cfg.reproduce.seeds[0])
            tables[label] = table[table.input == "ecg"]
        tables["MEIT, another patient's ECG"] = main[main.input == "shuffle"]
        shown = tables["MEIT"].drop_duplicates("reference").head(N_CASES)
        for i, item in enumerate(shown.itertuples()):
            texts = {label: t.set_index("id").prediction[item.id] for label, t in tables.items()}
            figures.draw_case(
                folder(cfg) / f"case-{name}-{i + 1}.png",
                store.signal_mv(row_of[item.id]),
                float(store.records.fs_hz.iloc[row_of[item.id]]),
                item.reference,
                texts,
                title=f"{name}, test record {item.id}",
            )


# --- score ---


def claim_pairs(claim: dict) -> list[tuple[str, str]]:
    """What a claim compares: (experiment, comparator), or one pair per step `better > worse` of an ordering."""
    if claim["kind"] == "ordering":
        return [tuple(step.split(" > ")) for step in claim["comparator"]]
    return [(claim["experiment"], claim["comparator"])]


def measure(claim: dict, scored: dict[str, Scored]) -> Measured | str:
    """The differences a claim asks for, or why they are not there."""
    pairs = claim_pairs(claim)
    absent = sorted({side for pair in pairs for side in pair if entry_name(side) not in scored})
    if absent:
        return f"needs {', '.join(absent)}: `make reproduce-meit CLAIM={claim['id']}` or `ALL=1`"
    if claim["metric"].startswith("judge") and claim["metric"] not in scored[entry_name(pairs[0][0])].scores:
        return "needs a judge: set eval.judge_url and eval.judge_model and evaluate again"
    ours = pairs[0][0]
    data = describe(scored[entry_name(ours)])
    return Measured(tuple(compare(scored, claim["metric"], a, b) for a, b in pairs), data)


def score(cfg: Config, claims: list[dict]) -> dict:
    """Everything that can be computed from the results folder; writes the scorecard and REPRODUCTION.md."""
    out = folder(cfg)
    if not (out / "runs.json").exists():
        raise SystemExit(f"{out}: no results; run `make reproduce-meit TIER={cfg.tier}` first")
    facts = json.loads((out / "runs.json").read_text())
    scored = score_all(cfg, facts)
    run = {k: facts[k] for k in ("commit", "wall_s", "peak_rss_mb", "seeds", "environment")}
    due = {c["id"]: measure(c, scored) for c in claims if cfg.tier in c["tiers"]}
    parts = {"controls": controls(scored), "tables": tables(cfg, scored, facts)}
    card = scorecard.build("meit", cfg.tier, claims, due, run=run, **parts)
    card = scorecard.build("meit", cfg.tier, claims, due, run=run, **parts, figures=draw(cfg, card, scored, facts))
    scorecard.write(card, out / "scorecard.json")
    page = write_reproduction(cfg, claims)
    print_table(card)
    print(f"wrote {out / 'scorecard.json'} and {page}")
    return card


def write_reproduction(cfg: Config, claims: list[dict]) -> Path:
    """REPRODUCTION.md from all committed scorecards; beside the results where they are not the committed ones."""
    committed = Path(cfg.results).resolve() == (HERE.parent / "results").resolve()
    file = HERE / "REPRODUCTION.md" if committed else folder(cfg).parent / "REPRODUCTION.md"
    shown = [t for t in TIERS if t != "smoke" or not committed]  # smoke proves the plumbing, it is no evidence
    cards = {t: Path(cfg.results) / "meit" / t / "scorecard.json" for t in shown}
    file.write_text(render("meit", claims, {t: scorecard.read(p) for t, p in cards.items() if p.exists()}))
    return file
