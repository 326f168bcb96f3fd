"""Purifiers: images to what the classifier reads, one file each."""

from __future__ import annotations

from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.fgsm_step import FGSMStep
from unperturb.purifiers.identity import Identity

__all__ = ["PURIFIERS", "FGSMStep", "Identity", "Purified", "Purifier"]

PURIFIERS: dict[str, type[Purifier]] = {cls.name: cls for cls in (Identity, FGSMStep)}
"""Purifiers by name."""
