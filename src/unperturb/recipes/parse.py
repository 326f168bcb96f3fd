"""From the settings in a YAML file to a recipe, everything checked.

A recipe's settings at a scale are the file's own with that scale's section laid over them
(``reading.overlay``), so a scale states only what it changes. Keys, names and kinds of values are
checked before anything is trained or attacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unperturb.audit.plan import ATTACKERS
from unperturb.errors import ConfigError, unknown_name
from unperturb.recipes.models import make_config
from unperturb.recipes.reading import Section, number
from unperturb.recipes.schema import (
    FIGURES,
    KINDS,
    SCALES,
    Column,
    Dataset,
    Measured,
    Model,
    Panel,
    Paper,
    Recipe,
    Row,
    Stage,
    Sweep,
)
from unperturb.threat import Threat, make_threat

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
    datasets = {key: _dataset(key, part) for key, part in top.sections("datasets").items()}
    models = {
        key: _model(key, part, scale, datasets) for key, part in top.sections("models", {}).items()
    }
    defenses = {key: _defense(part) for key, part in top.sections("defenses", {}).items()}
    threat = _threat(top.section("threat"))
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
        threat=threat,
        attackers=attackers,
        batch_size=top.whole("batch_size", 125),
        columns=columns,
        rows={
            key: _row(key, part, models, defenses, columns)
            for key, part in top.sections("rows", {}).items()
        },
        panels=tuple(_panel(key, part, models) for key, part in top.sections("panels", {}).items()),
        sweeps=tuple(
            _sweep(key, part, models, defenses) for key, part in top.sections("sweeps", {}).items()
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
    from unperturb.classifiers import new_classifier
    from unperturb.presets import make_preset

    needed = {"table": "rows", "curves": "panels", "sweep": "sweeps", "cost": "measured"}
    part = needed.get(recipe.kind)
    if part is not None and not getattr(recipe, part):
        raise ConfigError(
            f"{recipe.name} is a {recipe.kind} without {part}", expected=f"{part}: at least one"
        )
    for column in recipe.columns.values():
        if column.attack is not None:
            resolve_attacks(column.attack)
    # Around a network that costs nothing to make: options are checked where they are used.
    blank = new_classifier("small-cnn", in_channels=1)
    for preset, options in recipe.defenses.values():
        make_preset(preset, blank, **options)


def _paper(part: Section) -> Paper:
    found = Paper(
        source=part.text("source"),
        item=part.text("item"),
        settings=part.text("settings", ""),
        notes=part.texts("notes", ()),
    )
    part.end()
    return found


def _threat(part: Section) -> Threat:
    found = make_threat(part.text("norm", "linf"), part.number("eps"))
    part.end()
    return found


def _maybe_threat(part: Section) -> Threat | None:
    return _threat(part.section("threat")) if "threat" in part else None


def _dataset(name: str, part: Section) -> Dataset:
    size = part.any("image_size", None)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ConfigError(f"{part.where}: image_size is {size!r}", expected="pixels of a side")
    share = part.number("test_share", None)
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"{part.where}: test_share is {share}", expected="between 0 and 1")
    found = Dataset(
        name=name,
        title=part.text("title"),
        spec=part.text("spec", None),
        train=part.text("train", "train"),
        test=part.text("test", None),
        shuffle=part.flag("shuffle", False),
        test_share=share,
        image_size=None if size is None else (size, size),
        train_limit=part.whole("train_limit", None),
        missing=part.text("missing", None),
    )
    part.end()
    return found


def _model(name: str, part: Section, scale: str, datasets: Mapping[str, Dataset]) -> Model:
    """A model at one scale; the other scales are checked as well, so that no typo hides there."""
    title, dataset = part.text("title"), part.choice("data", datasets)
    found = Model(name=name, title=title, dataset=dataset, unavailable=_no_scale(scale))
    for known in SCALES:
        if known not in part:
            continue
        at = part.section(known)
        model = Model(
            name=name,
            title=title,
            dataset=dataset,
            zoo=at.text("zoo", None),
            stages=tuple(_stages(name, at)),
            unavailable=at.text("unavailable", None),
        )
        at.end()
        if not (model.zoo or model.stages or model.unavailable):
            raise ConfigError(
                f"{at.where} says nothing", expected="zoo, train, or unavailable with the reason"
            )
        if known == scale:
            found = model
    part.end()
    return found


def _no_scale(scale: str) -> str:
    return f"no recipe for this model at the scale {scale}"


def _stages(name: str, at: Section) -> list[Stage]:
    listed = at.any("train", [])
    if not isinstance(listed, list):
        raise ConfigError(f"{at.where}: train is {listed!r}"[:300], expected="a list of stages")
    found = []
    for index, value in enumerate(listed, start=1):
        part = Section(value, f"{at.where}: stage {index}")
        stage = Stage(
            name=part.text("name", f"stage{index}"),
            arch=part.text("arch", None),
            start=part.text("start", None),
            config=part.rest(),
        )
        if index == 1 and (stage.arch is None) == (stage.start is None):
            raise ConfigError(
                f"{part.where} names {'both' if stage.arch else 'neither'} of arch and start",
                expected="one of them: a network, or a model of this file",
            )
        if index > 1 and (stage.arch or stage.start):
            raise ConfigError(
                f"{part.where} names {'arch' if stage.arch else 'start'}",
                expected="neither: it starts from the stage before",
            )
        make_config(stage.config, where=part.where)
        found.append(stage)
    return found


def _defense(part: Section) -> tuple[str, Mapping[str, Any]]:
    preset = part.text("preset")
    options: dict[str, Any] = {}
    for key, value in part.rest().items():
        numeric = isinstance(value, str) and "/" in value
        options[key] = number(value, f"{part.where}: {key}") if numeric else value
    return preset, options


def _column(name: str, part: Section, n: int) -> Column:
    found = Column(
        name=name,
        attack=part.text("attack", None),
        n=part.whole("n", n),
        threat=_maybe_threat(part),
        note=part.text("note", ""),
        skips=_skips(part.section("not_run", {})),
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
        threat=_maybe_threat(part),
        paper=_quoted(part, columns),
        note=part.text("note", ""),
    )
    part.end()
    if found.model is None and not found.note:
        raise ConfigError(
            f"{part.where} has no model", expected="a model, or a note that says why there is none"
        )
    return found


def _quoted(part: Section, columns: Iterable[str]) -> dict[str, float | str]:
    """The paper's figures, or texts that say why there are none, by column."""
    known = list(columns)
    quoted = part.any("paper", {})
    if not isinstance(quoted, Mapping):
        raise ConfigError(
            f"{part.where}: paper is {quoted!r}"[:300], expected="a mapping of columns to figures"
        )
    for column, value in quoted.items():
        if known and column not in known:
            raise unknown_name(f"column ({part.where}: paper)", str(column), known)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(
                f"{part.where}: paper: {column} is {value!r}",
                expected="a figure as printed, or a text that says why there is none",
            )
    return dict(quoted)


def _panel(name: str, part: Section, models: Mapping[str, Model]) -> Panel:
    lines = {}
    for label, line in part.sections("lines").items():
        lines[label] = (line.choice("model", models), line.text("figure"))
        line.end()
    part.end()
    return Panel(title=name, lines=lines)


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
