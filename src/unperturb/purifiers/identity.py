"""The purifier that does nothing."""

from __future__ import annotations

from torch import Tensor

from unperturb.context import Context
from unperturb.purifiers.base import Purified, Purifier

__all__ = ["Identity"]


class Identity(Purifier):
    """The classifier reads the images as they are; "before" and "after" share one pass."""

    name = "identity"
    backwards = ("exact",)
    adaptive = ("exact",)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Return the images themselves."""
        return Purified(images, images)
