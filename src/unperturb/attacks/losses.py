"""Attack losses: what an attacker *raises*, one number for each image."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

__all__ = ["KEEP_BEST", "LOSSES", "both_up", "cross_entropy", "dlr", "margin", "resolve_loss"]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """``CE(z, y) = logsumexp(z) - z_y``.

    Args:
        scores: (N, K).
        labels: (N,).

    Returns:
        (N,), at least 0.
    """
    return F.cross_entropy(scores, labels, reduction="none")


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y`` (Carlini, Wagner 2017): above zero where the answer is wrong.

    Args:
        scores: (N, K), K >= 2.
        labels: (N,).

    Returns:
        (N,).

    Example:
        >>> import torch
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).item()
        -1.0
    """
    true = scores.gather(1, labels[:, None]).squeeze(1)
    others = scores.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - true


def dlr(scores: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6).

    ``-(z_y - max_{j != y} z_j) / (z_pi1 - z_pi3)``, with pi the descending order of the scores:
    the margin, made independent of their scale.

    Args:
        scores: (N, K), K >= 4 (with three classes the ratio is constant for wrong answers).
        labels: (N,).

    Returns:
        (N,).
    """
    top = scores.topk(3, dim=1).values
    return margin(scores, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def both_up(scores: Tensor, labels: Tensor) -> Tensor:
    """``min(margin, 1) + z_y``: raise another logit past the true one, then raise both.

    Not a stronger attack but one that leaves no trace of the usual kind: below a margin of 1 it
    raises the other logit alone, above it the true class's. It stands for the regularized attacks
    that ALU speaks of in a footnote and does not define: they break the pattern that its decision
    goes by, the true class's logit dropping most. Signed steps around the margin's cap swing to and
    fro across the boundary, so PGD keeps the best of its points with this loss (``KEEP_BEST``).

    Args:
        scores: (N, K), K >= 2.
        labels: (N,).

    Returns:
        (N,).

    Example:
        >>> import torch
        >>> both_up(torch.tensor([[3.0, 1.0], [3.0, 7.0]]), torch.tensor([0, 0])).tolist()
        [1.0, 4.0]
    """
    true = scores.gather(1, labels[:, None]).squeeze(1)
    return margin(scores, labels).clamp(max=1.0) + true


Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "both-up": both_up,
}
"""Attack losses by name."""


KEEP_BEST = ("both-up",)
"""Losses whose last point is not their best: with all steps run, first-order attacks keep of all
points that they evaluate the one with the greatest loss among those that meet the goal, and the
last where none does. More steps then never lose an image, at the cost of one more gradient."""


def resolve_loss(name: str, num_classes: int) -> str:
    """The loss that is really used: ``dlr`` needs four classes, and is ``margin`` below that.

    Example:
        >>> resolve_loss("dlr", 3), resolve_loss("dlr", 10)
        ('margin', 'dlr')
    """
    return "margin" if name == "dlr" and num_classes < 4 else name
