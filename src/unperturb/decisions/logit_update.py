"""ALU's decision: for flagged images the class whose logit rose most under purification."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from unperturb.decisions.base import Decision

__all__ = ["LogitUpdate"]


class LogitUpdate(Decision):
    """``argmax softmax(z_after - z_before)`` where flagged, else ``argmax z_after``.

    The ALU principle (eq. 4 and Algorithm 1): a successful attack lowers the logit of the true
    class most, so that removing the perturbation raises it most. The softmax does not change the
    argmax and is left out: the scores of a flagged image are the logits' differences.

    It works with any purifier that a detector routes. By the paper's own words it fails where an
    attack has not succeeded, and where one raises the true class's logit as well (case 3): images
    that are flagged without need are answered by a difference that means nothing.

    A defense without a detector refuses it: nothing would ever be flagged. A detector of the
    statistic ``absolute-change`` with the threshold -1 flags everything, which is the principle
    by itself.

    Example:
        >>> before, after = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 4.0]])
        >>> LogitUpdate()(before, after, torch.tensor([True]))
        tensor([[ 2., -1.]])
        >>> LogitUpdate()(before, after, torch.tensor([False]))
        tensor([[3., 4.]])
    """

    name = "logit-update"
    reads = frozenset({"before", "after"})
    routes: Mapping[str, bool | None] = MappingProxyType({"difference": True, "after": False})
    needs_flags = True

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        """``difference``, taken for flagged images, and ``after``, taken for the others."""
        assert before is not None
        assert after is not None
        return {"difference": after - before, "after": after}

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        """The difference where flagged, else the logits after, (N, K)."""
        both = self.branches(before, after)
        return torch.where(flagged[:, None], both["difference"], both["after"])
