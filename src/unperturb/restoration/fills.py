"""What a network that restores must beat: holes filled by the mean, or along straight lines."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bilinear_fill", "mean_fill"]


def mean_fill(masked: Tensor, mask: Tensor) -> Tensor:
    """Each dropped pixel becomes the mean of the image's visible ones, channel by channel.

    Args:
        masked: ``mask * image`` (N, C, H, W).
        mask: (N, 1, H, W), 1 where a pixel is kept.

    Example:
        >>> mask = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3)
        >>> mean_fill(mask * torch.tensor([0.25, 0.75, 0.0]).view(1, 1, 1, 3), mask).flatten()
        tensor([0.2500, 0.7500, 0.5000])
    """
    mean = masked.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1.0)
    return masked + (1.0 - mask) * mean


def bilinear_fill(masked: Tensor, mask: Tensor) -> Tensor:
    """Each dropped pixel lies on straight lines between its visible neighbors in row and column.

    The nearest visible pixels to the left, right, above and below, weighted by one over their
    distance: along one axis that is linear interpolation, and both axes count by how near they
    see. Where nothing is visible in row and column, the mean.

    Args:
        masked: ``mask * image`` (N, C, H, W).
        mask: (N, 1, H, W), 1 where a pixel is kept.

    Example:
        >>> mask = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
        >>> bilinear_fill(torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4), mask).flatten()
        tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """
    total, weights = torch.zeros_like(masked), torch.zeros_like(mask)
    for dim in (2, 3):
        for backwards in (False, True):
            value, weight = _nearest(masked, mask, dim, backwards)
            total, weights = total + weight * value, weights + weight
    lined = total / weights.clamp(min=1e-12)
    filled = torch.where(weights > 0, lined, mean_fill(masked, mask))
    return torch.where(mask > 0.5, masked, filled)


def _nearest(masked: Tensor, mask: Tensor, dim: int, backwards: bool) -> tuple[Tensor, Tensor]:
    """The last visible pixel before each pixel along an axis, and one over its distance."""
    if backwards:
        value, weight = _nearest(masked.flip(dim), mask.flip(dim), dim, False)
        return value.flip(dim), weight.flip(dim)
    shape = [1] * 4
    shape[dim] = mask.shape[dim]
    here = torch.arange(mask.shape[dim], device=mask.device).view(shape).expand(mask.shape)
    last = torch.where(mask > 0.5, here, -1).cummax(dim).values
    value = masked.gather(dim, last.clamp(min=0).expand(masked.shape))
    distance = (here - last).to(mask.dtype).clamp(min=1.0)
    return value, torch.where(last >= 0, 1.0 / distance, 0.0)
