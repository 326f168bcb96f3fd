"""What says that a training is beyond repair."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Diverged", "Watch"]

_SPREAD = 1e-5
_LARGEST = 1e4
_PATIENCE = 100


class Diverged(Exception):
    """A step found that the training is beyond repair; the loop tells the user."""


class Watch:
    """Sees a discriminator collapse: scores that no longer depend on the image, or run away.

    One step of it may happen; ``patience`` in a row are a collapse. While it lasts, no checkpoint
    is worth keeping.

    Args:
        patience: Steps in a row.

    Example:
        >>> import torch
        >>> watch = Watch(patience=2)
        >>> watch.see(torch.zeros(4)), watch.healthy
        (None, False)
        >>> watch.see(torch.rand(4)), watch.healthy
        (None, True)
    """

    def __init__(self, patience: int = _PATIENCE) -> None:
        self.patience, self.bad = patience, 0

    @property
    def healthy(self) -> bool:
        """Whether the last scores were."""
        return self.bad == 0

    def see(self, scores: Tensor) -> None:
        """Take in the scores of one step, of real and restored images.

        Raises:
            Diverged: It was the last of too many bad ones.
        """
        scores = scores.detach().float()
        spread, size = float(scores.std()), float(scores.abs().mean())
        bad = spread < _SPREAD or size > _LARGEST
        self.bad = self.bad + 1 if bad else 0
        if self.bad >= self.patience:
            what = (
                f"scores run away (mean size {size:.3g})"
                if size > _LARGEST
                else f"it gives all images one score (spread {spread:.2g})"
            )
            raise Diverged(f"the discriminator collapsed: {what} for {self.bad} steps")
