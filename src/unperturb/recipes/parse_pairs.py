"""Panels of curves and pairs of rows of a recipe, from YAML; gradients that its columns ask for."""

from __future__ import annotations

from collections.abc import Mapping

from unperturb.attacks.surface import UNDEFENDED
from unperturb.errors import ConfigError, unknown_name
from unperturb.recipes.blanks import blank_defense, goes_through
from unperturb.recipes.reading import Section
from unperturb.recipes.schema import Model, Pair, Panel, Recipe
from unperturb.recipes.schema_parts import Network

__all__ = ["check_pairs", "parse_pairs", "parse_panel"]


def parse_panel(
    name: str, part: Section, models: Mapping[str, Model], networks: Mapping[str, Network]
) -> Panel:
    """One pair of axes: each line is of a model or of a network."""
    lines, others = {}, {}
    for label, line in part.sections("lines").items():
        if "network" in line:
            others[label] = (line.choice("network", networks), line.text("figure"))
        else:
            lines[label] = (line.choice("model", models), line.text("figure"))
        line.end()
    part.end()
    return Panel(title=name, lines=lines, networks=others)


def parse_pairs(top: Section) -> tuple[Pair, ...]:
    """All pairs of rows; ``check_pairs`` looks whether there are such rows.

    Raises:
        ConfigError: One is no list of two names.
    """
    found = []
    given = top.any("pairs", {})
    for name in Section(given, f"{top.where}: pairs").rest():
        rows = given[name]
        if (
            not isinstance(rows, list)
            or len(rows) != 2
            or not all(isinstance(row, str) for row in rows)
        ):
            raise ConfigError(
                f"{top.where}: pairs: {name} is {rows!r}"[:300], expected="a list of two rows"
            )
        found.append(Pair(name=name, one=rows[0], other=rows[1]))
    return tuple(found)


def check_pairs(recipe: Recipe) -> None:
    """Refuse pairs of rows that are not there, and gradients that a defense does not have.

    Raises:
        SpecError: There is no such row or gradient.
        ConfigError: A row has no classifier, or the two are on other images.
    """
    for pair in recipe.pairs:
        where = f"{recipe.name}: pairs: {pair.name}"
        for name in (pair.one, pair.other):
            if name not in recipe.rows:
                raise unknown_name(f"row ({where})", name, recipe.rows)
        models = [recipe.rows[name].model for name in (pair.one, pair.other)]
        if None in models:
            raise ConfigError(f"{where} names a row that only quotes", expected="two rows of ours")
        if len({recipe.models[str(model)].dataset for model in models}) > 1:
            raise ConfigError(f"{where}: the rows are on other images", expected="one data set")
    asked = [name for column in recipe.columns.values() for name in column.gradients]
    if not asked:
        return
    # A row whose defense has none of a column's gradients is not run in it, which its cell says.
    known = {UNDEFENDED}
    for row in recipe.rows.values():
        if row.model is not None and row.defense is not None:
            through = goes_through(recipe, row.model)
            known.update(blank_defense(recipe, row.defense, through=through).backwards)
    for name in asked:
        if name not in known:
            raise unknown_name(f"gradient of these defenses ({recipe.name})", name, known)
