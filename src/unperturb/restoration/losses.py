"""What restoration networks are trained on: restoring, and fooling a discriminator."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Adversarial", "adversarial", "l1", "mse"]


class Adversarial(NamedTuple):
    """The two sides of a GAN's loss, each to be lowered by its own half."""

    discriminator: Tensor
    generator: Tensor


def adversarial(form: str, real: Tensor, made: Tensor) -> Adversarial:
    """The discriminator's and the generator's loss, from scores of real and made images.

    ``wasserstein``: D lowers ``E[D(made)] - E[D(real)]``, that is, it raises the terms before
    eq. 9 of Lin et al. 2024, and g lowers ``-E[D(made)]``. ``hinge``: D lowers
    ``E[max(1 - D(real), 0)] + E[max(1 + D(made), 0)]`` (Yu et al. 2019, eq. 4), and g the same.

    Args:
        form: ``wasserstein`` or ``hinge``.
        real: Scores of real images, any shape.
        made: Scores of restored images.

    Example:
        >>> adversarial("hinge", torch.tensor([2.0]), torch.tensor([0.5])).discriminator
        tensor(1.5000)
    """
    if form == "hinge":
        judged = F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean()
    else:
        judged = made.mean() - real.mean()
    return Adversarial(judged, -made.mean())


def l1(made: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of all pixels."""
    return (made - target).abs().mean()


def mse(made: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of all pixels."""
    return torch.mean((made - target).square())
