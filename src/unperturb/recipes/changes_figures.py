"""Pictures of all subjects of logit changes at once.

Figures 3 and 4 of ALU, a VAE's quality, and accuracies one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unperturb.errors import MissingExtraError
from unperturb.recipes.render_changes import curve_values, done_of
from unperturb.recipes.tables import Workshop

__all__ = ["draw_compared", "draw_curve", "draw_quality"]

_LETTERS = 56
"""Letters of a name that the margin holds."""


def draw_curve(shop: Workshop, record: Mapping[str, Any], folder: Path) -> list[str]:
    """Accuracies and detection rate against the place of the subjects (Figures 3 and 4)."""
    from unperturb.explain import save_figure
    from unperturb.explain.canvas import LINES

    lines = curve_values(record["changes"])
    if not lines:
        return []
    figure = _figure(shop, 6.0)
    if figure is None:
        return []
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.8))
    places = [place for values in lines.values() for place, _ in values]
    axes.set_prop_cycle(color=LINES)
    for label, values in lines.items():
        axes.plot(*zip(*values, strict=True), label=label, marker="o", markersize=3, linewidth=1.4)
    least = min((place for place in places if place > 0), default=None)
    if least is not None and min(places) >= 0 and max(places) > 20 * least:
        axes.set_xscale("symlog", linthresh=least)
    axes.set_ylim(-0.02, 1.02)
    _label(axes, record["changes"]["axis"], "share of images")
    save_figure(figure, folder / "curve.png")
    return ["curve.png"]


def draw_quality(shop: Workshop, record: Mapping[str, Any], folder: Path) -> list[str]:
    """PSNR of clean reconstructions and the classifier's accuracy on them, against the place."""
    from unperturb.explain import save_figure
    from unperturb.explain.canvas import LINES, MUTED

    told = sorted(done_of(record["changes"]), key=lambda one: one["place"])
    if not told:
        return []
    figure = _figure(shop, 8.0)
    if figure is None:
        return []
    left = figure.add_axes((0.08, 0.15, 0.4, 0.8))
    right = figure.add_axes((0.58, 0.15, 0.4, 0.8))
    for axes in (left, right):
        axes.set_prop_cycle(color=LINES)
    places = [one["place"] for one in told]
    for number, first in enumerate(told[0]["found"]["approach"]):
        rows = [one["found"]["approach"][number] for one in told]
        label = f"N = {first['steps']}"
        shares = [row["right"]["accuracy"] for row in rows]
        for axes, values in ((left, [row["psnr"] for row in rows]), (right, shares)):
            axes.plot(places, values, label=label, marker="o", markersize=3, linewidth=1.4)
    clean = told[0]["found"]["approach"][0]["right_clean"]["accuracy"]
    right.axhline(clean, color=MUTED, linestyle="--", linewidth=1, label="not purified")
    for axes, words in (
        (left, "PSNR of clean test images, dB"),
        (right, "classifier right on reconstructions"),
    ):
        axes.set_xticks(sorted(set(places)))
        _label(axes, record["changes"]["axis"], words)
    save_figure(figure, folder / "quality.png")
    return ["quality.png"]


def draw_compared(shop: Workshop, record: Mapping[str, Any], folder: Path) -> list[str]:
    """The defense's accuracy of every subject, clean and attacked, one below the other.

    Bars are Wilson's 95 % intervals of attacked images; a dashed line is the attacked accuracy of
    the one subject that others are compared with, where there is just one.
    """
    from unperturb.explain import save_figure
    from unperturb.explain.canvas import INK, LINES, MUTED, tidy

    told = done_of(record["changes"])
    if not told:
        return []
    height = 1.05 + 0.21 * len(told)
    figure = _figure(shop, 6.6, height)
    if figure is None:
        return []
    axes = figure.add_axes((0.43, 0.55 / height, 0.55, 1 - 1.05 / height))
    rows = range(len(told))
    attacked = [one["found"]["attacked"]["answer"] for one in told]
    clean = [one["found"]["clean"]["answer"]["accuracy"] for one in told]
    base = {one["against"] for one in told if one["against"]}
    for one, share in zip(told, attacked, strict=True):
        if base == {one["name"]}:
            axes.axvline(share["accuracy"], color=MUTED, linestyle="--", linewidth=0.8, zorder=0,
                         label=f"{one['name']}, attacked")  # fmt: skip
    axes.plot(clean, rows, "o", label="clean images", markersize=4,
              markerfacecolor="none", color=LINES[0])  # fmt: skip
    axes.hlines(rows, *zip(*(share["interval"] for share in attacked), strict=True),
                color=LINES[1], linewidth=1.4)  # fmt: skip
    axes.plot([share["accuracy"] for share in attacked], rows, "o", markersize=4,
              label="attacked images, 95 % interval", color=LINES[1])  # fmt: skip
    usual = max(one["found"]["n"] for one in told)
    counts = [one["found"]["n"] for one in told]
    names = [
        one["name"] if n == usual else f"{one['name']} (n = {n:,})"
        for one, n in zip(told, counts, strict=True)
    ]
    short = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names]
    axes.set_yticks(rows, short, parse_math=False)
    axes.set_ylim(len(told) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share that the defense gets right", fontsize=8, color=MUTED)
    tidy(axes)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=2, loc="lower right",
                bbox_to_anchor=(1.0, 1.0), borderpad=0)  # fmt: skip
    save_figure(figure, folder / "compared.png")
    return ["compared.png"]


def _figure(shop: Workshop, width: float, height: float = 3.6) -> Any:
    """An empty figure; None, and why, where nothing can be drawn."""
    from unperturb.explain.canvas import new_figure

    try:
        return new_figure(width, height)
    except MissingExtraError as error:
        shop.say(f"no picture: {error}")
        return None


def _label(axes: Any, below: str, beside: str) -> None:
    """What the two axes are, and a legend."""
    from unperturb.explain.canvas import INK, MUTED, tidy

    axes.set_xlabel(below, fontsize=8, color=MUTED)
    axes.set_ylabel(beside, fontsize=8, color=MUTED)
    tidy(axes)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
