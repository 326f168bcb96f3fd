"""Recipes: every table and figure of a paper as one YAML file, and what runs it."""

from __future__ import annotations

from unperturb.recipes.library import list_recipes, load_recipe, recipe_names
from unperturb.recipes.record import read_record
from unperturb.recipes.render import render
from unperturb.recipes.run import render_again, reproduce
from unperturb.recipes.schema import KINDS, SCALES, Recipe

__all__ = [
    "KINDS",
    "SCALES",
    "Recipe",
    "list_recipes",
    "load_recipe",
    "read_record",
    "recipe_names",
    "render",
    "render_again",
    "reproduce",
]
