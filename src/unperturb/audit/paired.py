"""Two audits on the same images: which of them each gets right, compared in pairs."""

from __future__ import annotations

from typing import Any

from unperturb.audit.answers import Answers, Outcome
from unperturb.audit.attack_figures import grouped
from unperturb.audit.result import AuditResult
from unperturb.audit.statistics import paired_comparison
from unperturb.errors import InputError

__all__ = ["compare_pair", "outcome_of"]


def outcome_of(
    result: AuditResult, attack: str | None = None, attacker: str = "none"
) -> Outcome | None:
    """How often an audit's target is right, for each image; None where nothing was done.

    Args:
        result: The audit.
        attack: Name of one of its attacks; None for clean images.
        attacker: ``oblivious`` or ``adaptive``: the worst of all that he tried with it.
    """
    settings = result.plan["settings"]
    bounds = {a["name"]: str(a.get("bound", "threat")) for a in settings["attacks"]}
    subjects = ("target", "baseline") if settings["has_defense"] else ("target",)
    answers = Answers(result.rows, result.plan["ids"], result.units, (), bounds, subjects)
    if attack is None:
        clean = answers.clean("target")
        return None if clean is None else answers.worst([clean])
    cells = grouped(answers, "target", attacker, attack)
    return answers.returned(cells) if bounds.get(attack) == "own" else answers.worst(cells)


def compare_pair(
    one: AuditResult,
    other: AuditResult,
    attack: str | None = None,
    attacker: str = "none",
    *,
    other_attack: str | None = None,
) -> dict[str, Any] | None:
    """Paired comparison of two targets on the images that both audits have done.

    Of a random target an image counts as right where most of the scoring draws are. The test is
    the exact McNemar test, the interval Newcombe's for paired proportions.

    Args:
        one: The first audit.
        other: The second, on the same images.
        attack: Name of an attack of the first; None for clean images.
        attacker: Who ran it.
        other_attack: Its name in the second; the same by default.

    Returns:
        ``one``, ``other``: accuracies on these images; ``difference`` with its ``interval``;
        ``only_one``, ``only_other``: images that one of them alone gets right; ``mcnemar_p``.
        None where no image is done in both.

    Raises:
        InputError: The audits are not on the same images.
    """
    if one.plan["ids"] != other.plan["ids"]:
        raise InputError(
            f"The audits are on {len(one.plan['ids'])} and {len(other.plan['ids'])} images, which "
            "are not the same",
            expected="two audits on the same images, in the same order",
        )
    first = outcome_of(one, attack, attacker)
    second = outcome_of(other, attack if other_attack is None else other_attack, attacker)
    if first is None or second is None:
        return None
    both = first.done & second.done
    if not both.any():
        return None
    return paired_comparison(first.right[both], second.right[both], ("one", "other"))
