"""Averages over many draws, in pieces that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["MOST_VALUES", "pieces"]

MOST_VALUES = 1 << 19
"""Pixel values of a piece at most: 170 images of 3x32x32, four times as many on an accelerator.

A plan's batch times its draws can be many times that, and every row of it keeps a graph: on a
processor larger pieces leave its cache, and took up to half as long again."""


def pieces(
    rows: int, shape: Sequence[int], draws: int, *, device: torch.device | str = "cpu"
) -> list[slice]:
    """Cuts a batch of rows, copies of images at different draws, into equal pieces.

    Every row is evaluated by itself, so that pieces change results by rounding at most; their sizes
    follow from the arguments alone. A batch of one draw stays whole: its size is the plan's.

    Args:
        rows: Number of rows, all draws of all images.
        shape: Shape of an image.
        draws: Draws of each image.
        device: Where they are evaluated.

    Example:
        >>> pieces(2560, (3, 32, 32), 20)[:2], len(pieces(2560, (3, 32, 32), 20))
        ([slice(0, 170, None), slice(170, 340, None)], 16)
        >>> pieces(2560, (3, 32, 32), 1)
        [slice(0, 2560, None)]
    """
    most = MOST_VALUES if torch.device(device).type == "cpu" else 4 * MOST_VALUES
    size = rows if draws == 1 else max(1, most // math.prod(shape))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, max(size, 1))]
