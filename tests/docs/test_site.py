"""The results page, built by its real main from the committed results, read as text and in headless Chromium."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from chromium import CHROMIUM, Browser
from PIL import Image

from docs import build
from shared.metrics import scorecard
from shared.metrics.report_html import claimed, forest, scales

RESULTS = build.ROOT / "results"
CARDS = {
    (paper, tier): scorecard.read(RESULTS / paper / tier / "scorecard.json")
    for paper in build.PAPERS
    for tier in build.TIERS
    if (RESULTS / paper / tier / "scorecard.json").exists()
}
MAX_MB = 5


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build.main(["--out", str(tmp_path_factory.mktemp("site"))])


class Rows(HTMLParser):
    """Rows with an id -> (values of their <data>, text)."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, tuple[list[float], str]] = {}
        self.row = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.row = dict(attributes).get("id")
            self.found.setdefault(self.row, ([], ""))
        elif tag == "data":
            self.found[self.row][0].append(float(dict(attributes)["value"]))

    def handle_data(self, data):
        values, text = self.found.get(self.row, ([], ""))
        self.found[self.row] = values, text + data


def plain(text) -> str:
    return re.sub(r"[\s`*]+", "", str(text)).replace("->", "→")


@pytest.mark.parametrize(("paper", "tier"), CARDS)
def test_every_claim_stands_with_the_numbers_of_its_scorecard(site, paper, tier):
    rows = Rows((site / f"{paper}.html").read_text()).found
    for claim in CARDS[paper, tier]["claims"]:
        values, text = rows[f"claim-{claim['id']}-{tier}"]
        assert plain(claim["statement"]) in plain(text)
        assert plain(claim["verdict"]) in plain(text)
        theirs = claim["paper"]["value"]
        assert plain("no number" if theirs is None else theirs) in plain(text)
        if "ours" in claim:
            ours = claim["ours"]
            assert values == [ours["difference"], *ours["ci"], ours["level"], ours["comparator_level"]]
            assert plain(f"make reproduce-{paper}") in plain(text)
            assert ("in simulation" in text) == ours["data"].startswith("simulated")
        else:
            assert values == []
            assert plain(claim["reason"]) in plain(text)


@pytest.mark.parametrize(("paper", "tier"), CARDS)
def test_controls_and_tables_hold_every_number_of_the_scorecard(site, paper, tier):
    page = (site / f"{paper}.html").read_text()
    shown = set(map(float, re.findall(r'<data value="([^"]+)"', page)))
    card = CARDS[paper, tier]
    cells = [v for t in card["tables"] for row in t["rows"] for c in row for v in (c if isinstance(c, list) else [c])]
    numbers = {v for v in cells if isinstance(v, int | float)}
    numbers |= {v for c in card["controls"] for v in (c["value"], *c["ci"])}
    numbers |= {v for c in card["controls"] for v in (c.get("difference"), *c.get("difference_ci", ()))}
    numbers.discard(None)
    assert len(numbers) > 20
    assert numbers <= shown
    for control in card["controls"]:
        assert f"<code>{control['id']}</code>" in page
    for figure in card["figures"]:
        assert re.search(rf"{paper}-{tier}-{re.escape(figure['file'].removesuffix('.png'))}(-\d+)?\.webp", page)


def test_nothing_is_fetched_from_outside_and_nothing_is_missing(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        ids = set(re.findall(r' id="([^"]+)"', text))
        assert len(ids) == len(re.findall(r' id="', text)), "an id stands twice"
        for link in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert link == "data:," or not re.match(r"[a-z]+:|//", link), link
            assert link[1:] in ids if link.startswith("#") else link == "data:," or (site / unquote(link)).exists(), (
                link
            )
        assert all(re.search(r'alt="[^"]+', image) for image in re.findall("<img[^>]*>", text))
    assert not re.search(r"url\(|@import|https?:", (site / "style.css").read_text())
    assert not re.search(r"fetch\(|XMLHttpRequest|import|https?:", (site / "site.js").read_text())


def test_the_site_is_small(site):
    assert sum(f.stat().st_size for f in site.rglob("*") if f.is_file()) < MAX_MB * 2**20


def test_a_paper_without_results_says_so_and_shows_its_claims(tmp_path):
    site = build.main(["--results", str(tmp_path / "none"), "--out", str(tmp_path / "site")])
    for paper in build.PAPERS:
        page = (site / f"{paper}.html").read_text()
        assert "No results yet" in page
        assert f'data-copy="make reproduce-{paper}"' in page
        for claim in scorecard.load_claims(build.ROOT / paper / "claims.yaml"):
            assert f'id="claim-{claim["id"]}-laptop"' in page
        assert "<data" not in page


def test_the_shaded_side_of_a_plot_is_the_one_that_gives_the_verdict():
    seen = set()
    for card in CARDS.values():
        size = scales({card["tier"]: card})
        for claim in (c for c in card["claims"] if "ours" in c):
            spans, _ = claimed(claim)
            for step in claim["ours"].get("steps", [claim["ours"]]):
                low, high = step["ci_holm"]
                inside = any(a < low and high < b for a, b in spans)
                assert inside == (step.get("verdict", claim["verdict"]) == "holds")
                seen.add(inside)
                at = float(re.search(r'circle cx="([^"]+)"', forest(claim, step, size[claim["metric"]]))[1])
                assert np.sign(round(at - 118, 1)) in (0, np.sign(step["difference"]))
    assert seen == {True, False}


def test_reports_of_the_browser_are_those_of_the_predictions(site):
    page = (site / "meit.html").read_text()
    table = pd.read_parquet(RESULTS / "meit" / "laptop" / "predictions" / "meit-seed0.parquet")
    first = table[table.input == "ecg"].iloc[0]
    article = re.search(rf"<article[^>]*><h4>meit, test record {first.id}</h4>.*?</article>", page, re.S)[0]
    assert "case-meit-1" in article
    text = re.sub(r"</?mark>", "", article)
    assert f"<dd>{first.reference}</dd>" in text and f"<dt>MEIT</dt><dd>{first.prediction}</dd>" in text


@pytest.mark.parametrize(
    "paper, picture",
    [
        ("kmerl", "attention-12-leads"),
        ("supreme", "attention"),
        ("synth_medvlp", "maps-rsna"),
        ("argus", "case-ct-rate-1"),
    ],
)
def test_pictures_of_a_test_record_stand_beside_what_was_predicted_of_it(site, paper, picture):
    record = Image.open(RESULTS / paper / "laptop" / f"{picture}.png").info["Record"]
    group, name = record.split("/", 1)
    article = re.search(rf"<article[^>]*><h4>{group}, test record {name}</h4>.*?</article>",
                        (site / f"{paper}.html").read_text(), re.S)[0]  # fmt: skip
    assert f"{paper}-laptop-{picture}.webp" in article
    assert "Reference" in article and article.count("<dd>") > 2


def test_scores_of_the_browser_are_the_highest_of_their_task(site):
    table = pd.read_parquet(RESULTS / "supreme" / "laptop" / "predictions" / "supreme-seed0.parquet")
    page = (site / "supreme.html").read_text()
    article = re.search(r"<h4>cpsc2018, test record (\w+)</h4>.*?</article>", page, re.S)
    row = table[(table.dataset == "cpsc2018") & (table.id == article[1]) & (table.input == "ecg")].iloc[0]
    shown = re.search(r"<dt>SuPreME</dt><dd>(.*?)</dd>", article[0])[1]
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d+", shown.replace("−", "-"))]
    assert numbers == pytest.approx(sorted(row.prediction.astype(float), reverse=True)[: build.N_TOP], abs=6e-4)


def test_marks_only_what_stands_in_the_reference():
    assert build.marked("sinus rhythm. Old infarct. x < y", "Sinus rhythm. infarct.") == (
        "<mark>sinus rhythm</mark>. Old infarct. x &lt; y"
    )


def test_a_case_loses_its_text():
    case = np.full((50, 300), 255, np.uint8)
    case[5:45, 4:200], case[10:20, 230:290] = 100, 0
    assert not (np.asarray(build.without_text(Image.fromarray(case))) == 0).any()


# --- in a browser ---

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module", params=[1200, 390], ids=["desktop", "phone"])
def browser(request, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), width=request.param, dark=request.param == 390) as started:
        yield started


@needs_chromium
@pytest.mark.parametrize("name", ["index", *build.PAPERS])
def test_pages_load_without_errors_and_without_horizontal_scroll(site, browser, name):
    browser.logs.clear()
    browser.requests.clear()
    browser.open(site / f"{name}.html")
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.run("getComputedStyle(document.body.parentElement).backgroundColor") != "rgba(0, 0, 0, 0)"
    assert browser.logs == []
    assert browser.requests and all(url.startswith(("file:", "data:")) for url in browser.requests)


@needs_chromium
def test_arrow_keys_and_buttons_move_through_the_samples(site, browser):
    browser.open(site / "meit.html")
    shown = (
        "[...document.querySelectorAll('.sample')].filter(s => !s.hidden).map(s => s.querySelector('h4').textContent)"
    )
    titles = browser.run("[...document.querySelectorAll('.sample h4')].map(h => h.textContent)")
    assert browser.run(shown) == titles[:1]
    browser.run("document.querySelector('.browser').focus()")
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1), ("Home", 0)):
        browser.press(key)
        assert browser.run(shown) == [titles[expected]], key
    browser.press("ArrowLeft")  # stays at the first
    assert browser.run(shown) == [titles[0]]
    browser.run("document.querySelector('[data-step=\"1\"]').focus()")
    assert browser.run("document.activeElement.matches(':focus-visible')")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser.run(shown) == [titles[1]]
    assert browser.run("document.querySelector('.browser output').textContent") == f"2 of {len(titles)}"
