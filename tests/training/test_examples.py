"""Examples to train on: what holds for all of them, whatever makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.hand_written import COUNT, EPS, STEPS, draw
from unperturb.training.examples import (
    cw_examples,
    evaluating,
    fgsm_examples,
    friendly_examples,
    kl_examples,
    pgd_examples,
    pgd_survivals,
    stadv_examples,
)

Make = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _survivals(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return pgd_survivals(net, images, labels, EPS, **STEPS, generator=draw())[0]


MAKERS: dict[str, Make] = {
    "fgsm": lambda f, x, y: fgsm_examples(f, x, y, EPS),
    "pgd": lambda f, x, y: pgd_examples(f, x, y, EPS, **STEPS, generator=draw()),
    "kl": lambda f, x, y: kl_examples(f, x, EPS, **STEPS, generator=draw()),
    "friendly": lambda f, x, y: friendly_examples(
        f, x, y, EPS, **STEPS, tau=1, generator=draw()
    ),
    "survivals": _survivals,
    "cw": lambda f, x, y: cw_examples(f, x, y, steps=3),
    "stadv": lambda f, x, y: stadv_examples(f, x, y, flow=0.1, **STEPS, generator=draw()),
}  # fmt: skip
BOUNDED = ("fgsm", "pgd", "kl", "friendly", "survivals")


@pytest.mark.parametrize("name", MAKERS)
def test_examples_leave_the_network_as_it_was(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, untouched: Any
) -> None:
    # A mixture of modes, gradients that are there already, and a parameter that asks for none.
    net.train()
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[3].weight.requires_grad_(False)
    before = images.clone(), labels.clone()
    with untouched(net):
        found = MAKERS[name](net, images, labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert not found.requires_grad
    assert found.grad_fn is None
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0


@pytest.mark.parametrize("name", MAKERS)
def test_examples_are_those_of_the_network_in_eval_mode(
    name: str, net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    expected = MAKERS[name](net.eval(), images, labels)
    assert torch.equal(MAKERS[name](net.train(), images, labels), expected)


# Of the others the starts are drawn for the whole batch.
@pytest.mark.parametrize("name", ["fgsm", "cw"])
def test_examples_of_an_image_do_not_hang_on_its_batch(
    name: str, net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    whole = MAKERS[name](net, images, labels)
    alone = torch.cat(
        [MAKERS[name](net, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
    )
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("fgsm", "cw")])
def test_starts_are_drawn_from_the_generator_alone(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MAKERS[name](net, images, labels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        assert torch.equal(MAKERS[name](net, images, labels), first)
    monkeypatch.setitem(globals(), "draw", lambda: np.random.default_rng(4))
    assert not torch.equal(MAKERS[name](net, images, labels), first)


@pytest.mark.parametrize("name", MAKERS)
def test_examples_work_where_gradients_are_off_and_under_autocast(
    name: str, net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    expected = MAKERS[name](net, images, labels)
    with torch.no_grad():
        assert torch.equal(MAKERS[name](net, images, labels), expected)
        assert not torch.is_grad_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = MAKERS[name](net, images, labels)
    assert half.dtype == torch.float32, "images stay exact: only the network is in half precision"
    assert bool(torch.isfinite(half).all())
    if name in BOUNDED:
        assert float((half - images).abs().max()) <= EPS + 1e-6
    # Half precision rounds some signs of small gradients to the other side; the attack stays one.
    with torch.no_grad():
        losses = [
            F.cross_entropy(net(x), labels, reduction="none").median()
            for x in (images, half, expected)
        ]
    assert losses[1] - losses[0] > 0.7 * (losses[2] - losses[0]) > 0


@pytest.mark.parametrize("name", BOUNDED)
def test_examples_stay_in_the_ball_and_in_the_range(
    name: str, net: nn.Module, labels: Tensor, images: Tensor
) -> None:
    # Of black and white images too, where the range cuts the ball.
    images = images.clone()
    images[:4], images[4:8] = 0.0, 1.0
    found = MAKERS[name](net, images, labels)
    assert float((found - images).abs().max()) <= EPS + 1e-6
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    assert bool(((found - images).abs().flatten(1).amax(1) > 0.5 * EPS).all())


# -- modes --------------------------------------------------------------------------------------


def test_evaluating_is_undone_by_an_error_in_the_attack(net: nn.Module, images: Tensor) -> None:
    net.train()
    net[4].eval()
    flags = [module.training for module in net.modules()]
    with pytest.raises(IndexError):
        fgsm_examples(net, images, torch.full((COUNT,), 7), EPS)
    assert [module.training for module in net.modules()] == flags
    with evaluating(net):
        assert not any(module.training for module in net.modules())
