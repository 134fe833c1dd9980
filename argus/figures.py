"""Pictures of Argus: a case, which is slices of a CT beside its reports, and levels with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.metrics.figures import CYCLE, DPI, GREY, MARKERS, ORANGE, draw_column, report_column, save

WINDOWS = {"lung": (-600, 1500), "mediastinum": (40, 400)}  # centre, width in HU
PLANES = ("axial", "coronal", "sagittal")


def plane(volume: np.ndarray, name: str, at: Sequence[int]) -> np.ndarray:
    """Slice of a [D, H, W] volume in LPS through the voxel `at` (z, y, x): rows run down, with the head up (front up
    in the axial slice), the patient's right on the left (front on the left in the sagittal slice)."""
    z, y, x = at
    return {"axial": volume[z], "coronal": volume[::-1, y], "sagittal": volume[::-1, :, x]}[name]


def draw_planes(
    axes: Sequence,
    hu: np.ndarray,
    spacing_mm: Sequence[float],
    at: Sequence[int],
    window: str,
    mark: bool = False,
    overlay: np.ndarray | None = None,
) -> None:
    """Three slices through `at` on three axes, in square millimetres.

    hu: [D, H, W] in LPS; spacing_mm and at: (z, y, x); window: of WINDOWS; mark: point at `at`; overlay: [D, H, W]
    weights >= 0 shown as heat.
    """
    centre, width = WINDOWS[window]
    sz, sy, sx = spacing_mm
    z, y, x = at
    steps = {"axial": (sy, sx), "coronal": (sz, sx), "sagittal": (sz, sy)}
    up = hu.shape[0] - 1 - z
    spots = {"axial": (y, x), "coronal": (up, x), "sagittal": (up, y)}
    for ax, name in zip(axes, PLANES, strict=True):
        (down, right), (row, column) = steps[name], spots[name]
        shown = {"aspect": down / right, "interpolation": "bilinear"}
        ax.imshow(plane(hu, name, at), cmap="gray", vmin=centre - width / 2, vmax=centre + width / 2, **shown)
        if overlay is not None:
            heat = plane(overlay / max(float(overlay.max()), 1e-12), name, at)
            ax.imshow(heat, cmap="inferno", alpha=0.6 * heat, vmin=0, vmax=1, **shown)
        if mark:  # an open cross, so that what it points at stays visible
            reach = 0.06 * max(hu.shape[1] * sy, hu.shape[2] * sx)
            for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)):
                rows = [row + k * reach * dy / down for k in (0.9, 2.0)]
                columns = [column + k * reach * dx / right for k in (0.9, 2.0)]
                ax.plot(columns, rows, color=ORANGE, linewidth=1.6)
        ax.set(xlim=(-0.5, plane(hu, name, at).shape[1] - 0.5), ylim=(plane(hu, name, at).shape[0] - 0.5, -0.5))
        ax.set_axis_off()
        ax.set_title(f"{name}, {window} window", fontsize=8, color=GREY)


def draw_case(
    path: Path,
    hu: np.ndarray,
    spacing_mm: Sequence[float],
    at: Sequence[int],
    reference: str,
    predictions: Mapping[str, str],
    title: str = "",
    mark: bool = False,
    record: str = "",
) -> None:
    """A CT in three planes and two windows, beside its reference report and what each model wrote; the page grows with
    the text.

    hu, spacing_mm, at, mark: as `draw_planes` takes them. reference: "" where there is none. predictions: name of the
    model or control -> its report. record: its "group/id", kept in the file.
    """
    text_in, blocks = report_column(reference, predictions, chars=76)
    cell_in, width_in = 2.75, 15.5
    height_in = max(2 * cell_in + 0.8, text_in + 0.4)
    fig = Figure(figsize=(width_in, height_in), dpi=DPI)
    fig.text(0.012, 1 - 0.12 / height_in, title, fontsize=11, va="top", parse_math=False)
    for k, window in enumerate(WINDOWS):
        bottom = 1 - (0.55 + (k + 1) * cell_in) / height_in
        boxes = [((0.1 + j * 2.95) / width_in, bottom, 2.8 / width_in, (cell_in - 0.3) / height_in) for j in range(3)]
        draw_planes([fig.add_axes(box) for box in boxes], hu, spacing_mm, at, window, mark)
    draw_column(fig, 9.15 / width_in, blocks)
    save(fig, path, record)


def draw_levels(
    path: Path, rows: Sequence[str], series: Mapping[str, Mapping[str, tuple]], xlabel: str, title: str = ""
) -> None:
    """Levels as points with their 95 % intervals. rows: labels from top to bottom; series: name -> row -> (value, lower
    end, upper end); a row that a series lacks stays empty there."""
    fig = Figure(figsize=(7.6, 1.3 + 0.42 * len(rows)), dpi=DPI, layout="constrained")
    ax = fig.add_subplot()
    spread = 0.5 / max(len(series), 1)
    for k, (name, levels) in enumerate(series.items()):
        at = [i + (k - (len(series) - 1) / 2) * spread for i, row in enumerate(rows) if row in levels]
        found = np.array([[np.nan if v is None else v for v in levels[row]] for row in rows if row in levels])
        errors = np.abs(found[:, 1:].T - found[:, 0])
        ax.errorbar(found[:, 0], at, xerr=errors, fmt=MARKERS[k % len(MARKERS)], color=CYCLE[k % len(CYCLE)],
                    capsize=3, label=name)  # fmt: skip
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=f"{xlabel} [95 % CI]", title=title, ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="x", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        fig.legend(loc="outside lower right", frameon=False, ncols=min(2, len(series)))
    save(fig, path)
