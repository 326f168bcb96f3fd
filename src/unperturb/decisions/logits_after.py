"""The answer is what the classifier says of the purified image."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.decisions.base import Decision

__all__ = ["LogitsAfter"]


class LogitsAfter(Decision):
    """The answer is what the classifier says of the purified image."""

    name = "logits-after"
    reads = frozenset({"after"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        """Return the logits after."""
        assert isinstance(after, torch.Tensor)
        return after
