"""The pictures are written, are no blank pages, and say what the data say."""

import itertools
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from meit.figures import draw_case
from shared.metrics import figures, scorecard
from shared.metrics.figures import draw_claims, draw_curve
from shared.metrics.interval import Difference


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved, so that a test can read their words and lines."""
    kept, save = [], Figure.savefig

    def keep(fig, *args, **kwargs):
        kept.append(fig)
        return save(fig, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def _words(fig):
    texts = [t.get_text() for t in fig.texts]
    for ax in fig.axes:
        texts += [t.get_text() for t in [*ax.texts, ax.xaxis.label, ax.yaxis.label]]
        texts += [ax.get_title(loc) for loc in ("left", "center")]
    return "\n".join(texts)


def _size_and_colours(path):
    """(width, height, number of different pixel values in every 7th row) of an 8-bit RGBA PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (depth, kind) == (8, 6)
    from matplotlib.image import imread

    pixels = (imread(path) * 255).astype(np.uint8)[::7]
    return width, height, len(np.unique(pixels.reshape(-1, 4), axis=0))


def _ecg(fs_hz=100):
    t = np.arange(10 * fs_hz) / fs_hz
    beat = np.exp(-((((t % 0.9) - 0.3) / 0.02) ** 2)) + 0.2 * np.exp(-((((t % 0.9) - 0.55) / 0.06) ** 2))
    return (np.linspace(-0.6, 1.6, 12)[:, None] * beat).astype(np.float32)


def test_a_case_shows_every_report_in_full(tmp_path, drawn):
    long = " ".join(f"statement{i} with $5 and _markup_." for i in range(40))
    reports = {"MEIT": "sinus rhythm. normal ecg.", "LLaVA-style": "", "zeroed ECG": long}
    draw_case(tmp_path / "deep" / "case.png", _ecg(), 100.0, "atrial fibrillation.", reports, title="record 7")
    words = _words(drawn[0])
    for text in (
        "record 7",
        "Reference report",
        "atrial fibrillation.",
        *reports,
        "sinus rhythm. normal ecg.",
        "(empty)",
    ):
        assert text in words
    assert " ".join(words.split()).count("statement") == 40 and "$5" in words
    boxes = [text.get_window_extent() for text in drawn[0].texts]
    page = drawn[0].bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes)), "texts overlap"
    width, height, colours = _size_and_colours(tmp_path / "deep" / "case.png")
    assert width > 1500 and height > 800 and colours > 50


def test_a_case_without_reference(tmp_path, drawn):
    draw_case(tmp_path / "case.png", _ecg(500), 500.0, "", {"MEIT": "sinus rhythm."})
    assert "Reference" not in _words(drawn[0]) and "sinus rhythm." in _words(drawn[0])


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curve(tmp_path / name, [0, 1], {"x": ([1, 2], [0, 1], [2, 3])}, "x", "y")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_curve_has_a_line_and_a_band_per_series(tmp_path, drawn):
    x = [0.0, 0.05, 0.1, 0.2]
    series = {name: ([b, b, b, b - 0.1], [b - 0.1] * 4, [b + 0.1] * 4) for name, b in (("MEIT", 0.6), ("zero", 0.2))}
    draw_curve(tmp_path / "curve.png", x, series, "noisy fraction", "finding F1", title="noise")
    (ax,) = drawn[0].axes
    assert [line.get_label() for line in ax.lines] == ["MEIT", "zero"] and len(ax.collections) == 2
    assert list(ax.lines[0].get_ydata()) == [0.6, 0.6, 0.6, 0.5]
    assert len({line.get_color() for line in ax.lines}) == len({line.get_marker() for line in ax.lines}) == 2
    assert "noisy fraction" in _words(drawn[0])
    assert _size_and_colours(tmp_path / "curve.png")[2] > 20


def test_a_long_curve_has_no_crowd_of_ticks_and_its_band_is_named(tmp_path, drawn):
    steps = np.arange(0, 20000, 100)
    loss = 1 / (1 + steps / 1000)
    draw_curve(tmp_path / "loss.png", steps, {"MEIT": (loss, loss - 0.1, loss + 0.1)}, "step", "loss", band="range")
    assert len(drawn[0].axes[0].get_xticks()) < 15
    assert drawn[0].legends[0].get_title().get_text() == "band: range"


def _claim(claim_id, kind, metric="finding F1", margin=0.0, direction="higher", comparator="llava", tiers=("laptop",)):
    return {
        "id": claim_id,
        "statement": "A statement.",
        "kind": kind,
        "metric": metric,
        "comparator": comparator,
        "margin": margin,
        "direction": direction,
        "protocol": "corrected",
        "experiment": "fusion",
        "paper": {"value": None, "unit": "", "provenance": "[paper]"},
        "tiers": list(tiers),
        "not_tested": "needs pre-trained models",
    }


def _difference(mean, spread=0.001, seeds=5):
    per_seed = tuple(mean + spread * np.linspace(-1, 1, seeds))
    return Difference(mean, spread**2, float(np.var(per_seed, ddof=1)), per_seed, 0.6, 0.6 - mean, 50, 40)


def _card():
    claims = [
        _claim("better", "superiority"),
        _claim("worse", "superiority"),
        _claim("graceful", "non-inferiority", margin=0.05),
        _claim("same", "equivalence", margin=0.05),
        _claim("matters", "difference", metric="BLEU-4", margin=0.02),
        _claim("loss", "superiority", metric="token loss", direction="lower"),
        _claim("scaling", "ordering", comparator=["medium over small", "large over medium"]),
        _claim("few", "superiority"),
        _claim("needs-llm", "superiority", tiers=("paper",)),
    ]
    measured = {
        "better": (_difference(0.1),),
        "worse": (_difference(-0.1),),
        "graceful": (_difference(-0.02),),
        "same": (_difference(0.01),),
        "matters": (_difference(-0.2),),
        "loss": (_difference(-0.3),),
        "scaling": (_difference(0.1), _difference(0.001, spread=0.05)),
        "few": (_difference(0.1, seeds=2),),
    }
    results = {k: scorecard.Measured(v, "simulated" if k != "better" else "PTB-XL") for k, v in measured.items()}
    run = {"commit": "unknown", "wall_s": 1.0, "peak_rss_mb": 1.0, "environment": {}, "seeds": [0, 1, 2]}
    return scorecard.build("meit", "laptop", claims, results, run=run)


def test_the_forest_plot_shows_each_measured_claim_with_its_verdict(tmp_path, drawn):
    card = _card()
    draw_claims(tmp_path / "claims.png", card)
    fig = drawn[0]
    words = _words(fig)
    assert "Not tested at this tier: needs-llm" in words and "MEIT, tier laptop" in words
    assert [ax.xaxis.label.get_text().split(";")[0] for ax in fig.axes] == [
        "difference in finding F1",
        "difference in BLEU-4",
        "reduction of token loss",
    ]
    seen = {}
    for ax in fig.axes:
        labels = [t.get_text() for t in ax.texts]
        seen |= dict(zip(labels[::2], labels[1::2], strict=True))
    assert seen == {
        "better\nsuperiority, against llava": "holds",
        "worse\nsuperiority, against llava": "does not hold (in simulation)",
        "graceful\nnon-inferiority, against llava": "holds (in simulation)",
        "same\nequivalence, against llava": "holds (in simulation)",
        "scaling\nordering: medium over small": "holds (in simulation)",
        "scaling\nordering: large over medium": "inconclusive (in simulation)",
        "few\nsuperiority, against llava": "inconclusive (in simulation)",
        "matters\ndifference, against llava": "holds (in simulation)",
        "loss\nsuperiority, against llava": "holds (in simulation)",
    }
    assert _size_and_colours(tmp_path / "claims.png")[2] > 20


def test_a_decisive_interval_lies_where_the_picture_says(tmp_path):
    """The shaded ranges and the verdict rule agree, also where a lower metric is better."""
    for claim in _card()["claims"]:
        for row in figures._claim_rows(claim) if "ours" in claim else []:
            lo, hi = row["ci_holm"]
            ranges = figures._holds_where(claim["kind"], row["edges"], -1.0, 1.0)
            inside = any(start < lo and hi < end for start, end in ranges)
            assert inside == (row["verdict"] == "holds") or claim["id"] == "few", claim["id"]


def test_verdict_styles_differ_in_colour_and_in_marker():
    colours, markers = zip(*figures.VERDICT_STYLE.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == 3


def test_a_scorecard_without_measured_claims_is_a_page_that_says_so(tmp_path, drawn):
    card = _card()
    card["claims"] = [claim for claim in card["claims"] if "ours" not in claim]
    draw_claims(tmp_path / "claims.png", card)
    assert "needs-llm" in _words(drawn[0]) and not drawn[0].axes
