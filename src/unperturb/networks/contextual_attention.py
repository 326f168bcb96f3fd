"""Filling holes with what is seen elsewhere in the image: contextual attention.

Yu et al. 2018, section 4.1: each place is described by its 3x3 neighborhood, compared with all
others by cosine similarity, and filled with a softmax-weighted mean of those that are visible.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ContextualAttention"]

_SHARPNESS = 10.0
_MOST = 1024
_UNSEEN = 1e-6


class ContextualAttention(nn.Module):
    """Features (N, C, h, w) and their visibility to features borrowed from visible places.

    Deviations from Yu et al.: no propagation of the scores to neighbors (their eq. 4); what is
    borrowed is a place's own feature, not its whole neighborhood, so that nothing is averaged
    twice; places that are seen in part count by their visible share. Where there are more than
    1,024 places, features are compared at half the resolution, as theirs are.

    Example:
        >>> import torch
        >>> attention = ContextualAttention()
        >>> attention(torch.rand(2, 4, 8, 8), torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Borrowed features.

        Args:
            features: (N, C, h, w).
            visible: Share of each place that is seen, (N, 1, h, w) in [0, 1].
        """
        size = features.shape[-2:]
        coarse, seen = features, visible
        while coarse.shape[-1] * coarse.shape[-2] > _MOST:
            coarse, seen = (F.avg_pool2d(part, 2, ceil_mode=True) for part in (coarse, seen))
        around = F.unfold(coarse, 3, padding=1)
        around = F.normalize(around, dim=1, eps=1e-6)
        likeness = _SHARPNESS * around.transpose(1, 2) @ around
        # A place that is not seen is as good as never chosen, and the softmax stays finite.
        likeness = likeness + (seen.flatten(2) + _UNSEEN).log()
        borrowed = coarse.flatten(2) @ likeness.softmax(-1).transpose(1, 2)
        borrowed = borrowed.view_as(coarse)
        if coarse.shape[-2:] != size:
            borrowed = F.interpolate(borrowed, size=size, mode="nearest")
        return borrowed
