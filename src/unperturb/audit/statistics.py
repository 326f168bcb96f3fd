"""Intervals and tests for shares of images: Wilson, McNemar for paired answers, AUROC."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bools",
    "Floats",
    "McNemar",
    "accuracy",
    "auroc",
    "compare",
    "mcnemar",
    "mean",
    "paired_comparison",
    "paired_interval",
    "rate",
    "wilson",
]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def wilson(correct: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    ``(p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n)`` (Wilson 1927). For a mean of
    shares in [0, 1] in place of a proportion it is too wide rather than too narrow: nothing in
    [0, 1] varies more than zeros and ones of the same mean.

    Args:
        correct: Successes, 0 to n; or a sum of shares.
        n: Trials, at least 1.
        confidence: Coverage.

    Returns:
        Lower and upper end in [0, 1].

    Example:
        >>> low, high = wilson(50, 100)
        >>> round(low, 4), round(high, 4)
        (0.4038, 0.5962)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, square = correct / n, z * z / n
    middle = p + square / 2
    half = math.sqrt(square * (p * (1 - p) + square / 4))
    # At 0 and n one end is the proportion itself, which rounding would miss.
    low = 0.0 if correct == 0 else max((middle - half) / (1 + square), 0.0)
    high = 1.0 if correct == n else min((middle + half) / (1 + square), 1.0)
    return low, high


def accuracy(correct: Bools) -> dict[str, Any] | None:
    """Accuracy with its Wilson 95 % interval; None where there is no image."""
    n = len(correct)
    if not n:
        return None
    count = int(np.count_nonzero(correct))
    return {
        "accuracy": count / n,
        "correct": count,
        "n": n,
        "interval": list(wilson(count, n)),
    }


def mean(shares: Floats) -> dict[str, Any] | None:
    """Mean of shares in [0, 1], one for each image, in the form of ``accuracy``.

    Its interval is Wilson's for as many images: where an image's share is no zero or one, it is
    wider than need be.
    """
    n = len(shares)
    if not n:
        return None
    total = float(shares.sum())
    return {"accuracy": total / n, "correct": total, "n": n, "interval": list(wilson(total, n))}


def rate(hit: Bools) -> dict[str, Any] | None:
    """A share of images that is no accuracy, with its Wilson 95 % interval.

    Example:
        >>> rate(np.array([True, False]))["count"]
        1
    """
    found = accuracy(hit)
    if found is None:
        return None
    return {
        "rate": found["accuracy"],
        "count": found["correct"],
        "n": found["n"],
        "interval": found["interval"],
    }


class McNemar(NamedTuple):
    """Paired comparison of two sets of answers on the same images."""

    only_first: int  # images that only the first gets right
    only_second: int  # images that only the second gets right
    p: float  # exact two-sided p-value


def mcnemar(first: Bools, second: Bools) -> McNemar:
    """Exact McNemar test of paired answers: ``min(1, 2 P[B(b + c, 1/2) <= min(b, c)])``.

    Args:
        first: Which images the first gets right, (N,) bool.
        second: The same of the second.

    Example:
        >>> mcnemar(np.array([True] * 10), np.array([False] * 10)).p
        0.001953125
    """
    from scipy.special import bdtr

    one = int(np.count_nonzero(first & ~second))
    two = int(np.count_nonzero(second & ~first))
    p = 1.0 if one == two else min(1.0, 2 * float(bdtr(min(one, two), one + two, 0.5)))
    return McNemar(one, two, p)


def paired_interval(
    first: Bools, second: Bools, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same images (Newcombe 1998, method 10).

    With Wilson's intervals (l, u) of both proportions and the correlation phi of the answers,
    ``p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1)(u2 - p2) + (u2 - p2)^2)`` and the same with the
    other ends above. In phi, ``ad - bc`` is brought n/2 nearer to 0, but not below it, where it is
    positive.

    Newcombe, R. G. *Improved confidence intervals for the difference between binomial proportions
    based on paired data.* Statistics in Medicine 17 (1998).

    Args:
        first: Which images the first gets right, (N,) bool, N >= 1.
        second: The same of the second.
        confidence: Coverage.

    Returns:
        Lower and upper end of ``mean(first) - mean(second)``, in [-1, 1].

    Example:
        >>> low, high = paired_interval(np.array([True] * 10), np.array([True] * 5 + [False] * 5))
        >>> 0 < low < 0.5 < high < 1
        True
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, two = int((first & ~second).sum()), int((~first & second).sum())
    p1, p2 = (both + one) / n, (both + two) / n
    (l1, u1), (l2, u2) = (wilson(both + k, n, confidence=confidence) for k in (one, two))
    covariance = float(both * neither - one * two)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    sizes = math.prod((both + one, two + neither, both + two, one + neither))
    phi = covariance / math.sqrt(sizes) if sizes else 0.0

    def reach(a: float, b: float) -> float:
        # A sum of squares but for rounding.
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = p1 - p2
    return difference - reach(p1 - l1, u2 - p2), difference + reach(u1 - p1, p2 - l2)


def paired_comparison(a: Bools, b: Bools, names: tuple[str, str]) -> dict[str, Any]:
    """Two accuracies on the same images, and their difference.

    Args:
        a: Which images the one gets right.
        b: Which images the other gets right.
        names: What the two are called.

    Returns:
        Under the ``names`` the accuracies with Wilson's 95 % intervals; ``difference`` of the
        first less the second, with Newcombe's 95 % ``interval``; under ``only_NAME`` the images
        that one of them alone gets right; ``mcnemar_p`` of the exact McNemar test.

    Example:
        >>> found = paired_comparison(
        ...     np.array([True] * 9 + [False]), np.array([False] * 10), ("with", "without")
        ... )
        >>> found["difference"], found["only_with"], found["mcnemar_p"]
        (0.9, 9, 0.00390625)
    """
    test = mcnemar(a, b)
    return {
        names[0]: accuracy(a),
        names[1]: accuracy(b),
        "difference": float(np.mean(a) - np.mean(b)),
        "interval": list(paired_interval(a, b)),
        f"only_{names[0]}": test.only_first,
        f"only_{names[1]}": test.only_second,
        "mcnemar_p": test.p,
    }


def compare(what: str, target: Bools, baseline: Bools) -> dict[str, Any]:
    """Paired comparison of the target with the baseline on the same images, by what is compared.

    Example:
        >>> compare("clean", np.array([True, True]), np.array([True, False]))["difference"]
        0.5
    """
    test = mcnemar(target, baseline)
    return {
        "what": what,
        "target": accuracy(target),
        "baseline": accuracy(baseline),
        "difference": float(target.mean() - baseline.mean()),
        "only_target": test.only_first,
        "only_baseline": test.only_second,
        "mcnemar_p": test.p,
    }


def auroc(negatives: Floats, positives: Floats) -> float | None:
    """Area under the ROC curve: ``P[positive > negative] + P[equal]/2``, exactly, by ranks.

    Args:
        negatives: Scores of clean images (M,).
        positives: Scores of attacked ones (N,); greater is more suspicious.

    Returns:
        The area in [0, 1], or None where one of them is empty.

    Example:
        >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        0.875
    """
    if not len(negatives) or not len(positives):
        return None
    known = np.sort(negatives)
    below = np.searchsorted(known, positives, side="left")
    upto = np.searchsorted(known, positives, side="right")
    return float((below + upto).sum() / (2 * len(negatives) * len(positives)))
