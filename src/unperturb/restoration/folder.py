"""A trained restoration network as a folder: ``config.json``, ``model.safetensors``, its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from unperturb.errors import ConfigError, UnperturbError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.networks.inpainting_gan import PatchDiscriminator
from unperturb.networks.restorers import build_restorer, seeded
from unperturb.purifiers.transforms import RandomTransform
from unperturb.saved_networks import CONFIG, WEIGHTS, Form

__all__ = ["FORM", "RestorationNet", "is_restoration", "load_restoration", "save_restoration"]

FORM = Form(
    "unperturb-restoration", "restoration network", "unperturb fit gan, fit mae or fit atop"
)
PIXEL_RANGE = [0.0, 1.0]
_OTHER = "discriminator.safetensors"


@dataclass(frozen=True, eq=False)
class RestorationNet:
    """A restoration network and what it was trained on.

    Attributes:
        name: Name of the network in ``RESTORERS``.
        network: The network.
        image_shape: (C, H, W) of the images it was trained on.
        transform: The random transform it was trained on.
        discriminator: The other half of a GAN, for fine-tuning; None where there is none.
        card: JSON-able facts: settings, data, figures of the last epoch.
    """

    name: str
    network: nn.Module
    image_shape: tuple[int, int, int]
    transform: RandomTransform
    discriminator: PatchDiscriminator | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def is_restoration(folder: str | Path) -> bool:
    """Whether a folder holds a saved restoration network."""
    return FORM.is_in(folder)


def save_restoration(found: RestorationNet, folder: str | Path) -> Path:
    """Write a restoration network so that ``load_restoration(folder)`` brings it back.

    Each file is written whole or not at all, the configuration last.

    Raises:
        OutputError: The folder cannot be written, or holds something else.
    """
    from unperturb.classifiers.weights import file_sha256

    folder = Path(folder)
    FORM.check_free(folder)
    write_tensors(folder / WEIGHTS, found.network.state_dict(), {"format": "pt"})
    other = None
    if found.discriminator is not None:
        write_tensors(folder / _OTHER, found.discriminator.state_dict(), {"format": "pt"})
        sha = file_sha256(folder / _OTHER)
        other = {"options": found.discriminator.config(), "weights_sha256": sha}
    write_json(
        folder / CONFIG,
        {
            **FORM.head(),
            "network": found.name,
            "options": found.network.config(),  # type: ignore[operator]
            "image_shape": list(found.image_shape),
            "pixel_range": PIXEL_RANGE,
            "transform": found.transform.to_dict(),
            "discriminator": other,
            "weights_sha256": file_sha256(folder / WEIGHTS),
            "card": dict(found.card),
        },
    )
    return folder


def load_restoration(folder: str | Path) -> RestorationNet:
    """Read what ``save_restoration`` wrote; networks are in eval mode, on the CPU.

    Raises:
        SpecError: There is no such folder, or it holds something else.
        ConfigError: It is of another version, damaged, or trained on pixels of another range.
        WeightsError: Weights are missing, damaged, or not those the configuration names.
    """
    folder = Path(folder)
    config = FORM.read(folder)
    try:
        name, options = str(config["network"]), dict(config["options"])
        channels, height, width = (int(side) for side in config["image_shape"])
        transform = RandomTransform(**config["transform"])
        other, sha = config["discriminator"], config["weights_sha256"]
        card, pixels = dict(config["card"]), config["pixel_range"]
        network = build_restorer(name, **options)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnperturbError):
            raise
        raise FORM.damaged(folder, error) from error
    if pixels != PIXEL_RANGE:
        raise ConfigError(
            f"The restoration network in {str(folder)!r} was trained on pixels in {pixels}",
            expected="pixels in [0, 1]",
            fix="train it on images as this package reads them",
        )
    _fill(network, folder / WEIGHTS, sha)
    discriminator = None
    if other is not None:
        with seeded(0):
            discriminator = PatchDiscriminator(**other["options"])
        _fill(discriminator, folder / _OTHER, other["weights_sha256"])
    return RestorationNet(
        name,
        network.eval(),
        (channels, height, width),
        transform,
        None if discriminator is None else discriminator.eval(),
        card,
    )


def _fill(network: nn.Module, path: Path, sha: object) -> None:
    from unperturb.classifiers.weights import file_sha256, fit_state, read_weights

    state, _ = read_weights(path)
    found = file_sha256(path)
    if found != sha:
        raise WeightsError(
            f"The weights {str(path)!r} have SHA-256 {found[:12]}...",
            expected=f"{str(sha)[:12]}..., as {CONFIG} says",
            fix="the folder was changed or saved only in part: fit or fetch it again",
        )
    fit_state(network, state, source=repr(str(path)), network=type(network).__name__)
