"""Putting a VAE in front of a classifier that is to be trained through it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from unperturb.classifiers import Classifier
from unperturb.errors import ConfigError, SpecError
from unperturb.generative.folder import fingerprint
from unperturb.networks.registry import build_network, resolve
from unperturb.networks.through import ThroughVAE
from unperturb.networks.vae import VAE

__all__ = ["through_vae", "vae_of"]

ARCH = "through-vae"


def through_vae(classifier: Classifier, vae: VAE, *, level: int | None = None) -> Classifier:
    """A classifier of images that puts every image through a VAE first.

    Neither the classifier nor the VAE is changed: weights are copied. Its normalization comes
    after the VAE.

    Args:
        classifier: Of a registered architecture; it reads images as the VAE makes them, or the
            features of ``level``.
        vae: The VAE, for pixels in [0, 1].
        level: Level of the decoder that it reads in the place of images; None for images.

    Raises:
        ConfigError: It is behind a VAE already, resizes images, has no registered architecture, or
            reads other channels than the VAE gives; there is no such level; or the VAE is for
            another range of pixels.

    Example:
        >>> from unperturb.classifiers import new_classifier
        >>> plain = new_classifier("small-cnn", in_channels=3)
        >>> through_vae(plain, VAE(width=4)).input_shape
        (3, 32, 32)
    """
    check_range(vae)
    origin = classifier.origin
    if vae_of(classifier) is not None or not _registered(origin.arch):
        raise ConfigError(
            f"The classifier is {origin.arch or 'a module from Python'}",
            expected="a registered network that reads images by itself",
            fix="begin with --arch NAME",
        )
    if classifier.geometry is not None:
        raise ConfigError(
            f"The classifier {origin.arch} resizes or crops images itself",
            expected="one that reads what the VAE makes as it is",
            fix="choose another network",
        )
    channels, (wanted, _, _) = classifier.input_shape[0], vae.feature_shape(level)
    if channels not in (None, wanted):
        what = "images" if level is None else f"level {level} of the decoder"
        raise ConfigError(
            f"The classifier reads {channels} channels",
            expected=f"{wanted}, those of {what}",
            fix=f"new_classifier({origin.arch!r}, in_channels={wanted})",
        )
    given = dict(origin.arch_options)
    given.pop("in_channels", None)
    normalizes = any(classifier.mean) or any(s != 1.0 for s in classifier.std)
    options: dict[str, Any] = {
        "in_channels": vae.image_shape[0],
        "net": origin.arch,
        "net_options": given,
        "vae": vae.config(),
        "level": level,
        "mean": list(classifier.mean) if normalizes else None,
        "std": list(classifier.std) if normalizes else None,
    }
    with torch.inference_mode(False):
        module = build_network(ARCH, num_classes=classifier.num_classes, **options)
        assert isinstance(module, ThroughVAE)
        module.vae.load_state_dict(vae.state_dict())
        module.net.load_state_dict(classifier.module.state_dict())
        like = next(classifier.module.parameters())
        module.to(like.device, like.dtype).eval()
    card = {**origin.card, "through": {"vae": fingerprint(vae), "level": level}}
    return Classifier(
        module.requires_grad_(any(p.requires_grad for p in classifier.module.parameters())),
        num_classes=classifier.num_classes,
        input_shape=vae.image_shape,
        origin=replace(
            origin, arch=ARCH, arch_options=options, weights_file=None, weights_sha256=None,
            card=card,
        ),
    )  # fmt: skip


def _registered(arch: str) -> bool:
    try:
        resolve(arch)
    except SpecError:
        return False
    return True


def vae_of(classifier: nn.Module) -> ThroughVAE | None:
    """The module of a classifier that was trained through a VAE; None for any other."""
    module = classifier.module if isinstance(classifier, Classifier) else classifier
    return module if isinstance(module, ThroughVAE) else None


def frozen(vae: VAE) -> VAE:
    """A copy in eval mode whose weights ask for no gradients: the user's own stays as it is."""
    with torch.inference_mode(False):
        return copy.deepcopy(vae).eval().requires_grad_(False)


def check_range(vae: VAE) -> None:
    """Refuse a VAE for other pixels than those of this package.

    Raises:
        ConfigError: Its range is not [0, 1].
    """
    low, high = vae.pixel_range
    if (low, high) != (0.0, 1.0):
        raise ConfigError(
            f"The VAE was made for pixels from {low:g} to {high:g}",
            expected="pixels in [0, 1], as every image here",
            fix="train a VAE on images in [0, 1]: unperturb fit vae",
        )
