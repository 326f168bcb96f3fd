"""ResNet-18/34/50 for small images: the common CIFAR variant of He et al. (2016).

A 3x3 stem with stride 1 and no max-pool, four stages of 64 to 512 channels, projection
shortcuts where the shape changes, global average pooling and one linear layer. Parameter names
(``conv1, bn1, layer1.0.conv1, layer1.0.shortcut.0 ... linear``) are those of the widely used
public implementations.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WideStemResNet"]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = _shortcut(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class WideStemResNet(nn.Module):
    """ResNet-18, -34 or -50 with a 3x3 stem for images of about 32x32.

    Args:
        depth: 18, 34 (basic blocks) or 50 (bottlenecks).
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, H, W), already normalized, to (N, num_classes); any H, W.

    Raises:
        ValueError: Another depth.

    Example:
        >>> import torch
        >>> WideStemResNet(depth=18, num_classes=7)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 7])
    """

    def __init__(self, *, depth: int = 18, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {sorted(_BLOCKS)}, got {depth}")
        block: Any = _Bottleneck if depth >= 50 else _Basic
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        read = 64
        for stage, count in enumerate(_BLOCKS[depth]):
            channels, blocks = 64 * 2**stage, nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(read, channels, stride))
                read = channels * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)
        self.linear = nn.Linear(read, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 512 or 2048): what the linear layer reads."""
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            out = self.get_submodule(f"layer{stage}")(out)
        return out.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))  # type: ignore[no-any-return]
