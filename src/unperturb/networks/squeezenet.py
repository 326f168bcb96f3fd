"""SqueezeNet 1.0 (Iandola et al. 2016) for ImageNet.

Eight fire modules: a 1x1 squeeze, then 1x1 and 3x3 expands concatenated in that order. Parameter
names are those of the weights in circulation (``conv1, fire2.conv1x1_1, fire2.conv1x1_2,
fire2.conv3x3_2 ... conv_final``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SqueezeNet"]

# Per fire module: squeeze and (each) expand channels.
_FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}


class _Fire(nn.Module):
    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.conv1x1_1 = nn.Conv2d(in_channels, squeeze, 1)
        self.conv1x1_2 = nn.Conv2d(squeeze, expand, 1)
        self.conv3x3_2 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1x1_1(x))
        return torch.cat((F.relu(self.conv1x1_2(out)), F.relu(self.conv3x3_2(out))), 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0.

    Args:
        num_classes: Number of logits K.
        in_channels: Channels of the input images.

    Shape:
        (N, in_channels, H, W), already normalized, usually 227x227, to (N, num_classes).

    Note:
        The last convolution and a ReLU come before the average, so logits are not negative and
        are not linear in the pooled features.

    Example:
        >>> import torch
        >>> SqueezeNet(num_classes=5)(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 96, 7, 2)
        read = 96
        for number, (squeeze, expand) in _FIRES.items():
            self.add_module(f"fire{number}", _Fire(read, squeeze, expand))
            read = 2 * expand
        self.conv_final = nn.Conv2d(read, num_classes, 1)

    def _map(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        for number in _FIRES:
            out = self.get_submodule(f"fire{number}")(out)
            if number in (4, 8):
                out = F.max_pool2d(out, 3, 2, ceil_mode=True)
        return F.dropout(out, 0.5, self.training)

    def features(self, x: Tensor) -> Tensor:
        """Features (N, 512): the last fire module's map, averaged over its places."""
        return self._map(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv_final(self._map(x))).mean((2, 3))
