"""A few images of random pixels, as grey levels, as floats and for Pillow."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHAPE = (3, 6, 4)


def eight(count: int = 5, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Grey levels (N, C, H, W)."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def floats(count: int = 5) -> Tensor:
    """The same as pixels in [0, 1]."""
    return torch.from_numpy(eight(count)).float() / 255


def picture(pixels: np.ndarray) -> Image.Image:
    """One image (C, H, W) for Pillow."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
