"""The PGD step: closed form, an independent implementation, and its derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.purifiers import FGSMStep, PGDStep


def purify(purifier: PGDStep | FGSMStep, net: nn.Module, images: Tensor) -> Tensor:
    """What the classifier reads."""
    return purifier(images, ctx=Context(net, images)).reading


def gradient_of(purifier: PGDStep | FGSMStep, net: nn.Module, images: Tensor, rule: str) -> Tensor:
    """Gradient of a loss of the defended scores by a rule."""
    leaf = images.clone().requires_grad_()
    scores = Defense(net, purifier=purifier).terms(leaf, backward=rule).scores
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), leaf)
    return gradient


@pytest.fixture
def edgy(pixels: Any) -> Tensor:
    """Images with pixels at 0, at 1 and near them."""
    return ((pixels(6) - 0.5) * 4 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("steps", "reach"), [(2, 0.5), (4, 1.0), (10, 1.0)])
def test_closed_form_on_a_linear_model(linear: Any, pixels: Any, steps: int, reach: float) -> None:
    """The direction is sign(w_other - w_own), and stays so beyond the boundary."""
    net, images = linear(), pixels(20, 1, 4)
    weight = net[1].weight.detach()
    own = net(images).argmax(1)
    direction = (weight[1 - own] - weight[own]).sign().view(-1, 1, 4, 4)
    found = purify(PGDStep(radius=0.1, steps=steps), net, images)
    torch.testing.assert_close(found, images + 0.1 * reach * direction)
    crossed = net(images + 0.025 * direction).argmax(1) != own
    assert bool(crossed.any()), "no image crosses the boundary before the last step"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("clip", [True, False])
def test_one_whole_step_is_fgsm_step(conv: Any, edgy: Tensor, clip: bool, dtype: Any) -> None:
    net, images = conv(smooth=True).to(dtype), edgy.to(dtype)
    one = purify(PGDStep(radius=0.03, steps=1, step_size=1, clip=clip), net, images)
    fgsm = purify(FGSMStep(radius=0.03, clip=clip), net, images)
    assert one.dtype == dtype
    assert torch.equal(one, fgsm)
    assert bool(((fgsm < 0) | (fgsm > 1)).any()) is not clip


def test_against_foolbox(conv: Any, edgy: Tensor) -> None:
    foolbox = pytest.importorskip("foolbox")
    net = conv(smooth=True)
    theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(
        rel_stepsize=0.25, steps=10, random_start=False
    )
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    own = net(edgy).argmax(1)
    expected = theirs.run(model, edgy, foolbox.criteria.Misclassification(own), epsilon=0.05)
    found = purify(PGDStep(radius=0.05), net, edgy)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    one = purify(FGSMStep(radius=0.05), net, edgy)
    assert float((found - one).abs().max()) > 0.01, "ten steps are one: the net is too easy"


@pytest.mark.parametrize("step_size", [0.25, 2.0])
def test_it_stays_in_the_ball_and_in_the_range(conv: Any, edgy: Tensor, step_size: float) -> None:
    found = purify(PGDStep(radius=0.05, steps=5, step_size=step_size), conv(), edgy)
    assert float((found - edgy).abs().max()) <= 0.05 + 1e-7
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    free = purify(PGDStep(radius=0.05, steps=5, step_size=step_size, clip=False), conv(), edgy)
    assert bool(((free < 0) | (free > 1)).any())
    assert float((free - edgy).abs().max()) <= 0.05 + 1e-7


def test_exact_is_identity_but_for_the_clipping(linear: Any, pixels: Any) -> None:
    """On a linear model no pixel turns back, so that what is clipped once stays clipped."""
    net = linear().double()
    images = ((pixels(6, 1, 4).double() - 0.5) * 4 + 0.5).clamp(0, 1)
    purifier = PGDStep(radius=0.05, steps=4)
    reading = purify(purifier, net, images)
    free = (reading > 0) & (reading < 1)
    assert bool(free.any())
    assert not bool(free.all())
    exact = gradient_of(purifier, net, images, "exact")
    identity = gradient_of(purifier, net, images, "identity")
    torch.testing.assert_close(exact, identity * free)
    assert bool((identity != 0).all())


@pytest.mark.parametrize("clip", [True, False])
def test_one_smoothed_step_is_that_of_fgsm_step(conv: Any, edgy: Tensor, clip: bool) -> None:
    net, images = conv(smooth=True).double(), edgy.double()
    one = PGDStep(radius=0.03, steps=1, step_size=1, clip=clip)
    found = gradient_of(one, net, images, "smoothed-sign")
    expected = gradient_of(FGSMStep(radius=0.03, clip=clip), net, images, "smoothed-sign")
    torch.testing.assert_close(found, expected)
    assert float((found - gradient_of(one, net, images, "exact")).abs().max()) > 1e-6


@pytest.mark.parametrize("size", [0.15, 0.3])
def test_smoothed_steps_against_plain_autograd(conv: Any, pixels: Any, size: float) -> None:
    """One graph over all steps, with the sign's value and the derivative of tanh."""
    net, images = conv(smooth=True).double(), pixels(4).double()
    radius, steps = 0.05, 5
    x = images.clone().requires_grad_()
    own = net(x).argmax(1)
    point = x
    for _ in range(steps):
        loss = F.cross_entropy(net(point), own, reduction="sum")
        (g,) = torch.autograd.grad(loss, point, create_graph=True)
        scale = g.detach().abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        soft = torch.tanh(g / scale)
        moved = point + size * radius * (g.sign().detach() + soft - soft.detach())
        point = torch.minimum(torch.maximum(moved, x - radius), x + radius)
    scores = net(point)
    (expected,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), x)
    purifier = PGDStep(radius=radius, steps=steps, step_size=size)
    found = gradient_of(purifier, net, images, "smoothed-sign")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(purify(purifier, net, images), point.detach())
    exact = gradient_of(purifier, net, images, "exact")
    # Larger steps end on the face of the ball, where the projection leaves little of it.
    assert float((found - exact).norm() / exact.norm()) > (0.01 if size < 0.2 else 1e-5)


def test_where_the_gradient_vanishes(linear: Any, pixels: Any) -> None:
    net, images = linear(scale=0.0).double(), pixels(3, 1, 4).double()
    assert torch.equal(purify(PGDStep(), net, images), images)
    assert not gradient_of(PGDStep(), net, images, "smoothed-sign").any()
