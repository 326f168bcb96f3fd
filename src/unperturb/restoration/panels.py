"""Sample panels of a training: held-out images, what is left of them, what is made of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from unperturb.files import write_atomic
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, Restored, restore
from unperturb.randomness import Keys

__all__ = ["sample_panel", "save_panel"]

_SIDE = 96
_GAP = 2


@torch.no_grad()
def sample_panel(
    network: nn.Module, images: Tensor, transform: RandomTransform, keys: Keys
) -> Tensor:
    """One picture (3, H, W): a row for each image, its original, what is masked, the restored one.

    Args:
        network: Masked images and masks to restored images.
        images: A few images (N, C, H, W).
        transform: What is drawn.
        keys: Name the draws, one for each image.
    """
    found: Restored = restore(network, images, transform, KeyedDraws(keys, images))
    masked = found.corrupted.masks[0] * found.corrupted.noisy
    shown = torch.stack((images, masked, found.images.float()), 1).clamp(0.0, 1.0).cpu()
    if shown.shape[2] != 3:
        shown = shown.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    times = max(1, -(-_SIDE // shown.shape[-1]))
    shown = shown.repeat_interleave(times, 3).repeat_interleave(times, 4)
    rows, columns, _, height, width = shown.shape
    sheet = torch.ones(3, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + _GAP), column * (width + _GAP)
            sheet[:, top : top + height, left : left + width] = shown[row, column]
    return sheet


def save_panel(sheet: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) in [0, 1] as PNG, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    from PIL import Image

    pixels = (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    write_atomic(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
