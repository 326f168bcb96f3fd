"""A random transform that destroys a perturbation, and a network that restores the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unperturb.context import Context
from unperturb.errors import ConfigError, InputError
from unperturb.networks.restorers import build_restorer
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.settings import check_flag
from unperturb.purifiers.transforms import Draws, RandomTransform, Restored, restore

if TYPE_CHECKING:
    from unperturb.restoration.folder import RestorationNet

__all__ = ["Restoration", "check_shape"]


class Restoration(Purifier):
    """``x_pur = g(t(x))`` with a random transform t and a restoration network g.

    Lin et al. 2024 (AToP), eq. 1 to 4. The transform is drawn afresh for every image, also at
    evaluation: mask and noise are never off. One answer costs one pass of the network, ``rt3``
    one for each of its covers.

    Backward rules: ``exact`` (through network, noise and mask) and ``identity`` (BPDA, as in
    section 4.4 of the paper). Averages over draws are the attack's own (``draws``).

    Built like this the network's weights are random; `from_folder` takes trained ones.

    Args:
        network: Name of the network: ``inpainting-gan`` or ``masked-autoencoder``.
        options: The network's keyword arguments.
        transform: ``rt1``, ``rt2`` or ``rt3``.
        patch: Side of a patch in pixels; None: an eighth of the image's smaller side.
        rate: For ``rt1`` and ``rt2``: share of the patches that is dropped; 0.25.
        sigma: For ``rt2`` and ``rt3``: standard deviation of the noise; 0.25.
        passes: For ``rt3``: number of covers; 4.
        image_shape: (C, H, W) of the images it was trained on; others are refused. None: any.
        clip: Clip the restored image to [0, 1]; eq. 1 does not.

    Raises:
        SpecError: No such network or transform.
        ConfigError: A setting is out of range, or belongs to another transform.

    Example:
        >>> purifier = Restoration(transform="rt1", options={"width": 8})
        >>> purifier.stochastic, purifier.backwards
        (True, ('exact', 'identity'))
    """

    name = "restoration"
    stochastic = True

    def __init__(
        self,
        *,
        network: str = "inpainting-gan",
        options: Mapping[str, Any] | None = None,
        transform: str = "rt2",
        patch: int | None = None,
        rate: float | None = None,
        sigma: float | None = None,
        passes: int | None = None,
        image_shape: Sequence[int] | None = None,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.transform = RandomTransform(
            name=transform, patch=patch, rate=rate, sigma=sigma, passes=passes
        )
        self.kind = network
        self.network: nn.Module = build_restorer(network, **dict(options or {}))
        self.network.eval().requires_grad_(False)
        # The layout in which convolutions are fastest.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_shape = _shape(image_shape)
        self.clip = check_flag("clip", clip)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path | RestorationNet,
        *,
        transform: str | None = None,
        patch: int | None = None,
        rate: float | None = None,
        sigma: float | None = None,
        passes: int | None = None,
        clip: bool = False,
    ) -> Restoration:
        """A trained network from the folder that ``unperturb fit`` wrote.

        Args:
            folder: The folder, or what ``load_restoration`` read from it.
            transform: Which transform; None: the one it was trained on.
            patch: As above; None: as it was trained, where the transform has such a setting.
            rate: Likewise.
            sigma: Likewise.
            passes: Likewise.
            clip: Clip the restored image to [0, 1].

        Raises:
            SpecError: There is no such folder, or no such transform.
            ConfigError: It is damaged, or a setting is out of range.
            WeightsError: Its weights are not those the configuration names.
        """
        from unperturb.restoration.folder import load_restoration

        found = load_restoration(folder) if isinstance(folder, str | Path) else folder
        chosen = RandomTransform(
            name=found.transform.name if transform is None else transform,
            patch=patch,
            rate=rate,
            sigma=sigma,
            passes=passes,
        ).filled(found.transform, patch=patch, rate=rate, sigma=sigma, passes=passes)
        made = cls(
            network=found.name,
            options=found.network.config(),  # type: ignore[operator]
            transform=chosen.name,
            patch=chosen.patch,
            rate=chosen.rate,
            sigma=chosen.sigma,
            passes=chosen.passes,
            image_shape=found.image_shape,
            clip=clip,
        )
        made.network.load_state_dict(found.network.state_dict())
        return made

    def config(self) -> dict[str, Any]:
        """Network, transform, the images it is for, and clipping."""
        settings = self.transform.to_dict()
        return {
            "network": self.kind,
            "options": self.network.config(),  # type: ignore[operator]
            "transform": settings.pop("name"),
            **settings,
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "clip": self.clip,
        }

    def restored(self, images: Tensor, draws: Draws) -> Restored:
        """All that happens to images: noise, masks, passes and what comes of them.

        Raises:
            InputError: Images of another shape, or with too few patches.
        """
        check_shape(images, self.image_shape)
        return restore(self.network, images, self.transform, draws)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Transform and restore images (N, C, H, W) in [0, 1]."""
        reading = self.restored(images, ctx).images
        if self.clip:
            reading = reading.clamp(0.0, 1.0)
        return Purified(reading, reading)


def check_shape(images: Tensor, wanted: tuple[int, int, int] | None) -> None:
    """Refuse images of another shape than those a network was trained on.

    Args:
        images: Images (N, C, H, W).
        wanted: (C, H, W); None: any.

    Raises:
        InputError: They are of another.
    """
    if wanted is None or tuple(images.shape[1:]) == wanted:
        return
    channels, height, width = wanted
    raise InputError(
        f"Images have {images.shape[1]} channels and are "
        f"{images.shape[2]}x{images.shape[3]} (height x width)",
        expected=f"{channels} channels and {height}x{width}, on which this restoration network "
        "was trained",
        fix=f"resize them to {height}x{width}, or fit one on such images",
    )


def _shape(found: Sequence[int] | None) -> tuple[int, int, int] | None:
    if found is None:
        return None
    whole = isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 3
    if not whole or not all(isinstance(side, int) and side > 0 for side in found):
        raise ConfigError(
            f"image_shape is {found!r}", expected="(channels, height, width), such as (3, 32, 32)"
        )
    channels, height, width = found
    return channels, height, width
