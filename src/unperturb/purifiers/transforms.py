"""Random transforms that destroy a perturbation's structure before an image is restored.

Masks hold 1 where a pixel is kept and 0 where it is dropped. All randomness comes from whoever is
asked for it by name (``Draws``), one row for each image, so that an image meets the same mask and
the same noise whatever batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unperturb.errors import ConfigError, InputError, unknown_name
from unperturb.purifiers.settings import check_number, check_whole
from unperturb.randomness import Keys

__all__ = [
    "TRANSFORMS",
    "Corrupted",
    "Draws",
    "KeyedDraws",
    "RandomTransform",
    "Restored",
    "Restorer",
    "corrupt",
    "patch_masks",
    "restore",
]

TRANSFORMS = ("rt1", "rt2", "rt3")
_OWNERS = {"rate": ("rt1", "rt2"), "sigma": ("rt2", "rt3"), "passes": ("rt3",)}
_DEFAULTS: dict[str, Any] = {"rate": 0.25, "sigma": 0.25, "passes": 4}
_PARTS = 8

Restorer = Callable[[Tensor, Tensor], Tensor]
"""``(masked images (N, C, H, W), masks (N, 1, H, W))`` to restored images (N, C, H, W)."""


class Draws(Protocol):
    """Whoever hands out random numbers by name, as a defense's ``Context`` does."""

    def noise(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (N, *shape)."""

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform numbers on [0, 1), (N, *shape)."""


@dataclass(frozen=True, eq=False)
class KeyedDraws:
    """Random numbers of images that no defense is called on: in training, or for a picture.

    Attributes:
        keys: Name the numbers of each image.
        like: A tensor of the dtype, on the device, that is wanted.

    Example:
        >>> draws = KeyedDraws(Keys.of(0, ["a", "b"]), torch.zeros(()))
        >>> draws.noise("x", (3,)).shape
        torch.Size([2, 3])
    """

    keys: Keys
    like: Tensor

    def noise(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (N, *shape)."""
        return self.keys.normal(name, shape, device=self.like.device).to(self.like.dtype)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform numbers on [0, 1), (N, *shape)."""
        return self.keys.uniform(name, shape, device=self.like.device).to(self.like.dtype)


@dataclass(frozen=True, kw_only=True)
class RandomTransform:
    """One of the random transforms of Lin et al. 2024, section 3.1, with its settings.

    - ``rt1`` (eq. 2): a share ``rate`` of the patches is dropped, ``m * x``.
    - ``rt2`` (eq. 3): Gaussian noise first, ``m * (x + eta)``.
    - ``rt3`` (eq. 4): ``rt2`` ``passes`` times on one noisy image, with masks that do not overlap
      and together drop every pixel once.

    Deviations from the paper, which says "randomly missing with missing rate r": the *number* of
    dropped patches is the same for every image, ``round(rate * patches)`` and at least one, so
    that no image goes unmasked. Where ``passes`` does not divide the number of patches, the covers
    differ by one patch. Where the patch does not divide the image, the patches at its right and
    lower edge are cut off.

    Attributes:
        name: ``rt1``, ``rt2`` or ``rt3``.
        patch: Side of a patch in pixels; None: an eighth of the image's smaller side, as in the
            paper.
        rate: For ``rt1`` and ``rt2``: share of the patches that is dropped, in (0, 1); 0.25.
        sigma: For ``rt2`` and ``rt3``: standard deviation of the noise in pixel units; 0.25.
        passes: For ``rt3``: number of covers, 2 or more; 4.

    Raises:
        SpecError: There is no such transform.
        ConfigError: A setting is out of range, or belongs to another transform.

    Example:
        >>> RandomTransform(name="rt2").to_dict()
        {'name': 'rt2', 'patch': None, 'rate': 0.25, 'sigma': 0.25, 'passes': None}
        >>> RandomTransform(name="rt3").patch_of((32, 32))
        4
    """

    name: str = "rt2"
    patch: int | None = None
    rate: float | None = None
    sigma: float | None = None
    passes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in TRANSFORMS:
            raise unknown_name("random transform", str(self.name), TRANSFORMS)
        for setting, owners in _OWNERS.items():
            value = getattr(self, setting)
            if value is not None and self.name not in owners:
                raise ConfigError(
                    f"{setting} is {value!r} with the transform {self.name}",
                    expected=f"a setting of {self.name}; {setting} is one of {', '.join(owners)}",
                    fix=f"leave it out, or use {' or '.join(owners)}",
                )
            if value is None and self.name in owners:
                object.__setattr__(self, setting, _DEFAULTS[setting])
        if self.patch is not None:
            check_whole("The side of a patch", self.patch)
        if self.rate is not None:
            object.__setattr__(self, "rate", check_number("The missing rate", self.rate, most=1))
            if self.rate == 1:
                raise ConfigError("The missing rate is 1", expected="a number above 0 and below 1")
        if self.sigma is not None:
            object.__setattr__(
                self, "sigma", check_number("The noise's sigma", self.sigma, most=10)
            )
        if self.passes is not None and check_whole("passes", self.passes) < 2:
            raise ConfigError(f"passes is {self.passes}", expected="2 or more covers")

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-able; what the transform does not read is None."""
        names = ("name", "patch", "rate", "sigma", "passes")
        return {name: getattr(self, name) for name in names}

    def filled(self, other: RandomTransform, **given: Any) -> RandomTransform:
        """This transform, with another's settings where it reads them and none were given.

        Args:
            other: Where the settings come from.
            **given: Settings that were given; None where they were not.

        Example:
            >>> trained = RandomTransform(name="rt2", sigma=0.1)
            >>> RandomTransform(name="rt3").filled(trained, sigma=None).sigma
            0.1
        """
        names = [n for n in ("patch", *_OWNERS) if n == "patch" or self.name in _OWNERS[n]]
        taken = {
            name: getattr(other, name)
            for name in names
            if given.get(name) is None and getattr(other, name) is not None
        }
        return replace(self, **taken)

    def single(self) -> RandomTransform:
        """The transform that one pass of this one is: what a network is pre-trained on.

        Example:
            >>> RandomTransform(name="rt3", passes=2).single().rate
            0.5
        """
        if self.passes is None:
            return self
        return replace(self, name="rt2", rate=1 / self.passes, passes=None)

    def patch_of(self, size: tuple[int, int]) -> int:
        """Side of a patch for images of this (height, width)."""
        return self.patch if self.patch is not None else max(1, min(size) // _PARTS)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for images of this (height, width).

        Raises:
            InputError: They are too few to drop some and keep some.
        """
        patch = self.patch_of(size)
        rows, columns = (-(-side // patch) for side in size)
        least = self.passes or 2
        if rows * columns < least:
            raise InputError(
                f"Images of {size[0]}x{size[1]} have {rows * columns} "
                f"patch{'es' * (rows * columns > 1)} of {patch}x{patch}",
                expected=f"at least {least} for {self.name}",
                fix="use a smaller patch, or larger images",
            )
        return rows, columns


class Corrupted(NamedTuple):
    """What is left of images; one mask for each pass."""

    noisy: Tensor  # (N, C, H, W): the images with their noise
    masks: tuple[Tensor, ...]  # each (N, 1, H, W), 1 where a pixel is kept


class Restored(NamedTuple):
    """What a restoration network made of images."""

    images: Tensor  # (N, C, H, W)
    passes: tuple[Tensor, ...]  # the network's output of each pass
    corrupted: Corrupted


def patch_masks(
    transform: RandomTransform, draws: Draws, size: tuple[int, int], like: Tensor
) -> tuple[Tensor, ...]:
    """Masks of every pass, each (N, 1, H, W): 1 keeps a pixel, 0 drops it.

    Each image orders its patches at random. ``rt1`` and ``rt2`` drop the first of them, ``rt3``
    deals them out to its passes, so that every patch is dropped in exactly one.

    Args:
        transform: Which one.
        draws: Hands out the random numbers.
        size: (height, width).
        like: A tensor of the dtype, on the device, that is wanted.

    Raises:
        InputError: Images of this size have too few patches.
    """
    rows, columns = transform.grid(size)
    count = rows * columns
    drawn = draws.uniform("mask", (count,))
    # The rank of each patch; a stable sort, so that ties are broken alike everywhere.
    rank = drawn.argsort(dim=1, stable=True).argsort(dim=1)
    if transform.passes is None:
        assert transform.rate is not None
        dropped = min(max(round(transform.rate * count), 1), count - 1)
        kept = [rank >= dropped]
    else:
        cover = rank * transform.passes // count
        kept = [cover != number for number in range(transform.passes)]
    patch = transform.patch_of(size)

    def pixels(grid: Tensor) -> Tensor:
        mask = grid.view(-1, 1, rows, columns).to(like.device, like.dtype)
        mask = mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        return mask[:, :, : size[0], : size[1]]

    return tuple(pixels(grid) for grid in kept)


def corrupt(images: Tensor, transform: RandomTransform, draws: Draws) -> Corrupted:
    """Noise and masks for images (N, C, H, W); what a network reads is ``mask * noisy``.

    Nothing is clipped: noisy pixels may leave [0, 1].

    Raises:
        InputError: Images of this size have too few patches.
    """
    height, width = images.shape[-2:]
    masks = patch_masks(transform, draws, (height, width), images)
    if transform.sigma is None:
        return Corrupted(images, masks)
    return Corrupted(images + transform.sigma * draws.noise("noise", images.shape[1:]), masks)


def restore(
    network: Restorer, images: Tensor, transform: RandomTransform, draws: Draws
) -> Restored:
    """Transform images and restore them: eq. 2, 3 and 4 of Lin et al. 2024.

    ``g(m * x)`` for ``rt1``, ``g(m * (x + eta))`` for ``rt2``, and for ``rt3``
    ``sum_i (1 - m_i) * g(m_i * (x + eta))``: each pixel is taken from the pass that did not see
    it. Differentiable to images and network. Nothing is clipped.

    Args:
        network: Masked images and masks to restored images.
        images: Images (N, C, H, W).
        transform: Which transform.
        draws: Hands out the random numbers.

    Raises:
        InputError: Images of this size have too few patches.

    Example:
        >>> draws = KeyedDraws(Keys.of(0, ["a"]), torch.zeros(()))
        >>> found = restore(lambda x, m: x, torch.ones(1, 1, 8, 8), RandomTransform(name="rt1"),
        ...                 draws)
        >>> int(found.images.sum()), len(found.passes)
        (48, 1)
    """
    corrupted = corrupt(images, transform, draws)
    passes = tuple(network(mask * corrupted.noisy, mask) for mask in corrupted.masks)
    if len(passes) == 1:
        return Restored(passes[0], passes, corrupted)
    whole = torch.zeros_like(images)
    for mask, made in zip(corrupted.masks, passes, strict=True):
        whole = whole + (1.0 - mask) * made
    return Restored(whole, passes, corrupted)
