"""Attacked images by a gradient that is named: of the bare classifier, or through the purifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unperturb.attacks import Attack, Surface, describe_attack
from unperturb.defense import Defense
from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.purifiers import LatentOptimization
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = [
    "ENCODE_DECODE",
    "NOISE",
    "UNDEFENDED",
    "attacked_images",
    "attacked_surface",
    "gradients_of",
    "to_first_success",
]

NOISE = "noise"
UNDEFENDED = "undefended"
ENCODE_DECODE = "encode-decode"


def gradients_of(defense: Defense) -> tuple[str, ...]:
    """Gradients by which a defense can be attacked.

    Example:
        >>> from torch import nn
        >>> from unperturb.presets import tpap
        >>> gradients_of(tpap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))[0]
        'undefended'
    """
    latent = isinstance(defense.purifier, LatentOptimization)
    return (UNDEFENDED, *([ENCODE_DECODE] if latent else []), *defense.backwards)


def attacked_images(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str | Attack,
    threat: Threat,
    gradient: str,
    ids: Sequence[str],
    seed: int,
    batch_size: int,
    bar: Any,
) -> Tensor:
    """Attack images with all steps (rule ``fixed`` where the attack has it).

    Args:
        defense: The defense.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: What the attack steps away from (N,).
        attack: An attack, or ``noise``.
        threat: Norm and size.
        gradient: One of ``gradients_of``.
        ids: Ids of the images.
        seed: Names the random numbers.
        batch_size: Images at a time.
        bar: A progress bar.

    Returns:
        Attacked images (N, C, H, W).

    Raises:
        SpecError: There is no such gradient.
        AttackError: The attack cannot be run here.
        ConfigError: The batch size is below 1, or noise is asked for in another norm than Linf.
    """
    known = gradients_of(defense)
    if gradient not in known:
        raise unknown_name(f"gradient of {defense.purifier.name}", str(gradient), known)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    if isinstance(attack, str):
        bar.update(len(images))
        return _noise(images, threat, Keys.of(seed, ids, domain="explain/noise"))
    surface = attacked_surface(defense, gradient)
    rules = describe_attack(attack)["rules"]
    stop = "fixed" if "fixed" in rules else rules[0]
    keys = Keys.of(seed, ids, domain=f"attack/{attack.name}")
    made = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        found = attack.run(
            surface, images[rows], labels[rows], threat=threat, keys=keys[rows], stop=stop
        )
        made.append(found.images)
        bar.update(len(found.images))
    return torch.cat(made)


def to_first_success(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    threat: Threat,
    gradient: str,
    ids: Sequence[str],
    seed: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """What an attack spends until the surface that it attacks first answers wrongly.

    Arguments as of `attacked_images`, but that the attack is none of noise.

    Returns:
        Which images were turned, (N,) bool, and the gradients that were taken of each, (N,) int64.

    Raises:
        AttackError: The attack cannot be run here.
        SpecError: It counts no gradients, or does not stop at the first success.
    """
    if "first-success" not in describe_attack(attack)["rules"]:
        raise SpecError(
            f"The attack {attack.name!r} does not stop at the first success",
            expected="an attack that does, such as pgd-20",
        )
    surface = attacked_surface(defense, gradient)
    keys = Keys.of(seed, ids, domain=f"attack/{attack.name}")
    turned, spent = [], []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        found = attack.run(
            surface, images[rows], labels[rows], threat=threat, keys=keys[rows],
            stop="first-success",
        )  # fmt: skip
        if found.gradients is None:
            raise SpecError(
                f"The attack {attack.name!r} counts no gradients", expected="one that does"
            )
        turned.append(found.success.cpu())
        spent.append(found.gradients.cpu())
    return torch.cat(turned), torch.cat(spent)


def attacked_surface(defense: Defense, gradient: str) -> Surface:
    """What is attacked by a gradient of ``gradients_of``."""
    if gradient == UNDEFENDED:
        return Surface(defense.classifier)
    if gradient != ENCODE_DECODE:
        return Surface(defense, backward=gradient)
    own = defense.purifier
    assert isinstance(own, LatentOptimization)
    plain = LatentOptimization(vae=own.vae, steps=0, level=own.level, unified=own.unified)
    return Surface(Defense(defense.classifier, purifier=plain), backward="exact")


def _noise(images: Tensor, threat: Threat, keys: Keys) -> Tensor:
    if threat.norm != "linf":
        raise ConfigError(
            f"noise is asked for in the norm {threat.norm}",
            expected="linf: signs drawn at random",
            fix="leave --norm out",
        )
    drawn = keys.to(images.device).normal("signs", images.shape[1:], device=images.device)
    return (images + threat.eps * drawn.to(images.dtype).sign()).clamp(0.0, 1.0)
