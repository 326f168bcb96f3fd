"""From records to figures: a pure function of an audit's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unperturb.audit.answers import ATTACKERS, Answers, Cell, Outcome
from unperturb.audit.attack_figures import attack_entries, attack_tables, grouped
from unperturb.audit.curves import curves, eps_text
from unperturb.audit.detection import detection, rejection
from unperturb.audit.evidence import evidence_of
from unperturb.audit.lesson import is_random, lesson, notes
from unperturb.audit.plan import Unit
from unperturb.audit.red_flags import find_flags
from unperturb.audit.side_effects import (
    benign_changes,
    failed_attacks,
    label_leaking,
    outside_images,
)
from unperturb.audit.statistics import Floats, compare
from unperturb.audit.store import Rows

__all__ = ["eps_text", "summarize", "worst_answers"]


def _bounds(settings: Mapping[str, Any]) -> dict[str, str]:
    return {a["name"]: str(a.get("bound", "threat")) for a in settings["attacks"]}


def _subjects(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return ("target", "baseline") if settings["has_defense"] else ("target",)


def _named(settings: Mapping[str, Any]) -> list[str]:
    """Attackers of the plan, and those who brought images along."""
    return [*settings["attackers"], *(["outside"] if settings.get("outside") else [])]


def _majority(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome.majority()


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

    An image counts as broken where the answer is wrong and the attacked image lies in the threat
    model's ball; what lies outside counts with its clean answer. Attacks with a bound of their
    own stand apart and enter no worst case. For a random target the worst attack of each image is
    selected on one set of draws and scored on another; plain accuracies are those of the answer
    that most draws give.

    Args:
        plan: What ``Store.plan`` reads.
        rows: All rows.
        units: The planned units.
        timings: Seconds of the finished ones.
        digest: Digest of the rows, None while the audit is not complete.
        cost: Measured cost of an answer, if it was measured.
    """
    settings, ids = plan["settings"], plan["ids"]
    subjects, bounds = _subjects(settings), _bounds(settings)
    answers = Answers(rows, ids, units, timings, bounds, subjects)
    target, describe = settings["target"], settings["target"]["describe"]
    attackers, own_baseline = settings["attackers"], settings.get("own_baseline", True)
    evidence = evidence_of(answers, settings, {s: settings[s]["name"] for s in subjects})
    missing = [unit for unit in units if unit.index not in timings]
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
        "selection_draws": _selection_draws(answers),
        "suite": settings.get("suite"),
        "data": {**settings["data"], "n": len(ids)},
        "environment": plan["environment"],
        "has_defense": settings["has_defense"],
        **{who: _subject(answers, settings, who) for who in ("target", "baseline")},
        "attackers": attackers,
        **attack_tables(answers, settings),
        "worst_of": _worst_of(answers),
        "attacks": attack_entries(answers, settings, units, timings),
        "gains": _gains(answers, settings) if settings["has_defense"] else [],
        "random": _random(answers, settings),
        "rejection": rejection(answers, describe, attackers),
        "detection": detection(answers, describe, own_baseline=own_baseline),
        "control": label_leaking(answers, settings.get("control")),
        "benign": benign_changes(answers),
        "failed_attacks": failed_attacks(answers, own_baseline=own_baseline),
        "curves": curves(answers, settings, bounds),
        "outside": outside_images(answers, settings, ids),
        "flags": [flag.to_dict() for flag in find_flags(evidence)],
        "cost": cost,
    }
    summary["notes"] = notes(settings, evidence, summary)
    summary["lesson"] = lesson(summary)
    return summary


def worst_answers(
    plan: Mapping[str, Any],
    rows: Rows,
    units: Sequence[Unit],
    *,
    subject: str = "target",
    attackers: Iterable[str] | None = None,
    attacks: Iterable[str] | None = None,
) -> Floats:
    """The per-image worst case: 1 right, 0 wrong, NaN not done; (N,) in the plan's order.

    Args:
        plan: What ``Store.plan`` reads.
        rows: All rows.
        units: The planned units.
        subject: ``target`` or ``baseline``; without a defense the baseline is the target.
        attackers: Whose attacks are counted; all by default, those who brought images included.
        attacks: Which attacks are counted; all by default, the probes included; none at all gives
            the clean answers.
    """
    settings = plan["settings"]
    subjects = _subjects(settings)
    done = [unit.index for unit in units if unit.kind == "outside"]
    answers = Answers(rows, plan["ids"], units, done, _bounds(settings), subjects)
    subject = subject if subject in subjects else "target"
    clean = answers.clean(subject)
    cells = answers.attacks(subject, ATTACKERS if attackers is None else attackers)
    if attacks is not None:
        wanted = set(attacks)
        cells = [cell for cell in cells if cell.key.attack in wanted]
    found = None if clean is None else answers.worst([clean, *cells])
    if found is None:
        return np.full(len(plan["ids"]), np.nan)
    return np.where(found.done, found.right.astype(np.float64), np.nan)


def _left_out(missing: list[Unit], total: int) -> list[str]:
    if not missing:
        return []
    blocks = sorted({(unit.start, unit.stop) for unit in missing})
    words = [f"{len(missing)} of {total} units are not done"]
    words.append("images " + ", ".join(f"{a}-{b - 1}" for a, b in blocks[:6]))
    return words


def _selection_draws(answers: Answers) -> int | None:
    """Draws on which worst attacks were selected; None where they were not apart."""
    select = answers.rows["purpose"] == "select"
    return int(answers.rows["draw"][select].max()) + 1 if select.any() else None


def _subject(answers: Answers, settings: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Headline figures; a classifier by itself is its own baseline."""
    source = who if who in answers.subjects else "target"
    clean = answers.clean(source)

    def worst(named: Iterable[str], column: str = "correct") -> dict[str, Any] | None:
        found = answers.worst_case(source, named, column)
        return None if found is None else found[0].majority()

    return {
        "name": settings[who]["name"],
        "describe": settings[who]["describe"],
        "clean": None if clean is None else _majority(answers.worst([clean])),
        "worst_case": worst(ATTACKERS),
        "worst_case_8bit": worst(ATTACKERS, "correct_8bit"),
        "worst_by_attacker": {name: worst([name]) for name in _named(settings)},
    }


def _worst_of(answers: Answers) -> list[dict[str, Any]]:
    """Which attack was the worst one of how many images that it broke."""
    found = answers.worst_case("target")
    if found is None:
        return []
    outcome, cells = found
    broken = outcome.done & ~outcome.right
    counts = np.bincount(outcome.which[broken], minlength=len(cells))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: (-counts[i], i))
    return [_about(cells[i], int(counts[i])) for i in order]


def _about(cell: Cell, images: int) -> dict[str, Any]:
    key = cell.key
    return {
        "attack": key.attack,
        "attacker": key.attacker,
        "backward": key.backward,
        "goal": key.goal,
        "images": images,
    }


def _outcomes(answers: Answers, subject: str, attackers: list[str]) -> dict[str, Outcome]:
    """The clean answers and the worst cases, by what they are."""
    clean = answers.clean(subject)
    found = {"clean": None if clean is None else answers.worst([clean])}
    for attacker in attackers:
        worst = answers.worst_case(subject, [attacker])
        found[f"worst case, {attacker}"] = None if worst is None else worst[0]
    worst = answers.worst_case(subject)
    found["worst case"] = None if worst is None else worst[0]
    return {what: outcome for what, outcome in found.items() if outcome is not None}


def _gains(answers: Answers, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The target against the baseline on the same images."""
    one, two = (
        _outcomes(answers, subject, settings["attackers"]) for subject in ("target", "baseline")
    )
    found = []
    for what, target in one.items():
        baseline = two.get(what)
        if baseline is None:
            continue
        both = target.done & baseline.done
        if both.any():
            found.append(compare(what, target.right[both], baseline.right[both]))
    return found


def _random(answers: Answers, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Single draw, worst of N and majority of a random target; None where it is not random."""
    if settings["scoring_draws"] < 2 or not is_random(settings, "target"):
        return None
    outcomes = _outcomes(answers, "target", _named(settings))
    for attack in settings["attacks"]:
        for attacker in settings["attackers"]:
            name = attack["name"]
            # What is bounded otherwise is counted as it came back.
            choose = answers.returned if answers.bounds.get(name) == "own" else answers.worst
            outcome = choose(grouped(answers, "target", attacker, name))
            if outcome is not None:
                outcomes[f"{name}, {attacker}"] = outcome
    return {
        "draws": settings["scoring_draws"],
        "selection_draws": _selection_draws(answers),
        "rows": [
            {
                "what": what,
                "single": outcome.single(),
                "worst_of_n": outcome.worst_of_n(),
                "majority": outcome.majority(),
            }
            for what, outcome in outcomes.items()
            if outcome.done.any()
        ],
    }
