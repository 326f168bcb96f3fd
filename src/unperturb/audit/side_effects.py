"""What a defense does to images that need none, and how much of an attack is a leaked label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unperturb.audit.answers import Answers, Cell
from unperturb.audit.statistics import Bools, accuracy, compare, rate

__all__ = ["benign_changes", "failed_attacks", "label_leaking", "outside_images"]

LISTED = 50
"""Ids that are listed at most."""


def benign_changes(answers: Answers) -> list[dict[str, Any]]:
    """Noise and compression: accuracy of the target and of the undefended classifier."""
    clean, found = answers.clean("target"), []
    for cell in answers.where(subject="target", attacker="benign"):
        if clean is None or not (done := cell.done & clean.done).any():
            continue
        right, was = cell.share("correct") > 0.5, clean.share("correct") > 0.5
        entry = {
            "name": cell.key.attack,
            "target": accuracy(right[done]),
            "clean": accuracy(was[done]),
            "changed": rate((was & ~right)[done]),
            "baseline": None,
            "difference": None,
        }
        base = answers.cells.get(cell.key._replace(subject="baseline"))
        if base is not None and (both := done & base.done).any():
            entry |= compare(cell.key.attack, right[both], base.share("correct")[both] > 0.5)
            entry["target"] = accuracy(right[done])
        found.append(entry)
    return found


def failed_attacks(answers: Answers, *, own_baseline: bool = True) -> list[dict[str, Any]]:
    """Attacked images that the undefended classifier still answers rightly: what the target says.

    Of them a defense can only lose. Where the baseline is another network than the defense's own,
    the two are shown different images, and there is nothing to compare.
    """
    found: list[dict[str, Any]] = []
    if not own_baseline:
        return found
    for cell in answers.where(subject="baseline", attacker="oblivious"):
        target = answers.cells.get(cell.key._replace(subject="target"))
        if target is None:
            continue
        failed = cell.done & target.done & (cell.share("correct") > 0.5)
        found.append(
            {
                "attack": cell.key.attack,
                "goal": cell.key.goal,
                "n": int(failed.sum()),
                "target_wrong": rate(target.share("correct")[failed] <= 0.5),
            }
        )
    return found


def label_leaking(answers: Answers, control: str | None) -> dict[str, Any] | None:
    """The control for label leaking: one attack away from the true and the predicted label.

    An attack that steps away from the true label tells it to whoever looks at the difference; one
    that steps away from the predicted label knows no more than a real attacker. Images that were
    wrong when clean are where both differ.
    """
    if control is None:
        return None
    subjects = {}
    for subject in answers.subjects:
        clean = answers.clean(subject)
        both = {
            cell.key.goal: cell
            for cell in answers.where(subject=subject, attacker="oblivious", attack=control)
        }
        true, predicted = both.get("wrong"), both.get("predicted-label")
        if clean is None or true is None or predicted is None:
            continue
        done = clean.done & true.done & predicted.done
        if not done.any():
            continue
        wrong = done & (clean.share("correct") <= 0.5)
        one, two = (answers.within(cell) > 0.5 for cell in (true, predicted))
        subjects[subject] = {
            "clean": accuracy(clean.share("correct")[done] > 0.5),
            "true_label": accuracy(one[done]),
            "predicted_label": accuracy(two[done]),
            "wrong_when_clean": {
                "n": int(wrong.sum()),
                "true_label": rate(one[wrong]),
                "predicted_label": rate(two[wrong]),
            },
        }
    return {"attack": control, "subjects": subjects} if subjects else None


def outside_images(
    answers: Answers, settings: Mapping[str, Any], ids: list[str]
) -> list[dict[str, Any]]:
    """Imported adversarial images: how many lie in the ball, and which break what ours do not."""
    found = []
    checks = {facts["name"]: facts for facts in settings.get("outside", ())}
    ours = answers.worst_case("target", settings["attackers"])
    for cell in answers.where(subject="target", attacker="outside"):
        done = cell.done
        if not done.any():
            continue
        inside = done & ~cell.outside
        broken = inside & (cell.share("correct") <= 0.5)
        only: Bools = broken & (ours[0].right if ours is not None else True)
        base = answers.cells.get(cell.key._replace(subject="baseline"))
        found.append(
            {
                "name": cell.key.attack.removeprefix("import:"),
                "checks": dict(checks.get(cell.key.attack, {})),
                "n": int(done.sum()),
                "inside": int(inside.sum()),
                "target": _within(answers, cell),
                "baseline": None if base is None else _within(answers, base),
                "as_returned": accuracy(cell.share("correct")[done] > 0.5),
                "only_outside": [ids[i] for i in np.flatnonzero(only)[:LISTED]],
                "only_outside_count": int(only.sum()),
            }
        )
    return found


def _within(answers: Answers, cell: Cell) -> dict[str, Any] | None:
    share = answers.within(cell)
    return accuracy(share[~np.isnan(share)] > 0.5)
