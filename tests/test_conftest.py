"""The guards must themselves be able to fail."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn


def _trace(*args: Any) -> None:
    return None


LEAKS: dict[str, Callable[[], Any]] = {
    "torch random state": lambda: torch.rand(1),
    "numpy random state": lambda: np.random.rand(),  # noqa: NPY002
    "python random state": lambda: random.random(),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(
        True,
        warn_only=True,
    ),
    "trace function": lambda: sys.settrace(_trace),
}


@pytest.mark.parametrize("what", LEAKS)
def test_the_guard_sees_a_leak(what: str, request: pytest.FixtureRequest) -> None:
    guard = request.config.pluginmanager.get_plugin(_conftest_name(request))
    rng, python_rng = torch.get_rng_state(), random.getstate()
    numpy_rng = np.random.get_state()  # noqa: NPY002
    before = guard.global_state()
    try:
        LEAKS[what]()
        found = guard.differences(before, guard.global_state())
    finally:
        sys.settrace(before["trace function"])
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.set_rng_state(rng)
        np.random.set_state(numpy_rng)  # noqa: NPY002
        random.setstate(python_rng)
    assert found == [what]


def _conftest_name(request: pytest.FixtureRequest) -> str:
    for name, plugin in request.config.pluginmanager.list_name_plugin():
        if hasattr(plugin, "global_state"):
            return name
    raise LookupError("conftest")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m[0].weight.data.add_(1), "values"),
        (lambda m: m.train(), "training"),
        (lambda m: m[0].weight.requires_grad_(False), "requires_grad"),
        (lambda m: m(torch.ones(1, 3, 8, 8)).sum().backward(), "grad"),
        (lambda m: m[0].register_forward_hook(lambda *a: None), "hooks"),
        (lambda m: setattr(m[0], "extra", 1), "attributes"),
    ],
)
def test_untouched_sees_a_change(
    change: Callable[[nn.Module], Any], word: str, conv: Any, untouched: Any
) -> None:
    def change_inside() -> None:
        with untouched(conv()) as net:
            change(net)

    with pytest.raises(AssertionError, match=word):
        change_inside()
