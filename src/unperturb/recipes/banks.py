"""Logit banks of a recipe: made once, kept in a folder that recipes share, refused if another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unperturb.attacks import resolve_attacks
from unperturb.banks import LogitBank, make_bank
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.recipes.models import Models, Obtained
from unperturb.recipes.schema import Recipe
from unperturb.recipes.schema_parts import Bank
from unperturb.recipes.selection import TestImages
from unperturb.recipes.sources import TIME_BUDGET, NotRunError, Sources

__all__ = ["Banks", "HadBank"]

FOLDER = "banks"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class HadBank:
    """A bank of a recipe.

    Attributes:
        bank: It.
        classifier: The classifier whose logits it holds.
        facts: What a record says of it.
    """

    bank: LogitBank
    classifier: Classifier
    facts: dict[str, Any]


class Banks:
    """All banks of a recipe, each had once.

    Args:
        recipe: Names them.
        sources: Training images.
        images: Test images.
        models: Their classifiers.
        folder: Where models, banks and fits are kept.
        seed: Seed of the attacks.
        device: Where to attack.
        ends: ``time.monotonic()`` after which no further bank begins; None for no limit.
        show: Show progress.
        say: Is told, in words, what is being done.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sources,
        images: TestImages,
        models: Models,
        *,
        folder: Path,
        seed: int = 0,
        device: str = "cpu",
        ends: float | None = None,
        show: bool = False,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.recipe, self.sources, self.images, self.models = recipe, sources, images, models
        self._root, self.seed, self.device = folder, seed, device
        self.ends, self.show, self.say = ends, show, say
        self.had: dict[str, HadBank | NotRunError] = {}

    def get(self, name: str) -> HadBank:
        """A bank, made first if need be.

        Raises:
            NotRunError: Its classifier or images cannot be had, or the time budget is spent.
            RecordError: The folder holds a bank of other settings.
        """
        if name not in self.had:
            try:
                self.had[name] = self._make(self.recipe.banks[name])
            except NotRunError as reason:
                self.had[name] = reason
        found = self.had[name]
        if isinstance(found, NotRunError):
            raise found
        return found

    def folder(self, bank: Bank) -> Path:
        """Where a bank is kept; a first look at fewer test images has a folder of its own."""
        limit = self.sources.limit
        cut = bank.part != "train" and limit is not None and (bank.limit or limit) >= limit
        name = f"{bank.name}-first-{limit}" if cut else bank.name
        return self._root / self.recipe.scale / FOLDER / name

    def finished(self, bank: Bank) -> bool:
        """Whether every attack of a bank is through."""
        try:
            manifest = json.loads((self.folder(bank) / MANIFEST).read_text(encoding="utf-8"))
            names = {attack.name for attack in resolve_attacks(list(bank.attacks))}
            return names <= set(manifest["sources"])
        except (OSError, ValueError, KeyError, TypeError):
            # A damaged one is told by those who open it.
            return False

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the banks that were had, by name."""
        return {name: had.facts for name, had in self.had.items() if isinstance(had, HadBank)}

    def data(self, bank: Bank) -> ImageSet:
        """Images of a bank.

        Raises:
            NotRunError: They cannot be had.
        """
        name = self.recipe.models[bank.model].dataset
        if bank.part != "train":
            return self.images.get(name, bank.limit, selected=bank.part == "selected")
        found = self.sources.train(name)
        few = bank.limit is not None and bank.limit < len(found)
        return found.take(slice(bank.limit)) if few else found

    def _make(self, bank: Bank) -> HadBank:
        if not self.finished(bank) and self.ends is not None and time.monotonic() > self.ends:
            raise NotRunError(TIME_BUDGET)
        had, data = self.models.get(bank.model), self.data(bank)
        folder, finished = self.folder(bank), self.finished(bank)
        if not finished:
            self.say(f"bank {folder}: {', '.join(bank.attacks)} on {len(data)} images")
        made = make_bank(
            had.classifier, data, attacks=list(bank.attacks), threat=bank.threat, out=folder,
            seed=self.seed, dtype=bank.dtype, labels=bank.labels, precision=bank.precision,
            device=self.device, show=self.show,
        )  # fmt: skip
        return HadBank(made, had.classifier, _facts(bank, made, had, data))


def _facts(bank: Bank, made: LogitBank, had: Obtained, data: ImageSet) -> dict[str, Any]:
    """What a record says of a bank."""
    sources = made.manifest["sources"]
    return {
        "model": bank.model,
        "classifier": had.facts["fingerprint"],
        "part": bank.part,
        "attacks": list(made.attacks),
        "labels": bank.labels,
        "threat": bank.threat.to_dict(),
        "seed": made.settings.seed,
        "dtype": made.dtype,
        "precision": made.settings.precision,
        "n": len(made),
        "num_classes": made.num_classes,
        "source": made.source,
        "data": data.fingerprint(),
        "digest": made.digest,
        "accuracy": {name: facts["correct"] / len(made) for name, facts in sources.items()},
        "rounding": {name: facts["rounding"] for name, facts in sources.items()},
        "weak": list(made.weak),
    }
