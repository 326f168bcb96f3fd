"""What restoration networks are trained on: restoring, and fooling a discriminator.

Reduction: an error of restoring is the mean over all pixels of a batch. Lin et al. write it as a
norm and do not say whether theirs is a mean or a sum over an image's pixels. Where it is a sum,
every weight beside it (lambda of the classifier's loss, that of the discriminator's terms) counts
as much as one divided by the number of pixels here: their lambda of 0.1 is 0.1 / 3,072 = 3.3e-5 on
CIFAR.
"""

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
    """Absolute error, its mean over all pixels."""
    return (made - target).abs().mean()


def mse(made: Tensor, target: Tensor) -> Tensor:
    """Squared error, its mean over all pixels."""
    return torch.mean((made - target).square())
