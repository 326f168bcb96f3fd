"""What a classifier does to the size of an image before it reads it: resize, then center crop.

The geometry belongs to the classifier, so that the threat model speaks of the pixels that went
in. Everything here is differentiable, also twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from unperturb.errors import ConfigError

__all__ = ["Geometry"]

_MODES = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class Geometry:
    """A resize and a center crop, in pixels.

    Args:
        resize: Length of the shorter side (aspect kept), or exact (height, width); None: as is.
        crop: (height, width) of the center crop; None: no crop.
        interpolation: ``bilinear``, ``bicubic`` (both with antialiasing) or ``nearest``.
            Bicubic results are clamped to [0, 1], as image libraries do by storing bytes.

    Raises:
        ConfigError: A length below 1, a crop larger than the resized image, or an unknown
            interpolation.

    Example:
        >>> import torch
        >>> Geometry(resize=4, crop=(4, 4)).apply(torch.rand(2, 3, 8, 10)).shape
        torch.Size([2, 3, 4, 4])
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in _MODES:
            raise ConfigError(
                f"The interpolation is {self.interpolation!r}",
                expected="one of " + ", ".join(_MODES),
            )
        resized = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        for name, size in (("resize", resized), ("crop", self.crop)):
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ConfigError(f"The geometry's {name} is {size}", expected="lengths >= 1")
        if resized and self.crop and (self.crop[0] > resized[0] or self.crop[1] > resized[1]):
            raise ConfigError(
                f"The crop {self.crop} is larger than the resized image {resized}",
                expected="a crop inside the resized image",
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize and before the crop.

        The longer side is rounded down, as in the common image pipelines.

        Example:
            >>> Geometry(resize=227).size(232, 300)
            (227, 293)
        """
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        other = int(self.resize * long / short)
        return (self.resize, other) if height <= width else (other, self.resize)

    def apply(self, images: Tensor) -> Tensor:
        """Resize and crop images (N, C, H, W) in [0, 1]; the same tensor if nothing changes."""
        height, width = images.shape[-2:]
        target = self.size(height, width)
        if target != (height, width):
            smooth = self.interpolation != "nearest"
            images = F.interpolate(
                images,
                size=target,
                mode=self.interpolation,
                align_corners=False if smooth else None,
                antialias=smooth,
            )
            if self.interpolation == "bicubic":
                images = images.clamp(0.0, 1.0)
        if self.crop is not None and self.crop != target:
            tall, wide = self.crop
            if tall > target[0] or wide > target[1]:
                raise ConfigError(
                    f"Images of {target[0]}x{target[1]} cannot be cropped to {tall}x{wide}",
                    expected=f"images of at least {tall}x{wide}",
                    fix="use larger images, or a classifier that resizes",
                )
            top, left = round((target[0] - tall) / 2), round((target[1] - wide) / 2)
            images = images[..., top : top + tall, left : left + wide]
        return images

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form.

        Example:
            >>> Geometry(resize=8).to_dict()
            {'resize': 8, 'crop': None, 'interpolation': 'bilinear'}
        """
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        crop = list(self.crop) if self.crop else None
        return {"resize": resize, "crop": crop, "interpolation": self.interpolation}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_dict`.

        Example:
            >>> Geometry.from_dict({"resize": [4, 4], "crop": None, "interpolation": "bicubic"})
            Geometry(resize=(4, 4), crop=None, interpolation='bicubic')
        """
        resize, crop = values.get("resize"), values.get("crop")
        return cls(
            resize=(int(resize[0]), int(resize[1])) if isinstance(resize, list) else resize,
            crop=(int(crop[0]), int(crop[1])) if crop else None,
            interpolation=str(values.get("interpolation", "bilinear")),
        )
