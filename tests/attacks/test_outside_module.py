"""The module that attacks of other libraries see, and the fence around them."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.attacks.outside import SurfaceModule, fenced
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys


class Noisy(Purifier):
    """Adds noise, at a scale that matters."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images + 0.2 * ctx.noise("noisy", images.shape[1:]), None)


def gradient(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    scores = module(leaf)
    F.cross_entropy(scores, labels, reduction="sum").backward()
    assert leaf.grad is not None
    return scores.detach(), leaf.grad


@pytest.mark.parametrize("rule", ["exact", "identity"])
def test_the_module_has_the_gradient_of_its_rule(
    conv: Any, pixels: Any, untouched: Any, rule: str
) -> None:
    net, images, labels = conv(smooth=True).double(), pixels(4).double(), torch.arange(4)
    defense = tpap(net, radius=0.05)
    leaf = images.clone().requires_grad_()
    wanted = defense.terms(leaf, backward=rule).scores
    loss = F.cross_entropy(wanted, labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, leaf)
    with untouched(net):
        module = SurfaceModule(Surface(defense, backward=rule), layout=torch.channels_last)
        scores, found = gradient(module, images, labels)
    torch.testing.assert_close(scores, wanted.detach())
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(module(images), scores)
    assert (module.calls, module.seen) == (2, 8)
    assert not list(module.parameters())
    assert not module.train().training


def test_the_undefended_gradient_comes_with_the_values_of_the_defense(
    conv: Any, pixels: Any
) -> None:
    net, images, labels = conv(smooth=True).double(), pixels(4).double(), torch.arange(4)
    defense = tpap(net, radius=0.05)
    scores, found = gradient(SurfaceModule(Surface(defense, backward="undefended")), images, labels)
    values = defense(images).detach()
    torch.testing.assert_close(scores, values)
    leaf = images.clone().requires_grad_()
    slope = torch.softmax(values, 1) - F.one_hot(labels, 5)
    (expected,) = torch.autograd.grad((net(leaf) * slope).sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_several_ways_back_from_one_forward_pass(conv: Any, pixels: Any) -> None:
    """As FAB goes: one call of ``backward`` for each class."""
    net, images = conv(), pixels(2)
    leaf = images.clone().requires_grad_()
    scores = SurfaceModule(Surface(net))(leaf)
    for column in (0, 3):
        leaf.grad = None
        scores[:, column].sum().backward(retain_graph=True)
        twin = images.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(net(twin)[:, column].sum(), twin)
        torch.testing.assert_close(leaf.grad, wanted)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_each_call_draws_afresh_and_repeatably(conv: Any, pixels: Any) -> None:
    defense, images = Defense(conv(), purifier=Noisy()), pixels(3)
    one, two = SurfaceModule(Surface(defense)), SurfaceModule(Surface(defense))
    first, second = one(images), one(images)
    assert not torch.equal(first, second)
    assert torch.equal(two(images), first)
    assert not torch.equal(SurfaceModule(Surface(defense), seed=1)(images), first)
    mean = SurfaceModule(Surface(defense), draws=4)
    keys = Keys.of(0, torch.arange(3), domain="outside").copies(4)
    wanted = defense(images.repeat_interleave(4, 0), keys=keys).view(3, 4, -1).mean(1)
    torch.testing.assert_close(mean(images), wanted.detach())
    assert mean.seen == 12


def test_the_fence_gives_back_what_a_library_takes() -> None:
    log = logging.getLogger("some library")
    drawn = []
    for _ in range(2):
        with fenced(3, "some library"):
            drawn.append((torch.rand(1), np.random.rand(), random.random()))  # noqa: NPY002
            assert log.disabled
    assert drawn[0] == drawn[1]
    with pytest.raises(RuntimeError), fenced(3, "some library"):
        torch.rand(2) @ torch.rand(3)
    assert not log.disabled
