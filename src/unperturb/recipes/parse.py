"""From the settings in a YAML file to a recipe, everything checked.

A recipe's settings at a scale are the file's own with that scale's section laid over them
(``reading.overlay``), so a scale states only what it changes. Keys, names and kinds of values are
checked before anything is trained or attacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unperturb.audit.plan import ATTACKERS
from unperturb.errors import ConfigError, UnperturbError, unknown_name
from unperturb.recipes.blanks import blank_defense, goes_through
from unperturb.recipes.models import make_config
from unperturb.recipes.needs import subjects
from unperturb.recipes.parse_changes import parse_changes
from unperturb.recipes.parse_fits import (
    parse_banks,
    parse_explanation,
    parse_fits,
    threat,
)
from unperturb.recipes.parse_models import parse_dataset, parse_model
from unperturb.recipes.parse_networks import (
    check_circles,
    parse_defense,
    parse_networks,
    parse_thresholds,
)
from unperturb.recipes.parse_pairs import check_pairs, parse_pairs, parse_panel
from unperturb.recipes.reading import Section
from unperturb.recipes.schema import (
    DRAWS,
    FIGURES,
    KINDS,
    OWN,
    Column,
    Measured,
    Model,
    Paper,
    Recipe,
    Row,
    Sweep,
)
from unperturb.recipes.sweeps import expand
from unperturb.threat import Threat

__all__ = ["parse_recipe"]


def parse_recipe(name: str, body: Mapping[str, Any], scale: str) -> Recipe:
    """Check a recipe's settings at a scale.

    Args:
        name: The recipe's name.
        body: Its settings, the scale's laid over them, with ``datasets`` and ``models`` of the
            whole paper among them.
        scale: The scale.

    Raises:
        SpecError: An unknown key or name.
        ConfigError: A value of another kind, or one that is missing.
    """
    top = Section(body, name)
    kind = top.choice("kind", KINDS)
    datasets = {key: parse_dataset(key, part) for key, part in top.sections("datasets").items()}
    models = {
        key: parse_model(key, part, scale, datasets)
        for key, part in top.sections("models", {}).items()
    }
    banks = parse_banks(top, models, datasets)
    fits = parse_fits(top, banks)
    networks = parse_networks(top.sections("networks", {}), scale, models, datasets)
    check_circles(name, models, networks)
    thresholds = parse_thresholds(top, models, networks)
    defenses = {
        key: parse_defense(part, fits, networks, thresholds)
        for key, part in top.sections("defenses", {}).items()
    }
    usual = threat(top.section("threat"))
    attackers = top.texts("attackers", ATTACKERS)
    for attacker in attackers:
        if attacker not in ATTACKERS:
            raise unknown_name("attacker", attacker, ATTACKERS)
    n = top.whole("n", 1000)
    columns = {key: _column(key, part, n) for key, part in top.sections("columns", {}).items()}
    recipe = Recipe(
        name=name,
        title=top.text("title"),
        kind=kind,
        scale=scale,
        paper=_paper(top.section("paper")),
        cost=top.text("cost", ""),
        data=top.choice("data", datasets),
        datasets=datasets,
        models=models,
        defenses=defenses,
        threat=usual,
        attackers=attackers,
        batch_size=top.whole("batch_size", 125),
        scoring_draws=top.whole("scoring_draws", DRAWS, least=2),
        side_effects=top.flag("side_effects", True),
        columns=columns,
        rows={
            key: _row(key, part, models, defenses, columns)
            for key, part in top.sections("rows", {}).items()
        },
        pairs=parse_pairs(top),
        panels=tuple(
            parse_panel(key, part, models, networks)
            for key, part in top.sections("panels", {}).items()
        ),
        sweeps=tuple(
            _sweep(key, part, models, defenses) for key, part in top.sections("sweeps", {}).items()
        ),
        banks=banks,
        fits=fits,
        networks=networks,
        thresholds=thresholds,
        explanation=(
            parse_explanation(top.section("explanation"), banks, fits)
            if kind == "explanation"
            else None
        ),
        changes=(
            parse_changes(top.section("changes"), models, defenses, usual, n)
            if kind == "logit-change"
            else None
        ),
        figure=_figure(top.section("figure", {}), models, defenses) if kind == "figure" else {},
        network=_network(top.section("network")) if kind == "cost" else {},
        measured=tuple(
            _measured(key, part, defenses) for key, part in top.sections("measured", {}).items()
        ),
        body=dict(body),
    )
    top.end()
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    """What a kind needs, and names and options that others know."""
    from unperturb.attacks import resolve_attacks

    needed = {"table": "rows", "curves": "panels", "sweep": "sweeps", "cost": "measured"}
    part = needed.get(recipe.kind)
    if part is not None and not getattr(recipe, part):
        raise ConfigError(
            f"{recipe.name} is a {recipe.kind} without {part}", expected=f"{part}: at least one"
        )
    for dataset in recipe.datasets.values():
        if dataset.select is not None and dataset.select.model not in recipe.models:
            where = f"model that selects images of {dataset.name}"
            raise unknown_name(where, dataset.select.model, recipe.models)
    for row in recipe.rows.values():
        _check_row(recipe, row)
    check_pairs(recipe)
    named = [column.attack for column in recipe.columns.values() if column.attack != OWN]
    own = [one for row in recipe.rows.values() for one in (row.attack, *row.attacks.values())]
    for attack in (*named, *own):
        if attack is not None:
            resolve_attacks(attack)
    _check_defenses(recipe)


def _check_defenses(recipe: Recipe) -> None:
    """Options are checked where they are used: around networks that cost nothing to make."""
    recipe = expand(recipe)
    pairs = subjects(recipe)
    for name, (_, options) in recipe.defenses.items():
        models = [model for model, defense in pairs if defense == name]
        for value in options.values():
            named = value.get("threshold") if isinstance(value, Mapping) else None
            only = None if named is None else recipe.thresholds[named].model
            for model in models:
                if only not in (None, model):
                    raise ConfigError(
                        f"{recipe.name}: the defense {name} of {model} has the threshold {named}, "
                        f"which is fitted for {only}",
                        expected=f"a threshold for {model}, or for any model",
                    )
        behind = {goes_through(recipe, model) is not None: model for model in models}
        for model in behind.values():
            blank_defense(recipe, name, through=goes_through(recipe, model))
        if not models:
            # A paper's file holds those of other recipes, some for classifiers behind a VAE.
            try:
                blank_defense(recipe, name)
            except UnperturbError:
                blank_defense(recipe, name, through=("", 0))


def _check_row(recipe: Recipe, row: Row) -> None:
    """What a row's columns ask of it."""
    if row.model is None:
        return
    dataset = recipe.datasets[recipe.models[row.model].dataset]
    for column in recipe.columns.values():
        if column.attack == OWN and row.attack is None:
            raise ConfigError(
                f"{recipe.name}: the row {row.name} names no attack",
                expected=f"one, for the column {column.name}",
            )
        if column.selected and dataset.select is None:
            raise ConfigError(
                f"{recipe.name}: the column {column.name} is of selected images",
                expected=f"select: in the data set {dataset.name}",
            )


def _paper(part: Section) -> Paper:
    found = Paper(
        source=part.text("source"),
        item=part.text("item"),
        settings=part.text("settings", ""),
        notes=part.texts("notes", ()),
    )
    part.end()
    return found


def _maybe_threat(part: Section) -> Threat | None:
    return threat(part.section("threat")) if "threat" in part else None


def _column(name: str, part: Section, n: int) -> Column:
    found = Column(
        name=name,
        attack=part.text("attack", None),
        n=part.whole("n", n),
        selected=part.flag("selected", False),
        threat=_maybe_threat(part),
        note=part.text("note", ""),
        skips=_skips(part.section("not_run", {})),
        gradients=part.texts("gradients", ()),
        only=part.choice("only", ATTACKERS, None),
    )
    part.end()
    if not found.attackers(ATTACKERS):
        raise ConfigError(
            f"{part.where} runs no attacker", expected="at least one that is not in not_run"
        )
    return found


def _skips(part: Section) -> tuple[tuple[str, str], ...]:
    found = tuple((name, part.text(name)) for name in ATTACKERS if name in part)
    part.known(ATTACKERS)
    part.end()
    return found


def _row(
    name: str,
    part: Section,
    models: Mapping[str, Model],
    defenses: Mapping[str, Any],
    columns: Mapping[str, Column],
) -> Row:
    found = Row(
        name=name,
        model=part.choice("model", models, None),
        defense=part.choice("defense", defenses, None),
        attack=part.text("attack", None),
        threat=_maybe_threat(part),
        paper=_quoted(part, columns),
        bare=_quoted(part, columns, "bare"),
        attacks=_attacks(part, columns),
        skips=_row_skips(part, columns),
        note=part.text("note", ""),
    )
    part.end()
    if found.model is None and not found.note:
        raise ConfigError(
            f"{part.where} has no model", expected="a model, or a note that says why there is none"
        )
    return found


def _attacks(part: Section, columns: Mapping[str, Column]) -> dict[str, str]:
    """Attacks of a row's own, by column."""
    own = part.section("attacks", {})
    found = {
        name: own.text(name)
        for name, column in columns.items()
        if name in own and column.attack is not None
    }
    own.known(name for name, column in columns.items() if column.attack is not None)
    own.end()
    return found


def _row_skips(part: Section, columns: Iterable[str]) -> dict[str, str]:
    """Why a row is not run: one text for all columns, or texts by column."""
    given = part.any("not_run", {})
    if isinstance(given, str):
        return dict.fromkeys(columns, given)
    section = Section(given, f"{part.where}: not_run")
    found = {name: section.text(name) for name in columns if name in section}
    section.known(columns)
    section.end()
    return found


def _quoted(part: Section, columns: Iterable[str], key: str = "paper") -> dict[str, float | str]:
    """The paper's figures, or texts that say why there are none, by column."""
    known = list(columns)
    quoted = part.any(key, {})
    if not isinstance(quoted, Mapping):
        raise ConfigError(
            f"{part.where}: {key} is {quoted!r}"[:300], expected="a mapping of columns to figures"
        )
    for column, value in quoted.items():
        if known and column not in known:
            raise unknown_name(f"column ({part.where}: {key})", str(column), known)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(
                f"{part.where}: {key}: {column} is {value!r}",
                expected="a figure as printed, or a text that says why there is none",
            )
    return dict(quoted)


def _sweep(
    name: str, part: Section, models: Mapping[str, Model], defenses: Mapping[str, Any]
) -> Sweep:
    from unperturb.training import TrainConfig

    values = part.any("values")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{part.where}: values is {values!r}"[:300], expected="a list of values")
    settings = list(TrainConfig.__dataclass_fields__)
    found = Sweep(
        name=name,
        model=part.choice("model", models),
        setting=part.choice("setting", settings),
        values=tuple(values),
        label=part.text("label", name),
        defense=part.choice("defense", defenses, None),
    )
    part.end()
    for value in values:
        make_config({found.setting: value}, where=part.where)
    return found


def _measured(name: str, part: Section, defenses: Mapping[str, Any]) -> Measured:
    from unperturb.training import OBJECTIVES

    found = Measured(
        name=name,
        objective=part.choice("objective", OBJECTIVES),
        defense=part.choice("defense", defenses, None),
        clean_pass=part.flag("clean_pass", False),
        paper=_quoted(part, ()),
    )
    part.end()
    return found


def _network(part: Section) -> dict[str, Any]:
    found = {
        "arch": part.text("arch"),
        "classes": part.whole("classes", 10, least=2),
        "channels": part.whole("channels", 3),
        "image_size": part.whole("image_size", 32),
        "batch_size": part.whole("batch_size", 128),
        "attack_steps": part.whole("attack_steps", 10),
        "train_images": part.whole("train_images", 50_000),
        "test_images": part.whole("test_images", 10_000),
        "repeats": part.whole("repeats", 3, least=0),
    }
    part.end()
    return found


def _figure(
    part: Section, models: Mapping[str, Model], defenses: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "draw": part.choice("draw", FIGURES),
        "images": part.whole("images", 4),
        "attack": part.text("attack", "pgd-20"),
        "perplexity": part.number("perplexity", 30.0),
        "all_passes": part.flag("all_passes", False),
        "subjects": {},
    }
    for label, subject in part.sections("subjects").items():
        found["subjects"][label] = (
            subject.choice("model", models),
            subject.choice("defense", defenses, None),
        )
        subject.end()
    part.end()
    return found
