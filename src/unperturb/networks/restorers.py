"""Networks that restore images, by name: masked images and masks to whole images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unperturb.errors import ConfigError, unknown_name
from unperturb.networks.inpainting_gan import InpaintingGenerator
from unperturb.networks.masked_autoencoder import MaskedAutoencoder

__all__ = ["RESTORERS", "build_restorer", "seeded"]

RESTORERS: dict[str, type[InpaintingGenerator] | type[MaskedAutoencoder]] = {
    "inpainting-gan": InpaintingGenerator,
    "masked-autoencoder": MaskedAutoencoder,
}
"""Restoration networks by name. Each has ``config()``, which builds it again."""


# Lower case, since it reads as a statement: ``with seeded(0): ...``.
class seeded:
    """Draw initial weights from a seed; the global generator is put back as it was."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        # The default generator alone: torch.manual_seed would reseed every accelerator too.
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *exc: Any) -> None:
        self._fork.__exit__(*exc)


def build_restorer(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """A freshly initialized restoration network.

    Args:
        name: A name of ``RESTORERS``.
        seed: Seed of the initial weights.
        **options: Keyword arguments of the network.

    Raises:
        SpecError: There is no such network.
        ConfigError: It has no such option, or a value is out of range.

    Example:
        >>> build_restorer("inpainting-gan", width=8).config()["width"]
        8
    """
    if not isinstance(name, str) or name not in RESTORERS:
        raise unknown_name("restoration network", str(name), RESTORERS)
    with seeded(seed):
        try:
            return RESTORERS[name](**options)
        except TypeError as error:
            raise ConfigError(
                f"The options {options} do not fit {name!r}: {error}",
                expected="options that this network has",
            ) from None
