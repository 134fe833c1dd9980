"""The last line of `make reproduce`: one table over the papers, from the scorecards just written.

python -m docs.summary [--tier laptop] [--results results]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from docs.build import PAPERS, ROOT
from shared.metrics import scorecard
from shared.metrics.report_html import VERDICTS


def summary(results: Path, tier: str) -> Table:
    """A row per paper: verdicts counted, minutes of the headline from nothing (by the clock) and of all runs there are,
    peak memory, commit; dashes where there is none."""
    table = Table(Column("paper", no_wrap=True), *VERDICTS, "minutes", "all runs", "GB", "commit", title=f"tier {tier}")
    for paper in PAPERS:
        file = results / paper / tier / "scorecard.json"
        if not file.exists():
            table.add_row(paper, *["–"] * (len(VERDICTS) + 4))
            continue
        card = scorecard.read(file)
        verdicts = [claim["verdict"] for claim in card["claims"]]
        headline = f"{card['headline_s'] / 60:.0f}" if "headline_s" in card else "–"
        measured = [headline, f"{card['wall_s'] / 60:.0f}", f"{card['peak_rss_mb'] / 1024:.1f}", card["commit"][:7]]
        table.add_row(paper, *[str(verdicts.count(v)) for v in VERDICTS], *measured)
    return table


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--tier", choices=scorecard.TIERS, default="laptop")
    options = parser.parse_args(args)
    Console().print(summary(options.results, options.tier))


if __name__ == "__main__":
    main()
