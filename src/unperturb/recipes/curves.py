"""Training curves: the epochs of models' training runs, and lines through them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unperturb.recipes.models import Models, Obtained
from unperturb.recipes.schema import Recipe
from unperturb.recipes.sources import NotRunError

__all__ = ["draw_curves", "draw_sweeps", "epochs_of", "plot", "run_curves"]


def epochs_of(had: Obtained) -> list[dict[str, Any]]:
    """Epochs of all training runs of a model, one after the other, numbered through.

    Each is the record that training left, with ``epoch`` counted over the runs and ``run`` the
    folder's name.
    """
    found: list[dict[str, Any]] = []
    for folder in had.folders:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        offset = len(found)
        found += [
            {**epoch, "epoch": offset + epoch["epoch"], "run": folder.name}
            for epoch in record["epochs"]
        ]
    return found


def run_curves(
    recipe: Recipe, models: Models, *, each: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """Train every model and every network of the panels and collect their epochs.

    Returns:
        ``models``: facts of each model; ``curves``: epochs, or the reason why there are none, by
        the model's name, or ``network`` and the network's.
    """
    names = dict.fromkeys(name for panel in recipe.panels for name, _ in panel.lines.values())
    networks = dict.fromkeys(n for panel in recipe.panels for n, _ in panel.networks.values())
    found: dict[str, Any] = {"models": {}, "curves": {}}
    for name in names:
        try:
            had = models.get(name)
        except NotRunError as reason:
            found["curves"][name] = {"status": "not run", "reason": str(reason), "epochs": []}
            continue
        found["models"][name] = had.facts
        epochs = epochs_of(had)
        status = {"status": "done", "reason": ""}
        if not epochs:
            status = {"status": "not run", "reason": "the classifier was given without its epochs"}
        found["curves"][name] = {**status, "epochs": epochs}
        each(found)
    for name in networks:
        found["curves"][f"network {name}"] = _of_network(models, name)
        each({**found, "networks": models.networks.facts()})
    return found


def _of_network(models: Models, name: str) -> dict[str, Any]:
    """Epochs of the training of a defense's network."""
    try:
        path = models.networks.get(name).folder / "training.json"
    except NotRunError as reason:
        return {"status": "not run", "reason": str(reason), "epochs": []}
    if not path.is_file():
        words = "the network was given without its epochs"
        return {"status": "not run", "reason": words, "epochs": []}
    epochs = json.loads(path.read_text(encoding="utf-8"))["epochs"]
    before = epochs[0].get("before") if epochs else None
    # What was seen before the first step is where the lines begin.
    first = [] if before is None else [{"epoch": 0, **before}]
    return {"status": "done", "reason": "", "epochs": [*first, *epochs]}


Line = tuple[str, Sequence[float], Sequence[float]]
"""Label, places on the axis, accuracies in percent."""


def draw_curves(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the panels of a record of curves as ``figure.png`` and ``figure.svg``."""
    axes = []
    for panel in record["panels"]:
        drawn: list[Line] = []
        for label, model, key in panel["lines"]:
            epochs = [e for e in record["curves"][model]["epochs"] if e.get(key) is not None]
            if epochs:
                places = [float(e["epoch"]) for e in epochs]
                drawn.append((label, places, [100 * e[key] for e in epochs]))
        axes.append((panel["title"], "epoch", drawn))
    return plot(axes, folder)


def draw_sweeps(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw each sweep of a record: what its networks end with, over the value that is varied."""
    axes = []
    for sweep in record["sweeps"]:
        drawn: list[Line] = []
        for label, key in record["sweep_figures"]:
            done = [p for p in sweep["points"] if p["figures"].get(key) is not None]
            if done:
                places = [float(p["place"]) for p in done]
                drawn.append((label, places, [100 * p["figures"][key] for p in done]))
        sizes = all(str(point["value"]).endswith("/255") for point in sweep["points"])
        axes.append(
            (sweep["name"], f"{sweep['label']}, in 255ths" * sizes or sweep["label"], drawn)
        )
    return plot(axes, folder)


def plot(axes: Sequence[tuple[str, str, Sequence[Line]]], folder: Path) -> list[str]:
    """Draw lines of accuracy.

    Args:
        axes: Title, what the axis says, and lines, of each pair of axes.
        folder: Where ``figure.png`` and ``figure.svg`` shall stand.

    Returns:
        Names of the files; none where no line has a point.

    Raises:
        MissingExtraError: matplotlib is not there.
    """
    if not any(len(places) for _, _, lines in axes for _, places, _ in lines):
        return []
    from unperturb.explain.canvas import new_figure, save_figure

    columns = min(len(axes), 2)
    rows = -(-len(axes) // columns)
    figure = new_figure(5.2 * columns, 3.6 * rows)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    one = len({tuple(name for name, _, _ in lines) for _, _, lines in axes}) == 1
    for place, (title, label, lines) in zip(grid, axes, strict=False):
        colors: dict[str, str] = {}
        for name, xs, ys in lines:
            # A line on held-out images has the color of the same line on training images.
            pair = name.replace("held-out", "").replace("training,", "").strip(" ,")
            color = colors.setdefault(pair, f"C{len(colors)}")
            place.plot(xs, ys, marker="o", markersize=3, linewidth=1.4, color=color,
                       linestyle="--" if "held-out" in name else "-", label=name)  # fmt: skip
        _axis(place, sorted({x for _, xs, _ in lines for x in xs}))
        place.set_title(title, fontsize=10)
        place.set_xlabel(label)
        place.set_ylabel("accuracy (%)")
        place.set_ylim(-2, 102)
        place.grid(True, linewidth=0.4, alpha=0.5)
        if lines and not one:
            place.legend(fontsize=8, frameon=False)
    if one:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", fontsize=8, frameon=False,
                      ncols=3)  # fmt: skip
    for place in grid[len(axes) :]:
        place.set_axis_off()
    names = ["figure.png", "figure.svg"]
    for name in names:
        save_figure(figure, folder / name)
    return names


def _axis(place: Any, values: Sequence[float]) -> None:
    """Ticks where the points are, if they are few, and at whole numbers if those are whole.

    The axis is logarithmic where they spread far.
    """
    if not values:
        return
    if values[0] > 0 and values[-1] / values[0] >= 8 and len(values) <= 8:
        place.set_xscale("log")
    if len(values) <= 10:
        place.set_xticks(values, [f"{value:g}" for value in values])
        place.set_xticks([], minor=True)
    elif all(float(value).is_integer() for value in values):
        place.locator_params(axis="x", integer=True)
