"""ResNet-50 for images of ImageNet's size, with random weights: only to be timed.

He, Zhang, Ren and Sun. *Deep residual learning for image recognition.* CVPR 2016. The stride is in
the 3x3 convolution, as torchvision has it: 4.1 G multiply-adds, 25.6 M weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet50"]

LAYERS, WIDTHS, EXPANSION = (3, 4, 6, 3), (64, 128, 256, 512), 4


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.body = nn.Sequential(
            convolution(inputs, width, 1),
            nn.ReLU(inplace=True),
            convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            convolution(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x).add_(self.shortcut(x)))


class ResNet50(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = WIDTHS[0]
        for number, (blocks, width) in enumerate(zip(LAYERS, WIDTHS, strict=True)):
            for block in range(blocks):
                stages.append(Bottleneck(inputs, width, 2 if number and not block else 1))
                inputs = EXPANSION * width
        self.stem = nn.Sequential(convolution(3, WIDTHS[0], 7, 2), nn.ReLU(inplace=True),
                                  nn.MaxPool2d(3, 2, 1))  # fmt: skip
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(images))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
