"""claims.yaml and scorecards: what is refused, what is canonical, and what REPRODUCTION.md says."""

import copy
import io
import json

import numpy as np
import pytest
import yaml

from shared.metrics import report, scorecard
from shared.metrics.interval import Difference
from shared.metrics.scorecard import Measured

CLAIMS = [
    {
        "id": "fusion",
        "statement": "Prefix fusion | beats LLaVA_style fusion",
        "paper": {"value": 0.014, "unit": "BLEU-4", "provenance": "[third party]"},
        "kind": "superiority",
        "metric": "finding_f1",
        "comparator": "llava",
        "protocol": "corrected",
        "experiment": "headline",
        "tiers": ["smoke", "laptop", "gpu", "paper"],
    },
    {
        "id": "noise",
        "statement": "Little is lost under noise",
        "paper": {"value": "0.020-0.035", "unit": "ROUGE-L", "provenance": "[derived]"},
        "kind": "non-inferiority",
        "metric": "rouge_l",
        "comparator": "clean",
        "margin": 0.05,
        "protocol": "as_published",
        "experiment": "noise",
        "tiers": ["laptop", "paper"],
        "not_tested": "too few records to see it",
    },
    {
        "id": "sizes",
        "statement": "Larger is better",
        "paper": {"value": None, "unit": "", "provenance": "[recalled]"},
        "kind": "ordering",
        "metric": "finding_f1",
        "comparator": ["13B over 7B", "70B over 13B"],
        "protocol": "corrected",
        "experiment": "scaling",
        "tiers": ["paper"],
        "not_tested": "a claim about billions of parameters",
    },
]
RUN = {
    "commit": "abcdef1",
    "wall_s": 754.2,
    "peak_rss_mb": 2100.0,
    "environment": {"torch": "2.13"},
    "seeds": [0, 1, 2],
}


def make(mean, n_seeds=3, v_items=1e-5) -> Difference:
    seeds = tuple(mean + 0.001 * (k - (n_seeds - 1) / 2) for k in range(n_seeds))
    s2 = float(np.var(seeds, ddof=1)) if n_seeds > 1 else float("nan")
    return Difference(mean, v_items, s2, seeds, 0.7123456789, 0.7123456789 - mean, 1200, 400)


@pytest.fixture
def claims(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(CLAIMS), encoding="utf-8")
    return scorecard.load_claims(path)


@pytest.fixture
def card(claims):
    results = {"fusion": Measured((make(0.123456789),), "simulated"), "noise": "needs ALL=1"}
    return scorecard.build(
        "meit",
        "laptop",
        claims,
        results,
        run=RUN,
        controls=[
            scorecard.control("shuffled-ecg", "finding_f1", (0.11, 0.10, 0.12), make(0.5), data="simulated"),
            scorecard.control("majority", "finding_f1", (0.05, float("nan"), float("nan"))),
        ],
        tables=[
            {
                "id": "protocols",
                "title": "as_published against corrected",
                "columns": ["system", "BLEU-4", "n"],
                "rows": [["MEIT", [0.5, 0.4, 0.6], 350], ["useless", 0.25, None]],
                "note": "The reports are German.",
            }
        ],
        figures=[{"file": "noise.png", "caption": "Loss under noise [true SNR]"}],
    )


# --- claims.yaml ---


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (2, {"paper": {"value": 0.6, "unit": "", "provenance": "[recalled]"}}, "claim sizes: .*must be null"),
        (
            0,
            {"paper": {"value": 0.6, "unit": "", "provenance": "[third party] (weak)"}},
            "claim fusion: .*must be null",
        ),
        (0, {"paper": {"value": 0.6, "unit": "", "provenance": "I think"}}, "fusion.paper.provenance: 'I think'"),
        (0, {"kind": "better"}, "fusion.kind: 'better' is not one of"),
        (0, {"margn": 0.1}, "'margn' was unexpected"),
        (0, {"margin": -0.1}, "fusion.margin"),
        (0, {"tiers": ["laptop"]}, "not_tested is missing"),
        (0, {"tiers": ["desktop"]}, "'desktop' is not one of"),
        (0, {"comparator": ["a", "b"]}, "list of steps for kind ordering"),
        (2, {"comparator": "7B"}, "list of steps for kind ordering"),
        (1, {"margin": 0.0}, "needs a margin above 0"),
        (1, {"id": "fusion"}, "'fusion' occurs twice"),
        (1, {"statement": None}, "noise.statement"),
    ],
)
def test_a_bad_claim_is_named(tmp_path, index, change, message):
    claims = copy.deepcopy(CLAIMS)
    claims[index] |= change
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(claims), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        scorecard.load_claims(path)
    assert "claims.yaml" in str(error.value)


def test_defaults_are_filled_in(claims):
    assert (claims[0]["margin"], claims[0]["direction"]) == (0.0, "higher")


# --- scorecard ---


def test_verdicts_are_computed(card):
    by_id = {c["id"]: c for c in card["claims"]}
    assert by_id["fusion"]["verdict"] == "holds"
    assert by_id["fusion"]["ours"]["difference"] == 0.123457
    assert by_id["noise"]["verdict"] == by_id["sizes"]["verdict"] == "not tested at this tier"
    assert by_id["noise"]["reason"] == "needs ALL=1"
    assert by_id["sizes"]["reason"] == "a claim about billions of parameters"
    assert card["family_size"] == 2 and by_id["fusion"]["ours"]["confidence_holm"] == 0.975


def test_one_seed_has_no_interval_and_no_verdict(claims):
    card = scorecard.build("meit", "smoke", claims, {"fusion": Measured((make(0.5, n_seeds=1),), "simulated")}, run=RUN)
    assert card["claims"][0]["verdict"] == "inconclusive"
    assert card["claims"][0]["ours"]["ci"] == [None, None]


def test_ordering_shows_its_weakest_step(claims):
    results = {
        "fusion": "no time",
        "noise": "no time",
        "sizes": Measured((make(0.5), make(-0.4)), "MIMIC-IV-ECG, 8,000 records"),
    }
    ours = scorecard.build("meit", "paper", claims, results, run=RUN)["claims"][2]
    assert ours["verdict"] == "does not hold" and ours["ours"]["difference"] == -0.4
    assert [(s["comparator"], s["verdict"]) for s in ours["ours"]["steps"]] == [
        ("13B over 7B", "holds"),
        ("70B over 13B", "does not hold"),
    ]
    text = report.render("meit", claims, {"paper": scorecard.build("meit", "paper", claims, results, run=RUN)})
    assert "**does not hold**<br>weakest step -0.400" in text and "in simulation)" not in text


def test_the_weakest_step_is_the_one_whose_p_the_ordering_has(claims):
    """Not the smallest difference: a small clear step is stronger than a larger one that could be nothing."""
    clear, vague, wrong = make(0.05), make(0.10, v_items=0.01), make(-0.05)
    vaguely_wrong = make(-0.10, v_items=0.01)
    one_seed = make(0.2, 1), make(0.1, 1)  # no p: then the smallest difference
    cases = [((clear, vague), vague, 1), ((vague, clear), vague, 1), ((vague, wrong), wrong, 2)]
    cases += [((vaguely_wrong, wrong), wrong, 2), (one_seed, one_seed[1], 1)]
    for steps, shown, n in cases:
        results = {"fusion": "no time", "noise": "no time", "sizes": Measured(steps, "simulated")}
        ours = scorecard.build("meit", "paper", claims, results, run=RUN)["claims"][2]["ours"]
        assert ours["difference"] == shown.mean
        step = next(s for s in ours["steps"] if s["difference"] == shown.mean)
        assert ours["p"] == pytest.approx(min(1.0, n * step["p"]), rel=1e-4) and ours["ci"] == step["ci"]


def test_results_and_claims_must_match(claims):
    with pytest.raises(ValueError, match=r"meit/laptop: claims \['noise'\]"):
        scorecard.build("meit", "laptop", claims, {"fusion": "no time"}, run=RUN)
    results = {"fusion": Measured((make(0.1), make(0.2)), "simulated"), "noise": "no time"}
    with pytest.raises(ValueError, match="fusion: 2 differences measured, 1 claimed"):
        scorecard.build("meit", "laptop", claims, results, run=RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("commit"), "'commit' is a required"),
        (lambda c: c.update(extra=1), "'extra' was unexpected"),
        (lambda c: c.update(commit="main"), "commit: 'main'"),
        (lambda c: c["claims"][0].update(verdict="true"), "claims.0"),
        (lambda c: c["claims"][0].pop("ours"), "claims.0"),
        (lambda c: c["claims"][1].pop("reason"), "claims.1"),
        (lambda c: c["claims"][0]["ours"].update(ci=[0.1]), "claims.0"),
        (lambda c: c["controls"][0].pop("difference_ci"), "controls.0"),
        (lambda c: c["figures"][0].update(file="../../secret.png"), "figures.0.file"),
        (lambda c: c["figures"][0].update(file="/etc/a.png"), "figures.0.file"),
        (lambda c: c["tables"][0]["rows"].append(["too short"]), "table protocols"),
    ],
)
def test_a_bad_scorecard_is_refused(card, tmp_path, change, message):
    change(card)
    path = tmp_path / "scorecard.json"
    with pytest.raises(ValueError, match=message):
        scorecard.write(card, path)
    assert not list(tmp_path.glob("*scorecard.json*"))
    path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match=r"scorecard\.json"):
        scorecard.read(path)


def test_round_trip_is_byte_identical(card, tmp_path):
    path = tmp_path / "results" / "scorecard.json"
    scorecard.write(card, path)
    first = path.read_bytes()
    scorecard.write(scorecard.read(path), path)
    assert path.read_bytes() == first and scorecard.read(path) == card
    assert [p.name for p in path.parent.iterdir()] == ["scorecard.json"]
    path.write_bytes(first[:100])
    with pytest.raises(ValueError, match=r"scorecard\.json: no JSON"):
        scorecard.read(path)


def test_canonical_numbers():
    value = {"b": np.float32(0.1), "a": (-0.0, np.int64(3), float("inf"), 1234567.891), 1: np.array([1e-9 / 3])}
    assert scorecard.dumps(value) == scorecard.dumps(scorecard.canonical(value))
    assert scorecard.canonical(value) == {"b": 0.1, "a": [0.0, 3, None, 1234570.0], "1": [3.33333e-10]}
    assert str(scorecard.canonical(-0.0)) == "0.0"


# --- REPRODUCTION.md ---


def tables_of(text: str) -> list[list[str]]:
    """Consecutive lines that start with a pipe."""
    tables, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            tables.append(rows)
            rows = []
    return tables


def test_report_is_well_formed(claims, card):
    text = report.render("meit", claims, {"laptop": card})
    assert text == report.render("meit", copy.deepcopy(claims), {"laptop": json.loads(scorecard.dumps(card))})
    assert text.startswith("<!-- GENERATED by `make rescore-meit`.") and text.endswith("\n")
    tables = tables_of(text)
    assert len(tables) == 4  # claims, evidence, controls, one secondary table
    for rows in tables:
        cells = {row.replace("\\|", "").count("|") for row in rows}
        assert len(cells) == 1 and set(rows[1]) == set("| -")
    assert "Prefix fusion \\| beats LLaVA\\_style fusion" in text
    assert "![Loss under noise \\[true SNR\\]](../results/meit/laptop/noise.png)" in text
    assert "MEIT | 0.500 [0.400, 0.600] | 350 |" in text and "useless | 0.250 | – |" in text
    assert (
        "seeds 0, 1, 2; training and evaluation of all runs, several at a time, 12.6 min; at most 2.05 GB" in text
        and "`abcdef1`" in text
    )
    timed = report.render("meit", claims, {"laptop": card | {"headline_s": 888.0}})
    assert "seeds 0, 1, 2; the headline from nothing 14.8 min by the clock; training and evaluation" in timed
    assert "0.050 [–, –]" in text  # the control that has no interval


def test_papers_column_holds_only_the_papers_numbers(claims, card):
    for row, claim in zip(tables_of(report.render("meit", claims, {"laptop": card}))[0][2:], claims, strict=True):
        shown = row.replace("\\|", "").split(" | ")[2]
        value = claim["paper"]["value"]
        assert shown.startswith("no number" if value is None else str(value)), shown
        assert claim["paper"]["provenance"] in shown


def test_verdicts_on_simulated_data_say_so(claims, card):
    text = report.render("meit", claims, {"laptop": card})
    assert "**holds (in simulation)**<br>+0.123 [" in text and "not tested at this tier: needs ALL=1" in text
    stream = io.StringIO()
    from rich.console import Console

    report.print_table(card, Console(file=stream, width=160))
    assert "holds (in simulation)" in stream.getvalue() and "shuffled-ecg" in stream.getvalue()
    assert "+0.123 [+" in stream.getvalue() and "needs ALL=1" in stream.getvalue()


def test_tiers_stand_side_by_side(claims, card):
    smoke = scorecard.build("meit", "smoke", claims, {"fusion": Measured((make(0.5, 1),), "simulated")}, run=RUN)
    text = report.render("meit", claims, {"laptop": card, "smoke": smoke})
    head = tables_of(text)[0][0]
    assert head.index("`smoke`") < head.index("`laptop`")
    assert text.index("## Tier `smoke`") < text.index("## Tier `laptop`")
    assert "No tier has been run yet." in report.render("meit", claims, {})


def test_scorecards_that_do_not_belong_are_refused(claims, card):
    with pytest.raises(ValueError, match="each must be of this paper"):
        report.render("kmerl", claims, {"laptop": card})
    with pytest.raises(ValueError, match="each must be of this paper"):
        report.render("meit", claims, {"gpu": card})
    changed = copy.deepcopy(claims)
    changed[1]["margin"] = 0.2  # a margin moved after the run
    with pytest.raises(ValueError, match=r"\['noise'\] differ from claims\.yaml; run `make rescore-meit`"):
        report.render("meit", changed, {"laptop": card})
