"""`python -m tests.benchmarks [--write]`: every benchmark in one table; --write also saves results/bench.json."""

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import bench_ct, bench_kmerl, bench_store, bench_supreme, bench_synth
from tests.benchmarks.row import Row

BENCHMARKS = (bench_store.run, bench_kmerl.run, bench_supreme.run, bench_ct.run, bench_synth.run)
RESULTS = Path(__file__).parents[2] / "results" / "bench.json"


def main() -> int:
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="save the numbers to results/bench.json")
    arguments = parser.parse_args()
    rows = [row for benchmark in BENCHMARKS for row in benchmark()]
    console = Console(width=None if os.isatty(1) else 140)
    console.print(_table(rows))
    if arguments.write:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        console.print(f"wrote {RESULTS}")
    return 0


def _table(rows: list[Row]):
    from rich.table import Table

    table = Table(title=f"Benchmarks, {os.cpu_count()} cores")
    for name, justify in (("what", "left"), ("value", "right"), ("unit", "left"), ("against", "left")):
        table.add_column(name, justify=justify)
    for name in ("ratio", "goal", "met"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        goal = "" if row.goal is None else f">= {row.goal:g}x"
        met = "" if row.goal is None or row.ratio is None else ("yes" if row.ratio >= row.goal else "NO")
        value = f"{row.value:,.2f}" if row.value < 1000 else f"{row.value:,.0f}"
        table.add_row(row.name, value, row.unit, row.reference, ratio, goal, met)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
