"""Time of ALU's answer against its steps, from the benchmark; `alu_results.py` writes it."""

from __future__ import annotations

import json
from pathlib import Path

from results import ROOT
from unperturb.explain.canvas import INK, LINES, MUTED, new_figure, save_figure, tidy
from unperturb.recipes.words import header_of, line_of

__all__ = ["cost"]

SPEED = ROOT / "benchmarks/results/alu.json"
PARTS = {
    "answer": "whole answer: classifier twice",
    "purified": "purifier, and the classifier once",
    "purification": "purifier alone",
}
PUBLISHED = {0: 1, 50: 6.8, 200: 24}
"""Of the paper: time at N steps over that of N = 0."""


def cost(pages: Path) -> list[str]:
    """Time against the number of steps beside the paper's, and how few steps do; the picture."""
    if not SPEED.is_file():
        return ["not run: no record yet (`python -m benchmarks --only alu`).", ""]
    record = json.loads(SPEED.read_text(encoding="utf-8"))
    passes, steps = record["cases"][:2]
    curves: dict[str, dict[int, float]] = {part: {0: 1.0} for part in PARTS}
    for ratio in steps["ratios"]:
        part, count = ratio["numerator"].split(", N = ")
        curves[part][int(count)] = ratio["median_of_ratios"]
    _draw(curves, int(passes["lbfgs_steps"]), pages / "cost.png")
    lines = [
        f"Medians of ratios within one run, {record['processor']}, threads: {record['threads']}, "
        f"{steps['case']}; the paper's are of 10,000 images on an RTX 3090 (6.9 s at N = 0, 46.9 s "
        "at 50, 166 s at 200). Ours are steps of L-BFGS, the paper's of plain descent with another "
        "VAE and classifier, so that the two are not ratios of the same work.",
        "",
        "![Time against steps](alu/cost.png)",
        "",
        *header_of(["steps N", *PARTS.values(), "the paper"]),
    ]
    for count in curves["answer"]:
        ours = (f"{curves[part][count]:.2f}" for part in PARTS)
        lines.append(line_of([str(count), *ours, str(PUBLISHED.get(count, ""))]))
    lines.append("")
    for ratio in passes["ratios"]:
        lines.append(
            f"- {ratio['numerator']} / {ratio['denominator']}: {ratio['median_of_ratios']:.2f} "
            "times as many decoder passes for the same median error on 128 test images."
        )
    return [*lines, ""]


def _draw(curves: dict[str, dict[int, float]], few: int, out: Path) -> None:
    figure = new_figure(6.6, 3.8)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.7))
    axes.set_prop_cycle(color=LINES)
    for part, values in curves.items():
        axes.plot(*zip(*values.items(), strict=True), label=PARTS[part], marker="o",
                  markersize=3, linewidth=1.4)  # fmt: skip
    axes.plot(*zip(*PUBLISHED.items(), strict=True), "D", markersize=5, color=INK,
              markerfacecolor="none", label="the paper: plain descent, GPU")  # fmt: skip
    axes.axvline(few, color=MUTED, linestyle="--", linewidth=0.8,
                 label=f"{few} steps of L-BFGS: the error of 200 plain")  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.1, 260)
    axes.set_yscale("log")
    places = list(curves["answer"])
    shown = [place for place in places if place != few]
    axes.set_xticks(shown, [str(place) for place in shown])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes.tick_params(axis="y", which="minor", left=False)
    axes.set_xlabel("steps N", fontsize=8, color=MUTED)
    axes.set_ylabel("time / time at N = 0", fontsize=8, color=MUTED)
    tidy(axes)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=2, loc="lower center",
                bbox_to_anchor=(0.46, 1.0), columnspacing=1.2)  # fmt: skip
    save_figure(figure, out)
