"""What the README says in numbers is what is committed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from docs.build import PAPERS
from docs.summary import main as summary
from shared.metrics.benchmark import Row
from shared.metrics.report_html import VERDICTS
from tests.benchmarks.__main__ import RESULTS, with_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_verdicts_of_the_laptop_tier(paper):
    card = ROOT / f"results/{paper}/laptop/scorecard.json"
    if not card.exists():
        pytest.skip(f"no scorecard of {paper} is committed yet")
    found = [c["verdict"] for c in json.loads(card.read_text())["claims"]]
    said = ", ".join(f"{found.count(v)} {v}" for v in VERDICTS if v in found)
    row = next(line for line in README.splitlines() if line.startswith(f"| [`{paper}/`]"))
    assert f"[{said}]({paper}/REPRODUCTION.md)" in row, f"README.md: the row of {paper} should say: {said}"


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("tier", ["laptop", "gpu"])
def test_sizes_of_the_tiers(paper, tier):
    sizes = yaml.safe_load((ROOT / paper / "configs" / f"{tier}.yaml").read_text())["data"]["simulate"]
    n = sizes.get("n_records") or sizes["n_patients"]
    n = sum(n.values()) if isinstance(n, dict) else n
    row = next(line for line in README.splitlines() if line.startswith(f"| `{tier}` |"))
    assert f" {n:,}" in row, f"README.md: the row of {tier} should say {n:,} for {paper}"
    committed = any((ROOT / "results").glob(f"*/{tier}/scorecard.json"))
    assert ("no result is committed yet" in row) == (not committed), f"README.md: the row of {tier}"


def test_citation_names_every_paper():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert len({r["title"] for r in references}) == len(PAPERS)
    for paper in PAPERS:
        title = re.search(r"\*([^*]+)\*", (ROOT / paper / "README.md").read_text())[1]
        found = [r for r in references if same(r["title"]) == same(title)]
        assert found, f"CITATION.cff has no '{title}'"
        assert {"type", "authors", "collection-title", "year", "url"} <= set(found[0])


def same(title: str) -> str:
    """Without case, hyphens and line breaks."""
    return "".join(c for c in title.lower() if c.isalnum())


def test_table_of_benchmarks():
    rows = [Row(**row) for row in json.loads(RESULTS.read_text())["rows"]]
    assert with_table(README, rows) == README, "renew it with `make bench ARGS=--write`"
    with pytest.raises(ValueError, match=r"README.md: put the lines"):
        with_table("no marks", rows)


def test_summary_counts_every_claim_once(tmp_path, capsys):
    card = (ROOT / "results/meit/laptop/scorecard.json").read_text()
    (tmp_path / "meit" / "laptop").mkdir(parents=True)
    (tmp_path / "meit" / "laptop" / "scorecard.json").write_text(card)
    summary([f"--results={tmp_path}"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {row[0]: row[1:] for row in rows if row and row[0] in PAPERS}
    assert list(rows) == list(PAPERS), "papers without results have a row, too"
    assert sum(map(int, rows["meit"][: len(VERDICTS)])) == len(json.loads(card)["claims"])
    assert set(rows["argus"]) == {"–"}


def test_controls_of_argus_are_those_of_the_scorecard():
    card = json.loads((ROOT / "results/argus/laptop/scorecard.json").read_text())
    table = (ROOT / "argus/README.md").read_text().split("| the recipe, ")[1].split("\n\n")[0].splitlines()[2:]
    shown = [c for c in card["controls"] if c["metric"] == "finding_f1"]
    assert len(table) == len(shown)
    for c in shown:
        low, high = c["difference_ci"]
        row = f"| {c['value']:.3f} | {c['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        assert any(row in line for line in table), f"argus/README.md: {c['id']} should say {row}"


ELSEWHERE = {"argus": {"0.952", "0.860", "0.861", "0.783", "0.789"}}  # of results/ct_findings_validation.csv


@pytest.mark.parametrize("paper", PAPERS)
def test_numbers_of_a_walkthrough_are_those_of_the_results(paper):
    """Every number of three decimals outside of code stands, without its sign, in the generated page."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / paper / "README.md").read_text(), flags=re.S)
    said = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", text))
    known = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", (ROOT / paper / "REPRODUCTION.md").read_text()))
    stale = sorted(said - known - ELSEWHERE.get(paper, set()))
    assert not stale, f"{paper}/README.md: in no table of REPRODUCTION.md: {', '.join(stale)}"
