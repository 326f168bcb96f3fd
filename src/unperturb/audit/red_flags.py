"""Red flags: signs that an audit's figures are better than the truth, each with its evidence.

A flag needs an effect of at least one point and an exact McNemar p below 0.01; both thresholds
were fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unperturb.audit.statistics import Bools, mcnemar

__all__ = ["EFFECT", "SIGNIFICANCE", "Evidence", "Flag", "find_flags"]

EFFECT = 0.01
SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Flag:
    """One red flag: a short id, what was seen, and what it means."""

    id: str
    title: str
    evidence: str
    meaning: str

    def to_dict(self) -> dict[str, str]:
        """JSON-able."""
        return {
            "id": self.id,
            "title": self.title,
            "evidence": self.evidence,
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class Evidence:
    """What the flags are found in.

    Attributes:
        answers: ``(subject, attacker, attack)`` to which images are answered correctly, (N,) bool
            in the plan's order; for the adaptive attacker the worst over backward rules. The
            attack ``clean`` has the attacker ``none``.
        steps: Gradient steps of each attack.
        gradients: ``(subject, attack, attacker)`` to the share of images whose gradient was zero
            or not a number at most of the steps.
        subjects: Subjects with names to print.
        purifier: Name of the target's purifier.
        card: The classifier's card: how it was trained.
    """

    answers: dict[tuple[str, str, str], Bools]
    steps: dict[str, int]
    gradients: dict[tuple[str, str, str], tuple[float, float]]
    subjects: dict[str, str]
    purifier: str
    card: dict[str, Any]


def find_flags(evidence: Evidence) -> list[Flag]:
    """All red flags, in a fixed order."""
    found: list[Flag] = []
    for check in _CHECKS:
        found.extend(check(evidence))
    return found


def _lower(one: Bools, two: Bools) -> tuple[bool, str]:
    """Whether the first accuracy is lower than the second by the flag's measure, in words."""
    test = mcnemar(one, two)
    effect = float(two.mean() - one.mean())
    words = f"{one.mean():.1%} against {two.mean():.1%} (n = {len(one)}, p = {test.p:.2g})"
    # The sum of floats that make one point may fall short of it by rounding.
    return effect >= EFFECT - 1e-9 and test.p < SIGNIFICANCE, words


def _one_step(evidence: Evidence) -> list[Flag]:
    found = []
    pairs = sorted({(subject, attacker) for subject, attacker, _ in evidence.answers})
    for subject, attacker in pairs:
        single = [a for a, steps in evidence.steps.items() if steps == 1]
        many = [a for a, steps in evidence.steps.items() if steps > 1]
        ones = [
            (a, evidence.answers[k])
            for a in single
            if (k := (subject, attacker, a)) in evidence.answers
        ]
        runs = [
            (a, evidence.answers[k])
            for a in many
            if (k := (subject, attacker, a)) in evidence.answers
        ]
        if not ones or not runs:
            continue
        # The strongest iterative attack is the fair opponent.
        name, best = min(runs, key=lambda pair: pair[1].mean())
        step, one = min(ones, key=lambda pair: pair[1].mean())
        hit, words = _lower(one, best)
        if hit:
            found.append(
                Flag(
                    "one-step-beats-iterative",
                    "A one-step attack beats an iterative one",
                    f"{evidence.subjects[subject]}, {attacker} attacker: accuracy under "
                    f"{step} and {name}: {words}",
                    "Iterating can only help an attacker who sees the right gradient: the "
                    "gradient of what was attacked does not lead to what is judged.",
                )
            )
    return found


def _transfer(evidence: Evidence) -> list[Flag]:
    def worst(attacker: str) -> Bools | None:
        rows = [v for (s, a, _), v in evidence.answers.items() if s == "target" and a == attacker]
        return np.logical_and.reduce(rows) if rows else None

    blind, informed = worst("oblivious"), worst("adaptive")
    if blind is None or informed is None:
        return []
    hit, words = _lower(blind, informed)
    if not hit:
        return []
    return [
        Flag(
            "transfer-beats-adaptive",
            "The attacker who ignores the defense beats the one who knows it",
            f"{evidence.subjects['target']}: worst case {words}",
            "The adaptive attacks do not find what is there to be found: gradients are masked, "
            "and the adaptive column is too good.",
        )
    ]


def _gradients(evidence: Evidence) -> list[Flag]:
    found = []
    for (subject, attack, attacker), (zero, nan) in sorted(evidence.gradients.items()):
        for share, kind in ((zero, "zero"), (nan, "not a number")):
            if share >= EFFECT:
                found.append(
                    Flag(
                        "zero-gradients" if kind == "zero" else "nan-gradients",
                        f"Gradients are {kind}",
                        f"{evidence.subjects[subject]}, {attack}, {attacker} attacker: at most "
                        f"steps of {share:.1%} of the images that withstood it",
                        "Such images were not attacked at all; their robustness is not shown.",
                    )
                )
    return found


def _broken_attack(evidence: Evidence) -> list[Flag]:
    subject = "baseline" if "baseline" in evidence.subjects else "target"
    clean = evidence.answers.get((subject, "none", "clean"))
    if clean is None:
        return []
    found = []
    for (who, attacker, attack), right in sorted(evidence.answers.items()):
        if who != subject or attack == "clean" or clean.mean() - right.mean() >= EFFECT:
            continue
        found.append(
            Flag(
                "attack-does-nothing",
                "An attack does not hurt the undefended classifier",
                f"{attack}, {attacker}: accuracy {right.mean():.1%}, clean {clean.mean():.1%}",
                "At this size the attack is broken, too weak, or the very one the network was "
                "trained on; by itself it says nothing about a defense.",
            )
        )
    return found


def _leaking(evidence: Evidence) -> list[Flag]:
    """Accuracy under attack above clean: the attack writes the true label into the image."""
    found = []
    for (subject, attacker, attack), right in sorted(evidence.answers.items()):
        clean = evidence.answers.get((subject, "none", "clean"))
        if clean is None or attack == "clean":
            continue
        hit, words = _lower(clean, right)
        if not hit:
            continue
        repaired = float((right & ~clean).sum() / max((~clean).sum(), 1))
        found.append(
            Flag(
                "attack-above-clean",
                "Accuracy under an attack is above clean accuracy",
                f"{evidence.subjects[subject]}, {attack}, {attacker} attacker: clean {words} "
                f"attacked; {repaired:.1%} of the images that were wrong when clean are right "
                "when attacked",
                "Steps away from the true label write that label into the image (label leaking), "
                "and so this figure flatters: a real attacker gains nothing by them.",
            )
        )
    return found


def _overfitting(evidence: Evidence) -> list[Flag]:
    if evidence.purifier != "fgsm-step":
        return []
    state = evidence.card.get("monitor")
    if isinstance(state, dict) and "robust_overfitting" in state:
        if state["robust_overfitting"]:
            return []
        told = "its card says that it was trained in another way"
        if "train_fgsm" in state and "train_pgd" in state:
            told = (
                f"its training says: FGSM at the training eps {state['train_fgsm']:.1%}, "
                f"PGD {state['train_pgd']:.1%} on training images"
            )
    else:
        told = "nothing in its card says that it was trained into that state"
        fgsm = evidence.answers.get(("baseline", "oblivious", "fgsm"))
        if fgsm is not None:
            told += f"; undefended accuracy under FGSM here is {fgsm.mean():.1%}"
    return [
        Flag(
            "robust-overfitting-never-reached",
            "The network is not known to be in robust overfitting",
            f"The classifier under TPAP: {told}",
            "TPAP is proposed for networks that are near-perfect on FGSM examples of their "
            "training and near zero under PGD (above 90 % and below 10 % on training images). "
            "Around other networks it is not what the paper proposes.",
        )
    ]


_CHECKS: tuple[Callable[[Evidence], list[Flag]], ...] = (
    _overfitting,
    _one_step,
    _transfer,
    _gradients,
    _broken_attack,
    _leaking,
)
