"""What the tests of mistakes share: short settings, and the check of a message."""

from __future__ import annotations

from typing import Any

DIGITS = ("--data", "digits", "--limit", 4)
TRAIN = ("--data", "digits", "--epochs", 1, "--holdout", 20, "--monitor-images", 8)


def check(ran: Any, *words: str) -> None:
    """One message on standard error, nothing else anywhere."""
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert ran.err.endswith("\n")
