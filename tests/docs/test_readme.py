"""What the README says in numbers is what is committed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from argus.tables import HEADLINE
from docs.build import PAPERS
from docs.summary import main as summary
from shared.metrics.benchmark import Row
from shared.metrics.report_html import VERDICTS
from shared.runs.card import TIERS
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
    shown = [c for c in card["controls"] if c["metric"] == HEADLINE]
    assert len(table) == len(shown)
    for c in shown:
        low, high = c["difference_ci"]
        row = f"| {c['value']:.3f} | {c['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        assert any(row in line for line in table), f"argus/README.md: {c['id']} should say {row}"


# Of results/ct_findings_validation.csv.
ELSEWHERE = {"argus": {"0.952", "0.860", "0.861", "0.783", "0.789"}}
RESULTS_OF_A_README = re.compile(r"^\*\*\d+\. What came of it\*\*.*?(?=^## )", re.M | re.S)
THREE, TWO = (re.compile(rf"(?<![\d.]){digits}(?!\d)") for digits in (r"\d\.\d{3}", r"0\.\d\d"))
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
INTERVAL = re.compile(rf"(?:{_NUMBER} )?\[{_NUMBER}, {_NUMBER}\]")  # with its value before it


def plain(text: str) -> str:
    """Without code, line breaks, and signs of what is positive."""
    return " ".join(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S).replace("+", "").replace("−", "-").split())


def wrong_numbers(text: str, results: str, page: str) -> set[str]:
    """Numbers of a README that stand in no table of its page.

    text: all of it; every number of three decimals is the value, not a bound, of some cell, and every interval stands
    in one cell with its value. results: the part of it where a number of two decimals is a result, which a value of
    three decimals rounds to; elsewhere it is a setting.
    """
    cells = [plain(cell) for line in page.splitlines() if line.startswith("|") for cell in line.split("|")]
    known = {number for cell in cells for number in THREE.findall(INTERVAL.sub(lambda m: m[0].split("[")[0], cell))}
    intervals = {found for cell in cells for found in INTERVAL.findall(cell)}
    intervals |= {found[found.index("[") :] for found in intervals}
    wrong = set(INTERVAL.findall(plain(text))) - intervals
    wrong |= set(THREE.findall(INTERVAL.sub("", plain(text)))) - known
    thousandths = {int(number.replace(".", "")) for number in known}
    for number in TWO.findall(INTERVAL.sub("", plain(results))):
        if not any(abs(10 * int(number.replace(".", "")) - value) <= 5 for value in thousandths):
            wrong.add(number)
    return wrong


@pytest.mark.parametrize("paper", PAPERS)
def test_numbers_of_a_walkthrough_are_those_of_the_results(paper):
    text = (ROOT / paper / "README.md").read_text()
    found = RESULTS_OF_A_README.search(text)
    assert found, f"{paper}/README.md: what came of it?"
    results = found[0]
    assert THREE.search(plain(results)) or TWO.search(plain(results)), f"{paper}/README.md: no result"
    stale = wrong_numbers(text, results, (ROOT / paper / "REPRODUCTION.md").read_text()) - ELSEWHERE.get(paper, set())
    assert not stale, f"{paper}/README.md: in no table of REPRODUCTION.md: {', '.join(sorted(stale))}"


def test_a_wrong_number_would_be_seen():
    page = "| ours | 0.812 [0.790, 0.834] |\n| less theirs | **holds**<br>+0.031 [-0.010, +0.072] |\nIn words: 0.555."
    right = "It is 0.81 (0.812), 0.031 [-0.010,\n0.072] and so 0.03 more; `0.444`."
    assert not wrong_numbers(right, right, page)
    changed = (
        "0.813",
        "0.80",
        "0.555",
        "0.834",
        "0.812 [0.790, 0.835]",
        "0.031 [0.790, 0.834]",
        "-0.031 [-0.010, 0.072]",
    )
    for text in changed:
        assert wrong_numbers(text, text, page) == {text}
    assert not wrong_numbers("A rate of 0.44.", "", page)


# --- what all READMEs have ---

HEADINGS = (
    "Walk through",
    "Your own GPUs and the official data",
    "Protocols",
    "Sources",
    "Deviations",
    "Troubleshooting",
)


@pytest.mark.parametrize("paper", PAPERS)
def test_headings_are_the_same_in_all_packages(paper):
    text = re.sub(r"```.*?```", "", (ROOT / paper / "README.md").read_text(), flags=re.S)
    found = re.findall(r"^## (.+)$", text, re.M)
    assert [h for h in found if h in HEADINGS] == list(HEADINGS), f"{paper}/README.md has {found}"
    steps = re.findall(r"^\*\*(\d+)\. (.+?)\*\*", text, re.M)
    assert [int(n) for n, _ in steps] == list(range(len(steps))), f"{paper}/README.md has the steps {steps}"
    assert steps[0][1] == "All of it.", f"{paper}/README.md begins with {steps[0][1]}"
    header = re.search(r"^\|.*", text.split("## Deviations")[1], re.M)[0]
    assert header == "| value | here | known |", f"{paper}/README.md has {header} under Deviations"


# --- minutes ---


def headline_minutes(paper: str) -> list[float]:
    """What a README says that the headline takes, in the sentences that speak of it."""
    text = re.sub(r"```.*?```", "\n\n", (ROOT / paper / "README.md").read_text(), flags=re.S)
    sentences = re.split(r"\.\s|\n\n", text)
    about = [" ".join(s.split()) for s in sentences if "headline" in s or f"`make reproduce-{paper}`" in s]
    return [float(n) for s in about for n in re.findall(r"(\d+(?:\.\d+)?) minutes", s)]


@pytest.mark.parametrize("paper", PAPERS)
def test_minutes_of_the_headline_are_those_that_were_measured(paper):
    said, measured = headline_minutes(paper), []
    for name in ("scorecard.json", "runs.json"):
        file = ROOT / f"results/{paper}/laptop/{name}"
        seconds = json.loads(file.read_text()).get("headline_s") if file.exists() else None
        measured += [] if seconds is None else [seconds / 60]
    assert said, f"{paper}/README.md does not say how many minutes the headline takes"
    for minutes in measured or said[:1]:
        assert all(abs(n / minutes - 1) <= 0.15 for n in said), f"{paper}/README.md: {said}, measured {minutes:.1f}"


def test_minutes_of_the_index_are_those_of_the_packages():
    said = {paper: headline_minutes(paper)[0] for paper in PAPERS}
    first = float(re.search(r"^make reproduce-meit +# (\d+) minutes", README, re.M)[1])
    assert first == said["meit"]
    row = next(line for line in README.splitlines() if line.startswith("| `laptop` |"))
    low, high, total = map(
        float, re.search(r"(\d+) to (\d+) minutes a paper, about (\d+) minutes in all", row).groups()
    )
    assert (low, high) == (int(min(said.values())), int(max(said.values())))
    totals = [total, float(re.search(r"`make reproduce` for all five\s+in turn, in about (\d+) minutes", README)[1])]
    assert all(abs(n / sum(said.values()) - 1) <= 0.15 for n in totals), f"README.md: {totals}, {said}"


def test_the_smoke_tier_takes_as_long_everywhere():
    texts = {"README.md": next(line for line in README.splitlines() if line.startswith("| `smoke` |"))}
    texts |= {f"{p}/README.md": (ROOT / p / "README.md").read_text() for p in PAPERS}
    texts |= {f"{p}/configs/smoke.yaml": (ROOT / p / "configs/smoke.yaml").read_text() for p in PAPERS}
    texts["shared/runs/card.py"] = TIERS["smoke"]
    assert [name for name, text in texts.items() if "one to two minutes" not in " ".join(text.split())] == []
