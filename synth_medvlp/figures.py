"""Pictures of this package: radiographs with heat maps and outlines, contact sheets of pairs, classes by frequency."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from shared.metrics.figures import CYCLE, DPI, GREY, MARKERS, save

_OUTLINE = "#ffbe28"


def draw_classes(path: Path, table: pd.DataFrame, regimes: Mapping[str, str]) -> None:
    """AUROC of each class against how often real training reports state its finding.

    table: task, class, positives, share (0..1, NaN or None = unknown) and one column per regime. regimes: label ->
    column.
    """
    table = table.assign(share=pd.to_numeric(table.share)).sort_values(["share", "task", "class"], kind="stable")
    names = [f"{c.replace('_', ' ')} ({t})" for c, t in zip(table["class"], table.task, strict=True)]
    shares = [
        ("" if np.isnan(s) else f"{s:.1%}") + f"  n={n}" for s, n in zip(table.share, table.positives, strict=True)
    ]
    y = np.arange(len(table))
    fig = Figure(figsize=(7.6, 0.24 * len(table) + 1.3), dpi=DPI, layout="constrained")
    ax = fig.add_subplot()
    ends = table[list(regimes.values())].to_numpy(float)
    ax.hlines(y, ends.min(1), ends.max(1), color="0.85", lw=2, zorder=1)
    for k, (label, column) in enumerate(regimes.items()):
        ax.scatter(table[column], y, color=CYCLE[k], marker=MARKERS[k], s=26, label=label, zorder=2)
    ax.axvline(0.5, color=GREY, lw=0.8, ls="--")
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_yticks(y, [f"{n}  {s}" for n, s in zip(names, shares, strict=True)], fontsize=7)
    ax.set(
        xlabel="AUROC, zero-shot",
        title="Rarest in training reports first (share of reports; n test positives)",
    )
    ax.title.set_fontsize(9)
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside lower center", ncols=len(regimes), frameon=False)
    save(fig, path)


def draw_tail(path: Path, found: Mapping[str, Mapping]) -> None:
    """Entities of each type by rank: real against synthetic reports, both axes logarithmic.

    found: type -> {"real", "synthetic": counts, most frequent first; "gini": of both} (`stage_evidence.tail`).
    """
    fig = Figure(figsize=(2.3 * len(found), 2.9), dpi=DPI, layout="constrained")
    axes = fig.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (kind, of) in zip(axes, found.items(), strict=True):
        for k, side in enumerate(("real", "synthetic")):
            counts = np.array([n for n in of[side] if n])
            ax.plot(np.arange(1, len(counts) + 1), counts, color=CYCLE[k], marker=MARKERS[k], ms=2.5, lw=1, label=side)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(f"{kind}\nGini {of['gini']['real']:.2f} real, {of['gini']['synthetic']:.2f} synthetic", fontsize=7)
        ax.set_xlabel("rank of the string", fontsize=7)
        ax.tick_params(labelsize=6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("times named", fontsize=7)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    save(fig, path)


def draw_pairs(path: Path, groups: Mapping[str, Sequence[tuple[np.ndarray, str]]]) -> None:
    """Contact sheet: one row per group, its images with their captions. groups: title -> (image uint8 [H, W], text)."""
    columns = max(len(cells) for cells in groups.values())
    fig = Figure(figsize=(1.75 * columns, 2.45 * len(groups)), dpi=DPI, layout="constrained")
    axes = fig.subplots(len(groups), columns, squeeze=False)
    for row, (title, cells) in zip(axes, groups.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, (image, text) in zip(row, cells, strict=False):
            _film(ax, image)
            ax.text(0, -0.03, _wrapped(text), transform=ax.transAxes, fontsize=5.5, va="top", parse_math=False)
        row[0].set_title(title, fontsize=8, loc="left", weight="bold")
    save(fig, path)


def draw_maps(
    path: Path, title: str, image: np.ndarray, mask: np.ndarray | None, maps: Mapping[str, np.ndarray], record: str = ""
) -> None:
    """A film and its heat maps beside it. image: uint8 [H, W]; mask: bool [H, W] or None, outlined; maps: label -> map
    [H, W]; record: of `shared.metrics.figures.save`."""
    fig = Figure(figsize=(2.1 * (1 + len(maps)), 2.3), dpi=DPI, layout="constrained")
    axes = fig.subplots(1, 1 + len(maps), squeeze=False)[0]
    for ax, (label, heat) in zip(axes, {title: None, **maps}.items(), strict=True):
        _film(ax, image)
        if heat is not None:
            low, high = np.quantile(heat, (0.5, 0.995))
            shown = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
            ax.imshow(shown, cmap="inferno", alpha=0.55 * shown, vmin=0, vmax=1, extent=_extent(image))
        if mask is not None and mask.any():
            ax.contour(np.flipud(mask).astype(float), [0.5], colors=_OUTLINE, linewidths=1, extent=_extent(image))
        ax.set_title(label, fontsize=7)
    save(fig, path, record)


def _film(ax, image: np.ndarray) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=max(255, int(image.max())), extent=_extent(image))
    ax.set_axis_off()


def _extent(image: np.ndarray) -> tuple[float, float, float, float]:
    """Pictures of any size on the same axes."""
    return 0, image.shape[1], 0, image.shape[0]


def _wrapped(text: str, width: int = 34, lines: int = 5) -> str:
    words, found = text.split(), [""]
    for word in words:
        if len(found[-1]) + len(word) + 1 > width:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    return "\n".join(found[:lines]) + (" .." if len(found) > lines else "")
