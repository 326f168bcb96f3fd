"""A denoising U-Net for small images (Liao et al. 2018)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.errors import ConfigError

__all__ = ["DenoisingUNet"]


class _Block(nn.Sequential):
    """Convolutions with batch norm and ReLU; the first may halve the sides."""

    def __init__(self, read: int, write: int, count: int, stride: int = 1) -> None:
        layers: list[nn.Module] = []
        for index in range(count):
            layers += [
                nn.Conv2d(
                    read if index == 0 else write, write, 3, stride if index == 0 else 1, 1,
                    bias=False,
                ),
                nn.BatchNorm2d(write),
                nn.ReLU(),
            ]  # fmt: skip
        super().__init__(*layers)


class DenoisingUNet(nn.Module):
    """Images to the noise that is to be taken away: ``x_denoised = x - U(x)``.

    The DUNET of Liao, Liang, Dong, Pang, Hu and Zhu, *Defense against adversarial attacks using
    high-level representation guided denoiser*, CVPR 2018: an encoder that halves the
    sides from stage to stage, a decoder that doubles them (bilinear) and reads the encoder's
    features of equal size beside its own (lateral connections), 3x3 convolutions with batch norm
    and ReLU, and a 1x1 convolution to the negative noise.

    Deviations: theirs is for images of 299x299 and has more stages and channels; here both are
    settings, sized for images of 32x32. Batch norms and layers are in the usual order, and an
    untrained network says zero.

    Args:
        in_channels: Channels of the images.
        width: Channels of the stage at full size; each later stage has twice as many, up to four
            times ``width``.
        depth: Stages below full size, 1 to 5; sides that they do not divide are read too.
        convolutions: Convolutions of each block, 1 to 4.
        seed: Seed of the first weights; nothing global is drawn.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> DenoisingUNet(width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: int = 16,
        depth: int = 2,
        convolutions: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, most in (
            ("in_channels", in_channels, 1024),
            ("width", width, 1024),
            ("depth", depth, 5),
            ("convolutions", convolutions, 4),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not 1 <= value <= most:
                raise ConfigError(
                    f"{name} of the denoiser is {value!r}",
                    expected=f"a whole number from 1 to {most:,}",
                )
        self.in_channels, self.width, self.depth = in_channels, width, depth
        self.convolutions = convolutions
        with torch.random.fork_rng(devices=[]):
            # The default generator alone: torch.manual_seed would reseed every accelerator too.
            torch.default_generator.manual_seed(seed)
            self._build()

    def _build(self) -> None:
        channels = [self.width * min(2**stage, 4) for stage in range(self.depth + 1)]
        count = self.convolutions
        self.down = nn.ModuleList([_Block(self.in_channels, channels[0], count)])
        self.up = nn.ModuleList()
        for above, below in itertools.pairwise(channels):
            self.down.append(_Block(above, below, count, stride=2))
            self.up.insert(0, _Block(above + below, above, count))
        self.last = nn.Conv2d(channels[0], self.in_channels, 1)
        # An untrained denoiser takes nothing away: training starts from the images themselves.
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this network again; the seed is in the weights."""
        return {
            "in_channels": self.in_channels,
            "width": self.width,
            "depth": self.depth,
            "convolutions": self.convolutions,
        }

    def forward(self, images: Tensor) -> Tensor:
        """The noise ``U(x)``, of the images' shape."""
        sides: list[Tensor] = []
        hidden = images
        for block in self.down:
            hidden = block(hidden)
            sides.append(hidden)
        sides.pop()
        for block in self.up:
            beside = sides.pop()
            hidden = F.interpolate(
                hidden, size=beside.shape[-2:], mode="bilinear", align_corners=False
            )
            hidden = block(torch.cat((hidden, beside), 1))
        return self.last(hidden)  # type: ignore[no-any-return]
