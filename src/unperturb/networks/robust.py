"""The small robust networks of the verification literature, for 32x32 images.

Residual networks without batch normalization (two or four blocks) and two plain convolutional
ones; all convolutions have a bias, and two linear layers of 100 and K units end them. Parameter
names are those of the weights in circulation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RobustCNN", "RobustResNet"]


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        changes = stride != 1 or in_channels != channels
        project = [nn.Conv2d(in_channels, channels, 1, stride)] if changes else []
        self.shortcut = nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class RobustResNet(nn.Module):
    """A residual network of two or four blocks without batch normalization.

    Args:
        blocks: 2 (8 stem and 16 stage channels) or 4 (16 and 32, two stages).
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, 32, 32), already normalized, to (N, num_classes).

    Raises:
        ValueError: Another number of blocks.

    Example:
        >>> import torch
        >>> RobustResNet(blocks=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, blocks: int = 2, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if blocks not in (2, 4):
            raise ValueError(f"blocks must be 2 or 4, got {blocks}")
        stem, channels = (8, 16) if blocks == 2 else (16, 32)
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 2, 1)
        self.layer1 = nn.Sequential(_Block(stem, channels, 2), _Block(channels, channels, 1))
        self.stages = 1
        if blocks == 4:
            self.layer2 = nn.Sequential(
                _Block(channels, channels, 2), _Block(channels, channels, 1)
            )
            self.stages = 2
        side = 16 // 2**self.stages
        self.linear1 = nn.Linear(channels * side * side, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 100): what the last linear layer reads."""
        out = self.layer1(F.relu(self.conv1(x)))
        if self.stages == 2:
            out = self.layer2(out)
        return F.relu(self.linear1(torch.flatten(out, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.features(x))  # type: ignore[no-any-return]


# Per convolution: channels, kernel, stride; the padding is 1 throughout.
_LAYERS = {
    "wide": ((16, 4, 2), (32, 4, 2)),
    "deep": ((8, 4, 2), (8, 3, 1), (8, 3, 1), (8, 4, 2)),
}


class RobustCNN(nn.Sequential):
    """A plain convolutional network, ``wide`` (two convolutions) or ``deep`` (four).

    Args:
        kind: ``wide`` or ``deep``.
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, 32, 32), already normalized, to (N, num_classes).

    Raises:
        ValueError: Another kind.

    Example:
        >>> import torch
        >>> RobustCNN(kind="deep")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, kind: str = "wide", num_classes: int = 10, in_channels: int = 3) -> None:
        if kind not in _LAYERS:
            raise ValueError(f"kind must be one of {sorted(_LAYERS)}, got {kind!r}")
        layers: list[nn.Module] = []
        read = in_channels
        for channels, kernel, stride in _LAYERS[kind]:
            layers += [nn.Conv2d(read, channels, kernel, stride, 1), nn.ReLU()]
            read = channels
        layers += [nn.Flatten(), nn.Linear(read * 8 * 8, 100), nn.ReLU()]
        super().__init__(*layers, nn.Linear(100, num_classes))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 100): what the last linear layer reads."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x
