"""Random crops and flips, drawn from a generator that is handed in."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment", "epoch_generator", "step_generator"]

_PAD = 4


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch's order: a function of (seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def step_generator(
    seed: int, epoch: int, step: int, *, process: int = 0, part: int = 0, layers: bool = False
) -> np.random.Generator:
    """The generator of one step: augmentation, and starts of attacks.

    A function of its arguments alone, so that a run goes on in the middle of an epoch with the
    draws it would have had.

    Args:
        seed: Seed of the run.
        epoch: Epochs done before.
        step: Steps of this epoch done before.
        process: Rank among the processes.
        part: Part of the batch.
        layers: The generator that seeds what the network's own layers draw.

    Example:
        >>> one, two = (step_generator(0, 3, 17).random() for _ in range(2))
        >>> one == two
        True
    """
    # The last word of the counter keeps apart what steps draw from what the epoch's order draws.
    counter = [0, process * 2**32 + part, step, 2 if layers else 1]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=counter))


def augment(images: Tensor, kind: str, generator: np.random.Generator) -> Tensor:
    """Augment a batch.

    Args:
        images: (N, C, H, W), any dtype.
        kind: ``crop-flip`` (zero padding by 4, random crop, horizontal flip), ``flip``, ``none``.
        generator: Source of the random numbers.

    Returns:
        A batch of the same shape.
    """
    if kind == "none":
        return images
    count, _, height, width = images.shape
    flip = torch.from_numpy(generator.random(count) < 0.5).to(images.device)
    if kind == "crop-flip":
        padded = F.pad(images, (_PAD, _PAD, _PAD, _PAD))
        top = torch.from_numpy(generator.integers(0, 2 * _PAD + 1, count)).to(images.device)
        left = torch.from_numpy(generator.integers(0, 2 * _PAD + 1, count)).to(images.device)
        rows = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
        columns = left[:, None] + torch.arange(width, device=images.device)
        columns = torch.where(flip[:, None], columns.flip(1), columns)[:, None, :]
        batch = torch.arange(count, device=images.device)[:, None, None]
        # Advanced indexing puts the channel axis last, which is channels_last memory for free.
        return padded.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)
    return torch.where(flip[:, None, None, None], images.flip(3), images)
