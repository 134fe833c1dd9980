"""`make bench [ARGS=--write]`: all benchmarks in one table; --write also saves results/bench.json and renews README.

Where there is a GPU, the rows it changes alone, and --write saves results/bench-gpu.json.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from shared.metrics.benchmark import COLUMNS, Row
from shared.metrics.report import markdown_table
from tests.benchmarks import bench_ct, bench_kmerl, bench_meit, bench_store, bench_supreme, bench_synth

BENCHMARKS = (bench_store.run, bench_meit.run, bench_kmerl.run, bench_supreme.run, bench_synth.run, bench_ct.run)
ROOT = Path(__file__).parents[2]
RESULTS, RESULTS_GPU, README = ROOT / "results" / "bench.json", ROOT / "results" / "bench-gpu.json", ROOT / "README.md"
BEGIN, END = "<!-- make bench ARGS=--write -->", "<!-- end of bench -->"


def main() -> int:
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="save the numbers, also in README.md")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    rows = [row for benchmark in ((bench_ct.on_gpu,) if gpu else BENCHMARKS) for row in benchmark()]
    console = Console(width=None if os.isatty(1) else 140)
    console.print(_table(rows))
    if arguments.write:
        save(rows, RESULTS_GPU if gpu else RESULTS)
        if not gpu:
            README.write_text(with_table(README.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return 0


def save(rows: list[Row], file: Path) -> None:
    """The rows, and on what machine they were measured."""
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if torch.cuda.is_available():
        machine |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(f"wrote {file}")


def with_table(readme: str, rows: list[Row]) -> str:
    """The README with this table between its two marks. ValueError: a mark is missing."""
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md: put the lines {BEGIN} and {END} where the table of benchmarks belongs")
    before, _, rest = readme.partition(BEGIN)
    table = markdown_table(COLUMNS, [row.cells() for row in rows])
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def _table(rows: list[Row]):
    from rich.table import Table

    table = Table(title=f"Benchmarks, {os.cpu_count()} cores")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("what", "unit", "against") else "right")
    for row in rows:
        table.add_row(*row.cells())
    return table


if __name__ == "__main__":
    raise SystemExit(main())
