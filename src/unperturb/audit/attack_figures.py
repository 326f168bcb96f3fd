"""Figures of each attack by itself: what it left right, how far it went, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unperturb.audit.answers import Answers, Cell, Outcome
from unperturb.audit.evidence import often
from unperturb.audit.plan import Unit
from unperturb.audit.statistics import Bools, Floats, accuracy

__all__ = ["attack_entries", "attack_tables", "grouped"]

Settings = Mapping[str, Any]


def grouped(answers: Answers, subject: str, attacker: str, attack: str) -> list[Cell]:
    """All that an attacker tried with an attack; without the control, which nobody publishes."""
    cells = answers.where(subject=subject, attacker=attacker, attack=attack)
    return [cell for cell in cells if cell.key.goal != "predicted-label"]


def _majority(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome.majority()


def attack_tables(answers: Answers, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Attacks by attacker and subject, apart by what bounds them.

    Returns:
        ``table``: accuracy within the threat model; ``minimal``: that of minimal attacks, beside
        accuracy as returned and the median distance over successes; ``own``: accuracy as
        returned, and their measure, of attacks with a bound of their own.
    """
    found: dict[str, list[dict[str, Any]]] = {"table": [], "minimal": [], "own": []}
    for attack in settings["attacks"]:
        name, bound = attack["name"], attack.get("bound", "threat")
        cells = {
            subject: {
                attacker: grouped(answers, subject, attacker, name)
                for attacker in settings["attackers"]
            }
            for subject in answers.subjects
        }

        def each(make: Any, cells: dict[str, dict[str, list[Cell]]] = cells) -> Any:
            return {s: {a: make(some) for a, some in by.items()} for s, by in cells.items()}

        entry = {"attack": name, "bound": bound, "access": attack.get("access", "gradients")}
        if bound == "own":
            found["own"].append({**entry, "cells": each(lambda some: _own(answers, some))})
            continue
        within = each(lambda some: _majority(answers.worst(some)))
        found["table"].append({**entry, "cells": within})
        if bound == "minimal":
            norm = settings["threat"]["norm"]
            found["minimal"].append(
                {**entry, "cells": each(lambda some, n=norm: _minimal(answers, some, n))}
            )
    return found


def _own(answers: Answers, cells: Sequence[Cell]) -> dict[str, Any] | None:
    outcome = answers.returned(cells)
    acc = _majority(outcome)
    if outcome is None or acc is None:
        return None
    done = outcome.done
    return {
        "accuracy": acc,
        "measure": _spread(_picked(cells, outcome, "measure")[done]),
        "median_linf": _median(_picked(cells, outcome, "linf")[done & ~outcome.right]),
        "median_l2": _median(_picked(cells, outcome, "l2")[done & ~outcome.right]),
    }


def _minimal(answers: Answers, cells: Sequence[Cell], norm: str) -> dict[str, Any] | None:
    outcome = answers.returned(cells)
    acc = _majority(outcome)
    if outcome is None or acc is None:
        return None
    clean = answers.clean(cells[0].key.subject)
    was = outcome.done if clean is None else clean.share("correct") > 0.5
    # The nearest of those that broke the image, whichever gradient found it.
    nearest = np.full(answers.size, np.inf)
    for cell in cells:
        broke = cell.share("correct") <= 0.5
        nearest = np.minimum(nearest, np.where(broke, cell.first(norm), np.inf))
    fell = was & outcome.done & np.isfinite(nearest)
    return {
        "within": _majority(answers.worst(cells)),
        "as_returned": acc,
        "median_distance": _median(nearest[fell]),
        "successes": int(fell.sum()),
    }


def _picked(cells: Sequence[Cell], outcome: Outcome, column: str) -> Floats:
    """A column of the worst attack of each image."""
    values = np.stack([cell.first(column) for cell in cells])
    picked: Floats = np.take_along_axis(values, np.maximum(outcome.which, 0)[None], 0)[0]
    return picked


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def _spread(values: Floats) -> dict[str, Any] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return {"median": float(np.median(values)), "max": float(values.max()), "n": len(values)}


def attack_entries(
    answers: Answers,
    settings: Settings,
    units: Sequence[Unit],
    timings: Mapping[int, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """One entry for each subject, attack, attacker, gradient and goal, in the plan's order."""
    by_name = {attack["name"]: attack for attack in settings["attacks"]}
    seconds: dict[tuple[str, ...], float] = {}
    for unit in units:
        if unit.kind == "attack" and unit.index in timings:
            spent = (unit.subject, unit.attack, unit.attacker, unit.backward, unit.goal)
            seconds[spent] = seconds.get(spent, 0.0) + timings[unit.index]["unit"]
    order = {name: number for number, name in enumerate(by_name)}
    seen = {attacker: number for number, attacker in enumerate(settings["attackers"])}
    cells = [
        c
        for c in answers.cells.values()
        if c.key.attack in by_name and c.key.attacker in seen and c.done.any()
    ]
    cells.sort(
        key=lambda c: (
            c.key.subject != "target", order[c.key.attack], seen[c.key.attacker],
            c.key.backward, c.key.goal != "wrong", c.key.goal,
        )
    )  # fmt: skip
    shared = settings["has_defense"] and settings.get("own_baseline", True)
    found = []
    for cell in cells:
        key = cell.key
        aimed = key.subject
        if key.attacker == "oblivious":
            aimed = "baseline" if shared or not settings["has_defense"] else key.subject
        spent = (aimed, key.attack, key.attacker, key.backward, key.goal)
        entry = _entry(answers, cell, by_name[key.attack], settings)
        found.append({**entry, "seconds": seconds.get(spent, 0.0)})
    return found


def _entry(
    answers: Answers, cell: Cell, attack: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    key, done = cell.key, cell.done
    norm, own = settings["threat"]["norm"], attack.get("bound", "threat") == "own"
    share = cell.share("correct") if own else answers.within(cell)
    right = share > 0.5
    clean = answers.clean(key.subject)
    was = np.full(answers.size, np.nan) if clean is None else clean.share("correct")
    acc = accuracy(right[done])
    assert acc is not None
    # A minimal attack has broken an image wherever it got, and distance is what it is about.
    broke = done & (cell.share("correct") <= 0.5) & (was > 0.5)
    wrong = done & (was <= 0.5)
    eight = cell.share("correct_8bit") if own else answers.within(cell, "correct_8bit")

    def often_is(column: str) -> float:
        return float(np.mean(often(cell, attack, column)[done]))

    return {
        "subject": key.subject,
        "name": key.attack,
        "attacker": key.attacker,
        "backward": key.backward,
        "goal": key.goal,
        "stop": cell.rule,
        "bound": attack.get("bound", "threat"),
        "access": attack.get("access", "gradients"),
        "in_worst_case": not own,
        "eps": settings["threat"]["eps"],
        "norm": norm,
        "n": acc["n"],
        "robust_accuracy": acc["accuracy"],
        "interval": acc["interval"],
        "accuracy_as_returned": _share(cell.share("correct") > 0.5, done),
        "outside_ball": int((cell.outside & done).sum()),
        "median_distance": _median(cell.first(norm)[broke]),
        "measure": _spread(cell.first("measure")[done]),
        "accuracy_8bit": _share(eight > 0.5, done),
        "flagged_share": float(np.mean(cell.share("flagged")[done])),
        "queries_per_image": float(np.mean(cell.first("queries")[done])),
        "zero_gradient_share": often_is("zero_gradients"),
        "nan_gradient_share": often_is("nan_gradients"),
        "wrong_when_clean_accuracy": _share(right, wrong),
        "single": float(np.mean(share[done])) if cell.random else None,
        "worst_of_n": _share(share == 1, done) if cell.random else None,
        "settings": attack,
    }


def _share(hit: Bools, among: Bools) -> float | None:
    return float(np.mean(hit[among])) if among.any() else None
