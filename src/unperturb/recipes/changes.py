"""Logit changes of a recipe's defenses: measured once, kept beside the audits, drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unperturb.audit.statistics import paired_comparison
from unperturb.data import ImageSet
from unperturb.defense import Defense
from unperturb.errors import ConfigError, MissingExtraError, UnperturbError
from unperturb.files import short_paths, write_json
from unperturb.recipes.changes_figures import draw_compared, draw_curve, draw_quality
from unperturb.recipes.schema_parts import OVER_ALL, Change, Changes
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop, slug

__all__ = ["run_changes"]

FIGURES = 2
"""Counts up where what is kept of a subject holds more figures than before."""


def run_changes(
    shop: Workshop,
    folder: Path,
    *,
    each: Callable[[Mapping[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Measure every subject of a recipe, and draw what is asked for.

    Returns:
        ``changes``: figures of each subject, or the reason why there are none; ``files``: the
        pictures; ``models``, ``networks``, ``thresholds``: facts of each.
    """
    wanted = shop.recipe.changes
    assert wanted is not None
    subjects: list[dict[str, Any]] = []
    files: list[str] = []

    def record() -> dict[str, Any]:
        told = {
            "subjects": subjects,
            "axis": wanted.axis,
            "train": wanted.train,
            "further": wanted.further,
        }
        return {
            "changes": told,
            "files": list(files),
            "models": shop.models.facts(),
            **shop.made(),
        }

    for subject in wanted.subjects.values():
        entry: dict[str, Any] = {
            "name": subject.name,
            "model": subject.model,
            "defense": subject.defense,
            "place": subject.place,
            "paper": dict(subject.paper),
            "note": subject.note,
            "against": subject.against,
            "series": subject.series,
            "status": "done",
            "reason": "",
        }
        try:
            found, drawn = _measured(shop, subject, wanted, folder)
            entry["found"] = found
            files += drawn
        except NotRunError as reason:
            entry |= {"status": "not run", "reason": str(reason)}
        subjects.append(entry)
        each(record())
    measured = {entry["name"]: entry for entry in subjects if entry["status"] == "done"}
    for entry in measured.values():
        if entry["against"] in measured:
            entry["paired"] = compared(entry["found"], measured[entry["against"]]["found"])
    if "curve" in wanted.draw:
        files += draw_curve(shop, record(), folder)
    if "quality" in wanted.draw:
        files += draw_quality(shop, record(), folder)
    if "compared" in wanted.draw:
        files += draw_compared(shop, record(), folder)
    return record()


def compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of two subjects to attacked images, on the first images that both have."""
    bits = [found["right"]["attacked"] for found in (one, other)]
    n = min(map(len, bits))
    first, second = (np.array([bit == "1" for bit in part[:n]]) for part in bits)
    return {**paired_comparison(first, second, ("one", "other")), "n": n}


def _kinds(wanted: Changes) -> list[str]:
    """Pictures of each subject."""
    names = [kind for kind in wanted.draw if kind not in OVER_ALL]
    return [*names, *(["approach"] if wanted.steps else [])]


def _measured(
    shop: Workshop, subject: Change, wanted: Changes, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Figures of one subject and its pictures, read where they are there already."""
    defense = shop.subject(subject.model, subject.defense)
    assert isinstance(defense, Defense)
    name = shop.recipe.models[subject.model].dataset
    images = shop.images.get(name, subject.n)
    facts = {
        "subject": defense.fingerprint(),
        "images": images.fingerprint(),
        "threat": subject.threat.to_dict(),
        "attack": subject.attack,
        "gradient": subject.gradient,
        "away_from": subject.away_from,
        "train": wanted.train,
        "steps": list(wanted.steps),
        "seed": shop.seed,
        **({"further": wanted.further} if wanted.further else {}),
        **({"effort": True} if wanted.effort else {}),
        "figures": FIGURES,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    kept = shop.audits / f"change-{slug(f'{subject.model} {subject.defense}')}-{digest[:8]}.json"
    files = [f"{kind}-{slug(subject.name)}.png" for kind in _kinds(wanted)]
    if kept.is_file() and all((folder / file).is_file() for file in files):
        return json.loads(kept.read_text(encoding="utf-8")), files
    shop.left()
    shop.say(f"measuring {subject.name}: {subject.attack} on {len(images)} images")
    found, drawn = _run(shop, subject, wanted, defense, images, folder)
    write_json(kept, found)
    return found, drawn


def _run(
    shop: Workshop,
    subject: Change,
    wanted: Changes,
    defense: Defense,
    images: ImageSet,
    folder: Path,
) -> tuple[dict[str, Any], list[str]]:
    from unperturb.explain import approach, logit_change

    train = further = None
    name = shop.recipe.models[subject.model].dataset
    if wanted.train:
        train = shop.sources.train(name).images(slice(0, wanted.train))
    if wanted.further:
        further = shop.images.get(name, wanted.further).images()
    try:
        made = logit_change(
            defense, images.images(), images.labels, attack=subject.attack, threat=subject.threat,
            gradient=subject.gradient, away_from=subject.away_from, train=train, further=further,
            effort=wanted.effort, ids=images.ids, seed=shop.seed, show=shop.show,
        )  # fmt: skip
        found = {**made.to_dict(), "data": short_paths(images.source)}
        if wanted.steps:
            found["approach"] = approach(
                defense, made.clean.images, made.attacked.images, steps=wanted.steps,
                labels=images.labels, show=shop.show,
            )  # fmt: skip
    except UnperturbError as error:
        raise ConfigError(
            f"{shop.recipe.name}: changes: {subject.name}: {error.problem}",
            expected=error.expected,
            fix=error.fix,
        ) from error
    try:
        return found, _draw(subject, wanted, made, found, images, folder)
    except MissingExtraError as error:
        shop.say(f"no picture: {error}")
        return found, []


def _draw(
    subject: Change,
    wanted: Changes,
    made: Any,
    found: Mapping[str, Any],
    images: ImageSet,
    folder: Path,
) -> list[str]:
    from unperturb.explain import (
        figure_approach,
        figure_bars,
        figure_changes,
        figure_roc,
        figure_statistic,
        save_figure,
    )

    draw: dict[str, Callable[[], Any]] = {
        "bars": lambda: figure_bars(made, classes=images.classes),
        "statistic": lambda: figure_statistic(made),
        "changes": lambda: figure_changes(made, classes=images.classes),
        "roc": lambda: figure_roc(made),
        "approach": lambda: figure_approach(found["approach"]),
    }
    files = []
    for kind in _kinds(wanted):
        file = f"{kind}-{slug(subject.name)}.png"
        save_figure(draw[kind](), folder / file)
        files.append(file)
    return files
