"""The mean of all logits, clean and attacked: a trace an attack leaves (Li et al. 2019, Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unperturb.audit.statistics import auroc
from unperturb.correction.corrector import check_logits
from unperturb.errors import ConfigError, InputError

__all__ = ["MeanLogits", "mean_logits"]


@dataclass(frozen=True, eq=False)
class MeanLogits:
    """Histograms of the mean logit ``(1/K) sum_k z_k``, all with the same edges.

    Attributes:
        edges: Edges of the bins (bins + 1,).
        counts: Images in each bin (bins,) int64, by name: ``clean``, then the attacks.
        means: Mean over images, by name.
        spreads: Standard deviation over images, by name.
        aurocs: Area under the ROC curve of the mean logit as a detector, by attack: the
            probability that an attacked image's is greater than a clean one's, ties half. 0.5 is
            chance; below it the attack makes the mean smaller.
    """

    edges: Tensor
    counts: dict[str, Tensor]
    means: dict[str, float]
    spreads: dict[str, float]
    aurocs: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return {
            "n": {name: int(counts.sum()) for name, counts in self.counts.items()},
            "edges": self.edges.tolist(),
            "counts": {name: counts.tolist() for name, counts in self.counts.items()},
            "mean": self.means,
            "standard_deviation": self.spreads,
            "auroc": self.aurocs,
        }


def mean_logits(clean: Tensor, attacked: Mapping[str, Tensor], *, bins: int = 20) -> MeanLogits:
    """Histograms of the mean logit of clean and of attacked images (Li et al. 2019, Figure 1).

    The edges span the smallest to the greatest mean logit of all that is given.

    Args:
        clean: Clean logits (N, K).
        attacked: Adversarial logits (M, K) by the name of the attack.
        bins: Number of bins; the paper has 20.

    Raises:
        InputError: Logits are not what the contract says, or no attack is given.
        ConfigError: ``bins`` is below 1.

    Example:
        >>> found = mean_logits(torch.zeros(4, 3), {"shift": torch.ones(4, 3)}, bins=2)
        >>> found.counts["clean"].tolist(), found.counts["shift"].tolist(), found.aurocs
        ([4, 0], [0, 4], {'shift': 1.0})
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}", expected="at least 1 bin")
    if not attacked:
        raise InputError("There are no attacked logits", expected="those of at least one attack")
    if "clean" in attacked:
        raise InputError("An attack is named 'clean'", expected="another name")
    check_logits(clean)
    for logits in attacked.values():
        check_logits(logits, clean.shape[1])
    given = {"clean": clean, **attacked}
    means = {
        name: logits.detach().mean(1, dtype=torch.float64).cpu() for name, logits in given.items()
    }
    joined = torch.cat(list(means.values()))
    low, high = float(joined.min()), float(joined.max())
    if low == high:
        # All are equal: bins of width 0 would hold nothing.
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return MeanLogits(
        edges=edges,
        counts={name: _count(values, edges) for name, values in means.items()},
        means={name: float(values.mean()) for name, values in means.items()},
        spreads={name: float(values.std(correction=0)) for name, values in means.items()},
        aurocs={name: _area(means["clean"], means[name]) for name in attacked},
    )


def _count(values: Tensor, edges: Tensor) -> Tensor:
    # A value on an inner edge belongs to the bin above it, the greatest of all to the last.
    places = torch.bucketize(values, edges[1:-1], right=True)
    return torch.bincount(places, minlength=len(edges) - 1)


def _area(clean: Tensor, attacked: Tensor) -> float:
    area = auroc(clean.numpy(), attacked.numpy())
    assert area is not None, "neither is empty"
    return area
