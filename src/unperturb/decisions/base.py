"""What every decision shares."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from unperturb.stages import Stage

__all__ = ["Decision"]


class Decision(Stage):
    """Base of every decision.

    Attributes:
        stochastic: Whether it is random.
        reads: Which logits it reads, of ``before`` and ``after``; the other is not computed.
        routes: Names of its branches, each with whether it is taken for flagged images (True), for
            unflagged ones (False), or whatever the flag says (None): an adaptive audit attacks
            every one of them.
        needs_flags: Whether it says nothing of its own without a detector, so that a defense
            without one is refused.
    """

    stochastic: bool = False
    reads: frozenset[str] = frozenset({"after"})
    routes: Mapping[str, bool | None] = MappingProxyType({})
    needs_flags: bool = False

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        """Scores (N, K) from logits before and after (each (N, K), None if not read) and flags."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        """The alternatives between which the decision chooses, each (N, K), for an attacker."""
        return {}

    def check_fitted(self, classifier: str, num_classes: int) -> None:
        """Refuse to serve a classifier other than the one it was fitted on.

        Args:
            classifier: Fingerprint of the classifier it shall serve.
            num_classes: Its number of classes K.
        """
