"""Red flags: signs that an audit's figures are better than the truth, each with its evidence.

A flag needs an effect of at least one point and an exact McNemar p below 0.01; both thresholds
were fixed beforehand. All of them compare answers to images inside the threat model's ball, the
same images on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unperturb.audit.statistics import Bools, mcnemar

__all__ = ["EFFECT", "SIGNIFICANCE", "Evidence", "Flag", "Gradients", "find_flags"]

EFFECT = 0.01
FEW = 100
SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Flag:
    """One red flag: a short id, what was seen, in words and numbers, and what it means."""

    id: str
    title: str
    evidence: str
    meaning: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "id": self.id,
            "title": self.title,
            "evidence": self.evidence,
            "meaning": self.meaning,
            "numbers": dict(self.numbers),
        }


class Gradients(NamedTuple):
    """Gradients of an attack, each (N,) bool."""

    held: Bools  # images that withstood it
    zero: Bools  # of those, the ones whose gradient was zero at most of the steps
    nan: Bools  # of those, the ones whose gradient was not a number at most of the steps


@dataclass(frozen=True)
class Evidence:
    """What the flags are found in.

    Attributes:
        answers: ``(subject, attacker, attack)`` to which images are answered correctly, (N,) bool
            in the plan's order; for the adaptive attacker the worst over backward rules and
            goals. The attack ``clean`` has the attacker ``none``.
        steps: Gradient steps of each attack.
        gradients: ``(subject, attack, attacker)`` to what its gradients were.
        subjects: Subjects with names to print.
        purifier: Name of the target's purifier.
        card: The classifier's card: how it was trained.
        access: What each attack needs: ``gradients`` where it is not named.
        minimal: Attacks that look for the nearest image, whatever the ball.
        worst: ``(subject, attacker, access)`` to the worst case over those attacks, where access
            is ``gradients``, ``black-box`` or ``any``. What is not there is the conjunction of
            the answers.
        probes: ``(subject, name)`` to answers of the first images under the attack whose strength
            is varied: ``probe``, ``probe-more-steps``, ``probe-more-draws``, ``huge``.
        huge: The size at which nothing can be robust, in words.
    """

    answers: Mapping[tuple[str, str, str], Bools]
    steps: Mapping[str, int]
    gradients: Mapping[tuple[str, str, str], Gradients]
    subjects: Mapping[str, str]
    purifier: str
    card: Mapping[str, Any]
    access: Mapping[str, str] = field(default_factory=dict)
    minimal: frozenset[str] = frozenset()
    worst: Mapping[tuple[str, str, str], Bools] = field(default_factory=dict)
    probes: Mapping[tuple[str, str], Bools] = field(default_factory=dict)
    huge: str = ""

    def blind(self, attack: str) -> bool:
        """Whether an attack sees no gradients."""
        return self.access.get(attack, "gradients") != "gradients"

    def over(self, subject: str, attacker: str, access: str) -> Bools | None:
        """Worst case over an attacker's attacks; None where there is none."""
        if self.worst:
            return self.worst.get((subject, attacker, access))
        wanted = {"any": (True, False), "gradients": (False,), "black-box": (True,)}[access]
        rows = [
            right
            for (who, by, attack), right in self.answers.items()
            if (who, by) == (subject, attacker) and self.blind(attack) in wanted
        ]
        return np.logical_and.reduce(rows) if rows else None


def find_flags(evidence: Evidence) -> list[Flag]:
    """All red flags, in a fixed order."""
    found: list[Flag] = []
    for check in _CHECKS:
        found.extend(check(evidence))
    return found


class _Lower(NamedTuple):
    """Whether a first accuracy is lower than a second by the flags' measure."""

    hit: bool
    words: str
    numbers: dict[str, Any]


def _lower(one: Bools, two: Bools) -> _Lower:
    test = mcnemar(one, two)
    first, second = float(one.mean()), float(two.mean())
    words = f"{first:.1%} against {second:.1%} (n = {len(one)}, p = {test.p:.2g})"
    numbers = {"first": first, "second": second, "n": len(one), "mcnemar_p": test.p}
    # The sum of floats that make one point may fall short of it by rounding.
    hit = second - first >= EFFECT - 1e-9 and test.p < SIGNIFICANCE
    return _Lower(hit, words, numbers)


def _one_step(evidence: Evidence) -> list[Flag]:
    found = []
    pairs = sorted({(subject, attacker) for subject, attacker, _ in evidence.answers})
    for subject, attacker in pairs:
        ones, runs = (
            [
                (a, evidence.answers[(subject, attacker, a)])
                for a, steps in evidence.steps.items()
                if (steps == 1 if single else steps > 1)
                and (subject, attacker, a) in evidence.answers
                and not evidence.blind(a)
            ]
            for single in (True, False)
        )
        if not ones or not runs:
            continue
        # The strongest iterative attack is the fair opponent.
        name, best = min(runs, key=lambda pair: pair[1].mean())
        step, one = min(ones, key=lambda pair: pair[1].mean())
        lower = _lower(one, best)
        if lower.hit:
            found.append(
                Flag(
                    "one-step-beats-iterative",
                    "A one-step attack beats an iterative one",
                    f"{evidence.subjects[subject]}, {attacker} attacker: accuracy under "
                    f"{step} and {name}: {lower.words}",
                    "Iterating can only help an attacker who sees the right gradient: the "
                    "gradient of what was attacked does not lead to what is judged.",
                    lower.numbers,
                )
            )
    return found


def _black_box(evidence: Evidence) -> list[Flag]:
    found = []
    for subject, attacker in sorted({(s, a) for s, a, _ in evidence.answers if a != "none"}):
        blind = evidence.over(subject, attacker, "black-box")
        seeing = evidence.over(subject, attacker, "gradients")
        if blind is None or seeing is None:
            continue
        lower = _lower(blind, seeing)
        if lower.hit:
            found.append(
                Flag(
                    "black-box-beats-white-box",
                    "Attacks without gradients beat those with gradients",
                    f"{evidence.subjects[subject]}, {attacker} attacker: worst case without and "
                    f"with gradients: {lower.words}",
                    "Who sees gradients can do all that who sees none can: these gradients lead "
                    "nowhere, and accuracy under the attacks that follow them is too good.",
                    lower.numbers,
                )
            )
    return found


def _transfer(evidence: Evidence) -> list[Flag]:
    blind = evidence.over("target", "oblivious", "any")
    informed = evidence.over("target", "adaptive", "any")
    # Without a defense there is nothing to ignore.
    if blind is None or informed is None or "baseline" not in evidence.subjects:
        return []
    lower = _lower(blind, informed)
    if not lower.hit:
        return []
    return [
        Flag(
            "transfer-beats-adaptive",
            "The attacker who ignores the defense beats the one who knows it",
            f"{evidence.subjects['target']}: worst case {lower.words}",
            "The adaptive attacks do not find what is there to be found: gradients are masked, "
            "and the adaptive column is too good.",
            lower.numbers,
        )
    ]


def _huge(evidence: Evidence) -> list[Flag]:
    found = []
    for (subject, name), right in sorted(evidence.probes.items()):
        if name != "huge":
            continue
        lower = _lower(np.zeros_like(right), right)
        if lower.hit:
            found.append(
                Flag(
                    "accuracy-at-huge-eps",
                    "Accuracy is above zero where nothing can be robust",
                    f"{evidence.subjects[subject]}, adaptive attacker at {evidence.huge}: "
                    f"{right.mean():.1%} (n = {len(right)}, p = {lower.numbers['mcnemar_p']:.2g})",
                    "At this size every image can be turned into any other: an attack that does "
                    "not do so does not follow the gradient of what is judged, and fails at the "
                    "size of the threat model for the same reason.",
                    {**lower.numbers, "eps": evidence.huge},
                )
            )
    return found


def _more(evidence: Evidence) -> list[Flag]:
    found = []
    for what in ("steps", "draws"):
        for subject in sorted({subject for subject, _ in evidence.probes}):
            plain = evidence.probes.get((subject, "probe"))
            strong = evidence.probes.get((subject, f"probe-more-{what}"))
            if plain is None or strong is None:
                continue
            lower = _lower(strong, plain)
            if lower.hit:
                found.append(
                    Flag(
                        f"more-{what}-lower-accuracy",
                        f"More {what} still lower the accuracy",
                        f"{evidence.subjects[subject]}, adaptive attacker, four times as many "
                        f"{what}: {lower.words}",
                        "The attack has not converged: what is left is a matter of the "
                        "attacker's patience, and the figures here are too good.",
                        lower.numbers,
                    )
                )
    return found


def _gradients(evidence: Evidence) -> list[Flag]:
    found = []
    for (subject, attack, attacker), seen in sorted(evidence.gradients.items()):
        for dead, kind in ((seen.zero, "zero"), (seen.nan, "not a number")):
            lower = _lower(seen.held & ~dead, seen.held)
            if lower.hit:
                found.append(
                    Flag(
                        "zero-gradients" if kind == "zero" else "nan-gradients",
                        f"Gradients are {kind}",
                        f"{evidence.subjects[subject]}, {attack}, {attacker} attacker: {kind} at "
                        f"most of the steps on {dead.mean():.1%} of the images, all of which "
                        f"withstood it (n = {len(dead)}, p = {lower.numbers['mcnemar_p']:.2g})",
                        "Such images were not attacked at all; their robustness is not shown.",
                        {**lower.numbers, "share": float(dead.mean())},
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
        # One without gradients may be honest and still need more queries than it was given.
        if who != subject or attack == "clean" or evidence.blind(attack):
            continue
        # On few images an honest attack may break none; the nearest image that one in another
        # norm finds may lie outside of this ball.
        if len(right) < FEW or attack in evidence.minimal:
            continue
        drop = float(clean.mean() - right.mean())
        if drop >= EFFECT - 1e-9:
            continue
        found.append(
            Flag(
                "attack-does-nothing",
                "An attack does not hurt the undefended classifier",
                f"{attack}, {attacker}: accuracy {right.mean():.1%}, clean {clean.mean():.1%}",
                "At this size the attack is broken, too weak, or the very one the network was "
                "trained on; by itself it says nothing about a defense.",
                {"first": float(right.mean()), "second": float(clean.mean()), "n": len(right)},
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
        lower = _lower(clean, right)
        if not lower.hit:
            continue
        repaired = float((right & ~clean).sum() / max((~clean).sum(), 1))
        found.append(
            Flag(
                "attack-above-clean",
                "Accuracy under an attack is above clean accuracy",
                f"{evidence.subjects[subject]}, {attack}, {attacker} attacker: clean "
                f"{lower.words} attacked; {repaired:.1%} of the images that were wrong when clean "
                "are right when attacked",
                "Steps away from the true label write that label into the image (label leaking), "
                "and so this figure flatters: a real attacker gains nothing by them.",
                {**lower.numbers, "repaired": repaired},
            )
        )
    return found


# Training objectives on the attack that each of TPAP's other steps is (Table 7 of the paper).
SAME_ATTACK = {"pgd-step": ("pgd", "trades", "mart", "fat", "gairat"), "cw-step": ("cw",)}


def _same_attack(evidence: Evidence) -> list[Flag]:
    wanted = SAME_ATTACK.get(evidence.purifier)
    objective = evidence.card.get("objective")
    if wanted is None or objective in wanted:
        return []
    known = f"trained by the objective {objective!r}" if objective else "not known by its card"
    return [
        Flag(
            "purified-by-another-attack",
            "The network was not trained on the attack that purifies",
            f"The classifier under {evidence.purifier} is {known}",
            "Purification by an attack presumes a network trained on that attack. Around other "
            "networks such a step moves clean images across the boundary.",
            {},
        )
    ]


def _overfitting(evidence: Evidence) -> list[Flag]:
    if evidence.purifier != "fgsm-step":
        return _same_attack(evidence)
    state = evidence.card.get("monitor")
    numbers: dict[str, Any] = {}
    if isinstance(state, dict) and "robust_overfitting" in state:
        if state["robust_overfitting"]:
            return []
        told = "its card says that it was trained in another way"
        if "train_fgsm" in state and "train_pgd" in state:
            numbers = {"train_fgsm": state["train_fgsm"], "train_pgd": state["train_pgd"]}
            told = (
                f"its training says: FGSM at the training eps {state['train_fgsm']:.1%}, "
                f"PGD {state['train_pgd']:.1%} on training images"
            )
    else:
        told = "nothing in its card says that it was trained into that state"
        fgsm = evidence.answers.get(("baseline", "oblivious", "fgsm"))
        if fgsm is not None:
            numbers = {"undefended_fgsm": float(fgsm.mean()), "n": len(fgsm)}
            told += f"; undefended accuracy under FGSM here is {fgsm.mean():.1%}"
    return [
        Flag(
            "robust-overfitting-never-reached",
            "The network is not known to be in robust overfitting",
            f"The classifier under TPAP: {told}",
            "TPAP is proposed for networks that are near-perfect on FGSM examples of their "
            "training and near zero under PGD (above 90 % and below 10 % on training images). "
            "Around other networks it is not what the paper proposes.",
            numbers,
        )
    ]


_CHECKS: tuple[Callable[[Evidence], list[Flag]], ...] = (
    _overfitting,
    _one_step,
    _black_box,
    _transfer,
    _huge,
    _more,
    _gradients,
    _broken_attack,
    _leaking,
)
