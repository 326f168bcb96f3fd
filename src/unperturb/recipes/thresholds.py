"""Thresholds of a recipe: fitted once on clean training images for each classifier they serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.decisions import DECISIONS
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import RecordError
from unperturb.presets import alu_purifier
from unperturb.purifiers import Purifier
from unperturb.recipes.models import Models
from unperturb.recipes.schema import Recipe
from unperturb.recipes.schema_parts import Threshold
from unperturb.recipes.sources import TIME_BUDGET, NotRunError

__all__ = ["Thresholds"]

FOLDER = "thresholds"


class Thresholds:
    """All thresholds of a recipe, each fitted once for a classifier.

    What is kept is a whole defense, as ``unperturb fit alu`` leaves it.

    Args:
        recipe: Names them.
        models: Its classifiers and networks.
        folder: Where models, banks and fits are kept.
        seed: Seed of a random purifier's draws.
        device: Where to compute.
        ends: ``time.monotonic()`` after which no further fit begins; None for no limit.
        show: Show progress.
        say: Is told, in words, what is being done.
    """

    def __init__(
        self,
        recipe: Recipe,
        models: Models,
        *,
        folder: Path,
        seed: int = 0,
        device: str = "cpu",
        ends: float | None = None,
        show: bool = False,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.recipe, self.models, self._root = recipe, models, folder
        self.seed, self.device, self.ends, self.show, self.say = seed, device, ends, show, say
        self._had: dict[tuple[str, str], tuple[Path, dict[str, Any]] | NotRunError] = {}

    def get(self, name: str, model: str) -> Path:
        """Folder of a defense with the threshold for a classifier, fitted first if need be.

        Raises:
            NotRunError: Its classifier or networks cannot be had, or the time budget is spent.
            RecordError: The folder holds another one.
        """
        key = (name, model)
        if key not in self._had:
            try:
                self._had[key] = self._make(self.recipe.thresholds[name], model)
            except NotRunError as reason:
                self._had[key] = reason
        found = self._had[key]
        if isinstance(found, NotRunError):
            raise found
        return found[0]

    def purifier(self, threshold: Threshold, classifier: Classifier) -> Purifier:
        """The purifier that a threshold is fitted for."""
        return alu_purifier(classifier, **self.options(threshold.options))

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a preset with folders in the place of networks' names.

        Raises:
            NotRunError: A network cannot be had.
        """
        return {
            key: self.models.networks.get(value["network"]).folder
            if isinstance(value, Mapping)
            else value
            for key, value in options.items()
        }

    def folder(self, name: str, model: str) -> Path:
        """Where a fitted threshold is kept."""
        return self._root / self.recipe.scale / FOLDER / name / model

    def finished(self, name: str, model: str) -> bool:
        """Whether a threshold is there already."""
        return (self.folder(name, model) / "config.json").is_file()

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the thresholds that were had, by ``NAME/MODEL``."""
        return {
            f"{name}/{model}": had[1]
            for (name, model), had in self._had.items()
            if isinstance(had, tuple)
        }

    def data(self, threshold: Threshold, model: str) -> ImageSet:
        """The training images that a threshold is fitted on."""
        found = self.models.sources.train(self.recipe.models[model].dataset)
        few = threshold.n is not None and threshold.n < len(found)
        return found.take(slice(threshold.n)) if few else found

    def _make(self, threshold: Threshold, model: str) -> tuple[Path, dict[str, Any]]:
        from unperturb.saving import load_detector
        from unperturb.thresholds import fit_threshold

        net = self.models.get(model).classifier
        purifier = self.purifier(threshold, net).to(self.device)
        data = self.data(threshold, model)
        folder = self.folder(threshold.name, model)
        if not self.finished(threshold.name, model):
            if self.ends is not None and time.monotonic() > self.ends:
                raise NotRunError(TIME_BUDGET)
            self.say(f"threshold {folder}: {len(data)} images through {purifier.name}")
            fitted = fit_threshold(
                net, purifier, data, statistic=threshold.statistic, quantile=threshold.quantile,
                seed=self.seed, device=self.device, show=self.show,
            )  # fmt: skip
            Defense(
                net, purifier=purifier, detector=fitted, decision=DECISIONS["logit-update"]()
            ).save_pretrained(folder)
        detector = load_detector(folder)
        assert isinstance(detector, ThresholdDetector)
        _check_same(folder, detector, threshold, net, purifier, data)
        facts = {
            "model": model,
            "purifier": {"name": purifier.name, "fingerprint": purifier.fingerprint()},
            "options": {
                key: value["network"] if isinstance(value, Mapping) else value
                for key, value in threshold.options.items()
            },
            **detector.config(),
        }
        return folder, facts


def _check_same(
    folder: Path,
    detector: ThresholdDetector,
    threshold: Threshold,
    net: Classifier,
    purifier: Purifier,
    data: ImageSet,
) -> None:
    """Refuse a threshold of another statistic, quantile, classifier, purifier or images.

    Raises:
        RecordError: It is another one.
    """
    fitted = detector.fitted_on or {}
    wanted = {
        "statistic": (detector.statistic, threshold.statistic),
        "quantile": (fitted.get("quantile"), threshold.quantile),
        "classifier": (fitted.get("classifier"), net.fingerprint()),
        "purifier": (fitted.get("purifier"), purifier.fingerprint()),
        "images": ((fitted.get("images") or {}).get("fingerprint"), data.fingerprint()),
    }
    changed = [
        f"{name}: {str(theirs)[:16]} there, {str(ours)[:16]} here"
        for name, (theirs, ours) in wanted.items()
        if theirs != ours
    ]
    if changed:
        raise RecordError(
            f"{folder} holds another threshold ({'; '.join(changed)})",
            expected="the threshold that this recipe describes",
            fix="choose another --models-dir, or delete that folder",
        )
