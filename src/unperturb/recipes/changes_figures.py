"""Pictures of all subjects of logit changes at once: Figures 3 and 4 of ALU, a VAE's quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unperturb.errors import MissingExtraError
from unperturb.recipes.render_changes import curve_values, done_of
from unperturb.recipes.tables import Workshop

__all__ = ["draw_curve", "draw_quality"]


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


def _figure(shop: Workshop, width: float) -> Any:
    """An empty figure; None, and why, where nothing can be drawn."""
    from unperturb.explain.canvas import new_figure

    try:
        return new_figure(width, 3.6)
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
