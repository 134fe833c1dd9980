"""Checkpoint + test split -> predictions.parquet + metrics.json: `python -m meit.evaluate --config .. `.

Greedy decoding of newly generated tokens only, one instruction (reference: Evaluation protocols, corrected). Every kind
of input in `eval.inputs` is generated with the same weights: the true ECG and the controls (zero, shuffle, noise).
Chunks are written as they end, so a killed evaluation goes on where it stopped; under torchrun each process takes its
share of the chunks. `majority` and `nearest` are controls without a language model.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import pandas as pd
import torch
from rich.progress import track

from meit.baselines.text import majority_report, nearest_reports
from meit.config import Config, parse
from meit.data import (
    Collator,
    ReportDataset,
    clean_report,
    load_tokenizer,
    model_input,
    prompt_instruction,
    prompt_text,
)
from meit.judge import judge_reports
from meit.model import MeitModel
from meit.prep import Prepared, prepare
from meit.runs import quiet
from meit.scoring import score_table, select
from shared.metrics.interval import interval
from shared.metrics.scorecard import dumps
from shared.runs.checkpoint import fetched, run_file
from shared.runs.facts import commit

CHUNK = 256  # records per part file


@torch.inference_mode()
def generate(
    model: MeitModel, tokenizer, dataset: ReportDataset, cfg: Config, kind: str, items: list[int]
) -> list[str]:
    """Reports for `items` of the dataset from the given kind of input."""
    prompt = tokenizer(prompt_text(prompt_instruction(cfg.data.instructions)), add_special_tokens=False).input_ids
    reports = []
    for start in range(0, len(items), cfg.eval.batch):
        batch = items[start : start + cfg.eval.batch]
        ids = torch.tensor([prompt] * len(batch), device=model.device)
        ecg = None if model.config.fusion == "none" else model_input(dataset, cfg.data, batch, kind, cfg.seed)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.train.bf16 and torch.cuda.is_available()):
            new = model.generate(
                ids,
                torch.ones_like(ids),
                ecg=None if ecg is None else ecg.to(model.device),
                max_new_tokens=cfg.eval.max_new_tokens,
            )
        reports += [t.strip() for t in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return reports


@torch.inference_mode()
def encode(model: MeitModel, dataset: ReportDataset, cfg: Config, items: list[int]) -> torch.Tensor:
    """The encoder's vectors [len(items), d] of true ECGs."""
    batches = [items[s : s + cfg.eval.batch] for s in range(0, len(items), cfg.eval.batch)]
    vectors = [model.encode(model_input(dataset, cfg.data, b, "ecg", 0).to(model.device)) for b in batches]
    return torch.cat(vectors).flatten(1).float().cpu()


def reports_for(
    kind: str, model, tokenizer, dataset: ReportDataset, cfg: Config, items: list[int], train_set
) -> list[str]:
    """Reports for `items` by the model or by a control that needs no language model; no work twice."""
    if kind == "majority":
        return [majority_report(train_set.reports)] * len(items)
    if kind == "nearest":
        if not hasattr(train_set, "vectors"):
            train_set.vectors = encode(model, train_set, cfg, list(range(len(train_set))))
        return nearest_reports(encode(model, dataset, cfg, items), train_set.vectors, train_set.reports)
    if kind == "zero" or model.config.fusion == "none":  # every record gets the same report
        return generate(model, tokenizer, dataset, cfg, kind, items[:1]) * len(items)
    return generate(model, tokenizer, dataset, cfg, kind, items)


def predict(cfg: Config, prepared: Prepared, checkpoint: Path) -> tuple[pd.DataFrame, dict]:
    """(One row per test record and kind of input: id, patient, split, input, reference, prediction; attention)."""
    tokenizer = load_tokenizer(str(checkpoint))
    dataset = ReportDataset(prepared, "test", cfg.data, tokenizer, limit=cfg.data.n_test)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    model = MeitModel.from_pretrained(checkpoint).to(device).eval()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    train_set = None
    if {"majority", "nearest"} & set(cfg.eval.inputs):
        train_set = ReportDataset(prepared, "train", cfg.data, tokenizer, limit=cfg.data.n_train)
    parts = cfg.run_dir / f"parts-{evaluation_hash(cfg, prepared, checkpoint)}"
    parts.mkdir(parents=True, exist_ok=True)
    chunks = [(k, s) for k in cfg.eval.inputs for s in range(0, len(dataset), CHUNK)]
    files = [parts / f"{kind}-{start:07d}.parquet" for kind, start in chunks]
    mine = [(c, f) for i, (c, f) in enumerate(zip(chunks, files, strict=True)) if i % world == rank and not f.exists()]
    for (kind, start), file in track(mine, description=f"generating {cfg.experiment}", disable=not os.isatty(2)):
        items = list(range(start, min(start + CHUNK, len(dataset))))
        rows = dataset.records.iloc[items]
        table = pd.DataFrame(
            {
                "id": rows.record_id.to_numpy(),
                "patient": rows.patient_id.to_numpy(),
                "split": "test",
                "input": kind,
                "reference": [dataset.reports[i] for i in items],
                "prediction": reports_for(kind, model, tokenizer, dataset, cfg, items, train_set),
            }
        )
        table.to_parquet(file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    while not all(f.exists() for f in files):  # other processes still write theirs
        time.sleep(1)
    table = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
    return table, attention(model, tokenizer, dataset, cfg) if model.config.fusion == "meit" else {}


def attention(model: MeitModel, tokenizer, dataset: ReportDataset, cfg: Config) -> dict[str, list]:
    """Per layer, on the first batch of test records: attention mass on the ECG column, norms of its key and value."""
    collate = Collator(dataset.store, cfg.data.normalise, tokenizer.pad_token_id)
    batch = collate([dataset[i] for i in range(min(len(dataset), cfg.eval.batch))])
    return model.attention_to_ecg({k: v.to(model.device) for k, v in batch.items()})


def evaluation_hash(cfg: Config, prepared: Prepared, checkpoint: Path) -> str:
    """Identifies weights, data and decoding. Raises ValueError where the run's weights are another config's."""
    trained = json.loads(run_file(checkpoint, "run.json").read_text())
    if cfg.eval.checkpoint is None and trained["config_hash"] != cfg.digest():
        raise ValueError(f"{checkpoint} was trained with another config (see config.yaml there); train again")
    content = [trained["config_hash"], trained["data_hash"], prepared.data_hash, cfg.data.normalise]
    content += [prompt_instruction(cfg.data.instructions), cfg.data.n_test, cfg.eval.max_new_tokens, cfg.seed]
    content += [cfg.eval.inputs]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def main(args: list[str] | None = None) -> Path:
    """Generate and score; returns the run's folder. A finished evaluation is not run again."""
    quiet()
    cfg = parse(args)
    prepared = prepare(cfg.data)
    file = cfg.run_dir / "metrics.json"
    checkpoint = fetched(cfg.eval.checkpoint or cfg.run_dir / "checkpoint")
    if not run_file(checkpoint, "run.json").is_file():
        raise FileNotFoundError(f"{checkpoint}: no finished run; train it first with `python -m meit.train`")
    identity = {
        "evaluation_hash": evaluation_hash(cfg, prepared, checkpoint),
        "scored_by": [*cfg.eval.metrics, cfg.eval.bertscore, cfg.eval.judge_model, cfg.eval.n_boot],
    }
    if file.exists() and identity.items() <= json.loads(file.read_text()).items():
        return cfg.run_dir

    start = time.perf_counter()
    table, attended = predict(cfg, prepared, checkpoint)
    if int(os.environ.get("RANK", 0)):
        return cfg.run_dir
    if cfg.eval.judge_url:
        pairs = table[table.input == "ecg"][["id", "reference", "prediction"]]
        ratings = judge_reports(pairs, cfg.eval.judge_url, cfg.eval.judge_model, cfg.run_dir / "judge.jsonl")
        table = table.merge(ratings.drop(columns="error").assign(input="ecg"), how="left", on=["id", "input"])
    table.to_parquet(cfg.run_dir / "predictions.parquet", index=False)
    train_reports = prepared.records("train").report.map(clean_report)
    train_reports.to_frame("report").to_parquet(cfg.run_dir / "train_reports.parquet", index=False)  # for CIDEr-D
    metrics = {}
    wanted = (cfg.eval.metrics, cfg.eval.bertscore, cfg.eval.bertscore_layer)
    scores = score_table(table.assign(fold=0), [train_reports.tolist()], *wanted)
    for kind, rows in table.groupby("input", sort=False):
        metrics[kind] = {}
        for name, metric in scores.items():
            value, low, high = interval(select(metric, rows.index), rows.patient.to_numpy(), cfg.eval.n_boot)
            entry = {"value": value, "ci": [low, high], "n": len(rows), "version": metric.version}
            metrics[kind][name] = entry
    summary = identity | {"source": prepared.source, "data_hash": prepared.data_hash}
    summary |= {"commit": commit(), "metrics": metrics} | ({"attention": attended} if attended else {})
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    file.write_text(dumps(summary))
    first = metrics[cfg.eval.inputs[0]]
    shown = ", ".join(f"{name} {first[name]['value']:.3f}" for name in ("finding_f1", "bleu_4") if name in first)
    print(f"evaluated: {cfg.run_dir}, {cfg.eval.inputs[0]}: {shown}")
    return cfg.run_dir


if __name__ == "__main__":
    main()
