"""A convolutional variational autoencoder for small images (Kingma and Welling 2013)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.errors import ConfigError, InputError

__all__ = ["VAE"]

_WIDEST = 1024
_DEEPEST = 6
# Standard deviations from e^-5 to e^2.5: outside, exp overflows in half precision.
_LOG_VARIANCE = (-10.0, 5.0)


class VAE(nn.Module):
    """Encoder ``E`` from images to a normal distribution of codes, decoder ``D`` back to images.

    The paper shows its architecture in a figure that is lost; this one is ours. With ``w`` the
    width, ``d`` the number of stages (``downsample``) and ``l`` the latent channels::

        encoder   conv 3x3 w,  then d times conv 4x4 stride 2 to 2w,  then conv 3x3 to 2l
        decoder   conv 3x3 2w,  then d times transposed conv 4x4 stride 2 (to 2w, at last to w),
                  then conv 3x3 to the image's channels

    with SiLU between them: it is smooth, so that the derivative of a gradient says something. A
    stride of 2 divides a side by 2, so that codes have the shape (l, H / 2^d, W / 2^d): by default
    8x8x8 for images of 32x32, and 57,107 parameters. Convolutions alone, so that memory and
    parameters do not grow with the image as a linear layer's would.

    Weights start as in He et al. 2015.

    Pixels come out of a sigmoid, scaled to ``pixel_range``: they never leave it, and pixels at the
    very ends of the range are approached and not reached.

    *Levels* are what an inner layer of the decoder says: level 0 is the output of its first layer,
    level k that after k of its d upsampling stages. A classifier that reads a level in the place of
    images is the asymmetric variant of ALU.

    Args:
        image_shape: (C, H, W); H and W multiples of ``2 ** downsample``.
        width: Channels w of the layers at full size, 1 to 1,024.
        downsample: Stages d, 1 to 6.
        latent_channels: Channels l of the codes, 1 to 1,024.
        pixel_range: Least and greatest pixel of the images it is for.
        seed: Seed of the first weights; nothing global is drawn.

    Raises:
        ConfigError: A setting is out of range, or the sides are no such multiples.

    Example:
        >>> vae = VAE(image_shape=(3, 32, 32))
        >>> vae.latent_shape, vae.feature_shape(0), sum(p.numel() for p in vae.parameters())
        ((8, 8, 8), (32, 8, 8), 57107)
        >>> vae(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (3, 32, 32),
        width: int = 16,
        downsample: int = 2,
        latent_channels: int = 8,
        pixel_range: Sequence[float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width = _whole("width", width, _WIDEST)
        self.downsample = _whole("downsample", downsample, _DEEPEST)
        self.latent_channels = _whole("latent_channels", latent_channels, _WIDEST)
        self.image_shape = _shape(image_shape, 2**downsample)
        self.pixel_range = _range(pixel_range)
        with torch.random.fork_rng(devices=[]):
            # The default generator alone: torch.manual_seed would reseed every accelerator too.
            torch.default_generator.manual_seed(seed)
            self._build()

    def _build(self) -> None:
        colors, wide = self.image_shape[0], 2 * self.width
        self.encoder = nn.ModuleList([nn.Conv2d(colors, self.width, 3, padding=1)])
        for stage in range(self.downsample):
            read = wide if stage else self.width
            self.encoder.append(nn.Conv2d(read, wide, 4, stride=2, padding=1))
        self.encoder.append(nn.Conv2d(wide, 2 * self.latent_channels, 3, padding=1))
        self.decoder = nn.ModuleList([nn.Conv2d(self.latent_channels, wide, 3, padding=1)])
        for stage in range(self.downsample):
            write = wide if stage < self.downsample - 1 else self.width
            self.decoder.append(nn.ConvTranspose2d(wide, write, 4, stride=2, padding=1))
        self.decoder.append(nn.Conv2d(self.width, colors, 3, padding=1))
        for layer in (*self.encoder, *self.decoder):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            # Each output of a transposed convolution reads a part of the kernel only.
            apart = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1
            reads = layer.in_channels * math.prod(layer.kernel_size) / apart
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / reads))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this network again; the seed is in the weights."""
        return {
            "image_shape": list(self.image_shape),
            "width": self.width,
            "downsample": self.downsample,
            "latent_channels": self.latent_channels,
            "pixel_range": list(self.pixel_range),
        }

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(l, h, w) of a code."""
        _, height, width = self.image_shape
        scale = 2**self.downsample
        return self.latent_channels, height // scale, width // scale

    def feature_shape(self, level: int | None) -> tuple[int, int, int]:
        """(C, H, W) of what ``decode(codes, level)`` returns.

        Raises:
            ConfigError: There is no such level.
        """
        if level is None:
            return self.image_shape
        self.check_level(level)
        _, height, width = self.image_shape
        scale = 2 ** (self.downsample - level)
        wide = self.width if level == self.downsample else 2 * self.width
        return wide, height // scale, width // scale

    def check_level(self, level: int) -> None:
        """Refuse a level that the decoder does not have.

        Raises:
            ConfigError: It is no whole number from 0 to ``downsample``.
        """
        whole = isinstance(level, int) and not isinstance(level, bool)
        if not whole or not 0 <= level <= self.downsample:
            raise ConfigError(
                f"The level of the decoder is {level!r}",
                expected=f"a whole number from 0 (its first layer) to {self.downsample}",
                fix="leave it out to read images",
            )

    def check(self, images: Tensor) -> None:
        """Refuse images that this network was not made for; their pixels are not looked at.

        Raises:
            InputError: Another shape or dtype.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            found, wanted = (
                "x".join(map(str, s)) for s in (tuple(images.shape[1:]), self.image_shape)
            )
            raise InputError(
                f"Images are {found} (channels x height x width)",
                expected=f"{wanted}, which the VAE was made for",
                fix="train a VAE on images of that size, or resize them",
            )
        dtype = self.encoder[0].weight.dtype
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(
                f"Images have dtype {images.dtype}",
                expected=f"{dtype}, as the weights of the VAE",
                fix=f"images.to({dtype}), or vae.to({images.dtype})",
            )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the codes, each (N, l, h, w).

        Args:
            images: (N, C, H, W) with pixels in ``pixel_range``.
        """
        low, high = self.pixel_range
        hidden = (images - 0.5 * (low + high)) * (2.0 / (high - low))
        for layer in self.encoder[:-1]:
            hidden = F.silu(layer(hidden))
        mean, log_variance = self.encoder[-1](hidden).chunk(2, 1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def decode(self, codes: Tensor, level: int | None = None) -> Tensor:
        """Images (N, C, H, W) of codes (N, l, h, w), or what a level of the decoder says.

        Args:
            codes: The codes.
            level: None for images; otherwise the level, whose shape is ``feature_shape(level)``.
        """
        last = self.downsample if level is None else level
        hidden = codes
        for layer in self.decoder[: last + 1]:
            hidden = F.silu(layer(hidden))
        return self._pixels(hidden) if level is None else hidden

    def finish(self, features: Tensor, level: int) -> Tensor:
        """The images that the rest of the decoder makes of a level's features."""
        hidden = features
        for layer in self.decoder[level + 1 : -1]:
            hidden = F.silu(layer(hidden))
        return self._pixels(hidden)

    def _pixels(self, hidden: Tensor) -> Tensor:
        low, high = self.pixel_range
        pixels = torch.sigmoid(self.decoder[-1](hidden))
        return pixels if (low, high) == (0.0, 1.0) else low + (high - low) * pixels

    def forward(self, images: Tensor) -> Tensor:
        """Plain encode-decode, ``D(mean of E(x))``: nothing is drawn."""
        return self.decode(self.encode(images)[0])


def _whole(name: str, value: int, most: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
        raise ConfigError(
            f"{name} of the VAE is {value!r}", expected=f"a whole number from 1 to {most:,}"
        )
    return value


def _shape(shape: Sequence[int], step: int) -> tuple[int, int, int]:
    sides = tuple(shape)
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides)
    if len(sides) != 3 or not whole:
        raise ConfigError(
            f"image_shape of the VAE is {sides}", expected="(channels, height, width), such as "
            "(3, 32, 32)"
        )  # fmt: skip
    channels, height, width = sides
    if height % step or width % step:
        raise ConfigError(
            f"The VAE is to read images of {height}x{width}",
            expected=f"sides that are multiples of {step}, for {int(math.log2(step))} stages",
            fix="lower downsample, or resize the images",
        )
    return channels, height, width


def _range(pixels: Sequence[float]) -> tuple[float, float]:
    ends = tuple(float(end) for end in pixels)
    if len(ends) != 2 or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
        raise ConfigError(
            f"pixel_range of the VAE is {ends}",
            expected="the least and the greatest pixel, such as (0, 1)",
        )
    return ends[0], ends[1]
