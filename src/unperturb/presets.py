"""Published defenses as settings of the one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from torch import nn

from unperturb.defense import Defense
from unperturb.errors import unknown_name
from unperturb.plugins import with_plugins
from unperturb.purifiers import FGSMStep

__all__ = ["PRESETS", "make_preset", "preset_names", "tpap"]


def tpap(classifier: nn.Module, *, radius: float = 8 / 255, clip: bool = True) -> Defense:
    """Test-time pixel-level adversarial purification (Tang et al., CVPR 2024).

    Purifier: one FGSM step away from the own prediction; no detector; the logits after decide.
    The paper proposes it around a network in *robust overfitting* (near-perfect on FGSM examples,
    near zero under PGD); around other networks it is not what the paper proposes.

    Args:
        classifier: Images in [0, 1] to logits.
        radius: Purification radius xi in pixel units.
        clip: Clip purified images to [0, 1] (the released code does; eq. 8 does not).

    Example:
        >>> defense = tpap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
        >>> defense.purifier.name
        'fgsm-step'
    """
    return Defense(classifier, purifier=FGSMStep(radius=radius, clip=clip))


PRESETS: dict[str, Callable[..., Defense]] = {"tpap": tpap}
"""Presets by name."""


def _presets() -> dict[str, Callable[..., Defense]]:
    return with_plugins("presets", PRESETS)


def preset_names() -> list[str]:
    """All presets there are, third-party ones included."""
    return sorted(_presets())


def make_preset(name: str, classifier: nn.Module, **options: object) -> Defense:
    """A preset by its name.

    Raises:
        SpecError: There is no such preset.
        SpecError: It has no such option.
    """
    presets = _presets()
    if name not in presets:
        raise unknown_name("preset", name, presets)
    parameters = list(signature(presets[name]).parameters.values())[1:]
    has = [p.name for p in parameters]
    for option in options:
        if option not in has and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise unknown_name(f"option of the preset {name!r}", option, has)
    return presets[name](classifier, **options)
