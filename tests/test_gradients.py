"""Cheap input gradients: values to the last bit, gradients up to rounding, nothing touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.classifiers import as_classifier
from unperturb.defense import Defense
from unperturb.gradients import InputGradients
from unperturb.presets import tpap
from unperturb.randomness import Keys
from unperturb.threat import Linf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def gradient(net: nn.Module, images: Tensor, *, create_graph: bool = False) -> Tensor:
    leaf = images.detach().requires_grad_()
    value = F.cross_entropy(net(leaf), torch.arange(len(images)) % 5, reduction="sum")
    (found,) = torch.autograd.grad(value, leaf, create_graph=create_graph)
    if not create_graph:
        return found
    (second,) = torch.autograd.grad(found.square().sum(), leaf)
    return second


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("second", [False, True])
def test_gradients_are_autograds_own(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor], layout: Any, second: bool
) -> None:
    """First and second derivatives, against PyTorch's batch norm in double precision."""
    net = conv(smooth=True).double()
    images = pixels(6).double().contiguous(memory_format=layout)
    wanted = gradient(net, images, create_graph=second)
    with InputGradients():
        found = gradient(net, images, create_graph=second)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert float(wanted.abs().max()) > 1e-6


def test_values_are_equal_to_the_last_bit(
    conv: Callable[..., nn.Module],
    pixels: Callable[..., Tensor],
    untouched: Callable[[nn.Module], Any],
) -> None:
    net, images = conv(), pixels(6).requires_grad_()
    with untouched(net):
        with InputGradients():
            found = net(images)
            gradient(net, images)
        assert torch.equal(found, net(images))


@pytest.mark.parametrize("affine", [False, True])
def test_each_form_of_batch_norm(affine: bool) -> None:
    for norm, shape in (
        (nn.BatchNorm1d(3, affine=affine), (4, 3)),
        (nn.BatchNorm1d(3, affine=affine), (4, 3, 5)),
        (nn.BatchNorm3d(3, affine=affine), (4, 3, 2, 2, 2)),
    ):
        norm.eval()
        norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0]))  # type: ignore[union-attr,operator]
        if affine:
            nn.init.constant_(norm.weight, -3.0)
        images = random(*shape).requires_grad_()
        weights = random(*shape, seed=1)
        (wanted,) = torch.autograd.grad((norm(images) * weights).sum(), images)
        with InputGradients():
            (found,) = torch.autograd.grad((norm(images) * weights).sum(), images)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision() -> None:
    norm = nn.BatchNorm2d(3).eval().bfloat16()
    images = random(4, 3, 5, 5).bfloat16().requires_grad_()
    with InputGradients():
        (found,) = torch.autograd.grad(norm(images).square().sum(), images)
    (wanted,) = torch.autograd.grad(norm(images).square().sum(), images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)


def test_statistics_of_the_batch_are_left_to_pytorch() -> None:
    """Statistics of the batch itself have gradients: in training mode, or where none are kept."""
    for norm in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False).eval()):
        images, weights = random(4, 3, 5, 5).requires_grad_(), random(4, 3, 5, 5, seed=1)
        (wanted,) = torch.autograd.grad((norm(images) * weights).sum(), images)
        with InputGradients():
            (found,) = torch.autograd.grad((norm(images) * weights).sum(), images)
        assert torch.equal(found, wanted)


def test_function_transforms_work_inside(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]
) -> None:
    net, images = conv(smooth=True), pixels(3)

    def value(image: Tensor) -> Tensor:
        return net(image[None]).logsumexp(1).sum()

    wanted = torch.func.vmap(torch.func.grad(value))(images)
    tangent = torch.func.jvp(lambda x: net(x), (images,), (torch.ones_like(images),))[1]
    with InputGradients():
        found = torch.func.vmap(torch.func.grad(value))(images)
        also = torch.func.jvp(lambda x: net(x), (images,), (torch.ones_like(images),))[1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(also, tangent, rtol=1e-4, atol=1e-6)


def test_parameters_keep_their_gradients_outside_of_attacks(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]
) -> None:
    """Who trains through a defense gets the gradients of batch norms too."""
    net = conv().requires_grad_(True)
    tpap(net)(pixels(4)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
    net.zero_grad(set_to_none=True)


class Views(nn.Module):
    """Views its features as rows, as many published nets do: it reads no channels_last images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).view(len(images), -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrap", [lambda net: net, as_classifier, Defense, tpap])
def test_nets_that_read_plain_images_only(
    wrap: Callable[[nn.Module], nn.Module], pixels: Callable[..., Tensor]
) -> None:
    with torch.random.fork_rng(devices=[]):
        net = Views().eval()
    images = pixels(6)
    with pytest.raises(RuntimeError, match="view size"):
        net(images.contiguous(memory_format=torch.channels_last))
    found = make_attack("pgd-3").run(
        Surface(wrap(net)), images, net(images).argmax(1),
        threat=Linf(0.1), keys=Keys.of(0, list("abcdef")), stop="fixed",
    )  # fmt: skip
    assert bool((found.images != images).flatten(1).any(1).all())
    with torch.no_grad():
        one = as_classifier(net)
        two = one(images.contiguous(memory_format=torch.channels_last))
        assert torch.equal(two, net(images))
