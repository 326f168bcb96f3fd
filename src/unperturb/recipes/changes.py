"""Logit changes of a recipe's defenses: measured once, kept beside the audits, drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unperturb.data import ImageSet
from unperturb.defense import Defense
from unperturb.errors import ConfigError, MissingExtraError, UnperturbError
from unperturb.files import short_paths, write_json
from unperturb.recipes.render_changes import curve_values
from unperturb.recipes.schema_parts import Change, Changes
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop, slug

__all__ = ["run_changes"]


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
        told = {"subjects": subjects, "axis": wanted.axis, "train": wanted.train}
        return {
            "changes": told,
            "files": list(files),
            "models": shop.models.facts(),
            **shop.made(),
        }

    for subject in wanted.subjects.values():
        entry = {
            "name": subject.name,
            "model": subject.model,
            "defense": subject.defense,
            "place": subject.place,
            "paper": dict(subject.paper),
            "note": subject.note,
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
    if "curve" in wanted.draw:
        files += _curve(shop, record(), folder)
    return record()


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
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    kept = shop.audits / f"change-{slug(f'{subject.model} {subject.defense}')}-{digest[:8]}.json"
    names = [kind for kind in wanted.draw if kind != "curve"]
    names += ["approach"] if wanted.steps else []
    files = [f"{kind}-{slug(subject.name)}.png" for kind in names]
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

    train = None
    if wanted.train:
        name = shop.recipe.models[subject.model].dataset
        train = shop.sources.train(name).images(slice(0, wanted.train))
    try:
        made = logit_change(
            defense, images.images(), images.labels, attack=subject.attack, threat=subject.threat,
            gradient=subject.gradient, away_from=subject.away_from, train=train, ids=images.ids,
            seed=shop.seed, show=shop.show,
        )  # fmt: skip
        found = {**made.to_dict(), "data": short_paths(images.source)}
        if wanted.steps:
            found["approach"] = approach(
                defense, made.clean.images, made.attacked.images, steps=wanted.steps,
                show=shop.show,
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
        figure_statistic,
        save_figure,
    )

    draw: dict[str, Callable[[], Any]] = {
        "bars": lambda: figure_bars(made, classes=images.classes),
        "statistic": lambda: figure_statistic(made),
        "changes": lambda: figure_changes(made, classes=images.classes),
        "approach": lambda: figure_approach(found["approach"]),
    }
    names = [kind for kind in wanted.draw if kind != "curve"]
    names += ["approach"] if wanted.steps else []
    files = []
    for kind in names:
        file = f"{kind}-{slug(subject.name)}.png"
        save_figure(draw[kind](), folder / file)
        files.append(file)
    return files


def _curve(shop: Workshop, record: Mapping[str, Any], folder: Path) -> list[str]:
    """Accuracies and detection rate against the place of the subjects (Figures 3 and 4)."""
    from unperturb.explain import save_figure
    from unperturb.explain.canvas import INK, MUTED, new_figure

    lines = curve_values(record["changes"])
    if not lines:
        return []
    try:
        figure = new_figure(6.0, 3.6)
    except MissingExtraError as error:
        shop.say(f"no picture: {error}")
        return []
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.8))
    places = [place for values in lines.values() for place, _ in values]
    for label, values in lines.items():
        axes.plot(*zip(*values, strict=True), label=label, marker="o", markersize=3, linewidth=1.4)
    if min(places) >= 0 and max(places) > 20 * max(min(p for p in places if p > 0), 1e-9):
        axes.set_xscale("symlog", linthresh=min(place for place in places if place > 0))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(record["changes"]["axis"], fontsize=8, color=MUTED)
    axes.set_ylabel("share of images", fontsize=8, color=MUTED)
    axes.tick_params(labelsize=7, labelcolor=MUTED)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, folder / "curve.png")
    return ["curve.png"]
