"""Dropout masks from random bits: PyTorch's own draws take longer than the matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Masks", "kept_bits"]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


def kept_bits(generator: np.random.Generator, count: int, dropout: float) -> NDArray[np.uint8]:
    """Which of ``count`` units are kept: bits, eight to a byte, the first in the highest place.

    For any share but one half the probability is rounded to 1 / 65,536.

    Example:
        >>> bits = kept_bits(np.random.default_rng(0), 8000, 0.75)
        >>> len(bits), 1900 < int(np.unpackbits(bits).sum()) < 2100
        (1000, True)
    """
    if dropout == 0.5:
        return np.frombuffer(generator.bytes(-(-count // 8)), dtype=np.uint8)
    words = np.frombuffer(generator.bytes(2 * count), dtype=np.uint16)
    return np.packbits(words < round(65_536 * (1.0 - dropout)))


class Masks:
    """Expands bits into one of two numbers each, into memory that is there already.

    Args:
        dropout: Share of the units that is dropped.
        size: Units at a time, at most.
        device: Where the masks are needed.
        kept: The number for a kept unit.
        dropped: The number for a dropped one.
    """

    def __init__(
        self, dropout: float, size: int, device: torch.device, *, kept: float, dropped: float
    ) -> None:
        self.dropout = dropout
        table = torch.where(torch.from_numpy(_BITS) > 0, kept, dropped)
        self._table = table.to(device, torch.float32)
        self._memory = torch.empty(-(-size // 8), 8, dtype=torch.float32, device=device)

    def draw(self, generator: np.random.Generator, rows: int, width: int) -> Tensor:
        """A mask (rows, width), which the next call overwrites."""
        count = rows * width
        bits = kept_bits(generator, count, self.dropout)
        memory = self._memory[: len(bits)]
        if memory.device.type == "cpu":
            np.take(self._table.numpy(), bits, axis=0, out=memory.numpy(), mode="clip")
        else:
            index = torch.from_numpy(bits.astype(np.int32)).to(memory.device)
            torch.index_select(self._table, 0, index, out=memory)
        return memory.view(-1)[:count].view(rows, width)

    def columns(
        self, generator: np.random.Generator, rows: int, width: int, slab: int
    ) -> Iterator[Tensor]:
        """The masks of slabs of at most so many columns, one after the other."""
        for start in range(0, width, slab):
            yield self.draw(generator, rows, min(slab, width - start))
