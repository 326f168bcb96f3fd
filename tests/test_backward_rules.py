"""Gradients through a defense, under every backward rule it declares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from small_stages import Asking, Branching, Halves, OnLogits, by_hand
from unperturb.classifiers import as_classifier
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep

# --- TPAP -------------------------------------------------------------------------------


def _input_gradient(defense: Defense, images: Tensor, backward: str) -> Tensor:
    x = images.clone().requires_grad_()
    scores = defense.terms(x, backward=backward).scores
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), x)
    return gradient


def test_exact_and_identity_agree_but_at_clipped_pixels(conv: Any) -> None:
    net = conv().double()
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(10, 3, 8, 8, generator=generator, dtype=torch.float64)
    defense = tpap(net, radius=0.1)
    exact = _input_gradient(defense, images, "exact")
    identity = _input_gradient(defense, images, "identity")
    step = by_hand(net, images, 0.1, clip=False)
    clipped = (step < 0) | (step > 1)
    assert 0.02 < float(clipped.double().mean()) < 0.5
    torch.testing.assert_close(exact[~clipped], identity[~clipped])
    assert not exact[clipped].any()
    assert float((identity[clipped] != 0).double().mean()) > 0.9
    # Without the clipping there is no difference.
    free = tpap(net, radius=0.1, clip=False)
    torch.testing.assert_close(
        _input_gradient(free, images, "exact"), _input_gradient(free, images, "identity")
    )


def test_identity_is_the_gradient_at_the_purified_image(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(5).double()
    point = by_hand(net, images, 0.1).requires_grad_()
    scores = net(point)
    (wanted,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), point)
    torch.testing.assert_close(_input_gradient(tpap(net, radius=0.1), images, "identity"), wanted)


def test_smoothed_sign_against_finite_differences(conv: Any, pixels: Any) -> None:
    """v + radius * H (tanh'(g / s) / s * v), with the Hessian product by differences of g."""
    net, images = conv(smooth=True).double(), pixels(4).double()
    radius = 0.05
    predicted = net(images).argmax(1)

    def loss_gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = F.cross_entropy(net(x), predicted, reduction="sum")
        return torch.autograd.grad(value, x)[0]

    g = loss_gradient(images)
    scale = g.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    point = by_hand(net, images, radius).requires_grad_()
    scores = net(point)
    (v,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), point)
    w = (1 - torch.tanh(g / scale) ** 2) / scale * v
    h = 1e-5 / float(w.abs().max())
    product = (loss_gradient(images + h * w) - loss_gradient(images - h * w)) / (2 * h)
    defense = tpap(net, radius=radius)
    found = _input_gradient(defense, images, "smoothed-sign")
    torch.testing.assert_close(found, v + radius * product, rtol=1e-4, atol=1e-8)
    exact = _input_gradient(defense, images, "exact")
    assert bool(torch.isfinite(found).all())
    assert float((found - exact).norm() / exact.norm()) > 0.01


def test_smoothed_sign_does_not_change_the_answer(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(5)
    x = images.clone().requires_grad_()
    torch.testing.assert_close(
        tpap(net).terms(x, backward="smoothed-sign").scores, tpap(net)(images)
    )


def test_smoothed_sign_where_the_gradient_vanishes(linear: Any, pixels: Any) -> None:
    net = linear(scale=0.0)
    defense = tpap(as_classifier(net, num_classes=2))
    assert not _input_gradient(defense, pixels(3, 1, 4), "smoothed-sign").any()


# --- other stages -----------------------------------------------------------------------


@pytest.mark.parametrize("backward", ["exact", "identity"])
def test_a_purifier_that_asks_first_takes_no_gradient_away(
    conv: Any, pixels: Any, counted: Any, backward: str
) -> None:
    net, images = counted(conv(smooth=True).double()), pixels(4).double()
    defense = Defense(net, purifier=Asking(), decision=Branching())
    x = images.clone().requires_grad_()
    net.calls.clear()
    run = defense.terms(x, backward=backward)
    assert net.calls == [4, 4]
    (found,) = torch.autograd.grad((run.branches["difference"] + run.scores)[:, 0].sum(), x)
    (before,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, before)


@pytest.mark.parametrize("backward", ["exact", "identity", "smoothed-sign"])
def test_the_logits_before_keep_their_gradient(conv: Any, pixels: Any, backward: str) -> None:
    net, images = conv(smooth=True).double(), pixels(4).double()
    defense = Defense(net, purifier=FGSMStep(radius=0.05), decision=Branching())

    x = images.clone().requires_grad_()
    run = defense.terms(x, backward=backward)
    (found,) = torch.autograd.grad(run.branches["difference"][:, 0].sum(), x)
    (after,) = torch.autograd.grad(
        tpap(net, radius=0.05).terms(x, backward=backward).scores[:, 0].sum(), x
    )
    (before,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, before - after)
    assert float(before.abs().max()) > 1e-3


def test_identity_keeps_the_gradient_of_a_reference(linear: Any, pixels: Any) -> None:
    net = linear(side=4).double()
    classifier = as_classifier(net, num_classes=2, input_shape=(1, 4, 4))
    defense = Defense(classifier, purifier=Halves(), decision=OnLogits())
    images = pixels(3, 1, 4).double()
    weight = net[1].weight.detach()[1].view(1, 1, 4, 4)
    for backward, factor in (("exact", 0.25), ("identity", 1.0)):
        x = images.clone().requires_grad_()
        scores = defense.terms(x, backward=backward).scores
        torch.testing.assert_close(scores, net(images / 4).flip(1))
        (found,) = torch.autograd.grad(scores[:, 0].sum(), x)
        torch.testing.assert_close(found, (factor * weight).expand_as(found))
