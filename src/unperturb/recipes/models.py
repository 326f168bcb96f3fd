"""Classifiers of a recipe: given by the user, taken from the zoo, or trained and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unperturb.classifiers import Classifier, load_classifier, new_classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, unknown_name
from unperturb.files import short_paths
from unperturb.generative import fingerprint, through_vae, vae_of
from unperturb.networks.vae import VAE
from unperturb.recipes.finished import changed_settings, refuse, settings_of
from unperturb.recipes.networks import Networks
from unperturb.recipes.reading import typed
from unperturb.recipes.schema import Model, Recipe, Stage
from unperturb.recipes.sources import TIME_BUDGET, NotRunError, Sources
from unperturb.training import TrainConfig

__all__ = ["Models", "Obtained", "find_zoo", "make_config"]

RECORD = "training.json"


def make_config(given: Mapping[str, Any], *, where: str, seed: int = 0) -> TrainConfig:
    """Settings of a training run as a recipe writes them: sizes may be fractions such as 8/255.

    Args:
        given: Fields of ``TrainConfig``.
        where: How a message names the place.
        seed: The seed where none is given.

    Raises:
        SpecError: An unknown field or name.
        ConfigError: A value of another kind, or out of range.

    Example:
        >>> make_config({"objective": "fgsm", "eps": "8/255"}, where="here").eps == 8 / 255
        True
    """
    known = {field.name: field.default for field in fields(TrainConfig)}
    found: dict[str, Any] = {"seed": seed}
    for key, value in given.items():
        if key not in known:
            raise unknown_name(f"training setting ({where})", str(key), known)
        found[key] = typed(value, known[key], f"{where}: {key}")
    return TrainConfig(**found)


def find_zoo(folder: str | Path | None) -> list[Path]:
    """Folders that may hold the project's zoo: the one named, or ``zoo`` here and in the sources.

    Raises:
        ConfigError: The folder that is named is not there.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(f"The zoo is {str(folder)!r}", expected="a folder of classifiers")
        return [Path(folder)]
    checkout = Path(__file__).resolve().parents[3]
    return [path for path in (Path("zoo"), checkout / "zoo") if path.is_dir()]


@dataclass(frozen=True)
class Obtained:
    """A classifier of a recipe.

    Attributes:
        classifier: It.
        facts: Where it comes from, for the record.
        folders: Folders of its training runs, in order; none where it was given.
    """

    classifier: Classifier
    facts: dict[str, Any]
    folders: tuple[Path, ...] = ()


class Models:
    """All classifiers of a recipe, each had once.

    Args:
        recipe: Names them.
        sources: Its images.
        folder: Where trained ones are kept; what is finished there is used again.
        zoo: Folders of the zoo.
        given: Specifications that the user names in their place.
        networks: Folders that the user names in the place of the recipe's networks.
        seed: Seed of training runs that state none.
        device: Where to train.
        ends: ``time.monotonic()`` after which no further epoch begins; None for no limit.
        show: Show progress.
        say: Is told, in words, what is being done.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sources,
        *,
        folder: Path,
        zoo: list[Path],
        given: Mapping[str, str] | None = None,
        networks: Mapping[str, str] | None = None,
        seed: int = 0,
        device: str = "cpu",
        ends: float | None = None,
        show: bool = False,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        for name in given or {}:
            if name not in recipe.models:
                raise unknown_name("model of this recipe", name, recipe.models)
        self.recipe, self.sources, self.folder = recipe, sources, folder
        self.zoo, self.given, self.seed, self.device = zoo, dict(given or {}), seed, device
        self.ends, self.show, self.say = ends, show, say
        self.networks = Networks(self, networks)
        self._had: dict[str, Obtained | NotRunError] = {}

    def get(self, name: str) -> Obtained:
        """A classifier, trained first if need be.

        Raises:
            NotRunError: It cannot be had at this scale, or the time budget is spent.
        """
        if name not in self._had:
            try:
                self._had[name] = self._make(self.recipe.models[name])
            except NotRunError as reason:
                self._had[name] = reason
        found = self._had[name]
        if isinstance(found, NotRunError):
            raise found
        return found

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the classifiers that were had, by name."""
        return {name: had.facts for name, had in self._had.items() if isinstance(had, Obtained)}

    def plan(self, name: str) -> tuple[str, Any]:
        """How a model is had: ``given``, ``zoo``, ``train`` or ``unavailable``, and from what."""
        model = self.recipe.models[name]
        if name in self.given:
            return "given", self.given[name]
        if model.unavailable is not None:
            return "unavailable", model.unavailable
        found = self._in_zoo(model)
        if found is not None:
            return "zoo", found
        if model.stages:
            return "train", model.stages
        return "unavailable", f"the zoo has no classifier {model.zoo}"

    def stage_folder(self, name: str, stage: Stage) -> Path:
        """Where a training run leaves its weights."""
        return self.folder / self.recipe.scale / name / stage.name

    def config(self, name: str, stage: Stage) -> TrainConfig:
        """Settings of a training run."""
        return make_config(stage.config, where=f"model {name}: {stage.name}", seed=self.seed)

    def _in_zoo(self, model: Model) -> Path | None:
        places = [path / model.zoo for path in self.zoo] if model.zoo else []
        return next((path for path in places if (path / "config.json").is_file()), None)

    def _make(self, model: Model) -> Obtained:
        kind, what = self.plan(model.name)
        if kind == "unavailable":
            raise NotRunError(str(what))
        if kind == "train":
            return self._trained(model)
        net = load_classifier(what, device=self.device)
        facts = {"from": kind, "name": short_paths(str(what)), **_facts(model, net)}
        return Obtained(net, facts, (Path(what),) if kind == "zoo" else ())

    def _trained(self, model: Model) -> Obtained:
        data = self.sources.train(model.dataset)
        net, folders = None, []
        for stage in model.stages:
            folder, config = self.stage_folder(model.name, stage), self.config(model.name, stage)
            start = net if stage.start is None else self.get(stage.start).classifier
            vae = None if stage.through is None else self.networks.vae(stage.through)
            net = self._stage(folder, stage, config, data, start, vae)
            folders.append(folder)
        assert net is not None
        facts = {"from": "trained", "name": model.name, **_facts(model, net)}
        return Obtained(net, facts, tuple(folders))

    def _stage(
        self,
        folder: Path,
        stage: Stage,
        config: TrainConfig,
        data: ImageSet,
        start: Classifier | None,
        vae: VAE | None,
    ) -> Classifier:
        if not (folder / RECORD).is_file():
            self._train(folder, stage, config, data, start, vae)
        found = load_classifier(folder, device=self.device)
        _check_same(folder, config, data, start, _other_vae(found, stage, vae))
        return found

    def _train(
        self,
        folder: Path,
        stage: Stage,
        config: TrainConfig,
        data: ImageSet,
        start: Classifier | None,
        vae: VAE | None,
    ) -> None:
        from unperturb.training import train_classifier

        # Epoch after epoch where time may run out: a run goes on exactly where it was cut off.
        stops = [None] if self.ends is None else list(range(1, config.epochs + 1))
        for stop in stops:
            if self.ends is not None and time.monotonic() > self.ends:
                raise NotRunError(TIME_BUDGET)
            if stop in (None, 1):
                self.say(f"training {folder}: {config.objective}, {config.epochs} epochs")
            train_classifier(
                self._fresh(stage, config, data, start, vae),
                data,
                config,
                out=folder,
                device=self.device,
                stop_after=stop,
                show=self.show,
            )

    def _fresh(
        self,
        stage: Stage,
        config: TrainConfig,
        data: ImageSet,
        start: Classifier | None,
        vae: VAE | None,
    ) -> Classifier:
        """The network as it is before the first step; training changes the one it is given."""
        if start is not None:
            plain = load_classifier(start.spec, device=self.device)
            return plain if vae is None else through_vae(plain, vae)
        assert stage.arch is not None
        reads = data.pixels.shape[1] if vae is None else vae.feature_shape(stage.level)[0]
        plain = new_classifier(
            stage.arch,
            num_classes=len(data.classes),
            in_channels=reads,
            # The reference trains on pixels as they are.
            mean=(0.0,),
            std=(1.0,),
            seed=config.seed,
        )
        return plain if vae is None else through_vae(plain, vae, level=stage.level)


def _facts(model: Model, net: Classifier) -> dict[str, Any]:
    """What a record says of a classifier: its print, its training and the monitor's figures."""
    card = net.origin.card
    return {
        "title": model.title,
        "data": model.dataset,
        "arch": net.origin.arch,
        "fingerprint": net.fingerprint(),
        "objective": card.get("objective"),
        "config": card.get("config"),
        "kept_epoch": card.get("kept_epoch"),
        "monitor": card.get("monitor"),
    }


def _other_vae(found: Classifier, stage: Stage, vae: VAE | None) -> list[str]:
    """What is wrong with the VAE that a trained classifier sees through, in words."""
    if vae is None:
        return []
    module = vae_of(found)
    wrong = module is None or fingerprint(module.vae) != fingerprint(vae)
    return ["another VAE"] if wrong or module is None or module.level != stage.level else []


def _check_same(
    folder: Path,
    config: TrainConfig,
    data: ImageSet,
    start: Classifier | None,
    more: list[str],
) -> None:
    """Refuse a finished run of other settings, images, start weights or VAE.

    Raises:
        RecordError: It is another run.
    """
    card, theirs, images = settings_of(folder / RECORD, TrainConfig.from_dict)
    began = (card.get("start") or {}).get("fingerprint")
    changed = changed_settings(theirs, config)
    if images != data.fingerprint():
        changed.append("other images")
    if start is not None and began != start.fingerprint():
        changed.append("other start weights")
    refuse(folder, [*changed, *more])
