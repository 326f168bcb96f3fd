"""Modules that a user's own code makes: ``package.module:callable``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unperturb.errors import SpecError

__all__ = ["HUBS", "build_callable", "is_code"]

HUBS = ("hf", "timm", "torchvision")


def is_code(arch: str) -> bool:
    """Whether an architecture is ``package.module:callable``, code of the user's own.

    Example:
        >>> is_code("mylib.nets:resnet"), is_code("hf:ViT"), is_code("cifar-resnet20")
        (True, False, False)
    """
    return ":" in arch and arch.partition(":")[0] not in HUBS


def build_callable(name: str, num_classes: int | None, options: Mapping[str, Any]) -> nn.Module:
    """Import ``package.module:callable`` and call it.

    The current folder can be imported from, as with ``python -m``. ``num_classes`` is passed if
    it is told. The CPU's random state is put back afterwards.

    Raises:
        SpecError: It cannot be imported, takes other arguments, or returns no module.
    """
    make = _import(name)
    kwargs = dict(options)
    if num_classes is not None and _takes(make, "num_classes"):
        kwargs["num_classes"] = num_classes
    with torch.random.fork_rng(devices=[]):
        try:
            module = make(**kwargs)
        except TypeError as error:
            raise SpecError(
                f"{name!r} cannot be called: {error}",
                expected="a callable that takes no arguments, or num_classes",
                fix="write a function that builds the module",
            ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"{name!r} returns a {type(module).__name__}",
            expected="a torch.nn.Module from images to logits",
        )
    return module


def _takes(make: Callable[..., object], name: str) -> bool:
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _import(name: str) -> Callable[..., object]:
    package, _, path = name.partition(":")
    here, added = str(Path.cwd()), False
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
        added = True
    try:
        found: Any = importlib.import_module(package)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(
            f"{name!r} cannot be imported: {error}",
            expected="package.module:callable, importable from the current folder",
            fix="check the spelling, and run from the folder that holds the package",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise SpecError(
            f"{name!r} is a {type(found).__name__}", expected="a class or function to call"
        )
    return found  # type: ignore[no-any-return]
