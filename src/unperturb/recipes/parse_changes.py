"""Logit changes of a recipe, from YAML, everything checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unperturb.attacks import make_attack
from unperturb.errors import ConfigError, unknown_name
from unperturb.recipes.parse_fits import threat
from unperturb.recipes.reading import Section, number, overlay
from unperturb.recipes.schema import Model
from unperturb.recipes.schema_parts import DRAWN_CHANGES, PLACED, Change, Changes
from unperturb.threat import Threat

__all__ = ["parse_changes"]

_FIGURES = ("answer clean", "answer attacked", "drops most", "flagged attacked", "flagged clean")


def parse_changes(
    part: Section,
    models: Mapping[str, Model],
    defenses: Mapping[str, Any],
    usual: Threat,
    n: int,
) -> Changes:
    """The section ``changes``: each subject with ``each`` below it."""
    below = part.any("each", {})
    Section(below, f"{part.where}: each")
    raw = part.any("subjects")
    Section(raw, f"{part.where}: subjects")
    subjects = {}
    for name, value in raw.items():
        where = f"{part.where}: subjects: {name}"
        Section(value, where)
        subjects[name] = _subject(
            name, Section(overlay(below, value), where), models, defenses, usual, n
        )
    if not subjects:
        raise ConfigError(f"{part.where} has no subjects", expected="subjects: at least one")
    _check_against(part.where, subjects)
    draw = part.texts("draw", ())
    for name in draw:
        if name not in DRAWN_CHANGES:
            raise unknown_name(f"picture ({part.where})", name, DRAWN_CHANGES)
    steps = part.any("steps", [])
    whole = isinstance(steps, list) and all(type(step) is int and step >= 0 for step in steps)
    if not whole or steps != sorted(set(steps)):
        raise ConfigError(
            f"{part.where}: steps is {steps!r}"[:300], expected="increasing whole numbers from 0 on"
        )
    if "quality" in draw and not steps:
        raise ConfigError(
            f"{part.where} draws quality without steps", expected="steps: [0, 10, 50], for example"
        )
    placed = all(subject.place is not None for subject in subjects.values())
    if set(PLACED) & set(draw) and not placed:
        raise ConfigError(
            f"{part.where} draws a curve, and a subject has no place on its axis",
            expected="place: a number, in every subject",
        )
    found = Changes(
        subjects=subjects,
        train=part.whole("train", 0, least=0),
        draw=draw,
        axis=part.text("axis", ""),
        steps=tuple(steps),
        further=part.whole("further", 0, least=0),
        effort=part.flag("effort", False),
    )
    part.end()
    return found


def _check_against(where: str, subjects: Mapping[str, Change]) -> None:
    """Refuse comparisons with nothing, and with other images."""
    for one in subjects.values():
        if one.against is None:
            continue
        if one.against not in subjects:
            raise unknown_name(f"subject ({where}: {one.name}: against)", one.against, subjects)


def _subject(
    name: str,
    part: Section,
    models: Mapping[str, Model],
    defenses: Mapping[str, Any],
    usual: Threat,
    n: int,
) -> Change:
    from unperturb.explain.logit_attack import NOISE
    from unperturb.explain.logit_change import AWAY_FROM

    paper = part.any("paper", {})
    Section(paper, f"{part.where}: paper")
    for key, value in paper.items():
        if key not in _FIGURES:
            raise unknown_name(f"figure ({part.where}: paper)", key, _FIGURES)
        if not isinstance(value, str):
            number(value, f"{part.where}: paper: {key}")
    found = Change(
        name=name,
        model=part.choice("model", models),
        defense=part.choice("defense", defenses),
        attack=part.text("attack", "pgd-20"),
        gradient=part.text("gradient", "undefended"),
        away_from=part.choice("away_from", AWAY_FROM, "true"),
        n=part.whole("n", n),
        threat=threat(part.section("threat")) if "threat" in part else usual,
        place=part.number("place", None),
        paper=dict(paper),
        note=part.text("note", ""),
        against=part.text("against", None),
        series=part.text("series", ""),
    )
    part.end()
    if found.attack != NOISE:
        make_attack(found.attack)
    return found
