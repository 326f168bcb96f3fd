"""What decides the contents of a logit bank, and where its files lie.

Layout of a bank's folder::

    plan.json                 settings, their hash, the attacks in order
    rows.parquet              id and label of each row
    clean/00003.npy           logits of the fourth shard, (rows, K)
    pgd-10/00003.npy          the same rows under an attack
    pgd-10/00003.json         its SHA-256 and counts: its presence ends the piece
    manifest.json             digest and accuracies, once everything is there
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unperturb.errors import ConfigError, unknown_name

__all__ = [
    "CLEAN",
    "DTYPES",
    "LABELS",
    "PRECISIONS",
    "BankSettings",
    "decode",
    "encode",
    "folder_of",
]

SCHEMA_VERSION = 1
CLEAN = "clean"

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""How logits may be stored. NumPy has no bfloat16: those are stored as their 16 bits."""

PRECISIONS = ("float32", "bfloat16")
"""Arithmetic of the attacks' gradients; logits are always recorded in float32 arithmetic."""

LABELS = ("true", "predicted")
"""What the attacks step away from; ``predicted`` is the control for label leaking."""


@dataclass(frozen=True, kw_only=True)
class BankSettings:
    """Everything that decides the logits of a bank, but for the list of attacks.

    Attributes:
        classifier: Fingerprint of the classifier.
        data: Fingerprint of the images, labels and ids.
        num_classes: K.
        count: Rows.
        norm: Norm of the threat model.
        eps: Its size in pixel units.
        seed: Seed of the attacks' random numbers.
        dtype: How logits are stored: ``float32``, ``float16`` or ``bfloat16``.
        shard_size: Rows of a file; a kill loses at most one file.
        batch_size: Images at a time; every tensor's shape follows from it and the shard size.
        labels: ``true`` or ``predicted``: which label the attacks step away from.
        precision: Arithmetic of the gradients of attacks inside the ball: ``float32`` or
            ``bfloat16``.

    Raises:
        ConfigError: A value is out of range.
        SpecError: An unknown dtype, kind of labels or precision.
    """

    classifier: str
    data: str
    num_classes: int
    count: int
    norm: str
    eps: float
    seed: int
    dtype: str = "float32"
    shard_size: int = 2048
    batch_size: int = 128
    labels: str = "true"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown_name("dtype of a bank", str(self.dtype), DTYPES)
        if self.labels not in LABELS:
            raise unknown_name("kind of labels", str(self.labels), LABELS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision of a bank", str(self.precision), PRECISIONS)
        for name in ("shard_size", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"{name} of the bank is {value!r}", expected="a whole number, at least 1"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"schema_version": SCHEMA_VERSION, **vars(self)}

    def hash(self) -> str:
        """SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> list[tuple[int, int]]:
        """First row and one past the last row of each shard."""
        starts = range(0, self.count, self.shard_size)
        return [(start, min(start + self.shard_size, self.count)) for start in starts]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one source."""
        return self.num_classes * DTYPES[self.dtype].itemsize


def folder_of(source: str) -> str:
    """Folder of a source's shards: its name, with what a file system may refuse replaced.

    Two names never share a folder: one that had to be changed carries a hash of itself.

    Example:
        >>> folder_of("clean"), folder_of("pgd-10?step_size=0.125")
        ('clean', 'pgd-10-step_size-0.125-deb035')
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", source.lower()).strip("-.")
    if plain == source and plain:
        return plain
    return f"{plain[:80]}-{hashlib.sha256(source.encode()).hexdigest()[:6]}".lstrip("-")


def encode(logits: Tensor, dtype: str) -> NDArray[Any]:
    """Logits (n, K) as the array that is stored.

    Raises:
        ConfigError: A logit is too large for the dtype.
    """
    stored = logits.detach().to("cpu", DTYPES[dtype]).contiguous()
    lost = torch.isinf(stored) & torch.isfinite(logits.detach().cpu())
    if bool(lost.any()):
        most = float(logits.abs().max())
        raise ConfigError(
            f"A logit of size {most:.4g} does not fit the dtype {dtype}",
            expected="a dtype that holds it",
            fix="store bfloat16 or float32",
        )
    if dtype == "bfloat16":
        return stored.view(torch.int16).numpy().view(np.uint16)
    return stored.numpy()


def decode(array: NDArray[Any], dtype: str) -> Tensor:
    """Float32 logits (n, K) of what ``encode`` made, in memory of their own."""
    # The array may be a memory map that is read-only and soon closed.
    copied = torch.from_numpy(np.array(array.view(np.int16) if dtype == "bfloat16" else array))
    if dtype == "bfloat16":
        copied = copied.view(torch.bfloat16)
    return copied.to(torch.float32)
