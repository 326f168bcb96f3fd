"""Losses between corrected logits and the true labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]

_SMOOTHING = 0.1
_MARGIN = 1.0


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    right = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return torch.relu(_MARGIN + others.amax(1) - right).mean()


LOSSES: dict[str, Loss] = {
    "ce": F.cross_entropy,
    "label-smoothing": _smoothed,
    "margin": _margin,
}
"""From logits (N, K) and labels (N,) to the mean loss: cross-entropy; cross-entropy with labels
smoothed by 0.1; and the hinge ``max(0, 1 + max_(k != y) z_k - z_y)`` of Crammer and Singer."""
