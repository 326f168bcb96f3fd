"""What minimal-norm attacks share: keep the nearest image that meets the goal, and make sure of it.

A minimal-norm attack asks how far an image must be moved, not whether a ball of a given size is
enough. Whatever its search is, its result is the nearest image that was *seen* to meet the goal.
Two things are then done with it, both forward passes only:

- ``refine``: bisection on the segment to the clean image, so that what the search's last steps
  left beyond the boundary is given back; not where the target is random.
- confirmation in one forward pass of the whole batch, on draws of its own. An image so near the
  boundary that rounding or chance takes its success away is moved outward along its segment, by
  twice as much each time, until it is confirmed.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.attacks.surface import Judged
from unperturb.threat import Threat, make_threat

__all__ = ["MinimalNorm", "Nearest"]

# Outward moves of an image that is not confirmed, as parts of its distance.
_NUDGES = tuple(0.001 * 2**power for power in range(8))
# For random targets: ten times as far, since many looks at few draws have found an image that was
# lucky, and not one that is near; and the draws whose majority confirms it.
_WIDER, _VOTES = 10.0, 33


class Nearest:
    """The nearest image that meets the goal, for each image of a batch; lives in ``batch.best``.

    Attributes:
        distance: Its distance (N,) in the attack's norm; infinite where there is none.
        confidence: Margin by which the goal must be met.
    """

    def __init__(self, batch: Batch, norm: str, confidence: float = 0.0) -> None:
        self.batch, self.confidence = batch, confidence
        self._norm: Threat = make_threat(norm, 1.0)
        self.distance = torch.full_like(batch.best_value, float("inf"))

    def offer(self, rows: Tensor, images: Tensor, success: Tensor) -> None:
        """Keep those of the images (n, C, H, W) that meet the goal and are nearer than any before.

        Args:
            rows: Rows of the batch (n,), without padding.
            images: Images in [0, 1].
            success: Whether each meets the goal (n,).
        """
        if not bool(success.any()):
            return
        rows, images = rows[success], images[success]
        found = self._norm.distance(images, self.batch.origin[rows]).to(self.distance.dtype)
        better = found < self.distance[rows]
        chosen = rows[better]
        self.batch.best[chosen] = images[better]
        self.distance[chosen] = found[better]

    def found(self) -> Tensor:
        """Rows that have an image, (n,) int64."""
        return torch.isfinite(self.distance).nonzero().flatten()

    def refine(self, rounds: int) -> None:
        """Bisect the segment from the clean image to the nearest, ``rounds`` times.

        Not for random targets: it would keep what was lucky ``rounds`` times more.
        """
        batch, rows = self.batch, self.found()
        if not rounds or not len(rows) or batch.surface.stochastic:
            return
        index = batch.compact(rows)
        start = batch.origin[index]
        path = batch.best[index] - start
        low = torch.zeros(len(index), dtype=path.dtype, device=path.device)
        high = torch.ones_like(low)
        for number in range(rounds):
            middle = (low + high) / 2
            point = (start + middle.view(-1, 1, 1, 1) * path).clamp_(0.0, 1.0)
            success = self._met(batch.judge(point, index, draw=number))
            high, low = torch.where(success, middle, high), torch.where(success, low, middle)
            self.offer(rows, point[: len(rows)], success[: len(rows)])

    def confirm(self) -> None:
        """Judge the whole batch at once, and move outward what does not meet the goal there."""
        batch, keys = self.batch, self.batch.domain("confirm")
        everything = torch.arange(len(batch), device=batch.origin.device)
        met = self._met(batch.judge(batch.best, everything, keys=keys, votes=_VOTES))
        rows = (torch.isfinite(self.distance) & ~met).nonzero().flatten()
        wider = _WIDER if batch.surface.stochastic else 1.0
        for number, nudge in enumerate(_NUDGES, start=1):
            if not len(rows):
                return
            index = batch.compact(rows)
            path = batch.best[index] - batch.origin[index]
            point = (batch.origin[index] + (1.0 + wider * nudge) * path).clamp_(0.0, 1.0)
            judged = batch.judge(point, index, draw=number, keys=keys, votes=_VOTES)
            met = self._met(judged)[: len(rows)]
            done = rows[met]
            batch.best[done] = point[: len(rows)][met]
            moved = self._norm.distance(batch.best[done], batch.origin[done])
            self.distance[done] = moved.to(self.distance.dtype)
            rows = rows[~met]

    def _met(self, judged: Judged) -> Tensor:
        # Without a confidence, a tie that counts as an answer of another class is a success.
        if not self.confidence:
            return judged.success
        return judged.success & (judged.margins >= self.confidence)


@dataclass(frozen=True, kw_only=True)
class MinimalNorm(BaseAttack):
    """Base of the minimal-norm attacks; a method implements ``approach``.

    It has one stopping rule, ``minimal``: the result is the nearest image found that meets the
    goal, whatever the size of the threat model's ball, and the clean image where there is none or
    where that meets the goal already.

    Attributes:
        refine: Rounds of bisection between the result and the clean image.

    Raises:
        ConfigError: A number is out of range.
    """

    bound: ClassVar[str] = "minimal"
    rules: ClassVar[tuple[str, ...]] = ("minimal",)

    refine: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine:
            self._whole("refine")

    def measured(self, threat: Threat) -> str:
        """Norm in which the attack looks for the nearest image."""
        return "l2"

    def required(self) -> float:
        """Margin by which the goal must be met."""
        return 0.0

    def perturb(self, batch: Batch) -> None:
        """Search for each image that is answered rightly; refine and confirm what is found."""
        batch.leave_unperturbed()
        if not len(batch.left()):
            return
        nearest = Nearest(batch, self.measured(batch.threat), self.required())
        self.approach(batch, nearest)
        nearest.refine(self.refine)
        nearest.confirm()
        batch.broken[nearest.found()] = True

    @abstractmethod
    def approach(self, batch: Batch, nearest: Nearest) -> None:
        """The mathematics: offer to ``nearest`` every image that meets the goal."""
