"""Security curves: accuracy as a function of the attack's size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from unperturb.audit.answers import PROBE, Answers, Cell
from unperturb.audit.statistics import Floats, accuracy

__all__ = ["POINTS", "curves", "eps_text"]

POINTS = 60
"""Points of a curve that comes of distances."""


def eps_text(eps: float) -> str:
    """``8/255`` for such a number, else four digits.

    Example:
        >>> eps_text(8 / 255), eps_text(0.5)
        ('8/255', '0.5')
    """
    scaled = eps * 255
    fraction = Fraction(eps).limit_denominator(20)
    if math.isclose(float(fraction), eps, rel_tol=1e-12):
        return f"{eps:g}"
    return (
        f"{round(scaled)}/255"
        if math.isclose(scaled, round(scaled), rel_tol=1e-9)
        else f"{eps:.4g}"
    )


def curves(
    answers: Answers, settings: Mapping[str, Any], bounds: Mapping[str, str]
) -> dict[str, Any] | None:
    """Accuracy against the size of the attack, with intervals.

    Probes are one attack run at several sizes on the first images. An image that is broken at a
    smaller size stays broken: for a random subject the worst size up to each point is selected on
    one set of draws and scored on another, so that its curve may rise by chance. Minimal attacks
    give a curve of their own: an image is broken from its distance on.

    Args:
        answers: The answers.
        settings: The plan's settings.
        bounds: Attack to its bound.

    Returns:
        Series by subject, and the accuracy at a size where nothing can be robust; None where
        there is neither.
    """
    norm, probe = settings["threat"]["norm"], settings.get("probe") or {}
    series, huge = [], {}
    for subject in answers.subjects:
        clean = answers.clean(subject)
        if clean is None:
            continue
        cells = [c for c in answers.where(subject=subject, attack=PROBE) if not c.empty]
        if probe and cells:
            series.append(_probed(answers, clean, cells, probe))
            last = [c for c in cells if c.key.eps == probe["huge"]]
            huge[subject] = accuracy(last[0].share("correct")[last[0].done] > 0.5) if last else None
        for name in (attack for attack, bound in bounds.items() if bound == "minimal"):
            found = _minimal(answers, clean, name, norm)
            if found is not None:
                series.append(found)
    if not series:
        return None
    top = {"eps": probe["huge"], "eps_text": eps_text(probe["huge"])} if probe and huge else None
    if top is not None:
        top |= {"target": huge.get("target"), "baseline": huge.get("baseline")}
    return {"norm": norm, "series": series, "huge": top}


def _point(eps: float, right: Any) -> dict[str, Any]:
    found = accuracy(right)
    assert found is not None
    return {"eps": float(eps), "eps_text": eps_text(float(eps)), **found}


def _probed(
    answers: Answers, clean: Cell, cells: list[Cell], probe: Mapping[str, Any]
) -> dict[str, Any]:
    """The curve of one attack at several sizes, from the clean images on."""
    cells = sorted((c for c in cells if c.key.eps != probe["huge"]), key=lambda c: c.key.eps)
    done = np.logical_and.reduce([clean.done, *(cell.done for cell in cells)])
    points = [_point(0.0, clean.share("correct")[done] > 0.5)] if done.any() else []
    for count, cell in enumerate(cells, start=1):
        # In the ball that they were made for, whatever that of the threat model is.
        outcome = answers.returned([clean, *cells[:count]])
        if outcome is not None and done.any():
            points.append(_point(cell.key.eps, outcome.right[done]))
    key = clean.key
    return {
        "subject": key.subject,
        "source": "probe",
        "attack": str(probe["attack"].get("spec", probe["attack"]["name"])),
        "attacker": "adaptive",
        "n": int(done.sum()),
        "points": points,
    }


def _minimal(answers: Answers, clean: Cell, attack: str, norm: str) -> dict[str, Any] | None:
    """The curve of a minimal attack: an image is broken from its distance on."""
    cells = answers.where(subject=clean.key.subject, attack=attack, attacker="adaptive")
    cells = [cell for cell in cells if not cell.empty]
    if not cells:
        return None
    done = np.logical_and.reduce([clean.done, *(cell.done for cell in cells)])
    if not done.any():
        return None
    nearest: Floats = np.where(clean.share("correct") > 0.5, np.inf, 0.0)
    for cell in cells:
        fell = cell.share("correct") <= 0.5
        nearest = np.minimum(nearest, np.where(fell, cell.first(norm), np.inf))
    nearest = nearest[done]
    reached = np.unique(nearest[np.isfinite(nearest) & (nearest > 0)])
    if len(reached) > POINTS:
        reached = np.quantile(reached, np.linspace(0, 1, POINTS), method="higher")
    return {
        "subject": clean.key.subject,
        "source": "minimal",
        "attack": attack,
        "attacker": "adaptive",
        "n": int(done.sum()),
        "points": [_point(eps, nearest > eps) for eps in [0.0, *reached.tolist()]],
    }
