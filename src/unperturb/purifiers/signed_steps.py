"""What purifiers of signed-gradient steps share: the loss they climb and the sign's derivative."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["own_cross_entropy", "sign"]


def own_cross_entropy(logits: Tensor) -> Tensor:
    """``CE(z, argmax z)`` of logits (N, K), for each image (N,)."""
    return F.cross_entropy(logits, logits.argmax(1), reduction="none")


def sign(gradient: Tensor) -> Tensor:
    """The sign of a gradient (N, C, H, W), with a smooth derivative where it has a graph.

    The derivative is that of ``tanh(g / mean|g|)``, the mean being each image's own and taken as
    a constant; the value is the sign itself.
    """
    step = gradient.sign()
    if not gradient.requires_grad:
        return step
    scale = gradient.detach().abs().flatten(1).mean(1).clamp_(min=1e-30)
    soft = (gradient / scale.view(-1, 1, 1, 1)).tanh()
    # Adding an exact zero keeps the value to the last bit.
    return step + (soft - soft.detach())
