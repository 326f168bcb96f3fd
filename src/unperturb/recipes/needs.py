"""What a recipe needs: which of the models, networks, banks and fits that its file names."""

from __future__ import annotations

from collections.abc import Mapping

from unperturb.recipes.schema import Recipe
from unperturb.recipes.sweeps import variant

__all__ = [
    "named_in",
    "needed",
    "needed_banks",
    "needed_fits",
    "needed_networks",
    "needed_thresholds",
    "subjects",
]


def subjects(recipe: Recipe) -> list[tuple[str, str | None]]:
    """Models with the defense around them that a recipe audits or draws."""
    found = [
        (row.model, row.defense)
        for row in recipe.rows.values()
        if row.model is not None and recipe.ours(row)
    ]
    found += recipe.figure.get("subjects", {}).values()
    found += [
        (variant(recipe, s, value).name, s.defense) for s in recipe.sweeps for value in s.values
    ]
    if recipe.changes is not None:
        found += [(one.model, one.defense) for one in recipe.changes.subjects.values()]
    return list(dict.fromkeys(found))


def named_in(recipe: Recipe, defense: str | None, kind: str) -> list[str]:
    """What the options of a defense name.

    Args:
        recipe: The recipe.
        defense: One of its defenses; None: nothing.
        kind: ``fit``, ``network`` or ``threshold``.
    """
    if defense is None:
        return []
    options = recipe.defenses[defense][1].values()
    return [value[kind] for value in options if isinstance(value, Mapping) and kind in value]


def needed_fits(recipe: Recipe) -> list[str]:
    """Correctors of the rows' defenses and of the explanation's subjects."""
    named = [fit for _, defense in subjects(recipe) for fit in named_in(recipe, defense, "fit")]
    if recipe.explanation is not None:
        named += [subject.fit for subject in recipe.explanation.subjects.values() if subject.fit]
    return list(dict.fromkeys(named))


def needed_banks(recipe: Recipe) -> list[str]:
    """Banks that the correctors are fitted on, and those that they are explained on."""
    named = [recipe.fits[name].bank for name in needed_fits(recipe)]
    if recipe.explanation is not None:
        named += [subject.bank for subject in recipe.explanation.subjects.values()]
    return list(dict.fromkeys(named))


def needed_thresholds(recipe: Recipe) -> list[tuple[str, str]]:
    """Thresholds of the defenses, each with the model that it is fitted for."""
    return [
        (name, model)
        for model, defense in subjects(recipe)
        for name in named_in(recipe, defense, "threshold")
    ]


def needed_networks(recipe: Recipe) -> list[str]:
    """Networks of a recipe, those that others start from before them."""
    return [name for kind, name in _walk(recipe) if kind == "network"]


def needed(recipe: Recipe) -> list[str]:
    """Models of a recipe, those that others start from before them."""
    return [name for kind, name in _walk(recipe) if kind == "model"]


def _walk(recipe: Recipe) -> list[tuple[str, str]]:
    """Models and networks, each after those that it needs."""
    pairs = subjects(recipe)
    named = [model for model, _ in pairs]
    named += [model for panel in recipe.panels for model, _ in panel.lines.values()]
    named += [recipe.banks[name].model for name in needed_banks(recipe)]
    named += _references(recipe, named)
    found: dict[tuple[str, str], None] = {}

    def add(kind: str, name: str) -> None:
        if (kind, name) in found:
            return
        if kind == "network":
            network = recipe.networks[name]
            before = [("model", network.model), ("network", network.start)]
        else:
            stages = recipe.models[name].stages
            before = [("model", stage.start) for stage in stages]
            before += [("network", stage.through) for stage in stages]
        for other, its in before:
            if its is not None:
                add(other, its)
        found[kind, name] = None

    for name in named:
        add("model", name)
    for _, defense in pairs:
        for name in named_in(recipe, defense, "network"):
            add("network", name)
    for panel in recipe.panels:
        for network, _ in panel.networks.values():
            add("network", network)
    return list(found)


def _references(recipe: Recipe, named: list[str]) -> list[str]:
    """Models that choose the selected images of these models' data sets."""
    selected = any(column.selected for column in recipe.columns.values())
    chosen = [recipe.banks[name] for name in needed_banks(recipe)]
    models = [bank.model for bank in chosen if bank.part == "selected"]
    models += named if selected else []
    datasets = [recipe.datasets[recipe.models[name].dataset] for name in models]
    return [dataset.select.model for dataset in datasets if dataset.select is not None]
