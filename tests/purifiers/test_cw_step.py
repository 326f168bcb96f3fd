"""The C&W step: closed form, an independent implementation, and its derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.purifiers import CWStep

STRETCH = 1.1


def purify(purifier: CWStep, net: nn.Module, images: Tensor) -> Tensor:
    """What the classifier reads."""
    return purifier(images, ctx=Context(net, images)).reading


def margin(logits: Tensor, own: Tensor) -> Tensor:
    """Logit of a class less the greatest of the others, by sorting."""
    top = logits.sort(1, descending=True).values
    mine = logits[torch.arange(len(own)), own]
    return mine - torch.where(mine == top[:, 0], top[:, 1], top[:, 0])


def by_hand(
    net: nn.Module, images: Tensor, *, constant: float, confidence: float, steps: int, lr: float
) -> tuple[Tensor, Tensor]:
    """One image at a time with torch's Adam; and whether an iterate was answered otherwise."""
    found, met = [], []
    for image in images.split(1):
        own = net(image).argmax(1)
        w = torch.atanh((2 * image - 1) / STRETCH).requires_grad_()
        adam = torch.optim.Adam([w], lr=lr)
        best, least = None, float("inf")
        for number in range(steps):
            point = (STRETCH * torch.tanh(w) + 1) / 2
            m = margin(net(point), own)
            left = float(m.detach())
            far = float((point - image).detach().square().sum())
            if number and left < 0 and left <= -confidence and far < least:
                best, least = point.detach(), far
            loss = (point - image).square().sum() + constant * torch.relu(m + confidence).sum()
            (w.grad,) = torch.autograd.grad(loss, w)
            adam.step()
        last = (STRETCH * torch.tanh(w.detach()) + 1) / 2
        found.append(last if best is None else best)
        met.append(best is not None)
    return torch.cat(found), torch.tensor(met)


def test_one_step_on_a_linear_model(linear: Any, pixels: Any) -> None:
    """Adam's first step is its size times the sign of the slope, in the units of w."""
    net, images = linear(), pixels(20, 1, 4)
    weight = net[1].weight.detach()
    own = net(images).argmax(1)
    direction = (weight[1 - own] - weight[own]).sign().view(-1, 1, 4, 4)
    w = torch.atanh((2 * images - 1) / STRETCH) + 0.05 * direction
    found = purify(CWStep(steps=1, lr=0.05), net, images)
    torch.testing.assert_close(found, (STRETCH * torch.tanh(w) + 1) / 2)


@pytest.mark.parametrize(
    ("constant", "confidence", "steps", "lr"),
    [(0.2, 0.0, 12, 0.01), (1.0, 0.05, 10, 0.03)],
)
def test_against_an_optimizer(
    conv: Any, pixels: Any, constant: float, confidence: float, steps: int, lr: float
) -> None:
    net, images = conv(smooth=True).double(), pixels(24).double()
    settings: Any = {"constant": constant, "confidence": confidence, "steps": steps, "lr": lr}
    expected, met = by_hand(net, images, **settings)
    assert 0 < int(met.sum()) < 24, "choose settings by which some images cross and some do not"
    found = purify(CWStep(**settings), net, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    own, read = net(images).argmax(1), net(found)
    assert bool((read.argmax(1) != own)[met].all())
    assert bool((margin(read, own)[met] <= -confidence).all())


def test_pixels_at_the_edges_move_and_stay_in_the_range(conv: Any, pixels: Any) -> None:
    net = conv()
    images = pixels(8).round()
    assert set(images.unique().tolist()) == {0.0, 1.0}
    found = purify(CWStep(steps=6, lr=0.3), net, images)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float((found - images).abs().max()) > 0.01
    still = purify(CWStep(steps=1, lr=1e-9), net, images)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-6)


def test_exact_is_the_derivative_of_all_steps(conv: Any, pixels: Any) -> None:
    """Against central differences of the defended loss itself."""
    net, images = conv(smooth=True).double(), pixels(6).double()
    defense = Defense(net, purifier=CWStep(constant=1.0, steps=6, lr=0.03))
    labels = net(images).argmin(1)

    def loss(x: Tensor, rule: str = "exact") -> Tensor:
        return F.cross_entropy(defense.terms(x, backward=rule).scores, labels, reduction="none")

    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).double()
    h = 1e-6
    with torch.no_grad():
        expected = (loss(images + h * along) - loss(images - h * along)) / (2 * h)

    def slope(rule: str) -> Tensor:
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, rule).sum(), leaf)
        return (gradient * along).flatten(1).sum(1)

    torch.testing.assert_close(slope("exact"), expected, rtol=1e-4, atol=1e-6)
    assert float((slope("identity") - expected).abs().max()) > 0.01 * float(expected.abs().max())


def test_where_the_gradient_vanishes(linear: Any, pixels: Any) -> None:
    """Adam's root has no derivative at zero: nothing may become NaN there."""
    net, images = linear(scale=0.0).double(), pixels(3, 1, 4).double()
    net[1].bias.data += torch.tensor([1.0, 0.0]).double()
    leaf = images.clone().requires_grad_()
    terms = Defense(net, purifier=CWStep(steps=3)).terms(leaf)
    (gradient,) = torch.autograd.grad(terms.scores.sum(), leaf)
    assert not gradient.any()
    torch.testing.assert_close(purify(CWStep(steps=3), net, images), images)


def test_half_precision(conv: Any, pixels: Any) -> None:
    net, images = conv().bfloat16(), pixels(4).bfloat16()
    found = purify(CWStep(steps=3), net, images)
    assert found.dtype == torch.bfloat16
    assert bool(((found - images).abs().flatten(1).amax(1) > 0).all())
    assert float((found - images).abs().max()) < 0.05
