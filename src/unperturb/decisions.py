"""Decisions: logits before and after purification to scores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from unperturb.stages import Stage

__all__ = ["DECISIONS", "Decision", "LogitsAfter"]


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


class LogitsAfter(Decision):
    """The answer is what the classifier says of the purified image."""

    name = "logits-after"
    reads = frozenset({"after"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        """Return the logits after."""
        assert isinstance(after, torch.Tensor)
        return after


DECISIONS: dict[str, type[Decision]] = {LogitsAfter.name: LogitsAfter}
"""Decisions by name."""

# At the end: it takes its base class from here, and enters itself into DECISIONS.
import unperturb.logit_update  # noqa: E402, F401
