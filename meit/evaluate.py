"""Checkpoint + test split -> predictions.parquet + metrics.json: `python -m meit.evaluate --config .. `.

Greedy decoding of newly generated tokens only, one instruction (reference: Evaluation protocols, corrected). Every kind
of input in `eval.inputs` is generated with the same weights: the true ECG and the controls (zero, shuffle, noise).
Chunks are written as they end, so a killed evaluation goes on where it stopped; under torchrun each process takes its
share of the chunks. `majority` and `nearest` are controls without a language model.
"""

import time
from pathlib import Path

import pandas as pd
import torch
from transformers.utils import logging

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
from meit.scoring import rated, score_table
from shared.runs.config import hash_of
from shared.runs.evaluation import checkpoint_of, evaluated, keep, weights_of
from shared.runs.facts import commit
from shared.runs.processes import device, worker
from shared.runs.reports import in_chunks, majority_report, shown, summary_of

WITHOUT_LLM = ("majority", "nearest")


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
        nearest = (encode(model, dataset, cfg, items) @ train_set.vectors.T).argmax(dim=1)  # by cosine: of unit length
        return [train_set.reports[i] for i in nearest.tolist()]
    if kind == "zero" or model.config.fusion == "none":  # every record gets the same report
        return generate(model, tokenizer, dataset, cfg, kind, items[:1]) * len(items)
    return generate(model, tokenizer, dataset, cfg, kind, items)


def predict(cfg: Config, prepared: Prepared, checkpoint: Path) -> tuple[pd.DataFrame, dict]:
    """(One row per test record and kind of input: id, patient, split, input, reference, prediction; attention)."""
    tokenizer = load_tokenizer(str(checkpoint))
    dataset = ReportDataset(prepared, "test", cfg.data, tokenizer, limit=cfg.data.n_test)
    model = MeitModel.from_pretrained(checkpoint).to(device()).eval()

    train_set = None
    for kind in set(cfg.eval.inputs) - {*WITHOUT_LLM}:  # an unknown one is refused before anything is generated
        model_input(dataset, cfg.data, [0], kind, cfg.seed)
    if set(WITHOUT_LLM) & set(cfg.eval.inputs):
        train_set = ReportDataset(prepared, "train", cfg.data, tokenizer, limit=cfg.data.n_train)

    def part(kind: str, items: list[int]) -> pd.DataFrame:
        rows = dataset.records.iloc[items]
        return pd.DataFrame(
            {
                "id": rows.record_id.to_numpy(),
                "patient": rows.patient_id.to_numpy(),
                "split": "test",
                "input": kind,
                "reference": [dataset.reports[i] for i in items],
                "prediction": reports_for(kind, model, tokenizer, dataset, cfg, items, train_set),
            }
        )

    table = in_chunks(cfg, len(dataset), part, evaluation_hash(cfg, prepared, checkpoint))
    return table, attention(model, tokenizer, dataset, cfg) if model.config.fusion == "meit" else {}


def attention(model: MeitModel, tokenizer, dataset: ReportDataset, cfg: Config) -> dict[str, list]:
    """Per layer, on the first batch of test records: attention mass on the ECG column, norms of its key and value."""
    collate = Collator(dataset.store, cfg.data.normalise, tokenizer.pad_token_id)
    batch = collate([dataset[i] for i in range(min(len(dataset), cfg.eval.batch))])
    return model.attention_to_ecg({k: v.to(model.device) for k, v in batch.items()})


def evaluation_hash(cfg: Config, prepared: Prepared, checkpoint: Path) -> str:
    """Identifies weights, data and decoding. Raises ValueError, see `weights_of`."""
    content = [*weights_of(cfg, checkpoint, prepared.data_hash), prepared.data_hash, cfg.data.normalise]
    content += [prompt_instruction(cfg.data.instructions), cfg.data.n_test, cfg.eval.max_new_tokens, cfg.seed]
    content += [cfg.eval.inputs]
    return hash_of(content)


def main(args: list[str] | None = None) -> Path:
    """Generate and score; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    prepared = prepare(cfg)
    checkpoint = checkpoint_of(cfg)
    e = cfg.eval
    identity = {
        "evaluation_hash": evaluation_hash(cfg, prepared, checkpoint),
        "scored_by": [*e.metrics, e.bertscore, e.bertscore_layer, e.judge_model, e.n_boot],
    }
    if evaluated(cfg, identity):
        return cfg.run_dir

    start = time.perf_counter()
    table, attended = predict(cfg, prepared, checkpoint)
    if worker()[0]:
        return cfg.run_dir
    if cfg.eval.judge_url:
        pairs = table[table.input == "ecg"][["id", "reference", "prediction"]]
        ratings = judge_reports(pairs, cfg.eval.judge_url, cfg.eval.judge_model, cfg.run_dir / "judge.jsonl")
        table = table.merge(ratings.drop(columns="error").assign(input="ecg"), how="left", on=["id", "input"])
    train_reports = prepared.records("train").report.map(clean_report)
    wanted = (cfg.eval.metrics, cfg.eval.bertscore, cfg.eval.bertscore_layer)
    scores = score_table(table.assign(fold=0), [train_reports.tolist()], *wanted) | rated(table)
    metrics = summary_of(table, scores, cfg.eval.n_boot)
    summary = identity | {"source": prepared.source, "data_hash": prepared.data_hash}
    summary |= {"commit": commit(), "metrics": metrics} | ({"attention": attended} if attended else {})
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    keep(cfg, summary, predictions=table, train_reports=train_reports.to_frame("report"))  # the latter for CIDEr-D
    print(f"evaluated: {cfg.run_dir}, {cfg.eval.inputs[0]}: {shown(metrics, cfg.eval.inputs[0])}")
    return cfg.run_dir


if __name__ == "__main__":
    main()
