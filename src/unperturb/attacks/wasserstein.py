"""FWA: pixel mass is moved a little way, in a Wasserstein ball (Wu, Wang and Yu 2020).

The image is a heap of mass, ``sum x = 1`` after normalization over all channels; the attacker may
carry mass within a small window and one channel, at the price of mass times Euclidean distance in
pixels, and pays at most ``eps``. So 0.005 carries half a percent of an image's mass one pixel far.

The search is over transport plans, a convex set: Frank-Wolfe with an exact linear oracle, or
projected gradient ascent with an exact projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.attacks.losses import LOSSES
from unperturb.attacks.wasserstein_oracles import maximize, project
from unperturb.attacks.wasserstein_transport import Window, fit, moved
from unperturb.errors import ConfigError, unknown_name

__all__ = ["METHODS", "FasterWasserstein", "make_fwa"]

METHODS = ("frank-wolfe", "dual-projection")
# The image is rounded to its own type at the end, which must not leave the ball.
_SHRINK = 1.0 - 1e-5


@dataclass(frozen=True, kw_only=True)
class FasterWasserstein(BaseAttack):
    """The faster Wasserstein attack (Wu, Wang, Yu, ICML 2020).

    ``max_p L(z(p))`` over plans ``p`` with ``p >= 0``, ``sum_k p[i, k] = x_i`` and
    ``sum_ik p[i, k] c_k <= eps * sum x``; ``z(p)_j`` is what ``p`` brings to pixel ``j``.

    - ``frank-wolfe``: ``p <- p + 2 / (t + 2) (s - p)``, t from 0, with ``s`` the plan of the set
      that gains most by the gradient (the dual linear oracle).
    - ``dual-projection``: ``p <- P(p + step_size * g / max |g|)`` with ``P`` the Euclidean
      projection on the set.

    The result's ``measure`` is the cost of this plan as a share of the image's mass: an upper
    bound of the Wasserstein distance, at most ``eps``. Its ``detail`` are the masses sent,
    (N, C, window ** 2, H * W), for ``wasserstein_transport.moved``. A threat model's norm and eps
    play no part. An image without any mass stays as it is.

    Deviations from the paper. (1) Its linear oracle is regularized by entropy (1e-3), because
    exact vertices are sparse; here it is the exact one. (2) Its range [0, 1] is enforced by a
    second projection after the attack; here, after every step, by taking back what does not fit
    into a pixel (``wasserstein_transport.fit``), which keeps the ball but is not the nearest such
    plan. (3) Frank-Wolfe's ``s`` sends nothing to full pixels, and may cost so much that the new
    ``p`` costs just ``eps``: what was taken back can be spent again. (4) 100 steps instead of 300,
    the margin loss instead of cross-entropy. (5) The budget is smaller by a part in 1e5, for
    rounding.

    Attributes:
        steps: Gradient steps.
        eps: Radius: mass times pixels, as a share of the image's mass.
        window: Side length in pixels of the window that mass may move in, odd.
        method: ``frank-wolfe`` or ``dual-projection``.
        step_size: Greatest mass, in pixel values, that one step of the dual projection asks for.
        loss: ``margin``, ``ce`` or ``dlr``.

    Raises:
        ConfigError: A number is out of range.
        SpecError: The method or loss is unknown.

    Example:
        >>> FasterWasserstein(name="fwa").eps
        0.005
    """

    bound = "own"

    steps: int = 100
    eps: float = 0.005
    window: int = 5
    method: str = "frank-wolfe"
    step_size: float = 0.1
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "window")
        self._positive("eps", "step_size")
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigError(
                f"window of attack {self.name!r} is {self.window}",
                expected="an odd number of pixels, at least 3",
            )
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)

    def perturb(self, batch: Batch) -> None:
        """Move mass over the images that are not broken yet."""
        window = Window(self.window, batch.origin.device)
        masses = batch.origin.to(torch.float64, memory_format=torch.contiguous_format)
        budget = self.eps * _SHRINK * masses.sum((1, 2, 3))
        flows = torch.zeros_like(window.gather(masses))
        point = batch.origin.clone()
        rows, objective = batch.left(), batch.loss(self.loss)
        for step in range(self.steps):
            if not len(rows):
                break
            index = batch.compact(rows)
            gradient, _, _, wrong = batch.gradient(point[index], index, step, objective)
            gradient, wrong = gradient[: len(rows)].contiguous(), wrong[: len(rows)]
            if batch.early and bool(wrong.any()):
                batch.leave(rows[wrong], point[rows[wrong]])
                rows, gradient = rows[~wrong], gradient[~wrong]
                if not len(rows):
                    break
            some = masses[rows]
            if self.method == "frank-wolfe":
                # Already at 1, up to rounding.
                full = point[rows] >= 1.0 - 1e-6
                share = 2.0 / (step + 2.0)
                # What was taken back may be spent again: the mixture costs the budget, no more.
                spent = (1.0 - share) * window.cost(flows[rows])
                best = maximize(gradient, some, (budget[rows] - spent) / share, window, full)
                found = flows[rows].lerp_(best, share)
            else:
                found = self._ascend(flows[rows], gradient, some, budget[rows], window)
            found = fit(some, found, window)
            flows[rows] = found
            point[rows] = moved(some, found, window).clamp_(0.0, 1.0).to(point.dtype)
        batch.best[rows] = point[rows]
        batch.detail = flows
        batch.measure = window.cost(flows) / masses.sum((1, 2, 3)).clamp(min=1e-300)

    def _ascend(
        self, flows: Tensor, gradient: Tensor, masses: Tensor, budget: Tensor, window: Window
    ) -> Tensor:
        """One step along the gradient, projected; what stays is a variable of its own here."""
        center = window.center
        plan = flows.clone()
        plan[:, :, center] = masses.flatten(2) - flows.sum(2)
        size = gradient.abs().amax((1, 2, 3)).clamp(min=1e-38).view(-1, 1, 1, 1)
        plan += self.step_size * window.gather((gradient / size).to(plan.dtype), float("-inf"))
        plan = project(plan, masses, budget, window)
        plan[:, :, center] = 0.0
        return plan


def make_fwa(steps: int | None) -> FasterWasserstein:
    """The family ``fwa``, ``fwa-STEPS``.

    Example:
        >>> make_fwa(50).name
        'fwa-50'
    """
    count = 100 if steps is None else steps
    return FasterWasserstein(name=f"fwa-{count}", steps=count)
