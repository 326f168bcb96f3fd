"""Parts that other packages register through entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from unperturb.errors import ConfigError

__all__ = ["load_plugin", "with_plugins"]

Part = TypeVar("Part")


def load_plugin(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        ConfigError: The package that registers it cannot be imported, or lacks it.
    """
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.dist.name if entry.dist is not None else entry.module
        raise ConfigError(
            f"The package {package!r} registers {entry.name!r} in {entry.group!r}, and "
            f"{entry.value!r} cannot be loaded: {error}",
            expected="an entry point that can be imported",
            fix=f"repair or uninstall {package}",
        ) from error


def with_plugins(group: str, own: Mapping[str, Part]) -> dict[str, Part]:
    """Our parts and those of other packages, under ``unperturb.GROUP``.

    Raises:
        ConfigError: A package registers a name that exists, or cannot be imported.
    """
    found = dict(own)
    for entry in entry_points(group=f"unperturb.{group}"):
        if entry.name in found:
            raise ConfigError(
                f"The entry point {entry.value!r} registers {entry.name!r} among the {group}, "
                "where that name exists",
                expected="a name of its own",
            )
        found[entry.name] = load_plugin(entry)
    return found
