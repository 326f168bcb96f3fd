"""Rows of a table: each is audited under every column's attack."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unperturb.attacks import Surface, make_attack
from unperturb.attacks.surface import UNDEFENDED
from unperturb.audit import AuditResult, audit, read_result
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, UnperturbError
from unperturb.presets import make_preset
from unperturb.recipes.banks import Banks
from unperturb.recipes.cells import (
    Cells,
    attacked_cell,
    audit_facts,
    clean_cell,
    not_run,
    skipped,
)
from unperturb.recipes.fits import Fits
from unperturb.recipes.models import Models
from unperturb.recipes.needs import named_in
from unperturb.recipes.schema import DRAWS, Column, Recipe, Row
from unperturb.recipes.selection import TestImages
from unperturb.recipes.sources import TIME_BUDGET, NotRunError, Sources
from unperturb.recipes.thresholds import Thresholds
from unperturb.threat import Threat

__all__ = ["Group", "Workshop", "groups", "run_rows", "slug"]


@dataclass(frozen=True)
class Group:
    """Columns of a row that one audit answers: the same threat model and images.

    Attributes:
        threat: The threat model.
        n: Test images.
        selected: Whether they are the selected ones.
        columns: Those with an attack.
        attackers: Who runs them.
        gradients: Those that an adaptive attacker takes through a defense; none given: all.
    """

    threat: Threat
    n: int
    columns: tuple[Column, ...]
    attackers: tuple[str, ...]
    selected: bool = False
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What running a recipe needs beside the recipe.

    Attributes:
        recipe: The recipe.
        sources: Its images.
        images: Its test images.
        models: Its classifiers.
        banks: Its logit banks.
        fits: Its correctors.
        thresholds: Its thresholds.
        audits: Folder of the audits' records.
        seed: Seed of the attacks.
        device: Where to compute.
        workers: Processes of an audit.
        ends: ``time.monotonic()`` after which nothing new begins; None for no limit.
        show: Show progress.
        say: Is told, in words, what is being done.
    """

    recipe: Recipe
    sources: Sources
    images: TestImages
    models: Models
    banks: Banks
    fits: Fits
    thresholds: Thresholds
    audits: Path
    seed: int
    device: str
    workers: int
    ends: float | None
    show: bool
    say: Callable[[str], None]

    def left(self) -> float | None:
        """Seconds that are left; None where there is no limit.

        Raises:
            NotRunError: None are left.
        """
        if self.ends is None:
            return None
        seconds = self.ends - time.monotonic()
        if seconds <= 0:
            raise NotRunError(TIME_BUDGET)
        return seconds

    def subject(self, model: str, defense: str | None) -> Defense | Classifier:
        """A classifier of the recipe with one of its defenses around it.

        Raises:
            NotRunError: The classifier, or a part of the defense, cannot be had.
        """
        net = self.models.get(model).classifier
        if defense is None:
            return net
        preset, options = self.recipe.defenses[defense]
        made = {key: self._part(value, model) for key, value in options.items()}
        return make_preset(preset, net, **made).to(self.device)

    def _part(self, value: Any, model: str) -> Any:
        """An option of a defense, made first if need be."""
        if not isinstance(value, Mapping):
            return value
        if "fit" in value:
            return self.fits.get(value["fit"])
        if "threshold" in value:
            return self.thresholds.get(value["threshold"], model)
        return self.models.networks.get(value["network"]).folder

    def made(self) -> dict[str, Any]:
        """What a record says of all that is made beside classifiers, where there is any."""
        found = {
            "banks": self.banks.facts(),
            "fits": self.fits.facts(),
            "selected": self.images.facts,
            "networks": self.models.networks.facts(),
            "thresholds": self.thresholds.facts(),
        }
        return {name: dict(facts) for name, facts in found.items() if facts}


def groups(recipe: Recipe, row: Row) -> list[Group]:
    """The audits of a row, the threat model's own and the most images first."""
    usual = row.threat or recipe.threat
    found: dict[tuple[Any, ...], list[Column]] = {}
    for column in recipe.columns.values():
        if column.attack is not None and column.name not in row.skips:
            threat, attackers = column.threat or usual, column.attackers(recipe.attackers)
            key = (threat.norm, threat.eps, column.n, attackers, column.selected, column.gradients)
            found.setdefault(key, []).append(column)
    made = [
        Group(columns[0].threat or usual, n, tuple(columns), attackers, selected, gradients)
        for (_, _, n, attackers, selected, gradients), columns in found.items()
    ]
    return sorted(made, key=lambda g: (g.threat != usual, -g.n))


def run_rows(
    shop: Workshop, found: Cells, *, each: Callable[[Cells], None] = lambda cells: None
) -> None:
    """Audit every row.

    Args:
        shop: The recipe and what it needs.
        found: Is filled.
        each: Called after every audit, so that a kill leaves what is done.
    """
    for row in shop.recipe.rows.values():
        if row.model is None:
            quoted = not_run(shop.recipe, row, shop.recipe.columns.values(), row.note)
            found.cells += [{**cell, "status": "quoted"} for cell in quoted]
            continue
        for name, reason in row.skips.items():
            found.cells += not_run(shop.recipe, row, [shop.recipe.columns[name]], reason)
        if not shop.recipe.ours(row):
            continue
        meant = [column for name, column in shop.recipe.columns.items() if name not in row.skips]
        try:
            had = shop.models.get(row.model)
            found.models[row.model] = had.facts
            subject = shop.subject(row.model, row.defense)
        except NotRunError as reason:
            found.cells += not_run(shop.recipe, row, meant, str(reason))
            continue
        _row(shop, row, had.classifier, subject, found, each)


def _row(
    shop: Workshop,
    row: Row,
    net: Classifier,
    subject: Defense | Classifier,
    found: Cells,
    each: Callable[[Cells], None],
) -> None:
    recipe = shop.recipe
    plain = [column for column in recipe.columns.values() if column.attack is None]
    clean = [column for column in plain if column.name not in row.skips]
    assert row.model is not None
    name = recipe.models[row.model].dataset
    for group in groups(recipe, row):
        able, unable = _able(subject, row, group)
        for column, reason in unable.items():
            cells = not_run(recipe, row, [column], reason)
            # What cannot be run at all is not left out.
            found.cells += [{**cell, "possible": not group.gradients} for cell in cells]
        if not able:
            continue
        try:
            images = shop.images.get(name, group.n, selected=group.selected)
            result, key = _audited(shop, row, subject, images, group, able)
        except NotRunError as reason:
            found.cells += not_run(recipe, row, able, str(reason))
            continue
        chosen = {"selected": True} if group.selected else {}
        found.audits[key] = {**audit_facts(result, images, row, net), **chosen}
        # The audit with the most images comes first, and answers for the clean ones.
        for column in [column for column in clean if column.selected == group.selected]:
            cell = clean_cell(row, column, result, key)
            if cell["status"] == "done":
                found.cells.append(cell)
                clean.remove(column)
        for column in able:
            found.cells += [
                attacked_cell(row, column, attacker, result, key) for attacker in group.attackers
            ]
            found.cells += skipped(recipe, row, column)
        each(found)
    if clean:
        found.cells += not_run(recipe, row, clean, _reason(shop))


def _reason(shop: Workshop) -> str:
    return TIME_BUDGET if shop.ends is not None else "no audit of this row was run"


def _able(
    subject: Defense | Classifier, row: Row, group: Group
) -> tuple[list[Column], dict[Column, str]]:
    """Columns whose attack can run here, and why the others cannot."""
    able, unable = [], {}
    if group.gradients and isinstance(subject, Defense) and not _gradients(subject, group):
        reason = f"{subject.purifier.name} has no gradient {' or '.join(group.gradients)} here"
        return [], dict.fromkeys(group.columns, reason)
    for column in group.columns:
        attack = make_attack(str(column.attack_of(row)))
        check = getattr(attack, "check", None)
        try:
            if check is not None:
                check(Surface(subject), group.threat)
        except UnperturbError as error:
            unable[column] = error.problem
            continue
        able.append(column)
    return able, unable


def _audited(
    shop: Workshop,
    row: Row,
    subject: Defense | Classifier,
    images: ImageSet,
    group: Group,
    columns: list[Column],
) -> tuple[AuditResult, str]:
    """One audit, read where it is finished and gone on with where it is not."""
    recipe, threat = shop.recipe, group.threat
    # Two columns may ask for one attack, as a column of each row's own does.
    attacks = list(dict.fromkeys(str(column.attack_of(row)) for column in columns))
    gradients = _gradients(subject, group)
    facts = {
        "subject": subject.fingerprint(),
        "images": images.fingerprint(),
        "threat": threat.to_dict(),
        "attacks": attacks,
        "attackers": list(group.attackers),
        "seed": shop.seed,
        "batch_size": recipe.batch_size,
        **({} if gradients is None else {"backwards": list(gradients)}),
        **({"scoring_draws": recipe.scoring_draws} if recipe.scoring_draws != DRAWS else {}),
        **({} if recipe.side_effects else {"side_effects": False}),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    # Named after what is audited and not after the row, so that recipes may share it; what one
    # calls a defense another may call otherwise, and a corrector has one name.
    title = next(iter(named_in(recipe, row.defense, "fit")), row.defense)
    named = slug(f"{row.model} {title or ''} {'selected' if group.selected else ''}")
    key = f"{named}-{threat.norm}-n{len(images)}-{digest[:8]}"
    folder = shop.audits / key
    if (folder / "manifest.json").is_file():
        return read_result(folder), key
    try:
        budget = shop.left()
    except NotRunError:
        if not (folder / "plan.json").is_file():
            raise
        return read_result(folder), key
    shop.say(f"auditing {row.name}: {', '.join(attacks)} on {len(images)} images")
    try:
        _check_classes(subject, images)
        result = audit(
            subject, images.images(), images.labels, ids=images.ids, threat=threat,
            attacks=attacks, attackers=group.attackers, backwards=gradients, seed=shop.seed,
            scoring_draws=recipe.scoring_draws, side_effects=recipe.side_effects,
            batch_size=min(recipe.batch_size, len(images)), keep_images="none", out=folder,
            workers=shop.workers, time_budget=budget, device=shop.device, name=title,
            data={"source": images.source, "split": images.split,
                  "classes": list(images.classes)},
            show=shop.show, announce=shop.say,
        )  # fmt: skip
    except InputError as error:
        raise InputError(
            f"{row.name}: {error.problem}",
            expected=error.expected,
            fix=f"name another classifier with --model {row.model}=..., or other images",
        ) from error
    result.save_report()
    return result, key


def _gradients(subject: Defense | Classifier, group: Group) -> tuple[str, ...] | None:
    """Those of the column's gradients that a defense has; None for all that it declares."""
    if not group.gradients or not isinstance(subject, Defense):
        return None
    return tuple(rule for rule in group.gradients if rule in (*subject.backwards, UNDEFENDED))


def _check_classes(subject: Defense | Classifier, images: ImageSet) -> None:
    net = subject.classifier if isinstance(subject, Defense) else subject
    if images.classes and len(images.classes) != net.num_classes:
        raise ConfigError(
            f"The classifier knows {net.num_classes} classes, the images have "
            f"{len(images.classes)}",
            expected="a classifier of these images",
            fix="name other images with --data, or another classifier with --model",
        )


def slug(text: str) -> str:
    """A name that is fit for a folder.

    Example:
        >>> slug("TPAP* (8/255 + 16/255)")
        'tpap-8-255-16-255'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "row"
