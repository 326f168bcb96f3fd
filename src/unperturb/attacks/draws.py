"""Averages over many draws, in pieces that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["MOST_VALUES", "pieces"]

MOST_VALUES = 1 << 21
"""Pixel values of a piece at most: 682 images of 3x32x32.

A plan's batch times its draws can be many times that, and every row of it keeps a graph."""


def pieces(rows: int, shape: Sequence[int], draws: int) -> list[slice]:
    """Cuts a batch of rows, copies of images at different draws, into equal pieces.

    Every row is evaluated by itself, so that pieces change results by rounding at most; their sizes
    follow from the arguments alone. A batch of one draw stays whole: its size is the plan's.

    Args:
        rows: Number of rows, all draws of all images.
        shape: Shape of an image.
        draws: Draws of each image.

    Example:
        >>> pieces(2560, (3, 32, 32), 20)[:2], len(pieces(2560, (3, 32, 32), 20))
        ([slice(0, 682, None), slice(682, 1364, None)], 4)
        >>> pieces(2560, (3, 32, 32), 1)
        [slice(0, 2560, None)]
    """
    size = rows if draws == 1 else max(1, MOST_VALUES // math.prod(shape))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, max(size, 1))]
