"""Data sets and classifiers of a recipe, from YAML, everything checked."""

from __future__ import annotations

from collections.abc import Mapping

from unperturb.errors import ConfigError
from unperturb.recipes.models import make_config
from unperturb.recipes.parse_fits import parse_select
from unperturb.recipes.reading import Section
from unperturb.recipes.schema import SCALES, Dataset, Model, Stage

__all__ = ["no_scale", "parse_dataset", "parse_model"]

_FOLDERS = ("banks", "fits", "networks", "thresholds")


def parse_dataset(name: str, part: Section) -> Dataset:
    """A data set; the model that selects its images is checked later."""
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
        select=parse_select(part),
    )
    part.end()
    return found


def parse_model(name: str, part: Section, scale: str, datasets: Mapping[str, Dataset]) -> Model:
    """A model at one scale; the other scales are checked as well, so that no typo hides there."""
    if name in _FOLDERS:
        raise ConfigError(
            f"A model is named {name!r}", expected="another name: a folder has that one already"
        )
    title, dataset = part.text("title"), part.choice("data", datasets)
    found = Model(name=name, title=title, dataset=dataset, unavailable=no_scale("model", scale))
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


def no_scale(what: str, scale: str) -> str:
    """Why there is no model or network where a recipe names none for a scale."""
    return f"no recipe for this {what} at the scale {scale}"


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
            through=part.text("through", None),
            level=part.whole("level", None, least=0),
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
        if index > 1 and (stage.through is not None or stage.level is not None):
            raise ConfigError(
                f"{part.where} names {'level' if stage.through is None else 'through'}",
                expected="neither: it sees images as the stage before does",
            )
        if stage.level is not None and (stage.through is None or stage.arch is None):
            raise ConfigError(
                f"{part.where} names a level without {'through' if stage.arch else 'arch'}",
                expected="arch, through and level: a start stays at its own level",
            )
        make_config(stage.config, where=part.where)
        found.append(stage)
    return found
