"""Local transport of pixel mass: who may send where, what it costs, and what fits into [0, 1].

A transport of an image ``x`` sends ``f[i, k] >= 0`` of the mass of pixel ``i`` to the pixel that
lies ``o_k`` away, within a small window and within one channel; what is not sent stays. The image
it leaves is ``z_j = x_j - sum_k f[j, k] + sum_k f[j - o_k, k]``, of the same mass as ``x``, and
its cost ``sum_ik f[i, k] |o_k|_2`` is an upper bound of the exact optimal transport distance
between ``x`` and ``z``: that one may use any other plan.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Window", "fit", "moved"]

# Repairs that only scale come arbitrarily near to fitting; after these, what is over is taken back.
_SCALINGS = 20


class Window:
    """A square window of places that mass may be sent to.

    Attributes:
        size: Side length K in pixels, odd.
        costs: Euclidean distance of each of the K * K offsets in pixels, row by row, float64.
        center: Number of the offset that is no move.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size, self.center = size, (size * size) // 2
        steps = range(-(size // 2), size // 2 + 1)
        # Correctly rounded on every machine, where a vectorized root may be off in its last bit.
        costs = [math.sqrt(row * row + column * column) for row in steps for column in steps]
        self.costs = torch.tensor(costs, dtype=torch.float64, device=device)

    def classes(self) -> list[tuple[float, Tensor]]:
        """Each distance above 0 with the numbers of the offsets that are so far, nearest first.

        Example:
            >>> [(cost, len(offsets)) for cost, offsets in Window(3).classes()]
            [(1.0, 4), (1.4142135623730951, 4)]
        """
        distances = self.costs.unique()
        return [(float(d), (self.costs == d).nonzero().flatten()) for d in distances if d > 0]

    def gather(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """What each pixel finds at each of its offsets: (N, C, H, W) -> (N, C, K * K, H * W).

        Offsets that leave the image find ``fill``.
        """
        count, channels, height, width = values.shape
        padded = F.pad(values, (self.size // 2,) * 4, value=fill)
        seen = F.unfold(padded, self.size)
        return seen.view(count, channels, self.size**2, height * width)

    def scatter(self, flows: Tensor, shape: tuple[int, int]) -> Tensor:
        """What arrives at each pixel: from (N, C, K * K, H * W) to (N, C, H, W)."""
        count, channels = flows.shape[:2]
        rows = flows.reshape(count * channels, *flows.shape[2:])
        arrived = F.fold(rows, shape, self.size, padding=self.size // 2)
        return arrived.view(count, channels, *shape)

    def cost(self, flows: Tensor) -> Tensor:
        """Mass times distance of a transport, (N,)."""
        return (flows.sum(3) * self.costs.to(flows.dtype)).sum((1, 2))


def moved(images: Tensor, flows: Tensor, window: Window) -> Tensor:
    """The image that a transport leaves.

    Args:
        images: (N, C, H, W).
        flows: (N, C, K * K, H * W), 0 at the center and where an offset leaves the image.
        window: Where mass may go.

    Returns:
        (N, C, H, W) of the same mass.

    Example:
        >>> image, window = torch.tensor([[1.0, 0.0]]).view(1, 1, 1, 2), Window(3)
        >>> flows = torch.zeros(1, 1, 9, 2)
        >>> flows[0, 0, 5, 0] = 0.25  # the left pixel sends a quarter to its right
        >>> moved(image, flows, window).flatten().tolist(), float(window.cost(flows))
        ([0.75, 0.25], 0.25)
    """
    sent = flows.sum(2).view(images.shape)
    shape = (images.shape[2], images.shape[3])
    return images - sent + window.scatter(flows, shape)


def fit(images: Tensor, flows: Tensor, window: Window) -> Tensor:
    """A transport, made smaller where more is sent than there is, or more arrives than fits.

    What flows into a pixel above 1 is scaled down until it fits; that leaves more at its senders,
    so this is repeated. Flows only ever fall, hence so does the cost, and no flow at all fits.

    Args:
        images: (N, C, H, W) in [0, 1], float64.
        flows: (N, C, K * K, H * W), float64.
        window: Where mass may go.

    Returns:
        Flows like those given, with ``moved`` in [0, 1] up to float64 rounding. Images that fit
        already keep their flows to the last bit.
    """
    sent = flows.sum(2, keepdim=True)
    mass = images.flatten(2).unsqueeze(2)
    if bool((sent > mass).any()):
        flows = flows * torch.where(sent > mass, mass / sent.clamp(min=1e-300), 1.0)
    shape, turn = (images.shape[2], images.shape[3]), 0
    while True:
        arrived = window.scatter(flows, shape)
        stays = images - flows.sum(2).view(images.shape)
        over = stays + arrived > 1.0
        # What arrives where nothing does, is rounding.
        over &= arrived > 0.0
        if not bool(over.any()):
            return flows
        room = torch.zeros_like(arrived)
        if turn < _SCALINGS:
            # A hair below 1, or rounding would ask for the same again and again.
            room = ((1.0 - 1e-12 - stays) / arrived.clamp(min=1e-300)).clamp(0.0, 1.0)
        flows = flows * window.gather(torch.where(over, room, 1.0))
        turn += 1
