"""A small convolutional network for first steps: digits of 8x8 up to images of 32x32.

Not from a paper: three 3x3 convolutions of 24, 48 and 64 channels with batch normalization, the
second with stride 2, global average pooling and one linear layer; about 39,000 parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, H, W), H and W at least 4, to (N, num_classes).

    Example:
        >>> import torch
        >>> SmallCNN()(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 48, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.conv3 = nn.Conv2d(48, 64, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 64): what the linear layer reads."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))  # type: ignore[no-any-return]
