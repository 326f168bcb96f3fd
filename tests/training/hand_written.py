"""What attacks written out by hand are made of: draws, slopes, steps into the ball."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

EPS = 0.015
COUNT = 24
STEPS = {"steps": 3, "step_size": 0.4}


def draw(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def uniform(shape: tuple[int, ...], size: float, seed: int = 3) -> Tensor:
    drawn = draw(seed).random(shape, dtype=np.float32)
    return size * (2.0 * torch.from_numpy(drawn) - 1.0)


def slope(net: nn.Module, image: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(net(leaf)), leaf)
    return gradient


def into_ball(point: Tensor, center: Tensor) -> Tensor:
    return point.clamp(center - EPS, center + EPS).clamp(0.0, 1.0)


def answers(net: nn.Module, points: Tensor) -> Tensor:
    with torch.no_grad():
        return net(points).argmax(1)
