"""Random crops of images: further images of the same things, where there are few."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from unperturb.data.imageset import ImageSet
from unperturb.errors import ConfigError
from unperturb.randomness import Keys

__all__ = ["image_of", "random_crops"]

_MARK = "#crop-"
_ASPECT = 4.0 / 3.0


def random_crops(
    data: ImageSet, count: int, *, seed: int = 0, area: tuple[float, float] = (0.25, 1.0)
) -> ImageSet:
    """``count`` random crops of each image, resized to the image's size, half of them mirrored.

    A crop's share of the area is uniform in ``area`` and the logarithm of its aspect ratio (to
    that of the image) is uniform between those of 3/4 and 4/3, as in Inception's training
    (Szegedy et al. 2015); its place is uniform. Resizing is bilinear and antialiased. Where a side
    would be longer than the image's, it is cut to it. Every number is a function of the image's id,
    the crop's number and the seed.

    Args:
        data: Images; their order stays, with the crops of one image after each other.
        count: Crops of each image.
        seed: Seed of the crops.
        area: Least and greatest share of the area, above 0 and at most 1.

    Returns:
        Images ``ID#crop-0``, ``ID#crop-1`` ... with the labels of the images they are of.

    Raises:
        ConfigError: ``count`` or ``area`` is out of range.

    Example:
        >>> pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> data = ImageSet(pixels, torch.tensor([0, 1]), ("a", "b"), ("x", "y"), "me", None)
        >>> random_crops(data, 2).ids
        ('a#crop-0', 'a#crop-1', 'b#crop-0', 'b#crop-1')
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"crops is {count!r}", expected="a whole number, at least 1")
    least, most = area
    if not 0.0 < least <= most <= 1.0:
        raise ConfigError(f"area of a crop is {area!r}", expected="two shares above 0, at most 1")
    height, width = data.pixels.shape[2:]
    drawn = Keys.of(seed, data.ids, domain="crops").copies(count).uniform("place", (5,))
    out = torch.empty((len(data) * count, *data.pixels.shape[1:]), dtype=data.pixels.dtype)
    for row, (size, aspect, down, right, flip) in enumerate(drawn.tolist()):
        share = least + (most - least) * size
        ratio = math.exp((2.0 * aspect - 1.0) * math.log(_ASPECT))
        high = min(height, max(1, round(height * math.sqrt(share / ratio))))
        wide = min(width, max(1, round(width * math.sqrt(share * ratio))))
        top, left = int(down * (height - high + 1)), int(right * (width - wide + 1))
        piece = data.pixels[row // count, :, top : top + high, left : left + wide]
        out[row] = _resized(piece, (height, width), mirrored=flip < 0.5)
    return replace(
        data,
        pixels=out,
        labels=data.labels.repeat_interleave(count),
        ids=tuple(f"{name}{_MARK}{number}" for name in data.ids for number in range(count)),
        source=f"{data.source}; {count} random crops of each image, {least:g} to {most:g} of its "
        f"area, seed {seed}",
    )


def image_of(name: str) -> str:
    """Id of the image that a crop is of; any other id is its own.

    Example:
        >>> image_of("n01440764_37#crop-3"), image_of("n01440764_37")
        ('n01440764_37', 'n01440764_37')
    """
    head, mark, number = name.rpartition(_MARK)
    return head if mark and number.isdigit() else name


def _resized(piece: Tensor, size: tuple[int, int], *, mirrored: bool) -> Tensor:
    whole = piece[None].float()
    if whole.shape[2:] != size:
        whole = functional.interpolate(whole, size, mode="bilinear", antialias=True)
    if mirrored:
        whole = whole.flip(3)
    if piece.dtype == torch.uint8:
        return whole[0].round_().clamp_(0, 255).to(torch.uint8)
    return whole[0].clamp_(0.0, 1.0)
