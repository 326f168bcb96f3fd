"""Wide residual networks for small images (Zagoruyko and Komodakis 2016): WRN-D-K.

Pre-activation basic blocks in three stages of 16k, 32k and 64k channels: depth 6n + 4. Parameter
names (``conv1, block1.layer.0.bn1 ... convShortcut, bn1, fc``) are those of the implementations
that the adversarial-training literature shares.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WideResNet"]


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.projects = in_channels != channels
        if self.projects:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(activated)))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return self.conv2(out) + (self.convShortcut(activated) if self.projects else x)  # type: ignore[no-any-return]


class _Stage(nn.Module):
    def __init__(
        self, blocks: int, in_channels: int, channels: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        first = _Block(in_channels, channels, stride, dropout)
        rest = (_Block(channels, channels, 1, dropout) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide residual network WRN-depth-width.

    Args:
        depth: 6n + 4, such as 16, 28 or 34.
        width: Widening factor k >= 1, such as 10.
        num_classes: Number of logits K.
        in_channels: Channels of the input images.
        dropout: Probability of dropping between a block's convolutions, in [0, 1).

    Shape:
        (N, in_channels, H, W), already normalized, to (N, num_classes); any H, W.

    Raises:
        ValueError: depth is not 6n + 4, or width or dropout is out of range.

    Example:
        >>> import torch
        >>> WideResNet(depth=10, width=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = _Stage(blocks, 16, 16 * width, 1, dropout)
        self.block2 = _Stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = _Stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 64 width): what the linear layer reads."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(out)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))  # type: ignore[no-any-return]
