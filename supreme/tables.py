"""What REPRODUCTION.md shows beside the claims: controls, tables, figures. All from scored predictions."""

import json

import numpy as np
import pandas as pd

from shared.ecg.plot import draw_attention
from shared.metrics.figures import draw_losses
from shared.metrics.scorecard import dumps
from shared.runs.config import data_root
from shared.runs.evidence import Control, Scored, describe, folder, read_predictions, run_folders
from shared.runs.tables import level_table, levels, loss_logs, run_table
from shared.runs.tasks import AUROC_NOTE, protocol_table, richest_record
from supreme.agreement import agreement, real_agreement
from supreme.config import Config, parse
from supreme.evaluate import setup
from supreme.predict import attend
from supreme.prep import extracted, text_encoder, training_records
from supreme.scoring import ESSL, chosen_essl

METHODS = {  # label -> experiment
    "SuPreME": "supreme",
    "SuPreME, untrained": "random-init",
    "SimCLR": "simclr",
    "BYOL": "byol",
    "Barlow Twins": "barlow-twins",
    "MoCo-v3": "moco-v3",
    "SimSiam": "simsiam",
    "TS-TCC": "ts-tcc",
    "CLOCS": "clocs",
    "ASTCL": "astcl",
    "CRT": "crt",
    "ST-MEM": "st-mem",
    "MERL's losses": "merl",
    "supervised, all labels": "supervised",
    "supervised, 10 % of the labels": "supervised-10",
    "supervised, 1 % of the labels": "supervised-1",
}
ABLATIONS = {
    "SuPreME": "supreme",
    "linear head, nearest training term answers": "linear-head",
    "ResNet18 in place of the lead-wise ViT": "resnet",
    "no lead embedding": "no-lead-embedding",
    "learned queries": "learned-queries",
    "random queries": "random-queries",
    "text queries in another order": "permuted-queries",
    "raw statements as labels": "raw-statements",
    "uncertain labels positive": "uncertain-positive",
    "uncertain labels negative": "uncertain-negative",
    "labels as published": "labels-as-published",
    "true labels": "true-labels",
    "labels of other records": "permuted-labels",
    "10 % of the patients": "share-10",
    "30 % of the patients": "share-30",
    "five conditions held out": "held-out",
    "untrained": "random-init",
}
TEXTS = {"short": "supreme", "as in the authors' figure": "texts-figure", "long": "texts-long", "codes": "texts-code"}
PROTOCOLS = {"labels corrected": "supreme", "labels as published": "as-published"}
KINDS = {
    "auroc": "all",
    "auroc_seen": "seen",
    "auroc_related": "related",
    "auroc_unseen": "unseen",
    "auroc_held_out": "held out",
}
RATIOS = ("0.01", "0.1", "1")


def controls(scored: dict[str, Scored]) -> list[Control]:
    """AUROC of what should fail."""
    notes = {
        "supreme@ecg~zeroed": "all samples 0",
        "supreme@ecg~shuffled": "another record's ECG",
        "supreme@ecg~permuted": "every lead in another lead's place at test time",
        "supreme@ecg~texts": "every class asked by another class's text",
        "supreme@ecg~prior": "a class's share of the training labels as score of every record",
        "random-init@ecg": "SuPreME before training",
        "permuted-labels@ecg": "trained on the labels of other records",
    }
    found = [(key, "supreme@ecg", note) for key, note in notes.items()]
    found.append(("real-supreme@ecg~shuffled", "real-supreme@ecg", None))
    return [(key.replace("@ecg", "").replace("~", "-"), "auroc", key, ours, note) for key, ours, note in found]


def method_table(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict:
    """Zero-shot, and linear probes by share of the labels."""
    rows = {}
    for label, name in METHODS.items():
        keys = {"ecg": f"{name}@ecg"} | {r: f"{name}@probe:ecg {r}" for r in RATIOS}
        keys |= {r: f"probe-{name}@probe:ecg {r}" for r in RATIOS if keys[r] not in scored}
        keys |= {r: f"all-labels-{name}@probe:ecg {r}" for r in RATIOS if keys[r] not in scored}
        rows[label] = levels(scored, {c: (k, "auroc") for c, k in keys.items()})
    columns = {"ecg": "zero-shot, or own head"} | {r: f"probe, {100 * float(r):g} % of the labels" for r in RATIOS}
    chosen = {r: chosen_essl(scored, r) for r in RATIOS}
    names = {name: label for label, name in METHODS.items()}
    n_run = sum(f"{name}@probe:ecg 0.1" in scored for name in ESSL)
    said = "; ".join(f"{100 * float(r):g} %: {names[c]}" for r, c in chosen.items() if c)
    note = f"{AUROC_NOTE} Best self-supervised method on validation, of {n_run} that were run: {said or 'none'}. "
    note += "A class that a probe cannot learn from its few labels counts as chance. " + learnt(cfg, facts)
    return level_table("methods", "Zero-shot against linear probes", columns, rows, note)


def learnt(cfg: Config, facts: dict) -> str:
    """How many class slots the probes of the first seed could learn, per share of the labels."""
    seed = cfg.reproduce.seeds[0]
    name = next((n for n in METHODS.values() if n in ESSL and f"{n}/seed{seed}" in facts["runs"]), None)
    if name is None:
        return ""
    table, counts = read_predictions(cfg, name, seed), []
    for kind, rows in table[~table.input.str.contains("~")].groupby("input", sort=False):
        known = [~np.isnan(np.stack(part.prediction).astype(float)).all(0) for _, part in rows.groupby("dataset")]
        counts.append(f"{sum(map(np.sum, known))} of {sum(map(len, known))} class slots by {kind}")
    return f"Learnt: {', '.join(counts)}."


def task_table(scored: dict[str, Scored]) -> dict:
    rows, columns = {}, {}
    for label, name in METHODS.items():
        key = f"{name}@ecg"
        if key in scored:
            metrics = [m for m in scored[key].scores if m == "auroc" or ":" in m]
            rows[label] = levels(scored, {m: (key, m) for m in (*metrics, "auroc_min10")})
            columns |= {m: m.removeprefix("auroc:").replace("auroc", "mean") for m in metrics}
    columns["auroc_min10"] = "mean, classes with >= 10 positives"
    return level_table("tasks", "Zero-shot per task", columns, rows, AUROC_NOTE)


def kind_table(scored: dict[str, Scored]) -> dict:
    rows = {}
    for label, key in {
        "SuPreME": "supreme@ecg",
        "five conditions held out": "held-out@ecg",
        "the same, another record's ECG": "held-out@ecg~shuffled",
        "the same, another class's text": "held-out@ecg~texts",
        "SuPreME, untrained": "random-init@ecg",
        "MERL's losses": "merl@ecg",
    }.items():
        rows[label] = levels(scored, {m: (key, m) for m in KINDS})
    note = f"{AUROC_NOTE} Seen: the class's text is that of a training term of the run; related: of a parent, child or "
    note += (
        "sibling of one; held out: taken out of the labels; unseen: none of these, by name (its ECG may well be that "
    )
    note += (
        "of a training term: abnormal Q waves, infarction). Rows of other label sets have other classes in a column."
    )
    return level_table("kinds", "Zero-shot on seen, related and unseen conditions", KINDS, rows, note)


def simple_table(scored: dict[str, Scored], table_id: str, title: str, names: dict[str, str]) -> dict:
    present = {label: f"{n}@ecg" for label, n in names.items() if f"{n}@ecg" in scored}
    rows = {label: levels(scored, {m: (key, m) for m in KINDS}) for label, key in present.items()}
    return level_table(table_id, title, KINDS, rows if len(rows) > 2 else {}, AUROC_NOTE)


def real_table(scored: dict[str, Scored]) -> dict:
    """The real records: zero-shot, and probes out of fold."""
    rows, data = {}, {}
    for label, name in METHODS.items():
        short = "random" if name == "random-init" else name
        keys = {"zero": f"real-{short}@ecg", "oof": f"real-probe-{name}@oof:ecg"}
        rows[label] = levels(scored, {c: (k, "auroc") for c, k in keys.items()})
        data |= {c: describe(scored[k]) for c, k in keys.items() if k in scored}
    columns = {"zero": "zero-shot, four tasks", "oof": "probe, superclass"}
    note = (
        f"{AUROC_NOTE} Zero-shot: {data.get('zero', 'not run')}; nothing is tuned on real records. Probe: "
        f"{data.get('oof', 'not run')}. Encoders pre-trained on simulated records."
    )
    return level_table("real", "Real ECGs of PTB-XL", columns, rows, note)


def extraction_tables(cfg: Config) -> list[dict]:
    """Counts of the extraction and the quality of its labels, as `write_extraction` left them."""
    file = folder(cfg) / "extraction.json"
    if not file.exists():
        return []
    kept = json.loads(file.read_text())
    counts = {"id": "extraction", "title": "Extraction, stage by stage", "columns": ["what", "number"]}
    note = "Precision and recall of definite mentions, then of definite or hedged ones, all findings pooled. SCP codes "
    note += "are not what the reports say; reports read by hand are. Per finding: supreme.extract --agreement."
    quality = {"id": "quality", "title": "Quality of the extracted labels", "note": note}
    quality["columns"] = ["against", "mentions", "precision", "recall", "precision, hedged too", "recall, hedged too"]
    rows = [[name, *values] for part in ("simulated", "real") for name, values in kept.get(part, {}).items()]
    return [counts | {"rows": list(map(list, kept["counts"].items()))}, quality | {"rows": rows}]


def tables(cfg: Config, scored: dict[str, Scored], facts: dict) -> list[dict]:
    found = [method_table(cfg, scored, facts), task_table(scored), kind_table(scored)]
    found.append(simple_table(scored, "texts", "Zero-shot by the wording of the classes", TEXTS))
    found.append(simple_table(scored, "ablations", "Ablations and labels, zero-shot", ABLATIONS))
    found += [real_table(scored), *extraction_tables(cfg), protocol_table(cfg, facts, PROTOCOLS)]
    found.append(run_table(facts, terms="n_terms", records="n_train"))
    return [table for table in found if table["rows"]]


def draw(cfg: Config, scored: dict[str, Scored], facts: dict) -> dict[str, str]:
    """Figures from scores alone; returns file -> caption, those of `pictures` included."""
    if logs := loss_logs(cfg, facts, METHODS):
        logs = {label: [relative(log) for log in seeds] for label, seeds in logs.items()}
        draw_losses(folder(cfg) / "loss.png", logs, "Training loss, relative to its first value")
    return {
        "loss.png": "Training loss of every method, relative to its first logged value (objectives share no unit).",
        "attention.png": "Where conditions look: attention of the Cardiac Fusion Network, test record.",
    }


def relative(log: list) -> list[tuple[float, float]]:
    """Losses on one scale: the first value is 1; what lies below 0 there (cosine losses) is shifted by 1 beforehand."""
    shift = 1.0 if min(v for _, v in log) < 0 else 0.0
    first = log[0][1] + shift
    return [(step, (value + shift) / (first or 1.0)) for step, value in log]


# --- what needs signals or the caches of the runs ---


def draw_attention_cases(cfg: Config, experiments: list[str]) -> None:
    """Attention of true classes on a test record with several findings."""
    if "supreme" not in experiments:
        return
    run = run_folders(cfg, "supreme", cfg.reproduce.seeds[0])[0]
    run_cfg = parse(["--config", str(run / "config.yaml")])
    evaluation, _ = setup(run_cfg, run / "checkpoint")
    dataset, record, signal_mv, slots = richest_record(run, evaluation)
    names = evaluation.downstream[dataset].class_names()
    chosen = list({names[i]: i for i in slots}.values())[:4]
    queries = evaluation.queries[dataset][chosen]
    found, segment_s = attend(evaluation.model, signal_mv, queries, [names[i] for i in chosen], run_cfg.data.fs_hz)
    file, title, fs_hz = folder(cfg) / "attention.png", f"test record {record}", run_cfg.data.fs_hz
    draw_attention(file, signal_mv, fs_hz, found, segment_s, title=title, record=f"{dataset}/{record}")


def write_extraction(cfg: Config, experiments: list[str]) -> None:
    """Counts of this tier's extraction, and its agreement with the truth (simulated) and with real PTB-XL reports, the
    latter where an experiment on real records was asked for. Kept in extraction.json, beside what was there."""
    file = folder(cfg) / "extraction.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    tree, table = training_records(cfg)
    kept["counts"] = {k: v for k, v in extracted(cfg, tree, table).counts.items() if isinstance(v, int | float)}
    if tree.source == "simulated":
        kept["simulated"] = {"drawn findings": pooled(agreement(tree.root, encode=text_encoder(cfg), cfg=cfg.extract))}
    if any(name.startswith("real-") for name in experiments):
        found = real_agreement(data_root(), text_encoder(cfg), cfg.extract)
        kept["real"] = {f"PTB-XL, {name}": pooled(part) for name, part in found.groupby("against", sort=False)}
    file.write_text(dumps(kept))


def pooled(table: pd.DataFrame) -> list:
    """n, precision and recall, the same with hedged mentions, of the row that pools the findings."""
    micro = table[table.finding == "micro"].iloc[0]
    return [int(micro.n), *(float(micro[k]) for k in ("precision", "recall", "precision_hedged", "recall_hedged"))]
