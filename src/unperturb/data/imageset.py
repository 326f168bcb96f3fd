"""Labelled images in memory, stored compactly, with stable ids."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unperturb.errors import DataError

__all__ = ["ImageSet", "check_unique"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, labels and ids of one split, in a fixed order.

    Args:
        pixels: (N, C, H, W); ``uint8`` (value / 255) or ``float32`` in [0, 1].
        labels: (N,) ``int64`` class indices; -1 where there is no label.
        ids: N unique names that stay the same whatever ``limit`` or ``shuffle`` is.
        classes: Class names; ``classes[label]`` is the name of a label. Empty without labels.
        source: Where the images come from and what was done to them, for the record.
        split: The split that was read, ``None`` where the source has no splits.
        skipped: Ids of the broken images that were left out.

    Raises:
        DataError: Shapes, dtypes or lengths do not fit each other, or an id occurs twice.

    Example:
        >>> import torch
        >>> pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> labels = torch.tensor([0, 1, 1])
        >>> data = ImageSet(pixels, labels, ("a", "b", "c"), ("x", "y"), "me", None)
        >>> data.images([1]).item()
        0.20000000298023224
        >>> data.take([2, 0]).ids
        ('c', 'a')
    """

    pixels: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    source: str
    split: str | None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"Pixels have shape {tuple(self.pixels.shape)} and dtype {self.pixels.dtype}",
                expected="(N, C, H, W), uint8 or float32 in [0, 1]",
                fix="reshape or convert the pixels",
            )
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64:
            raise DataError(
                f"Labels have shape {tuple(self.labels.shape)} and dtype {self.labels.dtype}",
                expected="(N,) int64",
                fix="pass labels.long() with one label an image",
            )
        counts = (len(self.pixels), len(self.labels), len(self.ids))
        if len(set(counts)) != 1:
            raise DataError(
                "{} images, {} labels and {} ids do not belong together".format(*counts),
                expected="as many of each",
                fix="pass one label and one id an image",
            )
        check_unique(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, index: slice | Tensor | Sequence[int] = slice(None)) -> Tensor:
        """Images as the library reads them.

        Args:
            index: Which rows, in the order wanted: a slice, a sequence, or an index or mask tensor.

        Returns:
            (n, C, H, W) ``float32`` in [0, 1]; a copy where pixels are stored as ``uint8``.
        """
        chosen = self.pixels[index if isinstance(index, slice | Tensor) else list(index)]
        if chosen.dtype == torch.uint8:
            return chosen.to(torch.float32).div_(255.0)
        return chosen

    def take(self, indices: slice | Tensor | Sequence[int]) -> ImageSet:
        """The rows ``indices`` as an image set of their own, in the order given.

        Args:
            indices: A slice, a sequence of row numbers, or an index or mask tensor.

        Raises:
            DataError: A row number is out of range or occurs twice.
        """
        rows = torch.arange(len(self))
        try:
            rows = rows[indices if isinstance(indices, slice | Tensor) else list(indices)]
        except IndexError as error:
            raise DataError(
                f"Cannot take these rows of {len(self)} images ({error})",
                expected=f"row numbers from 0 to {len(self) - 1}",
                fix="check the indices",
            ) from error
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) over pixels, labels and ids with their shapes and dtypes."""
        digest = hashlib.sha256()
        for tensor in (self.pixels, self.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            array: np.ndarray = tensor.detach().cpu().numpy()
            digest.update(np.ascontiguousarray(array).data)
        for name in self.ids:
            raw = name.encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()


def check_unique(ids: Sequence[str], where: str = "the data set") -> None:
    """Refuse ids that occur twice: records are keyed by them.

    Raises:
        DataError: Names the first such id and how many there are.
    """
    if len(set(ids)) == len(ids):
        return
    repeated = [(name, count) for name, count in Counter(ids).items() if count > 1]
    name, count = repeated[0]
    raise DataError(
        f"{len(repeated)} ids of {where} occur more than once; the first, {name!r}, {count} times",
        expected="one id an image, each different",
        fix="make the ids unique, or leave the id column or the repeated file out",
    )
