"""A heat map of Bhattacharyya coefficients between sets of supporting classes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from unperturb.explain.bhattacharyya import Overlap
from unperturb.explain.canvas import INK, MUTED, new_figure, small_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_overlap"]

_CELL = 0.95


def figure_overlap(found: Overlap) -> Figure:
    """Draw coefficients between all sets, each with its interval.

    Args:
        found: What `overlap` found.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count = len(found.names)
    names = [_folded(name) for name in found.names]
    room = 0.25 + 0.07 * max(len(line) for name in names for line in name.splitlines())
    width = max(room + count * _CELL + 0.25, 4.6)
    facts = found.settings
    what = {"score": "S", "pull": "the pull up", "push": "the push down"}[facts["which"]]
    foot = small_print(
        [
            f"Bhattacharyya coefficients of the classes in the lists by {what}; 1: equal "
            "frequencies, 0: no class in common; below each the "
            f"{facts['confidence']:.0%} bootstrap interval over images"
        ],
        width - 0.4,
    )
    bottom = room + 0.15 + 0.13 * len(foot)
    height = 0.15 + count * _CELL + bottom
    figure = new_figure(width, height)
    side = count * _CELL
    axes = figure.add_axes((room / width, bottom / height, side / width, side / height))
    axes.imshow(found.values.numpy(), cmap="Blues", vmin=0, vmax=1.15, interpolation="nearest")
    for one in range(count):
        for two in range(count):
            value = float(found.values[one, two])
            color = "white" if value > 0.65 else INK
            axes.text(
                two, one - 0.08 * (one != two), f"{value:.3f}", ha="center", va="center",
                fontsize=10, color=color,
            )  # fmt: skip
            if one != two:
                low, high = float(found.low[one, two]), float(found.high[one, two])
                axes.text(
                    two, one + 0.17, f"{low:.3f} to {high:.3f}", ha="center", va="center",
                    fontsize=6.5, color=color,
                )  # fmt: skip
    axes.set_xticks(range(count))
    axes.set_yticks(range(count))
    below = axes.set_xticklabels(names, rotation=90, ha="center", va="top", fontsize=8, color=INK)
    for text in [*below, *axes.set_yticklabels(names, fontsize=8, color=INK)]:
        text.set_parse_math(False)
    axes.tick_params(length=0, pad=5)
    for line in axes.spines.values():
        line.set_visible(False)
    figure.text(
        0.2 / width, 0.08 / height, "\n".join(foot), fontsize=7.5, color=MUTED, va="bottom",
        parse_math=False,
    )  # fmt: skip
    return figure


def _folded(name: str) -> str:
    """A set's name on lines of its own for corrector, attack and the attack's settings."""
    parts = [part.strip() for part in re.split(r"(?<=: )|(?=\?)|(?=&\w+=)", name)]
    return "\n".join(p if len(p) <= 26 else f"{p[:12]}…{p[-13:]}" for p in parts[:4] if p)
