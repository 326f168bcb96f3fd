"""Test images of a recipe: the first ones, or those that a reference classifier gets right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.errors import DataError
from unperturb.recipes.models import Models
from unperturb.recipes.schema import Recipe
from unperturb.recipes.sources import Sources

__all__ = ["TestImages"]

_BATCH = 250


class TestImages:
    """The test images that rows are audited on and banks are made of.

    Args:
        recipe: Names the data sets.
        sources: Their images.
        models: Reference classifiers among them.
    """

    # pytest takes a class of such a name for tests.
    __test__ = False

    def __init__(self, recipe: Recipe, sources: Sources, models: Models) -> None:
        self._recipe, self._sources, self._models = recipe, sources, models
        self._chosen: dict[str, ImageSet] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def get(self, name: str, count: int | None, *, selected: bool = False) -> ImageSet:
        """Test images of a data set.

        Args:
            name: The data set.
            count: How many at most; None for all.
            selected: Only those that its reference gets right, so many of each class at most.

        Raises:
            NotRunError: The images or the reference cannot be had.
            DataError: The reference gets none right.
        """
        if not selected:
            return self._sources.test(name, count)
        if name not in self._chosen:
            self._chosen[name] = self._select(name)
        chosen = self._chosen[name]
        return chosen if count is None or count >= len(chosen) else chosen.take(slice(count))

    def _select(self, name: str) -> ImageSet:
        select = self._recipe.datasets[name].select
        assert select is not None, "checked when the recipe was read"
        net = self._models.get(select.model).classifier
        wanted, limit = select.per_class * net.num_classes, self._sources.limit
        most = wanted if limit is None else min(wanted, limit)
        count = 2 * most
        while True:
            data = self._sources.test(name, count, limited=False)
            rows = _right(net, data, select.per_class)[:most]
            if len(rows) == most or len(data) < count:
                break
            count *= 2
        if not rows:
            raise DataError(
                f"The classifier {select.model} gets none of {len(data)} test images right",
                expected="a reference that gets some right",
                fix=f"name another one with --model {select.model}=...",
            )
        found = data.take(rows)
        self.facts[name] = {
            "model": select.model,
            "per_class": select.per_class,
            "n": len(found),
            "read": len(data),
            "fingerprint": found.fingerprint(),
        }
        return found


@torch.no_grad()
def _right(net: Classifier, data: ImageSet, per_class: int) -> list[int]:
    """Rows that a classifier gets right, the first so many of each class."""
    device = next(net.parameters()).device
    seen: Counter[int] = Counter()
    found = []
    for start in range(0, len(data), _BATCH):
        rows = slice(start, start + _BATCH)
        labels = data.labels[rows]
        right = net(data.images(rows).to(device)).argmax(1).cpu() == labels
        for offset in right.nonzero()[:, 0].tolist():
            label = int(labels[offset])
            seen[label] += 1
            if seen[label] <= per_class:
                found.append(start + offset)
    return found
