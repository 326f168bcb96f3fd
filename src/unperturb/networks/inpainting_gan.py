"""An inpainting GAN in the manner of DeepFill: a gated generator of two stages, a discriminator.

Yu et al., *Free-form image inpainting with gated convolution*, ICCV 2019, with which Ughini et al.
(*Trust-no-pixel*, IJCNN 2022) and Lin et al. (AToP, ICLR 2024) restore masked images.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from unperturb.errors import ConfigError
from unperturb.networks.contextual_attention import ContextualAttention

__all__ = ["InpaintingGenerator", "PatchDiscriminator"]

_STRIDE = 4
_DILATIONS = (1, 2, 4)


class InpaintingGenerator(nn.Module):
    """Masked, noisy images and their masks to whole, clean images.

    A *coarse* stage fills the holes; its filling and what is visible of the image go into a
    *refinement* stage. Both halve the resolution twice with gated convolutions
    ``lrelu(a) * sigmoid(b)``, look around by dilated ones, and come back up with skip connections;
    each adds its answer to the image that it was given. Any channels and any size; native to
    32x32 and up to 256x256 and more, where wider stages serve (``width=48, coarse_width=24``).

    Deviations from DeepFill v2: skip connections and the added input (small generators do not
    beat bilinear filling of small holes without); three dilated convolutions, dilated 1, 2 and 4,
    in place of four to 16, since the smallest maps are 8x8; contextual attention, where asked
    for, acts inside the refinement stage and not in a branch of its own; a leaky ReLU in place of
    ELU, which costs a tenth of the time; the output is not clipped.

    Args:
        channels: Channels of the images.
        width: Channels of the refinement stage at full resolution; two and four times as many
            below.
        coarse_width: The same of the coarse stage.
        attention: Contextual attention at the bottom of the refinement stage.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> net = InpaintingGenerator(width=8, coarse_width=4)
        >>> net(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 16,
        coarse_width: int = 4,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "channels": _whole("channels", channels),
            "width": _whole("width", width),
            "coarse_width": _whole("coarse_width", coarse_width),
            "attention": bool(attention),
        }
        self.coarse = _Stage(channels + 1, channels, coarse_width, attention=False)
        self.refine = _Stage(2 * channels + 1, channels, width, attention=attention)

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this network again."""
        return dict(self.settings)

    def stages(self, masked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each stage makes of the images; see ``forward``."""
        height, width = masked.shape[-2:]
        missing = (0, -width % _STRIDE, 0, -height % _STRIDE)
        if any(missing):
            masked = F.pad(masked, missing, mode="replicate")
            mask = F.pad(mask, missing, mode="replicate")
        # Dropped pixels are mid-grey within, as zeros are after normalization.
        seen = mask * (2.0 * masked - 1.0)
        coarse = seen + self.coarse(torch.cat((seen, mask), 1), mask)
        filled = seen + (1.0 - mask) * coarse
        fine = filled + self.refine(torch.cat((filled, coarse, mask), 1), mask)
        one, two = ((0.5 * made + 0.5)[..., :height, :width] for made in (coarse, fine))
        return one, two

    def forward(self, masked: Tensor, mask: Tensor) -> Tensor:
        """Restored images.

        Args:
            masked: ``mask * image`` (N, C, H, W), pixels in [0, 1] up to noise, 0 where dropped.
            mask: (N, 1, H, W), 1 where a pixel is kept.

        Returns:
            (N, C, H, W), about [0, 1] but not clipped.
        """
        return self.stages(masked, mask)[1]


class _Gated(nn.Module):
    """``lrelu(a) * sigmoid(b)`` of a convolution's two halves (Yu et al. 2019, eq. 3)."""

    def __init__(self, inside: int, out: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, 2 * out, 3, stride, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        feature, gate = self.conv(x).chunk(2, 1)
        return F.leaky_relu(feature, 0.2) * torch.sigmoid(gate)


class _Stage(nn.Module):
    """One encoder and decoder, from images with masks to what is added to them."""

    def __init__(self, inside: int, channels: int, width: int, *, attention: bool) -> None:
        super().__init__()
        self.top = _Gated(inside, width)
        self.down1 = _Gated(width, 2 * width, stride=2)
        self.middle = _Gated(2 * width, 2 * width)
        self.down2 = _Gated(2 * width, 4 * width, stride=2)
        self.around = nn.ModuleList(_Gated(4 * width, 4 * width, dilation=d) for d in _DILATIONS)
        self.attention = ContextualAttention() if attention else None
        self.join = nn.Conv2d(8 * width, 4 * width, 1) if attention else None
        # Narrowed before they are enlarged: at full resolution channels are dear.
        self.narrow1 = _Gated(4 * width, 2 * width)
        self.up1 = _Gated(2 * width, 2 * width)
        self.narrow2 = _Gated(2 * width, width)
        self.up2 = _Gated(width, width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        top = self.top(x)
        middle = self.middle(self.down1(top))
        deep = self.down2(middle)
        for layer in self.around:
            deep = deep + layer(deep)
        if self.attention is not None and self.join is not None:
            visible = F.adaptive_avg_pool2d(mask, deep.shape[-2:])
            deep = self.join(torch.cat((deep, self.attention(deep, visible)), 1))
        up = self.up1(_double(self.narrow1(deep)) + middle)
        return self.out(self.up2(_double(self.narrow2(up)) + top))  # type: ignore[no-any-return]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class PatchDiscriminator(nn.Module):
    """Images (N, C, H, W) to scores of their patches (N, 1, h, w), greater for real ones.

    Spectral normalization bounds its slope, so that the plain difference of scores does not run
    away, and the hinge form is the SN-PatchGAN of DeepFill v2 (which also reads the mask and has
    5x5 kernels; this one reads images only, as in Lin et al., before eq. 9).

    Args:
        channels: Channels of the images.
        width: Channels after the first of three strided convolutions; they double twice.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> PatchDiscriminator(width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(self, *, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.settings = {
            "channels": _whole("channels", channels),
            "width": _whole("width", width),
        }
        sizes = (channels, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(inside, out, 3, 2, 1))
            for inside, out in itertools.pairwise(sizes)
        )
        self.score = spectral_norm(nn.Conv2d(sizes[-1], 1, 3, 1, 1))

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this network again."""
        return dict(self.settings)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of patches (N, 1, h, w) of images (N, C, H, W) in [0, 1]."""
        hidden = 2.0 * images - 1.0
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.2)
        return self.score(hidden)  # type: ignore[no-any-return]


def _whole(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
        raise ConfigError(f"{name} is {value!r}", expected="a whole number from 1 to 4,096")
    return value
