"""What the plans of papers that read ECGs share: sizes of the releases, hours over their signals, a language model over
their reports, disk. cfg: of a paper's plan."""

from collections.abc import Mapping
from typing import Any

from shared.runs.plan import gpu_hours, say

N_MIMIC = 800_035  # records of MIMIC-IV-ECG
N_REPORTS = 771_693  # its reports of at least 4 words, as MERL counts them
N_DOWNSTREAM = 21_799 + 6_877 + 23_026  # records of PTB-XL, CPSC2018 and CSN in the six tasks
D_TEXT = 768  # MedCPT


def record_bytes(n_samples: int) -> int:
    """A record in the packed store: 12 leads, 16 bit a sample."""
    return 12 * n_samples * 2


def training_hours(n_records: float, flop_per_record: float, cfg: Any, gpu: str) -> tuple[float, float]:
    """(computing, reading the packed signals) of so many records in training; the longer one is what it takes."""
    computing = gpu_hours(n_records * flop_per_record, cfg.peak_tflops[gpu], cfg.utilisation, cfg.gpus)
    return computing, n_records * record_bytes(cfg.n_samples) / (cfg.read_gb_s * 1e9) / 3600


def llm_costs(cfg: Any, asked: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Calls, tokens in 1e6 and GPU hours of the extracting language model; asked: unit -> (calls, tokens)."""
    found, fastest = {}, max(cfg.peak_tflops.values())
    for by, (calls, tokens) in asked.items():
        hours = gpu_hours(tokens * 2 * cfg.llm_billions * 1e9, fastest, cfg.llm_utilisation)
        found |= {f"calls_by_{by}": calls, f"mtokens_by_{by}": tokens / 1e6, f"gpu_hours_by_{by}": hours}
    return found


def say_extraction(cfg: Any, costs: dict[str, float]) -> None:
    """costs: of `llm_costs`, by unique statement and (for comparison) by report."""
    by = "{:,} calls, {:,.1f}M tokens, {:,.1f} GPU hours".format
    said = {u: by(*(costs[f"{k}_by_{u}"] for k in ("calls", "mtokens", "gpu_hours"))) for u in ("statement", "report")}
    say(
        f"Extraction, {cfg.llm_billions:g}B model, {2 * cfg.llm_billions:,.0f} GB in bf16: {cfg.unique_statements:,} "
        f"unique statements = {said['statement']}; by report it would be {said['report']}"
    )


def disk_gb(n_samples: int) -> dict[str, float]:
    """GB (1e9 bytes) by what is stored."""
    record = record_bytes(n_samples) / 1e9
    return {
        "MIMIC-IV-ECG, WFDB at 16 bit": N_MIMIC * record,
        "packed pre-training signals": N_REPORTS * record,
        "packed downstream signals": N_DOWNSTREAM * record,
        "text vectors, at most": N_REPORTS * D_TEXT * 4 / 1e9,
    }
