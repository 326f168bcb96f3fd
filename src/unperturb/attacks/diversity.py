"""TI-DIM: gradients of randomly resized images, smoothed, with momentum.

``v <- mu v + W * g / ||W * g||_1``, ``g = grad_x L(f(T(x)), y)``, and a step along ``v``: momentum
(Dong et al. 2018), input diversity ``T`` (Xie et al. 2019, "Improving Transferability of
Adversarial Examples with Input Diversity", eq. 4) and a Gaussian kernel ``W`` (Dong et al. 2019,
"Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", eq. 7):
what one network's gradient says of that network alone is averaged away, so images transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.attacks.engine import FirstOrder
from unperturb.errors import ConfigError
from unperturb.randomness import Keys

__all__ = ["DiverseInputs", "gaussian_kernel", "make_ti_dim", "resize_and_pad"]


def gaussian_kernel(size: int) -> Tensor:
    """A Gaussian kernel that reaches three standard deviations, (size, size), summing to 1.

    Args:
        size: Odd number of pixels; 1 smooths nothing.

    Example:
        >>> gaussian_kernel(7).shape, gaussian_kernel(1).item()
        (torch.Size([7, 7]), 1.0)
    """
    ends = 3.0 if size > 1 else 0.0
    line = torch.exp(-0.5 * torch.linspace(-ends, ends, size, dtype=torch.float64).square())
    kernel = line[:, None] * line[None]
    return kernel / kernel.sum()


def _interpolation(size: int, inner: Tensor, offset: Tensor) -> Tensor:
    """Matrices (n, size, size) of a bilinear resize to ``inner`` pixels at ``offset``."""
    out = torch.arange(size, device=inner.device)[None, :, None]
    inner, offset = inner.view(-1, 1, 1), offset.view(-1, 1, 1)
    source = ((out - offset + 0.5) * (size / inner.to(torch.float32)) - 0.5).clamp(0, size - 1)
    weight = 1 - (source - torch.arange(size, device=inner.device)).abs()
    within = (out >= offset) & (out < offset + inner)
    return weight.clamp(min=0) * within


def resize_and_pad(
    images: Tensor, inner: tuple[Tensor, Tensor], at: tuple[Tensor, Tensor]
) -> Tensor:
    """Resize each image bilinearly and put it into a black one of the size it had.

    As matrix products, so that every image has its own size and the gradient is repeatable on
    every device. An image whose inner size is its own comes back as it is.

    Args:
        images: (n, C, H, W).
        inner: Heights and widths to resize to, int64 (n,) each, at most H and W.
        at: Rows and columns of the upper left corner, int64 (n,) each.

    Returns:
        (n, C, H, W), differentiable.

    Example:
        >>> half = torch.tensor([2])
        >>> at = (torch.tensor([0]), torch.tensor([2]))
        >>> resize_and_pad(torch.ones(1, 1, 4, 4), (half, half), at)[0, 0, 0].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    height, width = images.shape[2:]
    rows = _interpolation(height, inner[0], at[0]).to(images.dtype)
    columns = _interpolation(width, inner[1], at[1]).to(images.dtype)
    return rows[:, None] @ images @ columns[:, None].mT


@dataclass(frozen=True, kw_only=True)
class DiverseInputs(FirstOrder):
    """A first-order attack through random resizing, with smoothed gradients.

    Every gradient draws anew, for each image by itself: with ``probability`` it is resized to a
    side uniform between ``smallest`` of its own and one pixel less than its own, and padded with
    black at a random place.

    Deviations from the papers: they enlarge the network's input (299 to at most 330 pixels), which
    a network of fixed size does not take, so the image is made smaller instead; they resize to the
    nearest pixel, this bilinearly; their kernel of 15 pixels is for images of 299, and the default
    here, 7, for images of 32. With ``first-success`` an image leaves when it is broken *itself*,
    which costs a forward pass a step.

    Attributes:
        probability: Share of gradients taken through a resized image, from 0 to 1.
        smallest: Least side after resizing, as a share of the image's, above 0 and below 1.
        kernel: Side of the Gaussian kernel in pixels, odd; 1 for none.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> make_ti_dim(None).kernel
        7
    """

    probability: float = 0.7
    smallest: float = 0.9
    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("probability", zero=True)
        self._positive("smallest")
        self._whole("kernel")
        for field, most in (("probability", 1.0), ("smallest", math.nextafter(1.0, 0.0))):
            value = getattr(self, field)
            if value > most:
                raise ConfigError(
                    f"{field} of attack {self.name!r} is {value}",
                    expected="at most 1" if most == 1.0 else "below 1",
                )
        if self.kernel % 2 == 0:
            raise ConfigError(
                f"kernel of attack {self.name!r} is {self.kernel}",
                expected="an odd number of pixels",
                fix=f"use {self.kernel + 1}",
            )

    def view(self) -> Callable[[Tensor, Keys], Tensor] | None:
        """The random resizing, keyed by image and evaluation."""
        return self._diversify if self.probability > 0 else None

    def _diversify(self, images: Tensor, keys: Keys) -> Tensor:
        """Resize with the given probability, else leave as it is."""
        numbers = keys.uniform("input-diversity", (4,), device=images.device)
        chosen, scale, down, right = numbers.unbind(1)
        inner, corner = [], []
        for size, place in zip(images.shape[2:], (down, right), strict=True):
            least = min(max(1, math.floor(self.smallest * size)), max(1, size - 1))
            # One number for both sides, so that square images stay square.
            side = least + (scale * max(1, size - least)).long()
            side = torch.where(chosen < self.probability, side, size)
            inner.append(side)
            corner.append((place * (size - side + 1)).long())
        return resize_and_pad(images, (inner[0], inner[1]), (corner[0], corner[1]))

    def smooth(self, gradient: Tensor) -> Tensor:
        """``W * g``, each channel by itself, the outside of the image counted as 0."""
        if self.kernel == 1:
            return gradient
        channels = gradient.shape[1]
        kernel = gaussian_kernel(self.kernel).to(gradient).expand(channels, 1, -1, -1)
        return F.conv2d(gradient, kernel, padding=self.kernel // 2, groups=channels)


def make_ti_dim(steps: int | None) -> DiverseInputs:
    """``ti-dim``: 10 steps of eps/steps with momentum 1."""
    count = 10 if steps is None else steps
    return DiverseInputs(
        name=f"ti-dim-{count}", steps=count, step_size=1 / max(count, 1), momentum=1.0
    )
