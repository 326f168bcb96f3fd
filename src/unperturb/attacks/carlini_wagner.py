"""C&W L2 (Carlini and Wagner 2017): a penalty for what is left of the margin, weighed by search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unperturb.attacks.batch import Batch, Objective
from unperturb.attacks.minimal import MinimalNorm, Nearest

__all__ = ["CarliniWagner", "make_cw_l2"]

# The box of the change of variables is this part larger than [0, 1]: a pixel at exactly 0 or 1
# lies at a finite w with a slope above zero, and is not frozen there.
_STRETCH = 0.1
_BOUND = math.atanh(1.0 / (1.0 + _STRETCH))
_BETAS = (0.9, 0.999)
_GROWTH = 10.0
_MOST = 1e10
# First constant when none is given, as a multiple of the one that fits a linear model.
_SLACK = 4.0
# Limits of Adam's step when none is given, and the step where no gradient shows the way.
_LR = (0.001, 0.2)
_USUAL_LR = 0.01


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(MinimalNorm):
    """C&W L2: Adam on the squared distance and a hinge of the margin (Carlini, Wagner 2017).

    With ``x'(w)`` in [0, 1] and ``m`` the margin ``max_{j != y} z_j - z_y`` (their eq. for the
    L2 attack, section VI.A, with objective function ``f_6``)::

        minimize over w   ||x'(w) - x||_2^2 + c max(confidence - m(x'(w)), 0)

    ``c`` is searched for each image: times 10 until the goal is met, then by bisection, each time
    with a fresh run of Adam.

    Carlini and Wagner. *Towards Evaluating the Robustness of Neural Networks.* IEEE S&P 2017.

    Deviations, all for each image by itself:

    - ``x' = ((1 + s) tanh(w) + 1) / 2`` with s = 0.1 and ``w`` kept where x' lies in [0, 1]; the
      paper has s = 0, where pixels at exactly 0 and 1 cannot move. So a clean image is its own
      start, exactly.
    - By default the first constant is ``8 (confidence - m) / ||grad m||_2^2`` at the clean image:
      four times the one that moves a linear model's image onto its boundary.
    - By default Adam's step (the authors' is 0.01) is the root mean square, over pixels, of the
      move onto a linear model's boundary, kept within 0.001 and 0.2: distances of small and of
      robust nets differ a hundredfold.
    - ``anneal``: Adam's step falls to 0 along a cosine in each run. That bounds how far a run
      gets, so until the goal is met a run goes on where the last one ended.
    - The nearest image is bisected towards the clean one (``refine``).
    - An image leaves a run of Adam when its own loss has not fallen by 0.01 % in a tenth of the
      steps; the authors' code stops on the loss of the whole batch.
    - For random defenses margin and gradient are means over ``draws``; where the goal is more
      than a wrong answer, ``m`` holds what is lacking for that too, and the hinge holds until the
      goal is met.

    The authors' settings are ``constant=0.001``, ``lr=0.01``, ``search=9``, ``steps=10000``,
    ``anneal=False`` and ``refine=0``. Under a threat model of another norm the attack is the same,
    and the audit judges whether its image lies in the ball.

    Attributes:
        steps: Steps of Adam in each run, at most.
        search: Runs, each with a constant of its own.
        constant: First constant ``c``; 0 for one from the first gradient of each image.
        lr: Adam's step, in the units of ``w``; 0 for one from the first gradient of each image.
        confidence: Margin by which the goal must be met, in units of the scores.
        anneal: Whether the step falls in the course of a run, and a run follows a failed one.
        refine: Rounds of bisection between the result and the clean image.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> CarliniWagner(name="own", steps=25, search=4, constant=10, lr=0.01).gradients
        100
    """

    seeded: ClassVar[bool] = False

    steps: int = 100
    search: int = 3
    constant: float = 0.0
    lr: float = 0.0
    confidence: float = 0.0
    anneal: bool = True
    refine: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "search")
        self._positive("constant", "lr", "confidence", zero=True)

    @property
    def gradients(self) -> int:
        """Steps of all runs, and one for the first constant."""
        return self.steps * self.search + (self.constant == 0 or self.lr == 0)

    def required(self) -> float:
        """The confidence."""
        return self.confidence

    def approach(self, batch: Batch, nearest: Nearest) -> None:
        """Search the constant of each image."""
        objective = batch.loss("margin")
        constant, lr = self._first_settings(batch, objective)
        low, high = torch.zeros_like(constant), torch.full_like(constant, float("inf"))
        hidden = start = _to_hidden(batch.origin)
        for number in range(self.search):
            ahead = torch.isinf(high) & self.anneal
            hidden = torch.where(ahead.view(-1, 1, 1, 1), hidden, start)
            met = self._run_adam(batch, nearest, hidden, constant, lr, number, objective)
            high, low = torch.where(met, constant, high), torch.where(met, low, constant)
            larger = (constant * _GROWTH).clamp(max=_MOST)
            constant = torch.where(torch.isinf(high), larger, (low + high) / 2)

    def _first_settings(self, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
        """First constant and Adam's step of each image, (N,): as given, or as fits its gradient."""
        constant = torch.full_like(batch.best_value, self.constant)
        lr = torch.full_like(constant, self.lr)
        if self.constant and self.lr:
            return constant, lr
        rows = batch.left()
        index = batch.compact(rows)
        # A number of its own after those of all steps.
        draw = self.steps * self.search
        gradient, value, _, _ = batch.gradient(batch.origin[index], index, draw, objective)
        missing = self.confidence - value
        slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        usable = (slope > 0) & (missing > 0)
        if not self.constant:
            # At the nearest point of a linear model's boundary 2 delta = c grad m.
            first = _SLACK * 2.0 * missing / slope.square()
            first = torch.where(usable & torch.isfinite(first), first, 1.0).clamp(1e-6, _MOST)
            constant[index] = first.to(constant.dtype)
        if not self.lr:
            pixel = missing / slope / math.sqrt(gradient[0].numel())
            lr[index] = torch.where(usable, pixel.clamp(*_LR), _USUAL_LR).to(lr.dtype)
        return constant, lr

    def _run_adam(
        self,
        batch: Batch,
        nearest: Nearest,
        hidden: Tensor,
        constant: Tensor,
        lr: Tensor,
        number: int,
        objective: Objective,
    ) -> Tensor:
        """One run, which moves ``hidden``; whether each image met the goal in it, (N,) bool."""
        mean, square = torch.zeros_like(hidden), torch.zeros_like(hidden)
        met = torch.zeros_like(batch.broken)
        before = torch.full_like(constant, float("inf"))
        rows, tenth = batch.left(), -(-self.steps // 10)
        for step in range(self.steps):
            index, count = batch.compact(rows), len(rows)
            tanh = torch.tanh(hidden[index])
            point = (((1.0 + _STRETCH) * tanh + 1.0) / 2.0).clamp_(0.0, 1.0)
            draw = number * self.steps + step
            gradient, value, wrong, _ = batch.gradient(point, index, draw, objective)
            hit = wrong & (value >= self.confidence) if self.confidence else wrong
            nearest.offer(rows, point[:count], hit[:count])
            met[rows] |= hit[:count]
            delta, weight = point - batch.origin[index], constant[index] * ~hit
            if step % tenth == 0:
                penalty = weight * (self.confidence - value)
                loss = delta.flatten(1).square().sum(1) + penalty.to(delta.dtype)
                going = (loss <= 0.9999 * before[index])[:count]
                before[index] = loss.to(before.dtype)
            slope = 2.0 * delta - weight.view(-1, 1, 1, 1) * gradient
            slope = slope * ((1.0 + _STRETCH) / 2.0 * (1.0 - tanh.square()))
            mean[index] = _BETAS[0] * mean[index] + (1.0 - _BETAS[0]) * slope
            square[index] = _BETAS[1] * square[index] + (1.0 - _BETAS[1]) * slope.square()
            past = (mean[index] / (1.0 - _BETAS[0] ** (step + 1)))[:count]
            scale = (square[index] / (1.0 - _BETAS[1] ** (step + 1))).sqrt_()[:count]
            fall = (1.0 + math.cos(math.pi * step / self.steps)) / 2.0 if self.anneal else 1.0
            moved = hidden[rows] - fall * lr[rows].view(-1, 1, 1, 1) * past / (scale + 1e-8)
            hidden[rows] = moved.clamp_(-_BOUND, _BOUND)
            if step % tenth == 0:
                rows = rows[going]
                if not len(rows):
                    break
        return met


def make_cw_l2(steps: int | None) -> CarliniWagner:
    """The family ``cw-l2``: ``cw-l2-100`` by default."""
    count = 100 if steps is None else steps
    return CarliniWagner(name=f"cw-l2-{count}", steps=count)


def _to_hidden(images: Tensor) -> Tensor:
    """``w`` of images in [0, 1]."""
    return torch.atanh((2.0 * images - 1.0) / (1.0 + _STRETCH))
