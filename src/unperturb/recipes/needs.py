"""What a recipe needs: which of the models, banks and correctors that its file names."""

from __future__ import annotations

from unperturb.recipes.parse_fits import fit_of
from unperturb.recipes.schema import Recipe
from unperturb.recipes.sweeps import variant

__all__ = ["needed", "needed_banks", "needed_fits"]


def needed_fits(recipe: Recipe) -> list[str]:
    """Correctors of the rows' defenses and of the explanation's subjects."""
    defenses = [row.defense for row in recipe.rows.values() if row.model is not None]
    named = [fit_of(recipe.defenses[name][1]) for name in defenses if name is not None]
    if recipe.explanation is not None:
        named += [subject.fit for subject in recipe.explanation.subjects.values()]
    return list(dict.fromkeys(name for name in named if name is not None))


def needed_banks(recipe: Recipe) -> list[str]:
    """Banks that the correctors are fitted on, and those that they are explained on."""
    named = [recipe.fits[name].bank for name in needed_fits(recipe)]
    if recipe.explanation is not None:
        named += [subject.bank for subject in recipe.explanation.subjects.values()]
    return list(dict.fromkeys(named))


def needed(recipe: Recipe) -> list[str]:
    """Models of a recipe, those that others start from before them."""
    named = [row.model for row in recipe.rows.values() if row.model is not None]
    named += [model for panel in recipe.panels for model, _ in panel.lines.values()]
    named += [model for model, _ in recipe.figure.get("subjects", {}).values()]
    named += [variant(recipe, s, value).name for s in recipe.sweeps for value in s.values]
    named += [recipe.banks[name].model for name in needed_banks(recipe)]
    named += _references(recipe, named)
    found: dict[str, None] = {}

    def add(name: str) -> None:
        for stage in recipe.models[name].stages:
            if stage.start is not None and stage.start not in found:
                add(stage.start)
        found[name] = None

    for name in named:
        add(name)
    return list(found)


def _references(recipe: Recipe, named: list[str]) -> list[str]:
    """Models that choose the selected images of these models' data sets."""
    selected = any(column.selected for column in recipe.columns.values())
    chosen = [recipe.banks[name] for name in needed_banks(recipe)]
    models = [bank.model for bank in chosen if bank.part == "selected"]
    models += named if selected else []
    datasets = [recipe.datasets[recipe.models[name].dataset] for name in models]
    return [dataset.select.model for dataset in datasets if dataset.select is not None]
