"""Steps in a VAE's latent space, as functions: optimizers, and images that are done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from small_vae import tiny
from unperturb.purifiers.latent_steps import Descent, descend


def codes_and_images(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randn(count, 2, 4, 4, generator=generator).double()
    return codes, torch.rand(count, 3, 8, 8, generator=generator).double()


# The steps


def test_gradient_descent_on_a_linear_decoder_is_the_closed_form() -> None:
    """``z <- z - 2 lr A'(Az - x)`` (eq. 5), and its limit is the least-squares code."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(27, 8, generator=generator).double())[0]

    def decode(codes: Tensor) -> Tensor:
        return (codes.flatten(1) @ matrix.T).view(-1, 3, 3, 3)

    images = torch.rand(5, 3, 3, 3, generator=generator).double()
    first = torch.randn(5, 2, 2, 2, generator=generator).double()
    best = images.flatten(1) @ matrix
    for steps, rate in ((0, 0.1), (1, 0.1), (7, 0.1), (200, 0.2)):
        found = descend(decode, images, first, Descent(steps, rate, "gd")).flatten(1)
        expected = best + (1 - 2 * rate) ** steps * (first.flatten(1) - best)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["gd", "adam"])
def test_against_an_optimizer_one_image_at_a_time(name: str) -> None:
    vae = tiny(sharp=3.0).double()
    first, images = codes_and_images()
    found = descend(vae.decode, images, first, Descent(9, 0.07, name))
    for index in range(6):
        code = first[index : index + 1].clone().requires_grad_()
        kind: Any = torch.optim.SGD if name == "gd" else torch.optim.Adam
        optimizer = kind([code], lr=0.07)
        for _ in range(9):
            error = (vae.decode(code) - images[index : index + 1]).square().sum()
            (code.grad,) = torch.autograd.grad(error, code)
            optimizer.step()
        torch.testing.assert_close(found[index : index + 1], code.detach(), rtol=1e-7, atol=1e-9)


def test_quasi_newton_steps_against_torch_one_image_at_a_time() -> None:
    vae = tiny(sharp=3.0).double()
    first, images = codes_and_images()

    def error(code: Tensor, index: int) -> Tensor:
        return (vae.decode(code) - images[index : index + 1]).square().sum()

    for index in range(6):
        code = first[index : index + 1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(error(code, index), code)
        # The rate of torch's own first step; it takes full steps after it.
        rate = min(1.0, 1.0 / float(slope.abs().sum()))
        rows = slice(index, index + 1)
        how = Descent(9, rate, "lbfgs")
        found = descend(vae.decode, images[rows], first[rows], how)
        optimizer = torch.optim.LBFGS(
            [code], max_iter=9, max_eval=99, history_size=5, tolerance_grad=0, tolerance_change=0
        )

        def closure(code: Tensor = code, index: int = index) -> float:
            value = error(code, index)
            (code.grad,) = torch.autograd.grad(value, code)
            return float(value.detach())

        optimizer.step(closure)
        torch.testing.assert_close(found, code.detach(), rtol=1e-6, atol=1e-8)


def test_quasi_newton_steps_solve_a_quadratic_at_once() -> None:
    """With a pair for each dimension that has a curvature of its own, the next step is exact."""
    scale = torch.tensor([1.0, 2.0, 4.0]).double()
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    first = torch.zeros(4, 3, 1, 1).double()

    def decode(codes: Tensor) -> Tensor:
        return codes * scale.view(1, 3, 1, 1)

    found = descend(decode, images, first, Descent(30, 0.02, "lbfgs"))
    torch.testing.assert_close(found, images / scale.view(1, 3, 1, 1))
    plain = descend(decode, images, first, Descent(30, 0.05, "gd"))
    assert not torch.allclose(plain, found, atol=1e-3)


def test_quasi_newton_steps_where_nothing_curves() -> None:
    """No pair is taken along which the gradient turns back, nor one of no move."""
    images = torch.zeros(2, 1, 1, 1).double()

    def bent(codes: Tensor) -> Tensor:
        # Squared: a concave error, (1 + e^-z^2), around z = 0.
        return (1 + (-codes.square()).exp()).sqrt()

    first = torch.tensor([0.01, 0.0]).double().view(2, 1, 1, 1)
    found = descend(bent, images, first, Descent(4, 0.1, "lbfgs"))
    plain = descend(bent, images, first, Descent(4, 0.1, "gd"))
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    assert float(found[0]) > 0.01
    assert float(found[1]) == 0.0


# Images that are done


@pytest.mark.parametrize("name", ["gd", "adam", "lbfgs"])
def test_images_that_are_done_leave_in_padded_batches(name: str) -> None:
    vae = tiny(sharp=3.0).double()
    first, images = codes_and_images(16)
    # Half of them begin where they are to end.
    images[::2] = vae.decode(first[::2]) + 1e-6
    sizes: list[int] = []

    def decode(codes: Tensor) -> Tensor:
        sizes.append(len(codes))
        return vae.decode(codes)

    how = Descent(60, 0.02, name, tolerance=0.02)
    found = descend(decode, images, first, how)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 16
    assert sizes[-1] < 16
    assert set(sizes) <= set(range(2, 17, 2)), "sizes are multiples of an eighth"
    alone = torch.cat(
        [descend(vae.decode, images[i : i + 1], first[i : i + 1], how) for i in range(16)]
    )
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)
    unrolled = descend(vae.decode, images.requires_grad_(), first, how, unroll=True)
    torch.testing.assert_close(unrolled.detach(), found, rtol=1e-9, atol=1e-9)


def test_all_done_is_the_end() -> None:
    vae = tiny()
    count = 0

    def decode(codes: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return vae.decode(codes)

    codes = torch.zeros(4, 2, 4, 4)
    descend(decode, vae.decode(codes), codes, Descent(500, 0.1, "gd", tolerance=0.01))
    assert count < 10
