"""What twins are held against: images, a network that was used, its answers in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def photos(count: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(2))


def used(net: nn.Module, seed: int = 1) -> nn.Module:
    """The network with statistics and scales as training leaves them, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(shape, generator=generator) * 1.5 + 0.3)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(shape, generator=generator) * 2 - 0.5)
                    module.bias.copy_(torch.randn(shape, generator=generator) * 0.3)
    return net


def in_eval(net: nn.Module, images: Tensor) -> Tensor:
    """Answers of a copy in eval mode."""
    with torch.no_grad():
        return copy.deepcopy(net).eval()(images)


def close(found: Tensor, expected: Tensor, size: float = 2e-5) -> None:
    """Equal up to rounding, of the size of the greatest entry."""
    found, expected = found.detach(), expected.detach()
    assert float(expected.abs().max()) > 0
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert worst < size, f"off by {worst:.1e} of the greatest"


def quietly(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build()
