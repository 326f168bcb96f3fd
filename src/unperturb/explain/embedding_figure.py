"""Scatter plots of features in the plane, with their figures (Tang et al. 2024, Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from unperturb.explain.canvas import INK, MUTED, class_name, new_figure, small_print
from unperturb.explain.tsne import Embedding, Panel, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_embedding"]

_CELL = 2.9
_MOST_NAMED = 20


def figure_embedding(found: Embedding, *, classes: Sequence[str] = ()) -> Figure:
    """Draw an embedding: a row for each subject, a column for clean and for each attack.

    Points have the color of their true class. The panels of a row share their axes; axes of
    t-SNE have no unit and are left out.

    Args:
        found: What `embedding` found.
        classes: Names of the classes; up to twenty that occur stand in the legend.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    across, down = len(found.rows[0].panels), len(found.rows)
    present = found.labels.unique().tolist()
    colors = _colors(present)
    named = present if len(present) <= _MOST_NAMED else []
    left, gap, top = 0.45, 0.5, 0.12
    right = 1.35 if named else 0.15
    width = left + across * (_CELL + 0.15) + right
    foot = small_print(_caption(found), width - left)
    bottom = 0.2 + 0.13 * len(foot)
    height = top + down * (_CELL + gap) + bottom
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        down, across, wspace=0.15 / _CELL, hspace=gap / _CELL, left=left / width,
        right=1 - right / width, top=1 - (top + gap) / height, bottom=bottom / height,
    )  # fmt: skip
    for number, row in enumerate(found.rows):
        limits = _limits(row)
        for column, panel in enumerate(row.panels):
            axes = figure.add_subplot(grid[number, column])
            _scatter(axes, panel, [colors[label] for label in found.labels.tolist()], limits)
            _figures(axes, panel, found.settings["neighbors"])
            if column == 0:
                axes.set_ylabel(
                    _short(row.name), fontsize=9.5, color=INK, weight="bold", labelpad=6
                )
                axes.yaxis.label.set_parse_math(False)
    if named:
        _legend(figure, [(class_name(k, classes), colors[k]) for k in named], 1 - right / width)
    figure.text(
        left / width, 0.08 / height, "\n".join(foot), fontsize=7.5, color=MUTED, va="bottom"
    )
    return figure


def _colors(present: list[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    if len(present) <= 10:
        palette = colormaps["tab10"]
        return {label: palette(k) for k, label in enumerate(present)}
    if len(present) <= _MOST_NAMED:
        palette = colormaps["tab20"]
        return {label: palette(k) for k, label in enumerate(present)}
    palette = colormaps["hsv"]
    return {label: palette(k / len(present)) for k, label in enumerate(present)}


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:17]}…{name[-18:]}"


def _limits(row: Row) -> tuple[tuple[float, float], tuple[float, float]]:
    points = torch.cat([panel.coordinates for panel in row.panels])
    low, high = points.amin(0), points.amax(0)
    room = 0.05 * (high - low).clamp(min=1e-6)
    (x0, y0), (x1, y1) = (low - room).tolist(), (high + room).tolist()
    return (x0, x1), (y0, y1)


def _scatter(axes: Any, panel: Panel, colors: list[Any], limits: Any) -> None:
    count = len(panel.coordinates)
    axes.scatter(
        *panel.coordinates.numpy().T, c=colors, s=max(3.0, min(22.0, 6000 / count)), alpha=0.75,
        linewidths=0,
    )  # fmt: skip
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d0d7de")


def _figures(axes: Any, panel: Panel, neighbors: int) -> None:
    shape = "undefined" if panel.silhouette is None else f"{panel.silhouette:.2f}"
    axes.text(
        0, 1.085, panel.name, transform=axes.transAxes, fontsize=9.5, weight="bold", color=INK,
        parse_math=False,
    )  # fmt: skip
    axes.text(
        0, 1.02, f"accuracy {panel.accuracy:.1%}   {neighbors}-NN {panel.neighbors:.1%}   "
        f"silhouette {shape}",
        transform=axes.transAxes, fontsize=7.5, color=MUTED,
    )  # fmt: skip


def _legend(figure: Figure, named: list[tuple[str, Any]], left: float) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=color) for _, color in named
    ]
    legend = figure.legend(
        marks, [name for name, _ in named], loc="center left", bbox_to_anchor=(left, 0.5),
        frameon=False, fontsize=8, labelcolor=INK, handletextpad=0.1, title="true class",
    )  # fmt: skip
    legend.get_title().set_fontsize(8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _caption(found: Embedding) -> list[str]:
    facts = found.settings
    lines = [
        f"n = {len(found.labels)} in each panel; one t-SNE (perplexity {facts['perplexity']:g}) of "
        "all panels of a row; figures are from the features themselves, chance for neighbors "
        f"{found.chance:.0%}"
    ]
    if facts["attacks"]:
        whom = "undefended classifier" if facts["attacker"] == "oblivious" else "whole"
        eps = f"{facts['eps'] * 255:.3g}/255" if facts["norm"] == "linf" else f"{facts['eps']:.3g}"
        lines.append(f"attacks: {facts['norm']} {eps}, each on its own row's {whom}")
    return lines
