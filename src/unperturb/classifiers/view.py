"""A module in eval mode that shares every tensor with the user's, whose flags stay as they are."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from unperturb.errors import SpecError

__all__ = ["eval_view"]


def eval_view(module: nn.Module) -> nn.Module:
    """The module itself if all of it is in eval mode, else a structural copy that is.

    The copy owns its mode flags and its list of children, and shares parameters, buffers and
    hooks (the very dicts), so that it follows later training, loading and moving of the
    original. A submodule that is used twice stays one. A compiled module is unwrapped, because
    its compiled code is bound to the original's flags.

    Args:
        module: Any module.

    Raises:
        SpecError: A TorchScript module in training mode, which cannot be copied this way.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> view = eval_view(net)
        >>> net.training, view.training, view[0].weight is net[0].weight
        (True, False, True)
    """
    if not any(part.training for part in module.modules()):
        return module
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise SpecError(
            "A TorchScript module is in training mode",
            expected="eval mode: its flags cannot be held apart from the user's",
            fix="call .eval() on it first",
        )
    memo: dict[int, Any] = {}
    return _copy(module, memo)


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module):
        return _copy(original, memo)
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    twin = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__["training"] = False
    twin.__dict__["_modules"] = {
        name: None if child is None else _copy(child, memo)
        for name, child in module._modules.items()
    }
    for name, value in module.__dict__.items():
        if name not in ("_modules", "_parameters", "_buffers", "training"):
            twin.__dict__[name] = _follow(value, memo)
    return twin


def _follow(value: Any, memo: dict[int, Any]) -> Any:
    """Lead plain attributes that hold modules, and methods bound to them, to their twins."""
    if isinstance(value, nn.Module):
        return _copy(value, memo)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _copy(value.__self__, memo))
    if type(value) in (list, tuple) and any(isinstance(item, nn.Module) for item in value):
        return type(value)(_follow(item, memo) for item in value)
    if type(value) is dict and any(isinstance(item, nn.Module) for item in value.values()):
        return {key: _follow(item, memo) for key, item in value.items()}
    return value
