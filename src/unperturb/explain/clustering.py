"""How well classes keep together among features: the numbers beside every picture of them."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.attacks.outside import fenced

__all__ = ["neighbor_agreement", "silhouette"]

_ROWS = 1024


def neighbor_agreement(features: Tensor, labels: Tensor, *, neighbors: int = 10) -> float:
    """Share of the nearest neighbors that have the label of the point itself.

    ``mean over i of |{j in kNN(i): y_j = y_i}| / k`` with Euclidean distances and the point
    itself left out. Chance is the share of its own class among the other points: one in K where
    K classes are equally frequent.

    Args:
        features: (N, D), N at least 2.
        labels: True classes (N,).
        neighbors: k; where there are fewer other points, all of them.

    Returns:
        A number in [0, 1].

    Example:
        >>> neighbor_agreement(torch.tensor([[0.0], [1.0], [9.0], [10.0]]),
        ...                    torch.tensor([0, 0, 1, 1]), neighbors=1)
        1.0
    """
    points = features.double()
    count = min(neighbors, len(points) - 1)
    same = 0.0
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS]
        # The faster way by a matrix product loses the digits that tell near points apart.
        distance = torch.cdist(block, points, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(block), device=points.device)
        distance[own, own + start] = torch.inf
        nearest = distance.topk(count, largest=False).indices
        mine = labels[start : start + _ROWS, None].to(points.device)
        same += float((labels.to(points.device)[nearest] == mine).double().mean(1).sum())
    return same / len(points)


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette of the true classes (Rousseeuw 1987), by scikit-learn.

    ``(b - a) / max(a, b)`` for each point, with a its mean distance to its own class and b that to
    the nearest other class.

    Args:
        features: (N, D).
        labels: True classes (N,).

    Returns:
        A number in [-1, 1]; 0 where classes overlap wholly. None where it is not defined: fewer
        than two classes, or as many classes as points.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
        >>> round(silhouette(points, torch.tensor([0, 0, 1, 1])), 3)
        0.889
    """
    if not 2 <= len(labels.unique()) < len(labels):
        return None
    points, classes = features.double().cpu().numpy(), labels.cpu().numpy()
    with fenced(0):
        from sklearn.metrics import silhouette_score
        from threadpoolctl import threadpool_limits

        # One thread, so that the last digits are always the same.
        with threadpool_limits(limits=1):
            return float(silhouette_score(points, classes))
