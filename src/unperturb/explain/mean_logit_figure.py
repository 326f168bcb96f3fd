"""Histograms of the mean logit, clean against attacked (Li et al. 2019, Figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unperturb.explain.canvas import INK, MUTED, new_figure, small_print, tidy
from unperturb.explain.mean_logit import MeanLogits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_mean_logits"]

_CLEAN, _ATTACKED = "#2b5c9e", "#d9822b"
_WIDE, _TALL = 3.3, 2.1


def figure_mean_logits(found: MeanLogits) -> Figure:
    """Draw a panel for each attack: its mean logits over the clean ones, as shares of images.

    The legend stands above all panels. Dashed lines are means.

    Args:
        found: What `mean_logits` found.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = list(found.aurocs)
    across = min(len(names), 2)
    down = -(-len(names) // across)
    left, gap, title, axis, top = 0.65, 0.35, 0.48, 0.5, 0.42
    width = left + across * _WIDE + (across - 1) * gap + 0.2
    foot = small_print(
        [
            f"{len(found.edges) - 1} bins, the same in every panel; AUROC: of the mean logit as a "
            "detector, 0.5 is chance, below it attacked images have the smaller mean"
        ],
        width - 0.4,
    )
    bottom = 0.15 + 0.13 * len(foot)
    height = top + down * (title + _TALL + axis) + bottom
    figure = new_figure(width, height)
    most = max(float((n / n.sum()).max()) for n in found.counts.values())
    for place, name in enumerate(names):
        row, column = divmod(place, across)
        x = left + column * (_WIDE + gap)
        y = height - top - row * (title + _TALL + axis) - title - _TALL
        axes = figure.add_axes((x / width, y / height, _WIDE / width, _TALL / height))
        _panel(axes, found, name, most)
        if column == 0:
            axes.set_ylabel("share of images", fontsize=8, color=MUTED)
        else:
            axes.tick_params(axis="y", labelleft=False)
        # The last row, or the row above its gap.
        if place + across >= len(names):
            axes.set_xlabel("mean logit", fontsize=8, color=MUTED)
    _legend(figure, 1 - 0.08 / height, left / width)
    figure.text(0.2 / width, 0.08 / height, "\n".join(foot), fontsize=7.5, color=MUTED, va="bottom")
    return figure


def _panel(axes: Any, found: MeanLogits, name: str, most: float) -> None:
    from matplotlib.ticker import PercentFormatter

    edges = found.edges.numpy()
    for key, color in (("clean", _CLEAN), (name, _ATTACKED)):
        shares = (found.counts[key] / found.counts[key].sum()).numpy()
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.35)
        axes.stairs(shares, edges, color=color, linewidth=1.2)
        axes.axvline(found.means[key], color=color, linewidth=1, linestyle="--")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * most)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.locator_params(axis="y", nbins=5)
    tidy(axes, 7.5)
    place = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
    short = name if len(name) <= 38 else f"{name[:18]}…{name[-19:]}"
    axes.text(0, 1 + 0.23 / _TALL, short, fontsize=9.5, weight="bold", color=INK, **place)
    axes.text(
        0, 1 + 0.06 / _TALL, f"mean {found.means['clean']:.3g} clean, {found.means[name]:.3g} "
        f"attacked; AUROC {found.aurocs[name]:.3f}", fontsize=7.5, color=MUTED, **place,
    )  # fmt: skip


def _legend(figure: Figure, top: float, left: float) -> None:
    from matplotlib.patches import Patch

    marks = [
        Patch(facecolor=(color, 0.35), edgecolor=color, label=label)
        for label, color in (("clean", _CLEAN), ("attacked", _ATTACKED))
    ]
    figure.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(left, top), ncols=2, frameon=False,
        fontsize=8.5, labelcolor=INK, borderaxespad=0, borderpad=0,
    )  # fmt: skip
