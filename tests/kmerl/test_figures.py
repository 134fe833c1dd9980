"""The pictures are written, are no blank pages, and say what the data say."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from kmerl.figures import draw_lead_counts, draw_lead_sets
from kmerl.leads import CLINICAL_SETS
from shared.ecg.plot import draw_attention, draw_strips, strip_rows
from shared.ecg.record import LEADS
from shared.metrics.figures import draw_losses


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved, so that a test can read their words and lines."""
    kept, save = [], Figure.savefig

    def keep(fig, *args, **kwargs):
        kept.append(fig)
        return save(fig, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def _colours(path) -> int:
    return len(np.unique((imread(path)[::5] * 255).astype(np.uint8).reshape(-1, 4), axis=0))


def _ecg(seconds=10, fs_hz=100):
    t = np.arange(seconds * fs_hz) / fs_hz
    beat = np.exp(-((((t % 0.9) - 0.3) / 0.02) ** 2)) + 0.2 * np.exp(-((((t % 0.9) - 0.55) / 0.06) ** 2))
    return (np.linspace(-0.6, 1.6, 12)[:, None] * beat).astype(np.float32)


def test_lead_counts_have_a_line_and_a_band_per_method_and_gaps_stay_gaps(tmp_path, drawn):
    full = {c: (0.6 + 0.02 * c, 0.5, 0.9) for c in range(1, 13)}
    methods = {"K-MERL": full, "MERL": {c: e for c, e in full.items() if c != 5}}
    draw_lead_counts(tmp_path / "deep" / "counts.png", methods)
    (ax,) = drawn[0].axes
    assert [line.get_label() for line in ax.lines] == ["K-MERL", "MERL"] and len(ax.collections) == 2
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.6 + 0.02 * c for c in range(1, 13)])
    gaps = np.isnan(np.asarray(ax.lines[1].get_ydata(), dtype=float))
    assert np.flatnonzero(gaps).tolist() == [4]
    assert list(ax.get_xticks()) == list(range(1, 13)) and "leads" in ax.get_xlabel()
    assert _colours(tmp_path / "deep" / "counts.png") > 20


def test_lead_sets_show_every_value_at_its_set_with_its_interval(tmp_path, drawn):
    methods = {
        m: {s: (0.6 + k / 10, 0.5, 0.9) for s in CLINICAL_SETS} for k, m in enumerate(("K-MERL", "MERL", "other"))
    }
    del methods["MERL"]["limb"]
    draw_lead_sets(tmp_path / "sets.png", methods)
    (ax,) = drawn[0].axes
    assert [t.get_text() for t in ax.get_xticklabels()] == list(CLINICAL_SETS)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(methods)
    for container, (name, estimates) in zip(ax.containers, methods.items(), strict=True):
        x, y = (np.asarray(values, dtype=float) for values in container.lines[0].get_data())
        assert [list(CLINICAL_SETS)[i] for i in np.rint(x).astype(int)] == list(estimates), name
        np.testing.assert_allclose(y, [value for value, _, _ in estimates.values()])
        ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, [[0.5, 0.9]] * len(estimates))
    assert _colours(tmp_path / "sets.png") > 20


def _attention(leads, peak=("V2", 3)):
    weights = np.zeros((12, 20))
    weights[[LEADS.index(lead) for lead in leads]] = 1.0
    weights[LEADS.index(peak[0]), peak[1]] += 20.0
    return weights / weights.sum()


def _tints(ax):
    return {
        round(mesh.get_coordinates()[0, 0, 1], 6): np.asarray(mesh.get_array()).ravel() for mesh in ax.collections[2:]
    }


def test_attention_tints_the_segments_of_the_leads_given(tmp_path, drawn):
    leads, signal = ("I", "V2"), _ecg()
    even, sharp = np.zeros((12, 20)), _attention(leads)
    even[[0, 7]] = 1 / 40
    queries = {"atrial fibrillation": (0.912, sharp), "sinus rhythm": (0.25, even)}
    draw_attention(tmp_path / "attention.png", signal, 100.0, queries, 0.5, leads, title="record 7")
    first, second = drawn[0].axes
    assert first.get_title(loc="left") == "atrial fibrillation: 0.912   (full tint = 14.0 x even attention)"
    assert second.get_title(loc="left") == "sinus rhythm: 0.250   (full tint = 2.0 x even attention)"
    assert [t.get_text() for t in first.texts] == ["I", "V2", "33%", "67%"]
    assert [t.get_text() for t in second.texts] == ["I", "V2", "50%", "50%"]
    tints = list(_tints(first).values())
    np.testing.assert_allclose(tints, np.maximum(sharp[[0, 7]] * 40 - 1, 0), atol=1e-12)
    assert np.allclose(list(_tints(second).values()), 0, atol=1e-12)  # even attention is white
    assert np.argmax(tints[1]) == 3 and len(tints) == 2
    assert drawn[0].texts[0].get_text() == "record 7"
    boxes = [ax.get_position() for ax in drawn[0].axes]
    assert boxes[0].x1 < boxes[1].x0 and all(0 <= b.x0 and b.x1 <= 1 and 0 <= b.y0 and b.y1 < 0.95 for b in boxes)
    assert _colours(tmp_path / "attention.png") > 50


def test_attention_panels_of_twelve_leads_do_not_overlap_and_keep_the_scale_of_paper(tmp_path, drawn):
    queries = {name: (0.5, _attention(LEADS)) for name in "abc"}
    draw_attention(tmp_path / "attention.png", _ecg(), 100.0, queries, 0.5)
    fig = drawn[0]
    a, b, c = (ax.get_position() for ax in fig.axes)
    assert a.x1 < b.x0 and a.y0 == pytest.approx(b.y0) and c.y1 < a.y0 and c.y0 >= 0
    for ax in fig.axes:  # the box has the shape of the paper, so that nothing of it stays empty
        (x0, x1), (y0, y1), box = ax.get_xlim(), ax.get_ylim(), ax.get_window_extent()
        assert box.height / box.width == pytest.approx(0.4 * (y1 - y0) / (x1 - x0), rel=0.02)


def test_attention_without_weight_on_the_leads_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="sinus rhythm: no attention on I, II"):
        draw_attention(tmp_path / "a.png", _ecg(), 100.0, {"sinus rhythm": (0.5, np.zeros((12, 20)))}, 0.5, ("I", "II"))


def test_strips_are_as_high_as_their_waves_and_name_what_is_wrong():
    signal = _ecg()
    signal[7] *= 3
    rows = strip_rows(signal, ["I", "V2", "V3"])
    assert rows[0][2] == 0 and all(bottom < baseline < top for bottom, baseline, top in rows)
    np.testing.assert_allclose([row[0] for row in rows[:2]], [row[2] for row in rows[1:]])
    peak = float(signal[7].max() - np.median(signal[7]))
    assert rows[1][2] - rows[1][1] > min(peak, 3.0) > rows[0][2] - rows[0][1]
    ax = Figure().add_subplot()
    with pytest.raises(ValueError, match=r"\[12, n\]"):
        draw_strips(ax, signal[:3], 100, ["I"])
    with pytest.raises(ValueError, match="V9 given"):
        draw_strips(ax, signal, 100, ["V9"])
    with pytest.raises(ValueError, match="weights must be"):
        draw_strips(ax, signal, 100, ["I"], np.ones((2, 20)), 0.5)


def test_losses_show_the_mean_and_range_over_seeds_where_all_have_values(tmp_path, drawn):
    runs = {"K-MERL": [[(10, 4.0), (20, 2.0)], [(10, 2.0), (20, 1.0)]], "MERL": [[(10, 3.0), (20, 2.0), (40, 1.0)]]}
    draw_losses(tmp_path / "loss.png", runs, "Pre-training loss")
    (ax,) = drawn[0].axes
    first, second = (np.asarray(line.get_ydata(), dtype=float) for line in ax.lines)
    np.testing.assert_allclose(first, [3.0, 1.5, np.nan])
    np.testing.assert_allclose(second, [3.0, 2.0, 1.0])
    assert drawn[0].legends[0].get_title().get_text() == "band: range over seeds"
