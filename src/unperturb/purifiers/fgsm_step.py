"""One signed-gradient step away from the classifier's own prediction: TPAP's purification."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from unperturb.context import Context
from unperturb.errors import ConfigError
from unperturb.purifiers.base import Purified, Purifier

__all__ = ["FGSMStep"]


def _own_cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.argmax(1), reduction="none")


class FGSMStep(Purifier):
    """``x_pur = x + xi * sign(grad_x CE(f(x), argmax f(x)))``, Tang et al. 2024, eq. 7 and 8.

    The pre-prediction and its gradient share one forward pass, so that a defended answer costs
    forward + input-only backward + forward (the paper counts four forwards).

    Backward rules: ``exact`` (the sign's derivative is zero, so the step is a constant, and
    pixels that the clipping holds at 0 or 1 pass no gradient), ``identity`` (the same without
    the clipping's mask) and ``smoothed-sign`` (the sign's derivative is that of
    ``tanh(g / mean|g|)``, which needs the classifier's second derivative).

    Deviations from the paper: the step is clipped to [0, 1] as in the authors' released code
    (``clip=False`` is the equation). Eq. 5 writes argmin; eq. 7 goes up the loss, and so do we.

    Args:
        radius: Step size xi in pixel units, above 0 and at most 1 (the paper's is 8/255).
        clip: Clip the purified image to [0, 1].

    Raises:
        ConfigError: The radius is out of range.

    Example:
        >>> FGSMStep(radius=8 / 255).describe()
        {'name': 'fgsm-step', 'radius': 0.03137254901960784, 'clip': True}
    """

    name = "fgsm-step"
    backwards = ("exact", "identity", "smoothed-sign")
    adaptive = ("identity", "smoothed-sign")

    def __init__(self, *, radius: float = 8 / 255, clip: bool = True) -> None:
        super().__init__()
        if isinstance(radius, bool) or not isinstance(radius, (int, float)):
            raise ConfigError(
                f"The purification radius is {radius!r}", expected="a number, such as 8 / 255"
            )
        if not isinstance(clip, bool):
            raise ConfigError(f"clip is {clip!r}", expected="true or false")
        if not 0 < radius <= 1:
            fix = f"write {radius:g}/255" if 1 < radius <= 255 else ""
            raise ConfigError(
                f"The purification radius is {radius:g}",
                expected="above 0 and at most 1, in pixel units such as 8/255",
                fix=fix,
            )
        self.radius = float(radius)
        self.clip = clip

    def config(self) -> dict[str, Any]:
        """Radius and clipping."""
        return {"radius": self.radius, "clip": self.clip}

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Move each image one step up the loss of its own predicted label."""
        smooth = ctx.backward == "smoothed-sign"
        _, gradient = ctx.before_and_grad(_own_cross_entropy, differentiable=smooth)
        step = gradient.sign()
        if smooth and gradient.requires_grad:
            scale = gradient.detach().abs().flatten(1).mean(1).clamp_(min=1e-30)
            soft = (gradient / scale.view(-1, 1, 1, 1)).tanh()
            step = soft + (step - soft).detach()
        reading = images + self.radius * step.to(images.dtype)
        if self.clip:
            reading = reading.clamp(0.0, 1.0)
        return Purified(reading, reading)
