"""Generative models and denoisers: their training, their folders, classifiers behind them.

``train_vae``, ``train_denoiser`` and ``reconstruction`` are imported when they are first used:
training needs the whole package, and purifiers need no training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unperturb.generative.config import DenoiserConfig, FitConfig, VAEConfig
from unperturb.generative.folder import (
    fingerprint,
    load_denoiser,
    load_vae,
    read_card,
    save_generative,
)
from unperturb.generative.through import through_vae, vae_of

if TYPE_CHECKING:
    from unperturb.generative.denoiser import train_denoiser
    from unperturb.generative.quality import psnr, reconstruction
    from unperturb.generative.vae import train_vae

__all__ = [
    "DenoiserConfig",
    "FitConfig",
    "VAEConfig",
    "fingerprint",
    "load_denoiser",
    "load_vae",
    "psnr",
    "read_card",
    "reconstruction",
    "save_generative",
    "through_vae",
    "train_denoiser",
    "train_vae",
    "vae_of",
]

_HOMES = {
    "psnr": "quality",
    "reconstruction": "quality",
    "train_denoiser": "denoiser",
    "train_vae": "vae",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
