"""Sweeps: one model trained again for each value of one of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unperturb.recipes.models import Models, make_config
from unperturb.recipes.reading import number
from unperturb.recipes.schema import Model, Recipe, Row, Sweep
from unperturb.recipes.sources import NotRunError

__all__ = ["expand", "run_sweeps", "variant"]

FIGURES = {
    "training, clean": "train_clean",
    "training, FGSM at the training eps": "train_fgsm",
    "training, PGD-20": "train_pgd",
    "held-out, clean": "heldout_clean",
    "held-out, FGSM at the training eps": "heldout_fgsm",
    "held-out, PGD-20": "heldout_pgd",
}
"""Lines of the figure: words to the monitor's keys."""


def variant(recipe: Recipe, sweep: Sweep, value: Any) -> Model:
    """The swept model with one value of the setting in its last stage.

    Where that is the value it has anyway, it is the model itself, which is trained once.
    """
    model = recipe.models[sweep.model]
    if not model.stages:
        return model
    last = model.stages[-1]
    config = {**last.config, sweep.setting: value}
    where = f"sweep {sweep.name}"
    if make_config(config, where=where) == make_config(last.config, where=where):
        return model
    words = str(value).replace("/", "-")
    name = f"{model.name}-{sweep.setting.replace('_', '-')}-{words}"
    stages = (*model.stages[:-1], replace(last, config=config))
    return replace(model, name=name, title=f"{model.title}, {sweep.label} {value}", stages=stages)


def expand(recipe: Recipe) -> Recipe:
    """A recipe whose sweeps have become models, and rows where it has columns."""
    models, rows = dict(recipe.models), dict(recipe.rows)
    for sweep in recipe.sweeps:
        for value in sweep.values:
            model = variant(recipe, sweep, value)
            models[model.name] = model
            if recipe.columns:
                name = row_name(sweep, value)
                rows[name] = Row(name=name, model=model.name, defense=sweep.defense)
    return replace(recipe, models=models, rows=rows)


def row_name(sweep: Sweep, value: Any) -> str:
    """How a row of a sweep is headed."""
    return f"{sweep.label} {value}"


def run_sweeps(
    recipe: Recipe,
    models: Models,
    *,
    each: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Train every variant and collect what the monitor says of the epoch that is kept.

    Args:
        recipe: As ``expand`` returns it.
        models: Its classifiers.
        each: Called after every network.
    """
    found: dict[str, Any] = {
        "models": {},
        "sweeps": [],
        "sweep_figures": [list(line) for line in FIGURES.items()],
    }
    for sweep in recipe.sweeps:
        points: list[dict[str, Any]] = []
        found["sweeps"].append(
            {
                "name": sweep.name,
                "setting": sweep.setting,
                "label": sweep.label,
                "model": sweep.model,
                "points": points,
            }
        )
        for value in sweep.values:
            model = variant(recipe, sweep, value)
            point = {
                "value": value,
                "place": _place(sweep, value),
                "model": model.name,
                "row": row_name(sweep, value) if recipe.columns else None,
                "status": "done",
                "reason": "",
                "figures": {},
            }
            try:
                had = models.get(model.name)
                found["models"][model.name] = had.facts
                point["figures"] = dict(had.facts["monitor"] or {})
            except NotRunError as reason:
                point |= {"status": "not run", "reason": str(reason)}
            points.append(point)
            each(found)
    return found


def _place(sweep: Sweep, value: Any) -> float:
    """Place on the axis: sizes of pixels in 255ths, as their label says."""
    place = number(value, sweep.name)
    return place * 255 if isinstance(value, str) and value.endswith("/255") else place
