"""Purifiers: images to what the classifier reads, one file each."""

from __future__ import annotations

from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.cw_step import CWStep
from unperturb.purifiers.fgsm_step import FGSMStep
from unperturb.purifiers.identity import Identity
from unperturb.purifiers.pgd_step import PGDStep
from unperturb.purifiers.restoration import Restoration

__all__ = [
    "PURIFIERS",
    "CWStep",
    "FGSMStep",
    "Identity",
    "PGDStep",
    "Purified",
    "Purifier",
    "Restoration",
]

PURIFIERS: dict[str, type[Purifier]] = {
    cls.name: cls for cls in (Identity, FGSMStep, PGDStep, CWStep, Restoration)
}
"""Purifiers by name."""
