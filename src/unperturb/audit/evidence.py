"""From answers to what red flags are found in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unperturb.attacks.surface import UNDEFENDED
from unperturb.audit.answers import Answers, Cell
from unperturb.audit.curves import eps_text
from unperturb.audit.red_flags import Evidence, Gradients
from unperturb.audit.statistics import Bools

__all__ = ["budget", "evidence_of", "often"]

Settings = Mapping[str, Any]


def budget(attack: Mapping[str, Any]) -> int:
    """Gradients an image costs when nothing stops early."""
    default = int(attack.get("steps", 0)) * int(attack.get("restarts", 1))
    return int(attack.get("gradients", default))


def often(cell: Cell, attack: Mapping[str, Any], column: str) -> Bools:
    """Whether a count is more than half of the gradients that were really evaluated, (N,).

    Records of the first schema do not say how many these were; there it is the most there can be.
    """
    evaluated = cell.first("gradients")
    most = np.where(evaluated >= 0, evaluated, budget(attack)) / 2
    found: Bools = cell.first(column) > most
    return found


def evidence_of(answers: Answers, settings: Settings, names: Mapping[str, str]) -> Evidence:
    """Everything that is complete, of the attacks of the threat model.

    Args:
        answers: The answers.
        settings: The plan's settings.
        names: Subjects with names to print.
    """
    describe = settings["target"]["describe"]
    classifier = describe.get("classifier", describe)
    attacks = {attack["name"]: attack for attack in settings["attacks"]}
    probe = settings.get("probe") or {}
    return Evidence(
        answers=_complete(answers, settings["attackers"]),
        steps={name: int(attack.get("steps") or 0) for name, attack in attacks.items()},
        gradients=_gradients(answers, settings, attacks),
        subjects=names,
        purifier=describe.get("purifier", {}).get("name", "identity"),
        card=classifier.get("card") or {},
        access={name: attack.get("access", "gradients") for name, attack in attacks.items()},
        minimal=frozenset(n for n, a in attacks.items() if a.get("bound") == "minimal"),
        worst=_worst(answers, settings["attackers"], attacks),
        probes=_probes(answers, settings["threat"]["eps"], probe),
        huge=eps_text(probe["huge"]) if probe else "",
    )


def _complete(answers: Answers, attackers: list[str]) -> dict[tuple[str, str, str], Bools]:
    """Answers under each attack of which every image is done; those as published by one goal."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in answers.cells.values():
        key = cell.key
        clean = key.attacker == "none"
        counted = key.attacker in attackers and answers.counts(cell) and not key.probe
        if not clean and (not counted or key.goal == "predicted-label"):
            continue
        groups.setdefault((key.subject, key.attacker, key.attack), []).append(cell)
    found = {}
    for name, cells in groups.items():
        outcome = answers.worst(cells)
        if outcome is not None and outcome.done.all():
            found[name] = outcome.right
    return found


def _worst(
    answers: Answers, attackers: list[str], attacks: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str, str], Bools]:
    """Worst cases, the clean image included, over attacks with and without gradients."""
    found = {}
    for subject in answers.subjects:
        clean = answers.clean(subject)
        for attacker in attackers:
            cells = answers.attacks(subject, [attacker])
            blind = [
                c
                for c in cells
                if attacks.get(c.key.attack, {}).get("access", "gradients") != "gradients"
            ]
            seeing = [c for c in cells if c not in blind]
            for access, some in (("any", cells), ("gradients", seeing), ("black-box", blind)):
                outcome = answers.worst([clean, *some]) if clean is not None and some else None
                if outcome is not None and outcome.done.all():
                    found[(subject, attacker, access)] = outcome.right
    return found


def _probes(answers: Answers, eps: float, probe: Mapping[str, Any]) -> dict[tuple[str, str], Bools]:
    """Answers of the probed images, by subject and what was varied."""
    found = {}
    for key, cell in answers.cells.items():
        if not probe or not key.probe or cell.empty or (cell.asked & ~cell.done).any():
            continue
        name = key.attack
        if name == "probe" and key.eps == probe["huge"]:
            name = "huge"
        elif key.eps != eps:
            continue
        # All of them lie in the ball that they were made for.
        found[(key.subject, name)] = cell.share("correct")[cell.asked] > 0.5
    return found


def _gradients(
    answers: Answers, settings: Settings, attacks: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str, str], Gradients]:
    """What the gradients of each attack were, over the images it has done."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in answers.cells.values():
        key = cell.key
        elsewhere = (
            key.attacker == "oblivious"
            and key.subject == "target"
            and settings["has_defense"]
            and settings.get("own_baseline", True)
        )
        wanted = key.attacker in settings["attackers"] and answers.counts(cell)
        if not wanted or key.probe or cell.empty or elsewhere or key.goal == "predicted-label":
            continue
        if attacks[key.attack].get("access", "gradients") != "gradients":
            continue
        groups.setdefault((key.subject, key.attack, key.attacker), []).append(cell)
    found = {}
    for name, cells in groups.items():
        attack = attacks[name[1]]
        done = np.logical_and.reduce([cell.done for cell in cells])
        held = np.logical_and.reduce([answers.within(cell) > 0.5 for cell in cells])
        # The bare classifier's gradient always lives, and says nothing of the defense before it.
        own = [cell for cell in cells if cell.key.backward != UNDEFENDED] or cells
        # One gradient rule whose gradients live is enough to have attacked an image.
        zero, nan = (
            held & np.logical_and.reduce([often(cell, attack, column) for cell in own])
            for column in ("zero_gradients", "nan_gradients")
        )
        if done.any():
            found[name] = Gradients(held[done], zero[done], nan[done])
    return found
