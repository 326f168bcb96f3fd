"""Errors a user can cause: each states the value found, what was expected and the fix.

Internal invariants use ``assert``; everything a caller can get wrong raises one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AttackError",
    "ConfigError",
    "DataError",
    "InputError",
    "MissingExtraError",
    "OutputError",
    "RecordError",
    "SpecError",
    "ThresholdError",
    "UnperturbError",
    "WeightsError",
    "unknown_name",
]


class UnperturbError(Exception):
    """Base class of every error this package raises on purpose.

    Args:
        problem: What is wrong, with the offending value.
        expected: What would have been right.
        fix: What the user can do now.
    """

    def __init__(self, problem: str, *, expected: str = "", fix: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.fix = fix
        parts = [problem.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if fix:
            parts.append(f"Fix: {fix.rstrip(chr(46))}" + ("" if fix.endswith("?") else "."))
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.expected, self.fix))


def _rebuild(kind: type[UnperturbError], problem: str, expected: str, fix: str) -> UnperturbError:
    return kind(problem, expected=expected, fix=fix)


class InputError(UnperturbError, ValueError):
    """A tensor handed to the library is not what the contract says."""


class SpecError(UnperturbError, ValueError):
    """A specification string or a name cannot be resolved."""


class ConfigError(UnperturbError, ValueError):
    """A configuration value is out of range, of another type or of another version."""


class WeightsError(UnperturbError, ValueError):
    """Weights cannot be read, or do not fit the network."""


class DataError(UnperturbError, ValueError):
    """A data set is missing, empty, unreadable or mislabelled."""


class AttackError(UnperturbError, ValueError):
    """An attack cannot run as asked."""


class ThresholdError(UnperturbError, ValueError):
    """A detector's threshold is missing or was fitted on something else."""


class OutputError(UnperturbError, OSError):
    """Something cannot be written; nothing half-written is left behind."""


class RecordError(UnperturbError, ValueError):
    """Records on disk belong to another run, schema or environment, or are damaged."""


class MissingExtraError(UnperturbError, ImportError):
    """An optional dependency is needed and absent.

    Args:
        package: The distribution that is missing.
        extra: The extra of this package that brings it.
        purpose: What it is needed for.
        detail: The import error's own words, if there are any.
    """

    def __init__(self, package: str, *, extra: str, purpose: str, detail: str = "") -> None:
        self.package, self.extra, self.purpose, self.detail = package, extra, purpose, detail
        why = f" ({detail})" if detail else ""
        super().__init__(
            f"{purpose} needs the package {package!r}, which cannot be imported{why}",
            expected=f"{package} importable",
            fix=f"pip install 'unperturb[{extra}]'",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_extra, (self.package, self.extra, self.purpose, self.detail))


def _rebuild_extra(package: str, extra: str, purpose: str, detail: str) -> MissingExtraError:
    return MissingExtraError(package, extra=extra, purpose=purpose, detail=detail)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SpecError:
    """Build the error for a name that is not registered, with the nearest known ones.

    Args:
        kind: What is being named, such as ``"attack"``.
        name: The name that was given.
        known: The names there are.

    Example:
        >>> print(unknown_name("attack", "pdg", ["fgsm", "pgd"]))
        Unknown attack 'pdg'. Expected: one of fgsm, pgd. Fix: did you mean 'pgd'?
    """
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    fix = "did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
    shown = ", ".join(names) if names else "(none are registered)"
    return SpecError(f"Unknown {kind} {name!r}", expected=f"one of {shown}", fix=fix)
