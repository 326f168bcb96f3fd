"""How well a detector tells attacked images from clean ones, and what its flags prevent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unperturb.audit.answers import ATTACKERS, Answers, Cell, Outcome
from unperturb.audit.statistics import Bools, Floats, auroc, compare, rate

__all__ = ["POINTS", "detection", "rejection", "roc"]

POINTS = 100
"""Points of a ROC curve at most."""

Described = Mapping[str, Any]


def roc(negatives: Floats, positives: Floats, points: int = POINTS) -> list[list[float]]:
    """The ROC curve as (false-positive rate, true-positive rate), from (0, 0) to (1, 1).

    Its points are those of all distinct thresholds; where they are too many, evenly spaced ones
    of them, so that the area under the points falls short of the exact one by their spacing.

    Args:
        negatives: Scores of clean images (M,).
        positives: Scores of attacked images (N,); greater is more suspicious.
        points: How many at most.

    Example:
        >>> roc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        [[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    if not len(negatives) or not len(positives):
        return []
    thresholds = np.unique(np.concatenate((negatives, positives)))[::-1]
    fpr, tpr = (
        1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)
        for scores in (negatives, positives)
    )
    if len(thresholds) >= points:
        # Evenly along the curve, which is as long as both rates together.
        way = np.searchsorted(fpr + tpr, np.linspace(0, 2, points - 1))
        kept = np.unique(np.minimum(way, len(thresholds) - 1))
        fpr, tpr = fpr[kept], tpr[kept]
    return [[0.0, 0.0], *np.round(np.stack((fpr, tpr), 1), 6).tolist()]


def detection(
    answers: Answers, describe: Described, *, own_baseline: bool = True
) -> dict[str, Any] | None:
    """ROC, AUROC, the realized false-positive rate, and true-positive rates by attack.

    An oblivious image is successful where it changed the undefended classifier's right answer; an
    adaptive one where the defense answers wrongly. For a random defense the first scoring draw
    counts: a deployed detector sees one.

    Args:
        answers: The answers.
        describe: The target's description.
        own_baseline: Whether oblivious images are those that the undefended classifier was shown.

    Returns:
        None without a detector, or without clean images.
    """
    detector = describe.get("detector")
    clean = answers.clean("target")
    if not detector or clean is None or clean.empty:
        return None
    negatives = _scores(clean)
    cells = [
        cell
        for cell in answers.where(subject="target")
        if cell.key.attacker in ATTACKERS and not cell.key.probe and not cell.empty
    ]
    return {
        "name": detector.get("name"),
        "action": detector.get("action"),
        "threshold": detector.get("threshold"),
        "false_positive_rate": rate(clean.first("flagged")[clean.done] == 1),
        "by_attack": [_of(answers, cell, negatives[clean.done], own_baseline) for cell in cells],
    }


def _scores(cell: Cell) -> Floats:
    """The detector's scores; one that is not a number flags nothing."""
    return np.where(np.isnan(cell.first("detector")), -np.inf, cell.first("detector"))


def _of(answers: Answers, cell: Cell, negatives: Floats, own_baseline: bool) -> dict[str, Any]:
    key, done = cell.key, cell.done
    scores, flagged = _scores(cell), cell.first("flagged") == 1
    success, on = _success(answers, cell, own_baseline)
    success &= done
    return {
        "attack": key.attack,
        "attacker": key.attacker,
        "backward": key.backward,
        "goal": key.goal,
        "n": int(done.sum()),
        "auroc": auroc(negatives, scores[done]),
        "tpr": rate(flagged[done]),
        "successful_on": on,
        "successful": {
            "n": int(success.sum()),
            "auroc": auroc(negatives, scores[success]),
            "tpr": rate(flagged[success]),
        },
        "roc": roc(negatives, scores[done]),
    }


def _success(answers: Answers, cell: Cell, own_baseline: bool) -> tuple[Bools, str]:
    """Images that an attack broke, and on whom."""
    if cell.key.attacker == "oblivious" and own_baseline:
        clean = answers.clean("baseline")
        same = answers.cells.get(cell.key._replace(subject="baseline"))
        if clean is not None and same is not None:
            fell = same.first("correct") == 0
            return (clean.first("correct") == 1) & fell, "baseline"
    return cell.first("correct") == 0, "target"


def rejection(answers: Answers, describe: Described, attackers: list[str]) -> dict[str, Any] | None:
    """The headline where flags reject: wrong and not flagged, beside the false-positive rate.

    Such an image is what the detector fails to turn away; one that is flagged does no harm,
    whatever the answer was. The undefended classifier has no flags: there it is wrong answers.

    Args:
        answers: The answers.
        describe: The target's description.
        attackers: The plan's attackers.

    Returns:
        None where no flag rejects, or there are no clean images.
    """
    clean = answers.clean("target")
    if (describe.get("detector") or {}).get("action") != "reject" or clean is None or clean.empty:
        return None
    target, base = (_harm(answers, who, attackers) for who in ("target", "baseline"))
    first = clean.first("correct") == 1
    return {
        "wrong_unflagged": target["rates"],
        "baseline_wrong": base["rates"] if "baseline" in answers.subjects else None,
        "false_positive_rate": rate(clean.first("flagged")[clean.done] == 1),
        "right_unflagged_clean": rate((first & (clean.first("flagged") == 0))[clean.done]),
        "gain": _gain(target["worst"], base["worst"]),
    }


def _harm(answers: Answers, subject: str, attackers: list[str]) -> dict[str, Any]:
    def worst(named: list[str] | tuple[str, ...]) -> Outcome | None:
        found = answers.worst_case(subject, named, "held")
        return None if found is None else found[0]

    def harmed(outcome: Outcome | None) -> dict[str, Any] | None:
        return None if outcome is None else rate(~outcome.right[outcome.done])

    clean = answers.clean(subject)
    whole = worst(ATTACKERS)
    rates = {
        "clean": harmed(answers.worst([clean], "held") if clean is not None else None),
        "worst_case": harmed(whole),
        "worst_by_attacker": {name: harmed(worst([name])) for name in attackers},
    }
    return {"rates": rates, "worst": whole}


def _gain(target: Outcome | None, base: Outcome | None) -> dict[str, Any] | None:
    """Images that fool the target against images that fool the undefended classifier."""
    if target is None or base is None or not (both := target.done & base.done).any():
        return None
    return compare("not fooled, worst case", target.right[both], base.right[both])
