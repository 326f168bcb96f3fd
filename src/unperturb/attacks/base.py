"""What an attack is: settings that round-trip, and a ``run`` that returns re-checked images."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from unperturb.attacks.surface import Judged, Surface
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["STOPPING", "Attack", "Attacked"]

STOPPING = ("fixed", "first-success")


class Attacked(NamedTuple):
    """What an attack leaves, one row for each image."""

    images: Tensor  # (N, C, H, W), re-checked: inside the ball and [0, 1]
    judged: Judged  # verdict of a fresh forward pass on fresh draws
    queries: Tensor  # (N,) int64: forward passes of the attacked module spent on the image
    zero_gradients: Tensor  # (N,) int64: steps at which the whole gradient was exactly zero
    nan_gradients: Tensor  # (N,) int64: steps at which the gradient held NaN or infinity

    @property
    def success(self) -> Tensor:
        """Whether the goal is met, (N,) bool."""
        return self.judged.success


class Attack(Protocol):
    """An attack: a frozen dataclass (so that options can be replaced) with these members.

    Attributes:
        name: Its name in the records.
        draws: Draws averaged in each gradient; used only where the target is random.
    """

    @property
    def name(self) -> str: ...

    @property
    def draws(self) -> int: ...

    @property
    def gradients(self) -> int:
        """Gradients an image costs at most: what the cost preview counts."""

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-able, ``name`` among them; ``steps`` where it has steps."""

    def run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        keys: Keys,
        stop: str = "first-success",
    ) -> Attacked:
        """Attack a batch; see ``FirstOrder.run``."""
