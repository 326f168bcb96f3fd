"""Finding recipes: those that come with the package, and files of the user's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from unperturb.errors import unknown_name
from unperturb.recipes.parse import parse_recipe
from unperturb.recipes.reading import Section, overlay, read_yaml
from unperturb.recipes.schema import SCALES, Recipe

__all__ = ["list_recipes", "load_recipe", "recipe_names"]

HOME = Path(__file__).parent
SHARED = "models.yaml"
_SHARED = (
    "datasets", "models", "banks", "bank_settings", "fits", "fit_settings", "networks",
    "thresholds", "threshold_settings", "defenses",
)  # fmt: skip


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as ``tpap/table-2``.

    Example:
        >>> "tpap/table-2" in recipe_names()
        True
    """
    return sorted(
        f"{path.parent.name}/{path.stem}" for path in HOME.glob("*/*.yaml") if path.name != SHARED
    )


def load_recipe(name: str | Path, *, scale: str = "cpu") -> Recipe:
    """Read a recipe at a scale.

    Beside it, ``models.yaml`` holds the data sets, models, banks, fits, networks, thresholds and
    defenses that all recipes of a paper share.

    Args:
        name: A name of ``recipe_names``, or the path of a YAML file.
        scale: ``smoke``, ``cpu``, ``gpu`` or ``paper``.

    Raises:
        SpecError: There is no such recipe or scale, or the file has an unknown key or name.
        ConfigError: The file is no YAML, or a value is of another kind.

    Example:
        >>> load_recipe("tpap/table-6", scale="smoke").kind
        'table'
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    path = _find(str(name))
    body = _read(path, scale)
    shared = path.parent / SHARED
    if shared.is_file():
        common = _read(shared, scale)
        part = Section(common, SHARED)
        below = {key: part.any(key, {}) for key in _SHARED if key in common}
        part.known(_SHARED)
        part.end()
        body = {**body, **overlay(below, {key: body.get(key, {}) for key in below})}
    return parse_recipe(_name(path), body, scale)


def list_recipes() -> list[dict[str, Any]]:
    """What there is: name, title, kind, paper's item and the cost at each scale.

    Example:
        >>> next(r["item"] for r in list_recipes() if r["name"] == "tpap/table-2")
        'Table 2'
    """
    found = []
    for name in recipe_names():
        recipes = {scale: load_recipe(name, scale=scale) for scale in SCALES}
        one = recipes["cpu"]
        found.append(
            {
                "name": name,
                "title": one.title,
                "kind": one.kind,
                "item": one.paper.item,
                "data": one.datasets[one.data].title,
                "scales": {scale: recipe.cost for scale, recipe in recipes.items()},
            }
        )
    return found


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return HOME / f"{name}.yaml"


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}" if HOME in path.parents else path.stem


@lru_cache(maxsize=32)
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    """A file as it stands; reading the shared models takes longer than all else."""
    return read_yaml(path)


def _read(path: Path, scale: str) -> dict[str, Any]:
    """The settings of a file at a scale."""
    body = dict(_parsed(path, path.stat().st_mtime_ns if path.is_file() else 0))
    scales = Section(body.pop("scales", None) or {}, f"{path.name}: scales")
    parts = {known: scales.any(known, {}) for known in SCALES}
    scales.end()
    chosen = parts[scale]
    Section(chosen, f"{path.name}: scales: {scale}")
    return overlay(body, chosen)
