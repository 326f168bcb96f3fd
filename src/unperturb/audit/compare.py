"""Audits side by side: who is more robust on the same images, and what makes that unfair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from unperturb.audit.answers import Answers
from unperturb.audit.compare_fairness import (
    Compared,
    check_comparable,
    common_attacks,
    differences,
    run_by,
)
from unperturb.audit.objects import read_records
from unperturb.audit.remote import is_url
from unperturb.audit.statistics import Floats, accuracy, mcnemar
from unperturb.errors import RecordError

__all__ = ["COMPARISON_VERSION", "compare_audits", "holm"]

COMPARISON_VERSION = 1

# What is compared: its name in the tables, and the attackers of its worst case.
_WHATS = (
    ("clean", ()),
    ("worst case, oblivious", ("oblivious",)),
    ("worst case, adaptive", ("adaptive",)),
    ("worst case", ("oblivious", "adaptive", "outside")),
)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, for many tests at once.

    Sorted ascending, the k-th of m (from 0) is multiplied by m - k; no one is below the one
    before it, and none above 1 (Holm, Scandinavian Journal of Statistics 6, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, least, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


class _Side:
    """One audit: its answers to the images that all audits have."""

    def __init__(self, compared: Compared, ids: Sequence[str]) -> None:
        result = compared.result
        self.compared = compared
        self.plan, self.summary = result.plan, result.summary
        settings = self.plan["settings"]
        subjects = ("target", "baseline") if settings["has_defense"] else ("target",)
        bounds = {a["name"]: str(a.get("bound", "threat")) for a in settings["attacks"]}
        done = [unit.index for unit in result.units if result.store.has(unit)]
        self.answers = Answers(result.rows, self.plan["ids"], result.units, done, bounds, subjects)
        place = {image: position for position, image in enumerate(self.plan["ids"])}
        self.rows = np.array([place[image] for image in ids], dtype=np.int64)

    def right(
        self, subject: str, attackers: Iterable[str], attacks: Iterable[str] | None = None
    ) -> Floats:
        """1 where the worst of these attacks and the clean image is answered rightly, else 0.

        NaN where something of it is not done, (n,).
        """
        answers = self.answers
        subject = subject if subject in answers.subjects else "target"
        clean = answers.clean(subject)
        nothing = np.full(len(self.rows), np.nan)
        if clean is None:
            return nothing
        cells = answers.attacks(subject, attackers)
        if attacks is not None:
            wanted = set(attacks)
            cells = [cell for cell in cells if cell.key.attack in wanted]
        found = answers.worst([clean, *cells])
        assert found is not None
        return np.where(found.done, found.right.astype(np.float64), np.nan)[self.rows]

    def under(self, attacker: str, attack: str) -> Floats | None:
        """Answers of the target under one attack; None where it was not run."""
        cells = [
            cell
            for cell in self.answers.where(subject="target", attacker=attacker, attack=attack)
            if cell.key.goal != "predicted-label" and self.answers.counts(cell)
        ]
        found = self.answers.worst(cells)
        if found is None:
            return None
        return np.where(found.done, found.right.astype(np.float64), np.nan)[self.rows]


def compare_audits(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Compare finished or unfinished audits on the images that all of them have.

    Every pair of worst cases meets in an exact McNemar test on the images that are done in both,
    with Holm's correction over all pairs of one kind. Where the audits did not run the same
    attacks, that is said, and the comparison is made a second time over the attacks they share.

    Args:
        folders: Folders of at least two audits, or URLs of object stores.

    Returns:
        All figures, JSON-able.

    Raises:
        RecordError: A folder holds no audit, or the audits cannot be compared: other threat
            models, no common images, other images under the same ids, or other classes.
    """
    compared = _read(folders)
    ids = check_comparable(compared)
    sides = [_Side(one, ids) for one in compared]
    shared = common_attacks(compared)
    notes = differences(compared, ids, shared)
    threat = sides[0].summary["threat"]
    blocks = [_block("as audited", "", sides, None, None)]
    if shared is not None:
        # What is shared is shared by everyone who ran it: the same attackers, too.
        attackers = [
            a for a in ("oblivious", "adaptive") if all(a in run_by(one) for one in compared)
        ]
        title = "over the attacks they share"
        told = ", ".join(shared) if shared else "none: only clean images are left"
        blocks.append(_block(title, told, sides, shared, attackers))
    return {
        "comparison_version": COMPARISON_VERSION,
        "threat": dict(threat),
        "images": len(ids),
        "audits": [_audit(side) for side in sides],
        "notes": notes,
        "blocks": blocks,
        "matrix": _matrix(sides),
        "curves": [
            {"name": side.compared.name, "curves": side.summary.get("curves"),
             "has_defense": side.summary["has_defense"]}
            for side in sides
        ],
    }  # fmt: skip


def _read(folders: Sequence[str | Path]) -> list[Compared]:
    if len(folders) < 2:
        raise RecordError(
            f"{len(folders)} audit{'s are' if len(folders) != 1 else ' is'} named",
            expected="at least two folders of audits",
            fix="name the folders one after the other",
        )
    places = [_place(folder) for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RecordError(
                f"{folders[number]} is named twice",
                expected="different audits",
                fix="name each folder once",
            )
    return [
        Compared(name=name, result=read_records(folder))
        for name, folder in zip(_names(places), folders, strict=True)
    ]


def _place(folder: str | Path) -> tuple[str, ...]:
    """Parts of a folder's full path, or of an object store's URL."""
    if is_url(folder):
        return tuple(str(folder).rstrip("/").split("/"))
    return Path(folder).resolve().parts


def _names(places: Sequence[tuple[str, ...]]) -> list[str]:
    """The folders' last parts, longer where they would be alike."""
    names, depth = [place[-1] for place in places], 2
    while len(set(names)) < len(names):
        names = ["/".join(place[-depth:]) for place in places]
        depth += 1
    return names


def _audit(side: _Side) -> dict[str, Any]:
    """One audit's own figures, on all of its own images."""
    summary = side.summary
    settings = side.plan["settings"]
    gain = next((g for g in summary["gains"] if g["what"] == "worst case"), None)
    return {
        "name": side.compared.name,
        "title": summary["title"],
        "n": summary["data"]["n"],
        "complete": summary["complete"],
        "left_out": summary["left_out"],
        "digest": summary.get("digest"),
        "has_defense": summary["has_defense"],
        "clean": summary["target"]["clean"],
        "worst_by_attacker": {
            a: (summary["target"]["worst_by_attacker"] or {}).get(a) for a in summary["attackers"]
        },
        "worst_case": summary["target"]["worst_case"],
        "baseline_worst_case": summary["baseline"]["worst_case"],
        "gain": gain,
        "flags": [flag["title"] for flag in summary["flags"]],
        "cost": summary.get("cost"),
        "suite": summary.get("suite"),
        "attacks": [attack["name"] for attack in settings["attacks"]],
        "attackers": list(summary["attackers"]),
        "seed": summary["seed"],
        "scoring_draws": summary["scoring_draws"],
    }


def _block(
    title: str,
    told: str,
    sides: Sequence[_Side],
    attacks: Sequence[str] | None,
    attackers: Sequence[str] | None,
) -> dict[str, Any]:
    """Accuracies on the common images, and every pair of audits."""
    rows, pairs = [], []
    for what, everyone in _WHATS:
        named = [a for a in everyone if attackers is None or a in attackers]
        if what != "clean" and not named:
            continue
        asked = [what == "clean" or bool(set(named) & run_by(side.compared)) for side in sides]
        answers = [
            side.right("target", named, attacks) if present else None
            for side, present in zip(sides, asked, strict=True)
        ]
        if not any(asked):
            continue
        rows.append({"what": what, "accuracy": [_accuracy(one) for one in answers]})
        pairs += _pairs(what, [side.compared.name for side in sides], answers)
    return {"title": title, "told": told, "attacks": attacks, "rows": rows, "pairs": pairs}


def _accuracy(right: Floats | None) -> dict[str, Any] | None:
    return None if right is None else accuracy(right[~np.isnan(right)] > 0.5)


def _pairs(
    what: str, names: Sequence[str], answers: Sequence[Floats | None]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one, two in combinations(range(len(names)), 2):
        first, second = answers[one], answers[two]
        if first is None or second is None:
            continue
        both = ~np.isnan(first) & ~np.isnan(second)
        if not both.any():
            continue
        a, b = first[both] > 0.5, second[both] > 0.5
        test = mcnemar(a, b)
        found.append(
            {
                "what": what,
                "first": names[one],
                "second": names[two],
                "n": int(both.sum()),
                "first_accuracy": accuracy(a),
                "second_accuracy": accuracy(b),
                "difference": float(a.mean() - b.mean()),
                "only_first": test.only_first,
                "only_second": test.only_second,
                "mcnemar_p": test.p,
            }
        )
    for pair, p in zip(found, holm([pair["mcnemar_p"] for pair in found]), strict=True):
        pair["holm_p"] = p
    return found


def _matrix(sides: Sequence[_Side]) -> list[dict[str, Any]]:
    """Accuracy of each audit's target under each attack that any of them ran."""
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for side in sides:
        for attack in side.plan["settings"]["attacks"]:
            settings.setdefault(attack["name"], []).append(attack)
    found = []
    for attacker in ("oblivious", "adaptive"):
        for name, described in settings.items():
            cells = [
                None if (right := side.under(attacker, name)) is None else _accuracy(right)
                for side in sides
            ]
            if any(cells):
                same = all(one == described[0] for one in described)
                found.append(
                    {"attacker": attacker, "attack": name, "same_settings": same, "cells": cells}
                )
    return found
