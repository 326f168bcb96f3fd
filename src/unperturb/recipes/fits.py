"""Correctors of a recipe: fitted once on its banks, kept in a folder that recipes share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from unperturb.banks import LogitBank
from unperturb.correction.config import CorrectionConfig
from unperturb.correction.corrector import Corrector, load_corrector
from unperturb.correction.fit import RECORD, fit_correction
from unperturb.errors import ConfigError, RecordError, unknown_name
from unperturb.recipes.banks import Banks
from unperturb.recipes.reading import typed
from unperturb.recipes.schema import Recipe
from unperturb.recipes.schema_parts import Fit
from unperturb.recipes.sources import TIME_BUDGET, NotRunError

__all__ = ["Fits", "make_correction"]

FOLDER = "fits"


def make_correction(given: Mapping[str, Any], *, where: str, seed: int = 0) -> CorrectionConfig:
    """Settings of a fit as a recipe writes them.

    Args:
        given: Fields of ``CorrectionConfig``.
        where: How a message names the place.
        seed: The seed where none is given.

    Raises:
        SpecError: An unknown field or name.
        ConfigError: A value of another kind, or out of range.

    Example:
        >>> make_correction({"width": 64, "epochs": 2}, where="here").clean_share
        0.3
    """
    known = {field.name: field.default for field in fields(CorrectionConfig)}
    found: dict[str, Any] = {"seed": seed}
    for key, value in given.items():
        if key not in known:
            raise unknown_name(f"setting of a corrector ({where})", str(key), known)
        if key == "attacks":
            listed = [value] if isinstance(value, str) else value
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise ConfigError(f"{where}: attacks is {value!r}"[:300], expected="names")
            found[key] = tuple(listed)
            continue
        found[key] = typed(value, known[key], f"{where}: {key}")
    return CorrectionConfig(**found)


class Fits:
    """All correctors of a recipe, each had once.

    Args:
        recipe: Names them.
        banks: What they are fitted on.
        folder: Where models, banks and fits are kept.
        seed: Seed of fits that state none.
        device: Where to fit.
        ends: ``time.monotonic()`` after which no further epoch begins; None for no limit.
        show: Show progress.
        say: Is told, in words, what is being done.
    """

    def __init__(
        self,
        recipe: Recipe,
        banks: Banks,
        *,
        folder: Path,
        seed: int = 0,
        device: str = "cpu",
        ends: float | None = None,
        show: bool = False,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.recipe, self.banks, self._root = recipe, banks, folder
        self.seed, self.device, self.ends, self.show, self.say = seed, device, ends, show, say
        self._had: dict[str, tuple[Corrector, dict[str, Any]] | NotRunError] = {}

    def get(self, name: str) -> Corrector:
        """A corrector, fitted first if need be.

        Raises:
            NotRunError: Its bank cannot be had, or the time budget is spent.
            RecordError: The folder holds another fit.
        """
        if name not in self._had:
            try:
                self._had[name] = self._make(self.recipe.fits[name])
            except NotRunError as reason:
                self._had[name] = reason
        found = self._had[name]
        if isinstance(found, NotRunError):
            raise found
        return found[0]

    def folder(self, fit: Fit) -> Path:
        """Where a fit is kept."""
        return self._root / self.recipe.scale / FOLDER / fit.name

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the correctors that were had, by name."""
        return {name: had[1] for name, had in self._had.items() if isinstance(had, tuple)}

    def finished(self, fit: Fit) -> bool:
        """Whether a corrector is there already."""
        return (self.folder(fit) / RECORD).is_file()

    def _make(self, fit: Fit) -> tuple[Corrector, dict[str, Any]]:
        config = make_correction(fit.config, where=f"fit {fit.name}", seed=self.seed)
        had = self.banks.get(fit.bank)
        folder = self.folder(fit)
        if not self.finished(fit):
            self._fit(folder, had.bank, config)
        corrector = load_corrector(folder, device=self.device)
        _check_same(folder, corrector.card, config, had.bank)
        return corrector, _facts(fit, corrector, config)

    def _fit(self, folder: Path, bank: LogitBank, config: CorrectionConfig) -> None:
        """Fit, epoch after epoch where time may run out: a fit goes on where it was cut off."""
        done = 0
        while not (folder / RECORD).is_file():
            if self.ends is not None and time.monotonic() > self.ends:
                raise NotRunError(TIME_BUDGET)
            if not done:
                self.say(f"fitting {folder}: {config.epochs} epochs of {len(bank)} rows")
            with warnings.catch_warnings():
                # Of banks whose attack failed, which the page says.
                warnings.simplefilter("ignore", UserWarning)
                made = fit_correction(
                    bank, config, out=folder, device=self.device, show=self.show,
                    stop_after=None if self.ends is None else done + 1,
                )  # fmt: skip
            done = int(made.card["epochs_done"])


def _check_same(
    folder: Path, card: Mapping[str, Any], config: CorrectionConfig, bank: LogitBank
) -> None:
    """Refuse a finished fit of other settings or another bank.

    Raises:
        RecordError: It is another fit.
    """
    try:
        theirs = CorrectionConfig.from_dict(card["config"])
        digest = card["bank"]["digest"]
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"The card of {folder} is damaged: {error}",
            expected="what a finished fit leaves",
            fix="delete that folder and run the same command again",
        ) from error
    changed = [
        f"{field.name}: {getattr(theirs, field.name)} there, {getattr(config, field.name)} here"
        for field in fields(CorrectionConfig)
        if getattr(theirs, field.name) != getattr(config, field.name)
    ]
    if digest != bank.digest:
        changed.append("another bank")
    if changed:
        raise RecordError(
            f"{folder} holds another fit ({'; '.join(changed[:5])})",
            expected="the fit that this recipe describes",
            fix="choose another --models-dir, or delete that folder",
        )


def _facts(fit: Fit, corrector: Corrector, config: CorrectionConfig) -> dict[str, Any]:
    """What a record says of a corrector."""
    card = corrector.card
    return {
        "bank": fit.bank,
        "bank_digest": card["bank"]["digest"],
        "classifier": corrector.classifier,
        "attacks": card["bank"]["attacks"],
        "config": config.to_dict(),
        "fingerprint": corrector.fingerprint(),
        "rows": card["rows"],
        "epochs_done": card["epochs_done"],
        "kept_epoch": card["kept_epoch"],
        "held_out": card["held_out"],
        "environment": card["environment"],
    }
