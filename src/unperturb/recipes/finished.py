"""Whether a finished training run in a folder of models is the one that a recipe describes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from unperturb.errors import RecordError

__all__ = ["changed_settings", "refuse", "settings_of"]

Settings = TypeVar("Settings")


def settings_of(
    path: Path, read: Callable[[dict[str, Any]], Settings]
) -> tuple[dict[str, Any], Settings, str]:
    """Record of a finished run, its settings, and the fingerprint of its images.

    Args:
        path: The record.
        read: Makes settings of what the record says of them.

    Raises:
        RecordError: It cannot be read, or lacks something.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return card, read(card["config"]), card["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is damaged: {error}",
            expected="the record of a finished training run",
            fix="delete that folder and run the same command again",
        ) from error


def changed_settings(theirs: Any, ours: Any) -> list[str]:
    """What differs between the settings of two runs, in words."""
    return [
        f"{field.name}: {getattr(theirs, field.name)} there, {getattr(ours, field.name)} here"
        for field in fields(ours)
        if getattr(theirs, field.name) != getattr(ours, field.name)
    ]


def refuse(folder: Path, changed: Sequence[str]) -> None:
    """Refuse a run that differs from what the recipe describes.

    Raises:
        RecordError: Something differs.
    """
    if changed:
        raise RecordError(
            f"{folder} holds another training run ({'; '.join(changed[:5])})",
            expected="the run that this recipe describes",
            fix="choose another --models-dir, or delete that folder",
        )
