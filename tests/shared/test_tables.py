"""Tables of levels: rows, columns, and how many seeds are behind a row."""

import numpy as np
import pytest

from shared.metrics.interval import mean_scores
from shared.runs.evidence import Scored
from shared.runs.tables import NOT_COMPUTED, gains, level_table, levels, metric_table

IDS = np.arange(40).astype(str)
DRAW = np.random.default_rng(0)


def entry(*seeds: int, metrics: tuple[str, ...] = ("auroc",)) -> Scored:
    found = {m: [mean_scores(f"{m}_v", 1, DRAW.random(len(IDS))) for _ in seeds or (0,)] for m in metrics}
    return Scored(found, IDS, IDS, "simulated", "hash", seeds=list(seeds))


@pytest.fixture
def scored() -> dict[str, Scored]:
    return {"a@x": entry(0, 1, 2, 3, 4, metrics=("auroc", "f1")), "b@x": entry(0, 1, 2), "none@x": entry()}


def test_cells_are_levels_of_what_was_scored(scored):
    rows = {
        name: levels(scored, {"one": (f"{name}@x", "auroc"), "two": (f"{name}@x", "f1")}) for name in ("a", "b", "c")
    }
    table = level_table("id", "Title", {"one": "One", "two": "Two", "three": "Three"}, rows, "said")
    assert table["columns"] == ["model", "seeds", "One", "Two"] and table["note"] == "said"
    assert table["rows"] == [
        ["a", 5, list(scored["a@x"].level("auroc")), list(scored["a@x"].level("f1"))],
        ["b", 3, list(scored["b@x"].level("auroc")), None],
    ]


def test_seeds_are_shown_only_where_rows_differ(scored):
    def columns(**rows: tuple[str, ...]) -> list:
        found = {
            label: levels(scored, {str(i): (f"{k}@x", "auroc") for i, k in enumerate(keys)})
            for label, keys in rows.items()
        }
        table = level_table("id", "Title", {"0": "zero", "1": "one"}, found)
        return [row[1] for row in table["rows"]] if "seeds" in table["columns"] else []

    assert columns(first=("b",), second=("b",)) == [], "three each"
    assert columns(first=("b",), second=("none",)) == [], "no run made it"
    assert columns(first=("a", "b"), second=("b",), third=("none",)) == ["3 to 5", 3, None]


def test_differences_stand_on_the_seeds_that_both_have(scored):
    row = gains(scored, {"a less b": ("a@x", "b@x"), "b less c": ("b@x", "c@x")}, "auroc")
    assert row["seeds"] == {3} and set(row) == {"a less b", "seeds"}
    values = [
        a.value - b.value for a, b in zip(scored["a@x"].scores["auroc"], scored["b@x"].scores["auroc"], strict=False)
    ]
    assert row["a less b"][0] == pytest.approx(np.mean(values))


def test_metrics_are_headed_by_their_variant_and_never_0(scored):
    table = metric_table(scored, "id", "Title", {"A": "a@x", "B": "b@x", "C": "c@x"}, ["auroc", "f1", "bleu"])
    assert table["columns"] == ["run", "seeds", "auroc_v", "f1_v", "bleu"]
    assert [row[0] for row in table["rows"]] == ["A", "B"]
    assert table["rows"][1][3:] == [NOT_COMPUTED, NOT_COMPUTED] and table["rows"][0][4] == NOT_COMPUTED
    nothing = metric_table(scored, "id", "Title", {"B": "b@x"}, ["bleu"])
    assert nothing["rows"] == [["B", NOT_COMPUTED]], "said, not left out"
    assert metric_table(scored, "id", "Title", {"B": "b@x"}, ["bleu"], absent=None)["rows"] == []
