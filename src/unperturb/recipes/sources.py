"""Images of a recipe: a data set's training and test images, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unperturb.data import ImageSet, load_images
from unperturb.data.parquet import find_parquet
from unperturb.errors import DataError, SpecError
from unperturb.recipes.schema import Dataset, Recipe

__all__ = ["TIME_BUDGET", "NotRunError", "Sources"]

TIME_BUDGET = "time budget"
"""Why something was not run."""

# Whatever the run's seed: which images are trained on and which are attacked is part of a recipe.
_ORDER = 0


class NotRunError(Exception):
    """Something of a recipe is not run; its text is the reason that the table states."""


class Sources:
    """The data sets of a recipe.

    Args:
        recipe: Names them.
        given: Where they are, by name, as the user says.
        limit: Test images that are read at most; None for what the recipe says.

    Raises:
        SpecError: The user names a data set that the recipe does not have.
        DataError: One that is needed is neither named nor known, and its absence is an error.
    """

    def __init__(self, recipe: Recipe, given: Mapping[str, str], limit: int | None = None) -> None:
        from unperturb.errors import unknown_name

        for name in given:
            if name not in recipe.datasets:
                raise unknown_name("data set of this recipe", name, recipe.datasets)
        self._recipe, self._given, self._limit = recipe, dict(given), limit
        self._read: dict[tuple[str, str, int | None], ImageSet] = {}

    def spec(self, name: str) -> str:
        """Where a data set is.

        Raises:
            NotRunError: Nobody has said, and the recipe does without.
            DataError: Nobody has said.
        """
        dataset = self._recipe.datasets[name]
        spec = self._given.get(name, dataset.spec)
        if spec is not None:
            return spec
        if dataset.missing is not None:
            raise NotRunError(dataset.missing)
        option = "--data PATH" if name == self._recipe.data else f"--data {name}=PATH"
        raise DataError(
            f"{self._recipe.name} at the scale {self._recipe.scale} needs {dataset.title}",
            expected=f"the folder, file or hub id of {dataset.title}",
            fix=option,
        )

    def train(self, name: str) -> ImageSet:
        """Training images of a data set."""
        return self._get(name, "train", self._recipe.datasets[name].train_limit)

    @property
    def limit(self) -> int | None:
        """Test images that the user wants at most; None for what the recipe says."""
        return self._limit

    def test(self, name: str, count: int | None, *, limited: bool = True) -> ImageSet:
        """The first ``count`` test images of a data set, fewer where it has fewer.

        Args:
            name: The data set.
            count: How many; None for all.
            limited: Whether the user's limit holds.
        """
        most = [number for number in (count, self._limit if limited else None) if number]
        return self._get(name, "test", min(most, default=None))

    def _get(self, name: str, part: str, limit: int | None) -> ImageSet:
        key = (name, part, limit)
        if key not in self._read:
            spec = self.spec(name)
            self._read[key] = _load(self._recipe.datasets[name], spec, part, limit)
        return self._read[key]


def _load(dataset: Dataset, spec: str, part: str, limit: int | None) -> ImageSet:
    split = dataset.train if part == "train" else dataset.test
    options = {
        "shuffle": dataset.shuffle or _one_class_after_the_other(spec),
        "seed": _ORDER,
        "image_size": dataset.image_size,
    }
    if dataset.test_share is not None and dataset.train == dataset.test:
        return _divided(dataset, spec, part, limit)
    try:
        found = load_images(spec, split=split, limit=limit, **options)  # type: ignore[arg-type]
        if part == "train" or found.split not in (None, dataset.train):
            return found
        raise DataError(
            f"{spec} has no split for testing beside {found.split or 'all of it'}",
            expected="images that were not trained on",
            fix="name a data set with a test split",
        )
    except (DataError, SpecError) as error:
        if dataset.test_share is None or not _without_splits(error):
            raise
    whole = load_images(spec, **{**options, "shuffle": True})  # type: ignore[arg-type]
    return _part(whole, torch.arange(len(whole)), dataset, spec, part, limit)


def _divided(dataset: Dataset, spec: str, part: str, limit: int | None) -> ImageSet:
    """A part of one split: which images are held out hangs on their ids alone."""
    whole = load_images(spec, split=dataset.test, image_size=dataset.image_size)
    digests = [hashlib.sha256(name.encode()).digest() for name in whole.ids]
    order = sorted(range(len(whole)), key=digests.__getitem__)
    return _part(whole, torch.tensor(order), dataset, spec, part, limit)


def _part(
    whole: ImageSet, order: Tensor, dataset: Dataset, spec: str, part: str, limit: int | None
) -> ImageSet:
    """The first images in an order are held out, the others are for training."""
    assert dataset.test_share is not None
    held = round(len(whole) * dataset.test_share)
    if not 0 < held < len(whole):
        raise DataError(
            f"{spec} has {len(whole)} images, of which {dataset.test_share:.0%} are {held}",
            expected="images to train on and images to attack",
            fix="name more images",
        )
    rows = order[:held] if part == "test" else order[held:]
    return whole.take(rows if limit is None else rows[:limit])


def _without_splits(error: DataError | SpecError) -> bool:
    return "no split" in error.problem or "Unknown split" in error.problem


def _one_class_after_the_other(spec: str) -> bool:
    """Whether this is a folder of class folders: its first images are all of one class."""
    path = Path(spec).expanduser()
    return path.is_dir() and not find_parquet(path)
