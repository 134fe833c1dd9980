"""Pictures of MEIT: a case, which is an ECG beside its reports."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.ecg.plot import draw_ecg
from shared.metrics.figures import DPI, draw_column, report_column, save


def draw_case(
    path: Path,
    signal_mv: np.ndarray,
    fs_hz: float,
    reference: str,
    predictions: Mapping[str, str],
    title: str = "",
    record: str = "",
) -> None:
    """One ECG on ECG paper, beside its reference report and what each model wrote; the page grows with the text.

    signal_mv: [12, n]. reference: "" where there is none. predictions: name of the model or control -> its report.
    record: its "group/id", kept in the file.
    """
    text_in, blocks = report_column(reference, predictions, chars=46)
    ecg_in, width_in = 6.2, 15.5
    height_in = max(ecg_in, text_in + 0.4)
    fig = Figure(figsize=(width_in, height_in), dpi=DPI)
    ax = fig.add_axes((0.01, 1 - (ecg_in - 0.15) / height_in, 11.4 / width_in, (ecg_in - 0.45) / height_in))
    draw_ecg(ax, signal_mv, fs_hz).set_title(title, loc="left", fontsize=11)
    ax.set_anchor("N")
    draw_column(fig, 11.75 / width_in, blocks)
    save(fig, path, record)
