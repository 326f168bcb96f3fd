"""How much the supporting classes of several sets overlap: Bhattacharyya coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unperturb.errors import ConfigError, InputError
from unperturb.explain.supporting import Supporting
from unperturb.randomness import Keys

__all__ = ["Overlap", "bhattacharyya", "overlap"]


def bhattacharyya(first: Tensor, second: Tensor) -> float:
    """Bhattacharyya coefficient of two histograms: ``sum_k sqrt(p_k q_k)``.

    1 where they are proportional, 0 where no class is in both.

    Args:
        first: Counts or weights (K,), not negative, not all 0; they are normalized.
        second: The same of the other histogram.

    Raises:
        InputError: They are not such counts, or not of the same classes.

    Example:
        >>> bhattacharyya(torch.tensor([1, 1, 0]), torch.tensor([0, 5, 5]))
        0.5
    """
    for counts in (first, second):
        usable = counts.ndim == 1 and bool((counts >= 0).all()) and float(counts.sum()) > 0
        if not usable or not math.isfinite(float(counts.sum())):
            raise InputError(
                f"A histogram has shape {tuple(counts.shape)} and the sum {float(counts.sum()):g}",
                expected="counts (K,), none negative or infinite, not all of them 0",
            )
    if len(first) != len(second):
        raise InputError(
            f"The histograms have {len(first)} and {len(second)} classes",
            expected="counts of the same classes",
        )
    return float(_coefficients(first[None], second[None])[0])


@dataclass(frozen=True, eq=False)
class Overlap:
    """Coefficients between sets of images, two by two.

    Attributes:
        names: Names of the M sets.
        values: Coefficients (M, M), 1 on the diagonal.
        low: Lower ends of their intervals (M, M).
        high: Upper ends.
        settings: What was counted, draws, confidence and seed.
    """

    names: tuple[str, ...]
    values: Tensor
    low: Tensor
    high: Tensor
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return {
            **self.settings,
            "names": list(self.names),
            "values": self.values.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
        }


def overlap(
    sets: Mapping[str, Supporting],
    *,
    which: str = "score",
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Overlap:
    """Bhattacharyya coefficients between the supporting-class histograms of several sets.

    ``sum_k sqrt(p_k q_k)``, where p and q are the counts of all K classes in the images' lists
    (`Supporting.counts`), normalized (Li et al. 2019, Section 5.2). The interval is the symmetric
    bootstrap's: ``value -+`` the ``confidence`` quantile of ``|value* - value|`` over draws of as
    many images with replacement, cut to [0, 1]. Images at the same position of several sets are
    drawn together, as rows of one bank under several attacks must be. Few images make two
    histograms differ by chance alone, so that coefficients of small sets are too low.

    Deviation: the paper does not say whether its histograms are of all classes or of the ten most
    frequent, and gives no interval.

    Args:
        sets: What `supporting_classes` found, by name: attacks, networks, or both.
        which: Lists by ``score``, ``pull`` or ``push``.
        draws: Bootstrap draws.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Names the random numbers.

    Raises:
        InputError: Fewer than one set, sets of other classes, or a set without any counts.
        SpecError: Another ``which``.
        ConfigError: ``draws`` is below 1, or ``confidence`` no share.
    """
    if draws < 1:
        raise ConfigError(f"draws is {draws}", expected="at least 1 bootstrap draw")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}", expected="between 0 and 1, such as 0.95")
    if not sets:
        raise InputError("There is no set", expected="at least one")
    kinds = {name: found.num_classes for name, found in sets.items()}
    if len(set(kinds.values())) > 1:
        raise InputError(f"The sets have {kinds} classes", expected="the same number of classes")
    counts = {name: found.counts(which).double() for name, found in sets.items()}
    for name, histogram in counts.items():
        if not float(histogram.sum()):
            raise InputError(
                f"No image of {name!r} has supporting classes", expected="at least one that has"
            )
    histograms = torch.stack(list(counts.values()))
    values = _matrix(histograms[None])[0]
    drawn = _drawn(list(sets.values()), which, draws, seed)
    off = (_matrix(drawn) - values).abs()
    reach = torch.quantile(off, confidence, dim=0)
    return Overlap(
        names=tuple(sets),
        values=values,
        low=(values - reach).clamp(min=0),
        high=(values + reach).clamp(max=1),
        settings={
            "which": which,
            "top": {name: found.top for name, found in sets.items()},
            "n": {name: len(found) for name, found in sets.items()},
            "draws": draws,
            "confidence": confidence,
            "seed": seed,
        },
    )


def _drawn(sets: list[Supporting], which: str, draws: int, seed: int) -> Tensor:
    """Counts of bootstrap draws, (draws, sets, K)."""
    count = max(found.given for found in sets)
    keys = Keys.of(seed, [str(draw) for draw in range(draws)], domain="explain/overlap")
    made = torch.zeros(len(sets), sets[0].num_classes, draws, dtype=torch.float64)
    # So many draws at once that their numbers take some 30 MB, however many images there are.
    step = max(1, (1 << 22) // count)
    for start in range(0, draws, step):
        some = slice(start, start + step)
        picked = (keys[some].uniform("images", (count,)).double() * count).long().T
        times = torch.zeros(count, picked.shape[1], dtype=torch.float64)
        times.scatter_add_(0, picked, torch.ones((), dtype=torch.float64).expand_as(picked))
        for place, found in enumerate(sets):
            weights = times[found.rows[~found.flat]]
            for listed in found.lists(which).indices[~found.flat].T:
                made[place, :, some].index_add_(0, listed, weights)
    return made.permute(2, 0, 1)


def _matrix(histograms: Tensor) -> Tensor:
    """Coefficients (D, M, M) between histograms (D, M, K)."""
    count = histograms.shape[1]
    made = torch.ones(len(histograms), count, count, dtype=torch.float64)
    for one in range(count):
        for two in range(one):
            made[:, one, two] = _coefficients(histograms[:, one], histograms[:, two])
            made[:, two, one] = made[:, one, two]
    return made


def _coefficients(first: Tensor, second: Tensor) -> Tensor:
    """Coefficients (D,) of histograms (D, K); rounding may not lift one above 1."""
    first, second = first.double(), second.double()
    # A draw may hold none of the images that have classes: nothing is common to it.
    sizes = (first.sum(1) * second.sum(1)).clamp(min=1e-300).sqrt()
    return ((first * second).sqrt().sum(1) / sizes).clamp(max=1.0)
