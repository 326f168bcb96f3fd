"""Square Attack: random search over square windows, by scores alone (Andriushchenko et al. 2020).

Algorithm 1: a window is changed, and the change is kept where it raises the margin
``m(x) = max_{j != y} z_j(x) - z_y(x)`` or meets the goal. The window's share of the image, ``p``,
falls from ``p_init`` to ``p_init / 512`` in the course of the queries.

- Linf (Algorithm 2): the start has vertical stripes ``x + eps * rho``, ``rho = +-1`` for each
  channel and column; a step sets a window to ``x + eps * rho``, ``rho = +-1`` for each channel.
- L2 (Algorithm 3): the start is a tiling with the pattern ``eta`` (eq. 2) of random signs; a step
  takes the energy of a second window, and all that the ball leaves unused, into a first one:
  ``nu_W1 <- a * t / |t|``, ``t = rho * eta / |eta| + nu_W1 / |nu_W1|``,
  ``a^2 = |nu_{W1 u W2}|^2 + (eps^2 - |nu|^2) / channels``.

Deviations from the paper: the milestones of ``p`` are those of the authors' code for 10,000
queries, scaled to the budget; each image has windows of its own, keyed by its id, where the
authors' later code shares one window among the batch; where a Linf step would change nothing a
second draw of the signs is tried (their first code draws until something changes). Where the
target is random, the margin is a mean over draws, the present point and the proposal are compared
on the same fresh draws (a lucky margin of the past must not block every later step: twice the
queries), and an image leaves only by the majority of draws that were not used before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import VOTES, Batch, through
from unperturb.attacks.surface import Judged
from unperturb.errors import ConfigError

__all__ = ["Square", "make_square", "share"]

MILESTONES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the share of a window is halved."""

Window = tuple[Tensor, Tensor, Tensor, Tensor]
"""Index of a window of each image: rows, channels, and places that broadcast to (n, C, s, s)."""

_CHUNK = 64  # steps whose random numbers are drawn at once


def share(step: int, steps: int, p_init: float) -> float:
    """The share ``p`` of the image that the window of a step covers.

    Args:
        step: Number of the query, from 0.
        steps: Queries in all.
        p_init: The first share, in (0, 1].

    Example:
        >>> [share(step, 10_000, 0.8) for step in (0, 11, 60, 9000)]
        [0.8, 0.4, 0.2, 0.0015625]
    """
    scaled = step * 10_000 // steps
    return p_init / 2.0 ** sum(scaled > milestone for milestone in MILESTONES)


@dataclass(frozen=True, kw_only=True)
class Square(BaseAttack):
    """Square Attack; needs scores, no gradients.

    Attributes:
        steps: Queries for each image, the start included (the authors' 5,000 in AutoAttack).
            Under the rule ``fixed`` all are spent; the best point so far is the result.
        p_init: Share of the image that the first windows cover, in (0, 1].

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> Square(name="square-500", steps=500).access
        'scores'
    """

    access: ClassVar[str] = "scores"

    steps: int = 1000
    p_init: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps")
        self._positive("p_init")
        if self.p_init > 1:
            raise ConfigError(
                f"p_init of attack {self.name!r} is {self.p_init}", expected="above 0, at most 1"
            )

    @property
    def gradients(self) -> int:
        """Queries in gradients: a forward pass alone costs about a third of one."""
        return math.ceil(self.steps / 3)

    def perturb(self, batch: Batch) -> None:
        """Random search over the images that are not broken yet."""
        rows = batch.left()
        if not len(rows):
            return
        search = _Search(batch, self.steps, self.p_init)
        search.start(rows)
        for step in range(1, self.steps):
            rows = batch.left()
            if not len(rows):
                return
            search.step(rows, step)


class _Search:
    """The points of a batch and what is known of them.

    A step writes its windows into ``batch.best`` and takes them back where they are no better: a
    query then costs little beside the forward pass.
    """

    def __init__(self, batch: Batch, steps: int, p_init: float) -> None:
        self.batch, self.steps, self.p_init = batch, steps, p_init
        self.linf = batch.threat.norm == "linf"
        _, self.channels, self.height, self.width = batch.origin.shape
        self.value = batch.best_value
        self.won = torch.zeros_like(batch.broken)
        self._chunk = -1
        self._numbers = self._energy = batch.origin.new_empty(0)

    def start(self, rows: Tensor) -> None:
        """The first query: stripes, or a tiling."""
        batch = self.batch
        batch.best[rows] = _stripes(batch, rows) if self.linf else _tiles(batch, rows)
        judged = self._judge(rows, 0)
        self.value[rows] = judged.margins.to(self.value.dtype)
        self.won[rows] = judged.success
        self._leave(rows, judged.success, 0)

    def step(self, rows: Tensor, step: int) -> None:
        """One query."""
        drawn = self._draw(rows, step)
        known, before = self.value[rows], self.won[rows]
        if self.batch.surface.stochastic:
            present = self._judge(rows, step)
            known, before = present.margins.to(self.value.dtype), present.success
        area = share(step, self.steps, self.p_init) * self.height * self.width
        undo = (self._recolor if self.linf else self._gather)(rows, drawn, math.sqrt(area))
        judged = self._judge(rows, step)
        value, won = judged.margins.to(self.value.dtype), judged.success
        better = (won & ~before) | ((won == before) & (value > known))
        undo(~better)
        self.value[rows] = torch.where(better, value, known)
        self.won[rows] = torch.where(better, won, before)
        self._leave(rows, better & won, step)

    def _recolor(self, rows: Tensor, drawn: Tensor, side: float) -> Callable[[Tensor], None]:
        """Set one window of each image to another corner of the Linf ball."""
        size = min(max(round(side), 1), self.height, self.width)
        at = self._window(rows, drawn[:, 0], drawn[:, 1], size)
        origin, saved = self.batch.origin[at], self.batch.best[at]
        first, second = drawn[:, 5 : 5 + self.channels], drawn[:, 5 + self.channels :]

        def corner(uniform: Tensor) -> Tensor:
            moved = origin + self.batch.threat.eps * _signs(uniform)[..., None, None]
            return moved.clamp_(0.0, 1.0)

        made = corner(first)
        same = (made == saved).flatten(1).all(1)
        if bool(same.any()):
            made = corner(torch.where(same[:, None], second, first))
        self.batch.best[at] = made

        def undo(where: Tensor) -> None:
            self.batch.best[_some(at, where)] = saved[where]

        return undo

    def _gather(self, rows: Tensor, drawn: Tensor, side: float) -> Callable[[Tensor], None]:
        """Algorithm 3: move the energy of two windows, and what is unused, into the first."""
        batch = self.batch
        size = min(max(round(side), 3) | 1, self.height, self.width)
        first = self._window(rows, drawn[:, 0], drawn[:, 1], size)
        second = self._window(rows, drawn[:, 2], drawn[:, 3], size)
        origin, saved = batch.origin[first], batch.best[first]
        batch.best[first] = origin
        # What the second window holds besides the first.
        other = batch.best[second]
        base = batch.origin[second]
        batch.best[second] = base
        inner, outer = saved - origin, other - base
        known = inner.double().square().sum((2, 3)) + outer.double().square().sum((2, 3))
        energy = self._energy[rows]
        unused = (batch.threat.eps**2 - energy).clamp(min=0.0)
        eta = _patterns(drawn[:, 4], size)[:, None]
        mixed = _signs(drawn[:, 5 : 5 + self.channels])[..., None, None] * eta + _unit(inner)
        length = (known + unused[:, None] / self.channels).clamp(min=0.0).sqrt().to(mixed.dtype)
        made = (origin + _unit(mixed) * length[..., None, None]).clamp_(0.0, 1.0)
        batch.best[first] = made
        spent = (made - origin).double().square().sum((1, 2, 3))
        self._energy[rows] = energy - known.sum(1) + spent

        def undo(where: Tensor) -> None:
            batch.best[_some(second, where)] = other[where]
            batch.best[_some(first, where)] = saved[where]
            self._energy[rows[where]] = energy[where]

        return undo

    def _window(self, rows: Tensor, down: Tensor, right: Tensor, side: int) -> Window:
        """Index of one window of each image, at places given by uniform numbers (n,)."""
        span = torch.arange(side, device=rows.device)
        top, left = _corner(down, self.height, side), _corner(right, self.width, side)
        return (
            rows.view(-1, 1, 1, 1),
            torch.arange(self.channels, device=rows.device).view(1, -1, 1, 1),
            (top[:, None] + span)[:, None, :, None],
            (left[:, None] + span)[:, None, None, :],
        )

    def _leave(self, rows: Tensor, out: Tensor, step: int) -> None:
        """Let go of images that meet the goal; of random targets, by a vote on fresh draws."""
        batch = self.batch
        rows = rows[out]
        if not batch.early or not len(rows):
            return
        if batch.surface.stochastic:
            rows = rows[through(self._judge(rows, step, votes=VOTES))]
        batch.broken[rows] = True

    def _judge(self, rows: Tensor, step: int, votes: int = 0) -> Judged:
        batch = self.batch
        index = batch.compact(rows)
        point = batch.best if len(rows) == len(batch) else batch.best[index]
        keys = batch.domain("vote") if votes else None
        found = batch.judge(point, index, draw=step, keys=keys, votes=max(votes, 1))
        count = len(rows)
        share = None if found.share is None else found.share[:count]
        return found._replace(
            success=found.success[:count], margins=found.margins[:count], share=share
        )

    def _draw(self, rows: Tensor, step: int) -> Tensor:
        """Uniform numbers (n, 5 + 2 C) of one step: places, orientation, signs twice."""
        batch = self.batch
        chunk, place = divmod(step, _CHUNK)
        if chunk != self._chunk:
            # Many steps at once: the generator's price is that of its calls. Rows that have left
            # since are carried along until the next chunk.
            size = (_CHUNK, 5 + 2 * self.channels)
            some = batch.keys[rows].draw(chunk).uniform("square", size, device=rows.device)
            self._numbers = some.new_zeros((len(batch), *size))
            self._numbers[rows] = some
            moved = (batch.best - batch.origin).flatten(1).double()
            self._energy = moved.square().sum(1)
            self._chunk = chunk
        return self._numbers[rows, place].to(batch.origin.dtype)


def _some(at: Window, where: Tensor) -> Window:
    """The windows of some images."""
    return (at[0][where], at[1], at[2][where], at[3][where])


def _signs(uniform: Tensor) -> Tensor:
    """-1 or 1."""
    return (uniform < 0.5).to(uniform.dtype) * 2 - 1


def _stripes(batch: Batch, rows: Tensor) -> Tensor:
    """Vertical stripes of either end of the ball."""
    origin = batch.origin[rows]
    channels, _, width = origin.shape[1:]
    keys = batch.keys[rows].draw(0)
    drawn = keys.uniform("stripes", (channels, 1, width), device=origin.device)
    return batch.threat.project(origin + batch.threat.eps * _signs(drawn).to(origin.dtype), origin)


def _corner(uniform: Tensor, length: int, side: int) -> Tensor:
    """The first row or column of a window, uniform on 0 to ``length - side``."""
    # In float32 a number just below 1 times the count can round to the count itself.
    return (uniform * (length - side + 1)).long().clamp_(max=length - side)


def hill(height: int, width: int) -> Tensor:
    """The pyramid of eq. 2: ``sum_{k >= d} 1 / (k + 1)^2`` at Chebyshev distance d of the middle.

    Example:
        >>> hill(3, 1).flatten().tolist()
        [0.25, 1.25, 0.25]
    """
    down = (torch.arange(height) - height // 2).abs()
    right = (torch.arange(width) - width // 2).abs()
    longest = max(height, width) // 2
    steps = 1.0 / torch.arange(1, longest + 2, dtype=torch.float64) ** 2
    tails = steps.flip(0).cumsum(0).flip(0)
    found: Tensor = tails[torch.maximum(down[:, None], right[None])]
    return found


def pattern(side: int) -> Tensor:
    """``eta`` (side, side) of unit norm: a hill beside a valley."""
    half = side // 2
    both = torch.cat((hill(side, half), -hill(side, side - half)), 1)
    found: Tensor = both / both.norm()
    return found


def _patterns(uniform: Tensor, side: int) -> Tensor:
    """``eta`` or its transpose for each number, (..., side, side)."""
    eta = pattern(side).to(uniform)
    return torch.where((uniform < 0.5)[..., None, None], eta, eta.T)


def _tiles(batch: Batch, rows: Tensor) -> Tensor:
    """A tiling with about five times five patterns of random signs, of norm eps."""
    origin = batch.origin[rows]
    count, channels, height, width = origin.shape
    side = max(min(height, width) // 5, 1)
    down, right = height // side, width // side
    keys = batch.keys[rows].draw(0)
    drawn = keys.uniform("tiles", (down, right, channels + 1), device=origin.device)
    drawn = drawn.to(origin.dtype)
    tiles = (
        _patterns(drawn[..., 0], side)[..., None, :, :] * _signs(drawn[..., 1:])[..., None, None]
    )
    # (n, down, right, C, side, side) to (n, C, down * side, right * side).
    whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, down * side, right * side)
    delta = torch.zeros_like(origin)
    top, left = (height - down * side) // 2, (width - right * side) // 2
    delta[:, :, top : top + down * side, left : left + right * side] = whole
    delta *= (batch.threat.eps / delta.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    return batch.threat.project(origin + delta, origin)


def _unit(window: Tensor) -> Tensor:
    """Each channel's window at unit norm; zero stays zero."""
    length = torch.linalg.vector_norm(window, dim=(2, 3), keepdim=True)
    found: Tensor = window / length.clamp(min=1e-12)
    return found


def make_square(steps: int | None) -> Square:
    """The family ``square``: ``square-QUERIES``, 1,000 by default."""
    count = 1000 if steps is None else steps
    return Square(name=f"square-{count}", steps=count)
