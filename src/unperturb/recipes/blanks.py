"""Defenses around networks that cost nothing to make: to check options, and to count passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unperturb.classifiers import Classifier, new_classifier
from unperturb.defense import Defense
from unperturb.errors import UnperturbError
from unperturb.networks.vae import VAE
from unperturb.presets import make_preset
from unperturb.recipes.schema import Recipe
from unperturb.recipes.schema_parts import Network

__all__ = ["blank_defense", "blank_options", "goes_through"]

_SHAPE = (1, 8, 8)


def goes_through(recipe: Recipe, model: str) -> tuple[str, int | None] | None:
    """The VAE and the level that a model was trained through; None where it reads images."""
    seen: set[str] = set()
    while model not in seen:
        seen.add(model)
        stages = recipe.models[model].stages
        if not stages:
            return None
        if stages[0].through is not None:
            return stages[0].through, stages[0].level
        if stages[0].start is None:
            return None
        model = stages[0].start
    return None


def blank_options(
    options: Mapping[str, Any], networks: Mapping[str, Network], classes: int = 10
) -> dict[str, Any]:
    """A defense's options with blank parts in the place of those that need not be made.

    Args:
        options: As a recipe names them.
        networks: The recipe's networks.
        classes: Classes of the classifier that they are to be tried on.
    """
    return {
        key: _blank(value, networks, classes) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }


def _blank(named: Mapping[str, str], networks: Mapping[str, Network], classes: int) -> Any:
    from unperturb.correction.corrector import Corrector
    from unperturb.networks.corrector import CorrectionNetwork
    from unperturb.networks.unet import DenoisingUNet

    if "threshold" in named:
        return 0.0
    if "fit" in named:
        return Corrector(CorrectionNetwork(num_classes=classes, width=1))
    network = networks[named["network"]]
    if network.kind == "vae":
        return VAE(image_shape=_SHAPE, width=1, downsample=1, latent_channels=1)
    if network.kind == "denoiser":
        return DenoisingUNet(in_channels=1, width=1, depth=1)
    return _restorer(network, networks)


def _restorer(network: Network, networks: Mapping[str, Network]) -> Any:
    from unperturb.networks.restorers import build_restorer
    from unperturb.recipes.networks import make_settings
    from unperturb.restoration import RestorationNet

    # A transform that is not stated is that of the network it starts from.
    given = dict(network.train or {})
    while network.start is not None:
        network = networks[network.start]
        if "transform" not in given:
            given |= {**(network.train or {}), **given}
    names = ("transform", "patch", "rate", "sigma", "passes")
    asked = {name: given[name] for name in names if name in given}
    config = make_settings("gan", asked, where=f"network {network.name}")
    assert hasattr(config, "make_transform")
    if network.kind == "mae":
        name, options = "masked-autoencoder", {"width": 8, "depth": 1, "heads": 1, "token": 1,
                                               "decoder_width": 8, "decoder_depth": 1}  # fmt: skip
    else:
        name, options = "inpainting-gan", {"width": 4, "coarse_width": 1}
    net = build_restorer(name, channels=1, **options)
    return RestorationNet(name, net, _SHAPE, config.make_transform())


def blank_defense(
    recipe: Recipe, defense: str, *, through: tuple[str, int | None] | None = None
) -> Defense:
    """A defense of a recipe around a blank network.

    Args:
        recipe: The recipe.
        defense: One of its defenses.
        through: What ``goes_through`` says of the classifier that it is for.

    Raises:
        UnperturbError: Its options do not go together; the message names the defense.
    """
    preset, options = recipe.defenses[defense]
    net: Classifier = new_classifier("small-cnn", in_channels=1)
    if through is not None:
        from unperturb.generative import through_vae

        vae = VAE(image_shape=_SHAPE, width=1, downsample=1, latent_channels=1)
        level = None if through[1] is None else 0
        channels = vae.feature_shape(level)[0]
        net = through_vae(new_classifier("small-cnn", in_channels=channels), vae, level=level)
    try:
        return make_preset(preset, net, **blank_options(options, recipe.networks))
    except UnperturbError as error:
        raise type(error)(
            f"{recipe.name}: defenses: {defense}: {error.problem}",
            expected=error.expected,
            fix=error.fix,
        ) from error
