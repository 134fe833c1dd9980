"""What a finished evaluation leaves in the folder of its run."""

import json
from dataclasses import dataclass, field

import pandas as pd

from shared.runs.config import RunConfig
from shared.runs.evaluation import in_parts, keep


@dataclass
class EvalConfig:
    checkpoint: str | None = None


@dataclass
class Config(RunConfig):
    PAPER = "paper"
    eval: EvalConfig = field(default_factory=EvalConfig)


def evaluate(cfg: Config, evaluation_hash: str) -> None:
    jobs = {"first": 1, "second": 2}
    table = in_parts(jobs, lambda job: pd.DataFrame({"job": [job]}), cfg.run_dir / f"parts-{evaluation_hash}", "")
    keep(cfg, {"evaluation_hash": evaluation_hash}, predictions=table)


def test_parts_of_other_evaluations_are_removed(tmp_path):
    cfg = Config(runs=str(tmp_path))
    (cfg.run_dir / "checkpoint").mkdir(parents=True)
    (cfg.run_dir / "run.json").write_text('{"data_hash": "d"}')
    evaluate(cfg, "a")
    evaluate(cfg, "b")
    (cfg.run_dir / "checkpoint").rmdir()
    (cfg.run_dir / "run.json").unlink()
    assert sorted(f.name for f in cfg.run_dir.iterdir()) == ["metrics.json", "parts-b", "predictions.parquet"]
    assert len(list((cfg.run_dir / "parts-b").iterdir())) == 2, "its own stay: other processes may still read them"
    assert json.loads((cfg.run_dir / "metrics.json").read_text()) == {"evaluation_hash": "b", "trained_on": "d"}
