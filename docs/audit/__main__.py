"""`make audit`: what the public code and splits of the five papers do to their numbers, on data at hand.

    python -m docs.audit [FINDING ...]     demonstrations as tables; without names all of them, one to three minutes
    python -m docs.audit --write           all, saved to results/audit.json, and the tables of AUDIT.md renewed

Every finding is one function of text.py, ecg.py or images.py. Committed predictions need nothing else; label files and
real images are read from DATA_ROOT, and a finding whose files are not there says which.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from docs.audit import ecg, images, text
from docs.audit.row import ROOT, Row

FINDINGS: dict[str, Callable[[], list[Row]]] = {
    "contaminated-text": text.contaminated_text,
    "constant-df-cider": text.constant_df_cider,
    "per-batch-means": text.per_batch_means,
    "nan-to-zeros": text.nan_to_zeros,
    "substring-labels": ecg.substring_labels,
    "column-order": ecg.column_order,
    "padding-before-scaling": ecg.padding_before_scaling,
    "tiny-classes": ecg.tiny_classes,
    "test-set-tuning": ecg.tuning_on_test_sets,
    "leaking-splits": images.leaking_splits,
    "empty-masks": images.empty_masks,
    "double-rescale": images.double_rescale,
}
RESULTS, PAGE = ROOT / "results/audit.json", ROOT / "AUDIT.md"
MARKS = re.compile(r"(<!-- ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cell(value: Sequence[float | None], digits: int = 3) -> str:
    """A value, with its 95 % interval where it has one."""
    shown = [f"{v:,.{digits}f}" for v in value if v is not None]
    return shown[0] if len(shown) < 3 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def table(rows: Sequence[Mapping]) -> str:
    """Rows of results/audit.json as a Markdown table."""
    lines = ["| what | as published | corrected | difference | data |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        values = [row[side] for side in ("published", "corrected", "difference")]
        counted = all(float(v[0]).is_integer() for v in values) and any(abs(v[0]) > 1 for v in values)
        cells = (row["what"], *(cell(v, 0 if counted else 3) for v in values), row["data"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renewed(page: str, results: Mapping[str, Sequence[Mapping]]) -> str:
    """AUDIT.md with the table of each finding between its marks; KeyError for marks of a finding without results."""
    return MARKS.sub(lambda m: f"{m[1]}{table(results[m[2]])}{m[3]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.audit", description=__doc__.split("\n")[0])
    parser.add_argument("finding", nargs="*", help=f"which to run: {', '.join(FINDINGS)}")
    parser.add_argument("--write", action="store_true", help="save results/audit.json and renew AUDIT.md; runs all")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.finding) - set(FINDINGS))
    if unknown or (arguments.write and arguments.finding):
        parser.error(f"unknown finding {unknown[0]}" if unknown else "--write runs all findings: leave the names out")
    results, absent = {}, 0
    for name in arguments.finding or FINDINGS:
        print(f"## {name}", flush=True)
        try:
            results[name] = [asdict(row) for row in FINDINGS[name]()]
        except FileNotFoundError as error:
            absent += 1
            print(f"not run: {error}\n", file=sys.stderr)
            continue
        print(table(results[name]), flush=True)
    if arguments.write and absent:
        parser.exit(1, f"nothing written: {absent} findings lack their files\n")
    if arguments.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text())), "utf-8")
        print(f"wrote {RESULTS.relative_to(ROOT)} and the tables of {PAGE.name}")
    return int(bool(absent and arguments.finding))  # without names: what can be run here has run


if __name__ == "__main__":
    raise SystemExit(main())
