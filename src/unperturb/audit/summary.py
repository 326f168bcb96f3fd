"""From records to figures: a pure function of an audit's folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from unperturb.audit.lesson import lesson, notes
from unperturb.audit.plan import Unit
from unperturb.audit.red_flags import Evidence, find_flags
from unperturb.audit.statistics import Bools, accuracy, mcnemar
from unperturb.audit.store import Rows

__all__ = ["eps_text", "summarize"]

Key = tuple[str, str, str, str]
_NOTHING = np.array([], dtype=np.int64)


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


class _Table:
    """Rows as arrays over images: one vector for each (subject, attack, attacker, backward)."""

    def __init__(self, rows: Rows, ids: list[str], planned: Iterable[Key] = ()) -> None:
        place = {image: position for position, image in enumerate(ids)}
        self.size = len(ids)
        self.rows = rows
        self.position = np.array([place[i] for i in rows["image_id"]], dtype=np.int64)
        keys = list(
            zip(rows["subject"], rows["attack"], rows["attacker"], rows["backward"], strict=True)
        )
        self.groups: dict[Key, np.ndarray[Any, Any]] = {}
        order: dict[Key, list[int]] = {}
        for number, key in enumerate(keys):
            order.setdefault(key, []).append(number)
        for key, numbers in order.items():
            self.groups[key] = np.array(numbers)
        self.planned = sorted({*self.groups, *planned})

    def per_image(self, key: Key, column: str, draw: int = 0) -> np.ndarray[Any, Any]:
        """One value for each image; NaN where the image has not been done."""
        numbers = self.groups.get(key, _NOTHING)
        numbers = numbers[self.rows["draw"][numbers] == draw]
        values = np.full(self.size, np.nan)
        values[self.position[numbers]] = self.rows[column][numbers]
        return values

    def share(self, key: Key, column: str) -> np.ndarray[Any, Any]:
        """Mean over draws for each image; NaN where the image has not been done."""
        numbers = self.groups.get(key, _NOTHING)
        total, count = np.zeros(self.size), np.zeros(self.size)
        np.add.at(total, self.position[numbers], self.rows[column][numbers].astype(float))
        np.add.at(count, self.position[numbers], 1.0)
        with np.errstate(invalid="ignore"):
            return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def right(self, key: Key, column: str = "correct") -> np.ndarray[Any, Any]:
        """1 where most draws are right, else 0; NaN where the image has not been done."""
        share = self.share(key, column)
        return np.where(np.isnan(share), np.nan, (share > 0.5).astype(float))


def _planned(units: Sequence[Unit], has_defense: bool) -> set[Key]:
    """Every (subject, attack, attacker, backward) that the plan says something about."""
    both = ("target", "baseline") if has_defense else ("target",)
    return {
        (subject, unit.attack, unit.attacker, unit.backward)
        for unit in units
        for subject in ((unit.subject,) if unit.attacker == "adaptive" else both)
    }


def _answers(table: _Table) -> dict[tuple[str, str, str], np.ndarray[Any, Any]]:
    """``(subject, attacker, attack)`` to 1 (right), 0 (wrong) or NaN (not done) for each image.

    For the adaptive attacker it is the worst over backward rules. What is planned and not begun
    is NaN for every image, so that nothing passes for a worst case before all of it is done.
    """
    found: dict[tuple[str, str, str], np.ndarray[Any, Any]] = {}
    for subject, attack, attacker, backward in table.planned:
        values = table.right((subject, attack, attacker, backward))
        key = (subject, attacker, attack)
        found[key] = values if key not in found else np.minimum(found[key], values)
    return found


def _acc(values: np.ndarray[Any, Any] | None) -> dict[str, object] | None:
    if values is None:
        return None
    return accuracy(_done(values))


def _done(values: np.ndarray[Any, Any]) -> Bools:
    right: Bools = values[~np.isnan(values)] > 0.5
    return right


def _worst(
    answers: dict[tuple[str, str, str], np.ndarray[Any, Any]], subject: str, attackers: list[str]
) -> np.ndarray[Any, Any] | None:
    """Per-image worst case over these attackers, the unperturbed image included."""
    clean = answers.get((subject, "none", "clean"))
    rows = [v for (s, a, _), v in sorted(answers.items()) if s == subject and a in attackers]
    if clean is None or not rows:
        return None
    # np.minimum keeps NaN: an image counts once everything planned for it is done.
    worst: np.ndarray[Any, Any] = np.minimum.reduce([clean, *rows])
    return worst


def summarize(
    plan: dict[str, Any],
    rows: Rows,
    units: list[Unit],
    timings: dict[int, dict[str, float]],
    *,
    digest: str | None,
    cost: dict[str, Any] | None,
) -> dict[str, Any]:
    """All figures of an audit, JSON-able.

    Args:
        plan: What ``Store.plan`` reads.
        rows: All rows.
        units: The planned units.
        timings: Seconds of the finished ones.
        digest: Digest of the rows, None while the audit is not complete.
        cost: Measured cost of an answer, if it was measured.
    """
    settings = plan["settings"]
    ids = plan["ids"]
    has_defense = settings["has_defense"]
    table = _Table(rows, ids, _planned(units, has_defense))
    answers = _answers(table)
    attackers = settings["attackers"]
    target = settings["target"]
    names = {"target": target["name"]}
    if has_defense:
        names["baseline"] = settings["baseline"]["name"]
    missing = [unit for unit in units if unit.index not in timings]

    subjects: dict[str, Any] = {}
    for subject in ("target", "baseline"):
        source = subject if has_defense else "target"
        subjects[subject] = {
            "name": settings[subject]["name"],
            "describe": settings[subject]["describe"],
            "clean": _acc(answers.get((source, "none", "clean"))),
            "worst_case": _acc(_worst(answers, source, attackers)),
            "worst_by_attacker": {a: _acc(_worst(answers, source, [a])) for a in attackers},
        }

    def cells(attack: str) -> dict[str, dict[str, Any]]:
        return {
            subject: {
                attacker: _acc(answers.get((subject, attacker, attack))) for attacker in attackers
            }
            for subject in names
        }

    evidence = _evidence(table, answers, settings["attacks"], names, target)
    flags = [flag.to_dict() for flag in find_flags(evidence)]
    summary: dict[str, Any] = {
        "schema_version": settings["schema_version"],
        "complete": not missing,
        "left_out": _left_out(missing, len(units)),
        "title": target["title"],
        "digest": digest,
        "settings_hash": plan["settings_hash"],
        "threat": {**settings["threat"], "eps_text": eps_text(settings["threat"]["eps"])},
        "seed": settings["seed"],
        "batch_size": settings["batch_size"],
        "scoring_draws": settings["scoring_draws"],
        "data": {**settings["data"], "n": len(ids)},
        "environment": plan["environment"],
        "has_defense": has_defense,
        **subjects,
        "attackers": attackers,
        "table": [{"attack": a["name"], "cells": cells(a["name"])} for a in settings["attacks"]],
        "attacks": _attacks(table, settings, units, timings),
        "gains": _gains(answers, attackers) if has_defense else [],
        "flags": flags,
        "notes": notes(settings, evidence),
        "cost": cost,
    }
    summary["lesson"] = lesson(summary)
    return summary


def _left_out(missing: list[Unit], total: int) -> list[str]:
    if not missing:
        return []
    blocks = sorted({(unit.start, unit.stop) for unit in missing})
    words = [f"{len(missing)} of {total} units are not done"]
    words.append("images " + ", ".join(f"{a}-{b - 1}" for a, b in blocks[:6]))
    return words


def _gradient_budget(attack: dict[str, Any]) -> int:
    """Gradients an image costs when nothing stops early."""
    return int(attack.get("steps", 0)) * int(attack.get("restarts", 1))


def _evidence(
    table: _Table,
    answers: dict[tuple[str, str, str], np.ndarray[Any, Any]],
    attacks: list[dict[str, Any]],
    names: dict[str, str],
    target: dict[str, Any],
) -> Evidence:
    complete = {k: v > 0.5 for k, v in answers.items() if not np.isnan(v).any()}
    steps = {a["name"]: int(a.get("steps", 0)) for a in attacks}
    budget = {a["name"]: _gradient_budget(a) for a in attacks}
    gradients: dict[tuple[str, str, str], tuple[float, float]] = {}
    for key in sorted(table.groups):
        subject, attack, attacker, _ = key
        elsewhere = attacker == "oblivious" and subject == "target" and "baseline" in names
        if attack == "clean" or elsewhere:
            continue
        right = table.right(key)
        held = right == 1.0
        total = int(np.count_nonzero(~np.isnan(right)))
        shares = []
        for column in ("zero_gradients", "nan_gradients"):
            often = table.per_image(key, column) > budget[attack] / 2
            shares.append(float(np.count_nonzero(held & often)) / max(total, 1))
        old = gradients.get((subject, attack, attacker), (1.0, 1.0))
        # One backward rule with living gradients is enough to have attacked an image.
        gradients[(subject, attack, attacker)] = (min(old[0], shares[0]), min(old[1], shares[1]))
    describe = target["describe"]
    classifier = describe.get("classifier", describe)
    purifier = describe.get("purifier", {}).get("name", "identity")
    return Evidence(complete, steps, gradients, names, purifier, classifier.get("card") or {})


def _attacks(
    table: _Table,
    settings: dict[str, Any],
    units: list[Unit],
    timings: dict[int, dict[str, float]],
) -> list[dict[str, Any]]:
    """One entry for each (subject, attack, attacker, backward), in the plan's order."""
    norm = settings["threat"]["norm"]
    by_name = {attack["name"]: attack for attack in settings["attacks"]}
    order = {name: number for number, name in enumerate(by_name)}
    seconds: dict[tuple[str, str, str, str], float] = {}
    for unit in units:
        if unit.kind == "attack" and unit.index in timings:
            key = (unit.subject, unit.attack, unit.attacker, unit.backward)
            seconds[key] = seconds.get(key, 0.0) + timings[unit.index]["unit"]
    found = []
    seen = {attacker: number for number, attacker in enumerate(settings["attackers"])}

    def place(key: Key) -> tuple[bool, int, int, str]:
        return key[0] != "target", order.get(key[1], -1), seen.get(key[2], -1), key[3]

    for key in sorted(table.groups, key=place):
        subject, attack, attacker, backward = key
        if attack == "clean":
            continue
        right = table.right(key)
        done = ~np.isnan(right)
        clean = table.right((subject, "clean", "none", "none"))
        fell = done & (right == 0) & (clean == 1)
        distance = table.per_image(key, norm)
        acc = accuracy(right[done] > 0.5)
        assert acc is not None
        wrong = done & (clean == 0)
        numbers = table.groups[key]
        budget = _gradient_budget(by_name[attack])
        aimed = "baseline" if attacker == "oblivious" else subject
        zero = table.per_image(key, "zero_gradients")[done]
        found.append(
            {
                "subject": subject,
                "name": attack,
                "attacker": attacker,
                "backward": backward,
                "stop": str(table.rows["rule"][numbers[0]]),
                "eps": settings["threat"]["eps"],
                "norm": norm,
                "n": acc["n"],
                "robust_accuracy": acc["accuracy"],
                "interval": acc["interval"],
                "median_distance": float(np.median(distance[fell])) if fell.any() else None,
                "seconds": seconds.get((aimed, attack, attacker, backward), 0.0),
                "accuracy_8bit": float(np.mean(table.right(key, "correct_8bit")[done])),
                "queries_per_image": float(np.mean(table.per_image(key, "queries")[done])),
                "zero_gradient_share": float(np.mean(zero > budget / 2)),
                "wrong_when_clean_accuracy": float(np.mean(right[wrong])) if wrong.any() else None,
                "settings": by_name[attack],
            }
        )
    return found


def _gains(
    answers: dict[tuple[str, str, str], np.ndarray[Any, Any]], attackers: list[str]
) -> list[dict[str, Any]]:
    whats = {f"worst case, {attacker}": [attacker] for attacker in attackers}
    found = []
    for what, named in {"clean": [], **whats, "worst case": attackers}.items():
        one, two = (
            _worst(answers, subject, named) if named else answers.get((subject, "none", "clean"))
            for subject in ("target", "baseline")
        )
        if one is None or two is None:
            continue
        both = ~np.isnan(one) & ~np.isnan(two)
        if not both.any():
            continue
        first, second = one[both] > 0.5, two[both] > 0.5
        test = mcnemar(first, second)
        found.append(
            {
                "what": what,
                "target": accuracy(first),
                "baseline": accuracy(second),
                "difference": float(first.mean() - second.mean()),
                "only_target": test.only_first,
                "only_baseline": test.only_second,
                "mcnemar_p": test.p,
            }
        )
    return found
