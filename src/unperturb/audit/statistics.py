"""Intervals and tests for accuracies: Wilson, and McNemar for paired answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["McNemar", "accuracy", "mcnemar", "wilson"]

Bools = NDArray[np.bool_]


def wilson(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        correct: Successes, 0 to n.
        n: Trials, at least 1.
        confidence: Coverage.

    Returns:
        Lower and upper end in [0, 1].

    Example:
        >>> low, high = wilson(50, 100)
        >>> round(low, 4), round(high, 4)
        (0.4038, 0.5962)
    """
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(found.low), float(found.high)


def accuracy(correct: Bools) -> dict[str, object] | None:
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


class McNemar(NamedTuple):
    """Paired comparison of two sets of answers on the same images."""

    only_first: int  # images that only the first gets right
    only_second: int  # images that only the second gets right
    p: float  # exact two-sided p-value


def mcnemar(first: Bools, second: Bools) -> McNemar:
    """Exact McNemar test of paired answers.

    Args:
        first: Which images the first gets right, (N,) bool.
        second: The same of the second.

    Example:
        >>> mcnemar(np.array([True] * 10), np.array([False] * 10)).p
        0.001953125
    """
    from scipy.stats import binomtest

    one = int(np.count_nonzero(first & ~second))
    two = int(np.count_nonzero(second & ~first))
    p = 1.0 if one + two == 0 else float(binomtest(one, one + two, 0.5).pvalue)
    return McNemar(one, two, p)
