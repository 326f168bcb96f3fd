"""Purifiers: images to what the classifier reads, one file each."""

from __future__ import annotations

from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.cw_step import CWStep
from unperturb.purifiers.fgsm_step import FGSMStep
from unperturb.purifiers.identity import Identity
from unperturb.purifiers.latent import LatentOptimization
from unperturb.purifiers.pgd_step import PGDStep
from unperturb.purifiers.restoration import Restoration
from unperturb.purifiers.unet import UNetDenoiser

__all__ = [
    "PURIFIERS",
    "CWStep",
    "FGSMStep",
    "Identity",
    "LatentOptimization",
    "PGDStep",
    "Purified",
    "Purifier",
    "Restoration",
    "UNetDenoiser",
]

PURIFIERS: dict[str, type[Purifier]] = {
    cls.name: cls
    for cls in (Identity, FGSMStep, PGDStep, CWStep, LatentOptimization, Restoration, UNetDenoiser)
}
"""Purifiers by name."""
