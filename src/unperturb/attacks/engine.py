"""The first-order attack engine: FGSM, BIM, PGD and MIM are settings of this one loop.

``x <- P(x + step * ascent(g))`` with ``g`` the input gradient of a loss (with momentum: its
decayed sum), ``P`` the projection on the ball and on [0, 1], and for random defenses the mean of
the *loss gradients* over several draws (expectation over transformation, Athalye et al. 2018).

Two stopping rules, never mixed up:

- ``fixed``: all steps are run and the last image is the result. The papers' rule; the only one
  whose images may be shown to another model. With a loss of ``KEEP_BEST`` the result is the best
  point that met the goal, if any did.
- ``first-success``: an image leaves as soon as it meets the goal, and the batch shrinks to one
  of a few fixed sizes; one that meets it unperturbed leaves at once, as it is. For the worst
  case against the attacked module itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch, Objective, View, through
from unperturb.attacks.losses import KEEP_BEST, LOSSES
from unperturb.errors import ConfigError, unknown_name

__all__ = ["FirstOrder", "start_point"]


@dataclass(frozen=True, kw_only=True)
class FirstOrder(BaseAttack):
    """A first-order attack; frozen, so that it can be hashed into every record.

    Attributes:
        steps: Gradient steps.
        step_size: Step as a fraction of eps.
        momentum: Decay ``mu`` of the accumulated gradient (MIM, Dong et al. 2018); 0 for none.
            With momentum each gradient is first divided by its L1 norm.
        random_start: Begin at a random point of the ball.
        restarts: Runs from independent starts.
        loss: ``ce``, ``margin`` or ``dlr`` (below four classes ``dlr`` is ``margin``).

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> attack = FirstOrder(name="fgsm", steps=1, step_size=1.0)
        >>> attack.draws
        1
    """

    losses: ClassVar[tuple[str, ...]] = tuple(LOSSES)

    steps: int
    step_size: float
    momentum: float = 0.0
    random_start: bool = False
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "restarts")
        self._positive("momentum", zero=True)
        if not 0 < self.step_size < float("inf"):
            raise ConfigError(
                f"step_size of attack {self.name!r} is {self.step_size}",
                expected="above 0, as a fraction of eps",
            )
        if self.loss not in self.losses:
            raise unknown_name("loss", self.loss, self.losses)
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(
                f"Attack {self.name!r} has {self.restarts} restarts and no random start",
                expected="random_start=True, or one restart",
            )

    def objective(self, batch: Batch) -> Objective:
        """What is raised; a subclass may raise something else."""
        return batch.loss(self.loss)

    def view(self) -> View | None:
        """What the target is shown in place of a point; None: the point itself."""
        return None

    def smooth(self, gradient: Tensor) -> Tensor:
        """The gradient (n, C, H, W) as the step takes it; a subclass may smooth it."""
        return gradient

    def perturb(self, batch: Batch) -> None:
        """Run from every start, over the images that are not broken yet."""
        objective = self.objective(batch)
        for restart in range(self.restarts):
            self._restart(batch, objective, restart)

    def _restart(self, batch: Batch, objective: Objective, number: int) -> None:
        """One run from one start."""
        rows = batch.left()
        if not len(rows):
            return
        threat, view = batch.threat, self.view()
        point = batch.origin.clone()
        if self.random_start:
            point = start_point(batch, number)
        velocity = torch.zeros_like(point) if self.momentum else None
        project = threat.projector(batch.origin)
        # What is shown in the place of a point says nothing sure of the point.
        keeps = self.loss in KEEP_BEST and not batch.early and view is None
        kept = _Kept(batch) if keeps else None
        for step in range(self.steps):
            index = batch.compact(rows)
            some = point if len(rows) == len(point) else point[index]
            draw = number * self.steps + step
            gradient, value, met, wrong = batch.gradient(some, index, draw, objective, view=view)
            if kept is not None:
                kept.offer(rows, point[rows], value[: len(rows)], met[: len(rows)])
            if batch.early and view is not None:
                # That pass has not seen the point itself.
                wrong = through(batch.judge(some, index, draw=draw))
            gradient, wrong = self.smooth(gradient[: len(rows)]), wrong[: len(rows)]
            if batch.early and bool(wrong.any()):
                # The forward pass that gave the gradient also shows who is through.
                out = rows[wrong]
                batch.leave(out, point[out])
                rows, gradient = rows[~wrong], gradient[~wrong]
                if not len(rows):
                    return
            whole = len(rows) == len(point)
            if velocity is not None:
                size = gradient.flatten(1).abs().sum(1).clamp_(min=1e-38).view(-1, 1, 1, 1)
                past = velocity if whole else velocity[rows]
                gradient = past.mul_(self.momentum).add_(gradient / size)
                if not whole:
                    velocity[rows] = gradient
            step_taken = (self.step_size * threat.eps) * threat.ascent(gradient)
            if whole:
                # While nobody has left, four copies of the batch are saved at each step.
                point = project(point + step_taken).contiguous(memory_format=batch.layout)
            else:
                point[rows] = threat.project(point[rows] + step_taken, batch.origin[rows])
        if kept is not None:
            index = batch.compact(rows)
            last = batch.gradient(point[index], index, (number + 1) * self.steps, objective)
            kept.offer(rows, point[rows], last.value[: len(rows)], last.wrong[: len(rows)])
            point = torch.where(kept.met.view(-1, 1, 1, 1), kept.images, point)
        if self.restarts == 1:
            batch.best[rows] = point[rows]
        else:
            batch.offer(rows, point[rows], draw=number)


class _Kept:
    """Of each image the point with the greatest loss among those that met the goal in a run."""

    def __init__(self, batch: Batch) -> None:
        self.images = batch.origin.clone()
        self.value = torch.full_like(batch.best_value, float("-inf"))
        self.met = torch.zeros_like(batch.broken)

    def offer(self, rows: Tensor, images: Tensor, value: Tensor, met: Tensor) -> None:
        """Points (n, C, H, W) of these rows, their losses (n,) and whether they meet the goal."""
        better = met & (value > self.value[rows])
        chosen = rows[better]
        self.images[chosen], self.value[chosen] = images[better], value[better].to(self.value.dtype)
        self.met[chosen] = True


def start_point(batch: Batch, number: int) -> Tensor:
    """A random point of every image's ball."""
    keys = batch.keys.draw(number)
    shape, device = batch.origin.shape[1:], batch.origin.device
    uniform = keys.uniform("start", shape, device=device)
    normal = keys.normal("direction", shape, device=device) if batch.threat.norm == "l2" else None
    start = batch.origin + batch.threat.start(uniform, normal).to(batch.origin.dtype)
    found = batch.threat.project(start, batch.origin)
    return found.contiguous(memory_format=batch.layout)
