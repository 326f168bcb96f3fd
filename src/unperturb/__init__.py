"""Put a test-time defense around a trained image classifier, and find out honestly what it adds.

Names are imported when they are first used, so that ``import unperturb`` costs nothing.

Example:
    >>> import unperturb as up
    >>> up.Linf(8 / 255).norm
    'linf'
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unperturb.attacks.registry import make_attack
    from unperturb.audit.api import audit
    from unperturb.classifiers import as_classifier, load_classifier
    from unperturb.correction import Corrector, load_corrector
    from unperturb.data import load_images
    from unperturb.decisions import LogitCorrection, LogitsAfter, LogitUpdate
    from unperturb.defense import Defense, Prediction
    from unperturb.detectors import ThresholdDetector
    from unperturb.generative import load_denoiser, load_vae
    from unperturb.presets import alu, atop, logit_correction, tpap
    from unperturb.purifiers import (
        CWStep,
        FGSMStep,
        Identity,
        LatentOptimization,
        PGDStep,
        Restoration,
        UNetDenoiser,
    )
    from unperturb.threat import L2, Linf
    from unperturb.thresholds import fit_threshold

    __version__: str

__all__ = [
    "L2",
    "CWStep",
    "Corrector",
    "Defense",
    "FGSMStep",
    "Identity",
    "LatentOptimization",
    "Linf",
    "LogitCorrection",
    "LogitUpdate",
    "LogitsAfter",
    "PGDStep",
    "Prediction",
    "Restoration",
    "ThresholdDetector",
    "UNetDenoiser",
    "__version__",
    "alu",
    "as_classifier",
    "atop",
    "audit",
    "fit_threshold",
    "load_classifier",
    "load_corrector",
    "load_denoiser",
    "load_images",
    "load_vae",
    "logit_correction",
    "make_attack",
    "tpap",
]

_HOMES = {
    "CWStep": "unperturb.purifiers",
    "Corrector": "unperturb.correction",
    "Defense": "unperturb.defense",
    "FGSMStep": "unperturb.purifiers",
    "Identity": "unperturb.purifiers",
    "L2": "unperturb.threat",
    "LatentOptimization": "unperturb.purifiers",
    "Linf": "unperturb.threat",
    "LogitCorrection": "unperturb.decisions",
    "LogitUpdate": "unperturb.decisions",
    "LogitsAfter": "unperturb.decisions",
    "PGDStep": "unperturb.purifiers",
    "Prediction": "unperturb.defense",
    "Restoration": "unperturb.purifiers",
    "ThresholdDetector": "unperturb.detectors",
    "UNetDenoiser": "unperturb.purifiers",
    "alu": "unperturb.presets",
    "as_classifier": "unperturb.classifiers",
    "atop": "unperturb.presets",
    "fit_threshold": "unperturb.thresholds",
    "load_classifier": "unperturb.classifiers",
    "load_corrector": "unperturb.correction",
    "load_denoiser": "unperturb.generative",
    "load_images": "unperturb.data",
    "load_vae": "unperturb.generative",
    "logit_correction": "unperturb.presets",
    "make_attack": "unperturb.attacks.registry",
    "tpap": "unperturb.presets",
}


class _CallableAudit(ModuleType):
    """The subpackage ``unperturb.audit``, which may also be called as the function of that name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("unperturb.audit.api").audit(*args, **options)


class _Package(ModuleType):
    """This package.

    The function ``audit`` and the subpackage ``audit`` share a name, and importing anything of
    the subpackage binds the name to it; so the subpackage is made callable at that moment, and
    ``unperturb.audit(...)`` works in whatever order things are imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "audit" and type(value) is ModuleType:
            value.__class__ = _CallableAudit
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unperturb")
    except PackageNotFoundError:
        return "0+uninstalled"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name == "audit":
        value = import_module("unperturb.audit")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
