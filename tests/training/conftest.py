"""What tests of training share: a smooth network, images, and labels, some of which begin wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.hand_written import COUNT


@pytest.fixture
def net(conv: Callable[..., nn.Module]) -> nn.Module:
    """A smooth network, whose gradients are nowhere zero."""
    return conv(smooth=True)


@pytest.fixture
def images(pixels: Callable[..., Tensor]) -> Tensor:
    return pixels(COUNT)


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    """The network's own answers for all images but every sixth, which begin wrong."""
    with torch.no_grad():
        found = net(images).argmax(1)
    found[::6] = (found[::6] + 1) % 5
    return found
