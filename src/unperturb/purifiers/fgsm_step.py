"""One signed-gradient step away from the classifier's own prediction: TPAP's purification."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unperturb.context import Context
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.settings import check_flag, check_radius
from unperturb.purifiers.signed_steps import own_cross_entropy, sign

__all__ = ["FGSMStep"]


class FGSMStep(Purifier):
    """``x_pur = x + xi * sign(grad_x CE(f(x), argmax f(x)))``, Tang et al. 2024, eq. 7 and 8.

    The pre-prediction and its gradient share one forward pass, so that a defended answer costs
    forward + input-only backward + forward (the paper counts four forwards).

    Backward rules: ``exact`` (the sign's derivative is zero, so the step is a constant, and
    pixels that the clipping holds at 0 or 1 pass no gradient), ``identity`` (the same without
    the clipping's mask) and ``smoothed-sign`` (the sign's derivative is that of
    ``tanh(g / mean|g|)``, which needs the classifier's second derivative).

    Several steps are ``pgd-step``.

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
        self.radius = check_radius(radius)
        self.clip = check_flag("clip", clip)

    def config(self) -> dict[str, Any]:
        """Radius and clipping."""
        return {"radius": self.radius, "clip": self.clip}

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Move each image one step up the loss of its own predicted label."""
        smooth = ctx.backward == "smoothed-sign"
        _, gradient = ctx.before_and_grad(own_cross_entropy, differentiable=smooth)
        reading = images + self.radius * sign(gradient).to(images.dtype)
        if self.clip:
            reading = reading.clamp(0.0, 1.0)
        return Purified(reading, reading)
