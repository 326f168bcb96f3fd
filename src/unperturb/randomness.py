"""Counter-based random numbers, keyed by run seed, stage, image and draw.

Every number is a pure function ``philox(key(seed, stage), counter(image, draw, block))``
(Salmon et al. 2011, Philox4x32-10), computed in integer arithmetic on the tensor's own device.
So an image meets the same noise whatever its batch, its order, the worker or the machine, and no
global generator is ever touched.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Keys", "hash_ids", "philox"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_PIECE = 1 << 13


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b: int64 products wrap, and their bits are those of uint64."""
    product = b * a
    low = product & _MASK
    return product.bitwise_right_shift_(32).bitwise_and_(_MASK), low


def philox(
    key: tuple[int, int], counter: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words for each 128-bit counter.

    Args:
        key: Two 32-bit words.
        counter: Four broadcastable int64 tensors that hold 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(int(w)) for w in philox((0, 0), [zero] * 4)]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = (high1 ^ c1).bitwise_xor_(k0), low1, (high0 ^ c3).bitwise_xor_(k1), low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def hash_ids(ids: Sequence[str]) -> Tensor:
    """Map image ids to 63-bit integers, the same everywhere.

    Args:
        ids: N strings.

    Returns:
        An int64 tensor (N,).

    Example:
        >>> hash_ids(["a", "b"]).shape
        torch.Size([2])
    """
    return torch.tensor(
        [
            int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") >> 1
            for i in ids
        ],
        dtype=torch.int64,
    )


@dataclass(frozen=True, eq=False)
class Keys:
    """What names the random numbers of a batch: one (image, draw) pair for each row.

    Attributes:
        seed: The run's seed.
        images: Hashed image ids, int64 (N,).
        draws: Number of the draw for each row, int64 (N,), below 2**32.
        domain: What the numbers are for (an attack's steps, scoring ...): numbers of different
            domains are independent, so that images are never scored on the draws they were
            optimized on.
    """

    seed: int
    images: Tensor
    draws: Tensor
    domain: str = ""

    @classmethod
    def of(cls, seed: int, ids: Sequence[str] | Tensor, *, domain: str = "") -> Keys:
        """Keys of draw 0 for images with these ids (or already hashed ids)."""
        images = ids if isinstance(ids, Tensor) else hash_ids(ids)
        return cls(seed, images, torch.zeros_like(images), domain)

    @classmethod
    def fresh(cls, count: int) -> Keys:
        """Keys nobody has used: what a deployed random defense draws from."""
        return cls.of(secrets.randbits(63), torch.arange(count), domain="fresh")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Keys:
        return replace(self, images=self.images[index], draws=self.draws[index])

    def to(self, device: torch.device | str) -> Keys:
        """The same keys, held on a device."""
        return replace(self, images=self.images.to(device), draws=self.draws.to(device))

    def draw(self, number: int) -> Keys:
        """The same images at another draw."""
        return replace(self, draws=torch.full_like(self.draws, number))

    def within(self, domain: str) -> Keys:
        """The same images and draws for another purpose."""
        return replace(self, domain=domain)

    def copies(self, count: int) -> Keys:
        """Each row ``count`` times in a row, at draws ``draw * count ... + count - 1``."""
        images = self.images.repeat_interleave(count)
        draws = self.draws.repeat_interleave(count) * count
        draws = draws + torch.arange(count, device=draws.device).repeat(len(self))
        return replace(self, images=images, draws=draws)

    def _words(self, stage: str, size: int, device: torch.device) -> tuple[Tensor, ...]:
        name = f"{self.seed}\0{self.domain}\0{stage}".encode()
        digest = hashlib.blake2b(name, digest_size=8).digest()
        key = (int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big"))
        images = self.images.to(device)[:, None]
        block = torch.arange(size, device=device)[None]
        draws = self.draws.to(device)[:, None]
        # In pieces that stay in the cache: the numbers are the same, the time is a third.
        rows = max(1, _PIECE // max(size, 1)) if device.type == "cpu" else len(self)
        parts = [
            philox(key, (block, draw, image & _MASK, image >> 32))
            for draw, image in zip(draws.split(rows), images.split(rows), strict=True)
        ]
        return tuple(torch.cat(words) for words in zip(*parts, strict=True))

    def uniform(
        self, stage: str, shape: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Numbers uniform on [0, 1) in steps of 2**-24.

        Args:
            stage: Name of the stage that draws them.
            shape: Shape for one image, without the batch dimension.
            device: Where to compute them; the numbers are the same everywhere.

        Returns:
            A float32 tensor (N, *shape).

        Example:
            >>> keys = Keys.of(0, ["a", "b"])
            >>> bool((keys.uniform("noise", (3,))[1] == keys[1:].uniform("noise", (3,))[0]).all())
            True
        """
        size = math.prod(shape)
        words = self._words(stage, -(-size // 4), torch.device(device))
        bits = torch.stack(words, -1).flatten(1)[:, :size]
        return ((bits >> 8).to(torch.float32) * 2.0**-24).reshape(len(self), *shape)

    def normal(
        self, stage: str, shape: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal numbers by the Box-Muller transform, in float64 and then rounded.

        Args:
            stage: Name of the stage that draws them.
            shape: Shape for one image, without the batch dimension.
            device: Where to compute them.

        Returns:
            A float32 tensor (N, *shape).
        """
        size = math.prod(shape)
        w0, w1, w2, w3 = self._words(stage, -(-size // 4), torch.device(device))
        radius = torch.stack((w0, w2), -1).to(torch.float64).add_(0.5).mul_(2.0**-32)
        angle = torch.stack((w1, w3), -1).to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
        radius = radius.log_().mul_(-2.0).sqrt_()
        both = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
        return both.flatten(1)[:, :size].to(torch.float32).reshape(len(self), *shape)
