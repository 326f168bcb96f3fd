"""DDN: decoupled direction and norm (Rony et al. 2019), an L2 minimal-norm attack.

The direction is that of the loss gradient; the norm follows a rule of its own: shorter while the
image meets the goal, longer while it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unperturb.attacks.batch import Batch
from unperturb.attacks.minimal import MinimalNorm, Nearest
from unperturb.errors import ConfigError
from unperturb.threat import L2

__all__ = ["DDN", "make_ddn"]

_LAST_STEP = 0.01


@dataclass(frozen=True, kw_only=True)
class DDN(MinimalNorm):
    """Decoupled direction and norm, L2 (Rony et al. 2019, algorithm 1).

    With ``g`` the unit gradient of the cross-entropy at ``x + delta``::

        delta <- delta + alpha_k g
        eps   <- eps (1 - gamma) where x + delta met the goal, else eps (1 + gamma)
        delta <- eps delta / ||delta||_2, then x + delta clipped to [0, 1]

    ``alpha_k`` falls from 1 to 0.01 along a cosine, and ``eps`` starts at ``start``.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger. *Decoupling Direction and Norm for
    Efficient Gradient-Based L2 Adversarial Attacks and Defenses.* CVPR 2019.

    Deviations: images are not rounded to 256 levels at each step (the paper's optional
    quantization); a gradient that is exactly zero is replaced by a random direction keyed by the
    image; for random defenses the gradient is the mean over ``draws`` and the goal is judged by
    most of them; the nearest image is bisected towards the clean one (``refine``; 0 for the
    paper's attack). Under a threat model of another norm the attack is the same, and the audit
    judges whether its image lies in the ball.

    Attributes:
        steps: Gradient steps.
        gamma: Change of the norm at each step, between 0 and 1.
        start: First norm, in L2 pixel units.
        refine: Rounds of bisection between the result and the clean image.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> DDN(name="ddn-100").gradients
        100
    """

    steps: int = 100
    gamma: float = 0.05
    start: float = 1.0
    refine: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps")
        self._positive("gamma", "start")
        if self.gamma >= 1:
            raise ConfigError(
                f"gamma of attack {self.name!r} is {self.gamma}", expected="above 0 and below 1"
            )

    def approach(self, batch: Batch, nearest: Nearest) -> None:
        """All steps for all images: each goes on looking for a nearer one."""
        rows = batch.left()
        index = batch.compact(rows)
        origin, objective = batch.origin[index], batch.loss("ce")
        point = origin.clone()
        size = torch.full((len(index), 1, 1, 1), self.start, dtype=origin.dtype)
        size = size.to(origin.device)
        # No image of [0, 1] is further away than this.
        most = _length(torch.maximum(origin, 1.0 - origin))
        for number in range(self.steps):
            gradient, _, wrong, _ = batch.gradient(point, index, number, objective)
            nearest.offer(rows, point[: len(rows)], wrong[: len(rows)])
            fall = (1.0 + math.cos(math.pi * number / self.steps)) / 2.0
            step = _LAST_STEP + (1.0 - _LAST_STEP) * fall
            delta = point - origin + step * _direction(batch, index, gradient, number)
            change = torch.where(wrong, 1.0 - self.gamma, 1.0 + self.gamma).to(origin.dtype)
            size = torch.minimum(size * change.view(-1, 1, 1, 1), most)
            point = (origin + delta * (size / _length(delta))).clamp_(0.0, 1.0)
        judged = batch.judge(point, index, draw=self.steps)
        nearest.offer(rows, point[: len(rows)], judged.success[: len(rows)])


def make_ddn(steps: int | None) -> DDN:
    """The family ``ddn``: ``ddn-100`` by default."""
    count = 100 if steps is None else steps
    return DDN(name=f"ddn-{count}", steps=count)


def _length(images: Tensor) -> Tensor:
    """L2 length of each image, (N, 1, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return length.clamp_(min=1e-12).view(-1, 1, 1, 1)


def _direction(batch: Batch, index: Tensor, gradient: Tensor, number: int) -> Tensor:
    """The gradient at unit length, and a random direction where it is zero."""
    none = gradient.abs().amax((1, 2, 3)) == 0
    if bool(none.any()):
        keys = batch.keys[index[none]].draw(number)
        random = keys.normal("direction", gradient.shape[1:], device=gradient.device)
        gradient = gradient.clone()
        gradient[none] = random.to(gradient.dtype)
    return L2(1.0).ascent(gradient)
