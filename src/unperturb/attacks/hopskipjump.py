"""HopSkipJump: a decision-based attack, by Foolbox (Chen, Jordan and Wainwright 2020).

It knows labels only. From an image that meets the goal it goes to the boundary by bisection,
estimates the boundary's normal there from the decisions at ``B_t = B_0 sqrt(t)`` points around
(eq. 16)::

    v = 1 / (B - 1) * sum_b (phi(x_t + delta u_b) - mean phi) u_b,   phi = +1 where the goal is met

steps along it (Linf: along its sign), halving the step until the goal is still met (section IV-C),
and goes back to the boundary.

Foolbox runs that loop. What decides whether an image is treated rightly whatever its batch mates
is ours:

- Foolbox gives up on a batch when one image has no start. Ours are keyed random pictures, and an
  image for which none of them meets the goal stays as it is.
- Foolbox's estimate has one norm for the whole batch, so that under L2 each image's step shrinks
  with the number of its batch mates; ours has unit norm for each image.
- The directions are keyed by image and step, and no global generator is drawn from.
- The result is the nearest image that met the goal at any whole step of the search, not the last.
- Where the target is random, each decision is that of the majority of ``draws`` draws, the same
  ones in every query: bisection needs a boundary that stands still. The last check is made on
  fresh ones, and on the boundary it is open which way they fall.

Deviation from the paper: starts are pictures of random blocks of 1 to 16 pixels, because many
networks give one answer to all uniform noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.attacks.outside import fenced
from unperturb.attacks.surface import Surface
from unperturb.errors import MissingExtraError
from unperturb.threat import Threat

__all__ = ["HopSkipJump", "make_hopskipjump"]

_BLOCKS = (1, 2, 4, 8, 16)
_CHUNK = 16  # decisions whose directions are held at once
_MOST_EVALUATIONS = 10_000  # of one estimate, as in the paper


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(BaseAttack):
    """HopSkipJump under Linf or L2; needs labels only, and gives the nearest image it finds.

    Attributes:
        steps: Steps ``t`` of the search.
        evaluations: Decisions ``B_0`` of the first estimate; that of step t takes
            ``B_0 sqrt(t)``.
        starts: Random pictures that are tried for a start.
        gamma: Bisection stops at ``gamma / d^1.5`` (L2) or ``gamma / d^2`` (Linf) of the
            distance, d pixels; the estimate's radius follows from it.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> attack = make_hopskipjump(None)
        >>> attack.access, attack.bound, attack.rules
        ('labels', 'minimal', ('minimal',))
    """

    access: ClassVar[str] = "labels"
    bound: ClassVar[str] = "minimal"
    rules: ClassVar[tuple[str, ...]] = ("minimal",)

    steps: int = 10
    evaluations: int = 100
    starts: int = 50
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "evaluations", "starts")
        self._positive("gamma")

    @property
    def gradients(self) -> int:
        """Queries in gradients: a forward pass alone costs about a third of one."""
        estimates = sum(int(self.evaluations * math.sqrt(t)) for t in range(1, self.steps + 1))
        # About 25 halvings of each bisection, and some of each step.
        return math.ceil((estimates + self.starts + 30 * (self.steps + 1)) / 3)

    def check(self, surface: Surface, threat: Threat) -> None:
        """Refuse a norm without a form, and a library that is not there."""
        super().check(surface, threat)
        _library()

    def perturb(self, batch: Batch) -> None:
        """Search from the images that have a start."""
        batch.leave_unperturbed()
        rows, start = _starts(batch, self.starts)
        if not len(rows):
            return
        self._run_library(batch, rows, start)

    def _run_library(self, batch: Batch, rows: Tensor, start: Tensor) -> None:
        """Foolbox's search on these rows; one that it cannot go on with leaves the others be."""
        decision = _Decision(batch, rows)
        foolbox = _library()
        try:
            with fenced(0):
                search = _search(foolbox, decision)(
                    steps=self.steps,
                    initial_gradient_eval_steps=self.evaluations,
                    max_gradient_eval_steps=_MOST_EVALUATIONS,
                    gamma=self.gamma,
                    constraint=batch.threat.norm,
                )
                model = foolbox.PyTorchModel(decision, bounds=(0, 1), device=start.device)
                goal = foolbox.criteria.Misclassification(torch.zeros_like(rows))
                origin = batch.origin[rows].contiguous()
                search.run(model, origin, goal, starting_points=start.contiguous())
        except (AssertionError, ValueError):
            # Rounding has put a point on the wrong side, and Foolbox asserts that of the batch.
            for row in range(len(rows) if len(rows) > 1 else 0):
                self._run_library(batch, rows[row : row + 1], start[row : row + 1])
            if len(rows) > 1:
                return
        batch.best[rows] = decision.best


class _Decision(nn.Module):
    """Whether the goal is met, as scores (n, 2) of "no" and "yes"; keeps the nearest "yes"."""

    def __init__(self, batch: Batch, rows: Tensor) -> None:
        super().__init__()
        self.batch, self.rows = batch, rows
        self.keys = batch.domain("decide")
        self.estimates = 0
        self.best = batch.origin[rows].clone()
        self.distance = torch.full_like(self.best[:, 0, 0, 0], float("inf"))
        super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Decide on one image for each row."""
        met = self.met(images, self.rows)
        distance = self.batch.threat.distance(images, self.batch.origin[self.rows])
        better = met & (distance < self.distance)
        self.best[better], self.distance[better] = images[better], distance[better]
        return torch.stack((~met, met), 1).to(images.dtype)

    def met(self, images: Tensor, rows: Tensor) -> Tensor:
        """Whether the goal is met, (n,) bool."""
        index = self.batch.compact(rows)
        padding = len(index) - len(rows)
        padded = torch.cat((images, images[:1].expand(max(padding, 0), -1, -1, -1)))
        return self.batch.judge(padded, index, keys=self.keys).success[: len(rows)]

    def normal(self, point: Tensor, count: int, delta: Tensor) -> Tensor:
        """Estimate of the boundary's normal at each point, of unit L2 norm; eq. 16.

        Args:
            point: Points (n, C, H, W) on the boundary.
            count: Number of decisions B for each.
            delta: Radius (n,) at which they are taken.
        """
        signs = torch.zeros_like(point[:, :1, :1, :1])
        total, both = torch.zeros_like(point), torch.zeros_like(point)
        for first in range(0, count, _CHUNK):
            some = min(_CHUNK, count - first)
            around, shown = self._around(point, some, delta, f"around/{first}")
            phi = torch.stack([self.met(shown[:, b], self.rows) for b in range(some)], 1)
            phi = phi.to(point.dtype).view(*phi.shape, 1, 1, 1) * 2 - 1
            signs = signs + phi.sum(1)
            total += around.sum(1)
            both += (phi * around).sum(1)
        self.estimates += 1
        mean = signs / count
        # Where all agree there is nothing to subtract: their common side is the estimate.
        found = torch.where(mean.abs() == 1, both, both - mean * total)
        length = torch.linalg.vector_norm(found, dim=(1, 2, 3), keepdim=True)
        direction: Tensor = found / length.clamp(min=1e-12)
        return direction

    def _around(self, point: Tensor, count: int, delta: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Directions (n, count, C, H, W) and the points they lead to, in [0, 1]."""
        keys = self.batch.keys[self.rows].draw(self.estimates)
        shape, radius = (count, *point.shape[1:]), delta.view(-1, 1, 1, 1, 1)
        if self.batch.threat.norm == "l2":
            around = keys.normal(name, shape, device=point.device)
        else:
            around = 2 * keys.uniform(name, shape, device=point.device) - 1
        around = around.to(point.dtype)
        around /= torch.linalg.vector_norm(around, dim=(2, 3, 4), keepdim=True)
        shown = (point[:, None] + radius * around).clamp_(0.0, 1.0)
        # What clipping has left of each direction.
        return (shown - point[:, None]) / radius, shown


def _search(foolbox: Any, decision: _Decision) -> Any:
    """Foolbox's attack with our estimate of the normal."""

    class Search(foolbox.attacks.HopSkipJumpAttack):  # type: ignore[misc]
        def approximate_gradients(
            self, is_adversarial: Any, x_advs: Any, steps: int, delta: Any
        ) -> Any:
            return type(x_advs)(decision.normal(x_advs.raw, steps, delta.raw))

    return Search


def _starts(batch: Batch, tries: int) -> tuple[Tensor, Tensor]:
    """Rows that have a random picture which meets the goal, and these pictures."""
    rows = batch.left()
    start = batch.origin.clone()
    has = torch.zeros_like(batch.broken)
    _, channels, height, width = batch.origin.shape
    keys = batch.domain("decide")
    for number in range(tries):
        open_rows = rows[~has[rows]]
        if not len(open_rows):
            break
        block = _BLOCKS[number % len(_BLOCKS)]
        shape = (channels, -(-height // block), -(-width // block))
        named = batch.keys[open_rows].draw(number)
        small = named.uniform("picture", shape, device=rows.device).to(start.dtype)
        large = small.repeat_interleave(block, 2).repeat_interleave(block, 3)
        shown = large[:, :, :height, :width]
        index = batch.compact(open_rows)
        padding = shown[:1].expand(len(index) - len(open_rows), -1, -1, -1)
        met = batch.judge(torch.cat((shown, padding)), index, keys=keys).success
        met = met[: len(open_rows)]
        start[open_rows[met]] = shown[met]
        has[open_rows[met]] = True
    found = rows[has[rows]]
    return found, start[found]


def _library() -> Any:
    """Foolbox, imported where it is needed."""
    try:
        with fenced(0):
            import foolbox
    except ImportError as error:
        raise MissingExtraError(
            "foolbox", extra="attacks", purpose="HopSkipJump", detail=str(error)
        ) from error
    return foolbox


def make_hopskipjump(steps: int | None) -> HopSkipJump:
    """The family ``hopskipjump``: ``hopskipjump-STEPS``, 10 by default."""
    count = 10 if steps is None else steps
    return HopSkipJump(name=f"hopskipjump-{count}", steps=count)
