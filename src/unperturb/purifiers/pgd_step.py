"""Several signed-gradient steps away from the classifier's own prediction, projected on a ball."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.context import Context
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.settings import check_flag, check_number, check_radius, check_whole
from unperturb.purifiers.signed_steps import own_cross_entropy, sign
from unperturb.purifiers.unroll import advance, answers

__all__ = ["PGDStep"]


class PGDStep(Purifier):
    """A PGD attack (Madry et al. 2018) on the own prediction, in place of TPAP's FGSM step.

    With ``y = argmax f(x)`` and ``P`` the projection on the Linf ball of radius ``xi`` about the
    image, then on [0, 1]::

        x_0 = x,   x_{k+1} = P(x_k + a xi sign(grad CE(f(x_k), y))),   x_pur = x_K

    Tang et al. 2024, Table 7 and section 4.4: "we replace FGSM attack with CW_2 and PGD attacks".
    ``steps=1, step_size=1`` is ``fgsm-step``, to the last bit.

    The label is that of the image as it came, at every step. With the label of ``x_k`` in its
    place, a step that crosses the boundary would be taken back by the next one; eq. 7 too names
    the prediction of the image.

    A defended answer costs K forwards and K input-only backwards for K steps (the pre-prediction
    is the first of them) and one forward more. No graph is kept from one step to the next.

    Backward rules: ``exact`` (the sign's derivative is zero, so that the steps are constants, and
    pixels that the clipping holds at 0 or 1 pass no gradient), ``identity`` (the same without the
    clipping's mask) and ``smoothed-sign`` (in every step the sign has the derivative of
    ``tanh(g / mean|g|)``, and the projection its own). The last is unrolled through all K steps:
    K second derivatives of the classifier, three to five times the time of the others. Each
    step keeps its images only, and its graph is built again in the backward pass.

    Deviations from the paper, which states nothing but the name PGD-10: the start is not random,
    so that a defended answer is a function of the image; K = 10 and steps of a quarter of the
    radius are the usual PGD-10; ``clip`` as in ``fgsm-step``.

    Args:
        radius: Radius xi of the ball in pixel units, above 0 and at most 1.
        steps: Number of steps K, from 1 to 1,000.
        step_size: Step a as a fraction of the radius, above 0 and at most 2.
        clip: Keep every step in [0, 1].

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> PGDStep(radius=4 / 255, steps=3).describe()["step_size"]
        0.25
    """

    name = "pgd-step"
    backwards = ("exact", "identity", "smoothed-sign")
    adaptive = ("identity", "smoothed-sign")

    def __init__(
        self,
        *,
        radius: float = 8 / 255,
        steps: int = 10,
        step_size: float = 0.25,
        clip: bool = True,
    ) -> None:
        super().__init__()
        self.radius = check_radius(radius)
        self.steps = check_whole("steps", steps)
        self.step_size = check_number("step_size", step_size, most=2)
        self.clip = check_flag("clip", clip)

    def config(self) -> dict[str, Any]:
        """Radius, steps, step size and clipping."""
        return {
            "radius": self.radius,
            "steps": self.steps,
            "step_size": self.step_size,
            "clip": self.clip,
        }

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Move each image K steps up the loss of the label it was given first."""
        smooth = (
            ctx.backward == "smoothed-sign" and torch.is_grad_enabled() and images.requires_grad
        )
        first = ctx.before_and_grad(own_cross_entropy)
        loss = partial(F.cross_entropy, target=answers(first[0]), reduction="none")
        # A tensor of the images' precision, so that the face of the ball is where one full step
        # ends, in half precision too.
        radius = torch.tensor(self.radius, dtype=images.dtype, device=images.device)
        low, high = images - radius, images + radius
        if self.clip:
            low, high = low.clamp(min=0.0), high.clamp(max=1.0)
        point = images
        for number in range(self.steps):
            _, (point,) = advance(
                ctx,
                (point, low, high),
                at=_point,
                loss=loss,
                move=self._move,
                known=None if number else first,
                unroll=smooth,
            )
        return Purified(point, point)

    def _move(self, point: Tensor, low: Tensor, high: Tensor, gradient: Tensor) -> tuple[Tensor]:
        step = (self.step_size * self.radius) * sign(gradient).to(point.dtype)
        return (torch.clamp(point + step, low, high),)


def _point(point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return point
