"""Pictures of MEIT: a case, which is an ECG beside its reports."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.ecg.plot import draw_ecg
from shared.metrics.figures import BLACK, CYCLE, DPI, save


def draw_case(
    path: Path,
    signal_mv: np.ndarray,
    fs_hz: float,
    reference: str,
    predictions: Mapping[str, str],
    title: str = "",
    highlight: Sequence | None = None,
) -> None:
    """One ECG on ECG paper, beside its reference report and what each model wrote; the page grows with the text.

    signal_mv: [12, n]. reference: "" where there is none. predictions: name of the model or control -> its report.
    highlight: as `draw_ecg` takes it.
    """
    chars, line_in, heading_in = 46, 0.19, 0.27  # a line of 46 characters of 10-point text is about 3.6 inches
    texts = ([("Reference report", reference)] if reference else []) + list(predictions.items())
    blocks = [(name, textwrap.wrap(text, chars) or ["(empty)"]) for name, text in texts]
    text_in = sum(heading_in + line_in * len(lines) + 0.2 for _, lines in blocks)
    ecg_in, width_in = 6.2, 15.5
    height_in = max(ecg_in, text_in + 0.4)
    fig = Figure(figsize=(width_in, height_in), dpi=DPI)
    ax = fig.add_axes((0.01, 1 - (ecg_in - 0.15) / height_in, 11.4 / width_in, (ecg_in - 0.45) / height_in))
    draw_ecg(ax, signal_mv, fs_hz, highlight=highlight).set_title(title, loc="left", fontsize=11)
    ax.set_anchor("N")
    left, top_in = 11.75 / width_in, 0.35
    for k, (name, lines) in enumerate(blocks):
        color = BLACK if reference and k == 0 else CYCLE[(k - bool(reference)) % (len(CYCLE) - 1)]
        y = 1 - top_in / height_in
        fig.text(left, y, name, color=color, weight="bold", fontsize=11, va="top", parse_math=False)
        y = 1 - (top_in + heading_in) / height_in
        body = "\n".join(lines)
        fig.text(left, y, body, fontsize=10, va="top", linespacing=1.3, parse_math=False)
        top_in += heading_in + line_in * len(lines) + 0.2
    save(fig, path)
