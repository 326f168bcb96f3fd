"""What a purifier is: images in, what the classifier reads out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from unperturb.context import Context
from unperturb.stages import Stage

__all__ = ["Purified", "Purifier"]


class Purified(NamedTuple):
    """What a purifier returns.

    Attributes:
        reading: What the classifier reads: images, or features where it reads features.
        images: Purified images (N, C, H, W) to look at, or None where there are none.
        reference: What "before" reads; None for the raw images.
    """

    reading: Tensor
    images: Tensor | None
    reference: Tensor | None = None


class Purifier(Stage):
    """Base of every purifier. It owns no classifier: it asks the context.

    Attributes:
        stochastic: Whether it draws random numbers (through ``ctx.noise`` or ``ctx.uniform``).
        references: Whether it sets ``Purified.reference``, so that it must run even where only
            "before" is read.
        inside: Whether its readings are for the network that the classifier holds behind a
            generative model of its own (``Classifier.read``), and not for the whole classifier.
        backwards: Gradients an attacker may take through it. ``exact`` is autograd as it is;
            ``identity`` (BPDA) exists where the reading has the images' shape.
        adaptive: Those that an adaptive audit tries, strongest first; the per-image worst counts.
    """

    stochastic: bool = False
    references: bool = False
    inside: bool = False
    backwards: tuple[str, ...] = ("exact", "identity")
    adaptive: tuple[str, ...] = ("exact", "identity")

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Purify images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def check_classifier(self, classifier: nn.Module) -> None:
        """Refuse a classifier that it cannot serve; a defense asks once, when it is built."""
