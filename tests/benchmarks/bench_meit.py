"""Training steps and generation of MEIT at the laptop tier's sizes: the ECG in every layer against the same LLM without
it, batches against one record at a time, and a step against the reading of its batch.
"""

import os
import tempfile
import time
from unittest import mock

import torch

from meit.config import parse
from meit.data import Collator, ReportDataset
from meit.evaluate import generate
from meit.prep import prepare
from meit.train import build
from shared.metrics.benchmark import Row
from tests.benchmarks.steps import against_reading, step_s

N_ROUNDS = 5
N_REPORTS = 32
LLM = '--model.llm={"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1}'  # as `lm-mimic-llama` of laptop.yaml


def run() -> list[Row]:
    """All rows; takes about a minute on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CACHE_ROOT=folder):
            return _rows()
    finally:
        torch.set_num_threads(threads)


def _rows() -> list[Row]:
    models, batches = {}, {}
    for fusion in ("meit", "none"):
        options = ["--data.simulate.n_records=400", LLM, f"--model.fusion={fusion}"]
        cfg = parse(["--config=meit/configs/laptop.yaml", *options])
        prepared = prepare(cfg)
        torch.manual_seed(0)
        models[fusion], tokenizer = build(cfg, prepared.records("train").report.str.lower().tolist())
        train_set = ReportDataset(prepared, "train", cfg.data, tokenizer)
        collate = Collator(prepared.store, cfg.data.normalise, tokenizer.pad_token_id, with_ecg=fusion != "none")
        items = [train_set[i] for i in range(cfg.train.micro_batch)]
        batches[fusion] = collate(items)
        if fusion == "meit":
            loading = against_reading("meit", models[fusion].train(), collate, items, cfg.train.bf16)
            dataset, main = train_set, cfg
    seconds = dict.fromkeys(models, float("inf"))
    for _ in range(N_ROUNDS):
        for fusion, model in models.items():
            seconds[fusion] = min(seconds[fusion], step_s(model.train(), batches[fusion], "cpu", cfg.train.bf16))
    ours, plain = (cfg.train.micro_batch / seconds[fusion] for fusion in models)
    name = f"meit: steps of {cfg.train.micro_batch}, ECG in all keys and values, 1 core"
    cost = Row(name, ours, "records/s", f"{plain:,.0f}/s the same LLM without ECG", ours / plain)

    model, texts, rates = models["meit"].eval(), {}, {}
    for batch in (N_REPORTS, 1):
        main.eval.batch = batch
        start = time.perf_counter()
        texts[batch] = generate(model, tokenizer, dataset, main, "ecg", list(range(N_REPORTS)))
        rates[batch] = N_REPORTS / (time.perf_counter() - start)
    same = sum(a == b for a, b in zip(*texts.values(), strict=True)) / N_REPORTS
    reference = f"{rates[1]:,.1f}/s one at a time; {same:.0%} the same"
    name = f"meit: reports in batches of {N_REPORTS}, 1 core"
    return [cost, Row(name, rates[N_REPORTS], "reports/s", reference, rates[N_REPORTS] / rates[1]), loading]
