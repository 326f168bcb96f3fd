"""Random numbers of a fit: functions of (seed, epoch, block or step), with no state to keep."""

from __future__ import annotations

import numpy as np

__all__ = ["block_generator", "mask_generator", "order_generator", "split_generator"]

_ORDER, _BLOCK, _SPLIT, _MASK = 1, 2, 3, 4


def _generator(purpose: int, seed: int, epoch: int, part: int, layer: int) -> np.random.Generator:
    # The generator counts up in the first word of the counter: the others keep draws apart.
    counter = [0, layer, part, purpose]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """The order of the shards in an epoch.

    Example:
        >>> one, two = (order_generator(0, 3).random() for _ in range(2))
        >>> one == two
        True
    """
    return _generator(_ORDER, seed, epoch, 0, 0)


def block_generator(seed: int, epoch: int, block: int) -> np.random.Generator:
    """The order of the rows in a block of an epoch, and whose logits each of them takes."""
    return _generator(_BLOCK, seed, epoch, block, 0)


def split_generator(seed: int) -> np.random.Generator:
    """Which rows are held out."""
    return _generator(_SPLIT, seed, 0, 0, 0)


def mask_generator(seed: int, epoch: int, step: int, layer: int) -> np.random.Generator:
    """The dropout mask of a hidden layer in a step."""
    return _generator(_MASK, seed, epoch, step, layer)
