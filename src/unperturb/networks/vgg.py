"""VGG-16 with batch normalization for small images (Simonyan and Zisserman 2015).

The thirteen convolutions of configuration D and, in place of the three large linear layers, one
linear layer after global average pooling, as is usual for CIFAR.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CifarVGG"]

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class CifarVGG(nn.Module):
    """VGG-16 with batch normalization and one linear layer.

    Args:
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, H, W), already normalized, H and W at least 32, to (N, num_classes).

    Example:
        >>> import torch
        >>> CifarVGG(num_classes=5)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        # A submodule called ``features`` would hide the method of that name.
        self.layers = nn.Sequential()
        read = in_channels
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                self.layers.append(nn.Conv2d(read, channels, 3, 1, 1))
                self.layers.append(nn.BatchNorm2d(channels))
                self.layers.append(nn.ReLU())
                read = channels
            self.layers.append(nn.MaxPool2d(2))
        self.classifier = nn.Linear(read, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 512): what the linear layer reads."""
        return self.layers(x).mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))  # type: ignore[no-any-return]
