"""Checkpoint + test split -> predictions.parquet + metrics.json: `python -m argus.evaluate --config .. `.

Greedy decoding of newly generated tokens only, one prompt per target section (reference: Evaluation protocols,
corrected). Every kind of input in `eval.inputs` is generated with the same weights: the true volume and the controls
(zero, mean, shuffle). Chunks are written as they end, so a killed evaluation goes on where it stopped; under torchrun
each process takes its share of the chunks. `majority`, `typical`, `constant`, `every` and `nearest` are controls
without a language model. A run without inputs is a stage that only another run goes on from: nothing is predicted. Of a
ViT that was pre-trained on labels (`--model.objective supervised`) the AUROC over them is computed, and reports that
name them.
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from argus.clinical import rate
from argus.config import Config, parse
from argus.data import ReportDataset, load_tokenizer, model_input, prompt_batch
from argus.labels import label_auroc, label_reports
from argus.model import ArgusModel
from argus.prep import Prepared, prepare
from argus.pretrain import EncoderPretraining
from argus.scoring import score_table
from shared.ct.simulate_layouts import simulator_hash
from shared.metrics.ct_findings import asserted
from shared.metrics.ct_findings_validation import validated_findings
from shared.runs.config import hash_of
from shared.runs.evaluation import checkpoint_of, evaluated, keep, weights_of
from shared.runs.facts import commit
from shared.runs.processes import device, worker
from shared.runs.reports import in_chunks, majority_report, shown, summary_of

WITHOUT_LLM = ("majority", "typical", "constant", "every", "nearest")
COLUMNS = ("id", "patient", "source", "section", "split", "input", "reference", "prediction", "sizes")
NORMAL = {  # target section -> what a reader writes who never finds anything
    "findings": "The trachea and the main bronchi are open. The heart and the great vessels are of normal size. There "
    "is no pericardial or pleural effusion. No enlarged lymph nodes are seen. No nodule, mass, consolidation or "
    "ground-glass opacity is seen in the lungs. The upper abdominal organs and the bones are normal.",
    "report": "The heart and the great vessels are of normal size. No enlarged lymph nodes are seen. There is no "
    "pericardial or pleural effusion. No nodule or consolidation is seen in the lungs. The bones are normal.",
    "impression": "No pulmonary embolism. No acute abnormality in the chest.",
}


@torch.inference_mode()
def generate(model: ArgusModel, tokenizer, dataset: ReportDataset, cfg: Config, kind: str, items: list[int]) -> list:
    """Reports for `items` of the dataset from the given kind of input."""
    reports = []
    sections = dataset.records.section.to_numpy()
    for start in range(0, len(items), cfg.eval.batch):
        batch = items[start : start + cfg.eval.batch]
        prompts = {k: v.to(model.device) for k, v in prompt_batch(sections[batch].tolist(), tokenizer).items()}
        volume = None if model.encoder is None else model_input(dataset, cfg.data, batch, kind, cfg.seed)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.train.bf16 and torch.cuda.is_available()):
            new = model.generate(
                **prompts,
                volume=None if volume is None else volume.to(model.device),
                max_new_tokens=cfg.eval.max_new_tokens,
            )
        reports += [t.strip() for t in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return reports


@torch.inference_mode()
def encode(model: ArgusModel, dataset: ReportDataset, cfg: Config, items: list[int]) -> torch.Tensor:
    """The ViT's summaries of true volumes, of unit length [len(items), C]."""
    batches = [items[s : s + cfg.eval.batch] for s in range(0, len(items), cfg.eval.batch)]
    vectors = [model.encoder.summary(model_input(dataset, cfg.data, b, "volume", 0).to(model.device)) for b in batches]
    return torch.nn.functional.normalize(torch.cat(vectors).float(), dim=1).cpu()


# --- controls without a language model: what the same test scores when nothing is generated ---


def typical_report(reports: list[str]) -> str:
    """The training report whose validated findings agree best, over all mentions, with those of all others: the best
    that one of them can do for everybody by `finding_f1`; by the mean over findings that is `every`."""
    names = {name: k for k, name in enumerate(validated_findings())}
    said = np.zeros((len(reports), len(names)))
    for row, text in zip(said, reports, strict=True):
        row[[names[name] for (name,) in asserted(text) if name in names]] = 1
    f1 = 2 * said @ said.sum(0) / np.maximum(len(said) * said.sum(1) + said.sum(), 1)
    return reports[int(f1.argmax())]


def control_reports(
    kind: str, model: ArgusModel, dataset: ReportDataset, cfg: Config, items: list[int], train_set: ReportDataset
) -> list[str]:
    """Reports of one of WITHOUT_LLM for `items`, each from the training reports of its own source."""
    records, train = dataset.records.iloc[items], train_set.records.reset_index(drop=True)
    reports = np.array(train_set.reports, dtype=object)
    if kind == "constant":
        return [NORMAL[section] for section in records.section]
    if kind == "every":
        return [" ".join(f"There is {name.replace('_', ' ')}." for name in validated_findings())] * len(items)
    if kind == "nearest":
        if not hasattr(train_set, "vectors"):
            train_set.vectors = encode(model, train_set, cfg, list(range(len(train_set))))
        similarity = (encode(model, dataset, cfg, items) @ train_set.vectors.T).numpy()  # [items, train]
        similarity[records.source.to_numpy()[:, None] != train.source.to_numpy()[None]] = -np.inf
        return reports[similarity.argmax(1)].tolist()
    choose = {"majority": majority_report, "typical": typical_report}[kind]
    chosen = {source: choose(reports[train.source == source].tolist()) for source in records.source.unique()}
    return [chosen[source] for source in records.source]


def reports_for(
    kind: str, model: ArgusModel, tokenizer, dataset: ReportDataset, cfg: Config, items: list[int], train_set
) -> list[str]:
    """Reports for `items` by the model or by a control; no work twice."""
    if kind in WITHOUT_LLM:
        return control_reports(kind, model, dataset, cfg, items, train_set)
    if kind in ("zero", "mean") or model.encoder is None:  # every record of a section gets the same report
        sections = dataset.records.section.to_numpy()[items]
        first = {section: int(np.flatnonzero(sections == section)[0]) for section in dict.fromkeys(sections)}
        texts = generate(model, tokenizer, dataset, cfg, kind, [items[i] for i in first.values()])
        return [dict(zip(first, texts, strict=True))[section] for section in sections]
    return generate(model, tokenizer, dataset, cfg, kind, items)


def predict(cfg: Config, prepared: Prepared, checkpoint: Path, model: ArgusModel) -> pd.DataFrame:
    """One row per test record and kind of input, COLUMNS."""
    tokenizer = load_tokenizer(str(checkpoint))
    dataset = ReportDataset(prepared, "test", cfg.data, tokenizer, limit=cfg.data.n_test)
    train_set = None
    if set(WITHOUT_LLM) & set(cfg.eval.inputs):
        train_set = ReportDataset(prepared, "train", cfg.data, tokenizer, limit=cfg.data.n_train)
    for kind in set(cfg.eval.inputs) - {*WITHOUT_LLM}:  # an unknown one is refused before anything is generated
        model_input(dataset, cfg.data, [0], kind, cfg.seed)
    sizes = drawn_sizes(prepared)

    def part(kind: str, items: list[int]) -> pd.DataFrame:
        reports = reports_for(kind, model, tokenizer, dataset, cfg, items, train_set)
        return rows_of(dataset.records.iloc[items], reports, kind, sizes)

    return in_chunks(cfg, len(dataset), part, evaluation_hash(cfg, prepared, checkpoint))


def rows_of(records: pd.DataFrame, reports: list[str], kind: str, sizes: dict[str, str]) -> pd.DataFrame:
    """COLUMNS of what was written of these records. sizes: of `drawn_sizes`."""
    known = {c: records[c].to_numpy() for c in ("id", "patient", "source", "section")}
    known |= {"split": "test", "input": kind, "reference": records.target.to_numpy(), "prediction": reports}
    return pd.DataFrame(known | {"sizes": records.id.map(sizes).fillna("").to_numpy()}, columns=COLUMNS)


# --- what was drawn ---


def drawn_findings(prepared: Prepared) -> dict[str, list[dict]]:
    """id -> findings of truth.parquet (name, size_mm, box ..) of simulated volumes; empty for real ones."""
    truth = {source: root / "truth.parquet" for source, root in prepared.roots.items()}
    tables = {source: pd.read_parquet(file) for source, file in truth.items() if file.is_file()}
    return {f"{source}/{row.volume_id}": list(row.findings) for source, t in tables.items() for row in t.itertuples()}


def drawn_sizes(prepared: Prepared) -> dict[str, str]:
    """id -> JSON of finding -> size in mm of its largest one."""
    sizes = {}
    for record, findings in drawn_findings(prepared).items():
        largest: dict[str, float] = {}
        for finding in findings:
            largest[finding["name"]] = max(finding["size_mm"], largest.get(finding["name"], 0.0))
        sizes[record] = json.dumps(largest)
    return sizes


# --- identity ---


def evaluation_hash(cfg: Config, prepared: Prepared, checkpoint: Path) -> str:
    """Identifies weights, data and decoding. Raises ValueError, see `weights_of`."""
    seen = None if cfg.model.objective == "language" else prepared.data_hash  # that one is trained without volumes
    content = [*weights_of(cfg, checkpoint, seen), prepared.data_hash, cfg.data.slice_only]
    return hash_of([*content, cfg.data.n_test, cfg.eval.max_new_tokens, cfg.seed, cfg.eval.inputs])


def records_hash(cfg: Config, prepared: Prepared) -> str:
    """Identifies what is scored: test records and their texts, and the patients that were drawn, at whatever resolution
    they were drawn and are read. Runs with one hash are compared, so that a higher resolution can meet a lower one."""
    rows = prepared.records("test").head(cfg.data.n_test or None)
    sim = cfg.data.simulate
    world = sim and [sim.seed, {source: sim.n_patients[source] for source in cfg.data.sources}, simulator_hash()]
    texts = hashlib.sha256("\n".join([*rows.id, *rows.target]).encode()).hexdigest()
    return hash_of([texts, world])


def main(args: list[str] | None = None) -> Path:
    """Generate and score; returns the run's folder. A finished evaluation is not run again."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cfg = parse(args)
    prepared = prepare(cfg)
    checkpoint = checkpoint_of(cfg)
    e = cfg.eval
    models = {name: getattr(e, name) for name in ("green", "ratescore", "radgraph")}
    identity = {
        "evaluation_hash": evaluation_hash(cfg, prepared, checkpoint),
        "scored_by": [*e.metrics, e.bertscore, e.bertscore_layer, *models.values(), e.n_boot],
    }
    if evaluated(cfg, identity):
        return cfg.run_dir

    start = time.perf_counter()
    summary = {"source": prepared.source, "data_hash": prepared.data_hash, "records_hash": records_hash(cfg, prepared)}
    table, metrics = pd.DataFrame({c: pd.Series(dtype=str) for c in COLUMNS}), {}
    train_reports = prepared.table[prepared.table.part == "train"].target
    if cfg.model.objective == "supervised":
        if worker()[0]:  # nothing to share among processes
            return cfg.run_dir
        vit = EncoderPretraining.from_pretrained(checkpoint).to(device()).eval()
        summary["label_auroc"] = label_auroc(cfg, prepared, vit)
        print("AUROC over the labels, " + ", ".join(f"{k}: {v:.3f}" for k, v in summary["label_auroc"].items()))
        if cfg.eval.inputs:
            table = rows_of(*label_reports(cfg, prepared, vit), "volume", drawn_sizes(prepared))
    elif cfg.eval.inputs:
        model = ArgusModel.from_pretrained(checkpoint).to(device()).eval()
        summary["visual_tokens"] = 0 if model.compressor is None else model.compressor.n_tokens
        table = predict(cfg, prepared, checkpoint, model)
        if worker()[0]:
            return cfg.run_dir
        del model
    if len(table):
        table = pd.concat([table, rate(table, models)], axis=1)
        wanted = (cfg.eval.metrics, cfg.eval.bertscore, cfg.eval.bertscore_layer)
        metrics = summary_of(table, score_table(table, train_reports.tolist(), *wanted), cfg.eval.n_boot)
    summary |= identity | {"commit": commit(), "metrics": metrics}
    summary["wall_s"] = round(time.perf_counter() - start, 1)
    keep(cfg, summary, predictions=table, train_reports=train_reports.to_frame("report"))  # the latter for CIDEr-D
    print(
        ", ".join(
            [f"evaluated: {cfg.run_dir}", *(f"{k}: {shown(metrics, k)}" for k in cfg.eval.inputs[:1] if k in metrics)]
        )
    )
    return cfg.run_dir


if __name__ == "__main__":
    main()
